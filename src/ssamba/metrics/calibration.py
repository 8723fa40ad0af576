"""Calibrate a classifier on held-out answers: a temperature for its logits, and a threshold for each class.

    temperature = fit_temperature(logits, targets, independent=False)
    probabilities = calibrated(logits, temperature, independent=False)
    thresholds = choose_thresholds(probabilities, targets, precision=0.9)

The temperature T divides the logits. It minimizes the negative log-likelihood of the answers ("On Calibration of Modern
Neural Networks", Guo et al., 2017, arXiv:1706.04599) plus a weak prior, log T ~ N(0, 0.5^2), which keeps it finite
where all answers are right. The logits may be of any classifier, a probe's `decision_function` included.

Shapes: N answers, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"

_PRIOR_SPREAD = 0.5
_LOG_BOUNDS = (math.log(0.05), math.log(20.0))
_LEAST_THRESHOLD = 0.5  # a label that is less likely than not never counts


@dataclass(frozen=True)
class ClassThreshold:
    """The probability from which on a class counts as present, and what it gives on the answers it was chosen on."""

    threshold: float
    precision: float
    """Share of the answers at or above the threshold that have the class; NaN if there are none."""
    recall: float
    """Share of the answers with the class that are at or above the threshold; NaN if none has it."""
    positives: int
    """Answers that have the class."""


def calibrated(logits: Array, temperature: float | None, *, independent: bool) -> Array:
    """Return probabilities (N, C), float64, of logits (N, C).

    Args:
        logits: (N, C).
        temperature: divides the logits; None is 1.
        independent: whether labels are independent (sigmoid) or exclude each other (softmax).
    """
    scaled = np.asarray(logits, np.float64) / (temperature or 1.0)
    if independent:
        positive: Array = np.exp(-np.logaddexp(0.0, -scaled))
        return positive
    scaled -= scaled.max(-1, keepdims=True)
    powers = np.exp(scaled)
    exclusive: Array = powers / powers.sum(-1, keepdims=True)
    return exclusive


def fit_temperature(logits: Array, targets: Array, *, independent: bool) -> float:
    """Return the temperature that fits held-out answers best, from 0.05 to 20.

    Args:
        logits: (N, C).
        targets: (N, C), 0 or 1.
        independent: as for `calibrated`.

    Raises:
        ValueError: shapes do not fit, or there is no answer.
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    if logits.ndim != 2 or logits.shape != targets.shape or 0 in logits.shape:
        raise ValueError(
            f"expected logits and targets of one shape (answers, classes), got {logits.shape} and {targets.shape}"
        )

    def cost(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        if independent:
            likelihood = np.logaddexp(0.0, scaled) - targets * scaled
        else:
            highest = scaled.max(1, keepdims=True)
            likelihood = targets * (highest + np.log(np.exp(scaled - highest).sum(1, keepdims=True)) - scaled)
        return float(likelihood.sum()) + 0.5 * (log_temperature / _PRIOR_SPREAD) ** 2

    # The cost falls and then rises: a golden-section search.
    low, high = _LOG_BOUNDS
    shrink = (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        low, high = (low, right) if cost(left) <= cost(right) else (left, high)
    return math.exp((low + high) / 2)


def choose_thresholds(probabilities: Array, targets: Array, precision: float) -> list[ClassThreshold]:
    """Return the threshold of each class: the lowest of those whose precision on these answers is high enough.

    It lies midway between the answers on both sides of it, and is at least one half. A class that never reaches the
    precision gets the threshold with the highest one; a class without answers that have it, the one of all classes
    together.

    Args:
        probabilities: calibrated probabilities (N, C).
        targets: (N, C), 0 or 1.
        precision: wanted precision.
    """
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets) > 0
    pooled = _threshold(probabilities.ravel(), targets.ravel(), precision)
    chosen = []
    for scores, has in zip(probabilities.T, targets.T, strict=True):
        threshold = _threshold(scores, has, precision) if has.any() else pooled
        above = scores >= threshold
        hits, found, positives = int((above & has).sum()), int(above.sum()), int(has.sum())
        chosen.append(
            ClassThreshold(
                threshold, hits / found if found else math.nan, hits / positives if positives else math.nan, positives
            )
        )
    return chosen


def _threshold(scores: Array, has: Array, precision: float) -> float:
    """Return the threshold for scores (n,) of answers that have the class or not (n,)."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(has[order])
    # Cuts below the last answer of each run of equal scores.
    cuts = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    cuts = cuts[ranked[cuts] >= _LEAST_THRESHOLD]
    if not len(cuts) or not hits[cuts[-1]]:
        return _LEAST_THRESHOLD
    reached = hits[cuts] / (cuts + 1)
    enough = cuts[reached >= precision]
    cut = int(enough[-1]) if len(enough) else int(cuts[len(reached) - 1 - reached[::-1].argmax()])
    below = ranked[cut + 1] if cut + 1 < len(ranked) else 0.0
    return max(_LEAST_THRESHOLD, float(ranked[cut] + below) / 2)
