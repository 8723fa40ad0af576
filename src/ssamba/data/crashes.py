"""Which clips end the process that reads them: a fault inside a codec cannot be caught, only survived elsewhere.

No torch here: the processes that try clips out start quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ssamba.data.corpus import Corpus
from ssamba.data.plan import Draw
from ssamba.errors import WorkerDiedError
from ssamba.processes import run_alone


def crashing_draws(corpora: Sequence[Corpus], draws: Sequence[Draw]) -> list[Draw]:
    """Those of `draws` on which a process dies: each half that kills one is divided further."""
    if not draws or not isinstance(run_alone(partial(_read_all, corpora), draws), WorkerDiedError):
        return []
    if len(draws) == 1:
        return list(draws)
    middle = len(draws) // 2
    return crashing_draws(corpora, draws[:middle]) + crashing_draws(corpora, draws[middle:])


def _read_all(corpora: Sequence[Corpus], draws: Sequence[Draw]) -> None:
    for draw in draws:
        try:
            corpora[draw.corpus].read(draw.index, draw.start_s, draw.seconds)
        except Exception:  # told when its batch is read
            continue
