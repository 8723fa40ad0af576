"""Recordings joined end to end until they are as long as wanted: hours of audio from any folder of clips.

Every recording is brought to one level (root mean square), so that none drowns another, and fades in and out over a few
milliseconds, so that no click marks a join. All recordings come once in random order, then all again in another.

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
_KEPT = 64  # decoded recordings, for folders so small that they come around again


class Material:
    """Recordings to join.

    Attributes:
        files: the recordings.
        skipped: those that could not be used so far, and why.
    """

    def __init__(self, files: Sequence[Path], sample_rate_hz: int):
        """Args: the files, at least one; and the rate to decode them at."""
        self.files, self.sample_rate_hz = list(files), sample_rate_hz
        self.skipped: list[Skipped] = []
        self._unusable: set[Path] = set()
        self._levelled = lru_cache(_KEPT)(lambda path: levelled(decode(path, sample_rate_hz=sample_rate_hz)))

    def joined(self, samples: int, random: np.random.Generator) -> Samples:
        """So many samples of recordings in a random order, float32 (S,).

        Raises:
            DataError: none of the recordings can be used.
        """
        wave = np.zeros(samples, np.float32)
        filled = 0
        for piece in self._pieces(random):
            piece = piece[: samples - filled]
            wave[filled : filled + len(piece)] = faded(piece, self.sample_rate_hz)
            filled += len(piece)
            if filled == samples:
                break
        return wave

    def _pieces(self, random: np.random.Generator) -> Iterator[Samples]:
        while len(self._unusable) < len(self.files):
            for path in [self.files[i] for i in random.permutation(len(self.files))]:
                if path in self._unusable:
                    continue
                try:
                    yield self._levelled(path)
                except (ValueError, OSError) as error:
                    self._unusable.add(path)
                    self.skipped.append(skipped(path, error))
        reasons = "; ".join(entry.reason for entry in self.skipped[:3])
        raise DataError(f"none of {len(self.files)} recordings can be used: {reasons}")


def skipped(path: Path, error: Exception) -> Skipped:
    """A recording that was left out, by its name alone: reports are made to be shown, folders are nobody's business."""
    reason = str(error).replace(str(path), path.name)
    return Skipped(path.name, reason if path.name in reason else f"{path.name}: {reason}")


def check_there(files: Sequence[Path]) -> None:
    """DataError if a file does not exist: a wrong path is a mistake, other than a broken recording among many."""
    for path in files:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder: expected recordings, folders of them or patterns")


def levelled(samples: Samples) -> Samples:
    """The same sound at `LEVEL`, (S,) -> (S,).

    Raises:
        ValueError: it is silent.
    """
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    if not level > _SILENT:
        raise ValueError("the recording is silent: a level cannot be given to it")
    return np.asarray(samples * np.float32(LEVEL / level), np.float32)


def faded(samples: Samples, sample_rate_hz: int) -> Samples:
    """A copy that starts and ends at zero, (S,) -> (S,)."""
    length = min(round(_FADE_S * sample_rate_hz), len(samples) // 2)
    ramp = (np.arange(length, dtype=np.float32) + 0.5) / max(1, length)
    out: Samples = samples.copy()
    out[:length] *= ramp
    out[len(out) - length :] *= ramp[::-1]
    return out


def loudest(samples: Samples, length: int) -> Samples:
    """The stretch of so many samples with the most energy, or everything if there are no more: (S,) -> (length,)."""
    if len(samples) <= length:
        return samples
    energy = np.concatenate(([0.0], np.cumsum(np.square(samples, dtype=np.float64))))
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return samples[start : start + length]
