"""Mixup: the waveform of another clip is mixed into one, and its labels with it (Zhang et al., 2018; Tokozume et al., 2018).

    mixed = (1 - share) * wave + share * other,    1 - share drawn from Beta(alpha, alpha)

Which clip, which part of it and how much follow from the first clip's seed alone, so a mixture is the same for any
number of workers and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ssamba.config import Config
from ssamba.data.corpus import Corpus
from ssamba.data.plan import Draw

Samples = npt.NDArray[np.float32]


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


def chosen_partner(draw: Draw, corpora: Sequence[Corpus], settings: Mixup) -> Partner | None:
    """What a clip's seed chooses for it, of any corpus; None is nothing."""
    random = np.random.default_rng([draw.seed, 0x6D697875])
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
    draw: Draw,
    corpora: Sequence[Corpus],
    settings: Mixup,
    crashing: frozenset[tuple[int, int]] = frozenset(),
) -> tuple[Samples, Mixed | None]:
    """The wave (samples,) with another clip of any corpus mixed in, and what that was; or as it is, and None.

    Both lose their mean first. A clip that is shorter than the wave is filled with zeros; one that cannot be read is
    left out: it will be reported when its own turn comes.
    """
    partner = chosen_partner(draw, corpora, settings)
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
