"""The needle test: is a known short sound found again in hours of other recordings, by its embedding?

In the spirit of DASS's Audio-NIAH (Bhati et al., 2024, arXiv:2407.04082): needles are placed at known times in joined
recordings of a minute to hours (`needle_plan`); the sound embedded alone is the query, and the time step of the haystack
whose embedding is most like it is where the model would look. Two ways to compare (`Matcher`): each time step with the
needle's mean, by their cosine after the haystack's mean was subtracted (`frame`); and as many steps as the needle has with its
own, one by one, after the haystack was whitened as well (`matched`, the matched filter for noise of its covariance: what is
common in the haystack counts little). A needle is found where the best time lies within it. Further places are counted at least a needle's length
apart from better ones, the first five of them.

Shapes: S samples, K time steps, D channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ssamba.audio.files import Skipped
from ssamba.embedder import Embedder, EmbedOptions
from ssamba.evaluation.caching import Array
from ssamba.studies.harness import changed_surroundings, is_out_of_memory, surroundings
from ssamba.studies.material import Material, Samples
from ssamba.studies.needle_plan import Haystack, Needle, NeedleOptions, Side, choose_needles, hide, identity, plan

Rule = Literal["frame", "matched"]
RULES: tuple[Rule, ...] = ("frame", "matched")
_PLACES = 5
_RIDGE = 1e-3  # of the mean variance, added to each before whitening
_CURVE_POINTS = 600
_LOG_MEL_COST = 0.03  # of a pass through the model, for the time left


@dataclass(frozen=True)
class Trial:
    """One needle in one haystack, searched for in one way."""

    minutes: float
    haystack: int
    side: Side
    rule: Rule
    needle: str
    level_db: float
    start_s: float
    """Where the needle begins."""
    end_s: float
    found_s: float
    """Where the best time step is."""
    rank: int | None
    """1 where the best place lies within the needle, up to 5; None where none of five places does."""
    share_above: float
    """Share of the time steps outside the needle that are more like it than the best one inside."""
    chance: float
    """Share of the time steps that lie within the needle."""


@dataclass(frozen=True)
class Pass:
    """One haystack that went through one side."""

    minutes: float
    haystack: int
    side: Side
    seconds: float
    """Of embedding it."""
    stopped: str | None = None
    """Why there is no result, in words."""


@dataclass(frozen=True)
class Curve:
    """Similarity over a haystack's time, the highest of each bin."""

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
    """All trials, and what they were made with."""

    options: NeedleOptions
    identity: str
    """Digest of options, model, needles and files: studies that have the same can be continued."""
    environment: dict[str, Any]
    needles: dict[str, float]
    """Seconds of each needle."""
    files: int
    """Recordings to make haystacks of."""
    skipped: list[Skipped] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    finished: bool = False


class Progress(NamedTuple):
    """How far the study is."""

    done: float
    """Minutes of audio."""
    total: float
    what: str


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
        model: what embeds.
        haystack: recordings to join.
        needles: sounds to search for; none takes some out of `haystack`.
        options: lengths, levels and sides; None is the default.
        before: a study that was interrupted; what it has is not computed again.
        on_progress: called before each pass, with what there is so far (to show it, or to keep it safe).

    Raises:
        DataError: the recordings cannot be used, or there are too few of them.
        ValueError: `before` was made with something else.
    """
    options = options or NeedleOptions()
    rate_hz = model.front_end.sample_rate_hz
    chosen, rest, skipped = choose_needles(haystack, needles, options, rate_hz)
    study = NeedleStudy(
        options,
        identity(options, model.digest(EmbedOptions()), chosen, rest),
        {**surroundings(model.device), "model": model.name},
        {needle.name: len(needle.wave) / rate_hz for needle in chosen},
        len(rest),
        skipped,
    )
    if before is not None:
        if before.identity != study.identity:
            raise ValueError("the study to go on with was made with another model, other recordings or other options")
        changed = changed_surroundings(before.environment, study.environment)
        if changed:  # seconds depend on it, what is found does not
            earlier = ", ".join(f"{name} {before.environment.get(name)}" for name in sorted(changed))
            before.environment = {**study.environment, "begun_with": earlier}
        before.passes = [p for p in before.passes if not p.stopped]  # there may be more memory now
        study = before
    run = _Run(model, chosen, Material(rest, rate_hz), study)
    time_steps(model, np.tile(chosen[0].wave, 4), "windows")  # warm: seconds are of what follows
    stacks = plan(options, [len(needle.wave) for needle in chosen], rate_hz)
    costs = {
        (s, side): s.minutes * (_LOG_MEL_COST if side == "log-mel" else 1) for s in stacks for side in options.sides
    }
    done = {(p.minutes, p.haystack, p.side) for p in study.passes}
    passed = 0.0
    for stack in stacks:
        hay: Samples | None = None
        for side in options.sides:
            if (stack.minutes, stack.number, side) not in done and not run.has_stopped(side):
                if on_progress is not None:
                    on_progress(Progress(passed, sum(costs.values()), f"{stack.minutes:g} min, {side}"), study)
                hay = run.haystack(stack) if hay is None else hay
                run.search(stack, hay, side, keep_curve=stack.minutes == max(options.minutes) and stack.number == 0)
            passed += costs[stack, side]
    study.finished = True
    if on_progress is not None:
        on_progress(Progress(passed, passed, "done"), study)
    return study


class _Run:
    """What the passes of a study share."""

    def __init__(self, model: Embedder, needles: Sequence[Needle], material: Material, study: NeedleStudy):
        self.model, self.needles, self.material, self.study = model, needles, material, study
        self._queries: dict[Side, list[Array]] = {}

    def haystack(self, stack: Haystack) -> Samples:
        """The haystack's samples, needles and all."""
        options, rate_hz = self.study.options, self.material.sample_rate_hz
        random = np.random.default_rng([options.seed, 2, round(60_000 * stack.minutes), stack.number])
        hay = self.material.joined(round(60 * stack.minutes * rate_hz), random)
        hide(hay, stack, self.needles)
        for entry in self.material.skipped:
            if entry not in self.study.skipped:
                self.study.skipped.append(entry)
        return hay

    def has_stopped(self, side: Side) -> bool:
        """Whether the side could not go on at this length or a shorter one."""
        return any(p.side == side and p.stopped for p in self.study.passes)

    def search(self, stack: Haystack, hay: Samples, side: Side, *, keep_curve: bool) -> None:
        """One pass, its trials, and perhaps the loudest needle's curve, all added to the study at once."""
        study, rate_hz = self.study, self.material.sample_rate_hz
        started = time.perf_counter()
        try:
            frames, times_s = time_steps(self.model, hay, side)
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
                        *judge(scores, at_s, start_s, end_s),
                    )
                )  # fmt: skip
                if keep_curve and rule == "matched" and placement == loudest:
                    curves.append(
                        Curve(stack.minutes, side, name, placement.level_db, start_s, end_s, *_thinned(scores, at_s))
                    )
        study.passes.append(Pass(stack.minutes, stack.number, side, seconds))
        study.trials += trials
        study.curves += curves


