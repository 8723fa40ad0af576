"""`ssamba info`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ssamba.cli.app import EXIT_CODES, EXIT_ERROR, app, log, out, printable, report_skipped

if TYPE_CHECKING:
    from ssamba.library.info import Facts


@app.command(
    epilog="[bold]Examples[/]\n\nssamba info\n\nssamba info night.wav recordings/\n\n"
    "ssamba info ssamba2-tiny ssamba_tiny.pth\n\nssamba info embeddings.npz dawn.flac -c runs/birds\n\n"
    "ssamba info --check\n\n" + EXIT_CODES
)
def info(
    recordings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECORDINGS...]",
            help="Audio files, folders and patterns; models, by name, folder or file; tables of embeddings.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", "-c", metavar="MODEL", help="Model to describe; may be repeated."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Also compare every kernel backend of this machine, forward and backward, with exact results.",
        ),
    ] = False,
) -> None:
    """Describe models and tables of embeddings, check recordings, or (without argument) show what this machine offers.

    Recordings are decoded to their end: damage, and lengths that a header states wrongly, are named.
    """
    from ssamba.audio.files import find_audio
    from ssamba.errors import SsambaError
    from ssamba.library.info import (
        check_facts,
        installation_facts,
        is_model,
        is_table,
        model_facts,
        recording_facts,
        table_facts,
    )

    named = recordings or []
    tables = [text for text in named if is_table(text) and not is_model(text)]
    found = find_audio([text for text in named if not is_model(text) and text not in tables])
    jobs: list[tuple[str, Callable[[], Facts]]] = []
    for text in (*filter(is_model, named), *(checkpoint or [])):
        jobs.append((text, partial(model_facts, text)))
    jobs += [(text, partial(table_facts, text)) for text in tables]
    for path in found:
        jobs.append((str(path), partial(recording_facts, path)))
    failed = False
    for title, facts in jobs or [("environment", installation_facts)]:
        try:
            _print(title, facts())
        except SsambaError as error:
            failed = True
            log.error(str(error))
    if check:
        checks, sound = check_facts()
        _print("backends against exact results", checks)
        failed = failed or not sound
    report_skipped(found.skipped)
    if failed:
        sys.exit(EXIT_ERROR)


def _print(title: str, facts: Facts) -> None:
    table = Table(
        title=escape(printable(title)), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column()
    table.add_column(overflow="fold")  # names and checksums are longer than a terminal is wide
    for name, value in facts:
        table.add_row(f"[dim]{name}[/]", escape(value))
    out.print(table)
