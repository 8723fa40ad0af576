"""Recognize recordings that another suite uses, in whatever codec they come.

A clip is compared in two ways with the clips of the excluded suites: by a digest of its decoded samples, and by a
fingerprint: log energies in `BANDS` mel bands and `SLOTS` equal time slots, centered and scaled to unit length. Clips
whose durations differ by less than `LENGTH_S` and whose fingerprints correlate by `CORRELATION` or more are the same
recording. Measured on cuts of the demo's recordings, 24 against 48 kbit/s: the same one correlates by .986 and more.
Two cuts of one sustained sound may correlate as much, and then count as the same.

Shapes: N known clips, S samples, F = BANDS * SLOTS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.open_suite.build import Source
from benchmarks.open_suite.synthesis import RATE_HZ
from ssamba.audio.decode import AudioBytes, decode
from ssamba.audio.fbank import fbank
from ssamba.audio.readers import Samples
from ssamba.config import FrontEndConfig
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.suite import read_suite
from ssamba.hashing import hash_bytes
from ssamba.metrics.classification import Array

BANDS, SLOTS = 32, 24
LENGTH_S = 0.05
CORRELATION = 0.985
_RANGE = 7.0
"""Energies this much (natural logarithm of power: 30 dB) below the loudest are as silent as codecs leave them."""
_FRONT_END = FrontEndConfig(num_mel_bins=BANDS, high_hz=6_000.0)


def fingerprint(samples: Samples) -> Array:
    """Return the fingerprint (F,) of samples (S,) at 16 kHz, S at least `SLOTS` frames; zero for silence."""
    peak = np.abs(samples).max()
    if not peak:
        return np.zeros(BANDS * SLOTS, dtype=np.float32)
    energies = fbank(torch.from_numpy(samples / peak), config=_FRONT_END).numpy()
    energies = np.maximum(energies, energies.max() - _RANGE)
    edges = np.linspace(0, len(energies), SLOTS + 1).astype(int)
    slots = np.stack([energies[start:end].mean(0) for start, end in pairwise(edges)])
    centered = (slots - slots.mean()).reshape(-1)
    length = np.linalg.norm(centered)
    scaled: Array = (centered / length if length else centered).astype(np.float32)
    return scaled


def _digest(samples: Samples) -> bytes:
    """Return a digest of samples (S,) relative to their peak, as decoded clips of a suite are kept."""
    peak = np.abs(samples).max()
    return hash_bytes(np.rint(samples * (32767 / peak if peak else 0.0)).astype(np.int16).tobytes())


@dataclass(frozen=True)
class Signature:
    """What a recording is recognized by."""

    length: int
    """Samples, S."""
    fingerprint: Array
    """(F,)."""
    digest: bytes

    @classmethod
    def of(cls, samples: Samples) -> Signature:
        """Return the signature of samples (S,) at 16 kHz."""
        return cls(len(samples), fingerprint(samples), _digest(samples))


@dataclass
class KnownClips:
    """The clips of excluded suites, and what was found of them."""

    names: Sequence[str] = ()
    """SUITE/CLIP of each, (N,)."""
    lengths: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Samples of each, (N,)."""
    fingerprints: Array = field(default_factory=lambda: np.zeros((0, BANDS * SLOTS), dtype=np.float32))
    """(N, F)."""
    digests: frozenset[bytes] = frozenset()
    matches: int = 0
    """Clips that were refused because an excluded suite has them."""
    repeats: int = 0
    """Clips that were refused because the task has them already."""
    _seen: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def read(cls, suites: Iterable[Path]) -> KnownClips:
        """Read every clip of every task of the suites.

        Raises:
            SuiteError: a folder is no suite. AudioDecodeError: a clip cannot be read.
        """
        names, lengths, prints, digests = [], [], [], set()
        for folder in suites:
            for task in read_suite(folder):
                for clip, samples in zip(task.clips, read_waves(task), strict=True):
                    signature = Signature.of(samples)
                    names.append(f"{folder.name}/{clip}")
                    lengths.append(signature.length)
                    prints.append(signature.fingerprint)
                    digests.add(signature.digest)
        if not names:
            return cls()
        return cls(names, np.array(lengths), np.stack(prints), frozenset(digests))

    def find(self, signature: Signature, correlation: float = CORRELATION) -> tuple[str, float] | None:
        """Return the name of the known clip with this signature, and their correlation; None if it is new.

        Args:
            signature: of a recording.
            correlation: fingerprints that correlate so much or more are the same recording's.
        """
        near = np.flatnonzero(np.abs(self.lengths - signature.length) <= LENGTH_S * RATE_HZ)
        if not len(near):
            return None
        correlations = self.fingerprints[near] @ signature.fingerprint
        best = int(correlations.argmax())
        if signature.digest not in self.digests and correlations[best] < correlation:
            return None
        return self.names[near[best]], float(correlations[best])

    def refuse(self, task: str, source: Source, digest: str, opus: bytes) -> str | None:
        """Return why a clip is refused, for `build_suite`; None keeps it."""
        first = self._seen.setdefault((task, digest), source.name)
        if first != source.name:
            self.repeats += 1
            return f"is the same recording as {first}"
        found = self.find(Signature.of(decode(AudioBytes(source.name, opus), sample_rate_hz=RATE_HZ)))
        if found is None:
            return None
        self.matches += 1
        return f"is {found[0]} of an excluded suite (correlation {found[1]:.3f})"
