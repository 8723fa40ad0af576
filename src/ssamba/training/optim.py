"""The optimizer and the schedule of its learning rate.

The learning rate of a parameter at a step is

    learning_rate * factor(step) * head_multiplier (outside the encoder) * layer_decay ** (layers above the parameter)

and 0 inside the encoder in the first `frozen_steps`.

Layers count from 0: the patch projection, tokens and positions are layer 0, the pair of blocks k (block k when blocks
are sequential) is layer k + 1, and the final norm and the heads are above all of them. `factor` is a `Schedule`:

    factor(step) = warm-up(step) * level * shape(finished share of the run)

`level` is its state: a plateau or an epoch lowers it. With `warmup_every` the warm-up is the original's: every so many
steps it overwrites the level, discarding any earlier plateau or epoch decay,

    level = step / warmup_steps    for step = 0, every, 2 every, ..., warmup_steps

so that the first `every` steps have a rate of zero.

To add a schedule: its name in `ScheduleSettings.kind` (settings.py), its formula in `Schedule._shape`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from ssamba.errors import ConfigError
from ssamba.training.settings import OptimizerSettings, ScheduleSettings

_BLOCK = re.compile(r"(?:^|\.)(?P<path>blocks\.(\d+)\.)")


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return Adam or AdamW over `parameter_groups`; `set_learning_rate` sets the rate of a step.

    Raises:
        ConfigError: as `parameter_groups`.
    """
    groups = parameter_groups(model, settings)
    for group in groups:
        del group["names"]
    kind: type[torch.optim.Adam | torch.optim.AdamW] = (
        torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    )
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    return kind(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=on_gpu or None)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, step: int = 0) -> None:
    """Set the learning rate of every group to its multiple of `rate`; 0 before the step at which the group starts."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"] if step >= group.get("first_step", 0) else 0.0


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Group the parameters that require gradients by weight decay and learning rate.

    Each group has `params`, `names`, `weight_decay` and `multiplier` (of the learning rate); a frozen encoder's also
    `first_step`.

    Raises:
        ConfigError: the model has no trainable parameters, or none that `head_multiplier`, `layer_decay` or
            `frozen_steps` applies to.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError("the model has no parameter that requires a gradient: nothing to train")
    # Encoder and layers are found among all parameters, so that a frozen encoder counts.
    all_names = [name for name, _ in model.named_parameters()]
    in_encoder = {name for name in all_names if "encoder" in name.split(".")[:-1]}
    different = settings.head_multiplier != 1 or settings.frozen_steps is not None
    if different and (not in_encoder or in_encoder.issuperset(trainable)):
        raise ConfigError(
            f"head_multiplier is {settings.head_multiplier:g} and frozen_steps {settings.frozen_steps}, but the model "
            "has no parameters outside a part called `encoder`"
        )
    layer_multipliers = _layer_multipliers(model, all_names, settings.layer_decay)
    groups: dict[tuple[bool, float, int], dict[str, Any]] = {}
    for name, parameter in trainable.items():
        multiplier = layer_multipliers.get(name, 1.0)
        if in_encoder and name not in in_encoder:
            multiplier *= settings.head_multiplier
        # Only the weight matrices of linear layers and convolutions decay.
        decays = not settings.decay_groups or (parameter.ndim >= 2 and name.rpartition(".")[2].endswith("weight"))
        weight_decay = settings.weight_decay if decays else 0.0
        new: dict[str, Any] = {"params": [], "names": [], "weight_decay": weight_decay, "multiplier": multiplier}
        first_step = settings.frozen_steps or 0 if name in in_encoder else 0
        if first_step:
            new["first_step"] = first_step
        group = groups.setdefault((decays, multiplier, first_step), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _layer_multipliers(model: nn.Module, names: list[str], layer_decay: float) -> dict[str, float]:
    """Return layer_decay ** (layers above) for each parameter name; empty if layers do not differ."""
    if layer_decay == 1:
        return {}
    found = {name: match for name in names if (match := _BLOCK.search(name))}
    if not found:
        raise ConfigError(f"layer_decay is {layer_decay:g}, but the model has no `blocks`")
    num_blocks = max(int(match[2]) for match in found.values()) + 1
    configs: Iterator[Any] = (getattr(module, "config", None) for module in model.modules())
    layers: int = next((config.num_layers for config in configs if hasattr(config, "num_layers")), num_blocks)
    blocks_in_layer = max(1, num_blocks // layers)
    encoder = next(name[: match.start("path")] for name, match in found.items())
    multipliers = {}
    for name in names:
        if name in found:
            layer = int(found[name][2]) // blocks_in_layer + 1
        elif name.startswith(encoder) and not name.removeprefix(encoder).startswith("norm."):
            layer = 0  # patch projection, tokens, positions; a bare encoder has no prefix
        else:
            layer = layers + 1
        multipliers[name] = layer_decay ** (layers + 1 - layer)
    return multipliers


class Schedule:
    """The learning rate as a multiple of the full one. Call `factor` once before each step."""

    def __init__(self, settings: ScheduleSettings, mode: Literal["min", "max"] = "max"):
        self.settings = settings
        self.mode = mode
        self.level = 1.0
        self.stale = 0
        """Validations since the best one."""
        self._epoch = 0
        self._top: float | None = None  # best value
        self._best: float | None = None  # best value by more than the plateau's threshold
        self._worse = 0

    def factor(self, step: int, epoch: int, total_steps: int | None, share: float = 0.0) -> float:
        """Return the multiple for a step.

        Args:
            step: steps done.
            epoch: epochs done.
            total_steps: steps of the run; None if only a time budget ends it.
            share: used share of the time budget; 0 if there is none.
        """
        settings = self.settings
        while self._epoch < epoch:
            self._epoch += 1
            since = self._epoch - settings.decay_start
            if settings.kind == "epochs" and since >= 0 and since % settings.decay_every == 0:
                self.level *= settings.decay_factor
        warmup = 1.0
        if settings.warmup_every:
            if step <= settings.warmup_steps and step % settings.warmup_every == 0:
                self.level = step / settings.warmup_steps if settings.warmup_steps else 1.0
        elif step < settings.warmup_steps:
            warmup = (step + 1) / settings.warmup_steps
        if total_steps is not None:
            after_warmup = max(1, total_steps - settings.warmup_steps)
            share = max(share, (step - settings.warmup_steps) / after_warmup)
        return warmup * self.level * self._shape(min(1.0, max(0.0, share)))

    def _shape(self, share: float) -> float:
        floor = self.settings.floor
        if self.settings.kind == "cosine":
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
        if self.settings.kind == "wsd":
            return floor + (1 - floor) * min(1.0, (1 - share) / self.settings.decay_share)
        return 1.0

    def validated(self, value: float, step: int | None = None, error: float = 0.0) -> bool:
        """Update plateau and patience by a validation's best metric; return whether its state is the one to keep.

        That is the latest state that is not worse than the best so far by more than `error`, the metric's standard
        error: what is within it may be chance, and the later state is trained more.

        The plateau is torch's ReduceLROnPlateau with a relative threshold. `stale` counts only validations after the
        warm-up (None: it is over), because learning rates near zero say nothing about the run. A value of NaN (no
        validation clips) is ignored.
        """
        if math.isnan(value):
            return False
        settings, sign = self.settings, 1 if self.mode == "max" else -1
        is_top = self._top is None or sign * value > sign * self._top
        self._top = top = value if self._top is None or is_top else self._top
        is_kept = sign * value >= sign * top - error
        is_stale = not is_top and not (is_kept and error)
        self.stale = self.stale + (step is None or step >= settings.warmup_steps) if is_stale else 0
        if settings.kind != "plateau":
            return is_kept
        threshold = settings.plateau_threshold
        improved = self._best is None or (
            value > self._best * (1 + threshold) if self.mode == "max" else value < self._best * (1 - threshold)
        )
        if improved:
            self._best, self._worse = value, 0
            return is_kept
        self._worse += 1
        if self._worse > settings.plateau_patience:
            self.level = max(self.level * settings.plateau_factor, min(self.level, settings.floor))
            self._worse = 0
        return is_kept

    def state_dict(self) -> dict[str, Any]:
        """Return what a saved state holds."""
        return {
            "level": self.level,
            "epoch": self._epoch,
            "best": self._best,
            "worse": self._worse,
            "top": self._top,
            "stale": self.stale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.level, self._epoch = state["level"], state["epoch"]
        self._best, self._worse = state["best"], state["worse"]
        self._top, self.stale = state["top"], state["stale"]