def time_steps(model: Embedder, wave: Samples, side: Side) -> tuple[Array, Array]:
    """What represents each time step of a recording (S,): vectors (K, D), and the steps' centers in seconds (K,)."""
    if side != "log-mel":
        embedding = model.embed(wave, context=side)
        return embedding.frames.numpy(), embedding.times_s.numpy()
    features = model.features(wave)
    stride = min(model.encoder.config.patch_stride[1], len(features))
    steps = F.avg_pool1d(features.T[None], stride)[0].T.numpy()
    step_s = stride * model.front_end.shift_samples / model.front_end.sample_rate_hz
    return steps, (np.arange(len(steps)) + 0.5) * step_s


class Matcher:
    """Compares the time steps of a haystack with those of needles, by one rule.

    Attributes:
        steps: of the haystack, centered, whitened for `matched`, each of length 1, (K, D).
    """

    def __init__(self, frames: Array, times_s: Array, rule: Rule):
        """Args: the haystack's time steps (K, D), their centers in seconds (K,), and how to compare."""
        steps = torch.from_numpy(np.ascontiguousarray(frames))
        self.rule, self.times_s, self._center = rule, times_s, steps.mean(0)
        steps = steps - self._center
        self._whiten = torch.eye(steps.shape[1])
        if rule == "matched":
            covariance = (steps.T @ steps).double() / len(steps)
            values, vectors = torch.linalg.eigh(covariance)
            self._whiten = (vectors / (values.clamp(min=0) + _RIDGE * values.mean()).clamp(min=1e-12).sqrt()).float()
            steps = steps @ self._whiten
        self.steps = F.normalize(steps, dim=1)

    def similarity(self, query: Array) -> tuple[Array, Array]:
        """How like a needle's time steps (K_q, D) each place is: (K',) from -1 to 1, and where that is in seconds (K',)."""
        wanted = torch.from_numpy(np.ascontiguousarray(query))
        if self.rule == "frame":
            wanted = wanted.mean(0, keepdim=True)
        width = min(len(wanted), len(self.steps))
        kernel = F.normalize((wanted[:width] - self._center) @ self._whiten, dim=1) / width
        scores = F.conv1d(self.steps.T[None], kernel.T[None])[0, 0].numpy()
        return scores, (self.times_s[: len(scores)] + self.times_s[width - 1 :]) / 2


def judge(scores: Array, at_s: Array, start_s: float, end_s: float) -> tuple[float, int | None, float, float]:
    """Whether a needle was found.

    Args:
        scores: similarity of each place, (K,).
        at_s: where that is, (K,).
        start_s, end_s: the needle.

    Returns:
        Where the best place is (s); rank of the needle among places that lie at least its length apart, None beyond
        five; share of the places outside that score higher than the best inside; share of all places that lie inside.
    """
    inside = (at_s >= start_s) & (at_s <= end_s)
    assert inside.any(), "a needle is longer than a time step"
    best_inside = scores[inside].max()
    left = scores.copy()
    rank = None
    for place in range(1, _PLACES + 1):
        best = int(np.argmax(left))
        if inside[best]:
            rank = place
            break
        left[(np.abs(at_s - at_s[best]) < end_s - start_s) & ~inside] = -np.inf
        left[best] = -np.inf
    outside = int((~inside).sum())
    above = float((scores[~inside] > best_inside).sum() / max(1, outside))
    return float(at_s[np.argmax(scores)]), rank, above, float(inside.mean())


def _thinned(scores: Array, at_s: Array) -> tuple[list[float], list[float]]:
    """Times and the highest similarity of at most so many bins."""
    bins = np.array_split(np.arange(len(scores)), min(_CURVE_POINTS, len(scores)))
    best = [part[np.argmax(scores[part])] for part in bins]
    return [round(float(at_s[i]), 2) for i in best], [round(float(scores[i]), 4) for i in best]
