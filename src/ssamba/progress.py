"""Progress of long jobs: the record that every `progress` callable of the library receives.

def show(state: Progress) -> bool | None:
    print(f"{state.step}: {state.done:g} of {state.total:g} {state.unit}")
    return state.elapsed_s < 60        # False stops the job; what is done is kept

ssamba.embed_files("recordings/", "embeddings.npz", progress=show)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ssamba.errors import ConfigError


@dataclass(frozen=True)
class Progress:
    """State of a running job."""

    step: str
    """What the job is doing, such as `embedding`."""
    done: float
    """Items of this step that are finished, skipped ones included."""
    total: float | None = None
    """Items of this step; None if not known."""
    unit: str = "files"
    """What an item is."""
    audio_s: float = 0.0
    """Audio processed by this step so far."""
    skipped: int = 0
    """Items that could not be used."""
    elapsed_s: float = 0.0
    """Time since the step started."""
    left_s: float | None = None
    """Estimate of the time left; None if not known."""
    detail: str = ""
    """Anything else worth showing, such as losses."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio processed per second."""
        return self.audio_s / max(self.elapsed_s, 1e-9)


OnProgress: TypeAlias = Callable[[Progress], "bool | None"]
"""Called with each new state; returning False stops the job and keeps what is done."""


def checked_progress(progress: OnProgress | None) -> OnProgress | None:
    """Return `progress`; raise a ConfigError unless it is None or can be called."""
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress must be a function that takes a Progress, got {progress!r}")
    return progress


class ProgressReporter:
    """Measures time and reports the states of one step to a callable, if there is one."""

    def __init__(self, callback: OnProgress | None, step: str, total: float | None = None, unit: str = "files") -> None:
        self.callback, self.step, self.total, self.unit = checked_progress(callback), step, total, unit
        self._started_s = time.monotonic()
        self._first: tuple[float, float] | None = None  # work and elapsed_s of the first state

    @property
    def elapsed_s(self) -> float:
        """Time since the step started."""
        return time.monotonic() - self._started_s

    def update(
        self,
        done: float,
        *,
        audio_s: float = 0.0,
        skipped: int = 0,
        left_s: float | None = None,
        work: tuple[float, float] | None = None,
        detail: str = "",
    ) -> bool:
        """Report a state and return whether to continue.

        `left_s` is estimated from the mean rate since the first state, which may be late by the start of processes,
        unless given.

        Args:
            done: items that are finished.
            audio_s: audio processed so far.
            skipped: items that could not be used.
            left_s: the time left, if known better.
            work: what is done and all there is to do, in a unit that takes equal time (such as seconds of audio), for
                that estimate; None: in items.
            detail: anything else worth showing.
        """
        if self.callback is None:
            return True
        elapsed_s = self.elapsed_s
        worked, all_work = work or (done, self.total)
        self._first = self._first or (worked, elapsed_s)
        since_first = worked - self._first[0]
        if left_s is None and all_work is not None and since_first > 0:
            left_s = (elapsed_s - self._first[1]) / since_first * max(all_work - worked, 0)
        state = Progress(self.step, done, self.total, self.unit, audio_s, skipped, elapsed_s, left_s, detail)
        return self.callback(state) is not False


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which is plural unless the number is one: `1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_duration(seconds: float) -> str:
    """Format a duration for humans: 2.5 s, 3.0 min, 1.25 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"
