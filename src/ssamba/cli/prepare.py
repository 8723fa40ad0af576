"""`ssamba prepare`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, EXIT_SKIPPED, app, err, fail, format_duration, out
from ssamba.cli.progress import Bar, default_workers, report_skipped

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
    name: Annotated[str, typer.Argument(help=f"Data set: {NAMES}.")],
    source: Annotated[Path, typer.Argument(help="Folder that the data set was unpacked to.", show_default=False)],
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing manifest.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 3 if any file is missing or damaged.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read headers. Default: the cores minus one, at most 8."),
    ] = None,
) -> None:
    """Make a manifest of a public data set, with its labels, its official splits or folds, and its groups.

    Nothing is downloaded. Missing and damaged files are listed in OUTPUT.skipped.csv, the classes in their official
    order in OUTPUT.classes.csv, weights for balanced sampling (AudioSet) in OUTPUT.weights.csv.
    """
    from ssamba.data.formats import FORMATS
    from ssamba.datasets import prepare as prepare_dataset
    from ssamba.datasets import write_prepared

    if output.suffix not in FORMATS:
        raise typer.BadParameter(f"--output must end in {', '.join(FORMATS)}, got {output}")
    if output.exists() and not overwrite:
        fail(f"{output} exists: --overwrite replaces it")
    started_s = time.monotonic()
    try:
        with Bar("reading headers" if headers else "looking for files") as bar:
            prepared = prepare_dataset(
                name,
                source,
                workers=default_workers() if workers is None else workers,
                headers=headers,
                checksums=checksums,
                allow_leaks=allow_leaks,
                audio_folder=audio or output.with_name(f"{output.stem}_audio"),
                on_progress=lambda p: bar.update(p.done, p.total, format_duration(p.audio_s)),
            )
        written = write_prepared(prepared, output)
    except (ValueError, ImportError) as error:
        fail(str(error))
    report_skipped(prepared.skipped, written[-1] if prepared.skipped else None)
    for note in prepared.notes:
        err.print(f"[cyan]note[/] {escape(note)}", soft_wrap=True, highlight=False)
    splits = ", ".join(f"{split} {count}" for split, count in sorted(prepared.counts.items(), key=_by_number))
    length = "" if prepared.hours is None else f", {format_duration(prepared.hours * 3600)}"
    classes = f", {len(prepared.classes)} classes" if prepared.classes else ""
    out.print(
        f"{escape(prepared.dataset.title)}: {len(prepared.clips)} clips{length}{classes} ({splits}), "
        f"{len(prepared.missing)} missing, {len(prepared.damaged)} damaged, in "
        f"{time.monotonic() - started_s:.1f} s: {escape(str(output))}",
        highlight=False,
        soft_wrap=True,
    )
    if strict and prepared.skipped:
        sys.exit(EXIT_SKIPPED)


def _by_number(item: tuple[str, int]) -> tuple[int, str]:
    """Sort fold2 before fold10."""
    return len(item[0]), item[0]
