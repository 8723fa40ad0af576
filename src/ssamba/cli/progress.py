"""The one display of progress: a bar in a terminal, elsewhere a line every 30 seconds, or JSON lines."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape

from ssamba.cli.app import HANDLER, err, format_duration, is_quiet, write_json_line
from ssamba.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from typing_extensions import Self

INTERVAL_S = 30.0


class ProgressDisplay:
    """Shows the states of a job on standard error; pass it as the `progress` of a library function.

    with ProgressDisplay() as progress:
        embed_files(recordings, output, progress=progress)
    """

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._last: Progress | None = None
        self._shown: Progress | None = None
        self._shown_s = time.monotonic()

    def __enter__(self) -> Self:
        if err.is_terminal and not is_quiet() and not HANDLER.as_json:
            from rich.progress import BarColumn, Progress

            self._bar = Progress("{task.description}", BarColumn(), "{task.fields[text]}", console=err, transient=True)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif HANDLER.as_json and self._last is not None and self._last is not self._shown:
            self._show(self._last)

    def __call__(self, state: Progress) -> None:
        """Show a state."""
        new_step = self._last is None or self._last.step != state.step
        self._last = state
        if self._bar is not None:
            if new_step:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._bar.add_task(escape(state.step), total=state.total, text="")
            text = escape(describe(state))
            self._bar.update(self._bar.task_ids[-1], completed=state.done, total=state.total, text=text)
        elif not is_quiet() and time.monotonic() - self._shown_s >= INTERVAL_S:
            self._show(state)

    def _show(self, state: Progress) -> None:
        self._shown, self._shown_s = state, time.monotonic()
        if HANDLER.as_json:
            values = {name: value for name, value in asdict(state).items() if value not in (None, "")}
            write_json_line({"event": "progress", **values})
        else:
            err.print(f"{escape(state.step)}: {escape(describe(state))}", soft_wrap=True, highlight=False)


def describe(state: Progress) -> str:
    """Return counts, hours of audio, rate and time left in one line."""
    of = "" if state.total is None else f" of {state.total:,.0f}"
    parts = [f"{state.done:,.0f}{of} {state.unit}"]
    if state.audio_s:
        parts += [f"{format_duration(state.audio_s)} of audio", f"{state.real_time_factor:,.0f}x real time"]
    if state.skipped:
        parts.append(f"{state.skipped:,} skipped")
    if state.detail:
        parts.append(state.detail)
    if state.left_s is not None:
        parts.append(f"{format_duration(state.left_s)} left")
    return ", ".join(parts)
