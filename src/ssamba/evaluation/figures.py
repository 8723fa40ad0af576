"""Pictures of an evaluation, with matplotlib (the `figures` extra), without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssamba.evaluation.caching import Array
from ssamba.evaluation.details import class_rows, confusion, write_class_scores
from ssamba.evaluation.evaluate import Row, Scorecard
from ssamba.evaluation.reference import ReferenceRow
from ssamba.evaluation.task import Task
from ssamba.plotting import blank_figure, save_figure

PICTURE_FORMATS = (".png", ".pdf", ".svg")
"""What a picture's name may end in."""
_MARKERS = "osv^Dph<>*X"
_MOST_NAMES = 60  # labels that can still be read along an axis
_MOST_COUNTS = 20  # classes whose cells have room for their numbers


def plot_scorecard(
    card: Scorecard, output: str | Path, references: Sequence[ReferenceRow] = (), row: Row | None = None
) -> Path:
    """Score by task: the model with its confidence interval, reference rows, and chance where the score is accuracy.

    Args:
        card: what was found.
        output: picture file; the suffix chooses the format.
        references: rows that have at least one of the tasks.
        row: the row to show; None is the card's best.

    Returns:
        The output's path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    row = row or card.best()
    tasks = list(card.tasks)
    shown = [reference for reference in references if any(task in reference.scores for task in tasks)]
    lines = [*tasks, "mean"]
    figure = blank_figure(8.5, 1.6 + 0.55 * len(lines))
    axis = figure.subplots()
    for line, name in enumerate(lines):
        axis.axhline(line, color="0.92", zorder=0)
        if name in card.tasks and _metric(card, name) == "accuracy":
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
    metrics = {name: _metric(card, name) for name in card.tasks}
    named = [f"{name} ({metrics[name]})" if metrics.get(name, "accuracy") != "accuracy" else name for name in lines]
    axis.set_yticks(range(len(lines)), named)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    what = "accuracy" if set(metrics.values()) == {"accuracy"} else "score (accuracy where none is named)"
    axis.set_xlabel(f"{what}, with its 95 % interval over test clips")
    axis.set_title(f"{card.model} ({row.view})", loc="left", fontsize=10)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    return save_figure(figure, output)


def _metric(card: Scorecard, task: str) -> str:
    """What a task's score is; cards that were made by hand may not say."""
    return str(card.tasks[task].get("metric", "accuracy"))


def plot_confusion(names: Sequence[str] | Array, counts: Array, output: str | Path, title: str | None = None) -> Path:
    """What is taken for what: each true label's clips (a row) by the label they were given.

    Args:
        names: labels, (C,).
        counts: (C, C), as from `confusion`.
        output: picture file; the suffix chooses the format.
        title: stands above.

    Returns:
        The output's path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    size = min(14.0, 3.5 + 0.22 * len(names))
    figure = blank_figure(size + 0.8, size)
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="magma", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.7, label="share of the true label's clips")
    if len(names) <= _MOST_NAMES:
        # Labels may be in any script; what the font lacks is shown by its code.
        texts = [str(name) if str(name).isascii() else ascii(str(name))[1:-1] for name in names]
        axis.set_xticks(range(len(names)), texts, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), texts, fontsize=7)
    axis.set_xlabel("given label")
    axis.set_ylabel("true label")
    if len(names) <= _MOST_COUNTS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "black" if shares[row, column] > 0.6 else "white"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=color)
    if title:
        axis.set_title(title, loc="left", fontsize=10)
    return save_figure(figure, output)


def write_details(card: Scorecard, tasks: Sequence[Task], folder: str | Path, view: str | None = None) -> None:
    """For each task `TASK.classes.csv`, the scores of its classes, and `TASK.confusion.png` where a clip has one label.

    Args:
        card: what was found.
        tasks: the tasks that were scored.
        folder: where to write.
        view: the row that is meant; None is the card's best.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder, view = Path(folder), view or card.best().view
    for task in tasks:
        results = card.results[view][task.name]
        write_class_scores(class_rows(task, results), folder / f"{task.name}.classes.csv")
        if task.kind != "single":
            continue
        title = f"{task.name}: {card.model} ({view}), accuracy {card.row(view).scores[task.name]:.3f}"
        plot_confusion(*confusion(task.labels, results), folder / f"{task.name}.confusion.png", title)
