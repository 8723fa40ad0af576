"""What stands behind an accuracy: its confidence interval, the scores of each class, and what is taken for what.

Shapes: n scored clips, C classes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssamba.evaluation.caching import Array
from ssamba.evaluation.metrics import Interval
from ssamba.evaluation.probe import RoundResult
from ssamba.files import write_atomically

_SAMPLES = 2000


@dataclass(frozen=True)
class ClassScore:
    """How one class fares."""

    label: str
    """Its name."""
    clips: int
    """Scored clips that have it."""
    precision: float
    """Share of right ones among the clips that were given this label; NaN if none was."""
    recall: float
    """Share of its clips that were found; NaN if it has none."""
    f1: float
    """2 right / (given + has)."""


def accuracy_intervals(
    tasks: Mapping[str, Sequence[RoundResult]], *, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Bootstrap confidence intervals of each task's accuracy, and of their mean under the name `mean`.

    Clips are drawn with replacement within each round, the trained probes staying as they are: the interval says how
    much the choice of test clips matters, not that of training clips or sources. (Drawing n clips of which a share p
    is right, with replacement, is drawing from a binomial distribution, so no clip is touched.)
    """
    generator = np.random.default_rng(seed)
    drawn = {
        task: np.mean([generator.binomial(len(r.test), r.score, _SAMPLES) / len(r.test) for r in results], axis=0)
        for task, results in tasks.items()
    }
    drawn["mean"] = np.mean(list(drawn.values()), axis=0)
    tail = (1 - confidence) / 2
    return {task: Interval(*map(float, np.quantile(values, (tail, 1 - tail)))) for task, values in drawn.items()}


def confusion(labels: Array, results: Sequence[RoundResult]) -> tuple[Array, Array]:
    """Names (C,), sorted, and counts (C, C) of a task's scored clips over all rounds: true label down, guess across."""
    names = np.unique(labels)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for result in results:
        truly, guessed = np.searchsorted(names, labels[result.test]), np.searchsorted(names, result.predicted)
        np.add.at(counts, (truly, guessed), 1)
    return names, counts


def class_scores(labels: Array, results: Sequence[RoundResult]) -> list[ClassScore]:
    """The classes of a task, the worst recall first (absent ones last)."""
    names, counts = confusion(labels, results)
    right, has, given = counts.diagonal(), counts.sum(1), counts.sum(0)
    rows = [
        ClassScore(
            label=str(name),
            clips=int(own),
            precision=float(hit / guessed) if guessed else float("nan"),
            recall=float(hit / own) if own else float("nan"),
            f1=float(2 * hit / (own + guessed)) if own + guessed else float("nan"),
        )
        for name, hit, own, guessed in zip(names, right, has, given, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.clips == 0, row.recall, row.label))


def write_class_scores(rows: Sequence[ClassScore], path: Path) -> None:
    """A CSV of the classes; what does not exist is left empty."""

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "clips", "precision", "recall", "f1"])
            for row in rows:
                figures = ["" if np.isnan(x) else f"{x:.3f}" for x in (row.precision, row.recall, row.f1)]
                writer.writerow([row.label, row.clips, *figures])

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
