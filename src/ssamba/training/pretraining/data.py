"""Data of a pretraining run: opened corpora, training batches, and clips held out for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ssamba.data.corpus import Corpus, Subset, is_all_silent, open_corpus
from ssamba.data.loader import WaveBatch, WaveLoader
from ssamba.data.manifest import as_sources
from ssamba.data.plan import Plan, PlanConfig
from ssamba.data.takes import OtherTakes
from ssamba.errors import ConfigError, DataError
from ssamba.hashing import digest_of
from ssamba.splits import Ints
from ssamba.training.batches import (
    OnDecoded,
    PlannedBatches,
    above_band_notes,
    cache_if_it_fits,
    decoded_gb,
    other_data,
)
from ssamba.training.distributed import is_main_process
from ssamba.training.pretraining.recipe import LABELS_NEED_CLIP, PretrainRecipe

_VALID_CROP_S = 10.24
_MAX_VALID_CLIPS = 512
_ENOUGH_CLIPS = 10  # for one of them to be held out, however small the share


class Corpora(PlannedBatches):
    """Training batches of several corpora, and validation batches of their held-out clips."""

    def __init__(
        self, training: Sequence[Corpus], held_out: Sequence[Corpus], recipe: PretrainRecipe, notes: Sequence[str] = ()
    ):
        self.recipe, data, self._notes = recipe, recipe.data, list(notes)
        self.held_out = list(held_out)
        self._shared: dict[str, Any] = {
            "sample_rate_hz": recipe.front_end.sample_rate_hz,
            "length_step_s": recipe.model.config().patch_size[1] * recipe.front_end.shift_ms / 1000,
        }
        config = PlanConfig(
            seed=recipe.run.seed,
            crop_s=data.crop_s,
            crop=data.crop,
            short_clips=data.short_clips,
            shuffle_window=data.shuffle_window,
            batch_size=max(1, round(data.batch_s / data.crop_s)),
            weights=data.weights,
            grouped_share=data.grouped_share,
            fewest=2 if recipe.objectives.clip else 1,  # the clip objective needs negatives
            **self._shared,
        )
        share = recipe.views.same_label_share
        if share and not recipe.objectives.clip:
            raise ConfigError(LABELS_NEED_CLIP)
        self._takes = OtherTakes(training, share, data.crop_s, recipe.front_end.frame_ms / 1000) if share else None
        super().__init__(training, config, workers=data.workers, backgrounds=data.backgrounds, takes=self._takes)
        self._validation: list[WaveBatch] | None = None
        self.unreadable_held_out: tuple[tuple[str, str], ...] = ()
        """Key and reason of held-out clips that could not be read; known after the first `validation`."""

    def validation(self) -> Iterator[WaveBatch]:
        """Return batches of at most 512 held-out clips, the same crops at every call."""
        if self._validation is None:
            self._validation = self._read_held_out() if self.held_out else []
        return iter(self._validation)

    def _read_held_out(self) -> list[WaveBatch]:
        config = PlanConfig(
            seed=1,
            crop_s=min(_VALID_CROP_S, self.recipe.data.crop_s),
            short_clips="bucket",
            batch_size=16,
            epoch_clips=min(sum(map(len, self.held_out)), _MAX_VALID_CLIPS),
            **self._shared,
        )
        batches = list(WaveLoader(self.held_out, Plan(config, self.held_out), workers=0).batches(0))
        self.unreadable_held_out = tuple(entry for batch in batches for entry in batch.skipped)
        return [batch for batch in batches if len(batch)]

    @cached_property
    def hours(self) -> float:
        """Hours of training audio."""
        return sum(corpus.hours for corpus in self.training)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Path and reason of what could not be read when the corpora were opened."""
        return tuple((entry.path, entry.reason) for corpus in self.training for entry in corpus.skipped)

    def summary(self) -> list[str]:
        """Return a line for each corpus: its name, number of clips and length."""
        lines = [f"{corpus.name}: {len(corpus)} clips, {corpus.hours:.3f} h" for corpus in self.training]
        return lines + [f"{corpus.name} (held out): {len(corpus)} clips" for corpus in self.held_out]

    def notes(self) -> list[str]:
        """Return what is wrong with the recordings as a whole: silence, sound that the model does not hear, too few."""
        if not all(map(is_all_silent, self.training)):
            wanted = self.recipe.data.valid_share > 0 and self.recipe.adapt is None  # adapting says it at the end
            few = "no recording is held out, so there is no validation: more recordings, or a higher data.valid_share"
            return [*self._notes, few] if wanted and not self.held_out else self._notes
        return [f"all {sum(map(len, self.training))} recordings are silent: a model can learn nothing from them"]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when the batches do, or what their labels say if they are used."""
        own = self.plan.fingerprint()
        return own if self._takes is None else digest_of(f"{own}/{self._takes.digest()}")

    def check_same(self, fingerprint: str, summary: Sequence[str]) -> None:
        """Check that a saved run had the same batches.

        Args:
            fingerprint: of the saved run.
            summary: of the saved run's corpora; empty if it is not known.

        Raises:
            DataError: it had others.
        """
        if fingerprint != self.fingerprint():
            raise DataError(other_data(summary, self.summary()))


def open_corpora(
    data: Any, recipe: PretrainRecipe, on_decoded: OnDecoded | None = None, encoding: str | None = None
) -> Corpora:
    """Open the sources of a run, hold out validation clips, and cache corpora that fit in memory.

    A corpus with a `valid` split validates on it and trains on its `train` split (or, without one, on all other clips
    but `test`). Of other corpora, `data.valid_share` of the clips is held out, chosen by a hash of their keys; at least
    one of ten or more.

    Args:
        data: a source as for `ssamba.data.corpus.open_corpus`, or a list of them.
        recipe: sample rate, held-out share and cache size.
        on_decoded: called while a corpus is decoded into memory.
        encoding: of manifests in CSV and JSON, such as `cp1252`; None is UTF-8.

    Raises:
        DataError: a source cannot be opened, or no training clip is left.
    """
    settings = recipe.data
    training: list[Corpus] = []
    held_out: list[Corpus] = []
    memory_gb = settings.cache_gb
    opened = [
        open_corpus(source, recipe.front_end.sample_rate_hz, workers=settings.workers, encoding=encoding)
        for source in as_sources(data)
    ]
    above_band = above_band_notes(opened) if is_main_process() else []
    for corpus in opened:
        cached = cache_if_it_fits(corpus, memory_gb, settings.workers, on_decoded)
        if cached is not corpus:
            memory_gb -= decoded_gb(corpus)
        for part, chosen in zip((training, held_out), _split(cached, settings.valid_share), strict=True):
            if len(chosen):
                part.append(Subset(cached, chosen))
    if not training:
        raise DataError("no training clip is left, since every clip is held out: lower data.valid_share")
    _check_enough(training, recipe)
    return Corpora(training, held_out, recipe, above_band)


def _check_enough(training: Sequence[Corpus], recipe: PretrainRecipe) -> None:
    """Refuse too few training clips that last at least one frame."""
    front_end, fewest = recipe.front_end, 2 if recipe.objectives.clip else 1
    lengths = np.concatenate([np.round(corpus.seconds * front_end.sample_rate_hz) for corpus in training])
    usable = int((lengths >= front_end.frame_samples).sum())
    if usable < fewest:
        why = " (objectives.clip tells clips apart)" if fewest > 1 else ""
        raise DataError(
            f"training clips that last at least one frame of {front_end.frame_ms:g} ms: {usable} of {len(lengths)}, "
            f"expected at least {fewest}{why}"
        )


def _split(corpus: Corpus, valid_share: float) -> tuple[Ints, Ints]:
    """Return the indices of training clips and of held-out clips."""
    splits = np.array([corpus.clip(i).split or "" for i in range(len(corpus))])
    if (splits == "valid").any():
        train = splits == "train" if (splits == "train").any() else (splits != "valid") & (splits != "test")
        return np.flatnonzero(train), np.flatnonzero(splits == "valid")
    usable = splits != "test"
    numbers = corpus.key_hashes % np.uint64(10_000)
    held = usable & (numbers < valid_share * 10_000)
    if valid_share and not held.any() and usable.sum() >= _ENOUGH_CLIPS:
        held[np.argmin(np.where(usable, numbers, 10_000))] = True
    return np.flatnonzero(usable & ~held), np.flatnonzero(held)
