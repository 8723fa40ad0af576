"""Take second views from another clip with the same labels: the same word by another voice, say.

Which clip it is depends on the seed of the first clip's crop alone, so it is the same for any number of workers and
ranks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ssamba.data.corpus import Corpus, Samples, read_or_error
from ssamba.data.plan import Crop, Hashes, Ints
from ssamba.errors import DataError
from ssamba.hashing import digest_of, hash_names

_LONGEST_RATIO = 2
"""Longest take, in lengths of the first clip's batch, so that a batch of short clips stays small."""
_SEED_BITS = 0x74616B65
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
            labeled = sum(len(table.order) for table in self._tables)
            raise DataError(
                f"views.same_label_share: of {sum(map(len, corpora))} clips {labeled} have labels, and none has those "
                "of another clip of its corpus. Expected several clips of a label (`ssamba manifest FOLDER -o M.csv "
                "--labels folder` takes labels from folders), or views.same_label_share = 0"
            )

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change when clips get other labels."""
        return digest_of(*(column for table in self._tables for column in (table.hashes, table.place)))

    def choose(self, crop: Crop, corpora: Sequence[Corpus], batch_s: float = math.inf) -> Crop | None:
        """Return the part of another clip with the same labels; None if there is none, or the seed chooses none.

        Args:
            crop: of the first clip.
            corpora: as the plan numbers them.
            batch_s: length of the first clip's batch.
        """
        random = np.random.default_rng([crop.seed, _SEED_BITS])
        if random.random() >= self.share:
            return None
        index = self._tables[crop.corpus].another(crop.index, random)
        if index is None:
            return None
        length_s = float(corpora[crop.corpus].seconds[index])
        seconds = min(length_s, self.longest_s, _LONGEST_RATIO * batch_s)
        return Crop(crop.corpus, index, (length_s - seconds) * random.random(), seconds, crop.seed ^ _SEED_BITS)

    def read(
        self,
        crop: Crop,
        corpora: Sequence[Corpus],
        unusable: Collection[tuple[int, int]] = (),
        batch_s: float = math.inf,
    ) -> tuple[Samples, Crop] | None:
        """Read another take of a crop's clip, as `choose` finds it; None without one.

        One that cannot be read is left out; it is reported when the plan reaches that clip itself.
        """
        chosen = self.choose(crop, corpora, batch_s)
        if chosen is None or (chosen.corpus, chosen.index) in unusable:
            return None
        corpus = corpora[chosen.corpus]
        samples = read_or_error(corpus, chosen.index, chosen.start_s, chosen.seconds)
        if isinstance(samples, Exception) or len(samples) < self.shortest_s * corpus.sample_rate_hz:
            return None
        return samples[: round(chosen.seconds * corpus.sample_rate_hz)], chosen


def label_hashes(labels: Iterable[Iterable[str]]) -> Hashes:
    """Return a hash of the set of labels of each clip (clips,)."""
    return hash_names("\x1f".join(sorted(set(own))) for own in labels)


@dataclass(frozen=True)
class _Table:
    """The clips of a corpus by their labels."""

    hashes: Hashes
    """Hash of each clip's labels, sorted (clips,)."""
    order: Ints
    """Index of each clip in the corpus (clips,)."""
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

    def another(self, clip: int, random: np.random.Generator) -> int | None:
        """Return one of the other clips with the labels of a clip; None if there is none."""
        place = int(self.place[clip])
        if place < 0:
            return None
        first, stop = (int(np.searchsorted(self.hashes, self.hashes[place], side)) for side in ("left", "right"))
        if stop - first < 2:
            return None
        drawn = first + int(random.integers(stop - first - 1))
        return int(self.order[drawn + (drawn >= place)])
