"""`ssamba finetune`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, EXIT_INTERRUPTED, CheckpointOption, app, err, out
from ssamba.cli.progress import TrainingBar

if TYPE_CHECKING:
    from rich.table import Table

    from ssamba.training.finetuning.run import FinetuneReport


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba finetune --data birds/ --out runs/birds   (birds/ has a folder for each class)\n\n"
    "ssamba finetune --data manifest.parquet --task cpu --minutes 10 --out runs/mine\n\n"
    "ssamba finetune --task esc50 --data esc50.csv --checkpoint ssamba_base.pth --official --out runs/esc50\n\n"
    "ssamba finetune --data manifest.csv --frozen --out runs/probe\n\n"
    "torchrun --nproc-per-node 8 -m ssamba finetune --task audioset20k --data audioset.parquet --out runs/as20k\n\n"
    + EXIT_CODES
)
def finetune(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="A folder with a folder for each class, a manifest with labels, a folder of shards, or hf:OWNER/NAME.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the results; its model/ is the classifier.", show_default=False),
    ],
    checkpoint: CheckpointOption = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "-t",
            help="A shipped recipe: audioset20k, esc50, speech-commands-v1, speech-commands-v2, urbansound8k-1min, "
            "voxceleb1, iemocap, or on a CPU: cpu (anything), cpu-speech (what is said, whoever says it).",
        ),
    ] = None,
    official: Annotated[bool, typer.Option("--official", help="The original's settings for the task.")] = False,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="TOML file instead of a shipped recipe.")
    ] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Forget the checkpoint's weights, to compare.")] = False,
    frozen: Annotated[bool, typer.Option("--frozen", help="Train the classifier alone, not the encoder.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.001, help="At most so long for each round, in place of the recipe's length.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each round at most, in place of the recipe's length.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--no-resume", help="Refuse to go on with what is in the folder already.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if there is one.")] = None,
) -> None:
    """Teach a pretrained encoder the labels of recordings, and test it.

    Splits are those of the manifest (train, valid, test, or folds, which are cross-validated); without any, test and
    validation clips are held out by groups, classes evenly. A run that was interrupted goes on where it was: repeat the
    command. Scores with 95 % intervals are in OUT/results.json, those of each class in OUT/classes.csv, what is taken for
    what in OUT/confusion.png; with folds, the last two also of each in OUT/rounds/FOLD.
    """
    from ssamba.training.finetuning.recipe import FinetuneRecipe, recipe_file
    from ssamba.training.finetuning.run import finetune as run
    from ssamba.training.pretraining.recipe import read_toml

    if task is not None and recipe is not None:
        raise typer.BadParameter("--task and --recipe exclude each other")
    if official and task is None:
        raise typer.BadParameter("--official needs a --task")
    file = recipe_file(task, official=official) if task is not None else recipe
    values: dict[str, Any] = read_toml(file) if file else {}
    start = {name: True for name, chosen in (("scratch", scratch), ("frozen", frozen)) if chosen}
    values["start"] = {**values.get("start", {}), **start}
    settings = FinetuneRecipe.parse(values, str(file) if file else "the command line")
    changes: dict[str, Any] = {}
    if minutes is not None:
        changes = {"max_minutes": minutes, "steps": None, "epochs": None}
    if epochs is not None:
        changes = {"max_minutes": None, "steps": None} | changes | {"epochs": epochs}
    settings = settings.with_changes(run={**settings.run.model_dump(), **changes})

    with TrainingBar() as bar:

        def on_round(name: str, number: int, count: int) -> None:
            bar.label = "training" if count == 1 else f"{name} ({number} of {count})"

        report = run(
            data,
            settings,
            output,
            checkpoint=checkpoint,
            resume=False if fresh else "auto",
            device=device,
            on_progress=bar.update,
            on_decoded=bar.decoded,
            on_round=on_round,
        )
    if os.environ.get("RANK", "0") == "0":  # the first of several processes speaks for all
        _print_report(report, output)
    if report.model is None:  # by whatever signal: what comes after must not take it for done
        sys.exit(EXIT_INTERRUPTED)


def _print_report(report: FinetuneReport, output: Path) -> None:
    from rich.table import Table

    for note in report.notes:
        err.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True, highlight=False)
    scores = report.scores()
    judged = [name for name in ("loss", "accuracy", "balanced_accuracy", "mAP") if name in scores]
    table = Table("round", "train, valid, test clips", "epoch")
    for name in (f"valid {report.metric}", *(f"test {name}" for name in judged)):
        name = name.replace("_", " ")
        table.add_column(name, min_width=max(map(len, name.split())))  # whole words at 80 columns, too
    for part in report.rounds:
        valid = "" if part.valid is None else f"{part.valid:.3f}"
        tests = (f"{part.scores[name]:.3f}" if name in part.scores else "" for name in judged)
        table.add_row(part.name, ", ".join(map(str, part.clips.values())), str(part.epoch), valid, *tests)
    if report.rounds:
        out.print(table)
    if report.intervals:
        out.print(_figures(report))
    if report.model is None:
        out.print(f"{report.stopped}: repeat the command to go on", highlight=False)
        return
    out.print(
        f"{len(report.classes)} labels, classifier in {escape(str(report.model))}", highlight=False, soft_wrap=True
    )
    out.print(f"try it: ssamba predict AUDIO --checkpoint {escape(str(output))}", highlight=False, soft_wrap=True)


def _figures(report: FinetuneReport) -> Table:
    """Each figure of the test, over all rounds."""
    from rich.table import Table

    several = len(report.rounds) > 1
    title = f"mean over {len(report.rounds)} rounds" if several else "test"
    table = Table(
        "figure", *(("mean", "deviation") if several else ("test",)), "95 %", title=title, title_justify="left"
    )
    for name, (mean, spread) in report.scores().items():
        bounds = report.intervals.get(name)
        values = [f"{mean:.3f}", *(["" if spread is None else f"{spread:.3f}"] if several else [])]
        table.add_row(name.replace("_", " "), *values, f"{bounds.low:.3f}-{bounds.high:.3f}" if bounds else "")
    return table
