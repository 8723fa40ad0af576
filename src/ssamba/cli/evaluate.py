"""`ssamba evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, DeviceOption, app, err, fail, load_embedder, out
from ssamba.cli.progress import Bar

if TYPE_CHECKING:
    from ssamba.evaluation import ClipModel, Progress, Scorecard


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba evaluate ssamba2-tiny --suite suite/\n\n"
    "ssamba evaluate checkpoint/ --suite open --suite-dir suite/ --layers all --pooling mean --pooling cls "
    "--json card.json\n\n"
    "ssamba evaluate checkpoint/ --suite suite/ --inner --task sfx14\n\n"
    "ssamba evaluate checkpoint/ --suite suite/ --figure card.png --details classes/\n\n"
    "ssamba evaluate checkpoint/ --suite hear --suite-dir hear-2021.0.6/tasks/   (HEAR's folders as published)\n\n"
    "ssamba evaluate logmel --suite suite/\n\n" + EXIT_CODES
)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Name of a model (see `ssamba models`), folder of a checkpoint or a run, official .pth file, or "
            "hf:OWNER/NAME; or a baseline: 'random' (ssamba2-tiny, untrained), 'logmel' (log-mel statistics).",
        ),
    ],
    suite: Annotated[
        str,
        typer.Option(
            help="'open', 'hear', or a folder of tasks: TASK.csv and TASK.tar each, or tasks of HEAR (labels, events)."
        ),
    ] = "open",
    suite_dir: Annotated[
        Path | None, typer.Option(envvar="SSAMBA_SUITE", help="Folder of the suite 'open' or 'hear'.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    inner: Annotated[
        bool, typer.Option("--inner", help="Score inside the training parts only, to choose between recipes.")
    ] = False,
    layers: Annotated[str, typer.Option(help="'final', or 'all': every layer, and the best by validation.")] = "final",
    pooling: Annotated[
        list[str] | None, typer.Option(help="'mean', 'cls' or 'rows'; may be repeated. Default: mean.")
    ] = None,
    padding: Annotated[str, typer.Option(help="'patch' or 'official', as in ssamba embed.")] = "patch",
    probe: Annotated[str, typer.Option(help="'linear', 'knn' or 'mlp'.")] = "linear",
    weighted: Annotated[
        bool, typer.Option("--weighted", help="With --layers all: also learn a mixture of the layers.")
    ] = False,
    level: Annotated[
        float, typer.Option(min=0, help="Peak that clips are scaled to; 0 leaves them as they are.")
    ] = 0.9,
    figure: Annotated[Path | None, typer.Option(help="Also plot the scores beside reference rows.")] = None,
    details: Annotated[
        Path | None,
        typer.Option(
            help="Also write the scores of each task's classes and, if clips have one label, a confusion matrix."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the scorecard here.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for decoded clips and embeddings. Default: the user's cache folder.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Parallel probes. Default: number of cores.")] = None,
    device: DeviceOption = None,
) -> None:
    """Score a model's frozen embeddings on a suite of labeled tasks.

    The table shows accuracies, and 95 % intervals of its last row over test clips. With --layers all each layer has a
    row, and "best" takes in each fold the layer that is best on validation clips held out of the training clips.

    Tasks with several labels a clip (`dog;rain` in TASK.csv; HEAR's "multilabel") are scored by mAP, tasks whose rows
    are parts of recordings (columns start_s, duration_s) by the F1 of seconds, HEAR's events by the metrics they name.
    """
    from ssamba.checkpoint.files import write_json
    from ssamba.errors import ConfigError
    from ssamba.evaluation import EvaluateOptions, VectorOptions, cache_folder, read_suite
    from ssamba.evaluation import evaluate as run
    from ssamba.evaluation.report import PLOT_FORMATS, plot_scorecard, reference_rows, write_details

    try:
        vectors = VectorOptions.parse(
            {"layers": layers, "poolings": tuple(pooling or ["mean"]), "padding": padding}, "options"
        )
        options = EvaluateOptions.parse(
            {"inner": inner, "probe": probe, "weighted": weighted, "level": level or None}, "options"
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    if figure is not None and figure.suffix not in PLOT_FORMATS:
        raise typer.BadParameter(f"--figure must end in {', '.join(PLOT_FORMATS)}, got {str(figure)!r}")
    if weighted and layers != "all":
        raise typer.BadParameter("--weighted learns a mixture of the layers: it needs --layers all")
    if model == "logmel" and vectors != VectorOptions():
        raise typer.BadParameter(
            "'logmel' has no layers, tokens or padding: leave out --layers, --pooling and --padding"
        )
    named = suite in ("open", "hear")
    if named and suite_dir is None:
        fail(f"the suite {suite!r} is not part of the package: say where it is with --suite-dir DIR or SSAMBA_SUITE")
    notes: list[str] = []
    tasks = read_suite(suite_dir if named and suite_dir else suite, task, lambda *note: notes.append(": ".join(note)))
    for note in notes:
        err.print(f"[yellow]left out:[/] {escape(note)}", soft_wrap=True, highlight=False)
    scored = _model(model, vectors, device)
    folder = None if no_cache else cache or cache_folder()
    label = {one.name: f"task {number} of {len(tasks)} ({one.name})" for number, one in enumerate(tasks, 1)}
    with Bar("scoring", unit="") as bar:

        def show(state: Progress) -> None:
            bar.update(state.done, state.total, f"{label[state.task]}: {state.step}")

        card = run(scored, tasks, options, cache=folder, workers=workers or os.cpu_count() or 1, on_progress=show)
    _show(card)
    if figure is not None:
        plot_scorecard(card, figure, [] if inner else reference_rows())
    if details is not None:
        write_details(card, tasks, details)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, card.as_json())


def _model(source: str, options: object, device: str | None) -> ClipModel:
    from ssamba.evaluation import EncoderModel, LogMelStatistics, VectorOptions

    assert isinstance(options, VectorOptions)
    if source == "logmel":
        return LogMelStatistics()
    return EncoderModel(load_embedder(source, device, untrained=source == "random"), options)


def _show(card: Scorecard) -> None:
    from rich.table import Table

    metrics = {name: task.get("metric", "accuracy") for name, task in card.tasks.items()}
    plain = set(metrics.values()) == {"accuracy"}
    inside = "inside the training parts" if card.options.inner else "test accuracy" if plain else "test score"
    table = Table(title=f"{escape(card.model)}: {inside}, {card.options.probe} probe", title_justify="left")
    table.add_column("layer.pooling")
    for name in (*card.tasks, "mean"):
        metric = "" if plain or name not in metrics else f"\n{metrics[name].replace('_', ' ')}"
        table.add_column(escape(name + metric), justify="right")
    for row in card.rows:
        table.add_row(row.view, *(f"{row.scores[name]:.3f}" for name in card.tasks), f"{row.mean:.3f}")
    interval = card.best().intervals
    names = (*card.tasks, "mean")
    table.add_row("95 %", *(f"{interval[name].low:.3f}-{interval[name].high:.3f}" for name in names), style="dim")
    out.print(table)
    for name, values in card.best().figures.items():
        text = ", ".join(f"{metric.replace('_', ' ')} {value:.3f}" for metric, value in values.items())
        out.print(f"{escape(name)}: {text}", highlight=False, soft_wrap=True)
    for name, count in card.repeated.items():
        err.print(
            f"[yellow]{escape(name)}:[/] {count} test clips have the same samples as a training clip "
            "with another name: they flatter every model",
            soft_wrap=True,
            highlight=False,
        )
    err.print(f"{card.seconds:.0f} s", highlight=False)
