"""What commands that go through recordings share: a bar with rate and time left, and the list of what was left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from ssamba.cli.app import err

if TYPE_CHECKING:
    from ssamba.audio.collection import Skipped

_SHOWN = 10


class Bar:
    """How far a command is, on standard error when it is a terminal."""

    def __init__(self, label: str, unit: str = "files") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn(label),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + "  {task.fields[note]}  left:"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, note="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show how far it is."""
        self._progress.update(self._task, completed=done, total=total, note=note)


def default_workers(most: int = 8) -> int:
    """A process for each core, but for one."""
    return min(most, max(1, (os.cpu_count() or 2) - 1))


def report_skipped(skipped: Sequence[Skipped], report: Path | None = None) -> None:
    """Print some of what was left out, and where all of it is listed."""
    for entry in skipped[:_SHOWN]:
        err.print(f"[yellow]skipped[/] {escape(entry.reason)}", soft_wrap=True, highlight=False)
    if len(skipped) > _SHOWN:
        err.print(f"[yellow]and {len(skipped) - _SHOWN} more[/]")
    if skipped and report is not None:
        err.print(f"all reasons: {escape(str(report))}", soft_wrap=True, highlight=False)
