"""Measure how much of a recording lies above the band that a model hears, before resampling removes it.

Energy alone does not tell: the noise of a microphone at 250 kHz lies above 8 kHz to 94 %, and the wind below 500 Hz is
louder than any bat. So what counts is the energy above 500 Hz that stands out of the noise, weighted over frequency as
the front end weights it (pre-emphasis). Noise is estimated for each block and frequency: the lower quartile over time,
smoothed over frequency. Noise of -45 dBFS counts as sound.

The threshold was chosen on recordings of several rates: `python -m benchmarks.above_band`. Of a cymbal .8 lies above
8 kHz, and a model recognizes the rest; a bat leaves nothing.

Shapes: S samples, T frames, F frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ssamba.audio.files import Remark

Samples: TypeAlias = "npt.NDArray[np.float32]"
OnAboveBand: TypeAlias = Callable[[Remark], None]
"""Called with the remark about a recording that holds much above the band."""

ABOVE_BAND = "above band"
"""Verdict of such remarks."""
MUCH = 0.9
"""Share of what stands out above the band from which on there is a remark."""
_FRAME = 512
_LOW_HZ = 500.0  # wind and handling noise lie below
_PREEMPHASIS = 0.97
_STAND_OUT = 48.0  # times the lower quartile of noise, 11.4 dB above its mean: 1 of 10^6 values of noise
_MEAN_OF_QUARTILE = 3.48  # mean of the power of Gaussian noise, as a multiple of its lower quartile
_QUIET_DBFS = -75.0  # white noise of this level never stands out
_LOUD_DBFS = -45.0  # white noise of this level is a sound
_LEAST = 0.01  # of the energy above the band has to stand out

_MAX_FRAMES = 128  # that are measured of a block
_BLOCK = 1 << 17
_WHOLE_BLOCKS = 32
_LATER_BLOCKS = 8

_WINDOW = np.hanning(_FRAME).astype(np.float32)
_listener: ContextVar[OnAboveBand | None] = ContextVar("above_band", default=None)


class BandMeter:
    """Share of a recording's sound that lies above a band."""

    def __init__(self, rate_hz: int, band_hz: float) -> None:
        """Prepare for a recording.

        Args:
            rate_hz: its sample rate.
            band_hz: upper edge of the band.
        """
        hertz = np.arange(_FRAME // 2 + 1) * (rate_hz / _FRAME)
        self._is_above, self._is_inside = hertz > band_hz, (hertz >= _LOW_HZ) & (hertz <= band_hz)
        cosine = np.cos(np.pi * np.minimum(hertz / band_hz, 1))
        self._weight = (1 + _PREEMPHASIS**2 - 2 * _PREEMPHASIS * cosine).astype(np.float32)
        self._inside = self._above = self._noise_above = 0.0
        self._num_blocks = 0

    def add(self, samples: Samples) -> None:
        """Measure a block (S,) of mono samples at the recording's own rate; blocks of less than 512 add nothing.

        Of long blocks 128 frames are measured, and of long recordings every eighth block.
        """
        count = len(samples) // _FRAME
        self._num_blocks += 1
        if not count or (self._num_blocks > _WHOLE_BLOCKS and self._num_blocks % _LATER_BLOCKS):
            return
        frames = samples[: count * _FRAME].reshape(count, _FRAME)[:: -(-count // _MAX_FRAMES)]
        count = len(frames)
        spectra = np.fft.rfft(frames * _WINDOW)
        power = spectra.real**2 + spectra.imag**2
        level = float(np.square(_WINDOW).sum())  # power of white noise of variance 1
        quartile = np.partition(power, (count - 1) // 4, axis=0)[(count - 1) // 4]
        side = len(quartile) // 16
        around = np.lib.stride_tricks.sliding_window_view(np.pad(quartile, side, mode="reflect"), 2 * side + 1)
        noise = np.median(around, axis=1)
        threshold = np.maximum(_STAND_OUT * noise, level * 10 ** (_QUIET_DBFS / 10))
        threshold[noise * _MEAN_OF_QUARTILE > level * 10 ** (_LOUD_DBFS / 10)] = 0
        by_frequency = np.where(power > threshold, power, 0).sum(0) * self._weight
        self._above += float(by_frequency[self._is_above].sum())
        self._inside += float(by_frequency[self._is_inside].sum())
        self._noise_above += float((power.sum(0) * self._weight)[self._is_above].sum())

    def add_all(self, samples: Samples) -> None:
        """Measure a whole recording (S,) block by block."""
        for start in range(0, len(samples), _BLOCK):
            self.add(samples[start : start + _BLOCK])

    @property
    def share(self) -> float:
        """Share of the sound above the band, 0 to 1."""
        if self._above <= _LEAST * self._noise_above:
            return 0.0
        return self._above / (self._above + self._inside)


def band_meter(rate_hz: int, band_hz: float, listener: OnAboveBand | None) -> BandMeter | None:
    """Return a meter if somebody listens and the recording can hold anything above the band."""
    return BandMeter(rate_hz, band_hz) if listener is not None and rate_hz > 2 * band_hz else None


def tell(meter: BandMeter | None, listener: OnAboveBand | None, name: str, rate_hz: int, band_hz: float) -> None:
    """Call the listener if the recording that was measured holds much above the band."""
    if meter is not None and listener is not None and meter.share >= MUCH:
        text = f"{name}: {meter.share:.0%} of its sound lies above {band_hz:,g} Hz (it was recorded at {rate_hz:,} Hz)"
        listener(Remark(name, ABOVE_BAND, text))


def listener() -> OnAboveBand | None:
    """Return what is called in this context about recordings with much above the band."""
    return _listener.get()


@contextmanager
def collect_above_band() -> Iterator[list[Remark]]:
    """Measure everything that is decoded in this context to its end, and collect the remarks.

    Yields:
        The list that decoding adds to.
    """
    remarks: list[Remark] = []
    token = _listener.set(remarks.append)
    try:
        yield remarks
    finally:
        _listener.reset(token)


def above_band_text(remarks: Sequence[Remark], how: str, total: int | None = None, more: str = "") -> str:
    """Return the one warning of a job about recordings with much above the band, with the remedy.

    Args:
        remarks: of these recordings, one at least.
        how: what chooses a front end.
        total: number of recordings that were looked at.
        more: what else is to be said.
    """
    of = "" if total is None else f" of {total}"
    many = f"{len(remarks)}{of} recordings, such as " if len(remarks) > 1 else ""
    return (
        f"{many}{remarks[0].reason}, where this model hears nothing. Choose a front end that reaches higher ({how}): "
        f"48khz reaches 24 kHz, and xN (time expansion by N, such as x10 for bats) reaches N times 8 kHz{more}"
    )
