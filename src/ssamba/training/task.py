"""What the loop trains: a task owns the model and the data, and says what the loss of a batch is.

The loop counts in global batches: a batch of the whole run, of which every process gets its share. So the same step
sees the same clips however many processes there are, and a run may resume on another number of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ssamba.training.precision import Precision


@dataclass(frozen=True)
class StepContext:
    """Where in the run a batch is."""

    step: int
    """Steps done before this one."""
    epoch: int
    """Epochs done before this one."""
    seed: int
    """The run's seed: what is random for a clip follows from (seed, step, clip). Torch's, numpy's and Python's global
    generators are set from (seed, step, process) before each call."""
    device: torch.device
    """Where the model is; the task moves its batch there."""
    precision: Precision = "fp32"
    """Of the model's forward pass."""

    def autocast(self) -> torch.autocast:
        """A context for the model's forward pass; features are better computed outside it, in float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class StepOutcome:
    """What a process's share of a batch came to."""

    loss: Tensor | None
    """Mean over `weight` terms, with its graph; None when there is nothing in the share."""
    weight: float
    """How many terms the loss averages over; the step's loss is the mean over all terms of all shares."""
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Further means over the same terms, for the log. Tensors without a graph need no synchronisation here."""
    clips: int = 0
    """Clips in the share."""
    audio_s: float = 0.0
    """Seconds of audio in it."""
    keys: Sequence[str] = ()
    """Names of its clips, to be listed when its loss is not finite."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Clips that could not be used: key and reason."""


class Task(Protocol):
    """What is trained. Build it from the same seed in every process."""

    @property
    def model(self) -> nn.Module:
        """What is optimized and saved. The loop moves it to its device in place."""
        ...

    @property
    def best_metric(self) -> tuple[str, Literal["min", "max"]]:
        """The key of `validate` that tells which state is best, and which way."""
        ...

    def batches(self, epoch: int, start: int, rank: int, world: int) -> Iterable[Any]:
        """This process's shares of the global batches `start`, `start + 1`, ... of an epoch.

        Exactly `batches_in_epoch(epoch) - start` of them in every process, the same for the same arguments; a share
        may be empty.
        """
        ...

    def batches_in_epoch(self, epoch: int) -> int:
        """Global batches of an epoch, at least one."""
        ...

    def step_loss(self, model: nn.Module, batch: Any, context: StepContext) -> StepOutcome:
        """The loss of a share. `model` is `self.model`, compiled and wrapped where asked: only call it, its methods and
        parts stay unsynchronised."""
        ...

    def after_step(self, step: int) -> None:
        """Called when the weights have changed, with the number of steps done (a momentum teacher follows here)."""
        ...

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Figures of merit. Called in every process, in evaluation mode, without gradients, with the averaged weights
        in place when there are any; the first process's figures count."""
        ...

    def pictures(self, model: nn.Module, step: int) -> Mapping[str, Any]:
        """Matplotlib figures by name; called in the first process, as `validate`."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """What the task keeps besides the model: tensors, numbers, strings, lists and dicts of these."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; tensors come on the CPU."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model to be released into an empty folder, in the format of `ssamba.checkpoint`."""
        ...
