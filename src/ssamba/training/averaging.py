"""Weight averaging (torch's `AveragedModel`): EMA over steps, plain mean over epochs. Gradients: `distributed.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def ema_decay_at(decay: float, updates: int) -> float:
    """Return the EMA's decay at an update: smaller at first, so that the initial weights lose their influence."""
    return min(decay, (1 + updates) / (10 + updates))


class WeightAverage(AveragedModel):
    """A copy of a model (`module`) whose parameters and buffers are averages over updates; integer buffers are copied.

        average = decay * average + (1 - decay) * weights

    The EMA starts from the weights of `model`. The plain mean (`ema_decay=None`) starts from those of the first update,
    and its decay is updates / (updates + 1).
    """

    def __init__(self, model: nn.Module, ema_decay: float | None = None):
        super().__init__(model, multi_avg_fn=self._average, use_buffers=True)
        self.ema_decay = ema_decay
        if ema_decay is not None:
            self.n_averaged += 1  # torch would replace the initial weights at the first update

    @property
    def updates(self) -> int:
        """Number of updates so far."""
        return int(self.n_averaged) - (self.ema_decay is not None)

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, num_averaged: object) -> None:
        # `updates` is read from the CPU: `num_averaged` is on the weights' device, and reading it would wait for a GPU.
        updates = self.updates
        decay = updates / (updates + 1) if self.ema_decay is None else ema_decay_at(self.ema_decay, updates)
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        else:
            torch._foreach_copy_(averages, weights)

    def averaging_state(self) -> dict[str, Any]:
        """Return what a saved state holds: the averaged tensors by name and the number of updates."""
        return {"tensors": self.module.state_dict(), "updates": self.updates}

    def load_averaging_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `averaging_state` returned."""
        tensors: Mapping[str, Tensor] = state["tensors"]
        self.module.load_state_dict(tensors)
        self.n_averaged.fill_(state["updates"] + (self.ema_decay is not None))


class Averages:
    """The averages that `RunSettings.ema_decay` and `RunSettings.average_epochs` ask for."""

    def __init__(self, model: nn.Module, ema_decay: float | None, average_epochs: tuple[int, int] | None):
        self.average_epochs = average_epochs
        self.ema = None if ema_decay is None else WeightAverage(model, ema_decay)
        self.mean = None if average_epochs is None else WeightAverage(model)

    def after_step(self, model: nn.Module) -> None:
        """Update the EMA after a step."""
        if self.ema is not None:
            self.ema.update_parameters(model)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Update the mean after an epoch (counted from 1) that it covers."""
        if self.mean is not None and self.average_epochs is not None:
            first, last = self.average_epochs
            if first <= epoch <= last:
                self.mean.update_parameters(model)

    def released(self, model: nn.Module) -> nn.Module:
        """Return the model to validate and release: the mean if it has been updated, else the EMA, else `model`."""
        average = self.mean if self.mean is not None and self.mean.updates else self.ema
        return model if average is None else average.module

    def state_dict(self) -> dict[str, Any]:
        """Return what a saved state holds."""
        return {
            "ema": None if self.ema is None else self.ema.averaging_state(),
            "mean": None if self.mean is None else self.mean.averaging_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for average, name in ((self.ema, "ema"), (self.mean, "mean")):
            if average is not None:
                average.load_averaging_state(state[name])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model in evaluation mode without gradients; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training
