"""Metrics of a classifier: those that choose an epoch, and those of a test with their confidence intervals.

Scores that are comparable between clips are log-probabilities if a clip has one label, and logits if it may have
several: both rank clips as probabilities do, without the ties of probabilities that round to 1.

Shapes: N predictions (of clips or seconds), C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ssamba.metrics import classification as metrics
from ssamba.metrics.bootstrap import Interval, affordable_samples, bootstrap_values, interval_of

Array: TypeAlias = "npt.NDArray[Any]"
Metric: TypeAlias = Callable[[Array, Array], float]

_MAX_SAMPLES = 1000


def validation_metrics(logits: Array, targets: Array, *, multi: bool, binary_loss: bool) -> dict[str, float]:
    """Return the loss, and mAP for several labels or accuracy and balanced accuracy for one label.

    Args:
        logits: (N, C).
        targets: (N, C), 0 or 1.
        multi: whether a clip may have any number of labels.
        binary_loss: whether the loss is binary cross entropy of each class.
    """
    outputs, truth = torch.from_numpy(logits), torch.from_numpy(targets)
    loss = F.binary_cross_entropy_with_logits(outputs, truth) if binary_loss else F.cross_entropy(outputs, truth)
    if multi:
        mean_ap = metrics.mean_average_precision(logits, targets) if targets.any() else float("nan")
        return {"loss": float(loss), "mAP": mean_ap}
    accuracy, balanced = metrics.accuracy(logits, targets), metrics.balanced_accuracy(logits, targets)
    return {"loss": float(loss), "accuracy": accuracy, "balanced_accuracy": balanced}


def metrics_of_test(*, multi: bool, by_second: bool) -> dict[str, Metric]:
    """Return the metrics of a test by name, each a function of comparable scores and targets (N, C).

    Segment F1 and error rate compare `predicted_labels`. The EER is the mean over classes, each against all others.
    """
    found: dict[str, Metric] = {}
    if multi:
        found |= {"mAP": metrics.mean_average_precision}
    else:
        found |= {"accuracy": metrics.accuracy, "balanced_accuracy": metrics.balanced_accuracy}
        found |= {"macro_f1": metrics.macro_f1}
    found["mAUC"] = metrics.mean_area_under_curve
    found |= {"d_prime": metrics.d_prime} if multi else {"EER": metrics.mean_equal_error_rate}
    if by_second:
        found["segment_f1"] = lambda scores, targets: metrics.segment_f1(predicted_labels(scores, multi=multi), targets)
        found["error_rate"] = lambda scores, targets: metrics.segment_error_rate(
            predicted_labels(scores, multi=multi), targets
        )
    return found


def comparable_scores(logits: Array, *, binary_loss: bool) -> Array:
    """Return scores (N, C), float64, that rank clips within each class, from logits (N, C)."""
    scores = logits.astype(np.float64)
    if binary_loss or not len(scores):
        return scores
    highest = scores.max(1, keepdims=True)
    normalized: Array = scores - highest - np.log(np.exp(scores - highest).sum(1, keepdims=True))
    return normalized


def predicted_labels(scores: Array, *, multi: bool) -> Array:
    """Return the predicted labels (N, C), 0 or 1, from comparable scores (N, C).

    With `multi` these are the labels with a probability of at least a half, otherwise the most probable one.
    """
    if multi:
        return (scores >= 0).astype(np.int64)
    predicted = np.zeros(scores.shape, np.int64)
    predicted[np.arange(len(scores)), scores.argmax(1)] = 1
    return predicted


@dataclass(frozen=True)
class MetricValues:
    """Metrics of a test with bootstrap samples."""

    values: Mapping[str, float]
    """By name, without metrics that do not exist on these predictions (mAP without a positive clip)."""
    samples: Mapping[str, Array]
    """Values on bootstrap samples of the recordings, (samples,), by name."""

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % confidence intervals by name."""
        return {name: interval_of(values) for name, values in self.samples.items()}


def measure(scores: Array, targets: Array, recordings: Array, wanted: Mapping[str, Metric]) -> MetricValues:
    """Compute metrics and their bootstrap samples.

    Args:
        scores: comparable scores (N, C).
        targets: (N, C), 0 or 1.
        recordings: number of each prediction's recording (N,); samples hold whole recordings.
        wanted: metrics from `metrics_of_test`.
    """
    count = affordable_samples(scores.size, _MAX_SAMPLES)
    values: dict[str, float] = {}
    samples: dict[str, Array] = {}
    for name, metric in wanted.items():
        try:
            values[name] = metric(scores, targets)
            samples[name] = bootstrap_values(metric, scores, targets, samples=count, units=recordings)
        except ValueError:  # the metric does not exist on these predictions, or on too many samples
            continue
    return MetricValues(values, samples)


def mean_intervals(folds: Sequence[MetricValues]) -> dict[str, Interval]:
    """Return 95 % confidence intervals of the means over folds; recordings are drawn within each fold."""
    names = [name for name in folds[0].samples if all(name in fold.samples for fold in folds)] if folds else []
    found = {}
    for name in names:
        drawn = [fold.samples[name] for fold in folds]
        count = min(map(len, drawn))
        found[name] = interval_of(np.mean([values[:count] for values in drawn], axis=0))
    return found
