"""Random changes of log-mel spectrograms for training: crops, levels, colors, bands, voices, speed and SpecAugment.

Everything works on a whole batch at once, on any device, and draws every number from the clip's own seed
(`ssamba.randomness`), so a clip is changed alike in every batch. Background recordings are mixed in as waveforms: `ssamba.data`.

Shapes: B clips, T frames, M mel bins.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ssamba import randomness
from ssamba.audio.fbank import hertz_to_mel, mel_band, mel_centers
from ssamba.config import Config, FrontEndConfig

_DB = 0.2302585  # one decibel of power in natural logarithm
_COSINES = 5  # of a random equalizer
_FLOOR_TILT_DB = 10.0  # most that a noise floor rises or falls over all bins, to either side of its middle
_SILENCE = -15.9424  # log of float32's epsilon, the least value that fbank returns


class Augmentation(Config):
    """How strongly training changes what it hears; the default changes nothing."""

    gain_db: float = Field(0.0, ge=0)
    """Level change, uniform between minus this and this."""
    tilt_db: float = Field(0.0, ge=0)
    """Tilt of the spectrum: change at its ends, of opposite sign."""
    equalizer_db: float = Field(0.0, ge=0)
    """A smooth random change over frequency, as other microphones and rooms make it: most that each of its five cosines
    changes."""
    band_share: float = Field(0.0, ge=0, le=1)
    """Share of clips whose low and high ends are attenuated."""
    band_low: float = Field(0.3, ge=0, le=1)
    """The lower edge lies uniformly between 0 and this share of the mel bins."""
    band_high: float = Field(0.5, ge=0, le=1)
    """The upper edge lies uniformly between this share of the mel bins and 1."""
    formants: float = Field(0.0, ge=0, le=1)
    """Most that the spectrum's envelope is stretched along frequency, as by longer and shorter vocal tracts: 0.25 is by
    1 / 1.25 to 1.25 times."""
    pitch: float = Field(0.0, ge=0, le=3)
    """The same of what stands out of the envelope, the harmonics of a voice: 1 is an octave down to an octave up."""
    speed: float = Field(0.0, ge=0, le=1)
    """Most that a clip is stretched in time, its pitch unchanged: 0.25 is by 1 / 1.25 to 1.25 times."""
    shift_bins: int = Field(0, ge=0)
    """Shift along frequency in mel bins, uniform between minus this and this; edges repeat."""
    floor_share: float = Field(0.0, ge=0, le=1)
    """Share of clips that get a noise floor: steady noise of any recording chain, which fills what is quieter than it."""
    floor_db: tuple[float, float] = (25.0, 75.0)
    """Its level below the clip's loudest value, uniform between these."""
    noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise added to the values, up to this, uniform from 0."""

    @model_validator(mode="after")
    def _check(self) -> Augmentation:
        if not self.floor_db[0] <= self.floor_db[1]:
            raise ValueError(f"floor_db must rise, got {self.floor_db}")
        return self

    @property
    def changes_nothing(self) -> bool:
        """Whether `augment` never changes a clip."""
        levels = (self.gain_db, self.tilt_db, self.equalizer_db, self.band_share)
        return not any((*levels, self.formants, self.pitch, self.shift_bins, self.floor_share, self.noise))


def augment(
    features: Tensor,
    seeds: Tensor,
    settings: Augmentation,
    lengths: Tensor | None = None,
    front_end: FrontEndConfig | None = None,
) -> Tensor:
    """Change each clip of a batch at random, in all but its length (`speed` is for `change_speed`).

    Args:
        features: log-mel values before normalization (B, T, M).
        seeds: the clips' seeds (B,), int64.
        settings: what is changed, and how much.
        lengths: valid frames of each clip (B,), None when all are; the rest is left as it is.
        front_end: where the mel bins lie; None is the official one.

    Returns:
        (B, T, M), new values.
    """
    if settings.changes_nothing or not len(features):
        return features
    valid = _valid(features, lengths)
    out = _shift(features, seeds, settings.shift_bins)
    if settings.formants or settings.pitch:
        out = change_voice(out, seeds, settings.formants, settings.pitch, front_end)
    bins = torch.linspace(-1, 1, features.shape[2], device=features.device)
    change = randomness.symmetric(seeds, "augment.gain", 1) * (settings.gain_db * _DB)
    change = change + randomness.symmetric(seeds, "augment.tilt", 1) * (settings.tilt_db * _DB) * bins
    change = change + _equalizer(seeds, settings.equalizer_db * _DB, features.shape[2])
    change = change + _band(seeds, settings, features.shape[2])
    out = (out + change[:, None].to(out.dtype)).clamp(min=_SILENCE)
    if settings.floor_share:
        out = _with_floor(out, seeds, settings, valid)
    if settings.noise:
        level = randomness.uniform(seeds, "augment.noise.level", 1)[:, 0] * settings.noise
        noise = randomness.normal(seeds, "augment.noise", out.shape[1] * out.shape[2]).view_as(out)
        out = out + level[:, None, None] * noise
    return torch.where(valid[..., None], out, features)


def _valid(features: Tensor, lengths: Tensor | None) -> Tensor:
    step = torch.arange(features.shape[1], device=features.device)
    if lengths is None:
        return (step >= 0).expand(features.shape[0], -1)
    return step < lengths[:, None]


def _shift(features: Tensor, seeds: Tensor, most: int) -> Tensor:
    if not most:
        return features
    bins = features.shape[2]
    source = torch.arange(bins, device=seeds.device) + randomness.integers(seeds, "augment.shift", -most, most)[:, None]
    return features.gather(2, source.clamp(0, bins - 1)[:, None].expand_as(features))


def _equalizer(seeds: Tensor, width: float, bins: int) -> Tensor:
    """(B, M): a sum of cosines of half a period over all bins to five halves, their weights within `width`."""
    weights = randomness.symmetric(seeds, "augment.equaliser", _COSINES) * width
    waves = torch.arange(1, _COSINES + 1, device=seeds.device)[:, None] * (
        torch.arange(bins, device=seeds.device) + 0.5
    )
    return weights @ torch.cos(torch.pi / bins * waves)


def _band(seeds: Tensor, settings: Augmentation, bins: int) -> Tensor:
    """(B, M): attenuation outside a band, 1.3 dB per bin."""
    chosen, low, high = randomness.uniform(seeds, "augment.band", 3).unbind(1)
    low = low * settings.band_low * bins
    high = bins * (1 - high * (1 - settings.band_high))
    step = torch.arange(bins, device=seeds.device)
    slope = -0.3 * ((low[:, None] - step).clamp(min=0) + (step - high[:, None]).clamp(min=0))
    return torch.where((chosen < settings.band_share)[:, None], slope, 0)


def _with_floor(x: Tensor, seeds: Tensor, settings: Augmentation, valid: Tensor) -> Tensor:
    """Some clips with steady noise added in power: a straight line over the bins, each value scattered as the power of
    noise is in an analysis frame (exponentially, as in one bin of a Fourier transform)."""
    chosen, level, tilt = randomness.uniform(seeds, "augment.floor", 3).unbind(1)
    low, high = settings.floor_db
    loudest = torch.where(valid[..., None], x, _SILENCE).amax((1, 2))
    middle = loudest - (low + level * (high - low)) * _DB
    bins = torch.linspace(-1, 1, x.shape[2], device=x.device)
    line = middle[:, None] + ((2 * tilt - 1) * _FLOOR_TILT_DB * _DB)[:, None] * bins
    power = -torch.log1p(-randomness.uniform(seeds, "augment.floor.noise", x.shape[1] * x.shape[2])).view_as(x)
    noisy = torch.logaddexp(x, line[:, None] + power.clamp(min=1e-6).log())
    return torch.where((chosen < settings.floor_share)[:, None, None], noisy, x)


_SMOOTHING_HZ = 90.0  # deviation: leaves 1/1,000 of harmonics 150 Hz apart, a sixth of those 300 Hz apart


def factors(seeds: Tensor, stream: str, most: float) -> Tensor:
    """A factor for each clip, (B,), between 1 / (1 + most) and 1 + most, its logarithm uniform."""
    return (1.0 + most) ** randomness.symmetric(seeds, stream, 1)[:, 0]


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
    share, place = randomness.uniform(seeds, f"crop.{stream}", 2).unbind(1)
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
        level = randomness.uniform(seeds, "spec.noise.level", 1)[:, :, None] * settings.noise
        noise = randomness.uniform(seeds, "spec.noise", features.shape[1] * features.shape[2]).view_as(features)
        out = out + noise * level
    if settings.roll_frames:
        by = randomness.integers(seeds, "spec.roll", -settings.roll_frames, settings.roll_frames - 1)
        source = torch.where(valid[..., 0], (step - by[:, None]) % lengths[:, None].clamp(min=1), step)
        out = out.gather(1, source[..., None].expand_as(out))
    return torch.where(valid, out, features)


def _stripe(seeds: Tensor, stream: str, widest: int, sizes: Tensor, length: int) -> Tensor:
    """(B, length) bool: a stripe within the first `sizes` (B,)."""
    wide, place = randomness.uniform(seeds, stream, 2).unbind(1)
    width = wide * (sizes // 2).clamp(max=widest)
    first = (place * (sizes - width)).long()
    step = torch.arange(length, device=seeds.device)
    return (step >= first[:, None]) & (step < (first + width.long())[:, None])
