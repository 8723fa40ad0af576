"""Confidence intervals by the percentile bootstrap (Efron, 1979).

Shapes: N clips, K values of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssamba.metrics import classification as metrics
from ssamba.metrics.classification import Array, Ranking, mean_of_classes

_MIN_SAMPLES = 100
_RANKED_SCORES = 200_000_000  # scores ranked for one interval: minutes at most


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def bootstrap_values(
    metric: Callable[[Array, Array], float],
    scores: Array,
    targets: Array,
    *,
    samples: int = 1000,
    seed: int = 0,
    units: Array | None = None,
) -> Array:
    """Return a metric on bootstrap samples of the clips, (samples,); `interval_of` gives its confidence interval.

    Samples on which the metric is undefined (no positive clip was drawn) are drawn again. For metrics that depend on
    the order of clips alone the clips are sorted once.

    Args:
        metric: `mean_average_precision` or another function of scores and targets.
        scores: first axis N.
        targets: first axis N.
        samples: number of bootstrap samples.
        seed: random seed of the draws.
        units: (N,), clips with the same unit are drawn together (the segments of a recording); None draws single clips.

    Raises:
        ValueError: the metric is undefined on too many samples.
    """
    generator, failed = np.random.default_rng(seed), 0
    values: list[float] = []
    scores, targets = np.asarray(scores), np.asarray(targets)
    members = None if units is None else _members(units)
    count = len(scores) if members is None else len(members)
    by_rank = _BY_RANK.get(metric)
    ranking = None if by_rank is None else Ranking(*metrics.check_multilabel(scores, targets))
    while len(values) < samples:
        drawn = generator.integers(0, count, count)
        rows = drawn if members is None else np.concatenate([members[unit] for unit in drawn])
        try:
            if by_rank is not None and ranking is not None:
                values.append(by_rank(ranking, np.bincount(rows, minlength=len(scores))))
            else:
                values.append(metric(scores[rows], targets[rows]))
        except ValueError:
            failed += 1
            if failed > samples:
                raise
    return np.array(values)


def bootstrap_means(values: Array, *, samples: int = 1000, seed: int = 0) -> Array:
    """Return the means of columns of values (N, K) on bootstrap samples of the rows, the same rows for all columns.

    Returns:
        (samples, K).
    """
    generator, count = np.random.default_rng(seed), len(values)
    drawn = (np.bincount(generator.integers(0, count, count), minlength=count) for _ in range(samples))
    return np.stack([weights @ values / count for weights in drawn])


def affordable_samples(num_scores: int, at_most: int) -> int:
    """Return the number of bootstrap samples, 100 to `at_most`, for a metric that ranks `num_scores` scores."""
    return int(np.clip(_RANKED_SCORES / max(1, num_scores), _MIN_SAMPLES, at_most))


def interval_of(values: Array, confidence: float = 0.95) -> Interval:
    """Return the interval of the middle share `confidence` of values (samples,), which may be infinite."""
    tail = (1 - confidence) / 2
    if not np.isfinite(values).all():  # d' of perfect samples: no interpolation between a number and infinity
        ranked, last = np.sort(values), len(values) - 1
        return Interval(float(ranked[math.floor(tail * last)]), float(ranked[math.ceil((1 - tail) * last)]))
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), float(high))


_BY_RANK: dict[Callable[[Array, Array], float], Callable[[Ranking, Array], float]] = {
    metrics.mean_average_precision: lambda r, weights: mean_of_classes(r.average_precision(weights), metrics.POSITIVE),
    metrics.mean_area_under_curve: lambda r, weights: mean_of_classes(r.area(weights), metrics.BOTH),
    metrics.mean_equal_error_rate: lambda r, weights: mean_of_classes(r.equal_error(weights), metrics.BOTH),
    metrics.d_prime: lambda r, weights: metrics.d_prime_of_area(mean_of_classes(r.area(weights), metrics.BOTH)),
}
"""Metrics that depend on the order of clips alone, from a ranking and the weights of clips (N,)."""


def _members(units: Array) -> list[Array]:
    """Return the indices of each unit's clips."""
    numbers = np.unique(units, return_inverse=True)[1]
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
