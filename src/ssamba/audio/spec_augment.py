"""SpecAugment (Park et al., 2019, arXiv:1904.08779): stripes of a spectrogram hidden at random; and the original's noise.

Widths and places are drawn as torchaudio's maskings draw them, from each clip's own seed (`ssamba.randomness`): a width
uniform between 0 and the most, a start uniform over what is left. Time stripes lie within a clip's valid frames.

Shapes: B batch, T frames, M mel bins.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ssamba import randomness as draws
from ssamba.config import Config


class SpecAugment(Config):
    """What is hidden or disturbed while training; the default changes nothing."""

    mel_bins: int = Field(0, ge=0)
    """Most mel bins of the stripe along time."""
    frames: int = Field(0, ge=0)
    """Most frames of the stripe along frequency; never more than half of the clip."""
    noise: float = Field(0.0, ge=0)
    """Noise added to normalized features, uniform from 0 to a level that is uniform from 0 to this (the original: 0.1)."""
    roll_frames: int = Field(0, ge=0)
    """Roll in time, uniform from minus this to this less one (the original: 10), within the clip's valid frames."""


def hide_stripes(
    features: Tensor, seeds: Tensor, settings: SpecAugment, lengths: Tensor, fill: float | Tensor
) -> Tensor:
    """Hide one stripe of mel bins and one of frames in each clip.

    Args:
        features: (B, T, M).
        seeds: the clips' seeds (B,), int64.
        settings: the widths.
        lengths: valid frames of each clip (B,); nothing beyond is changed.
        fill: what hidden values become.

    Returns:
        (B, T, M).
    """
    step = torch.arange(features.shape[1], device=features.device)
    valid = (step < lengths[:, None])[..., None]
    hidden = torch.zeros_like(features, dtype=torch.bool)
    if settings.mel_bins:
        bins = torch.full_like(lengths, features.shape[2])
        hidden |= _stripe(seeds, "spec.bins", settings.mel_bins, bins, features.shape[2])[:, None, :]
    if settings.frames:
        hidden |= _stripe(seeds, "spec.frames", settings.frames, lengths, features.shape[1])[..., None]
    return torch.where(hidden & valid, fill, features)


def noise_and_roll(features: Tensor, seeds: Tensor, settings: SpecAugment, lengths: Tensor) -> Tensor:
    """Add uniform noise to normalized features (B, T, M), and roll each clip in time; arguments as `hide_stripes`."""
    step = torch.arange(features.shape[1], device=features.device)
    valid = (step < lengths[:, None])[..., None]
    out = features
    if settings.noise:
        level = draws.uniform(seeds, "spec.noise.level", 1)[:, :, None] * settings.noise
        noise = draws.uniform(seeds, "spec.noise", features.shape[1] * features.shape[2]).view_as(features)
        out = out + noise * level
    if settings.roll_frames:
        by = draws.integers(seeds, "spec.roll", -settings.roll_frames, settings.roll_frames - 1)
        source = torch.where(valid[..., 0], (step - by[:, None]) % lengths[:, None].clamp(min=1), step)
        out = out.gather(1, source[..., None].expand_as(out))
    return torch.where(valid, out, features)


def _stripe(seeds: Tensor, stream: str, widest: int, sizes: Tensor, length: int) -> Tensor:
    """(B, length) bool: a stripe within the first `sizes` (B,)."""
    wide, place = draws.uniform(seeds, stream, 2).unbind(1)
    width = wide * (sizes // 2).clamp(max=widest)
    first = (place * (sizes - width)).long()
    step = torch.arange(length, device=seeds.device)
    return (step >= first[:, None]) & (step < (first + width.long())[:, None])
