"""`ssamba finetune`."""

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
    err,
    out,
)
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
            help="A folder with one folder per class, a manifest with labels, a folder of shards, or hf:OWNER/NAME.",
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
            "voxceleb1, iemocap; for a CPU: cpu (any sounds), cpu-speech (words, independent of the speaker).",
        ),
    ] = None,
    official: Annotated[bool, typer.Option("--official", help="Use the original's settings for the task.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="TOML file with all settings, or a shipped recipe, instead of --task."),
    ] = None,
    changes: ChangesOption = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Start from random weights, for comparison.")] = False,
    frozen: Annotated[bool, typer.Option("--frozen", help="Train only the classifier.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.001, help="Minutes per fold at most; replaces the recipe's length.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs per fold at most; replaces the recipe's length.")
    ] = None,
    no_resume: NoResumeOption = False,
    device: DeviceOption = None,
) -> None:
    """Fine-tune a pretrained encoder on labeled recordings, and test it.

    Splits are those of the manifest (train, valid, test, or folds, which are cross-validated). Without splits, test and
    validation clips are held out by groups, stratified by class. To resume an interrupted run, repeat the command. Test
    scores with 95 % intervals are in OUT/results.json, scores of each class in OUT/classes.csv, the confusion matrix in
    OUT/confusion.png; with folds, the last two are also in OUT/rounds/FOLD.
    """
    from ssamba.training.finetuning.recipe import FinetuneRecipe
    from ssamba.training.finetuning.run import finetune as run

    if task is not None and recipe is not None:
        raise typer.BadParameter("--task and --recipe exclude each other")
    if official and task is None:
        raise typer.BadParameter("--official needs a --task")
    if task is not None:
        recipe = f"official-{task}" if official else task
    flags = {"start.scratch=true": scratch, "start.frozen=true": frozen}
    changes = [*(flag for flag, given in flags.items() if given), *(changes or [])]
    settings = FinetuneRecipe.read(recipe, changes).with_length(epochs=epochs, minutes=minutes)

    with TrainingBar() as bar:

        def on_fold(name: str, number: int, count: int) -> None:
            bar.label = "training" if count == 1 else f"{name} ({number} of {count})"

        report = run(
            data,
            settings,
            output,
            checkpoint=checkpoint,
            resume=False if no_resume else "auto",
            device=device,
            on_progress=bar.update,
            on_decoded=bar.decoded,
            on_fold=on_fold,
        )
    if os.environ.get("RANK", "0") == "0":
        _print_report(report, output)
    if report.model is None:  # stopped by a signal: a script must not take it for finished
        sys.exit(EXIT_INTERRUPTED)


def _print_report(report: FinetuneReport, output: Path) -> None:
    from rich.table import Table

    for note in report.notes:
        err.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True, highlight=False)
    scores = report.scores()
    shown = [name for name in ("loss", "accuracy", "balanced_accuracy", "mAP") if name in scores]
    table = Table("fold", "train, valid, test clips", "epoch")
    for name in (f"valid {report.metric}", *(f"test {name}" for name in shown)):
        name = name.replace("_", " ")
        table.add_column(name, min_width=max(map(len, name.split())))  # whole words at 80 columns, too
    for fold in report.folds:
        valid = "" if fold.valid is None else f"{fold.valid:.3f}"
        tests = (f"{fold.scores[name]:.3f}" if name in fold.scores else "" for name in shown)
        table.add_row(fold.name, ", ".join(map(str, fold.clips.values())), str(fold.epoch), valid, *tests)
    if report.folds:
        out.print(table)
    if report.intervals:
        out.print(_metrics_table(report))
    if report.model is None:
        out.print(f"{report.stopped}: repeat the command to resume", highlight=False)
        return
    out.print(
        f"{len(report.classes)} labels, classifier in {escape(str(report.model))}", highlight=False, soft_wrap=True
    )
    out.print(f"try it: ssamba predict AUDIO --checkpoint {escape(str(output))}", highlight=False, soft_wrap=True)


def _metrics_table(report: FinetuneReport) -> Table:
    """Return a table of the test metrics over all folds."""
    from rich.table import Table

    several = len(report.folds) > 1
    title = f"mean over {len(report.folds)} folds" if several else "test"
    table = Table(
        "metric", *(("mean", "deviation") if several else ("test",)), "95 %", title=title, title_justify="left"
    )
    for name, (mean, spread) in report.scores().items():
        bounds = report.intervals.get(name)
        values = [f"{mean:.3f}", *(["" if spread is None else f"{spread:.3f}"] if several else [])]
        table.add_row(name.replace("_", " "), *values, f"{bounds.low:.3f}-{bounds.high:.3f}" if bounds else "")
    return table
