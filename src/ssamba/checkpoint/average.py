"""The mean of several checkpoints: models that were trained from one another, averaged weight by weight.

Between such models the loss is often flat, and their mean generalizes better than each, to other sources of data above all (model
soups: Wortsman et al., 2022, arXiv:2203.05482; WiSE-FT: arXiv:2109.01903). Models that were trained apart do not average.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ssamba.checkpoint.load import Checkpoint, check_output, load_checkpoint, save_checkpoint
from ssamba.errors import CheckpointError


def average_checkpoints(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    weights: Sequence[float] | None = None,
    overwrite: bool = False,
    half: bool = False,
    origin: str | None = None,
) -> Checkpoint:
    """Write the weighted mean of checkpoints of one structure as a folder of ours.

    Args:
        sources: what to load, at least two.
        folder: where to write.
        weights: how much each counts, relative to their sum; None is all alike.
        overwrite: replace a checkpoint that is there.
        half: write float16.
        origin: a line for people that says where the weights come from; None says of what they are the mean.

    Returns:
        What was written.

    Raises:
        CheckpointError: a source cannot be loaded or is of another structure, the weights do not fit, or the folder holds a
            checkpoint and `overwrite` is not set.
    """
    folder = Path(folder)
    shares = [1.0] * len(sources) if weights is None else list(weights)
    if len(sources) < 2:
        raise CheckpointError(f"averaging takes two checkpoints or more, got {len(sources)}")
    if len(shares) != len(sources) or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise CheckpointError(f"{len(sources)} checkpoints need as many weights, none below 0, got {shares}")
    check_output(folder, overwrite=overwrite)
    loaded = [load_checkpoint(source) for source in sources]
    first = loaded[0]
    for source, other in zip(sources[1:], loaded[1:], strict=True):
        same = other.config.with_changes(origin=first.config.origin) == first.config
        if not same or other.front_end != first.front_end:
            raise CheckpointError(
                f"{source} is of another structure than {sources[0]} (encoder, heads or front end), so their weights do not "
                "average: compare them with `ssamba info`"
            )
    parts = [checkpoint.model.state_dict() for checkpoint in loaded]
    with torch.no_grad():
        for name, tensor in parts[0].items():
            mean = sum(share / sum(shares) * part[name] for share, part in zip(shares, parts, strict=True))
            tensor.copy_(torch.as_tensor(mean))
    named = " and ".join(f"{share:g} of {source}" for share, source in zip(shares, sources, strict=True))
    config = first.config.with_changes(origin=origin or f"mean of {named}")
    save_checkpoint(folder, first.model, config, first.front_end, half=half)
    return first
