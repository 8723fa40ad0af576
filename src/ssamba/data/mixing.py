"""Mixing another clip of the corpus under a clip, as recordings are in the world_size: never alone.

Which clip, which part of it and how loud follow from the first clip's seed alone, so a mixture is the same for any
number of workers and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ssamba.config import Config
from ssamba.data.corpus import Corpus
from ssamba.data.plan import Crop

Samples = npt.NDArray[np.float32]


class Backgrounds(Config):
    """How often another clip is mixed under one, and how far below."""

    share: float = Field(0.0, ge=0, le=1)
    """Share of sequences that get one."""
    below_db: tuple[float, float] = (3.0, 20.0)
    """Its level below the sequence's, by root mean square, uniform between these, dB."""

    @model_validator(mode="after")
    def _check(self) -> Backgrounds:
        if not self.below_db[0] <= self.below_db[1]:
            raise ValueError(f"below_db must rise, got {self.below_db}")
        return self


class Background(NamedTuple):
    """What is mixed under a sequence."""

    corpus: int
    """Number of the corpus."""
    clip: int
    """Number of the clip in it."""
    below_db: float
    """Its level below the sequence's."""
    place: float
    """Where it, or the part of it that is used, begins: a share of what is left."""


def chosen_background(crop: Crop, corpora: Sequence[Corpus], settings: Backgrounds) -> Background | None:
    """What the first clip's seed chooses for a sequence; None is nothing."""
    random = np.random.default_rng([crop.seed, 0x6D6978])
    if random.random() >= settings.share:
        return None
    index, below_db = int(random.integers(len(corpora[crop.corpus]))), random.uniform(*settings.below_db)
    return Background(crop.corpus, index, below_db, random.random())


def add_background(
    wave: Samples,
    crop: Crop,
    corpora: Sequence[Corpus],
    settings: Backgrounds,
    crashing: frozenset[tuple[int, int]] = frozenset(),
) -> Samples:
    """The wave (samples,) with a part of another clip of its corpus under it, or as it is.

    A background that is shorter than the wave stands somewhere in it. One that cannot be read is left out: it will be
    reported when its own turn comes.
    """
    background = chosen_background(crop, corpora, settings)
    if background is None or background[:2] in crashing:
        return wave
    number, i, below_db, place = background
    corpus = corpora[number]
    rate_hz = corpus.sample_rate_hz
    seconds = float(corpus.seconds[i])
    length_s = len(wave) / rate_hz
    try:
        other = corpus.read(i, max(0.0, seconds - length_s) * place, length_s)[: len(wave)]
    except (ValueError, OSError):
        return wave
    level, other_level = _rms(wave), _rms(other)
    if level == 0 or other_level == 0:
        return wave
    mixed: Samples = wave.copy()
    start = int((len(wave) - len(other)) * place)
    mixed[start : start + len(other)] += other * np.float32(level / other_level * 10 ** (-below_db / 20))
    return mixed


def _rms(x: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0


class Mixup(Config):
    """How often clips are mixed, and how evenly."""

    share: float = Field(0.0, ge=0, le=1)
    """Share of clips that another one is mixed into; 0 is off."""
    alpha: float = Field(10.0, gt=0)
    """Of the beta distribution: 10, as the original, mixes about half and half."""


class Mixed(NamedTuple):
    """What was mixed into a clip."""

    key: str
    """The other clip's name."""
    labels: tuple[str, ...]
    """Its labels."""
    share: float
    """Its part of the mixture."""


class Partner(NamedTuple):
    """What is mixed into a clip."""

    corpus: int
    """Number of the corpus."""
    clip: int
    """Number of the clip in it."""
    share: float
    """Its part of the mixture."""
    place: float
    """Where the part of it that is used begins: a share of what is left."""


def chosen_partner(crop: Crop, corpora: Sequence[Corpus], settings: Mixup) -> Partner | None:
    """What a clip's seed chooses for it, of any corpus; None is nothing."""
    random = np.random.default_rng([crop.seed, 0x6D697875])
    if random.random() >= settings.share:
        return None
    i, place = int(random.integers(sum(map(len, corpora)))), random.random()
    share = 1 - random.beta(settings.alpha, settings.alpha)
    number = 0
    while i >= len(corpora[number]):
        i, number = i - len(corpora[number]), number + 1
    return Partner(number, i, share, place)


def mix(
    wave: Samples,
    crop: Crop,
    corpora: Sequence[Corpus],
    settings: Mixup,
    crashing: frozenset[tuple[int, int]] = frozenset(),
) -> tuple[Samples, Mixed | None]:
    """The wave (samples,) with another clip of any corpus mixed in, and what that was; or as it is, and None.

    Both lose their mean first. A clip that is shorter than the wave is filled with zeros; one that cannot be read is
    left out: it will be reported when its own turn comes.
    """
    partner = chosen_partner(crop, corpora, settings)
    if partner is None or partner[:2] in crashing:
        return wave, None
    number, i, share, place = partner
    corpus = corpora[number]
    length_s = len(wave) / corpus.sample_rate_hz
    try:
        other = corpus.read(i, max(0.0, float(corpus.seconds[i]) - length_s) * place, length_s)[: len(wave)]
    except (ValueError, OSError):
        return wave, None
    mixed = (wave - wave.mean()) * np.float32(1 - share)
    mixed[: len(other)] += (other - other.mean()) * np.float32(share)
    clip = corpus.clip(i)
    return mixed, Mixed(clip.key, clip.labels, float(share))
