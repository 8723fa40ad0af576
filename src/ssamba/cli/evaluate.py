"""`ssamba evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssamba.cli.app import EXIT_CODES, DeviceOption, EncodingOption, OverwriteOption, app, no_model_name, say
from ssamba.cli.progress import ProgressDisplay


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba evaluate suite/ -c ssamba2-tiny\n\n"
    "ssamba evaluate suite/ -c runs/mine -c ssamba2-tiny -c random -c logmel   (one table)\n\n"
    "ssamba evaluate suite/ -c runs/mine --layers all --pooling mean --pooling cls -o card.json\n\n"
    "ssamba evaluate suite/ -c ssamba2-tiny -c logmel --readout parts   (words, calls: what comes first matters)\n\n"
    "ssamba evaluate suite/ -c runs/mine --inner --task sfx14\n\n"
    "ssamba evaluate suite/ -c runs/mine --figure card.png --details classes/\n\n"
    "ssamba evaluate hear-2021.0.6/tasks/ -c ssamba2-tiny   (HEAR's folders as published)\n\n" + EXIT_CODES
)
def evaluate(
    suite: Annotated[
        Path,
        typer.Argument(
            metavar="SUITE",
            callback=no_model_name,
            help="Folder of tasks: TASK.csv and TASK.tar each, or tasks of HEAR. Or one TASK.csv.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="MODEL",
            help="Name of a model (see `ssamba models`), folder of a checkpoint or a run, official .pth file, or "
            "hf:OWNER/NAME; or a baseline: 'random' (ssamba2-tiny, untrained), 'logmel' (log-mel statistics). "
            "Repeatable. Default: the weights that ship with ssamba.",
        ),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    inner: Annotated[
        bool, typer.Option("--inner", help="Score inside the training parts only, to choose between recipes.")
    ] = False,
    layers: Annotated[str, typer.Option(help="'final', or 'all': every layer, and the best by validation.")] = "final",
    pooling: Annotated[
        list[str] | None, typer.Option(help="'mean', 'cls' or 'rows'; repeatable. Default: mean.")
    ] = None,
    readout: Annotated[
        list[str] | None,
        typer.Option(
            help="'clip', the mean over time, or 'parts', that and the means of thirds of the sounding region; "
            "repeatable: a row for each. Default: clip."
        ),
    ] = None,
    padding: Annotated[str, typer.Option(help="'patch' or 'official', as in ssamba embed.")] = "patch",
    probe: Annotated[str, typer.Option(help="'linear', 'knn' or 'mlp'.")] = "linear",
    weighted: Annotated[
        bool, typer.Option("--weighted", help="With --layers all: also learn a mixture of the layers.")
    ] = False,
    level: Annotated[float, typer.Option(help="Peak that clips are scaled to; 0 leaves them as they are.")] = 0.9,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the scorecard as JSON to this file.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Also plot the scores beside reference rows (.png, .pdf, .svg).")
    ] = None,
    details: Annotated[
        Path | None,
        typer.Option(
            help="Also write the scores of each task's classes and, if clips have one label, a confusion matrix to "
            "this folder."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for decoded clips and embeddings. Default: the user's cache folder.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")] = False,
    workers: Annotated[int | None, typer.Option(help="Parallel probes. Default: number of cores.")] = None,
    device: DeviceOption = None,
    encoding: EncodingOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Score the frozen embeddings of one or several models on a suite of labeled tasks.

    The table shows accuracies, and 95 % intervals of the last row over test clips. With --layers all each layer has a
    row, and "best" takes in each fold the layer that is best on validation clips held out of the training clips.

    Tasks with several labels a clip (`dog;rain` in TASK.csv; HEAR's "multilabel") are scored by mAP, tasks whose rows
    are parts of recordings (columns start_s, duration_s) by the F1 of seconds, HEAR's events by the metrics they name.

    A second table is retrieval, without any training: how well each clip finds those with its label among the clips of
    other groups (mean average precision, and precision at 10), by the similarity that neighbors are found by; a third
    one compares similarities.
    """
    from ssamba.evaluation import evaluate as run

    with ProgressDisplay() as progress:
        evaluation = run(
            suite,
            checkpoint or None,
            task=task,
            inner=inner,
            layers=layers,  # type: ignore[arg-type]  # checked there, as are padding and probe
            pooling=pooling or "mean",
            readout=readout or "clip",
            padding=padding,  # type: ignore[arg-type]
            probe=probe,  # type: ignore[arg-type]
            weighted=weighted,
            level=level,
            output=output,
            figure=figure,
            details=details,
            cache=False if no_cache else cache,
            workers=workers,
            device=device,
            encoding=encoding,
            overwrite=overwrite,
            progress=progress,
        )
    say(str(evaluation))
