"""Metrics of scores against targets, in NumPy.

Multilabel metrics take `scores` (N, C), real numbers, and `targets` (N, C), 0 or 1. Single-label metrics take `scores`
(N, C) and `targets` (N,) class indices, or (N, C) with one 1 a row; the first of the highest scores is the prediction.

Absent classes: a class without a positive clip has no average precision and no recall; one without a negative clip has
no AUC either. Functions for each class return NaN there, and means leave it out. (scikit-learn's macro average
precision counts it as 0, so that the mean depends on which classes a fold happens to hold.) If no class is left, the
mean raises ValueError. Clips with equal scores share one threshold, as in scikit-learn. Scores must be finite.

Shapes: N clips (segments, trials), C classes.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_BLOCK_ELEMENTS = 1 << 20  # elements that are processed at once
POSITIVE, BOTH = "a positive clip", "a positive and a negative clip"  # requirements of a class, for messages


def average_precision(scores: Array, targets: Array) -> Array:
    """Return the average precision of each class, (C,): precision at each threshold weighted by the gain in recall.

    NaN for a class without a positive clip.
    """
    return Ranking(*check_multilabel(scores, targets)).average_precision()


def mean_average_precision(scores: Array, targets: Array) -> float:
    """Return mAP, the mean of `average_precision` over the classes with a positive clip.

    Raises:
        ValueError: shapes or values do not fit, or no class has a positive clip.
    """
    return mean_of_classes(average_precision(scores, targets), POSITIVE)


def area_under_curve(scores: Array, targets: Array) -> Array:
    """Return the area under the ROC curve of each class, (C,).

    It is the share of pairs in which the positive clip outranks the negative one; ties count half. NaN for a class
    without a positive or without a negative clip.
    """
    return Ranking(*check_multilabel(scores, targets)).area()


def mean_area_under_curve(scores: Array, targets: Array) -> float:
    """Return mAUC, the mean of `area_under_curve` over the classes that have it; errors as `mean_average_precision`."""
    return mean_of_classes(area_under_curve(scores, targets), BOTH)


def d_prime(scores: Array, targets: Array) -> float:
    """Return d' = sqrt(2) * inverse normal of the mAUC (AudioSet: Gemmeke et al., 2017); infinite at 0 and 1."""
    return d_prime_of_area(mean_area_under_curve(scores, targets))


def d_prime_of_area(area: float) -> float:
    """Return d' of an area under the ROC curve."""
    if area in (0.0, 1.0):
        return math.inf if area else -math.inf
    return math.sqrt(2) * NormalDist().inv_cdf(area)


def accuracy(scores: Array, targets: Array) -> float:
    """Return the share of clips that are predicted correctly (single-label).

    Raises:
        ValueError: shapes or values do not fit, or there are no clips.
    """
    scores, classes = _single_label(scores, targets)
    return float((scores.argmax(1) == classes).mean())


def recalls(scores: Array, targets: Array) -> Array:
    """Return the share of each class's clips that are predicted correctly, (C,) (single-label); NaN without a clip."""
    scores, classes = _single_label(scores, targets)
    count = np.bincount(classes, minlength=scores.shape[1])
    correct = np.bincount(classes[scores.argmax(1) == classes], minlength=scores.shape[1])
    return np.where(count > 0, correct / np.maximum(count, 1), np.nan)


def balanced_accuracy(scores: Array, targets: Array) -> float:
    """Return the mean of `recalls` over the classes with a clip; errors as `accuracy`."""
    return mean_of_classes(recalls(scores, targets), "a clip")


def macro_f1(scores: Array, targets: Array) -> float:
    """Return the mean F1 = 2 correct / (predicted + true) over the classes with a clip (single-label).

    Raises as `accuracy`.
    """
    scores, classes = _single_label(scores, targets)
    counts = confusion_counts(classes, scores.argmax(1), scores.shape[1])
    true, predicted = counts.sum(1), counts.sum(0)
    return mean_of_classes(
        np.where(true > 0, 2 * counts.diagonal() / np.maximum(true + predicted, 1), np.nan), "a clip"
    )


