"""Other voices and other speeds, on log-mel features: what another speaker changes and what is said does not.

A voice is a source (the harmonics of its pitch) behind a filter (the formants of its vocal tract). Stretching the whole
spectrum along frequency (vocal tract length perturbation: Jaitly and Hinton, 2013) moves both together; here the
spectrum is parted into a smooth envelope, which a factor for the formants stretches, and what stands out of it, which a
factor of its own for the pitch does. Where mel bins are wider than the smoothing, at high frequencies, no harmonic is
resolved and all is envelope.

Shapes: B clips, T frames, M mel bins.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssamba import randomness as draws
from ssamba.audio.fbank import hertz_to_mel, mel_band, mel_centers
from ssamba.config import FrontEndConfig

_SMOOTHING_HZ = 90.0  # deviation: leaves 1/1,000 of harmonics 150 Hz apart, a sixth of those 300 Hz apart


def factors(seeds: Tensor, stream: str, most: float) -> Tensor:
    """A factor for each clip, (B,), between 1 / (1 + most) and 1 + most, its logarithm uniform."""
    return (1.0 + most) ** draws.symmetric(seeds, stream, 1)[:, 0]


def change_voice(
    features: Tensor, seeds: Tensor, formants: float, pitch: float, front_end: FrontEndConfig | None = None
) -> Tensor:
    """Let each clip be said by another voice.

    Args:
        features: log-mel values before normalization (B, T, M).
        seeds: the clips' seeds (B,), int64.
        formants: most that the envelope is stretched along frequency: 0.25 is by 1 / 1.25 to 1.25.
        pitch: the same of what stands out of the envelope: 1 is an octave down to an octave up.
        front_end: where the bins lie; None is the official one.

    Returns:
        (B, T, M), new values; beyond the edges of the spectrum the edge repeats.
    """
    front_end = front_end or FrontEndConfig()
    centers, smoothing = _bins(front_end, features.device)
    one = torch.eye(len(centers), device=features.device)
    envelope = _stretch(centers, factors(seeds, "voice.formants", formants), front_end) if formants else one
    harmonics = _stretch(centers, factors(seeds, "voice.pitch", pitch), front_end) if pitch else one
    # harmonics (x - smooth x) + envelope smooth x, as one matrix for each clip
    change = harmonics + (envelope - harmonics) @ smoothing
    return features @ change.transpose(-1, -2).to(features.dtype)


def change_speed(features: Tensor, seeds: Tensor, most: float, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Let each clip be said quicker or more slowly, its voice unchanged.

    Args:
        features: log-mel values before normalization (B, T, M).
        seeds: the clips' seeds (B,), int64.
        most: 0.25 is by 1 / 1.25 to 1.25 times.
        lengths: valid frames of each clip (B,).
        longest: most frames that a clip has afterwards; the end of a longer one is cut off.

    Returns:
        Features (B, T', M), 0 beyond each clip's frames, and the clips' new valid frames (B,): at least one where there
        was one.
    """
    slower = factors(seeds, "voice.speed", most)
    changed = torch.where(lengths > 0, (lengths * slower).round().long().clamp(min=1), 0)
    frames = min(max(1, int(changed.max())), longest)
    step = torch.arange(frames, device=features.device)
    # The first frame stays the first, and the last the last.
    scale = (lengths - 1).clamp(min=0) / (changed - 1).clamp(min=1)
    source = (step * scale[:, None]).clamp(max=features.shape[1] - 1)
    before = source.long()
    after = torch.minimum(before + 1, (lengths - 1).clamp(min=0)[:, None])
    share = (source - before)[..., None].to(features.dtype)
    shape = (-1, -1, features.shape[2])
    out = torch.lerp(
        features.gather(1, before[..., None].expand(shape)), features.gather(1, after[..., None].expand(shape)), share
    )
    return torch.where((step < changed[:, None])[..., None], out, 0), changed.clamp(max=longest)


def _stretch(centers: Tensor, factor: Tensor, front_end: FrontEndConfig) -> Tensor:
    """(B, M, M): matrices that read, for each bin, what stood at its frequency divided by the clip's factor."""
    low, step = mel_band(front_end)
    last = len(centers) - 1
    source = ((hertz_to_mel(centers / factor[:, None]) - low) / step - 1).clamp(0, last)
    bins = torch.arange(last + 1, device=centers.device)
    return (1 - (source[..., None] - bins).abs()).clamp(min=0)


@lru_cache(maxsize=8)
def _bins(front_end: FrontEndConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """The bins' centers in hertz (M,), and the matrix (M, M) that smooths over them."""
    with torch.inference_mode(False):  # cached tensors must also serve a later call that needs gradients
        centers = mel_centers(front_end)
        weights = torch.exp(-0.5 * ((centers[:, None] - centers) / _SMOOTHING_HZ).square())
        weights = weights * (centers + 700)  # a bin's width in hertz grows with its frequency
        return centers.to(device), (weights / weights.sum(1, keepdim=True)).to(device)
