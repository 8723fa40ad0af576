"""Metrics of scores against targets, in plain NumPy.

Multilabel metrics take `scores` and `targets` (N, C): real numbers, and 0 or 1. Single-label metrics take `scores` (N, C)
and `targets` (N,) class indices, or (N, C) with a single 1 in each row; the guess is the first of the highest scores.

Absent classes: a class without a positive clip has no average precision and no recall, one without a negative clip has
no AUC either; per-class functions give NaN there, and means leave it out. (scikit-learn's macro average precision counts
such a class as 0, which makes the figure depend on which classes a fold happens to hold.) Where no class is left the
mean does not exist, and that is an error. Ties between clips are treated as scikit-learn does: equal scores share one
threshold. Scores must be finite: infinities cannot be told from each other.

Shapes: N clips (segments, trials), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ssamba.metrics.ranking import Array, Ranking


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def average_precision(scores: Array, targets: Array) -> Array:
    """Average precision of each class, (C,): precision at each threshold, weighted by the gain in recall; NaN if absent."""
    return Ranking(*_multilabel(scores, targets)).average_precision()


def mean_average_precision(scores: Array, targets: Array) -> float:
    """mAP: the mean of `average_precision` over the classes that are there.

    Raises:
        ValueError: shapes or values do not fit, or no class has a positive clip.
    """
    return _mean(average_precision(scores, targets), _POSITIVE)


def area_under_curve(scores: Array, targets: Array) -> Array:
    """Area under the ROC curve of each class, (C,): how often a positive outranks a negative, ties half; NaN if absent."""
    return Ranking(*_multilabel(scores, targets)).area()


def mean_area_under_curve(scores: Array, targets: Array) -> float:
    """mAUC: the mean of `area_under_curve` over the classes that have it; errors as `mean_average_precision`."""
    return _mean(area_under_curve(scores, targets), _BOTH)


def d_prime(scores: Array, targets: Array) -> float:
    """d' = sqrt(2) * inverse normal of the mAUC, as for AudioSet (Gemmeke et al., 2017); infinite at 0 and 1."""
    return _d_prime(mean_area_under_curve(scores, targets))


def _d_prime(area: float) -> float:
    if area in (0.0, 1.0):
        return math.inf if area else -math.inf
    return math.sqrt(2) * NormalDist().inv_cdf(area)


def accuracy(scores: Array, targets: Array) -> float:
    """The share of clips whose guess is right; single-label.

    Raises:
        ValueError: shapes or values do not fit, or there are no clips.
    """
    scores, classes = _single_label(scores, targets)
    return float((scores.argmax(1) == classes).mean())


def recalls(scores: Array, targets: Array) -> Array:
    """The share of each class's clips whose guess is right, (C,); single-label; NaN if absent."""
    scores, classes = _single_label(scores, targets)
    count = np.bincount(classes, minlength=scores.shape[1])
    right = np.bincount(classes[scores.argmax(1) == classes], minlength=scores.shape[1])
    return np.where(count > 0, right / np.maximum(count, 1), np.nan)


def balanced_accuracy(scores: Array, targets: Array) -> float:
    """The mean of `recalls` over the classes that are there; errors as `accuracy`."""
    return _mean(recalls(scores, targets), "a clip")


def macro_f1(scores: Array, targets: Array) -> float:
    """The mean over the classes that are there of F1 = 2 right / (guessed + true); single-label; errors as `accuracy`."""
    scores, classes = _single_label(scores, targets)
    counts = confusion_counts(classes, scores.argmax(1), scores.shape[1])
    has, given = counts.sum(1), counts.sum(0)
    return _mean(np.where(has > 0, 2 * counts.diagonal() / np.maximum(has + given, 1), np.nan), "a clip")


def confusion_counts(truly: Array, guessed: Array, classes: int) -> Array:
    """How often each class (a row) is taken for each (a column), (C, C), from two (N,) of class indices."""
    return np.bincount(truly * classes + guessed, minlength=classes * classes).reshape(classes, classes)


