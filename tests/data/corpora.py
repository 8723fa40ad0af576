"""Corpora without files, for tests of plans and loaders. Worker processes import this, so it is quick to import."""

from __future__ import annotations

import os
import signal

import numpy as np

from ssamba.data.corpus import Corpus, CorpusClip


class NoiseCorpus(Corpus):
    """Clips of given lengths, each of its own constant value, without files."""

    def __init__(self, seconds, name="noise", shards=None, rate_hz=16_000, broken=()):
        self.name, self.sample_rate_hz = name, rate_hz
        self.seconds = np.asarray(seconds, np.float64)
        self.shards = None if shards is None else np.asarray(shards, np.int64)
        self.broken = frozenset(broken)

    def key(self, i):
        return f"{self.name}-{i}"

    def clip(self, i):
        return CorpusClip(self.key(i), float(self.seconds[i]), (f"class {i % 3}",))

    def read(self, i, start_s=0.0, seconds=None):
        if i in self.broken:
            raise ValueError(f"{self.key(i)}: broken on purpose")
        length = round(self.seconds[i] * self.sample_rate_hz)
        ramp = (np.arange(length, dtype=np.float32) / length + i).astype(np.float32)
        first = round(start_s * self.sample_rate_hz)
        return ramp[first : None if seconds is None else round((start_s + seconds) * self.sample_rate_hz)]


class CrashingCorpus(NoiseCorpus):
    """Reading one of its clips in another process ends that process, as a fault in a codec does."""

    def __init__(self, *args, signal_number=signal.SIGABRT, **options):
        super().__init__(*args, **options)
        self.owner, self.signal_number = os.getpid(), signal_number

    def read(self, i, start_s=0.0, seconds=None):
        if i == 7 and os.getpid() != self.owner:
            os.kill(os.getpid(), self.signal_number)
        return super().read(i, start_s, seconds)
