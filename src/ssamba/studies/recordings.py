"""Concatenate recordings to any duration: hours of audio from any folder of clips.

Every recording is scaled to the same level (root mean square) and fades in and out over a few milliseconds, so that no
join clicks. All recordings come once in random order, then all again in another order.

Shapes: S samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssamba.audio.decode import decode
from ssamba.audio.files import Skipped
from ssamba.errors import DataError

Samples = npt.NDArray[np.float32]

LEVEL = 0.05
"""Root mean square of every recording: -26 dB of full scale."""
_SILENT = 1e-5
_FADE_S = 0.005
_CACHED_RECORDINGS = 64  # for folders so small that recordings repeat


class RecordingPool:
    """Recordings to concatenate.

    Attributes:
        files: the recordings.
        skipped: those that could not be used so far, and why.
    """

    def __init__(self, files: Sequence[Path], sample_rate_hz: int):
        """Args: at least one file, and the rate to decode to."""
        self.files, self.sample_rate_hz = list(files), sample_rate_hz
        self.skipped: list[Skipped] = []
        self._unusable: set[Path] = set()
        self._load = lru_cache(_CACHED_RECORDINGS)(
            lambda path: normalize_level(decode(path, sample_rate_hz=sample_rate_hz))
        )

    def concatenate(self, num_samples: int, rng: np.random.Generator) -> Samples:
        """Return recordings in random order, cut to `num_samples`: float32 (S,).

        Raises:
            DataError: none of the recordings can be used.
        """
        wave = np.zeros(num_samples, np.float32)
        filled = 0
        for recording in self._recordings(rng):
            recording = recording[: num_samples - filled]
            wave[filled : filled + len(recording)] = fade_ends(recording, self.sample_rate_hz)
            filled += len(recording)
            if filled == num_samples:
                break
        return wave

    def _recordings(self, rng: np.random.Generator) -> Iterator[Samples]:
        while len(self._unusable) < len(self.files):
            for path in [self.files[i] for i in rng.permutation(len(self.files))]:
                if path in self._unusable:
                    continue
                try:
                    yield self._load(path)
                except (ValueError, OSError) as error:
                    self._unusable.add(path)
                    self.skipped.append(skipped_recording(path, error))
        reasons = "; ".join(entry.reason for entry in self.skipped[:3])
        raise DataError(f"none of {len(self.files)} recordings can be used: {reasons}")


def skipped_recording(path: Path, error: Exception) -> Skipped:
    """Return an entry with the file's name only: reports are published, and folders are private."""
    reason = str(error).replace(str(path), path.name)
    return Skipped(path.name, reason if path.name in reason else f"{path.name}: {reason}")


def require_files(files: Sequence[Path]) -> None:
    """Raise DataError if a file does not exist: a wrong path is an error, a damaged recording is only skipped."""
    for path in files:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder: expected recordings, folders of them or patterns")


def normalize_level(samples: Samples) -> Samples:
    """Scale samples (S,) to `LEVEL`.

    Raises:
        ValueError: they are silent.
    """
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    if not level > _SILENT:
        raise ValueError("the recording is silent: a level cannot be given to it")
    return np.asarray(samples * np.float32(LEVEL / level), np.float32)


def fade_ends(samples: Samples, sample_rate_hz: int) -> Samples:
    """Return a copy (S,) that fades in from zero and out to zero."""
    length = min(round(_FADE_S * sample_rate_hz), len(samples) // 2)
    ramp = (np.arange(length, dtype=np.float32) + 0.5) / max(1, length)
    out: Samples = samples.copy()
    out[:length] *= ramp
    out[len(out) - length :] *= ramp[::-1]
    return out


def loudest_segment(samples: Samples, length: int) -> Samples:
    """Return the `length` consecutive samples with the most energy, or all of (S,) if S is smaller."""
    if len(samples) <= length:
        return samples
    energy = np.concatenate(([0.0], np.cumsum(np.square(samples, dtype=np.float64))))
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return samples[start : start + length]
