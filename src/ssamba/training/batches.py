"""Training batches of both tasks: a plan over corpora, its loader, and a cache for corpora that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from ssamba.audio.band import above_band_text, collect_above_band
from ssamba.data.cache import CachedCorpus
from ssamba.data.corpus import Corpus, read_or_error
from ssamba.data.loader import WaveBatch, WaveLoader
from ssamba.data.mixing import Backgrounds, Mixup
from ssamba.data.plan import Plan, PlanConfig
from ssamba.data.takes import OtherTakes
from ssamba.errors import Interrupted
from ssamba.progress import OnProgress, Progress

_LOOK_S = 5.0
_FEW_ABOVE = 0.1
"""Share of clips above the band that is not worth a warning."""

OnDecoded: TypeAlias = Callable[[str, int, int], None]
"""Called while a corpus is decoded into memory: its name, clips done, clips in total."""


def report_decoded(progress: OnProgress | None) -> OnDecoded | None:
    """Return what tells `progress` how far recordings are read; it raises Interrupted if that returns False."""
    if progress is None:
        return None

    def report(name: str, done: int, total: int) -> None:
        if progress(Progress(f"reading {name}", done, total, "clips")) is False:
            raise Interrupted("stopped while recordings were read, before the first step")

    return report


class PlannedBatches:
    """The batches of corpora, by a plan; the part of `ssamba.training.task.Task` that concerns data."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        config: PlanConfig,
        *,
        workers: int,
        backgrounds: Backgrounds,
        mixup: Mixup | None = None,
        takes: OtherTakes | None = None,
    ):
        self.training = list(corpora)
        self.plan = Plan(config, self.training)
        self._options: dict[str, Any] = {
            "workers": workers,
            "backgrounds": backgrounds,
            "mixup": mixup,
            "takes": takes,
        }
        self._loader: WaveLoader | None = None

    def batches(self, epoch: int, start: int, rank: int, world_size: int) -> Iterator[WaveBatch]:
        """Return this rank's parts of the global batches `start`, `start + 1`, ... of an epoch."""
        if self._loader is None or (self._loader.rank, self._loader.world_size) != (rank, world_size):
            self._loader = WaveLoader(self.training, self.plan, rank=rank, world_size=world_size, **self._options)
        return self._loader.batches(epoch, start)

    def batches_in_epoch(self, epoch: int) -> int:
        """Return the number of global batches of an epoch."""
        return len(self.plan.batches(epoch))


def decoded_gb(corpus: Corpus) -> float:
    """Return the memory in GB that a decoded corpus takes, about 1 % for rounding included."""
    return 2e-9 * corpus.hours * 3600 * corpus.sample_rate_hz * 1.01


def cache_if_it_fits(corpus: Corpus, memory_gb: float, workers: int, on_decoded: OnDecoded | None = None) -> Corpus:
    """Decode a corpus into memory with `workers` processes if it fits in `memory_gb`; else return it unchanged."""
    if corpus.in_memory or decoded_gb(corpus) > memory_gb:
        return corpus
    report = None if on_decoded is None else lambda done, total: on_decoded(corpus.name, done, total)
    return CachedCorpus(corpus, limit_gb=max(decoded_gb(corpus) * 1.5, 0.1), workers=workers, on_progress=report)


def above_band_notes(corpora: Sequence[Corpus]) -> list[str]:
    """Return a line if much of the sound lies above what the model hears; five seconds of up to 24 clips are read.

    Some of many do not count: a short clip of little but noise may stand out by chance.
    """
    clips = [(corpus, i) for corpus in corpora for i in range(len(corpus))]
    chosen = [clips[i] for i in sorted({round(i) for i in np.linspace(0, len(clips) - 1, min(24, len(clips)))})]
    with collect_above_band() as remarks:
        for corpus, i in chosen:
            seconds = float(corpus.seconds[i])
            read_or_error(corpus, i, max(0.0, (seconds - _LOOK_S) / 2), min(seconds, _LOOK_S))
    if len(remarks) <= _FEW_ABOVE * len(chosen):
        return []
    more = [one.path for one in remarks[1:4]]
    named = f". Also: {', '.join(more)}" if more else ""
    return [above_band_text(remarks, "--front-end", len(chosen), named)]


def other_data(before: Sequence[str], now: Sequence[str]) -> str:
    """Return the message for a run that resumes with other recordings than it began with."""
    differ = before and list(before) != list(now)
    what = f"they were {'; '.join(before)}, are {'; '.join(now)}" if differ else "clips were renamed or changed"
    return (
        f"the recordings are not those of the saved run ({what}): use the same data to resume, --overwrite to start "
        "anew, or another output"
    )
