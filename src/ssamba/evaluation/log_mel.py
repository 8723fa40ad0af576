"""Log-mel statistics: what a model must beat. Mean and deviation of 64 log-mel bands, and of their change, over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ssamba.audio.fbank import mel_matrix
from ssamba.config import FrontEndConfig
from ssamba.evaluation.vectors import TimestampEmbeddings
from ssamba.hashing import digest_of_json
from ssamba.metrics.classification import Array

_FFT = 512
_HOP = 160
_FLOOR = 1e-10
_MOMENT_HOP, _MOMENT_FRAMES = 5, 20  # frames of 10 ms
# Frames of 32 ms, so that the Fourier transform is as long as the frame.
_BANDS = FrontEndConfig(num_mel_bins=64, low_hz=0.0, frame_ms=32.0)


class LogMelStatistics:
    """64 bands (FFT 512, hop 160 at 16 kHz) of each clip: means, deviations, deviations of differences: 192 numbers."""

    name = "log-mel statistics"
    sample_rate_hz = 16_000

    def digest(self) -> str:
        """Changes with the definition."""
        return digest_of_json([self.name, _FFT, _HOP, _FLOOR, _BANDS.digest(), 1])

    def vectors(self, waves: Sequence[Array], on_progress: Callable[[int], None] | None = None) -> dict[str, Array]:
        """{"final.mean": (N, 192)}."""
        rows = []
        for done, wave in enumerate(waves, 1):
            rows.append(_statistics(torch.from_numpy(np.asarray(wave, dtype=np.float32))))
            if on_progress is not None and (done % 64 == 0 or done == len(waves)):
                on_progress(done)
        return {"final.mean": torch.stack(rows).numpy()}

    def timestamp_embeddings(
        self, waves: Sequence[Array], on_progress: Callable[[int], None] | None = None
    ) -> TimestampEmbeddings:
        """The same statistics of 0.2 s around a moment every 0.05 s."""
        rows, times = [], []
        for done, wave in enumerate(waves, 1):
            bands = _log_bands(torch.from_numpy(np.asarray(wave, dtype=np.float32)))
            count = -(-len(bands) // _MOMENT_HOP)
            before = (_MOMENT_FRAMES - _MOMENT_HOP) // 2
            after = (count - 1) * _MOMENT_HOP + _MOMENT_FRAMES - before - len(bands)
            around = torch.cat((bands[:1].expand(before, -1), bands, bands[-1:].expand(max(0, after), -1)))
            parts = around.unfold(0, _MOMENT_FRAMES, _MOMENT_HOP)[:count]
            mean, spread = parts.mean(2), parts.std(2, unbiased=False)
            rows.append(torch.cat((mean, spread, parts.diff(dim=2).std(2, unbiased=False)), dim=1))
            centres_s = (np.arange(count) * _MOMENT_HOP + (_MOMENT_HOP - 1) / 2) * _HOP / self.sample_rate_hz
            times.append(np.minimum(centres_s, len(wave) / self.sample_rate_hz))
            if on_progress is not None and (done % 64 == 0 or done == len(waves)):
                on_progress(done)
        counts = np.array([len(row) for row in rows])
        return TimestampEmbeddings(
            {"final.mean": torch.cat(rows).numpy()}, counts, np.concatenate(times).astype(np.float32)
        )


def _log_bands(wave: torch.Tensor) -> torch.Tensor:
    """(T, 64), frames centered every 10 ms."""
    wave = F.pad(wave, (0, max(0, _FFT - len(wave))))
    window = torch.hann_window(_FFT)
    magnitude = torch.stft(wave, _FFT, _HOP, window=window, return_complex=True).abs()
    return (magnitude.T @ mel_matrix(_BANDS)).clamp(min=_FLOOR).log()


def _statistics(wave: torch.Tensor) -> torch.Tensor:
    bands = _log_bands(wave)
    change = bands.diff(dim=0)
    if len(change) == 0:
        change = torch.zeros_like(bands)
    return torch.cat((bands.mean(0), bands.std(0, unbiased=False), change.std(0, unbiased=False)))
