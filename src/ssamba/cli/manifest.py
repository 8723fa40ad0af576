"""`ssamba manifest`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, EXIT_SKIPPED, app, fail, format_duration, out
from ssamba.cli.progress import Bar, default_workers, report_skipped


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba manifest recordings/ -o recordings/manifest.parquet\n\n"
    "ssamba manifest esc50/ -o esc50.csv --labels folder\n\n" + EXIT_CODES
)
def manifest(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATHS...", help="Folders (searched below), audio files and patterns.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Manifest to write: .parquet, .csv or .jsonl.", show_default=False)
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            help="'folder': labels are the names of the first folders, or of the second ones if the first are train, "
            "valid, test or folds."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing manifest.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 if any file was skipped.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read headers. Default: the cores minus one, at most 8.")
    ] = None,
) -> None:
    """List recordings and their durations, read from their headers, as a manifest for training.

    Files that cannot be read are skipped and listed with reasons in OUTPUT.skipped.csv. Labels, splits and groups can
    be added by hand. The columns are path, start_s, duration_s, labels (separated by ; in CSV), split, group.
    """
    from ssamba.audio.files import write_skipped
    from ssamba.data.manifest import scan_folder, write_manifest

    if labels not in (None, "folder"):
        raise typer.BadParameter(f"--labels takes 'folder', got {labels!r}")
    kind: Literal["folder"] | None = "folder" if labels else None
    if output.exists() and not overwrite:
        fail(f"{output} exists: --overwrite replaces it")
    started_s = time.monotonic()
    try:
        with Bar("reading headers") as bar:
            clips, skipped = scan_folder(
                paths,
                default_workers() if workers is None else workers,
                lambda p: bar.update(p.done, p.total, format_duration(p.audio_s)),
                labels=kind,
            )
        report = Path(f"{output}.skipped.csv")
        write_skipped(report, skipped)
        report_skipped(skipped, report)
        if not clips:
            fail("no recording can be read")
        write_manifest(clips, output)
    except ValueError as error:
        fail(str(error))
    audio_s = sum(clip.duration_s or 0.0 for clip in clips)
    classes = f", {len({clip.labels for clip in clips})} labels" if labels else ""
    out.print(
        f"{len(clips)} recordings, {format_duration(audio_s)}{classes}, {len(skipped)} skipped, in "
        f"{time.monotonic() - started_s:.1f} s: {escape(str(output))}",
        highlight=False,
        soft_wrap=True,
    )
    if strict and skipped:
        sys.exit(EXIT_SKIPPED)
