"""Progress bars and the report of skipped files, shared by the commands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from ssamba.cli.app import err, format_duration

if TYPE_CHECKING:
    from rich.progress import ProgressColumn
    from typing_extensions import Self

    from ssamba.audio.files import Skipped
    from ssamba.training.run_io import TrainingProgress

_MAX_SHOWN = 10
_HELD_OUT = ("accuracy", "balanced_accuracy", "mAP")


class _ProgressBar:
    """Progress bar of the given columns on standard error, if it is a terminal."""

    def __init__(self, *columns: str | ProgressColumn) -> None:
        from rich.progress import Progress

        self._progress = Progress(*columns, console=err, transient=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


class Bar(_ProgressBar):
    """Progress bar with a count of items and a note."""

    def __init__(self, label: str, unit: str = "files") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

        note = unit + "  {task.fields[note]}  left:"
        super().__init__(label, BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
        self._task = self._progress.add_task("", total=None, note="")

    def update(self, done: float, total: float, note: str = "") -> None:
        """Update the bar."""
        self._progress.update(self._task, completed=done, total=total, note=note)


class TrainingBar(_ProgressBar):
    """Training progress with rates, losses and time left; plain lines if standard error is not a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TaskProgressColumn

        super().__init__("{task.description}", BarColumn(), TaskProgressColumn(), "{task.fields[detail]}")
        self.label = "training"
        self._task = self._progress.add_task("reading", total=1.0, detail="")
        self._last_line = 0.0

    def decoded(self, name: str, done: int, total: int) -> None:
        """Update the bar while a corpus is decoded into memory."""
        self._progress.update(self._task, description=f"reading {name}", total=total, completed=done)

    def update(self, state: TrainingProgress) -> None:
        """Update the bar and print messages."""
        if state.message:
            err.print(f"[yellow]{escape(state.message)}[/]", soft_wrap=True)
        left = "" if state.left_s is None else f"left {format_duration(state.left_s)}"
        metrics = " ".join(
            f"{name} {state.metrics[name]:.3f}"
            for name in ("loss", "discriminative", "accuracy", "generative", "clip")
            if name in state.metrics
        )
        held = " ".join(f"{name} {value:.3f}" for name, value in state.validation.items() if name in _HELD_OUT)
        metrics += f"  held out: {held}" if held else ""
        rates = f"{state.clips_per_s:.0f} clips/s, {3600 * state.audio_h_per_s:.0f} x real time"
        detail = f"step {state.step}  {rates}  {metrics}  {left}"
        self._progress.update(self._task, description=self.label, total=1.0, completed=state.share, detail=detail)
        if not err.is_terminal and state.elapsed_s - self._last_line >= 30:
            self._last_line = state.elapsed_s
            err.print(f"{100 * state.share:.1f} %  {detail}", soft_wrap=True, highlight=False)


def default_workers(most: int = 8) -> int:
    """Return the number of cores minus one, between 1 and `most`."""
    return min(most, max(1, (os.cpu_count() or 2) - 1))


def report_skipped(skipped: Sequence[Skipped], report: Path | None = None) -> None:
    """Print the first skipped files, and the path of the full list."""
    for entry in skipped[:_MAX_SHOWN]:
        err.print(f"[yellow]skipped[/] {escape(entry.reason)}", soft_wrap=True, highlight=False)
    if len(skipped) > _MAX_SHOWN:
        err.print(f"[yellow]and {len(skipped) - _MAX_SHOWN} more[/]")
    if skipped and report is not None:
        err.print(f"all reasons: {escape(str(report))}", soft_wrap=True, highlight=False)
