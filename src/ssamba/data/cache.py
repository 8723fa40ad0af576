"""Decode a corpus once and hold it in memory, with 16 bits a sample: 115 MB for an hour at 16 kHz."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ssamba.audio.files import Skipped
from ssamba.data.corpus import Corpus, CorpusClip, Samples, past_the_end, read_or_error
from ssamba.errors import DataError, WorkerDiedError
from ssamba.worker_pool import map_in_processes

_FULL_SCALE = 32767.0
_LIMIT_GB = 8.0

Pcm: TypeAlias = "npt.NDArray[np.int16]"


class CachedCorpus(Corpus):
    """Another corpus, decoded into memory.

    Samples are rounded to 16 bits and clipped to [-1, 1]. Clips that cannot be decoded are left out and listed in
    `skipped`.
    """

    in_memory = True

    def __init__(
        self,
        corpus: Corpus,
        limit_gb: float = _LIMIT_GB,
        workers: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Decode all of `corpus`.

        Args:
            corpus: what to decode.
            limit_gb: the most memory it may take, in 10^9 bytes.
            workers: processes that decode; 0 decodes in this process.
            on_progress: called after each clip with the number of finished clips and of all clips.

        Raises:
            DataError: the corpus exceeds the limit, or no clip can be decoded.
        """
        rate_hz = corpus.sample_rate_hz
        room = np.ceil(corpus.seconds * rate_hz).astype(np.int64) + 1  # durations in headers are rounded
        if 2 * room.sum() > limit_gb * 1e9:
            raise DataError(
                f"{corpus.name}: {corpus.hours:.1f} h at {rate_hz} Hz take {2e-9 * room.sum():.1f} GB of memory, and "
                f"{limit_gb:g} GB are allowed: raise the limit, or read the corpus from disk, without the cache"
            )
        self.name, self.sample_rate_hz = corpus.name, rate_hz
        self._pcm = np.empty(int(room.sum()), np.int16)
        clips: list[CorpusClip] = []
        skipped = list(corpus.skipped)
        ends = [0]
        for i, pcm in map_in_processes(partial(_decode, corpus), range(len(corpus)), workers):
            if isinstance(pcm, WorkerDiedError):
                skipped.append(Skipped(corpus.key(i), f"{corpus.key(i)}: {pcm}"))
            elif isinstance(pcm, Exception):
                skipped.append(Skipped(corpus.key(i), str(pcm)))
            else:
                pcm = pcm[: room[i]]
                self._pcm[ends[-1] : ends[-1] + len(pcm)] = pcm
                ends.append(ends[-1] + len(pcm))
                clips.append(corpus.clip(i))
            if on_progress is not None:
                on_progress(i + 1, len(corpus))
        if not clips:
            raise DataError(f"{corpus.name}: no clip can be decoded. {skipped[0].reason if skipped else 'It is empty'}")
        self._ends, self._clips, self.skipped = np.array(ends, np.int64), clips, tuple(skipped)
        self.seconds = np.diff(self._ends) / rate_hz

    def key(self, i: int) -> str:
        """Return the key of clip `i`, the same as in the other corpus."""
        return self._clips[i].key

    def clip(self, i: int) -> CorpusClip:
        """Return the metadata of clip `i`."""
        return self._clips[i]

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """Read a part of clip `i`; see `Corpus.read`."""
        first, end = int(self._ends[i]), int(self._ends[i + 1])
        start = round(start_s * self.sample_rate_hz)
        stop = end - first if seconds is None else round((start_s + seconds) * self.sample_rate_hz)
        if start >= end - first:
            raise past_the_end(self.key(i), start_s, float(self.seconds[i]))
        pcm = self._pcm[first + start : min(end, first + max(stop, start + 1))]
        samples: Samples = pcm.astype(np.float32) / np.float32(_FULL_SCALE)
        return samples


def _decode(corpus: Corpus, i: int) -> Pcm | Exception:
    samples = read_or_error(corpus, i)
    if isinstance(samples, Exception):
        return samples
    return np.round(np.clip(samples, -1.0, 1.0) * _FULL_SCALE).astype(np.int16)
