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
from typing import Any

import numpy as np

from ssamba.evaluation.probing import EventsResult, LabelsResult, ProbeResult
from ssamba.evaluation.scorecard import Row, Scorecard
from ssamba.evaluation.task import Task
from ssamba.events import event_counts
from ssamba.files import write_csv
from ssamba.metrics.bootstrap import Interval
from ssamba.metrics.classification import Array, area_under_curve, average_precision, confusion_counts
from ssamba.plotting import GRAY, GREEN, WHITE_TO_BLUE, blank_figure, save_figure, styled

PLOT_FORMATS = (".png", ".pdf", ".svg")
"""Suffixes of plot files."""
_MEAN = "mean"
_SQUARE = "\u25a1"  # of `styled`, in place of a character that no font has
_MAX_TICK_LABELS = 60  # more are unreadable along an axis
_MAX_CLASSES_WITH_SHARES = 20  # cells of more classes are too small for numbers


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
    """Plot a panel of scores for each task, a line for each model; the card's with intervals; chance for accuracies.

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
    metrics = {name: str(card.tasks[name].get("metric", "accuracy")) for name in tasks}
    rows = [(card.model, {**row.scores, _MEAN: row.mean})]
    for reference in references:
        scores = {task: reference.scores[task] for task in tasks if task in reference.scores}
        if len(scores) == len(tasks):
            scores[_MEAN] = reference.mean(tasks)
        if scores:
            rows.append((reference.name, scores))
    # By the mean, the best above; those without one by their scores.
    rows.sort(key=lambda one: one[1].get(_MEAN, float(np.mean(list(one[1].values())))))
    panels = [*tasks, *([_MEAN] if len(tasks) > 1 else [])]
    with styled([name for name, _ in rows] + panels) as show:
        figure = blank_figure(2.6 + 1.3 * len(panels), 1.3 + 0.24 * len(rows))
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for name, axis in zip(panels, axes, strict=True):
            _plot_scores(axis, rows, name, card.model, row.intervals.get(name))
            if metrics.get(name) == "accuracy":
                chance = 1 / card.tasks[name]["classes"]
                axis.axvline(chance, color="0.6", linewidth=0.8, linestyle=":")
            metric = metrics.get(name, "accuracy")
            axis.set_title(show(name) + ("" if metric == "accuracy" else f"\n({metric})"))
        axes[0].set_yticks(range(len(rows)), [show(name) for name, _ in rows])
        for label, (name, _) in zip(axes[0].get_yticklabels(), rows, strict=True):
            label.set(color=GREEN if name == card.model else "0.3", weight="bold" if name == card.model else "normal")
        axes[0].set_xlim(0, 1)
        axes[0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        figure.supxlabel(
            f"{'accuracy' if set(metrics.values()) <= {'accuracy'} else 'score'}; bars: 95 % interval over test clips; "
            "dotted: chance",
            fontsize=8,
        )
        figure.suptitle(show(f"{card.model} ({row.view}){' and other models' if len(rows) > 1 else ''}"))
        return save_figure(figure, output)


def _plot_scores(
    axis: Any, rows: Sequence[tuple[str, dict[str, float]]], name: str, own: str, interval: Interval | None
) -> None:
    """Plot the scores of one task, a line for each model; that of `own` with its interval."""
    for line, (model, scores) in enumerate(rows):
        if name not in scores:
            continue
        color = GREEN if model == own else GRAY
        edge = scores[name]
        if model == own and interval is not None:
            axis.plot([interval.low, interval.high], [line, line], color=color, linewidth=1.5)
            edge = interval.high if edge <= 0.75 else interval.low
        axis.plot(scores[name], line, "o", color=color)
        side = -1 if scores[name] > 0.75 else 1
        text = f"{scores[name]:.2f}".lstrip("0") if scores[name] < 1 else "1"
        axis.annotate(text, (edge, line), (side * 5, 0), textcoords="offset points", va="center", color=color,
                      fontsize=7, ha="left" if side > 0 else "right",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
    axis.grid(axis="y")
    axis.tick_params(length=0)
    axis.spines[["left", "bottom"]].set_color("0.8")


def plot_confusion(names: Sequence[str] | Array, counts: Array, output: str | Path, title: str | None = None) -> Path:
    """Plot a confusion matrix in percent of each true label's clips, which are counted beside it.

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
    check_plotting()
    from matplotlib.colors import LinearSegmentedColormap

    names = [str(name) for name in names]
    clips = counts.sum(1)
    percent = 100 * counts / np.maximum(clips, 1)[:, None]
    with styled(names) as show:
        shown = [show(name) for name in names]
        # A name of squares alone, or that of several labels, would not tell which label it is.
        unclear = [not name.strip(_SQUARE + " ") or shown.count(name) > 1 for name in shown]
        shown = [f"no. {i}" if unclear[i - 1] else name for i, name in enumerate(shown, 1)]
        longest = max(map(len, shown)) if len(names) <= _MAX_TICK_LABELS else 0
        cells = min(12.0, (0.34 if len(names) <= _MAX_CLASSES_WITH_SHARES else 0.2) * max(len(names), 4))
        figure = blank_figure(cells + 0.055 * longest + 1.9, cells + 0.055 * longest + 0.8)
        axis = figure.subplots()
        colors = LinearSegmentedColormap.from_list("shares", WHITE_TO_BLUE)
        image = axis.imshow(percent, cmap=colors, vmin=0, vmax=100, aspect="equal")
        figure.colorbar(image, ax=axis, shrink=0.8, label="% of the true label's clips")
        axis.spines[:].set_visible(True)
        axis.spines[:].set_color("0.7")
        if len(names) <= _MAX_TICK_LABELS:
            axis.set_xticks(range(len(names)), shown, rotation=90)
            rows = [f"{name} ({count:g})" for name, count in zip(shown, clips, strict=True)]
            axis.set_yticks(range(len(names)), rows)
            axis.set_ylabel("true label (clips)")
        else:
            tens = range(9, len(names), 10)
            axis.set_xticks(tens, [str(i + 1) for i in tens])
            axis.set_yticks(tens, [str(i + 1) for i in tens])
            axis.set_ylabel("true label (number in the sorted list of labels)")
        axis.set_xlabel("given label" + ("\nno.: number in the sorted list of labels" if any(unclear) else ""))
        if len(names) <= _MAX_CLASSES_WITH_SHARES:
            for row, column in zip(*np.nonzero(counts), strict=True):
                color = "white" if percent[row, column] > 60 else "black"
                axis.text(
                    column, row, _percent(percent[row, column]), ha="center", va="center", fontsize=7, color=color
                )
        if title:
            axis.set_title(show(title))
        return save_figure(figure, output)


def _percent(value: float) -> str:
    """Return a share above 0 in whole percent."""
    return f"{value:.0f}" if value >= 0.5 else "<1"
