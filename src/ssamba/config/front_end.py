"""The front end: from waveforms to normalized log-mel features."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from ssamba.config.base import Config
from ssamba.errors import ConfigError

_EXPANSION = "x[0-9]{1,2}"


class FrontEndConfig(Config):
    """Computation of normalized log-mel features from waveforms; the default is the official SSAMBA front end."""

    sample_rate_hz: int = Field(16_000, gt=0)
    """Sample rate to which recordings are resampled."""
    num_mel_bins: int = Field(128, gt=0)
    """Number of mel bins M."""
    low_hz: float = Field(20.0, ge=0)
    """Lower edge of the first mel bin."""
    high_hz: float | None = Field(None, gt=0)
    """Upper edge of the last mel bin; None means half the sample rate."""
    frame_ms: float = Field(25.0, gt=0)
    """Length of an analysis frame."""
    shift_ms: float = Field(10.0, gt=0)
    """Distance between the starts of neighboring frames."""
    mean: float = -4.2677393
    """Mean of the log-mel values over the training corpus; the default is AudioSet's."""
    std: float = Field(4.5689974, gt=0)
    """Standard deviation of the log-mel values; features are (x - mean) / (2 std)."""
    time_expansion: float = Field(1.0, gt=0, json_schema_extra={"since": 2})
    """Factor by which the mel scale is stretched. With frames shorter by the same factor, the features are those of the
    recording played that many times slower, as bat detectors do; rates, frequencies and times stay the recording's."""

    def named(self, name: str) -> FrontEndConfig:
        """Return this front end with the band of a name; mel bins and normalization stay.

        Every one makes as many frames of a (slowed) second as the default front end, and a patch covers as many.

        Args:
            name: `16khz`; `48khz`, the full band of 48 kHz recordings; or `xN`, time expansion by N: the features of
                the recording played N times slower, from N times 16 kHz. `x10` reaches 80 kHz.

        Raises:
            ConfigError: there is no such front end.
        """
        factor = int(name[1:]) if re.fullmatch(_EXPANSION, name) else {"16khz": 1, "48khz": 1}.get(name, 0)
        if not factor:
            raise ConfigError(
                "front_end: expected a FrontEndConfig or a name: 16khz, 48khz (the full band, to 24 kHz), or x10 (time "
                f"expansion by 10, to 80 kHz, for bats; or another factor up to 99); got {name!r}"
            )
        return self.with_changes(
            sample_rate_hz=48_000 if name == "48khz" else 16_000 * factor,
            low_hz=20.0 * factor,
            high_hz=None,
            frame_ms=25 / factor,
            shift_ms=10 / factor,
            time_expansion=factor,
        )

    @property
    def name(self) -> str:
        """The name by which `named` finds it, such as `48khz` or `x10`; of others the band, such as `50-8000 Hz`."""
        factor = f"x{self.time_expansion:g}"
        for name in ("16khz", "48khz", *([factor] if re.fullmatch(_EXPANSION, factor) else [])):
            if self.named(name) == self:
                return name
        return f"{self.low_hz:g}-{self.highest_hz:g} Hz"

    @property
    def highest_hz(self) -> float:
        """Upper edge of the last mel bin: above it nothing is heard."""
        return self.high_hz or self.sample_rate_hz / 2

    @property
    def summary(self) -> str:
        """One-line description: rate, bins, band, frames, time expansion and normalization."""
        high_hz = self.highest_hz
        slowed = f", time expansion {self.time_expansion:g}" if self.time_expansion != 1 else ""
        return (
            f"{self.sample_rate_hz} Hz, {self.num_mel_bins} mel bins from {self.low_hz:g} to {high_hz:g} Hz, frames of "
            f"{self.frame_ms:g} ms every {self.shift_ms:g} ms{slowed}, mean {self.mean:g}, standard deviation "
            f"{self.std:g}"
        )

    @model_validator(mode="after")
    def _check(self) -> FrontEndConfig:
        nyquist = self.sample_rate_hz / 2
        high = nyquist if self.high_hz is None else self.high_hz
        if not self.low_hz < high <= nyquist:
            raise ValueError(
                f"the band must satisfy low_hz < high_hz <= {nyquist:g} Hz (half the sample rate), "
                f"got {self.low_hz:g} to {high:g} Hz"
            )
        if self.shift_samples < 1 or self.frame_samples < 2:
            raise ValueError(f"a frame of {self.frame_ms} ms every {self.shift_ms} ms is below one sample")
        return self

    # Kaldi and torchaudio truncate to whole samples in this order of operations.
    @property
    def frame_samples(self) -> int:
        """Length of a frame in samples."""
        return int(self.sample_rate_hz * self.frame_ms * 0.001)

    @property
    def shift_samples(self) -> int:
        """Distance between the starts of neighboring frames in samples."""
        return int(self.sample_rate_hz * self.shift_ms * 0.001)

    def num_frames(self, samples: int) -> int:
        """Return the number of whole frames in `samples` samples."""
        return 0 if samples < self.frame_samples else 1 + (samples - self.frame_samples) // self.shift_samples

    @property
    def frames_per_second(self) -> int:
        """Frame rate in Hz, rounded."""
        return round(self.sample_rate_hz / self.shift_samples)

    @property
    def silent_feature(self) -> float:
        """Normalized value of a log-mel value of zero, with which the original pads."""
        return (0.0 - self.mean) / (2 * self.std)
