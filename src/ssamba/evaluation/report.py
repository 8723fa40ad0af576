"""Tables and plots behind a scorecard: scores of each class, confusion matrices, and reference rows of other models.

Plots use matplotlib (the `figures` extra) and need no display.

Shapes: N scored clips, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from ssamba.evaluation.probing import EventsResult, LabelsResult, ProbeResult
from ssamba.evaluation.scorecard import Row, Scorecard
from ssamba.evaluation.task import Task
from ssamba.events import event_counts
from ssamba.files import write_csv
from ssamba.metrics.classification import Array, area_under_curve, average_precision, confusion_counts
from ssamba.plotting import blank_figure, save_figure

PLOT_FORMATS = (".png", ".pdf", ".svg")
"""Suffixes of plot files."""
_MARKERS = "osv^Dph<>*X"
_MAX_TICK_LABELS = 60  # more are unreadable along an axis
_MAX_CLASSES_WITH_COUNTS = 20  # cells of more classes are too small for numbers


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class."""

    label: str
    """Its name."""
    clips: int
    """Number of scored clips with this label; of seconds or events if these are scored."""
    precision: float
    """Share of correct predictions of this label; NaN if there are none."""
    recall: float
    """Share of its clips that were found; NaN if there are none."""
    f1: float
    """2 correct / (predicted + true)."""
    average_precision: float | None = None
    """Average precision, if clips have scores; NaN without a clip."""
    auc: float | None = None
    """Area under the ROC curve, if clips have scores; NaN if no clip has the label, or every one."""


@dataclass(frozen=True)
class ReferenceRow:
    """Published scores of another model on the open suite."""

    name: str
    """Model and version."""
    parameters_millions: float | None
    """Its size; None for a formula."""
    scores: dict[str, float]
    """Accuracy by task."""

    def mean(self, tasks: Sequence[str]) -> float:
        """Return the mean over these tasks."""
        return sum(self.scores[task] for task in tasks) / len(tasks)


def check_plotting() -> None:
    """Raise MissingExtraError if matplotlib is not installed, before anything is computed."""
    blank_figure(1, 1)


def reference_rows() -> list[ReferenceRow]:
    """Return the reference rows of the open suite, as published with it."""
    content = json.loads(files("ssamba.evaluation").joinpath("open_suite.json").read_text(encoding="utf-8"))
    return [ReferenceRow(**row) for row in content["reference"]["rows"]]


def confusion(labels: Array, results: Sequence[ProbeResult]) -> tuple[Array, Array]:
    """Return the sorted labels (C,) and the confusion matrix (C, C) over all folds: true label down, prediction across.

    Args:
        labels: true label of each clip of the task.
        results: of each fold.
    """
    names = np.unique(labels)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for result in results:
        true, predicted = np.searchsorted(names, labels[result.test]), np.searchsorted(names, result.predicted)
        counts += confusion_counts(true, predicted, len(names))
    return names, counts


def scores_of_one_label(labels: Array, results: Sequence[ProbeResult]) -> list[ClassScore]:
    """Return the scores of the classes of clips with one label, lowest recall first; arguments as `confusion`."""
    names, counts = confusion(labels, results)
    rows = _from_counts(names, counts.diagonal(), counts.sum(1), counts.sum(0))
    return sorted(rows, key=lambda row: (row.clips == 0, row.recall, row.label))


def scores_of_several_labels(names: Sequence[str], scores: Array, targets: Array, predicted: Array) -> list[ClassScore]:
    """Return the scores of classes whose clips have scores, lowest average precision first.

    Args:
        names: class names (C,).
        scores: (N, C), comparable between clips.
        targets: (N, C), 0 or 1.
        predicted: (N, C), 0 or 1.
    """
    true, given = targets.astype(bool), predicted.astype(bool)
    rows = _from_counts(names, (true & given).sum(0), true.sum(0), given.sum(0))
    values = zip(rows, average_precision(scores, targets), area_under_curve(scores, targets), strict=True)
    rows = [replace(row, average_precision=float(ap), auc=float(auc)) for row, ap, auc in values]
    return sorted(rows, key=lambda row: (row.clips == 0, row.average_precision, row.label))


def scores_of_events(names: Sequence[str], metric: str, results: Sequence[EventsResult]) -> list[ClassScore]:
    """Return the scores of classes of events by the counts of an F1 metric of `events.py`, lowest F1 first."""

    def counts_of(label: str) -> Array:
        total = np.zeros(3, np.int64)
        for result in results:
            true, found = (
                [[e for e in events if e.label == label] for events in own] for own in (result.true, result.found)
            )
            total += event_counts(metric, true, found).sum(0).astype(np.int64)
        return total

    counts = np.array([counts_of(name) for name in names])
    rows = _from_counts(names, counts[:, 0], counts[:, 1], counts[:, 2])
    return sorted(rows, key=lambda row: (row.clips == 0, row.f1, row.label))


def class_scores(task: Task, results: Sequence[ProbeResult]) -> list[ClassScore]:
    """Return the scores of the classes of a task over all folds, the worst first and absent classes last."""
    if task.kind == "single":
        return scores_of_one_label(task.labels, results)
    labels = [result for result in results if isinstance(result, LabelsResult)]
    if labels:
        scores, targets = (np.concatenate([getattr(r, name) for r in labels]) for name in ("scores", "targets"))
        return scores_of_several_labels(task.classes, scores, targets, scores >= 0)
    return scores_of_events(task.classes, task.metric, [r for r in results if isinstance(r, EventsResult)])