def confusion_counts(true: Array, predicted: Array, num_classes: int) -> Array:
    """Return the confusion matrix (C, C), true classes down and predictions across, from class indices (N,)."""
    return np.bincount(true * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def equal_error_rate(scores: Array, targets: Array) -> float:
    """Return the EER of trials: where false alarms equal misses on the ROC curve, linear between thresholds.

    Args:
        scores: (N,), higher for a match.
        targets: (N,), 1 for a match.

    Raises:
        ValueError: shapes or values do not fit, or all targets are equal.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if scores.ndim != 1 or scores.shape != targets.shape:
        raise ValueError(f"expected scores and targets of one shape (trials,), got {scores.shape} and {targets.shape}")
    _check_values(scores, targets)
    (rate,) = Ranking(scores[:, None], targets[:, None]).equal_error()
    if math.isnan(rate):
        raise ValueError("an equal error rate needs both matching and non-matching trials; all targets are equal")
    return float(rate)


def mean_equal_error_rate(scores: Array, targets: Array) -> float:
    """Return the mean EER of the classes, each against all others; errors as `mean_average_precision`."""
    return mean_of_classes(Ranking(*check_multilabel(scores, targets)).equal_error(), BOTH)


def segment_f1(scores: Array, targets: Array, *, threshold: float = 0.5, macro: bool = False) -> float:
    """Return F1 = 2 TP / (2 TP + FP + FN) over segments and classes (Mesaros et al., 2016; multilabel).

    Args:
        scores: (N, C).
        targets: (N, C).
        threshold: a class is predicted where its score is at least this.
        macro: average the F1 of the classes with an active segment, instead of counting all classes together.

    Raises:
        ValueError: shapes or values do not fit; with `macro`, no class has an active segment.
    """
    scores, targets = check_multilabel(scores, targets)
    predicted, true = scores >= threshold, targets.astype(bool)
    hits = (predicted & true).sum(0)
    denominator = predicted.sum(0) + true.sum(0)
    if macro:
        f1 = np.where(true.any(0), 2 * hits / np.maximum(denominator, 1), np.nan)
        return mean_of_classes(f1, "an active segment")
    return float(2 * hits.sum() / max(1, denominator.sum()))


def segment_error_rate(scores: Array, targets: Array, *, threshold: float = 0.5) -> float:
    """Return ER = (substitutions + deletions + insertions) / active classes (Mesaros et al., 2016; multilabel).

    In each segment a wrong and a missing class are one substitution; the rest are deletions or insertions. The rate may
    exceed 1. Arguments as `segment_f1`.

    Raises:
        ValueError: shapes or values do not fit, or no segment has an active class.
    """
    scores, targets = check_multilabel(scores, targets)
    predicted, true = scores >= threshold, targets.astype(bool)
    if not true.any():
        raise ValueError("an error rate needs active classes: all targets are 0")
    missed, alarmed = (true & ~predicted).sum(1), (predicted & ~true).sum(1)
    return float(np.maximum(missed, alarmed).sum() / true.sum())


def finite_or_none(value: float) -> float | None:
    """Return None for infinity and NaN, which JSON does not have, else the number."""
    return value if math.isfinite(value) else None


def mean_of_classes(values: Array, need: str) -> float:
    """Return the mean of values (C,) that are not NaN; `need` says in the error what a class needs to have one."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        raise ValueError(f"none of the {len(values)} classes has {need}: there is nothing to average")
    return float(known.mean())


def check_multilabel(scores: Array, targets: Array) -> tuple[Array, Array]:
    """Return both as arrays (N, C), or raise ValueError if shapes or values do not fit."""
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
        scores, targets = check_multilabel(scores, targets)
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


class Ranking:
    """The clips of each class, sorted by falling score once, for metrics under any weights of the clips.

    A bootstrap sample is a weight for each clip, the number of times it was drawn, so it needs no sorting of its own.
    """

    def __init__(self, scores: Array, targets: Array):
        """Sort clips by finite scores (N, C), with targets (N, C) of 0 or 1."""
        count, self.classes = scores.shape
        step = max(1, _BLOCK_ELEMENTS // max(1, count))
        blocks = [slice(start, start + step) for start in range(0, self.classes, step)]
        self._blocks = [_Block(scores[:, own].T, targets[:, own].T > 0) for own in blocks]

    def average_precision(self, weights: Array | None = None) -> Array:
        """Return each class's average precision, (C,), with weights of clips (N,); NaN without a positive clip."""
        return np.concatenate([block.average_precision(weights) for block in self._blocks])

    def area(self, weights: Array | None = None) -> Array:
        """Return the area under the ROC curve of each class, (C,); NaN without a positive or a negative clip."""
        return np.concatenate([block.area(weights) for block in self._blocks])

    def equal_error(self, weights: Array | None = None) -> Array:
        """Return the equal error rate of each class, (C,); NaN as `area`."""
        return np.concatenate([block.equal_error(weights) for block in self._blocks])


class _Block:
    """The ranking of some classes; arrays are (c, N), by falling score in each row."""

    def __init__(self, scores: Array, positive: Array):
        self.order = np.argsort(-scores, axis=1, kind="stable")
        ranked = np.take_along_axis(scores, self.order, axis=1)
        self.positive = np.take_along_axis(positive, self.order, axis=1)
        place = np.arange(scores.shape[1])
        changes = ranked[:, 1:] != ranked[:, :-1]
        starts = np.pad(changes, ((0, 0), (1, 0)), constant_values=True)
        ends = np.pad(changes, ((0, 0), (0, 1)), constant_values=True)
        # First and last place with the same score as each place.
        self.first = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
        self.last = np.minimum.accumulate(np.where(ends, place, len(place))[:, ::-1], axis=1)[:, ::-1]
        self.tied = not changes.all()

    def _counts(self, weights: Array | None) -> tuple[Array, Array, Array]:
        """Return the weights, and those of hits and of false alarms down to each clip's threshold, each (c, N)."""
        own = np.ones(self.order.shape) if weights is None else weights[self.order].astype(np.float64)
        hits = np.cumsum(own * self.positive, axis=1)
        alarms = np.cumsum(own * ~self.positive, axis=1)
        if self.tied:
            hits, alarms = (np.take_along_axis(sums, self.last, axis=1) for sums in (hits, alarms))
        return own, hits, alarms

    def average_precision(self, weights: Array | None) -> Array:
        own, hits, alarms = self._counts(weights)
        precision = hits / np.maximum(hits + alarms, 1e-300)  # 0 / 0 before the first clip with a weight
        gain = (own * self.positive * precision).sum(1)
        return np.where(hits[:, -1] > 0, gain / np.maximum(hits[:, -1], 1e-300), np.nan)

    def area(self, weights: Array | None) -> Array:
        own, hits, alarms = self._counts(weights)
        pairs = hits[:, -1] * alarms[:, -1]
        outranked = (own * ~self.positive * (self._before(hits) + hits)).sum(1) / 2
        return np.where(pairs > 0, outranked / np.maximum(pairs, 1e-300), np.nan)

    def equal_error(self, weights: Array | None) -> Array:
        _, hits, alarms = self._counts(weights)
        exist = (hits[:, -1] > 0) & (alarms[:, -1] > 0)
        found = hits / np.maximum(hits[:, -1:], 1e-300)
        alarmed = alarms / np.maximum(alarms[:, -1:], 1e-300)
        # `alarmed - missed` never falls, from -1 to 1: it is zero on one segment of the curve.
        gap = alarmed + found - 1
        after = np.argmax(gap >= 0, axis=1)[:, None]
        start = np.take_along_axis(self.first, after, axis=1)

        def around(values: Array, none: float) -> tuple[Array, Array]:
            before = np.where(start > 0, np.take_along_axis(values, np.maximum(start - 1, 0), axis=1), none)
            return before[:, 0], np.take_along_axis(values, after, axis=1)[:, 0]

        (low_gap, high_gap), (low, high) = around(gap, -1.0), around(alarmed, 0.0)
        share = -low_gap / np.where(exist, high_gap - low_gap, 1.0)
        return np.where(exist, low + share * (high - low), np.nan)

    def _before(self, sums: Array) -> Array:
        """Return the sums down to the threshold before each clip's, (c, N)."""
        shifted = np.pad(sums, ((0, 0), (1, 0)))
        return np.take_along_axis(shifted, self.first, axis=1) if self.tied else shifted[:, :-1]