def equal_error_rate(scores: Array, targets: Array) -> float:
    """EER of trials: where the ROC curve, straight between thresholds, has as many false alarms as misses.

    Args:
        scores: (N,), higher for a match.
        targets: (N,), 1 for a match.

    Raises:
        ValueError: shapes or values do not fit, or only one kind of trial is there.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if scores.ndim != 1 or scores.shape != targets.shape:
        raise ValueError(f"expected scores and targets of one shape (trials,), got {scores.shape} and {targets.shape}")
    _check_values(scores, targets)
    (rate,) = Ranking(scores[:, None], targets[:, None]).equal_error()
    if math.isnan(rate):
        raise ValueError("an equal error rate needs matching and other trials: all targets are alike")
    return float(rate)


def mean_equal_error_rate(scores: Array, targets: Array) -> float:
    """The mean of each class's EER against all others, over the classes that are there; (N, C); errors as `mean_average_precision`."""
    return _mean(Ranking(*_multilabel(scores, targets)).equal_error(), _BOTH)


def segment_f1(scores: Array, targets: Array, *, threshold: float = 0.5, macro: bool = False) -> float:
    """F1 = 2 TP / (2 TP + FP + FN) over segments and classes (Mesaros et al., 2016), multilabel.

    Args:
        scores: (N, C).
        targets: (N, C).
        threshold: a class is active in a segment from this score on.
        macro: average the F1 of the classes that are there, instead of counting all classes together.

    Raises:
        ValueError: shapes or values do not fit; with `macro`, no class has an active segment.
    """
    scores, targets = _multilabel(scores, targets)
    guessed, truly = scores >= threshold, targets.astype(bool)
    hits = (guessed & truly).sum(0)
    denominator = guessed.sum(0) + truly.sum(0)
    if macro:
        f1 = np.where(truly.any(0), 2 * hits / np.maximum(denominator, 1), np.nan)
        return _mean(f1, "an active segment")
    return float(2 * hits.sum() / max(1, denominator.sum()))


def segment_error_rate(scores: Array, targets: Array, *, threshold: float = 0.5) -> float:
    """ER = (substitutions + deletions + insertions) / active classes, over segments (Mesaros et al., 2016), multilabel.

    In each segment a wrong and a missing class are one substitution; what is left are deletions or insertions. It may
    exceed 1. Arguments as `segment_f1`.

    Raises:
        ValueError: shapes or values do not fit, or no segment has an active class.
    """
    scores, targets = _multilabel(scores, targets)
    guessed, truly = scores >= threshold, targets.astype(bool)
    if not truly.any():
        raise ValueError("an error rate needs active classes: all targets are 0")
    missed, alarmed = (truly & ~guessed).sum(1), (guessed & ~truly).sum(1)
    return float(np.maximum(missed, alarmed).sum() / truly.sum())


def bootstrap_interval(
    metric: Callable[[Array, Array], float],
    scores: Array,
    targets: Array,
    *,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    units: Array | None = None,
) -> Interval:
    """Confidence interval of a metric by the percentile bootstrap over clips (Efron, 1979).

    Samples in which the metric does not exist (every positive left out) are drawn again.

    Args:
        metric: `mean_average_precision` or alike.
        scores: first axis N.
        targets: first axis N.
        confidence: share of samples inside.
        samples: how many.
        seed: of the draws.
        units: (N,): what is drawn whole, as the recordings of segments; None draws clips.

    Raises:
        ValueError: the metric hardly ever exists on samples of these clips.
    """
    return interval_of(bootstrap_values(metric, scores, targets, samples=samples, seed=seed, units=units), confidence)


