"""Needle test: is a known short sound found again in hours of other recordings by its embedding?

In the spirit of DASS's Audio-NIAH (Bhati et al., 2024, arXiv:2407.04082). Needles are added at known times to
haystacks, concatenated recordings of a minute to hours. The query is the embedding of the needle alone; the best match
is the time step of the haystack whose embedding is most similar to it. The needle is found if that step lies inside the
needle. Similarity is computed by two rules (`Matcher`): `frame` compares each time step with the needle's mean, by
their cosine after subtracting the haystack's mean; `matched` compares a sequence of steps with the needle's own steps,
one by one, after whitening the haystack (the matched filter for noise of its covariance, which weights down what is
common in the haystack). The best five places count, each at least a needle's length from any better one.

At each duration every needle is placed once at each level. A haystack holds several different needles, each in a
section of its own, as long as they fill at most a tenth of it, so that one pass over hours of audio tests many. Levels
are ratios of root mean squares, needle to haystack.

Shapes: S samples, K time steps, D channels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from ssamba.audio.decode import decode
from ssamba.audio.files import Skipped
from ssamba.config import Config, settings_differences
from ssamba.embedder import Embedder
from ssamba.embedding import EmbedOptions
from ssamba.errors import DataError, OtherSettingsError
from ssamba.files import path_text
from ssamba.hashing import digest_of
from ssamba.studies.harness import Progress, environment, environment_changes, is_out_of_memory
from ssamba.studies.recordings import (
    LEVEL,
    RecordingPool,
    Samples,
    fade_ends,
    loudest_segment,
    normalize_level,
    require_files,
    skipped_recording,
)

Array = npt.NDArray[Any]
Side = Literal["windows", "full", "log-mel"]
Rule = Literal["frame", "matched"]
RULES: tuple[Rule, ...] = ("frame", "matched")

_MOST_NEEDLES_SHARE = 0.1  # of a haystack's duration
_SHORTEST_S = 0.2
_PLACES = 5
_RIDGE = 1e-3  # fraction of the mean variance that is added to each variance before whitening
_CURVE_POINTS = 600
_LOG_MEL_COST = 0.03  # relative to a pass through the model, for the estimate of the time left


class NeedleOptions(Config):
    """Options of the study."""

    minutes: tuple[float, ...] = (1.0, 10.0, 60.0, 150.0)
    """Durations of the haystacks."""
    levels_db: tuple[float, ...] = (0.0, -6.0, -12.0)
    """Levels of the needles, relative to the haystack."""
    sides: tuple[Side, ...] = ("windows", "full", "log-mel")
    """`windows` and `full` are the model's contexts; `log-mel` is its input without the model, for comparison."""
    needles: int = Field(12, ge=1)
    """Most needles."""
    needle_s: float = Field(2.0, gt=_SHORTEST_S)
    """Longer needles are cut to their segment of this duration with the most energy."""
    seed: int = Field(0, ge=0)
    """Seed of all random draws."""

    @model_validator(mode="after")
    def _check(self) -> NeedleOptions:
        for name in ("minutes", "levels_db", "sides"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must name each thing once, and at least one, got {values}")
        shortest_min = self.needle_s / _MOST_NEEDLES_SHARE / 60
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
    """Index of the needle."""
    level_db: float
    start: int
    """Its first sample."""


class Haystack(NamedTuple):
    """A haystack and the needles in it."""

    minutes: float
    number: int
    """Index among the haystacks of this duration."""
    placements: tuple[Placement, ...]


@dataclass(frozen=True)
class Trial:
    """Search for one needle in one haystack, with one side and rule."""

    minutes: float
    haystack: int
    side: Side
    rule: Rule
    needle: str
    level_db: float
    start_s: float
    """Start of the needle."""
    end_s: float
    found_s: float
    """Time of the best match."""
    rank: int | None
    """Rank (1 to 5) of the first place that lies inside the needle; None if none of the five does."""
    share_above: float
    """Fraction of the time steps outside the needle that match better than the best one inside."""
    chance: float
    """Fraction of the time steps that lie inside the needle."""


@dataclass(frozen=True)
class Pass:
    """One haystack embedded by one side."""

    minutes: float
    haystack: int
    side: Side
    seconds: float
    """Time to embed it."""
    stopped: str | None = None
    """Reason if there is no result."""


@dataclass(frozen=True)
class Curve:
    """Similarity over the time of a haystack, the maximum of each bin."""

    minutes: float
    side: Side
    needle: str
    level_db: float
    start_s: float
    end_s: float
    times_s: list[float]
    similarity: list[float]


@dataclass
class NeedleStudy:
    """All trials, and the environment and data they were made with."""

    options: NeedleOptions
    identity: str
    """Digest of options, model, needles and files: a study with the same digest can be resumed."""
    environment: dict[str, Any]
    needles: dict[str, float]
    """Duration in seconds of each needle."""
    files: int
    """Number of recordings for the haystacks."""
    skipped: list[Skipped] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    finished: bool = False


def choose_needles(
    haystack: Sequence[Path], needles: Sequence[Path], options: NeedleOptions, sample_rate_hz: int
) -> tuple[list[Needle], list[Path], list[Skipped]]:
    """Return the needles, the files that remain for the haystack, and the needles that could not be used.

    Args:
        haystack: recordings to concatenate; those that are needles are left out.
        needles: sounds to search for; if empty, random recordings of `haystack` are taken, at most half of them.
        options: number and duration of needles.
        sample_rate_hz: sample rate of the model.

    Raises:
        DataError: a file does not exist, no needle can be used, or no recording remains for the haystack.
    """
    require_files([*haystack, *needles])
    most = options.needles
    candidates = list(needles)
    if not candidates:
        rng = np.random.default_rng([options.seed, 0])
        candidates = [haystack[i] for i in rng.permutation(len(haystack))]
        most = min(most, len(candidates) // 2)
    chosen: list[Needle] = []
    taken: set[str] = set()
    unusable: list[Skipped] = []
    for path in candidates:
        if len(chosen) == most:
            break
        taken.add(os.path.realpath(path))
        try:
            wave = decode(path, sample_rate_hz=sample_rate_hz)
            wave = loudest_segment(wave, round(options.needle_s * sample_rate_hz))
            if len(wave) < _SHORTEST_S * sample_rate_hz:
                raise ValueError(f"shorter than {_SHORTEST_S:g} s, too short for a needle")
            chosen.append(Needle(path.stem, fade_ends(normalize_level(wave), sample_rate_hz)))
        except (ValueError, OSError) as error:
            unusable.append(skipped_recording(path, error))
    rest = [path for path in haystack if os.path.realpath(path) not in taken]
    if not chosen or not rest:
        what = "no needle can be used" if not chosen else "nothing is left for the haystack"
        reasons = "".join(f"; {entry.reason}" for entry in unusable[:3])
        raise DataError(
            f"{what}: got {len(haystack)} recordings for the haystack and {len(needles)} needles, expected at least "
            f"two recordings, or one and needles of their own{reasons}"
        )
    return chosen, rest, unusable


def plan(options: NeedleOptions, lengths: Sequence[int], sample_rate_hz: int) -> list[Haystack]:
    """Return all haystacks, shortest first.

    Args:
        options: durations and levels.
        lengths: number of samples of each needle.
        sample_rate_hz: sample rate of the model.
    """
    haystacks = []
    levels = options.levels_db
    for minutes in sorted(options.minutes):
        total = round(60 * minutes * sample_rate_hz)
        rng = np.random.default_rng([options.seed, 1, round(60_000 * minutes)])
        groups = -(-len(lengths) // max(1, int(_MOST_NEEDLES_SHARE * total / max(lengths))))
        number = 0
        for turn in range(len(levels)):
            for group in np.array_split(rng.permutation(len(lengths)), groups):
                placements = []
                for section, needle in enumerate(map(int, group)):
                    first, last = (int(share * total / len(group)) for share in (section, section + 1))
                    start = int(rng.integers(first, last - lengths[needle] + 1))
                    placements.append(Placement(needle, levels[(needle + turn) % len(levels)], start))
                haystacks.append(Haystack(minutes, number, tuple(placements)))
                number += 1
    return haystacks


def add_needles(wave: Samples, haystack: Haystack, needles: Sequence[Needle]) -> None:
    """Add the needles to the haystack's samples (S,) at `LEVEL`, in place."""
    for needle, level_db, start in haystack.placements:
        added = needles[needle].wave
        wave[start : start + len(added)] += added * np.float32(10 ** (level_db / 20))


def identity(options: NeedleOptions, model_digest: str, needles: Sequence[Needle], files: Sequence[Path]) -> str:
    """Return a digest of everything that the results depend on, except for the contents of the haystack's files."""
    return digest_of(
        f"{options.digest()} {model_digest} {LEVEL}",
        *(needle.wave for needle in needles),
        *(f"{path_text(path)} {path.stat().st_size}\n" for path in files),
    )


def _settings(study: NeedleStudy) -> dict[str, Any]:
    """Return what a message can name of that which must be equal for a study to be resumed."""
    facts = {"model": study.environment.get("model"), "recordings": study.files, "sounds": sorted(study.needles)}
    return {**facts, **study.options.model_dump(mode="json")}


def measure_needles(
    model: Embedder,
    haystack: Sequence[Path],
    needles: Sequence[Path] = (),
    options: NeedleOptions | None = None,
    *,
    before: NeedleStudy | None = None,
    on_progress: Callable[[Progress, NeedleStudy], None] | None = None,
) -> NeedleStudy:
    """Run the test.

    Args:
        model: the model under test.
        haystack: recordings to concatenate.
        needles: sounds to search for; if empty, some of `haystack` are taken.
        options: durations, levels and sides; None means the default.
        before: an interrupted study to resume; its passes are not computed again.
        on_progress: called before each pass with the study so far, to show or save it. Progress is in minutes of audio.

    Raises:
        DataError: the recordings cannot be used, or there are too few of them.
        OtherSettingsError: `before` was made with another model, recordings or options; the message names them.
    """
    options = options or NeedleOptions()
    rate_hz = model.front_end.sample_rate_hz
    chosen, rest, unusable = choose_needles(haystack, needles, options, rate_hz)
    study = NeedleStudy(
        options,
        identity(options, model.digest(EmbedOptions()), chosen, rest),
        {**environment(model.device), "model": model.name},
        {needle.name: len(needle.wave) / rate_hz for needle in chosen},
        len(rest),
        unusable,
    )
    if before is not None:
        if before.identity != study.identity:
            changed = settings_differences(_settings(before), _settings(study))
            what = "; ".join(changed) or "the weights, the recordings or the needles are not the same"
            raise OtherSettingsError(f"the study was made with other settings: {what}")
        changes = environment_changes(before.environment, study.environment)
        if changes:  # times depend on the environment, results do not
            begun_with = ", ".join(f"{name} {before.environment.get(name)}" for name in sorted(changes))
            before.environment = {**study.environment, "begun_with": begun_with}
        before.passes = [p for p in before.passes if not p.stopped]  # there may be more memory now
        study = before
    search = _Search(model, chosen, RecordingPool(rest, rate_hz), study)
    time_steps(model, np.tile(chosen[0].wave, 4), "windows")  # warm-up
    stacks = plan(options, [len(needle.wave) for needle in chosen], rate_hz)
    costs = {
        (s, side): s.minutes * (_LOG_MEL_COST if side == "log-mel" else 1) for s in stacks for side in options.sides
    }
    known = {(p.minutes, p.haystack, p.side) for p in study.passes}
    done = 0.0
    for stack in stacks:
        wave: Samples | None = None
        for side in options.sides:
            if (stack.minutes, stack.number, side) not in known and not search.has_stopped(side):
                if on_progress is not None:
                    on_progress(Progress(done, sum(costs.values()), f"{stack.minutes:g} min, {side}"), study)
                wave = search.build(stack) if wave is None else wave
                is_longest = stack.minutes == max(options.minutes) and stack.number == 0
                search.run(stack, wave, side, with_curve=is_longest)
            done += costs[stack, side]
    study.finished = True
    if on_progress is not None:
        on_progress(Progress(done, done, "done"), study)
    return study


class _Search:
    """State that the passes of a study share."""

    def __init__(self, model: Embedder, needles: Sequence[Needle], pool: RecordingPool, study: NeedleStudy):
        self.model, self.needles, self.pool, self.study = model, needles, pool, study
        self._queries: dict[Side, list[Array]] = {}

    def build(self, stack: Haystack) -> Samples:
        """Return the samples of a haystack (S,), needles included."""
        options, rate_hz = self.study.options, self.pool.sample_rate_hz
        rng = np.random.default_rng([options.seed, 2, round(60_000 * stack.minutes), stack.number])
        wave = self.pool.concatenate(round(60 * stack.minutes * rate_hz), rng)
        add_needles(wave, stack, self.needles)
        self.study.skipped += [entry for entry in self.pool.skipped if entry not in self.study.skipped]
        return wave

    def has_stopped(self, side: Side) -> bool:
        """Return whether the side ran out of memory at this duration or a shorter one."""
        return any(p.side == side and p.stopped for p in self.study.passes)

    def run(self, stack: Haystack, wave: Samples, side: Side, *, with_curve: bool) -> None:
        """Embed a haystack (S,), search for its needles, and add the pass and its trials to the study.

        Args:
            stack: the haystack.
            wave: its samples.
            side: how to embed it.
            with_curve: also record the similarity curve of the loudest needle.
        """
        study, rate_hz = self.study, self.pool.sample_rate_hz
        started = time.perf_counter()
        try:
            frames, times_s = time_steps(self.model, wave, side)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            study.passes.append(Pass(stack.minutes, stack.number, side, 0.0, "out of memory"))
            return
        seconds = time.perf_counter() - started
        if side not in self._queries:
            self._queries[side] = [time_steps(self.model, needle.wave, side)[0] for needle in self.needles]
        trials, curves = [], []
        matchers = {rule: Matcher(frames, times_s, rule) for rule in RULES}
        loudest = max(stack.placements, key=lambda placement: placement.level_db)
        for placement in stack.placements:
            query, name = self._queries[side][placement.needle], self.needles[placement.needle].name
            start_s = placement.start / rate_hz
            end_s = start_s + len(self.needles[placement.needle].wave) / rate_hz
            for rule in RULES:
                scores, at_s = matchers[rule].similarity(query)
                trials.append(
                    Trial(
                        stack.minutes, stack.number, side, rule, name, placement.level_db, start_s, end_s,
                        *rank_needle(scores, at_s, start_s, end_s),
                    )
                )  # fmt: skip
                if with_curve and rule == "matched" and placement == loudest:
                    points = _bin_maxima(scores, at_s)
                    curves.append(Curve(stack.minutes, side, name, placement.level_db, start_s, end_s, *points))
        study.passes.append(Pass(stack.minutes, stack.number, side, seconds))
        study.trials += trials
        study.curves += curves


def time_steps(model: Embedder, wave: Samples, side: Side) -> tuple[Array, Array]:
    """Return a vector for each time step of a recording (S,): (K, D), and the centers of the steps in seconds, (K,)."""
    if side != "log-mel":
        embedding = model.embed(wave, context=side)
        return embedding.frames.numpy(), embedding.times_s.numpy()
    features = model.features(wave)
    stride = min(model.encoder.config.patch_stride[1], len(features))
    steps = F.avg_pool1d(features.T[None], stride)[0].T.numpy()
    step_s = stride * model.front_end.shift_samples / model.front_end.sample_rate_hz
    return steps, (np.arange(len(steps)) + 0.5) * step_s


class Matcher:
    """Compare the time steps of a haystack with those of needles, by one rule.

    Attributes:
        steps: time steps of the haystack, centered, whitened for `matched`, and scaled to length 1, (K, D).
    """

    def __init__(self, frames: Array, times_s: Array, rule: Rule):
        """Args: time steps of the haystack (K, D), their centers in seconds (K,), and the rule."""
        steps = torch.from_numpy(np.ascontiguousarray(frames))
        self.rule, self.times_s, self._mean = rule, times_s, steps.mean(0)
        steps = steps - self._mean
        self._whitening = torch.eye(steps.shape[1])
        if rule == "matched":
            covariance = (steps.T @ steps).double() / len(steps)
            values, vectors = torch.linalg.eigh(covariance)
            scale = (values.clamp(min=0) + _RIDGE * values.mean()).clamp(min=1e-12).sqrt()
            self._whitening = (vectors / scale).float()
            steps = steps @ self._whitening
        self.steps = F.normalize(steps, dim=1)

    def similarity(self, query: Array) -> tuple[Array, Array]:
        """Return each place's similarity, -1 to 1, to a needle's time steps (K_q, D), and its time in s: (K',) each."""
        steps = torch.from_numpy(np.ascontiguousarray(query))
        if self.rule == "frame":
            steps = steps.mean(0, keepdim=True)
        width = min(len(steps), len(self.steps))
        kernel = F.normalize((steps[:width] - self._mean) @ self._whitening, dim=1) / width
        scores = F.conv1d(self.steps.T[None], kernel.T[None])[0, 0].numpy()
        return scores, (self.times_s[: len(scores)] + self.times_s[width - 1 :]) / 2


def rank_needle(scores: Array, at_s: Array, start_s: float, end_s: float) -> tuple[float, int | None, float, float]:
    """Decide whether a needle was found.

    Args:
        scores: similarity of each place, (K,).
        at_s: time of each place, (K,).
        start_s, end_s: the needle.

    Returns:
        Time of the best place (s); rank of the needle among places at least its length apart, None beyond five;
        fraction of the places outside that score higher than the best inside; fraction of all places that lie inside.
    """
    inside = (at_s >= start_s) & (at_s <= end_s)
    assert inside.any(), "a needle is longer than a time step"
    best_inside = scores[inside].max()
    remaining = scores.copy()
    rank = None
    for place in range(1, _PLACES + 1):
        best = int(np.argmax(remaining))
        if inside[best]:
            rank = place
            break
        remaining[(np.abs(at_s - at_s[best]) < end_s - start_s) & ~inside] = -np.inf
        remaining[best] = -np.inf
    outside = int((~inside).sum())
    above = float((scores[~inside] > best_inside).sum() / max(1, outside))
    return float(at_s[np.argmax(scores)]), rank, above, float(inside.mean())


def _bin_maxima(scores: Array, at_s: Array) -> tuple[list[float], list[float]]:
    """Return times and similarities (K,) reduced to the maximum of each of at most 600 bins."""
    bins = np.array_split(np.arange(len(scores)), min(_CURVE_POINTS, len(scores)))
    best = [part[np.argmax(scores[part])] for part in bins]
    return [round(float(at_s[i]), 2) for i in best], [round(float(scores[i]), 4) for i in best]
