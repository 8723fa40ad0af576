"""`ssamba compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssamba.cli.app import EXIT_CODES, app, out


@app.command(
    epilog="[bold]Examples[/]\n\nssamba compare runs/first runs/second -o comparison/\n\n"
    "ssamba compare runs/*/   (prints the table alone)\n\n" + EXIT_CODES
)
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or one with all of them in it.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Folder for compare.csv, compare.json, and compare.png, the curves."
        ),
    ] = None,
) -> None:
    """Compare training runs: settings that differ, final figures and curves side by side.

    Runs that are still training can be compared, too: repeat the command for newer figures.
    """
    from ssamba.training.compare import compare_runs

    out.print(str(compare_runs(runs, output)), highlight=False, soft_wrap=True, markup=False)
