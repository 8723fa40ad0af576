"""`ssamba pretrain` and `ssamba reconstruct`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ssamba.cli.app import (
    EXIT_CODES,
    BatchSizeOption,
    ChangesOption,
    CheckpointOption,
    DeviceOption,
    EncodingOption,
    EpochsOption,
    MinutesOption,
    RecipeOption,
    RunOverwriteOption,
    SeedOption,
    app,
    fail,
    only_rank_0_prints,
    out,
    say,
)
from ssamba.cli.progress import ProgressDisplay


@app.command(
    epilog="[bold]Recipes[/]: laptop, one-gpu, many-nodes, official.\n\n"
    "[bold]Examples[/]\n\n"
    "ssamba pretrain recordings/ -o runs/mine --minutes 60\n\n"
    "ssamba pretrain recordings/ -o runs/more -c ssamba2-tiny --epochs 5   (go on from a model's weights)\n\n"
    "ssamba pretrain audioset/ librispeech/ -o runs/base --recipe official --size base --set masking.count=250\n\n"
    "torchrun --nproc-per-node 8 -m ssamba pretrain shards/ -o runs/eight --recipe one-gpu\n\n" + EXIT_CODES
)
def pretrain(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Folders of audio, manifests, folders of shards, or hf:OWNER/NAME."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="RUN", help="Folder of the run; RUN/model is the model.", show_default=False
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="START",
            help="Model whose weights training starts from, with its structure: a name (see `ssamba models`), a folder "
            "of a run or checkpoint, an official .pth file, or hf:OWNER/NAME. Default: random weights.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    changes: ChangesOption = None,
    size: Annotated[str | None, typer.Option(help="tiny, small or base. Default: the recipe's, else tiny.")] = None,
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = None,
    encoding: EncodingOption = None,
    overwrite: RunOverwriteOption = False,
) -> None:
    """Pretrain an encoder on unlabeled recordings.

    Repeat the command to go on after an interruption. Recordings that cannot be read are listed in RUN/skipped.csv;
    RUN/log.jsonl and RUN/pictures/ show the progress.
    """
    from ssamba.training.pretraining.run import pretrain as run

    only_rank_0_prints()
    with ProgressDisplay() as progress:
        report = run(
            data,
            output,
            checkpoint,
            recipe=recipe,
            set=changes,
            size=size,
            minutes=minutes,
            epochs=epochs,
            seed=seed,
            batch_size=batch_size,
            device=device,
            encoding=encoding,
            overwrite=overwrite,
            progress=progress,
        )
    say(str(report))


@app.command(
    epilog="[bold]Examples[/]\n\nssamba reconstruct dawn.flac -c runs/mine/model -o dawn.png\n\n"
    "ssamba reconstruct dawn.flac -c ssamba_tiny.pth -o dawn.png --audio dawn-filled.wav --ratio 0.5\n\n" + EXIT_CODES
)
def reconstruct(
    clip: Annotated[Path, typer.Argument(help="Audio file; its first 10.24 s are used.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Plot to write (.png, .pdf, .svg).")],
    checkpoint: CheckpointOption = None,
    audio: Annotated[
        Path | None, typer.Option(help="Also write the filled spectrogram as sound, to this .wav.")
    ] = None,
    ratio: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the patches to mask.")] = 400 / 512,
    style: Annotated[
        str | None,
        typer.Option(help="clustered, frames, or official. Default: the style that suits the encoder."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the mask.")] = 0,
    start: Annotated[float, typer.Option(min=0, help="Start in the recording, in seconds.")] = 0.0,
) -> None:
    """Plot what a pretrained model predicts for masked patches of a recording."""
    from ssamba.training.pretraining.recipe import MaskSettings
    from ssamba.training.pretraining.reconstruct import reconstruct_recording

    masking = MaskSettings.parse({"ratio": ratio, "style": style}, "options")
    try:
        error = reconstruct_recording(
            clip, checkpoint, output, ratio=ratio, style=masking.style, seed=seed, start_s=start, audio=audio
        )
    except ValueError as problem:
        fail(str(problem))
    out.print(f"mean squared error of the masked patches {error:.4f} (normalized log-mel): {escape(str(output))}")
    if audio is not None:
        out.print(f"as sound: {escape(str(audio))}")
