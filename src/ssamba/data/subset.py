"""Some clips of a corpus, as a corpus: a split, or what is not held out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ssamba.data.corpus import Corpus, CorpusClip, Samples


class Subset(Corpus):
    """The clips of another corpus with these numbers."""

    def __init__(self, corpus: Corpus, chosen: npt.NDArray[np.int64]):
        self.corpus, self.chosen = corpus, chosen
        self.name, self.sample_rate_hz, self.in_memory = corpus.name, corpus.sample_rate_hz, corpus.in_memory
        self.seconds = corpus.seconds[chosen]
        self.shards = None if corpus.shards is None else corpus.shards[chosen]
        self.skipped = corpus.skipped

    def key(self, i: int) -> str:
        """The name of clip `i`."""
        return self.corpus.key(int(self.chosen[i]))

    def clip(self, i: int) -> CorpusClip:
        """What is known of clip `i`."""
        return self.corpus.clip(int(self.chosen[i]))

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """A part of clip `i`, as `Corpus.read` has it."""
        return self.corpus.read(int(self.chosen[i]), start_s, seconds)
