"""Random changes to log-mel spectrograms for training: crops, gain, filters, noise floors, voices, speed, SpecAugment.

Everything works on a whole batch at once, on any device, and draws every number from the clip's own seed
(`ssamba.randomness`), so the result for a clip does not depend on its batch. Background recordings are mixed in as
waveforms, in `ssamba.data`.

Voices. A voice is a source (the harmonics of its pitch) behind a filter (the formants of its vocal tract). Stretching
the whole spectrum along frequency (vocal tract length perturbation: Jaitly and Hinton, 2013) moves both together; here
the spectrum is split into a smooth envelope, which one factor stretches (formants), and the remainder, which another
factor stretches (pitch). At high frequencies mel bins are wider than the smoothing: harmonics are not resolved there,
and everything counts as envelope.

SpecAugment (Park et al., 2019, arXiv:1904.08779) draws widths and starts as torchaudio's maskings do: a width uniform
between 0 and the maximum, a start uniform over the remaining places. Time stripes lie within a clip's valid frames.

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
_COSINES = 5  # terms of the random equalizer
_FLOOR_TILT_DB = 10.0  # largest change of a noise floor at either end of the spectrum
_SILENCE = -15.9424  # log of float32's epsilon, the smallest value that fbank returns
_SMOOTHING_HZ = 90.0  # standard deviation: leaves 1/1,000 of harmonics 150 Hz apart, a sixth of those 300 Hz apart


class Augmentation(Config):
    """Strength of the augmentation; the default changes nothing."""

    gain_db: float = Field(0.0, ge=0)
    """Level change in dB, uniform in [-gain_db, gain_db]."""
    tilt_db: float = Field(0.0, ge=0)
    """Linear change over the mel bins, uniform in [-tilt_db, tilt_db] at one end and its opposite at the other."""
    equalizer_db: float = Field(0.0, ge=0)
    """Smooth random change over frequency, as other microphones and rooms cause it: largest weight of each of its five
    cosines, in dB."""
    band_share: float = Field(0.0, ge=0, le=1)
    """Share of clips whose low and high ends are attenuated."""
    band_low: float = Field(0.3, ge=0, le=1)
    """The lower edge is uniform between 0 and this share of the mel bins."""
    band_high: float = Field(0.5, ge=0, le=1)
    """The upper edge is uniform between this share of the mel bins and 1."""
    formants: float = Field(0.0, ge=0, le=1)
    """Largest stretch of the spectral envelope along frequency, as by longer and shorter vocal tracts: 0.25 draws a
    factor between 1 / 1.25 and 1.25."""
    pitch: float = Field(0.0, ge=0, le=3)
    """The same for the remainder, the harmonics of a voice: 1 draws between an octave down and an octave up."""
    speed: float = Field(0.0, ge=0, le=1)
    """Largest stretch in time, pitch unchanged: 0.25 draws a factor between 1 / 1.25 and 1.25."""
    shift_bins: int = Field(0, ge=0)
    """Shift along frequency in mel bins, uniform in [-shift_bins, shift_bins]; the edge bins repeat."""
    floor_share: float = Field(0.0, ge=0, le=1)
    """Share of clips that get a noise floor: stationary noise, added in power."""
    floor_db: tuple[float, float] = (25.0, 75.0)
    """Level of the noise floor in dB below the clip's loudest value, uniform between these."""
    noise: float = Field(0.0, ge=0)
    """Gaussian noise added to the log-mel values, its standard deviation uniform in [0, noise]."""

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


class SpecAugment(Config):
    """Strength of SpecAugment and of the original's noise and roll; the default changes nothing."""

    mel_bins: int = Field(0, ge=0)
    """Largest width of the masked frequency stripe, in mel bins."""
    frames: int = Field(0, ge=0)
    """Largest width of the masked time stripe, in frames; never more than half of the clip."""
    noise: float = Field(0.0, ge=0)
    """Noise added to normalized features, uniform from 0 to a level uniform in [0, noise] (the original: 0.1)."""
    roll_frames: int = Field(0, ge=0)
    """Roll in time, uniform in [-roll_frames, roll_frames - 1] within the clip's valid frames (the original: 10)."""


class Crop(NamedTuple):
    """Where each clip is cropped."""

    starts: Tensor
    """First frame of each crop (B,)."""
    lengths: Tensor
    """Frames of each crop (B,)."""


