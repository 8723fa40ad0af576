"""What a classifier's answers are worth: the figures that choose an epoch, and those of a test with their intervals.

Classes are compared by log-probabilities where a clip has one label and by logits where it may have several: both rank
clips as probabilities do, without the ties of probabilities that round to 1.

Shapes: N answers (of clips, or of seconds), C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ssamba.metrics import classification as metrics
from ssamba.metrics.bootstrap import Interval, bootstrap_values, interval_of

Array: TypeAlias = "npt.NDArray[Any]"
Metric: TypeAlias = Callable[[Array, Array], float]

_MOST_SAMPLES, _FEWEST_SAMPLES = 1000, 100
_BOOTSTRAP_BUDGET = 200_000_000  # scores that are ranked for the intervals of one figure: minutes at worst


def figures_of_merit(logits: Array, targets: Array, *, multi: bool, binary_loss: bool) -> dict[str, float]:
    """Loss, and accuracy, balanced accuracy (the mean recall of the classes) or mean average precision.

    Args:
        logits: (N, C).
        targets: (N, C), 0 or 1.
        multi: whether an answer may have any number of labels.
        binary_loss: whether the loss is binary for each class.
    """
    outputs, truth = torch.from_numpy(logits), torch.from_numpy(targets)
    loss = F.binary_cross_entropy_with_logits(outputs, truth) if binary_loss else F.cross_entropy(outputs, truth)
    figures = {"loss": float(loss)}
    if multi:
        figures["mAP"] = metrics.mean_average_precision(logits, targets) if targets.any() else float("nan")
        return figures
    figures["accuracy"] = metrics.accuracy(logits, targets)
    figures["balanced_accuracy"] = metrics.balanced_accuracy(logits, targets)
    return figures


def wanted_metrics(*, multi: bool, by_second: bool) -> dict[str, Metric]:
    """The figures of a test by name, each a function of comparable scores and targets (N, C).

    Segment F1 and error rate count a label as given where its probability is at least a half, or, where an answer has
    one label, where it is the most probable. The EER is the mean over classes, each against all others.
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
        found["segment_f1"] = lambda scores, targets: metrics.segment_f1(given_labels(scores, multi=multi), targets)
        found["error_rate"] = lambda scores, targets: metrics.segment_error_rate(
            given_labels(scores, multi=multi), targets
        )
    return found


def comparable_scores(logits: Array, *, binary_loss: bool) -> Array:
    """What ranks clips within a class, (N, C), float64."""
    scores = logits.astype(np.float64)
    if binary_loss or not len(scores):
        return scores
    highest = scores.max(1, keepdims=True)
    normalized: Array = scores - highest - np.log(np.exp(scores - highest).sum(1, keepdims=True))
    return normalized


def given_labels(scores: Array, *, multi: bool) -> Array:
    """The labels that answers were given, (N, C), 0 or 1, from comparable scores."""
    if multi:
        return (scores >= 0).astype(np.int64)
    given = np.zeros(scores.shape, np.int64)
    given[np.arange(len(scores)), scores.argmax(1)] = 1
    return given


@dataclass(frozen=True)
class Measured:
    """The figures of a test, and what their intervals are taken of."""

    values: Mapping[str, float]
    """By name; one that does not exist on these answers (mAP without a positive) is left out."""
    samples: Mapping[str, Array]
    """Of each, its values on bootstrap samples of the recordings."""

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals."""
        return {name: interval_of(values) for name, values in self.samples.items()}


def measure(scores: Array, targets: Array, units: Array, wanted: Mapping[str, Metric]) -> Measured:
    """The figures of answers.

    Args:
        scores: (N, C), comparable.
        targets: (N, C), 0 or 1.
        units: (N,), the recording of each answer: samples hold whole recordings.
        wanted: from `wanted_metrics`.
    """
    count = int(np.clip(_BOOTSTRAP_BUDGET / max(1, scores.size), _FEWEST_SAMPLES, _MOST_SAMPLES))
    values: dict[str, float] = {}
    samples: dict[str, Array] = {}
    for name, metric in wanted.items():
        try:
            values[name] = metric(scores, targets)
            samples[name] = bootstrap_values(metric, scores, targets, samples=count, units=units)
        except ValueError:  # no class has what it takes, or hardly a sample does
            continue
    return Measured(values, samples)


def mean_intervals(parts: list[Measured]) -> dict[str, Interval]:
    """95 % intervals of the means over rounds, recordings drawn within each round."""
    names = [name for name in parts[0].samples if all(name in part.samples for part in parts)] if parts else []
    found = {}
    for name in names:
        drawn = [part.samples[name] for part in parts]
        fewest = min(map(len, drawn))
        found[name] = interval_of(np.mean([values[:fewest] for values in drawn], axis=0))
    return found
