"""`ssamba reconstruct`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ssamba.cli.app import EXIT_CODES, CheckpointOption, app, no_model_name, say


@app.command(
    epilog="[bold]Examples[/]\n\nssamba reconstruct dawn.flac -c runs/mine -o dawn.png\n\n"
    "ssamba reconstruct dawn.flac -c ssamba_tiny.pth -o dawn.png --audio dawn-filled.wav --ratio 0.5\n\n" + EXIT_CODES
)
def reconstruct(
    recording: Annotated[
        Path,
        typer.Argument(metavar="RECORDING", callback=no_model_name, help="Audio file; 10.24 s of it are used."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Plot to write: .png, .pdf or .svg.", show_default=False)
    ],
    checkpoint: CheckpointOption = None,
    audio: Annotated[
        Path | None, typer.Option(help="Also write the filled spectrogram as sound, to this .wav.")
    ] = None,
    ratio: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the patches to mask.")] = 400 / 512,
    style: Annotated[
        Literal["clustered", "frames", "official"] | None,
        typer.Option(help="How masked patches lie. Default: what suits the encoder."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the mask.")] = 0,
    start: Annotated[float, typer.Option(min=0, help="Start in the recording, in seconds.")] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that was made otherwise.")] = False,
) -> None:
    """Plot what a pretrained model predicts for masked patches of a recording."""
    from ssamba.training.pretraining.reconstruct import reconstruct_recording

    report = reconstruct_recording(
        recording,
        output,
        checkpoint,
        audio=audio,
        ratio=ratio,
        style=style,
        seed=seed,
        start=start,
        overwrite=overwrite,
    )
    say(str(report))
