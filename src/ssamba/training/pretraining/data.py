"""What a pretraining run reads: corpora opened, held-out clips set aside, batches planned and loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ssamba.data.cache import CachedCorpus
from ssamba.data.corpus import Corpus, Subset, open_corpus
from ssamba.data.loader import WaveBatch, WaveLoader
from ssamba.data.plan import Plan, PlanConfig
from ssamba.errors import DataError
from ssamba.training.pretraining.recipe import PretrainRecipe

_VALID_CROP_S = 10.24
_VALID_CLIPS = 512


class Corpora:
    """Training batches and the held-out ones."""

    def __init__(self, training: Sequence[Corpus], held_out: Sequence[Corpus], recipe: PretrainRecipe):
        self.recipe = recipe
        self.training, self.held_out = list(training), list(held_out)
        data, patch_frames = recipe.data, recipe.model.config().patch_size[1]
        rate_hz = recipe.front_end.sample_rate_hz
        crop_s = data.crop_s
        shared: dict[str, Any] = {
            "sample_rate_hz": rate_hz,
            "length_step_s": patch_frames * recipe.front_end.shift_ms / 1000,
        }
        self.plan = Plan(
            PlanConfig(
                seed=recipe.run.seed,
                crop_s=crop_s,
                crop=data.crop,
                short_clips=data.short_clips,
                shuffle_window=data.shuffle_window,
                batch_size=max(1, round(data.batch_s / crop_s)),
                weights=data.weights,
                fewest=2 if recipe.objectives.clip else 1,  # a clip is told from others
                **shared,
            ),
            self.training,
        )
        self._loader: WaveLoader | None = None
        self._validation: list[WaveBatch] | None = None
        self.unreadable_held_out: tuple[tuple[str, str], ...] = ()
        """Name and reason of held-out clips that could not be read, once they have been."""
        self._shared = shared

    def batches(self, epoch: int, start: int, rank: int, world: int) -> Iterator[WaveBatch]:
        """One process's shares of an epoch's batches, from number `start` on."""
        if self._loader is None or (self._loader.rank, self._loader.world_size) != (rank, world):
            workers = self.recipe.data.workers
            self._loader = WaveLoader(
                self.training,
                self.plan,
                rank=rank,
                world_size=world,
                workers=workers,
                backgrounds=self.recipe.data.backgrounds,
            )
        return self._loader.batches(epoch, start)

    def batches_in_epoch(self, epoch: int) -> int:
        """Global batches of an epoch."""
        return len(self.plan.batches(epoch))

    def validation(self) -> Iterator[WaveBatch]:
        """The held-out clips, at most 512 of them, the same crops every time."""
        if self._validation is None:
            self._validation = self._read_held_out() if self.held_out else []
        return iter(self._validation)

    def _read_held_out(self) -> list[WaveBatch]:
        count = sum(map(len, self.held_out))
        config = PlanConfig(
            seed=1,
            crop_s=min(_VALID_CROP_S, self.recipe.data.crop_s),
            short_clips="bucket",
            batch_size=16,
            epoch_clips=min(count, _VALID_CLIPS),
            **self._shared,
        )
        loader = WaveLoader(self.held_out, Plan(config, self.held_out), workers=0)
        batches = list(loader.batches(0))
        self.unreadable_held_out = tuple(entry for batch in batches for entry in batch.skipped)
        return [batch for batch in batches if len(batch)]

    @cached_property
    def hours(self) -> float:
        """Audio to train on."""
        return sum(corpus.hours for corpus in self.training)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of what could not be read when the corpora were opened."""
        return tuple((entry.path, entry.reason) for corpus in self.training for entry in corpus.skipped)

    def fingerprint(self) -> str:
        """Changes when the batches would."""
        return self.plan.fingerprint()

    def check_fingerprint(self, saved: str) -> None:
        """Whether a saved run read the same batches.

        Raises:
            DataError: it did not.
        """
        if saved != self.fingerprint():
            raise DataError(
                "the corpora are not those of the saved run (clips were added, removed or changed, or their order of "
                "corpora differs): resume with the same data, or start a new run in another folder"
            )


def open_corpora(
    sources: Sequence[Any], recipe: PretrainRecipe, on_progress: Callable[[str, int, int], None] | None = None
) -> Corpora:
    """Open the sources of a run, set clips aside for validation, and cache what fits into memory.

    A corpus with a `valid` split validates on it and trains on its `train` split (all the rest, if it has none); of
    another one, a share of the clips is held out, chosen by a hash of their names.

    Args:
        sources: what `ssamba.data.corpus.open_corpus` takes.
        recipe: rate, held-out share and cache size.
        on_progress: called while a corpus is decoded into memory, with its name, clips done, and clips in all.

    Raises:
        DataError: a source is nothing of the kind, or nothing is left to train on.
    """
    rate_hz, data = recipe.front_end.sample_rate_hz, recipe.data
    training: list[Corpus] = []
    held_out: list[Corpus] = []
    room_gb = data.cache_gb
    for source in sources:
        corpus = open_corpus(source, rate_hz, workers=data.workers)
        need_gb = 2e-9 * corpus.hours * 3600 * rate_hz * 1.01
        if need_gb <= room_gb and not corpus.in_memory:
            room_gb -= need_gb
            name = corpus.name

            def report(done: int, total: int, name: str = name) -> None:
                if on_progress is not None:
                    on_progress(name, done, total)

            corpus = CachedCorpus(corpus, limit_gb=max(need_gb * 1.5, 0.1), workers=data.workers, on_progress=report)
        for part, chosen in zip((training, held_out), _split(corpus, data.valid_share), strict=True):
            if len(chosen):
                part.append(Subset(corpus, chosen))
    if not training:
        raise DataError("nothing is left to train on: every clip is held out; lower data.valid_share")
    return Corpora(training, held_out, recipe)


def _split(corpus: Corpus, valid_share: float) -> tuple[Any, Any]:
    """Clips to train on, and clips held out."""
    splits = np.array([corpus.clip(i).split or "" for i in range(len(corpus))])
    if (splits == "valid").any():
        train = splits == "train" if (splits == "train").any() else (splits != "valid") & (splits != "test")
        return np.flatnonzero(train), np.flatnonzero(splits == "valid")
    usable = splits != "test"
    held = usable & (corpus.key_hashes % np.uint64(10_000) < valid_share * 10_000)
    return np.flatnonzero(usable & ~held), np.flatnonzero(held)
