"""`ssamba prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssamba.cli.app import EXIT_CODES, OverwriteOption, StrictOption, TakeOverOption, app, log, show_report
from ssamba.cli.progress import ProgressDisplay

NAMES = (
    "audioset-20k, audioset-2m, esc50, fsd50k, iemocap, librispeech, speech-commands-v1, speech-commands-v1-superb, "
    "speech-commands-v2, urbansound8k, urbansound8k-scenes, voxceleb1"
)


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba prepare esc50 ESC-50-master/ -o esc50.parquet\n\n"
    "ssamba prepare audioset-20k audioset/ -o audioset-20k.parquet --workers 16\n\n"
    "ssamba prepare urbansound8k-scenes UrbanSound8K/ -o scenes.parquet --audio scenes/\n\n" + EXIT_CODES
)
def prepare(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=f"Data set: {NAMES}.")],
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder that the data set was unpacked to.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Manifest to write: .parquet, .csv or .jsonl.", show_default=False),
    ],
    audio: Annotated[
        Path | None,
        typer.Option(help="Folder for the recordings of urbansound8k-scenes. Default: the manifest's name and _audio."),
    ] = None,
    headers: Annotated[
        bool,
        typer.Option(
            "--headers/--no-headers", help="Read the header of each file, for its duration and to detect damage."
        ),
    ] = True,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Compare the archives in SOURCE with the published checksums.")
    ] = False,
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Continue if a speaker or recording is in several splits.")
    ] = False,
    overwrite: OverwriteOption = False,
    take_over: TakeOverOption = False,
    strict: StrictOption = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read headers. Default: the cores minus one, at most 8."),
    ] = None,
) -> None:
    """Make a manifest of a public data set, with its labels, its official splits or folds, and its groups.

    Nothing is downloaded. Missing and damaged files are listed in OUTPUT.skipped.csv; repeat the command to add them
    when they are there. OUTPUT.classes.csv lists the classes in their official order, OUTPUT.weights.csv weights for
    balanced sampling (AudioSet).
    """
    from ssamba.datasets import prepare as prepare_dataset

    with ProgressDisplay() as progress:
        report = prepare_dataset(
            dataset,
            source,
            output,
            audio=audio,
            headers=headers,
            checksums=checksums,
            allow_leaks=allow_leaks,
            overwrite=overwrite,
            take_over=take_over,
            strict=strict,
            workers=workers,
            progress=progress,
        )
    for note in report.notes:
        log.info(f"note: {note}")
    show_report(report)
