"""Averages of a model's weights over a run: exponential (EMA) over steps, plain over epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def ema_keep(decay: float, updates: int) -> float:
    """What an exponential average keeps of itself at an update: less at first, so that the start is forgotten."""
    return min(decay, (1 + updates) / (10 + updates))


class AveragedWeights:
    """A second set of a model's parameters and buffers. Buffers that are not floating point are copied."""

    def __init__(self, model: nn.Module):
        self.tensors: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module, keep: float) -> None:
        """average = keep * average + (1 - keep) * weights."""
        averages, values = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.tensors[name])
                values.append(value)
            else:
                self.tensors[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - keep)
        self.updates += 1

    def update_ema(self, model: nn.Module, decay: float) -> None:
        """One step of an exponential average."""
        self.update(model, ema_keep(decay, self.updates))

    def update_mean(self, model: nn.Module) -> None:
        """One more term of a plain mean; the first replaces what the average started from."""
        self.update(model, self.updates / (self.updates + 1))

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside the context, and its own again after it."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        _copy(self.tensors, model)
        try:
            yield
        finally:
            _copy(own, model)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {"tensors": self.tensors, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name, value in state["tensors"].items():
            self.tensors[name].copy_(value)
        self.updates = state["updates"]


class Averages:
    """The averages that a run was asked for."""

    def __init__(self, model: nn.Module, ema_decay: float | None, epochs: tuple[int, int] | None):
        """`ema_decay` and `epochs` are `RunSettings.ema_decay` and `RunSettings.average_epochs`."""
        self.decay, self.epochs = ema_decay, epochs
        self.ema = AveragedWeights(model) if ema_decay is not None else None
        self.mean = AveragedWeights(model) if epochs is not None else None

    def after_step(self, model: nn.Module) -> None:
        """The weights have changed."""
        if self.ema is not None and self.decay is not None:
            self.ema.update_ema(model, self.decay)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """So many epochs are done."""
        if self.mean is not None and self.epochs is not None and self.epochs[0] <= epoch <= self.epochs[1]:
            self.mean.update_mean(model)

    def released(self) -> AveragedWeights | None:
        """What the model is validated and saved with: the mean once it has a term, or the EMA, or None: as it is."""
        return self.mean if self.mean is not None and self.mean.updates else self.ema

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {
            "ema": None if self.ema is None else self.ema.state_dict(),
            "mean": None if self.mean is None else self.mean.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for average, name in ((self.ema, "ema"), (self.mean, "mean")):
            if average is not None:
                average.load_state_dict(state[name])


@contextmanager
def evaluating(model: nn.Module, average: AveragedWeights | None) -> Iterator[nn.Module]:
    """The model in evaluation mode, without gradients, with averaged weights if there are any; then as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), nullcontext() if average is None else average.applied_to(model):
            yield model
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        value.copy_(tensors[name])
