"""Results of a fine-tuning run: metrics that choose a model, test metrics with intervals, and the files written.

    OUT/results.json     test metrics of each fold with 95 % intervals, their mean and standard deviation, the recipe
    OUT/classes.csv      metrics of each class over the test predictions of all folds, the worst class first
    OUT/confusion.png    confusion matrix, if each clip has one label
    OUT/rounds/NAME/     the same table and plot for each fold

Classes are ranked by log-probabilities if a clip has one label and by logits if it may have several: the order is that
of probabilities, without ties between probabilities that round to 1.

Shapes: N predictions (for clips or seconds), C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ssamba.checkpoint.files import write_json
from ssamba.checkpoint.names import ROUNDS_FOLDER
from ssamba.config import ModelIdentity
from ssamba.errors import MissingExtraError
from ssamba.evaluation.report import plot_confusion, scores_of_several_labels, write_class_scores
from ssamba.metrics import classification as metrics
from ssamba.metrics.bootstrap import Interval, affordable_samples, bootstrap_values, interval_of
from ssamba.metrics.calibration import ClassThreshold, calibrated, choose_thresholds, fit_temperature
from ssamba.metrics.classification import finite_or_none
from ssamba.splits import first_of
from ssamba.text import format_table
from ssamba.training.finetuning.background import BACKGROUND
from ssamba.training.finetuning.recipe import FinetuneRecipe

Array: TypeAlias = "npt.NDArray[Any]"
Metric: TypeAlias = Callable[[Array, Array], float]

RESULTS_FILE = "results.json"
CONFUSION_FILE = "confusion.png"
CLASSES_FILE = "classes.csv"
_BOOTSTRAP_SAMPLES = 1000
_LABELS_LISTED = 40


def validation_metrics(logits: Array, targets: Array, *, multi: bool, binary_loss: bool) -> dict[str, float]:
    """Return the loss, and mean average precision (multi-label) or accuracy and balanced accuracy (mean recall).

    Args:
        logits: (N, C).
        targets: (N, C), 0 or 1.
        multi: whether a clip may have any number of labels.
        binary_loss: whether the loss is binary cross entropy.
    """
    outputs, expected = torch.from_numpy(logits), torch.from_numpy(targets)
    loss = F.binary_cross_entropy_with_logits(outputs, expected) if binary_loss else F.cross_entropy(outputs, expected)
    if multi:
        precision = metrics.mean_average_precision(logits, targets) if targets.any() else math.nan
        return {"loss": float(loss), "mAP": precision}
    accuracy, balanced = metrics.accuracy(logits, targets), metrics.balanced_accuracy(logits, targets)
    return {"loss": float(loss), "accuracy": accuracy, "balanced_accuracy": balanced}


def metrics_of_test(*, multi: bool, by_second: bool) -> dict[str, Metric]:
    """Return the test metrics by name, each a function of comparable scores and targets (N, C).

    The EER is the mean over classes, each against all others. Segment F1 and error rate use `predicted_labels`.
    """
    if multi:
        chosen: dict[str, Metric] = {"mAP": metrics.mean_average_precision}
    else:
        chosen = {"accuracy": metrics.accuracy, "balanced_accuracy": metrics.balanced_accuracy}
        chosen["macro_f1"] = metrics.macro_f1
    chosen["mAUC"] = metrics.mean_area_under_curve
    chosen |= {"d_prime": metrics.d_prime} if multi else {"EER": metrics.mean_equal_error_rate}
    if by_second:
        labels = partial(predicted_labels, multi=multi)
        chosen["segment_f1"] = lambda scores, targets: metrics.segment_f1(labels(scores), targets)
        chosen["error_rate"] = lambda scores, targets: metrics.segment_error_rate(labels(scores), targets)
    return chosen


def comparable_scores(logits: Array, *, binary_loss: bool) -> Array:
    """Return scores (N, C), float64, that rank clips within a class as probabilities do."""
    scores: Array = logits.astype(np.float64)
    if not binary_loss and len(scores):
        highest = scores.max(1, keepdims=True)
        scores = scores - highest - np.log(np.exp(scores - highest).sum(1, keepdims=True))
    return scores


def predicted_labels(scores: Array, *, multi: bool) -> Array:
    """Return 0 or 1 for each class (N, C): labels of probability 1/2 or more (`multi`), or the most probable one."""
    if multi:
        return (scores >= 0).astype(np.int64)
    most_probable: Array = np.eye(scores.shape[1], dtype=np.int64)[scores.argmax(1)]
    return most_probable


@dataclass(frozen=True)
class FoldTest:
    """Test of one fold: scores of its clips, and metrics on them and on bootstrap samples of the recordings."""

    scores: Array
    """(N, C), as from `comparable_scores`."""
    targets: Array
    """(N, C), 0 or 1."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Metrics by name, without those that are undefined on these clips (mAP without a positive)."""
    samples: Mapping[str, Array] = field(default_factory=dict)
    """Values of each metric on the bootstrap samples."""

    @classmethod
    def measure(cls, scores: Array, targets: Array, recordings: Array, chosen: Mapping[str, Metric]) -> FoldTest:
        """Compute metrics; bootstrap samples hold all predictions of a recording, whose number `recordings` (N,) is."""
        count = affordable_samples(scores.size, _BOOTSTRAP_SAMPLES)
        values: dict[str, float] = {}
        samples: dict[str, Array] = {}
        for name, metric in chosen.items():
            try:
                values[name] = metric(scores, targets)
                samples[name] = bootstrap_values(metric, scores, targets, samples=count, units=recordings)
            except ValueError:  # undefined on these clips, or on most samples of them
                continue
        return cls(scores, targets, values, samples)

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of the metrics."""
        return {name: interval_of(values) for name, values in self.samples.items()}


@dataclass(frozen=True)
class Calibration:
    """Temperature and thresholds, from answers for held-out clips."""

    temperature: float
    """Divides the logits."""
    wanted_precision: float
    """Precision that the thresholds were chosen for."""
    thresholds: tuple[ClassThreshold, ...]
    """Of each class."""
    answers: int
    """Number of answers: clips, or seconds; with a background, clips count again with background under them."""
    scenes: int = 0
    """Number of scenes that the thresholds were chosen on (`ssamba.training.finetuning.scenes`); 0: on the answers."""

    @classmethod
    def fit(cls, logits: Array, targets: Array, precision: float, *, binary_loss: bool) -> Calibration:
        """Fit both to logits and targets (N, C) of held-out answers."""
        temperature = round(fit_temperature(logits, targets, independent=binary_loss), 4)
        probabilities = calibrated(logits, temperature, independent=binary_loss)
        chosen = choose_thresholds(probabilities, targets, precision)
        return cls(temperature, precision, tuple(chosen), len(logits))

    def notes(self, classes: Sequence[str], background: str | None) -> list[str]:
        """Return a line on the classes whose precision is not the wanted one, if there are any."""
        below = [
            f"{name} ({one.precision:.2f})" if one.precision == one.precision else f"{name} (never present)"
            for name, one in zip(classes, self.thresholds, strict=True)
            if name != background and not one.precision >= self.wanted_precision
        ]
        if not below:
            return []
        return [
            f"{len(below)} of {len(classes)} labels do not have a precision of {self.wanted_precision:g} on held-out "
            f"{'scenes' if self.scenes else 'clips'}: {first_of(below)}"
        ]

    def table(self, classes: Sequence[str]) -> str:
        """Return the thresholds with precision and recall as a table, of some labels if there are many."""
        rows = [
            [name, f"{one.threshold:.3f}", *("-" if x != x else f"{x:.2f}" for x in (one.precision, one.recall))]
            for name, one in zip(classes, self.thresholds, strict=True)
            if name != BACKGROUND
        ]
        left_out = [f"... and {len(rows) - _LABELS_LISTED} more labels"] if len(rows) > _LABELS_LISTED else []
        table = format_table(["event", "threshold", "precision", "recall"], rows[:_LABELS_LISTED])
        return "\n".join([table, *left_out])

    def as_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return plain values, with a name for each threshold."""
        thresholds = {
            name: {key: finite_or_none(value) for key, value in asdict(one).items()}
            for name, one in zip(classes, self.thresholds, strict=True)
        }
        return {**asdict(self), "thresholds": thresholds}


