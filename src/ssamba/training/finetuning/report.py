"""Results of a fine-tuning run: test metrics of each fold, and the files written from them.

    OUT/results.json     test metrics of each fold with 95 % intervals, their mean and standard deviation, the recipe
    OUT/classes.csv      metrics of each class over the test predictions of all folds, the worst class first
    OUT/confusion.png    confusion matrix, if each clip has one label
    OUT/rounds/NAME/     the same table and plot for each fold

Shapes: N predictions, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.checkpoint.files import write_json
from ssamba.errors import MissingExtraError
from ssamba.evaluation.report import plot_confusion, scores_of_several_labels, write_class_scores
from ssamba.library.predict import ROUNDS_FOLDER
from ssamba.metrics.bootstrap import Interval
from ssamba.metrics.classification import confusion_counts, finite_or_none
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.scores import Array, predicted_labels

RESULTS_FILE = "results.json"
CONFUSION_FILE = "confusion.png"
CLASSES_FILE = "classes.csv"


@dataclass(frozen=True)
class FoldResult:
    """Result of training and testing on one fold."""

    name: str
    """`all`, or the name of the fold that is tested."""
    clips: Mapping[str, int]
    """Number of clips in `train`, `valid` and `test`."""
    step: int
    """Training steps of the chosen model."""
    epoch: int
    """Training epochs of the chosen model, the current one included."""
    valid: float | None
    """Validation metric of the chosen model."""
    scores: Mapping[str, float]
    """Test metrics; empty if there are no test clips."""
    model: Path
    """Folder of the chosen model."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Key and reason of test clips that could not be read."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % bootstrap intervals of the test metrics, over recordings."""


@dataclass(frozen=True)
class FinetuneReport:
    """Result of a fine-tuning run."""

    stopped: str
    """`finished`, or the signal that stopped the run; call again to resume."""
    metric: str
    """Name of the validation metric."""
    classes: tuple[str, ...]
    """Names of the classes."""
    folds: tuple[FoldResult, ...]
    """Results of the folds that are finished."""
    notes: tuple[str, ...]
    """Remarks for the user, for example on held-out clips."""
    model: Path | None
    """Folder of the classifier; None until the run is finished."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % bootstrap intervals of the means over folds, over recordings."""

    def scores(self) -> dict[str, tuple[float, float | None]]:
        """Return mean and standard deviation of each test metric over the folds that have it.

        A fold lacks a metric if it is undefined there, such as average precision without a label among the test clips.
        The standard deviation is None for a single fold.
        """
        names = dict.fromkeys(name for fold in self.folds for name in fold.scores)
        values = {
            name: [fold.scores[name] for fold in self.folds if not math.isnan(fold.scores.get(name, math.nan))]
            for name in names
        }
        return {
            name: (
                float(np.mean(found)) if found else math.nan,
                float(np.std(found, ddof=1)) if len(found) > 1 and np.isfinite(found).all() else None,
            )
            for name, found in values.items()
        }

    def partly_scored(self) -> list[str]:
        """Return a note for each metric that some of several folds lack."""
        tested = [fold.scores for fold in self.folds if fold.scores]
        counts = {
            name: sum(not math.isnan(scores.get(name, math.nan)) for scores in tested)
            for name in dict.fromkeys(name for scores in tested for name in scores)
        }
        return [
            f"{name} is of {count} of {len(tested)} folds: the test clips of the others have no label, or all the same"
            for name, count in counts.items()
            if 0 < count < len(tested)
        ]


@dataclass(frozen=True)
class ScoredClips:
    """Scores of the test clips by the models of one or several folds."""

    scores: Array
    """(N, C), as from `comparable_scores`."""
    targets: Array
    """(N, C), 0 or 1."""

    def confusion(self) -> Array:
        """Return the confusion matrix (C, C), with a row for each true class."""
        return confusion_counts(self.targets.argmax(1), self.scores.argmax(1), self.scores.shape[1])


def write_report(
    report: FinetuneReport, out: Path, tested: Sequence[ScoredClips], recipe: FinetuneRecipe, *, multi: bool
) -> None:
    """Write the results, tables and plots of a finished run.

    Args:
        report: results of the run.
        out: folder of the run.
        tested: scores of each fold that has test clips.
        recipe: settings of the run.
        multi: whether clips may have any number of labels.
    """
    notes = list(report.notes)
    pooled = None
    if tested:
        pooled = ScoredClips(
            *(np.concatenate([getattr(one, name) for one in tested]) for name in ("scores", "targets"))
        )
        mean = report.scores().get("accuracy", (math.nan, None))[0]
        notes += write_tables(out, pooled, report.classes, multi=multi, title=f"accuracy {mean:.3f}")
    content = {
        "metric": report.metric,
        "scores": {
            name: {"mean": finite_or_none(mean), "deviation": spread, "interval": _bounds(report.intervals.get(name))}
            for name, (mean, spread) in report.scores().items()
        },
        "rounds": [_fold_json(fold, out) for fold in report.folds],
        "classes": report.classes,
        "confusion": None if multi or pooled is None else pooled.confusion().tolist(),
        "notes": notes,
        "recipe": json.loads(recipe.model_dump_json()),
    }
    write_json(out / RESULTS_FILE, content)


def write_tables(folder: Path, tested: ScoredClips, classes: Sequence[str], *, multi: bool, title: str) -> list[str]:
    """Write `classes.csv` and, if each clip has one label, `confusion.png`; return notes for the user."""
    given = predicted_labels(tested.scores, multi=multi)
    write_class_scores(scores_of_several_labels(classes, tested.scores, tested.targets, given), folder / CLASSES_FILE)
    if multi:
        return []
    try:
        title = f"{len(tested.scores)} test predictions, {title}"
        plot_confusion(classes, tested.confusion(), folder / CONFUSION_FILE, title)
    except MissingExtraError as error:
        return [f"{CONFUSION_FILE} was not drawn: {error}"]
    return []


def fold_folder(out: Path, name: str) -> Path:
    """Return the folder of a fold."""
    return out / ROUNDS_FOLDER / name


def _fold_json(fold: FoldResult, out: Path) -> dict[str, Any]:
    return {
        **asdict(fold),
        "scores": {name: finite_or_none(value) for name, value in fold.scores.items()},
        "intervals": {name: _bounds(interval) for name, interval in fold.intervals.items()},
        "model": fold.model.relative_to(out).as_posix(),
    }


def _bounds(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [finite_or_none(interval.low), finite_or_none(interval.high)]
