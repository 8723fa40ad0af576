"""Changes of a log-mel spectrogram that leave what is heard recognizable: other levels, colors, bands and voices.

All of it works on log-mel features before normalization, for a whole batch at once on any device, and draws every
number from the clip's own seed (`ssamba.randomness`), so a clip is changed alike in every batch. A band limit is a slope
outside the band. (Backgrounds are mixed in as waveforms, where clips are read: `ssamba.data`.)

Shapes: B batch, T frames, M mel bins.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ssamba import randomness as draws
from ssamba.audio.voice import change_voice
from ssamba.config import Config, FrontEndConfig

_DB = 0.2302585  # one decibel of power in natural logarithm
_COSINES = 5  # of a random equaliser
_FLOOR_TILT_DB = 10.0  # most that a noise floor rises or falls over all bins, to either side of its middle
_SILENCE = -15.9424  # log of float32's epsilon, the least value that fbank returns


class Augmentation(Config):
    """How strongly training changes what it hears; the default changes nothing."""

    gain_db: float = Field(0.0, ge=0)
    """Level change, uniform between minus this and this."""
    tilt_db: float = Field(0.0, ge=0)
    """Tilt of the spectrum: change at its ends, of opposite sign."""
    equaliser_db: float = Field(0.0, ge=0)
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
        levels = (self.gain_db, self.tilt_db, self.equaliser_db, self.band_share)
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
    change = draws.symmetric(seeds, "augment.gain", 1) * (settings.gain_db * _DB)
    change = change + draws.symmetric(seeds, "augment.tilt", 1) * (settings.tilt_db * _DB) * bins
    change = change + _equaliser(seeds, settings.equaliser_db * _DB, features.shape[2])
    change = change + _band(seeds, settings, features.shape[2])
    out = (out + change[:, None].to(out.dtype)).clamp(min=_SILENCE)
    if settings.floor_share:
        out = _with_floor(out, seeds, settings, valid)
    if settings.noise:
        level = draws.uniform(seeds, "augment.noise.level", 1)[:, 0] * settings.noise
        noise = draws.normal(seeds, "augment.noise", out.shape[1] * out.shape[2]).view_as(out)
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
    source = torch.arange(bins, device=seeds.device) + draws.integers(seeds, "augment.shift", -most, most)[:, None]
    return features.gather(2, source.clamp(0, bins - 1)[:, None].expand_as(features))


def _equaliser(seeds: Tensor, width: float, bins: int) -> Tensor:
    """(B, M): a sum of cosines of half a period over all bins to five halves, their weights within `width`."""
    weights = draws.symmetric(seeds, "augment.equaliser", _COSINES) * width
    waves = torch.arange(1, _COSINES + 1, device=seeds.device)[:, None] * (
        torch.arange(bins, device=seeds.device) + 0.5
    )
    return weights @ torch.cos(torch.pi / bins * waves)


def _band(seeds: Tensor, settings: Augmentation, bins: int) -> Tensor:
    """(B, M): attenuation outside a band, 1.3 dB per bin."""
    chosen, low, high = draws.uniform(seeds, "augment.band", 3).unbind(1)
    low = low * settings.band_low * bins
    high = bins * (1 - high * (1 - settings.band_high))
    step = torch.arange(bins, device=seeds.device)
    slope = -0.3 * ((low[:, None] - step).clamp(min=0) + (step - high[:, None]).clamp(min=0))
    return torch.where((chosen < settings.band_share)[:, None], slope, 0)


def _with_floor(x: Tensor, seeds: Tensor, settings: Augmentation, valid: Tensor) -> Tensor:
    """Some clips with steady noise added in power: a straight line over the bins, each value scattered as the power of
    noise is in an analysis frame (exponentially, as in one bin of a Fourier transform)."""
    chosen, level, tilt = draws.uniform(seeds, "augment.floor", 3).unbind(1)
    low, high = settings.floor_db
    loudest = torch.where(valid[..., None], x, _SILENCE).amax((1, 2))
    middle = loudest - (low + level * (high - low)) * _DB
    bins = torch.linspace(-1, 1, x.shape[2], device=x.device)
    line = middle[:, None] + ((2 * tilt - 1) * _FLOOR_TILT_DB * _DB)[:, None] * bins
    power = -torch.log1p(-draws.uniform(seeds, "augment.floor.noise", x.shape[1] * x.shape[2])).view_as(x)
    noisy = torch.logaddexp(x, line[:, None] + power.clamp(min=1e-6).log())
    return torch.where((chosen < settings.floor_share)[:, None, None], noisy, x)
