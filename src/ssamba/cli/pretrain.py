"""`ssamba pretrain` and `ssamba reconstruct`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ssamba.cli.app import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    ChangesOption,
    CheckpointOption,
    DeviceOption,
    NoResumeOption,
    app,
    fail,
    format_duration,
    out,
)
from ssamba.cli.progress import TrainingBar

if TYPE_CHECKING:
    from ssamba.training.run_io import TrainingReport


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba pretrain recordings/ --minutes 60 --out runs/mine\n\n"
    "ssamba pretrain manifest.parquet --recipe laptop --out runs/mine\n\n"
    "ssamba pretrain audioset/ librispeech/ --recipe official --size base --set masking.count=250 --out runs/base\n\n"
    "torchrun --nproc-per-node 8 -m ssamba pretrain shards/ --recipe one-gpu --out runs/eight\n\n" + EXIT_CODES
)
def pretrain(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES...", help="One or more folders of audio, manifests, folders of shards, or hf:OWNER/NAME."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the run; its model/ is the trained model.", show_default=False),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="TOML file with all settings, or a shipped recipe: laptop, one-gpu, many-nodes, official.",
        ),
    ] = None,
    changes: ChangesOption = None,
    size: Annotated[str | None, typer.Option(help="tiny, small or base. Default: the recipe's, else tiny.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time budget in minutes; replaces the recipe's length.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs; replaces the recipe's length.")] = None,
    no_resume: NoResumeOption = False,
    device: DeviceOption = None,
) -> None:
    """Pretrain an encoder on unlabeled recordings.

    To resume an interrupted run, repeat the command. Recordings that cannot be read are listed in OUT/skipped.csv;
    OUT/log.jsonl and OUT/pictures/ show the progress.
    """
    from ssamba.training.pretraining.recipe import PretrainRecipe
    from ssamba.training.pretraining.task import pretrain as run

    if minutes is not None and epochs is not None:
        raise typer.BadParameter("--minutes and --epochs exclude each other")
    changes = [*([] if size is None else [f"model.size={size}"]), *(changes or [])]
    settings = PretrainRecipe.read(recipe, changes).with_length(epochs=epochs, minutes=minutes)
    with TrainingBar() as bar:
        report = run(
            sources,
            settings,
            output,
            resume=False if no_resume else "auto",
            device=device,
            on_progress=bar.update,
            on_decoded=bar.decoded,
        )
    if os.environ.get("RANK", "0") == "0":
        _print_report(report, output)
    if report.stopped == "SIGINT":
        sys.exit(EXIT_INTERRUPTED)


def _print_report(report: TrainingReport, output: Path) -> None:
    skipped = f", {report.skipped} clips skipped (skipped.csv)" if report.skipped else ""
    bad = f", {report.bad_steps} steps left out" if report.bad_steps else ""
    out.print(
        f"{report.stopped} at step {report.step}: {report.clips} clips, {format_duration(report.audio_s)} of audio in "
        f"{format_duration(report.elapsed_s)}{skipped}{bad}",
        highlight=False,
        soft_wrap=True,
    )
    for name, value in report.validation.items():
        if "@" in name:
            out.print(f"  held out, {name.replace('@', ' at ')} of 512: {value:.4f}", highlight=False)
    where = report.model or report.last_state or output
    kind = "model" if report.model else "state, to resume with the same command,"
    out.print(f"{kind} in {escape(str(where))}", highlight=False, soft_wrap=True)


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