def mean_intervals(folds: Sequence[FoldTest]) -> dict[str, Interval]:
    """Return 95 % intervals of the means over folds, with recordings sampled within each fold."""
    names = [name for name in folds[0].samples if all(name in fold.samples for fold in folds)] if folds else []
    intervals = {}
    for name in names:
        count = min(len(fold.samples[name]) for fold in folds)
        intervals[name] = interval_of(np.mean([fold.samples[name][:count] for fold in folds], axis=0))
    return intervals


@dataclass(frozen=True)
class Refit:
    """Training of the final classifier on all labeled clips, after the test. As text, what it was trained on."""

    clips: int
    """Labeled clips, without background."""
    trained_on: int
    """Labeled clips that trained the classifiers which were tested, the mean over folds."""
    steps: int
    epochs: float
    """Epochs of the classifiers that were tested, the mean over folds."""
    done: bool = False

    def __str__(self) -> str:
        epochs = f"{self.epochs:g} epoch{'' if self.epochs == 1 else 's'}"
        return (
            f"refitted on all {self.clips} labeled clips ({epochs}); scores, temperature and thresholds "
            f"are those of the same training on {self.trained_on} of them"
        )


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
    """`finished`, the signal that stopped the run, or `stopped` by `progress`; repeating the call resumes."""
    metric: str
    """Name of the validation metric."""
    classes: tuple[str, ...]
    """Names of the classes."""
    folds: tuple[FoldResult, ...]
    """Results of the folds that are finished."""
    notes: tuple[str, ...]
    """Remarks for the user, for example on held-out clips."""
    model: Path | None
    """Folder of the classifier; None until the tests are done."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % bootstrap intervals of the means over folds, over recordings."""
    moved_to: Path | None = None
    """Folder that an earlier run was moved to, because of `overwrite`."""
    was_finished: bool = False
    """Whether every fold was trained already."""
    calibration: Calibration | None = None
    """Temperature and thresholds of the classifier; None if no clip was held out."""
    refit: Refit | None = None
    """The training on all clips; None without one."""

    def __str__(self) -> str:
        parts = [self._table_of_folds()] if self.folds else []
        parts += [self._table_of_metrics()] if self.intervals else []
        parts += [self.calibration.table(self.classes)] if self.calibration else []
        lines = [] if self.moved_to is None else [f"the earlier run is in {self.moved_to}"]
        if self.stopped != "finished":
            tested = f" ({self.model} is the classifier that was tested, not yet refitted)" if self.model else ""
            lines.append(f"{self.stopped}: repeat the command to resume{tested}")
        elif self.model is not None:
            again = "already finished (more minutes or epochs train it again, for longer)"
            lines += [again] if self.was_finished else []
            lines.append(f"{len(self.classes)} labels, classifier in {self.model}")
            lines += [f"  {self.refit}"] if self.refit and self.refit.done else []
            lines.append(f"try it: ssamba predict RECORDINGS -c {self.model.parent}")
        return "\n\n".join([*parts, "\n".join(lines)])

    def _table_of_folds(self) -> str:
        """Return clips, chosen epoch and scores of each fold."""
        shown = [name for name in ("loss", "accuracy", "balanced_accuracy", "mAP") if name in self.scores()]
        rows = [
            [
                fold.name,
                ", ".join(map(str, fold.clips.values())),
                str(fold.epoch),
                "" if fold.valid is None else f"{fold.valid:.3f}",
                *(f"{fold.scores[name]:.3f}" if name in fold.scores else "" for name in shown),
            ]
            for fold in self.folds
        ]
        header = ["fold", "train, valid, test clips", "epoch", f"valid {self.metric}"]
        return format_table([*header, *(f"test {name}" for name in shown)], rows)

    def _table_of_metrics(self) -> str:
        """Return the test metrics over all folds."""
        several = len(self.folds) > 1
        rows = []
        for name, (mean, spread) in self.scores().items():
            bounds = self.intervals.get(name)
            deviation = ["" if spread is None else f"{spread:.3f}"] if several else []
            interval = f"{bounds.low:.3f}-{bounds.high:.3f}" if bounds else ""
            rows.append([name.replace("_", " "), f"{mean:.3f}", *deviation, interval])
        columns = [f"mean over {len(self.folds)} folds", "deviation"] if several else ["test"]
        return format_table(["metric", *columns, "95 %"], rows)

    def _defined(self) -> dict[str, list[float]]:
        """Values of each test metric in the folds where it is defined."""
        names = dict.fromkeys(name for fold in self.folds for name in fold.scores)
        values = {name: [fold.scores.get(name, math.nan) for fold in self.folds] for name in names}
        return {name: [value for value in found if not math.isnan(value)] for name, found in values.items()}

    def scores(self) -> dict[str, tuple[float, float | None]]:
        """Return mean and standard deviation of each test metric over the folds where it is defined.

        A metric may be undefined, such as average precision if no test clip has a label. The standard deviation is None
        for a single fold.
        """
        return {
            name: (
                float(np.mean(values)) if values else math.nan,
                float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None,
            )
            for name, values in self._defined().items()
        }

    def partly_scored(self) -> list[str]:
        """Return a note for each metric that is undefined in some of the tested folds."""
        tested = sum(bool(fold.scores) for fold in self.folds)
        return [
            f"{name} covers {len(values)} of {tested} folds: in the others all test clips share one label or have none"
            for name, values in self._defined().items()
            if 0 < len(values) < tested
        ]


