"""Which clips end the process that reads them: a fault inside a codec cannot be caught, only survived elsewhere.

No torch here: the processes that try clips out start quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ssamba.data.corpus import Corpus
from ssamba.data.plan import Draw
from ssamba.worker_pool import killing_items


def crashing_draws(corpora: Sequence[Corpus], draws: Sequence[Draw]) -> list[Draw]:
    """Those of `draws` on which a process dies."""
    return killing_items(partial(_read_all, corpora), draws)


def _read_all(corpora: Sequence[Corpus], draws: Sequence[Draw]) -> None:
    for draw in draws:
        try:
            corpora[draw.corpus].read(draw.index, draw.start_s, draw.seconds)
        except Exception:  # told when its batch is read
            continue
