"""Mix other clips of the corpora into sequences: backgrounds, which keep the labels, and mixup, which mixes them, too.

    background: mixed = wave + gain * other,              the level of `other` is `below_db` below that of `wave`
    mixup:      mixed = (1 - share) * wave + share * other,   1 - share drawn from Beta(alpha, alpha)

Mixup is by Zhang et al. (2018) and Tokozume et al. (2018). Which clip, which part of it and how loud depend on the seed
of the sequence's first crop alone, so a mixture is the same for any number of workers and ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ssamba.config import Config
from ssamba.data.corpus import Corpus, Samples
from ssamba.data.plan import Crop


class Backgrounds(Config):
    """How often another clip is mixed under a sequence, and how loud."""

    share: float = Field(0.0, ge=0, le=1)
    """Share of sequences that get a background."""
    below_db: tuple[float, float] = (3.0, 20.0)
    """Range of the background's level below the sequence's, by root mean square, uniform, dB."""

    @model_validator(mode="after")
    def _check(self) -> Backgrounds:
        if not self.below_db[0] <= self.below_db[1]:
            raise ValueError(f"below_db must rise, got {self.below_db}")
        return self


class BackgroundsFrom(Backgrounds):
    """Backgrounds that all come from one corpus."""

    corpus: int = Field(ge=0)
    """Index of the corpus."""
    window_s: float | None = Field(None, gt=0)
    """Length of the windows that long recordings are read in; None: sequences keep their length."""
    window_share: float = Field(1.0, ge=0, le=1)
    """Share of these sequences that become such a window: a shorter one lies somewhere in it, of a longer one a part is
    left that holds at least half of the energy that such a part can hold."""


class Mixup(Config):
    """How often clips are mixed, and how evenly."""

    share: float = Field(0.0, ge=0, le=1)
    """Share of clips that another clip is mixed into; 0 turns mixup off."""
    alpha: float = Field(10.0, gt=0)
    """Parameter of the beta distribution: 10, as in the original, mixes about half and half."""


class Mixed(NamedTuple):
    """The clip that mixup mixed into a sequence."""

    key: str
    labels: tuple[str, ...]
    share: float
    """Its share of the mixture."""


class OtherClip(NamedTuple):
    """A clip chosen to be mixed into a sequence."""

    corpus: int
    """Index of the corpus."""
    clip: int
    """Index of the clip in the corpus."""
    amount: float
    """Background: level below the sequence's, dB. Mixup: share of the mixture."""
    position: float
    """Where the part that is used begins, as a fraction of the possible range."""


def choose_background(crop: Crop, corpora: Sequence[Corpus], settings: Backgrounds) -> OtherClip | None:
    """Choose a clip by the crop's seed, of the crop's own corpus or the settings'; None without a background."""
    random = np.random.default_rng([crop.seed, 0x6D6978])
    if random.random() >= settings.share:
        return None
    corpus = settings.corpus if isinstance(settings, BackgroundsFrom) else crop.corpus
    index, below_db = int(random.integers(len(corpora[corpus]))), random.uniform(*settings.below_db)
    return OtherClip(corpus, index, below_db, random.random())


def choose_partner(crop: Crop, corpora: Sequence[Corpus], settings: Mixup) -> OtherClip | None:
    """Choose a clip of any corpus for mixup by the crop's seed; None for a sequence that is not mixed."""
    random = np.random.default_rng([crop.seed, 0x6D697875])
    if random.random() >= settings.share:
        return None
    index, position = int(random.integers(sum(map(len, corpora)))), random.random()
    share = 1 - random.beta(settings.alpha, settings.alpha)
    corpus = 0
    while index >= len(corpora[corpus]):
        index, corpus = index - len(corpora[corpus]), corpus + 1
    return OtherClip(corpus, index, share, position)


