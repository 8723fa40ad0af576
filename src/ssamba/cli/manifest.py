"""`ssamba manifest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssamba.cli.app import (
    EXIT_CODES,
    DamagedOption,
    LabelsFromOption,
    OverwriteOption,
    RecordingsArgument,
    StrictOption,
    TakeOverOption,
    app,
    show_report,
)
from ssamba.cli.progress import ProgressDisplay


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba manifest recordings/ -o recordings/manifest.parquet\n\n"
    "ssamba manifest esc50/ -o esc50.csv --labels folder\n\n" + EXIT_CODES
)
def manifest(
    recordings: RecordingsArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Manifest to write: .parquet, .csv or .jsonl.", show_default=False)
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            help="'folder': labels are the names of folders, CLASS/a.wav; above or below may be train, valid, test or "
            "folds."
        ),
    ] = None,
    labels_from: LabelsFromOption = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop rows of files that are not among RECORDINGS this time.")
    ] = False,
    damaged: DamagedOption = "skip",
    overwrite: OverwriteOption = False,
    take_over: TakeOverOption = False,
    strict: StrictOption = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read headers. Default: the cores minus one, at most 8.")
    ] = None,
) -> None:
    """List recordings and their durations as a manifest for training.

    Repeat the command to resume after an interruption, or to update the manifest: new files are added, and
    labels, splits and groups that were added by hand stay. The columns are path, start_s, duration_s, labels (separated
    by ; in CSV), split, group. Files that cannot be read are listed with reasons in OUTPUT.skipped.csv,
    those that are used although their header is wrong or a part is missing in OUTPUT.remarks.csv.
    """
    from ssamba.data.listing import make_manifest

    with ProgressDisplay() as progress:
        report = make_manifest(
            recordings,
            output,
            labels=labels,  # type: ignore[arg-type]  # checked there
            labels_from=labels_from,
            prune=prune,
            damaged=damaged,
            overwrite=overwrite,
            take_over=take_over,
            strict=strict,
            workers=workers,
            progress=progress,
        )
    show_report(report)