def write_report(
    report: FinetuneReport,
    out: Path,
    tested: Sequence[FoldTest],
    recipe: FinetuneRecipe,
    base: ModelIdentity | None,
    *,
    multi: bool,
    run: Mapping[str, Any] | None = None,
) -> None:
    """Write results, tables and plots of a run into its folder.

    `tested` are the tests of the folds that have test clips; `base` is the model that training started from; `run` is
    what a finished run is recognized by, None before the end.
    """
    notes, confusion = list(report.notes), None
    if tested:
        scores, targets = (np.concatenate([getattr(fold, name) for fold in tested]) for name in ("scores", "targets"))
        mean, balanced = (report.scores().get(name, (math.nan,))[0] for name in ("accuracy", "balanced_accuracy"))
        pooled = FoldTest(scores, targets)
        notes += write_tables(
            out, pooled, report.classes, multi=multi, title=f"accuracy {mean:.3f} ({balanced:.3f} balanced)"
        )
        confusion = None if multi else _confusion(pooled).tolist()
    content = {
        "metric": report.metric,
        "scores": {
            name: {"mean": finite_or_none(mean), "deviation": spread, "interval": _bounds(report.intervals.get(name))}
            for name, (mean, spread) in report.scores().items()
        },
        "rounds": [
            {
                **asdict(fold),
                "scores": {name: finite_or_none(value) for name, value in fold.scores.items()},
                "intervals": {name: _bounds(interval) for name, interval in fold.intervals.items()},
                "model": fold.model.relative_to(out).as_posix(),
            }
            for fold in report.folds
        ],
        "classes": report.classes,
        "confusion": confusion,
        "calibration": None if report.calibration is None else report.calibration.as_json(report.classes),
        "refit": None if report.refit is None else asdict(report.refit),
        "notes": notes,
        "base": None if base is None else base.model_dump(),
        "recipe": json.loads(recipe.model_dump_json()),
        "run": run,
    }
    write_json(out / RESULTS_FILE, content)


def write_tables(folder: Path, test: FoldTest, classes: Sequence[str], *, multi: bool, title: str) -> list[str]:
    """Write `classes.csv` and, if each clip has one label, `confusion.png`; return notes for the user."""
    predicted = predicted_labels(test.scores, multi=multi)
    write_class_scores(scores_of_several_labels(classes, test.scores, test.targets, predicted), folder / CLASSES_FILE)
    if not multi:
        try:
            title = f"{len(test.scores)} test predictions, {title}"
            plot_confusion(classes, _confusion(test), folder / CONFUSION_FILE, title)
        except MissingExtraError as error:
            return [f"{CONFUSION_FILE} was not plotted: {error}"]
    return []


def fold_folder(out: Path, name: str) -> Path:
    """Return the folder of a fold."""
    return out / ROUNDS_FOLDER / name


def _confusion(test: FoldTest) -> Array:
    """Return the confusion matrix (C, C), with a row for each true class."""
    return metrics.confusion_counts(test.targets.argmax(1), test.scores.argmax(1), test.scores.shape[1])


def _bounds(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [finite_or_none(interval.low), finite_or_none(interval.high)]