def add_background(
    wave: Samples,
    crop: Crop,
    corpora: Sequence[Corpus],
    settings: Backgrounds,
    unusable: Collection[tuple[int, int]] = (),
) -> Samples:
    """Mix a part of another clip under a sequence, unless its seed chooses none.

    A background shorter than the sequence is placed somewhere in it. One that cannot be read is left out; it is
    reported when the plan reaches that clip itself. With `window_s` the mixture may have another length.

    Args:
        wave: the sequence (samples,).
        crop: its first crop.
        corpora: as the plan numbers them.
        settings: how often and how loud.
        unusable: clips (corpus, index) that must not be read.

    Returns:
        The mixture (samples,).
    """
    chosen = choose_background(crop, corpora, settings)
    if chosen is None or chosen[:2] in unusable:
        return wave
    sound, place, samples = _place(wave, crop, corpora[chosen.corpus].sample_rate_hz, settings)
    other = _read(chosen, corpora, samples)
    if other is None:
        return wave
    level, other_level = rms(sound), rms(other)
    if level == 0 or other_level == 0:
        return wave
    mixed = np.zeros(samples, np.float32)
    mixed[place : place + len(sound)] = sound
    start = int((samples - len(other)) * chosen.position)
    mixed[start : start + len(other)] += other * np.float32(level / other_level * 10 ** (-chosen.amount / 20))
    return mixed


def _place(wave: Samples, crop: Crop, rate_hz: int, settings: Backgrounds) -> tuple[Samples, int, int]:
    """Return the part of a sequence that is used, where it lies in the mixture, and the mixture's samples."""
    if not isinstance(settings, BackgroundsFrom) or settings.window_s is None:
        return wave, 0, len(wave)
    random = np.random.default_rng([crop.seed, 0x77696E])
    samples = round(settings.window_s * rate_hz)
    if random.random() >= settings.window_share:
        return wave, 0, len(wave)
    if len(wave) <= samples:
        return wave, int(random.integers(samples - len(wave) + 1)), samples
    start = int(random.choice(_sounding_starts(wave, samples)))
    return wave[start : start + samples], 0, samples


def _sounding_starts(wave: Samples, samples: int) -> npt.NDArray[np.int64]:
    """Return first samples of the parts of a sequence that hold at least half of the energy that a part can hold."""
    energy = np.concatenate(([0.0], np.cumsum(np.square(wave, dtype=np.float64))))
    held = energy[samples:] - energy[:-samples]
    return np.flatnonzero(held >= 0.5 * held.max())


def mix(
    wave: Samples,
    crop: Crop,
    corpora: Sequence[Corpus],
    settings: Mixup,
    unusable: Collection[tuple[int, int]] = (),
) -> tuple[Samples, Mixed | None]:
    """Mix another clip of any corpus into a sequence, unless its seed chooses none.

    The mean of both is removed first. A clip shorter than the sequence is padded with zeros. One that cannot be read is
    left out; it is reported when the plan reaches that clip itself.

    Arguments are those of `add_background`. Returns the mixture (samples,) and the other clip, or `wave` and None.
    """
    chosen = choose_partner(crop, corpora, settings)
    other = None if chosen is None or chosen[:2] in unusable else _read(chosen, corpora, len(wave))
    if chosen is None or other is None:
        return wave, None
    mixed = (wave - wave.mean()) * np.float32(1 - chosen.amount)
    mixed[: len(other)] += (other - other.mean()) * np.float32(chosen.amount)
    clip = corpora[chosen.corpus].clip(chosen.clip)
    return mixed, Mixed(clip.key, clip.labels, float(chosen.amount))


def _read(chosen: OtherClip, corpora: Sequence[Corpus], num_samples: int) -> Samples | None:
    """Return at most `num_samples` of the chosen clip, or None if it cannot be read."""
    corpus = corpora[chosen.corpus]
    length_s = num_samples / corpus.sample_rate_hz
    start_s = max(0.0, float(corpus.seconds[chosen.clip]) - length_s) * chosen.position
    try:
        return corpus.read(chosen.clip, start_s, length_s)[:num_samples]
    except (ValueError, OSError):
        return None


def rms(x: Samples) -> float:
    """Return the root mean square of samples; 0 of none."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0
