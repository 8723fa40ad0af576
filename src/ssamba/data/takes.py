"""Take second views from another clip with the same labels: the same word by another voice, say.

Which clip it is depends on the seed of the first clip's crop alone, so it is the same for any number of workers and
ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ssamba.data.corpus import Corpus, Samples, read_or_error
from ssamba.data.plan import Crop, Hashes, Ints
from ssamba.errors import DataError
from ssamba.hashing import hash_names

SEED_BITS = 0x74616B65
"""Difference between the seed of a clip's crop and that of its other take, which gets a background of its own."""


class OtherTakes:
    """The clips that have others with the same labels in their corpus."""

    def __init__(self, corpora: Sequence[Corpus], share: float, longest_s: float, shortest_s: float):
        """Sort the clips by their labels.

        Args:
            corpora: as the plan numbers them.
            share: of the clips with labels that get another take.
            longest_s: longest part that is taken of it.
            shortest_s: shorter clips are no takes.

        Raises:
            DataError: no clip has the labels of another one.
        """
        self.share, self.longest_s, self.shortest_s = share, longest_s, shortest_s
        self._tables = [_Table.of(corpus, shortest_s) for corpus in corpora]
        if not any(table.has_others() for table in self._tables):
            raise DataError(
                "no clip has the labels of another clip of its corpus, so no second view can be taken from one: give "
                "the clips labels, or set views.same_label_share = 0"
            )

    def choose(self, crop: Crop, corpora: Sequence[Corpus]) -> Crop | None:
        """Return the part of another clip with the same labels; None if there is none, or the seed chooses none."""
        random = np.random.default_rng([crop.seed, SEED_BITS])
        if random.random() >= self.share:
            return None
        others = self._tables[crop.corpus].others(crop.index)
        if not len(others):
            return None
        index = int(others[random.integers(len(others))])
        length_s = float(corpora[crop.corpus].seconds[index])
        seconds = min(length_s, self.longest_s)
        return Crop(crop.corpus, index, (length_s - seconds) * random.random(), seconds, crop.seed ^ SEED_BITS)

    def read(
        self, crop: Crop, corpora: Sequence[Corpus], unusable: Collection[tuple[int, int]] = ()
    ) -> tuple[Samples, Crop] | None:
        """Read another take of a crop's clip; None without one.

        One that cannot be read is left out; it is reported when the plan reaches that clip itself.
        """
        chosen = self.choose(crop, corpora)
        if chosen is None or (chosen.corpus, chosen.index) in unusable:
            return None
        corpus = corpora[chosen.corpus]
        samples = read_or_error(corpus, chosen.index, chosen.start_s, chosen.seconds)
        if isinstance(samples, Exception) or len(samples) < self.shortest_s * corpus.sample_rate_hz:
            return None
        return samples[: round(chosen.seconds * corpus.sample_rate_hz)], chosen


def label_hashes(labels: Iterable[Iterable[str]]) -> Hashes:
    """Return a hash of the labels of each clip, whatever their order (clips,)."""
    return hash_names("\x1f".join(sorted(own)) for own in labels)


@dataclass(frozen=True)
class _Table:
    """The clips of a corpus by their labels."""

    hashes: Hashes
    """Hash of each clip's labels, sorted (clips,)."""
    order: Ints
    """Which clip each is (clips,)."""
    place: Ints
    """Where each clip of the corpus is in the order (corpus,); -1 where it has no label."""

    @classmethod
    def of(cls, corpus: Corpus, shortest_s: float) -> _Table:
        labels = [corpus.clip(index).labels for index in range(len(corpus))]
        named = np.array([bool(own) for own in labels], bool) & (corpus.seconds >= shortest_s)
        clips = np.flatnonzero(named)
        hashes = label_hashes(labels[clip] for clip in clips)
        sorted_by = np.argsort(hashes, kind="stable")
        place = np.full(len(labels), -1, np.int64)
        place[clips[sorted_by]] = np.arange(len(clips))
        return cls(hashes[sorted_by], clips[sorted_by], place)

    def has_others(self) -> bool:
        """Return whether any two clips have the same labels."""
        return bool((self.hashes[1:] == self.hashes[:-1]).any())

    def others(self, clip: int) -> Ints:
        """Return the other clips with the labels of a clip."""
        place = self.place[clip]
        if place < 0:
            return self.order[:0]
        first, stop = (int(np.searchsorted(self.hashes, self.hashes[place], side)) for side in ("left", "right"))
        return np.delete(self.order[first:stop], place - first)
