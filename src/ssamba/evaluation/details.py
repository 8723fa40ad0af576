"""What stands behind a score: its confidence interval, the scores of each class, and what is taken for what.

Shapes: n scored clips, C classes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssamba.evaluation.caching import Array
from ssamba.evaluation.multilabel import EventsResult, LabelsResult
from ssamba.evaluation.probe import RoundResult
from ssamba.evaluation.task import Task
from ssamba.events import event_counts
from ssamba.files import write_atomically
from ssamba.metrics.classification import Interval, area_under_curve, average_precision, confusion_counts, interval_of

_SAMPLES = 2000


@dataclass(frozen=True)
class ClassScore:
    """How one class fares."""

    label: str
    """Its name."""
    clips: int
    """Scored clips that have it; seconds or events where these are scored."""
    precision: float
    """Share of right ones among the clips that were given this label; NaN if none was."""
    recall: float
    """Share of its clips that were found; NaN if it has none."""
    f1: float
    """2 right / (given + has)."""
    average_precision: float | None = None
    """Of its scores against all clips, where scores are known; NaN if it has no clip."""
    auc: float | None = None
    """Area under its ROC curve, likewise; NaN if it has no clip, or every one."""


def accuracy_intervals(
    tasks: Mapping[str, Sequence[RoundResult]], *, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Bootstrap confidence intervals of each task's accuracy (or what it is scored by), and of their mean under the name `mean`.

    Clips are drawn with replacement within each round, the trained probes staying as they are: the interval says how
    much the choice of test clips matters, not that of training clips or sources.
    """
    generator = np.random.default_rng(seed)
    drawn = {
        task: np.mean([result.samples(_SAMPLES, generator) for result in results], axis=0)
        for task, results in tasks.items()
    }
    drawn["mean"] = np.mean(list(drawn.values()), axis=0)
    return {task: interval_of(values, confidence) for task, values in drawn.items()}


def confusion(labels: Array, results: Sequence[RoundResult]) -> tuple[Array, Array]:
    """Names (C,), sorted, and counts (C, C) of a task's scored clips over all rounds: true label down, guess across."""
    names = np.unique(labels)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for result in results:
        truly, guessed = np.searchsorted(names, labels[result.test]), np.searchsorted(names, result.predicted)
        counts += confusion_counts(truly, guessed, len(names))
    return names, counts


def class_scores(labels: Array, results: Sequence[RoundResult]) -> list[ClassScore]:
    """The classes of a task, the worst recall first (absent ones last)."""
    names, counts = confusion(labels, results)
    rows = _from_counts(names, counts.diagonal(), counts.sum(1), counts.sum(0))
    return sorted(rows, key=lambda row: (row.clips == 0, row.recall, row.label))


def scored_classes(names: Sequence[str], scores: Array, targets: Array, guessed: Array) -> list[ClassScore]:
    """The classes where each clip has scores, the worst average precision first (absent ones last).

    Args:
        names: of the classes.
        scores: (N, C), comparable between clips.
        targets: (N, C), 0 or 1.
        guessed: (N, C), 0 or 1: the labels that clips were given.
    """
    truly, given = targets.astype(bool), guessed.astype(bool)
    rows = _from_counts(names, (truly & given).sum(0), truly.sum(0), given.sum(0))
    figures = zip(rows, average_precision(scores, targets), area_under_curve(scores, targets), strict=True)
    rows = [replace(row, average_precision=float(ap), auc=float(auc)) for row, ap, auc in figures]
    return sorted(rows, key=lambda row: (row.clips == 0, row.average_precision, row.label))


def event_classes(names: Sequence[str], figure: str, results: Sequence[EventsResult]) -> list[ClassScore]:
    """The classes of a task of events by the counts of a figure of `events.py` that has hits, the worst F1 first."""

    def sums(label: str) -> Array:
        own = [[[e for e in events if e.label == label] for events in (*r.truly, *r.found)] for r in results]
        halves = [event_counts(figure, found[: len(found) // 2], found[len(found) // 2 :]).sum(0) for found in own]
        total: Array = np.sum(halves, axis=0).astype(np.int64)
        return total

    counts = np.array([sums(name) for name in names])
    rows = _from_counts(names, counts[:, 0], counts[:, 1], counts[:, 2])
    return sorted(rows, key=lambda row: (row.clips == 0, row.f1, row.label))


def class_rows(task: Task, results: Sequence[RoundResult]) -> list[ClassScore]:
    """The classes of a task of any kind, over all rounds."""
    if task.kind == "single":
        return class_scores(task.labels, results)
    labels = [result for result in results if isinstance(result, LabelsResult)]
    if labels:
        scores, targets = (np.concatenate([getattr(r, name) for r in labels]) for name in ("scores", "targets"))
        return scored_classes(task.classes, scores, targets, scores >= 0)
    return event_classes(task.classes, task.metric, [r for r in results if isinstance(r, EventsResult)])


def _from_counts(names: Sequence[str] | Array, right: Array, has: Array, given: Array) -> list[ClassScore]:
    """Rows from (C,) counts of what was found, what is there, and what was said."""
    return [
        ClassScore(
            label=str(name),
            clips=int(own),
            precision=float(hit / guessed) if guessed else float("nan"),
            recall=float(hit / own) if own else float("nan"),
            f1=float(2 * hit / (own + guessed)) if own + guessed else float("nan"),
        )
        for name, hit, own, guessed in zip(names, right, has, given, strict=True)
    ]


def write_class_scores(rows: Sequence[ClassScore], path: Path) -> None:
    """A CSV of the classes; what does not exist is left empty, and columns that no row knows are left out."""
    columns = ["precision", "recall", "f1"]
    columns += [name for name in ("average_precision", "auc") if any(getattr(row, name) is not None for row in rows)]

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "clips", *columns])
            for row in rows:
                values = [getattr(row, name) for name in columns]
                figures = ["" if x is None or np.isnan(x) else f"{x:.3f}" for x in values]
                writer.writerow([row.label, row.clips, *figures])

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
