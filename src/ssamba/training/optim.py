"""The optimizer: which parameters decay, and which learn faster.

A parameter's learning rate is the full one times `head_multiplier` for what stands on the encoder, times
`layer_decay` ** (layers above it) inside the encoder: positions, tokens and the patch projection are layer 0, the
pair of blocks k (the block k when sequential) is layer k + 1, the final norm and the heads stand above all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ssamba.errors import ConfigError
from ssamba.training.settings import OptimizerSettings

_BLOCK = re.compile(r"(?:^|\.)(?P<path>blocks\.(\d+)\.)")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for this parameter: the matrices of linear layers and convolutions."""
    return parameter.ndim >= 2 and name.rpartition(".")[2].endswith("weight")


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Parameters that require gradients, grouped by decay and learning rate.

    Each group has `params`, `names`, `weight_decay` and `multiplier` (its rate over the full one).

    Raises:
        ConfigError: the model has no trainable parameters, or none that the settings single out.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError("the model has no parameter that requires a gradient: nothing to train")
    # What a part of the model is does not depend on whether it learns: a frozen encoder is one.
    everything = [name for name, _ in model.named_parameters()]
    in_encoder = {name for name in everything if "encoder" in name.split(".")[:-1]}
    if settings.head_multiplier != 1 and (not in_encoder or in_encoder.issuperset(trainable)):
        raise ConfigError(
            f"head_multiplier is {settings.head_multiplier:g}, but the model has no part beside one called `encoder`"
        )
    layer_of = _layers(model, everything, settings)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in trainable.items():
        multiplier = layer_of.get(name, 1.0)
        if in_encoder and name not in in_encoder:
            multiplier *= settings.head_multiplier
        decay = not settings.decay_groups or decays(name, parameter)
        group = groups.setdefault(
            (decay, multiplier),
            {
                "params": [],
                "names": [],
                "weight_decay": settings.weight_decay if decay else 0.0,
                "multiplier": multiplier,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Adam or AdamW over `parameter_groups`; `set_learning_rate` gives it its rate.

    Raises:
        ConfigError: as `parameter_groups`.
    """
    groups = parameter_groups(model, settings)
    for group in groups:
        del group["names"]
    kind: type[torch.optim.Adam | torch.optim.AdamW] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[
        settings.name
    ]
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    return kind(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=on_gpu or None)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


def _layers(model: nn.Module, names: list[str], settings: OptimizerSettings) -> dict[str, float]:
    """The multiplier of each parameter that layer decay reaches."""
    if settings.layer_decay == 1:
        return {}
    found = {name: match for name in names if (match := _BLOCK.search(name))}
    if not found:
        raise ConfigError(f"layer_decay is {settings.layer_decay:g}, but the model has no `blocks` to decay over")
    count = max(int(match[2]) for match in found.values()) + 1
    configs: Iterator[Any] = (getattr(module, "config", None) for module in model.modules())
    layers: int = next((config.num_layers for config in configs if hasattr(config, "num_layers")), count)
    blocks_in_layer = max(1, count // layers)
    encoder = next(name[: match.start("path")] for name, match in found.items())
    multipliers = {}
    for name in names:
        if name in found:
            layer = int(found[name][2]) // blocks_in_layer + 1
        elif name.startswith(encoder) and not name.removeprefix(encoder).startswith("norm."):
            # Beside the blocks inside the encoder: patch projection, tokens, positions. A bare encoder has no prefix.
            layer = 0
        else:
            layer = layers + 1
        multipliers[name] = settings.layer_decay ** (layers + 1 - layer)
    return multipliers
