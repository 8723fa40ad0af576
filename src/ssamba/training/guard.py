"""What keeps a run alive and its end orderly: steps that are not finite, and signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

_KEYS_SHOWN = 20


@dataclass(frozen=True)
class BadStep:
    """A step that was left out because its loss or gradient was not finite."""

    step: int
    """Steps done before it."""
    loss: float
    """Mean over all processes."""
    grad_norm: float
    """Euclidean norm of the gradient."""
    learning_rate: float
    """The full rate times the schedule."""
    keys: tuple[str, ...]
    """Clips of the shares whose loss was not finite; all clips of the step if only the gradient was not."""

    def __str__(self) -> str:
        more = f" and {len(self.keys) - _KEYS_SHOWN} more" if len(self.keys) > _KEYS_SHOWN else ""
        clips = ", ".join(self.keys[:_KEYS_SHOWN]) or "unknown"
        return (
            f"step {self.step}: loss {self.loss:g}, gradient norm {self.grad_norm:g}, learning rate "
            f"{self.learning_rate:.3g}, clips {clips}{more}"
        )


@dataclass
class FiniteGuard:
    """Counts bad steps, and says when there are too many in a row. Every process sees the same."""

    limit: int
    count: int = 0
    """Bad steps of the whole run."""
    row: list[BadStep] = field(default_factory=list)
    """Those since the last good one."""

    def good(self) -> None:
        """A step was finite."""
        self.row.clear()

    def bad(self, step: BadStep) -> None:
        """Count a bad step."""
        self.count += 1
        self.row.append(step)

    @property
    def is_over(self) -> bool:
        """Whether there were too many in a row."""
        return len(self.row) > self.limit

    def report(self) -> str:
        """The bad steps in a row, a line each."""
        return "\n  ".join(str(step) for step in self.row)


class StopRequest:
    """Whether SIGTERM or SIGINT came. A second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == "SIGINT":
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


@contextmanager
def stop_on_signals(signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> Iterator[StopRequest]:
    """Take signals as requests to end after the step at hand. Outside the main thread they stay as they are."""
    request = StopRequest()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request._take) for number in signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
