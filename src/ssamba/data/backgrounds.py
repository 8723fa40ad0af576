"""Mixing another clip of the corpus under a clip, as recordings are in the world: never alone.

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
from ssamba.data.plan import Draw

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


def chosen_background(draw: Draw, corpora: Sequence[Corpus], settings: Backgrounds) -> Background | None:
    """What the first clip's seed chooses for a sequence; None is nothing."""
    random = np.random.default_rng([draw.seed, 0x6D6978])
    if random.random() >= settings.share:
        return None
    index, below_db = int(random.integers(len(corpora[draw.corpus]))), random.uniform(*settings.below_db)
    return Background(draw.corpus, index, below_db, random.random())


def add_background(
    wave: Samples,
    draw: Draw,
    corpora: Sequence[Corpus],
    settings: Backgrounds,
    crashing: frozenset[tuple[int, int]] = frozenset(),
) -> Samples:
    """The wave (samples,) with a part of another clip of its corpus under it, or as it is.

    A background that is shorter than the wave stands somewhere in it. One that cannot be read is left out: it will be
    reported when its own turn comes.
    """
    background = chosen_background(draw, corpora, settings)
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
