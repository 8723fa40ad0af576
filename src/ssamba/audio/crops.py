"""Cutting random stretches out of a batch of spectrograms, each clip's by its own seed.

Shapes: B batch, T frames, M mel bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssamba import randomness as draws


class Crop(NamedTuple):
    """Where each clip is cut."""

    starts: Tensor
    """First frame of each clip (B,)."""
    lengths: Tensor
    """Frames of each clip (B,)."""


def draw_crop(
    lengths: Tensor, seeds: Tensor, stream: str, *, longest: int, shortest_share: float, step: int, whole: int = 0
) -> Crop:
    """Choose a stretch of each clip.

    Args:
        lengths: valid frames of each clip (B,).
        seeds: the clips' seeds (B,), int64.
        stream: name of the draw; different names give independent stretches.
        longest: most frames of a stretch.
        shortest_share: a stretch is at least this share of what it could be at most.
        step: a stretch is a multiple of this many frames where the clip is long enough.
        whole: a clip of at most so many frames is not cut (but to `longest`).
    """
    share, place = draws.uniform(seeds, f"crop.{stream}", 2).unbind(1)
    most = lengths.clamp(max=longest)
    wanted = (most * (shortest_share + share * (1 - shortest_share))).long()
    stretch = torch.div(wanted, step, rounding_mode="floor").clamp(min=1) * step
    count = torch.where(lengths <= whole, most, torch.minimum(stretch, lengths))
    starts = (place * (lengths - count + 1)).long()
    return Crop(starts, count)


def cut(features: Tensor, crop: Crop, fill: float, multiple: int) -> Tensor:
    """Take the stretches out of a batch: (B, T, M) -> (B, T', M), padded with `fill` to a multiple of `multiple`."""
    longest = int(crop.lengths.max())
    frames = -(-longest // multiple) * multiple
    step = torch.arange(frames, device=features.device)
    source = (crop.starts[:, None] + step).clamp(max=features.shape[1] - 1)
    taken = features.gather(1, source[..., None].expand(-1, -1, features.shape[2]))
    return torch.where((step < crop.lengths[:, None])[..., None], taken, fill)
