"""The interface between the loop and what it trains: a task owns the model and the data, and computes the loss.

The loop counts global batches: batches of the whole run, of which every rank gets its part. So a step uses the same
clips on any number of processes, and a run may resume on another number of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ssamba.errors import TrainingError
from ssamba.training.distributed import World

Precision: TypeAlias = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class StepContext:
    """Position in the run and device of a batch."""

    step: int
    """Steps done before this one."""
    epoch: int
    """Epochs done before this one."""
    seed: int
    """Seed of the run: derive a clip's randomness from (seed, step, clip). The global generators of torch, numpy and
    Python are seeded from (seed, step, rank) before each call."""
    device: torch.device
    """Device of the model; the task moves its batch there."""
    precision: Precision = "fp32"
    """Precision of the model's forward pass."""

    def autocast(self) -> torch.autocast:
        """Return the context for the model's forward pass; compute features outside it, in float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class StepOutcome:
    """Result of one rank's part of a batch."""

    loss: Tensor | None
    """Mean loss over `weight` terms, with its graph; None if the part is empty."""
    weight: float
    """Number of terms in the mean; the loss of a step is the mean over the terms of all parts."""
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Other means over the same terms, for the log. Detached tensors may stay on the device."""
    clips: int = 0
    """Number of clips."""
    audio_s: float = 0.0
    """Seconds of audio."""
    keys: Sequence[str] = ()
    """Names of the clips, listed if the loss is not finite."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Clips that could not be used: key and reason."""

    @property
    def not_finite(self) -> list[str]:
        """Names of the metrics that are not finite, besides `loss`."""
        return [name for name, value in self.metrics.items() if name != "loss" and not math.isfinite(value)]


class Task(Protocol):
    """What the loop trains. Build it from the same seed on every rank."""

    @property
    def model(self) -> nn.Module:
        """The model to optimize and save. The loop moves it to its device in place."""

    @property
    def best_metric(self) -> tuple[str, Literal["min", "max"]]:
        """Key of `validate` that decides which state is best, and its direction."""

    def batches(self, epoch: int, start: int, rank: int, world_size: int) -> Iterable[Any]:
        """Return this rank's parts of the global batches `start`, `start + 1`, ... of an epoch.

        There are exactly `batches_in_epoch(epoch) - start` of them on every rank, and the same arguments give the same
        parts. A part may be empty.
        """

    def batches_in_epoch(self, epoch: int) -> int:
        """Return the number of global batches of an epoch, at least one."""

    def step_loss(self, model: nn.Module, batch: Any, context: StepContext) -> StepOutcome:
        """Compute the loss of a part. `model` is `self.model`, perhaps compiled and wrapped by DDP: only call it,
        because its methods and submodules do not synchronize gradients."""

    def after_step(self, step: int) -> None:
        """React to an update of the weights (update a momentum teacher, say); `step` is the number of steps done."""

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return metrics of `model`, which has the averaged weights if there are any.

        Called on every rank, in evaluation mode, without gradients; the metrics of rank 0 count. If there is one named
        as `best_metric` with `_error`, its standard error, the latest state within that of the best is kept.
        """

    def pictures(self, model: nn.Module, step: int) -> Mapping[str, Any]:
        """Return matplotlib figures by name; called on rank 0, with the same model as `validate`."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the task's state besides the model: tensors, numbers, strings, and lists and dicts of these."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; tensors come on the CPU."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model to release into an empty folder, in the format of `ssamba.checkpoint`."""


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Return `wanted`; for `auto`, bf16 if the device computes it natively and fp32 if it would emulate it.

    Emulation is several times slower than fp32. CPUs without AVX512_BF16 and AMX and GPUs before Ampere emulate;
    processors other than x86 and Apple's GPUs were not measured and get fp32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        # These functions are not public, and some versions of PyTorch may not have them.
        checks = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
        return "bf16" if any(check() for check in checks) else "fp32"
    return "fp32"


class BatchStream:
    """This rank's batches in order, from any position: up to `accumulate` of one epoch for each step."""

    def __init__(self, task: Task, accumulate: int, world: World, epoch: int = 0, batch: int = 0):
        self.epoch = epoch
        """Epochs done."""
        self.batch = batch
        """Global batches of this epoch done."""
        self.wait_s = 0.0
        """Time spent waiting for batches since the caller last set it to 0."""
        self._task, self._accumulate, self._world = task, accumulate, world
        self._batches: Iterator[Any] | None = None
        self._length = self._epoch_length(epoch)

    def next_step(self) -> list[Any]:
        """Return the batches of one step: `accumulate` of them, or the rest of the epoch.

        Raises:
            TrainingError: the task returned fewer batches than `batches_in_epoch`.
        """
        started_s = time.monotonic()
        if self._batches is None:
            self._batches = iter(self._task.batches(self.epoch, self.batch, self._world.rank, self._world.size))
        count = min(self._accumulate, self._length - self.batch)
        batches = []
        for _ in range(count):
            try:
                batches.append(next(self._batches))
            except StopIteration:
                raise TrainingError(
                    f"epoch {self.epoch} ended after {self.batch + len(batches)} batches in process "
                    f"{self._world.rank}, but the task said {self._length}"
                ) from None
        self.batch += count
        self.wait_s += time.monotonic() - started_s
        return batches

    def next_epoch_if_ended(self) -> bool:
        """Go to the next epoch if this one has no batches left; return whether it did."""
        if self.batch < self._length:
            return False
        self.close()
        self.epoch, self.batch = self.epoch + 1, 0
        self._length = self._epoch_length(self.epoch)
        return True

    def steps_in(self, epochs: int) -> int:
        """Return the number of steps in the first `epochs` epochs."""
        return sum(-(-self._epoch_length(epoch) // self._accumulate) for epoch in range(epochs))

    def close(self) -> None:
        """Close the task's iterator, which ends its workers."""
        close = getattr(self._batches, "close", None)
        self._batches = None
        if close is not None:
            close()

    def _epoch_length(self, epoch: int) -> int:
        length = self._task.batches_in_epoch(epoch)
        if length < 1:
            raise TrainingError(f"epoch {epoch} has no batches: give the task at least one clip")
        return length
