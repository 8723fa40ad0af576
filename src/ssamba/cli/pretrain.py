"""`ssamba pretrain` and `ssamba reconstruct`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, CheckpointOption, app, fail, hours_of_audio, out
from ssamba.cli.progress import TrainingBar

if TYPE_CHECKING:
    from ssamba.training.run_io import TrainingReport


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba pretrain recordings/ --minutes 60 --out runs/mine\n\n"
    "ssamba pretrain manifest.parquet --recipe laptop --out runs/mine\n\n"
    "ssamba pretrain audioset/ librispeech/ --recipe official-tiny-400 --out runs/tiny\n\n"
    "torchrun --nproc-per-node 8 -m ssamba pretrain shards/ --recipe one-gpu --out runs/eight\n\n" + EXIT_CODES
)
def pretrain(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES...", help="Folders of audio, manifests, folders of shards, hf:OWNER/NAME; one or more."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run; its model/ is the result.", show_default=False)
    ],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="TOML file with everything else, or one by name: laptop, one-gpu, ..."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="tiny, small or base. Default: the recipe's, else tiny.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for so long, whatever the recipe says.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Train for so many epochs, whatever the recipe says.")] = None,
    fresh: Annotated[
        bool, typer.Option("--no-resume", help="Refuse to go on with a run that is in the folder already.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if there is one.")] = None,
) -> None:
    """Pretrain an encoder on unlabeled recordings.

    A run that was interrupted goes on where it was: repeat the command. Recordings that cannot be read are listed in
    OUT/skipped.csv. Watch OUT/log.jsonl and OUT/pictures/.
    """
    from ssamba.training.pretraining.recipe import PretrainRecipe, find_recipe, read_toml
    from ssamba.training.pretraining.task import pretrain as run

    values: dict[str, Any] = read_toml(find_recipe(recipe)) if recipe else {}
    if size is not None:
        values.setdefault("model", {})["size"] = size
    if minutes is not None and epochs is not None:
        raise typer.BadParameter("--minutes and --epochs exclude each other")
    if minutes is not None or epochs is not None:
        length = {"steps": None, "epochs": epochs, "max_minutes": minutes}
        values["run"] = {**values.get("run", {}), **length}
    settings = PretrainRecipe.parse(values, recipe or "the command line")
    with TrainingBar() as bar:
        report = run(
            sources,
            settings,
            output,
            resume=False if fresh else "auto",
            device=device,
            on_progress=bar.update,
            on_decoded=bar.decoded,
        )
    if os.environ.get("RANK", "0") == "0":
        _print_report(report, output)
    if report.stopped == "SIGINT":
        sys.exit(130)


def _print_report(report: TrainingReport, output: Path) -> None:
    skipped = f", {report.skipped} clips skipped (skipped.csv)" if report.skipped else ""
    bad = f", {report.bad_steps} steps left out" if report.bad_steps else ""
    out.print(
        f"{report.stopped} at step {report.step}: {report.clips} clips, {hours_of_audio(report.audio_s)} of audio in "
        f"{hours_of_audio(report.elapsed_s)}{skipped}{bad}",
        highlight=False,
        soft_wrap=True,
    )
    figures = {name: value for name, value in report.validation.items() if "@" in name}
    for name, value in figures.items():
        out.print(f"  held out, {name.replace('@', ' at ')} of 512: {value:.4f}", highlight=False)
    where = report.model or report.last_state or output
    verb = "model" if report.model else "state, to go on from by the same command,"
    out.print(f"{verb} in {escape(str(where))}", highlight=False, soft_wrap=True)


@app.command(
    epilog="[bold]Examples[/]\n\nssamba reconstruct dawn.flac -c runs/mine/model -o dawn.png\n\n"
    "ssamba reconstruct dawn.flac -c ssamba_tiny.pth -o dawn.png --audio dawn-imagined.wav --ratio 0.5\n\n" + EXIT_CODES
)
def reconstruct(
    clip: Annotated[Path, typer.Argument(help="A recording; its first 10.24 s are used.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write (.png, .pdf, .svg).")],
    checkpoint: CheckpointOption = None,
    audio: Annotated[Path | None, typer.Option(help="Also write what was imagined as sound, to this .wav.")] = None,
    ratio: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the patches that is hidden.")] = 400 / 512,
    style: Annotated[
        str | None,
        typer.Option(help="clustered, frames, or official. Default: what the model is best pretrained with."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another number hides other patches.")] = 0,
    start: Annotated[float, typer.Option(min=0, help="Where in the recording to begin, seconds.")] = 0.0,
) -> None:
    """Show what a pretrained model imagines under the mask."""
    from ssamba.training.pretraining.pictures import reconstruct_recording
    from ssamba.training.pretraining.recipe import MaskSettings

    masking = MaskSettings.parse({"ratio": ratio, "style": style}, "options")
    try:
        error = reconstruct_recording(clip, checkpoint, output, masking, seed=seed, start_s=start, audio=audio)
    except ValueError as problem:
        fail(str(problem))
    out.print(f"mean squared error of the hidden patches {error:.4f} (normalized log-mel): {escape(str(output))}")
    if audio is not None:
        out.print(f"as sound: {escape(str(audio))}")
