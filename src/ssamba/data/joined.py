"""Several corpora as one: the data of a command that names several sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ssamba.data.corpus import Corpus, CorpusClip, Samples, unique_names


class JoinedCorpus(Corpus):
    """The clips of several corpora, one after the other. Keys begin with the name of the clip's corpus."""

    def __init__(self, corpora: Sequence[Corpus]):
        """Join corpora of one sample rate."""
        self.corpora = list(corpora)
        self.name, self.sample_rate_hz = " + ".join(corpus.name for corpus in corpora), corpora[0].sample_rate_hz
        self.in_memory = all(corpus.in_memory for corpus in corpora)
        self.seconds = np.concatenate([corpus.seconds for corpus in corpora])
        self.skipped = tuple(entry for corpus in corpora for entry in corpus.skipped)
        self._names = list(unique_names(corpus.name for corpus in corpora))
        self._starts = np.cumsum([0, *(len(corpus) for corpus in corpora)])
        if all(corpus.shards is not None for corpus in corpora):
            ends = np.cumsum([0, *(int(corpus.shards.max()) + 1 for corpus in corpora if corpus.shards is not None)])
            parts = zip(corpora, ends, strict=False)
            self.shards = np.concatenate([corpus.shards + end for corpus, end in parts if corpus.shards is not None])

    def _find(self, i: int) -> tuple[int, int]:
        """Return the number of the corpus of clip `i`, and the clip's number in it."""
        number = int(np.searchsorted(self._starts, i, "right")) - 1
        return number, i - int(self._starts[number])

    def key(self, i: int) -> str:
        """Return the name of the corpus and the clip's key in it."""
        number, own = self._find(i)
        return f"{self._names[number]}/{self.corpora[number].key(own)}"

    def file(self, i: int) -> str:
        """Return the audio file of clip `i`."""
        number, own = self._find(i)
        file = self.corpora[number].file(own)
        return self.key(i) if file == self.corpora[number].key(own) else file

    def clip(self, i: int) -> CorpusClip:
        """Return the metadata of clip `i`."""
        number, own = self._find(i)
        return replace(self.corpora[number].clip(own), key=self.key(i))

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """Read a part of clip `i`; see `Corpus.read`."""
        number, own = self._find(i)
        return self.corpora[number].read(own, start_s, seconds)


def join_corpora(corpora: Sequence[Corpus]) -> Corpus:
    """Return several corpora as one; a single one stays as it is."""
    return corpora[0] if len(corpora) == 1 else JoinedCorpus(corpora)
