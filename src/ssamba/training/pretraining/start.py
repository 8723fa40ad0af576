"""Starting from weights that are there already instead of random ones: pretraining that goes on, perhaps on other data."""

from __future__ import annotations

import torch

from ssamba.checkpoint import Checkpoint, load_bundled, load_checkpoint
from ssamba.config import Config, FrontEndConfig
from ssamba.errors import ConfigError
from ssamba.model.pretraining import PretrainingModel

SHIPPED = "shipped"


@torch.no_grad()
def start_from(model: PretrainingModel, source: str, front_end: FrontEndConfig) -> tuple[str, ...]:
    """Fill a model with a checkpoint's weights: the encoder, and what else it has of the same name and shape.

    Args:
        model: filled in place.
        source: what `load_checkpoint` takes, or `shipped`: the weights that come with ssamba.
        front_end: that of the run, which must be the checkpoint's.

    Returns:
        Parameters outside the encoder that stay random, because the checkpoint has none that fit.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: its encoder or front end is another.
    """
    found: Checkpoint = load_bundled() if source == SHIPPED else load_checkpoint(source)
    _refuse_another("encoder", found.config.encoder, model.encoder.config, source)
    _refuse_another("front end", found.front_end, front_end, source)
    tensors = found.model.state_dict()
    fresh = []
    for name, value in model.state_dict().items():
        if name in tensors and tensors[name].shape == value.shape:
            value.copy_(tensors[name])
        else:
            fresh.append(name)
    return tuple(fresh)


def _refuse_another(part: str, theirs: Config, ours: Config, source: str) -> None:
    """ConfigError if two configurations are not the same."""
    if type(theirs) is not type(ours):
        raise ConfigError(
            f"model.start: the {part} of {source} is a {type(theirs).__name__}, not a {type(ours).__name__}"
        )
    own = ours.model_dump()
    other = [f"{key} {value!r} (here {own[key]!r})" for key, value in theirs.model_dump().items() if value != own[key]]
    if other:
        raise ConfigError(f"model.start: {source} has another {part}: {', '.join(other)}. Set these alike")