def _from_counts(names: Sequence[str] | Array, correct: Array, true: Array, predicted: Array) -> list[ClassScore]:
    """Return the scores of classes (C) from counts (C,)."""
    return [
        ClassScore(
            label=str(name),
            clips=int(has),
            precision=float(hit / given) if given else float("nan"),
            recall=float(hit / has) if has else float("nan"),
            f1=float(2 * hit / (has + given)) if has + given else float("nan"),
        )
        for name, hit, has, given in zip(names, correct, true, predicted, strict=True)
    ]


def write_class_scores(rows: Sequence[ClassScore], path: Path) -> None:
    """Write a CSV of the classes; undefined values are empty, and columns without any value are left out."""
    columns = ["precision", "recall", "f1"]
    columns += [name for name in ("average_precision", "auc") if any(getattr(row, name) is not None for row in rows)]

    cells = []
    for row in rows:
        values = (getattr(row, name) for name in columns)
        cells.append([row.label, row.clips, *("" if x is None or np.isnan(x) else f"{x:.3f}" for x in values)])
    write_csv(path, ["label", "clips", *columns], cells)


def write_details(card: Scorecard, tasks: Sequence[Task], folder: str | Path, view: str | None = None) -> None:
    """Write `TASK.classes.csv`, and `TASK.confusion.png` if clips have one label, for each task.

    Args:
        card: the scorecard.
        tasks: its tasks.
        folder: where to write.
        view: name of the row; None means the card's best.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder, view = Path(folder), view or card.best().view
    for task in tasks:
        results = card.results[view][task.name]
        write_class_scores(class_scores(task, results), folder / f"{task.name}.classes.csv")
        if task.kind == "single":
            title = f"{task.name}: {card.model} ({view}), accuracy {card.row(view).scores[task.name]:.3f}"
            plot_confusion(*confusion(task.labels, results), folder / f"{task.name}.confusion.png", title)


def plot_scorecard(
    card: Scorecard, output: str | Path, references: Sequence[ReferenceRow] = (), row: Row | None = None
) -> Path:
    """Plot the score of each task with its confidence interval, beside reference rows, and chance level for accuracies.

    Args:
        card: the scorecard.
        output: plot file; the suffix chooses the format.
        references: rows to show if they have at least one of the tasks.
        row: the row to plot; None means the card's best.

    Returns:
        The path of the plot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    row = row or card.best()
    tasks = list(card.tasks)
    shown = [reference for reference in references if any(task in reference.scores for task in tasks)]
    lines = [*tasks, "mean"]
    # Cards that were made by hand may not name their metrics.
    metrics = {name: str(card.tasks[name].get("metric", "accuracy")) for name in tasks}
    figure = blank_figure(8.5, 1.6 + 0.55 * len(lines))
    axis = figure.subplots()
    for line, name in enumerate(lines):
        axis.axhline(line, color="0.92", zorder=0)
        if metrics.get(name) == "accuracy":
            chance = 1 / card.tasks[name]["classes"]
            axis.plot([chance, chance], [line - 0.3, line + 0.3], color="0.6", lw=1)
    for number, reference in enumerate(shown):
        points = [(reference.scores[task], line) for line, task in enumerate(tasks) if task in reference.scores]
        if all(task in reference.scores for task in tasks):
            points.append((reference.mean(tasks), len(tasks)))
        marker = _MARKERS[number % len(_MARKERS)]
        x, y = zip(*points, strict=True)
        axis.plot(x, y, marker, ms=6, color="0.45", mfc="none", label=reference.name)
    scores = [*row.scores.values(), row.mean]
    intervals = [row.intervals[name] for name in lines]
    spread = np.array([[s - i.low, i.high - s] for s, i in zip(scores, intervals, strict=True)]).T.clip(min=0)
    axis.errorbar(scores, range(len(lines)), xerr=spread, fmt="o", ms=8, color="C3", capsize=3, label=card.model)
    axis.plot([], [], color="0.6", lw=1, label="chance")
    ticks = [f"{name} ({metrics[name]})" if metrics.get(name, "accuracy") != "accuracy" else name for name in lines]
    axis.set_yticks(range(len(lines)), ticks)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    quantity = "accuracy" if set(metrics.values()) == {"accuracy"} else "score (accuracy where none is named)"
    axis.set_xlabel(f"{quantity}, with its 95 % interval over test clips")
    axis.set_title(f"{card.model} ({row.view})", loc="left", fontsize=10)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    return save_figure(figure, output)


def plot_confusion(names: Sequence[str] | Array, counts: Array, output: str | Path, title: str | None = None) -> Path:
    """Plot a confusion matrix as shares of each true label's clips.

    Args:
        names: labels (C,).
        counts: (C, C), as from `confusion`.
        output: plot file; the suffix chooses the format.
        title: the plot's title.

    Returns:
        The path of the plot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    size = min(14.0, 3.5 + 0.22 * len(names))
    figure = blank_figure(size + 0.8, size)
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="magma", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.7, label="share of the true label's clips")
    if len(names) <= _MAX_TICK_LABELS:
        # Labels may be in any script; characters that the font lacks are shown by their codes.
        texts = [str(name) if str(name).isascii() else ascii(str(name))[1:-1] for name in names]
        axis.set_xticks(range(len(names)), texts, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), texts, fontsize=7)
    axis.set_xlabel("given label")
    axis.set_ylabel("true label")
    if len(names) <= _MAX_CLASSES_WITH_COUNTS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "black" if shares[row, column] > 0.6 else "white"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=color)
    if title:
        axis.set_title(title, loc="left", fontsize=10)
    return save_figure(figure, output)