def bootstrap_values(
    metric: Callable[[Array, Array], float],
    scores: Array,
    targets: Array,
    *,
    samples: int = 1000,
    seed: int = 0,
    units: Array | None = None,
) -> Array:
    """The metric on each sample, (samples,): what `bootstrap_interval` takes its interval of; arguments and errors as there.

    For metrics of the order of clips the order is found once.
    """
    generator, failed = np.random.default_rng(seed), 0
    values: list[float] = []
    scores, targets = np.asarray(scores), np.asarray(targets)
    of_unit = None if units is None else _members(units)
    count = len(scores) if of_unit is None else len(of_unit)
    by_rank = _BY_RANK.get(metric)
    ranking = None if by_rank is None else Ranking(*_multilabel(scores, targets))
    while len(values) < samples:
        drawn = generator.integers(0, count, count)
        rows = drawn if of_unit is None else np.concatenate([of_unit[unit] for unit in drawn])
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


def interval_of(values: Array, confidence: float = 0.95) -> Interval:
    """The interval that holds the middle share `confidence` of values, which may be infinite."""
    tail = (1 - confidence) / 2
    if not np.isfinite(values).all():  # d' of perfect samples: nothing lies between a number and infinity
        ranked, last = np.sort(values), len(values) - 1
        return Interval(float(ranked[math.floor(tail * last)]), float(ranked[math.ceil((1 - tail) * last)]))
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), float(high))


def finite_or_none(value: float) -> float | None:
    """A number for JSON, which has no infinity and no NaN: None stands for both."""
    return value if math.isfinite(value) else None


_POSITIVE, _BOTH = "a positive clip", "a positive and a negative clip"  # what a class needs

_BY_RANK: dict[Callable[[Array, Array], float], Callable[[Ranking, Array], float]] = {
    mean_average_precision: lambda ranking, weights: _mean(ranking.average_precision(weights), _POSITIVE),
    mean_area_under_curve: lambda ranking, weights: _mean(ranking.area(weights), _BOTH),
    mean_equal_error_rate: lambda ranking, weights: _mean(ranking.equal_error(weights), _BOTH),
    d_prime: lambda ranking, weights: _d_prime(_mean(ranking.area(weights), _BOTH)),
}
"""Metrics of the order of clips, by the weights of clips."""


def _members(units: Array) -> list[Array]:
    """The indices of each unit's members."""
    numbers = np.unique(units, return_inverse=True)[1]
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])


def _mean(values: Array, need: str) -> float:
    there = values[~np.isnan(values)]
    if len(there) == 0:
        raise ValueError(f"none of the {len(values)} classes has {need}: there is nothing to average")
    return float(there.mean())


def _multilabel(scores: Array, targets: Array) -> tuple[Array, Array]:
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape or 0 in scores.shape:
        raise ValueError(
            f"expected scores and targets of one shape (clips, classes), got {scores.shape} and {targets.shape}"
        )
    _check_values(scores, targets)
    return scores, targets


def _single_label(scores: Array, targets: Array) -> tuple[Array, Array]:
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if targets.ndim == 2:
        scores, targets = _multilabel(scores, targets)
        if not (targets.sum(1) == 1).all():
            raise ValueError("each clip needs exactly one class: a row of targets holds none or several")
        return scores, targets.argmax(1)
    if scores.ndim != 2 or targets.shape != scores.shape[:1] or 0 in scores.shape:
        raise ValueError(
            f"expected scores (clips, classes) and targets (clips,), got {scores.shape} and {targets.shape}"
        )
    if not np.issubdtype(targets.dtype, np.integer) or targets.min() < 0 or targets.max() >= scores.shape[1]:
        raise ValueError(f"targets must be class indices from 0 to {scores.shape[1] - 1}")
    _check_finite(scores)
    return scores, targets


def _check_finite(scores: Array) -> None:
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity: the model's outputs are damaged")


def _check_values(scores: Array, targets: Array) -> None:
    _check_finite(scores)
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("targets must be 0 or 1")
