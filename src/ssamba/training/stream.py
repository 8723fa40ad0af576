"""The batches of a run, in order, from any position: a few for each step, all of one epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ssamba.errors import TrainingError
from ssamba.training.distributed import World
from ssamba.training.task import Task


class BatchStream:
    """Hands out the batches of each step, and knows where it is."""

    def __init__(self, task: Task, accumulate: int, world: World, epoch: int = 0, batch: int = 0):
        self.epoch = epoch
        """Epochs done."""
        self.batch = batch
        """Global batches of this epoch done."""
        self.wait_s = 0.0
        """Time spent waiting for batches, until someone sets it back."""
        self._task, self._accumulate, self._world = task, accumulate, world
        self._batches: Iterator[Any] | None = None
        self._length = self._epoch_length(epoch)

    def next_step(self) -> list[Any]:
        """The batches of one step: `accumulate` of them, or what is left of the epoch.

        Raises:
            TrainingError: the task has fewer batches than it said.
        """
        started_s = time.monotonic()
        if self._batches is None:
            share = self._task.batches(self.epoch, self.batch, self._world.rank, self._world.size)
            self._batches = iter(share)
        wanted = min(self._accumulate, self._length - self.batch)
        batches = []
        for _ in range(wanted):
            try:
                batches.append(next(self._batches))
            except StopIteration:
                raise TrainingError(
                    f"epoch {self.epoch} ended after {self.batch + len(batches)} batches in process "
                    f"{self._world.rank}, but the task said {self._length}"
                ) from None
        self.batch += wanted
        self.wait_s += time.monotonic() - started_s
        return batches

    def epoch_ended(self) -> bool:
        """Go on to the next epoch if this one is through; whether it was."""
        if self.batch < self._length:
            return False
        self.close()
        self.epoch, self.batch = self.epoch + 1, 0
        self._length = self._epoch_length(self.epoch)
        return True

    def steps_in(self, epochs: int) -> int:
        """Steps of the first so many epochs."""
        return sum(-(-self._epoch_length(epoch) // self._accumulate) for epoch in range(epochs))

    def close(self) -> None:
        """Let the task's iterator go, so that its workers end."""
        closing = getattr(self._batches, "close", None)
        self._batches = None
        if closing is not None:
            closing()

    def _epoch_length(self, epoch: int) -> int:
        length = self._task.batches_in_epoch(epoch)
        if length < 1:
            raise TrainingError(f"epoch {epoch} has no batches: give the task at least one clip")
        return length
