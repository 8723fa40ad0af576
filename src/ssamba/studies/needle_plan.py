"""The needle test's plan: which sounds are needles, and where, how loud and in which haystack each of them is placed.

At every length each needle is placed once at each level. A haystack holds several different needles at once, each
in a stretch of its own, as long as they fill at most a tenth of it: one pass over hours of audio then tries many.
Needles are added to the haystack. Levels compare root mean squares, needle to haystack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from ssamba.audio.decode import decode
from ssamba.audio.files import Skipped, path_text
from ssamba.config import Config
from ssamba.errors import DataError
from ssamba.hashing import digest_of
from ssamba.studies.material import LEVEL, Samples, check_there, faded, levelled, loudest, skipped

Side = Literal["windows", "full", "log-mel"]

_SHARE = 0.1  # of a haystack that may be needles
_SHORTEST_S = 0.2


class NeedleOptions(Config):
    """What is placed where, and how it is searched for."""

    minutes: tuple[float, ...] = (1.0, 10.0, 60.0, 150.0)
    """Lengths of the haystacks."""
    levels_db: tuple[float, ...] = (0.0, -6.0, -12.0)
    """Levels of the needles, relative to the haystack."""
    sides: tuple[Side, ...] = ("windows", "full", "log-mel")
    """`windows` and `full` are the model's contexts; `log-mel` are its input features without the model, as a comparison."""
    needles: int = Field(12, ge=1)
    """Different needles at most."""
    needle_s: float = Field(2.0, gt=_SHORTEST_S)
    """Longer needles are cut to the stretch of this length with the most energy."""
    seed: int = Field(0, ge=0)
    """Of everything that is drawn."""

    @model_validator(mode="after")
    def _check(self) -> NeedleOptions:
        for name in ("minutes", "levels_db", "sides"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must name each thing once, and at least one, got {values}")
        shortest_min = self.needle_s / _SHARE / 60
        if any(not shortest_min <= minutes < float("inf") for minutes in self.minutes):
            raise ValueError(
                f"minutes must be at least {shortest_min:.2f}, ten needles of {self.needle_s:g} s, got {self.minutes}"
            )
        return self


class Needle(NamedTuple):
    """A sound to search for."""

    name: str
    wave: Samples
    """(S,), at `LEVEL`."""


class Placement(NamedTuple):
    """A needle in a haystack."""

    needle: int
    """Its number."""
    level_db: float
    start: int
    """Its first sample."""


class Haystack(NamedTuple):
    """A haystack, and what is in it."""

    minutes: float
    number: int
    """Among those of its length."""
    placements: tuple[Placement, ...]


def choose_needles(
    haystack: Sequence[Path], needles: Sequence[Path], options: NeedleOptions, sample_rate_hz: int
) -> tuple[list[Needle], list[Path], list[Skipped]]:
    """The needles, the files that remain for the haystack, and needles that could not be used.

    Args:
        haystack: recordings to join; what is a needle is left out of them.
        needles: sounds to search for; none takes random recordings out of `haystack`, at most half of them.
        options: how many, and how long.
        sample_rate_hz: the model's.

    Raises:
        DataError: a file does not exist, there are no needles, or nothing is left to hide them in.
    """
    check_there([*haystack, *needles])
    most = options.needles
    candidates = list(needles)
    if not candidates:
        random = np.random.default_rng([options.seed, 0])
        candidates = [haystack[i] for i in random.permutation(len(haystack))]
        most = min(most, len(candidates) // 2)
    chosen: list[Needle] = []
    taken: set[Path] = set()
    unusable: list[Skipped] = []
    for path in candidates:
        if len(chosen) == most:
            break
        taken.add(path.resolve())
        try:
            wave = decode(path, sample_rate_hz=sample_rate_hz)
            wave = loudest(wave, round(options.needle_s * sample_rate_hz))
            if len(wave) < _SHORTEST_S * sample_rate_hz:
                raise ValueError(f"shorter than {_SHORTEST_S:g} s, too short for a needle")
            chosen.append(Needle(path.stem, faded(levelled(wave), sample_rate_hz)))
        except (ValueError, OSError) as error:
            unusable.append(skipped(path, error))
    rest = [path for path in haystack if path.resolve() not in taken]
    if not chosen or not rest:
        what = "no needle can be used" if not chosen else "nothing is left for the haystack"
        reasons = "".join(f"; {entry.reason}" for entry in unusable[:3])
        raise DataError(
            f"{what}: got {len(haystack)} recordings for the haystack and {len(needles)} needles, expected at least two "
            f"recordings, or one and needles of their own{reasons}"
        )
    return chosen, rest, unusable


def plan(options: NeedleOptions, lengths: Sequence[int], sample_rate_hz: int) -> list[Haystack]:
    """All haystacks, shortest first.

    Args:
        options: lengths and levels.
        lengths: samples of each needle.
        sample_rate_hz: the model's.
    """
    haystacks = []
    levels = options.levels_db
    for minutes in sorted(options.minutes):
        total = round(60 * minutes * sample_rate_hz)
        random = np.random.default_rng([options.seed, 1, round(60_000 * minutes)])
        groups = -(-len(lengths) // max(1, int(_SHARE * total / max(lengths))))
        number = 0
        for turn in range(len(levels)):
            for group in np.array_split(random.permutation(len(lengths)), groups):
                placed = []
                for place, needle in enumerate(map(int, group)):
                    first, last = (int(share * total / len(group)) for share in (place, place + 1))
                    start = int(random.integers(first, last - lengths[needle] + 1))
                    placed.append(Placement(needle, levels[(needle + turn) % len(levels)], start))
                haystacks.append(Haystack(minutes, number, tuple(placed)))
                number += 1
    return haystacks


def hide(hay: Samples, haystack: Haystack, needles: Sequence[Needle]) -> None:
    """Add the needles to a haystack (S,) at `LEVEL`, in place."""
    for needle, level_db, start in haystack.placements:
        wave = needles[needle].wave
        hay[start : start + len(wave)] += wave * np.float32(10 ** (level_db / 20))


def identity(options: NeedleOptions, model_digest: str, needles: Sequence[Needle], files: Sequence[Path]) -> str:
    """Sixteen hexadecimal digits of everything that the results depend on, but for the contents of the haystack's files."""
    return digest_of(
        f"{options.digest()} {model_digest} {LEVEL}",
        *(needle.wave for needle in needles),
        *(f"{path_text(path)} {path.stat().st_size}\n" for path in files),
    )
