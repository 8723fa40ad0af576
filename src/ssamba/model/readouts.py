"""Readouts: how the tokens of a clip become one vector.

`clip` is the mean over patch tokens (D). `parts` is that mean, then the means of three equal thirds of the sounding
region (4 D): the mean forgets what came first, and silence dilutes it; the thirds keep the order and leave silence out.

The sounding region runs from the first to the last time step whose level is within `SOUNDING_DB` of the loudest step. A
step's level is the logarithm of its mean mel energy. The thirds of n steps are the stretches [0, n / 3), [n / 3, 2 n /
3) and [2 n / 3, n), with step i at [i, i + 1): a step on a border counts for both sides by its share. A region of fewer
than three steps has no thirds, and the mean over all steps stands in place of each.

All functions depend on features and tokens alone, have no branches on values, and give a clip the same vector in every
batch, so that exported models compute the same.

Shapes: B clips, T frames, M mel bins, P prefix tokens, L patch tokens, R rows, K columns (time steps) of the longest
clip, D channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.model.patches import column_counts

SOUNDING_DB = 30.0
"""Level below the loudest time step, in dB, at which a step is still part of the sounding region."""
PARTS_DEFINITION = f"thirds of the region within {SOUNDING_DB:g} dB, 1"
"""Changes whenever `parts` does; digests of what is made with it include it."""


def parts(
    features: Tensor,
    tokens: Tensor,
    config: BaseEncoderConfig,
    front_end: FrontEndConfig,
    lengths: Tensor | None = None,
    valid_frames: Tensor | None = None,
) -> Tensor:
    """Return the readout `parts`: the mean over patch tokens, then the means of the thirds of the sounding region.

    Args:
        features: the encoder's input (B, T, M), normalized by `front_end`.
        tokens: its output (B, P + L, D), or a hidden state.
        config: the encoder's configuration.
        front_end: how features were normalized.
        lengths: frames of each clip that the encoder read (B,), as it was given them; None means all T.
        valid_frames: frames that belong to the recording (B,), if the end of `lengths` is filled up; these alone have a
            level, while the mean includes all steps. None means `lengths`.

    Returns:
        (B, 4 * D), float32, or float64 if the tokens are.
    """
    columns = None if lengths is None else column_counts(lengths.to(tokens.device), config)
    steps = time_steps(tokens, config, columns)
    levels = step_levels(features, config, front_end, lengths if valid_frames is None else valid_frames)
    own = steps.shape[1] if columns is None else columns[:, None]
    mean = steps.sum(1) / own
    thirds = third_weights(levels, columns).to(steps.dtype) @ steps
    return torch.cat((mean[:, None], thirds), dim=1).flatten(1)


def time_steps(tokens: Tensor, config: BaseEncoderConfig, columns: Tensor | None = None) -> Tensor:
    """Return the mean over rows of each time step, (B, P + L, D) -> (B, K, D); zero after a clip's own `columns` (B,).

    Half precision becomes float32, which would otherwise round once more for each row.
    """
    patches, rows = tokens[:, config.num_prefix_tokens :], config.rows
    if columns is not None and config.patch_order == "frequency_major":
        # A clip's own tokens come first, so its rows are as long as its own columns.
        row, step = (torch.arange(n, device=tokens.device) for n in (rows, patches.shape[1] // rows))
        index = (row[:, None] * columns[:, None, None] + step).flatten(1).clamp(max=patches.shape[1] - 1)
        patches = patches.gather(1, index[..., None].expand(-1, -1, patches.shape[2]))
    pattern = "b (k r) d" if config.patch_order == "time_major" else "b (r k) d"
    grid = rearrange(patches, f"{pattern} -> b r k d", r=rows)
    steps = grid.mean(1, dtype=torch.promote_types(grid.dtype, torch.float32))
    if columns is None:
        return steps
    valid = torch.arange(steps.shape[1], device=steps.device) < columns[:, None]
    return torch.where(valid[..., None], steps, 0)


def step_levels(
    features: Tensor, config: BaseEncoderConfig, front_end: FrontEndConfig, valid_frames: Tensor | None = None
) -> Tensor:
    """Return the level of each time step: the natural logarithm of the mean mel energy over its valid frames.

    Args:
        features: normalized log-mel features (B, T, M).
        config: the encoder's configuration, for the frames of a time step.
        front_end: how features were normalized.
        valid_frames: frames of each clip that belong to the recording (B,); None means all.

    Returns:
        (B, K), float32 (float64 if the features are); minus infinity for a step without a valid frame.
    """
    exact = features.to(torch.promote_types(features.dtype, torch.float32))
    energy = (exact * (2 * front_end.std) + front_end.mean).exp().mean(-1).clamp(min=torch.finfo(torch.float32).tiny)
    valid = torch.ones_like(energy)
    if valid_frames is not None:
        frame = torch.arange(energy.shape[1], device=energy.device)
        valid = (frame < valid_frames.to(energy.device)[:, None]).to(energy.dtype)
        energy = torch.where(valid > 0, energy, 0)
    size, stride = config.patch_size[1], config.patch_stride[1]
    total, share = (F.avg_pool1d(x[:, None], size, stride)[:, 0] for x in (energy, valid))
    return torch.where(share > 0, total / share.clamp(min=0.5 / size), 0).log()


def sounding_region(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first time step of the sounding region and its number of steps, each (B,), from levels (B, K)."""
    inside = levels >= levels.amax(-1, keepdim=True) - SOUNDING_DB * math.log(10) / 10
    step = torch.arange(levels.shape[1], device=levels.device)
    first = torch.where(inside, step, levels.shape[1]).amin(-1)
    last = torch.where(inside, step, -1).amax(-1)
    return first, last - first + 1


def third_weights(levels: Tensor, columns: Tensor | None = None) -> Tensor:
    """Return the weight of each time step in the mean of each third of the sounding region; rows sum to one.

    Args:
        levels: (B, K), from `step_levels`.
        columns: columns of each clip (B,); None means all K. With overlapping patches, columns after a clip's own may
            have a level.

    Returns:
        (B, 3, K).
    """
    step = torch.arange(levels.shape[1], device=levels.device)
    if columns is None:
        own = torch.full((levels.shape[0],), levels.shape[1], device=levels.device)
    else:
        own = columns.to(levels.device)
        levels = torch.where(step < own[:, None], levels, -math.inf)
    first, count = sounding_region(levels)
    start = (step - first[:, None])[:, None]  # (B, 1, K), in the region
    edges = (count[:, None] * torch.arange(4, device=levels.device)).to(levels.dtype) / 3  # (B, 4)
    shared = torch.minimum(start + 1, edges[:, 1:, None]) - torch.maximum(start, edges[:, :-1, None])
    weights = shared.clamp(min=0) * 3 / count.clamp(min=1)[:, None, None]
    mean = (step < own[:, None]).to(levels.dtype) / own[:, None]
    return torch.where(count[:, None, None] < 3, mean[:, None], weights)