def draw_crop(
    lengths: Tensor, seeds: Tensor, stream: str, *, longest: int, shortest_share: float, step: int, whole: int = 0
) -> Crop:
    """Draw a random crop of each clip.

    Args:
        lengths: valid frames of each clip (B,).
        seeds: seed of each clip (B,), int64.
        stream: name of the random stream; different names give independent crops.
        longest: largest number of frames of a crop.
        shortest_share: a crop has at least this share of the largest number of frames that it could have.
        step: a crop's length is a multiple of this many frames if the clip is long enough.
        whole: a clip of at most this many frames is not cropped (except to `longest`).
    """
    share, place = randomness.uniform(seeds, f"crop.{stream}", 2).unbind(1)
    most = lengths.clamp(max=longest)
    wanted = (most * (shortest_share + share * (1 - shortest_share))).long()
    stretch = torch.div(wanted, step, rounding_mode="floor").clamp(min=1) * step
    count = torch.where(lengths <= whole, most, torch.minimum(stretch, lengths))
    starts = (place * (lengths - count + 1)).long()
    return Crop(starts, count)


def apply_crop(features: Tensor, crop: Crop, fill: float, multiple: int) -> Tensor:
    """Crop features (B, T, M), and pad the crops with `fill` to a common multiple of `multiple` frames."""
    longest = int(crop.lengths.max())
    frames = -(-longest // multiple) * multiple
    step = torch.arange(frames, device=features.device)
    source = (crop.starts[:, None] + step).clamp(max=features.shape[1] - 1)
    taken = features.gather(1, source[..., None].expand(-1, -1, features.shape[2]))
    return torch.where((step < crop.lengths[:, None])[..., None], taken, fill)


def augment(
    features: Tensor,
    seeds: Tensor,
    settings: Augmentation,
    lengths: Tensor | None = None,
    front_end: FrontEndConfig | None = None,
) -> Tensor:
    """Change each clip of a batch at random, except for its length (`change_speed` applies `speed`).

    Args:
        features: log-mel values before normalization (B, T, M).
        seeds: seed of each clip (B,), int64.
        settings: what is changed, and how strongly.
        lengths: valid frames of each clip (B,), None if all are; padding is not changed.
        front_end: frequencies of the mel bins; None means the official front end.

    Returns:
        New values (B, T, M).
    """
    if settings.changes_nothing or not len(features):
        return features
    valid = _valid_frames(features, lengths)
    out = _shift_bins(features, seeds, settings.shift_bins)
    if settings.formants or settings.pitch:
        out = change_voice(out, seeds, settings.formants, settings.pitch, front_end)
    bins = torch.linspace(-1, 1, features.shape[2], device=features.device)
    change = randomness.symmetric(seeds, "augment.gain", 1) * (settings.gain_db * _DB)
    change = change + randomness.symmetric(seeds, "augment.tilt", 1) * (settings.tilt_db * _DB) * bins
    change = change + _equalizer(seeds, settings.equalizer_db * _DB, features.shape[2])
    change = change + _band_limit(seeds, settings, features.shape[2])
    out = (out + change[:, None].to(out.dtype)).clamp(min=_SILENCE)
    if settings.floor_share:
        out = _add_noise_floor(out, seeds, settings, valid)
    if settings.noise:
        level = randomness.uniform(seeds, "augment.noise.level", 1)[:, 0] * settings.noise
        noise = randomness.normal(seeds, "augment.noise", out.shape[1] * out.shape[2]).view_as(out)
        out = out + level[:, None, None] * noise
    return torch.where(valid[..., None], out, features)


def change_voice(
    features: Tensor, seeds: Tensor, formants: float, pitch: float, front_end: FrontEndConfig | None = None
) -> Tensor:
    """Change the voice of each clip: stretch its formants and its pitch along frequency by random factors.

    Args:
        features: log-mel values before normalization (B, T, M).
        seeds: seed of each clip (B,), int64.
        formants: largest stretch of the envelope: 0.25 draws a factor between 1 / 1.25 and 1.25.
        pitch: largest stretch of the remainder: 1 draws between an octave down and an octave up.
        front_end: frequencies of the mel bins; None means the official front end.

    Returns:
        New values (B, T, M); beyond the edges of the spectrum the edge value repeats.
    """
    front_end = front_end or FrontEndConfig()
    centers, smoothing = _smoothing_matrix(front_end, features.device)
    one = torch.eye(len(centers), device=features.device)
    envelope = (
        _stretch_matrix(centers, random_factors(seeds, "voice.formants", formants), front_end) if formants else one
    )
    harmonics = _stretch_matrix(centers, random_factors(seeds, "voice.pitch", pitch), front_end) if pitch else one
    # harmonics @ (x - smooth(x)) + envelope @ smooth(x), as one matrix for each clip
    change = harmonics + (envelope - harmonics) @ smoothing
    return features @ change.transpose(-1, -2).to(features.dtype)


def change_speed(features: Tensor, seeds: Tensor, most: float, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Stretch each clip in time by a random factor, its spectrum unchanged.

    Args:
        features: log-mel values before normalization (B, T, M).
        seeds: seed of each clip (B,), int64.
        most: largest stretch: 0.25 draws a factor between 1 / 1.25 and 1.25.
        lengths: valid frames of each clip (B,).
        longest: frames of the result at most; longer clips are truncated.

    Returns:
        Features (B, T', M), where T' is the new number of frames, 0 in padding; and the new valid frames of each clip
        (B,), at least one if there was one.
    """
    factors = random_factors(seeds, "voice.speed", most)
    changed = torch.where(lengths > 0, (lengths * factors).round().long().clamp(min=1), 0)
    frames = min(max(1, int(changed.max())), longest)
    step = torch.arange(frames, device=features.device)
    # The first frame maps to the first, and the last to the last.
    scale = (lengths - 1).clamp(min=0) / (changed - 1).clamp(min=1)
    source = (step * scale[:, None]).clamp(max=features.shape[1] - 1)
    before = source.long()
    after = torch.minimum(before + 1, (lengths - 1).clamp(min=0)[:, None])
    weight = (source - before)[..., None].to(features.dtype)
    shape = (-1, -1, features.shape[2])
    out = torch.lerp(
        features.gather(1, before[..., None].expand(shape)), features.gather(1, after[..., None].expand(shape)), weight
    )
    return torch.where((step < changed[:, None])[..., None], out, 0), changed.clamp(max=longest)


def random_factors(seeds: Tensor, stream: str, most: float) -> Tensor:
    """Draw a factor for each clip (B,), log-uniform between 1 / (1 + most) and 1 + most."""
    return (1.0 + most) ** randomness.symmetric(seeds, stream, 1)[:, 0]


def mask_stripes(
    features: Tensor, seeds: Tensor, settings: SpecAugment, lengths: Tensor, fill: float | Tensor
) -> Tensor:
    """Mask one stripe of mel bins and one stripe of frames in each clip.

    Args:
        features: (B, T, M).
        seeds: seed of each clip (B,), int64.
        settings: the largest widths.
        lengths: valid frames of each clip (B,); padding is not changed.
        fill: value of masked entries.

    Returns:
        (B, T, M).
    """
    valid = _valid_frames(features, lengths)[..., None]
    masked = torch.zeros_like(features, dtype=torch.bool)
    if settings.mel_bins:
        bins = torch.full_like(lengths, features.shape[2])
        masked |= _stripe(seeds, "spec.bins", settings.mel_bins, bins, features.shape[2])[:, None, :]
    if settings.frames:
        masked |= _stripe(seeds, "spec.frames", settings.frames, lengths, features.shape[1])[..., None]
    return torch.where(masked & valid, fill, features)


def add_noise_and_roll(features: Tensor, seeds: Tensor, settings: SpecAugment, lengths: Tensor) -> Tensor:
    """Add uniform noise to normalized features (B, T, M), and roll each clip in time; arguments as `mask_stripes`."""
    step = torch.arange(features.shape[1], device=features.device)
    valid = _valid_frames(features, lengths)
    out = features
    if settings.noise:
        level = randomness.uniform(seeds, "spec.noise.level", 1)[:, :, None] * settings.noise
        noise = randomness.uniform(seeds, "spec.noise", features.shape[1] * features.shape[2]).view_as(features)
        out = out + noise * level
    if settings.roll_frames:
        by = randomness.integers(seeds, "spec.roll", -settings.roll_frames, settings.roll_frames - 1)
        source = torch.where(valid, (step - by[:, None]) % lengths[:, None].clamp(min=1), step)
        out = out.gather(1, source[..., None].expand_as(out))
    return torch.where(valid[..., None], out, features)


def _valid_frames(features: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, T) bool: which frames of features (B, T, M) are not padding."""
    step = torch.arange(features.shape[1], device=features.device)
    if lengths is None:
        return (step >= 0).expand(features.shape[0], -1)
    return step < lengths[:, None]


def _shift_bins(features: Tensor, seeds: Tensor, most: int) -> Tensor:
    """Shift each clip of (B, T, M) along frequency by up to `most` mel bins."""
    if not most:
        return features
    bins = features.shape[2]
    shift = randomness.integers(seeds, "augment.shift", -most, most)
    source = torch.arange(bins, device=seeds.device) + shift[:, None]
    return features.gather(2, source.clamp(0, bins - 1)[:, None].expand_as(features))


def _equalizer(seeds: Tensor, width: float, bins: int) -> Tensor:
    """(B, M): a sum of cosines of one to five half periods over all bins, with weights in [-width, width]."""
    # The name of a random stream determines its numbers, so it keeps its first spelling.
    weights = randomness.symmetric(seeds, "augment.equaliser", _COSINES) * width
    waves = torch.arange(1, _COSINES + 1, device=seeds.device)[:, None] * (
        torch.arange(bins, device=seeds.device) + 0.5
    )
    return weights @ torch.cos(torch.pi / bins * waves)


def _band_limit(seeds: Tensor, settings: Augmentation, bins: int) -> Tensor:
    """(B, M): attenuation outside a random band, 1.3 dB per bin."""
    chosen, low, high = randomness.uniform(seeds, "augment.band", 3).unbind(1)
    low = low * settings.band_low * bins
    high = bins * (1 - high * (1 - settings.band_high))
    step = torch.arange(bins, device=seeds.device)
    slope = -0.3 * ((low[:, None] - step).clamp(min=0) + (step - high[:, None]).clamp(min=0))
    return torch.where((chosen < settings.band_share)[:, None], slope, 0)


def _add_noise_floor(x: Tensor, seeds: Tensor, settings: Augmentation, valid: Tensor) -> Tensor:
    """Add stationary noise in power to some clips of (B, T, M); `valid` (B, T) are the frames that set its level.

    The noise has a linear spectrum in dB; each value is scattered exponentially, as the power of noise in one bin of a
    Fourier transform.
    """
    chosen, level, tilt = randomness.uniform(seeds, "augment.floor", 3).unbind(1)
    low, high = settings.floor_db
    loudest = torch.where(valid[..., None], x, _SILENCE).amax((1, 2))
    middle = loudest - (low + level * (high - low)) * _DB
    bins = torch.linspace(-1, 1, x.shape[2], device=x.device)
    line = middle[:, None] + ((2 * tilt - 1) * _FLOOR_TILT_DB * _DB)[:, None] * bins
    power = -torch.log1p(-randomness.uniform(seeds, "augment.floor.noise", x.shape[1] * x.shape[2])).view_as(x)
    noisy = torch.logaddexp(x, line[:, None] + power.clamp(min=1e-6).log())
    return torch.where((chosen < settings.floor_share)[:, None, None], noisy, x)


def _stretch_matrix(centers: Tensor, factor: Tensor, front_end: FrontEndConfig) -> Tensor:
    """(B, M, M): for each bin, interpolation weights of the values at its frequency divided by the clip's factor."""
    low, step = mel_band(front_end)
    last = len(centers) - 1
    source = ((hertz_to_mel(centers / factor[:, None]) - low) / step - 1).clamp(0, last)
    bins = torch.arange(last + 1, device=centers.device)
    return (1 - (source[..., None] - bins).abs()).clamp(min=0)


@lru_cache(maxsize=8)
def _smoothing_matrix(front_end: FrontEndConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Centers of the bins in hertz of the slowed recording (M,), and the matrix (M, M) that smooths over them."""
    with torch.inference_mode(False):  # cached tensors must also serve a later call that needs gradients
        centers = mel_centers(front_end) / front_end.time_expansion
        weights = torch.exp(-0.5 * ((centers[:, None] - centers) / _SMOOTHING_HZ).square())
        weights = weights * (centers + 700)  # a bin's width in hertz grows with its frequency
        return centers.to(device), (weights / weights.sum(1, keepdim=True)).to(device)


def _stripe(seeds: Tensor, stream: str, widest: int, sizes: Tensor, length: int) -> Tensor:
    """(B, length) bool: a random stripe, at most `widest` wide, within the first `sizes` (B,) entries."""
    wide, place = randomness.uniform(seeds, stream, 2).unbind(1)
    width = wide * (sizes // 2).clamp(max=widest)
    first = (place * (sizes - width)).long()
    step = torch.arange(length, device=seeds.device)
    return (step >= first[:, None]) & (step < (first + width.long())[:, None])
