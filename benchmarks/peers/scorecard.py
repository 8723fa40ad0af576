"""The scorecard: one line for each model and view, stored as JSON, shown as Markdown and as a figure.

Lines that a run does not measure again stay as they are, each with the date and machine of its measurement. So do lines
of the kind `fine-tuned`, which are measured elsewhere and may have only some of the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssamba.checkpoint.names import DEFAULT_MODEL
from ssamba.evaluation import EvaluateOptions, Scorecard
from ssamba.evaluation.report import ReferenceRow, plot_scorecard, reference_rows
from ssamba.evaluation.retrieval import MEAN_AVERAGE_PRECISION, PRECISION_AT_10
from ssamba.evaluation.scorecard import Row
from ssamba.metrics.bootstrap import Interval
from ssamba.similarity import SIMILARITIES, SIMILARITY
from ssamba.studies.harness import table, write_report

KINDS = ("ours", "fine-tuned", "peer")
"""Kinds of lines, in the order of the table."""
MEAN = "mean"
CLIP, PARTS = "final.mean", "final.mean.parts"
"""Views that every model has: its readouts."""


@dataclass(frozen=True)
class Line:
    """Scores of one model and view."""

    name: str
    """Name of the model."""
    kind: str
    """One of `KINDS`."""
    view: str
    """Layer, pooling and readout."""
    scores: dict[str, float]
    """Accuracy by task."""
    intervals: dict[str, list[float]]
    """95 % intervals over test clips, by task and for `mean`."""
    how: str
    """Processing of a clip."""
    license: str = ""
    """License of code and weights."""
    parameters: int | None = None
    """Number of weights that the embedding uses; None for a formula."""
    retrieval: dict[str, Any] = field(default_factory=dict)
    """By similarity: `scores` and `intervals` of `mAP` and `precision_at_10`, as in `evaluation.retrieval`."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Date, machine, versions, seconds."""

    @property
    def title(self) -> str:
        """Name, and the readout or view unless it is the default one."""
        return self.name if self.view == CLIP else f"{self.name}, {'parts' if self.view == PARTS else self.view}"


@dataclass(frozen=True)
class Content:
    """Contents of the scorecard."""

    tasks: dict[str, dict[str, Any]]
    """Digest, clips and classes by task, in the order of the tables."""
    lines: list[Line] = field(default_factory=list)
    """Measured lines."""
    missing: dict[str, str] = field(default_factory=dict)
    """Peers that could not be scored, and the reasons."""
    speeds: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Seconds of audio embedded in one second of one core, by model (`speed.py`)."""


def lines_of(card: Scorecard, views: Sequence[str], **about: Any) -> list[Line]:
    """Return the lines of a model's views.

    Args:
        card: results of the evaluation.
        views: rows to take.
        about: the other fields of `Line`.
    """
    return [
        Line(
            card.model,
            view=row.view,
            scores=row.scores,
            intervals={name: list(interval) for name, interval in row.intervals.items()},
            retrieval={kind: asdict(own) for kind, own in row.retrieval.items()},
            **about,
        )
        for row in map(card.row, views)
    ]


def merged(old: Content, new: Content) -> Content:
    """Replace old lines by those measured again, and append new ones after those of their kind.

    Raises:
        ValueError: the old lines are of other recordings, so that scores cannot be compared.
    """
    shared = old.tasks.keys() & new.tasks.keys()
    changed = [name for name in shared if old.tasks[name] != new.tasks[name]]
    if old.lines and changed:
        raise ValueError(f"{changed[0]} is not the task that existing lines were measured on: write to another folder")
    lines = {(line.name, line.view): line for line in (*old.lines, *new.lines)}
    measured = {line.name for line in new.lines}
    missing = {name: reason for name, reason in old.missing.items() if name not in measured} | new.missing
    ordered = sorted(lines.values(), key=lambda line: KINDS.index(line.kind))  # a stable sort
    return Content({**old.tasks, **new.tasks}, ordered, missing, {**old.speeds, **new.speeds})


def read(path: Path) -> Content:
    """Read a scorecard's JSON; a missing file gives empty contents."""
    if not path.exists():
        return Content({})
    content = json.loads(path.read_text(encoding="utf-8"))
    return Content(**{**content, "lines": [Line(**line) for line in content["lines"]]})


def save(content: Content, folder: Path) -> None:
    """Write scorecard.json, scorecard.md and scorecard.png, each atomically.

    The JSON has five digits, and intervals and P@10 of retrieval by the default similarity alone: below 100 kB.
    """
    write_report(folder, "scorecard", _rounded(asdict(content)), markdown(content) + "\n")
    plot(content, folder / "scorecard.png")


def _rounded(value: Any) -> Any:
    """Return JSON's values with shorter floats, and without what no table shows of other similarities."""
    if isinstance(value, dict):
        shown = value.get("retrieval", {}).get(SIMILARITY)
        value = {name: _rounded(own) for name, own in value.items()}
        if shown is not None:
            for kind, own in value["retrieval"].items():
                if kind != SIMILARITY:
                    own.pop("intervals", None)
                    own["scores"].pop(PRECISION_AT_10, None)
        return value
    if isinstance(value, list | tuple):
        return [_rounded(own) for own in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def markdown(content: Content) -> str:
    """Return tables of accuracies, retrieval and speed, of quoted rows and the differences to them, and of facts."""
    tasks = list(content.tasks)
    parts = []
    if content.lines:
        columns = ["model", "M params", *tasks, MEAN, "95 % of the mean"]
        rows = [_cells(line, tasks) for line in content.lines]
        rows.append(["chance", "-", *(_figure(1 / content.tasks[task]["classes"]) for task in tasks), "-", "-"])
        parts.append(f"Accuracy, linear probe, test clips. `parts`: that readout.\n\n{table(columns, rows)}")
        parts += _retrieval(content, tasks)
    if content.speeds:
        parts.append(_speed_table(content.speeds))
    quoted = [row for row in reference_rows() if tasks and all(task in row.scores for task in tasks)]
    if quoted:
        cells = [[row.name, *(_figure(row.scores[t]) for t in tasks), _figure(row.mean(tasks))] for row in quoted]
        parts.append(f"Accuracy quoted with the suite, not measured here.\n\n{table(['model', *tasks, MEAN], cells)}")
    if differing := _differences(content, tasks):
        parts.append(f"Measured minus quoted with the suite.\n\n{table(['model', *tasks, MEAN], differing)}")
    if content.lines:
        parts.append(table(["model", "processing of a clip", "license", "measured"], _about(content)))
    if content.missing:
        parts.append(table(["not measured", "reason"], [list(pair) for pair in content.missing.items()]))
    return "\n\n".join(parts)


def _retrieval(content: Content, tasks: Sequence[str]) -> list[str]:
    """Return tables of retrieval: by task with the default similarity, and by similarity."""
    rows, by_similarity = [], []
    for line in content.lines:
        own = line.retrieval.get(SIMILARITY)
        if own is None:
            continue
        scores, interval = own["scores"][MEAN_AVERAGE_PRECISION], own["intervals"][MEAN_AVERAGE_PRECISION][MEAN]
        precision = own["scores"][PRECISION_AT_10]
        by_task = [_figure(scores[task]) if task in scores else "-" for task in tasks]
        mean, at_10 = _figure(_mean(scores)), _figure(_mean(precision))
        rows.append([line.title, *by_task, mean, f"{_figure(interval[0])}-{_figure(interval[1])}", at_10])
        means = [_mean(line.retrieval[kind]["scores"][MEAN_AVERAGE_PRECISION]) for kind in SIMILARITIES]
        by_similarity.append([line.title, *map(_figure, means)])
    if not rows:
        return []
    columns = ["model", *tasks, MEAN, "95 % of the mean", "P@10"]
    return [
        f"Retrieval among other groups, mAP, {SIMILARITY.replace('_', '-')} cosine; P@10: mean precision at 10.\n\n"
        + table(columns, rows),
        f"Retrieval by similarity, mean mAP.\n\n{table(['model', *SIMILARITIES], by_similarity)}",
    ]


def _speed_table(speeds: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of real-time factors."""
    cases = list(dict.fromkeys(case for own in speeds.values() for case in own["times_real_time"]))
    rows = []
    for name, own in speeds.items():
        found = own["times_real_time"]
        machine = f"{own['date']}, {own['processor']}, {own['threads']} thread(s)"
        rows.append([name, *(f"{found[case]:.0f}" if case in found else "-" for case in cases), machine])
    title = "Seconds of audio embedded in one second of one core, waveform to vector, by clip and readout."
    return f"{title}\n\n{table(['model', *cases, 'measured'], rows)}"


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _cells(line: Line, tasks: Sequence[str]) -> list[str]:
    millions = "-" if line.parameters is None else f"{line.parameters / 1e6:.2g}"
    whole = all(task in line.scores for task in tasks)
    interval = line.intervals.get(MEAN) if whole else None
    return [
        line.title,
        millions,
        *(_figure(line.scores[task]) if task in line.scores else "-" for task in tasks),
        _figure(mean_of(line, tasks)) if whole else "-",
        f"{_figure(interval[0])}-{_figure(interval[1])}" if interval else "-",
    ]


def _differences(content: Content, tasks: Sequence[str]) -> list[list[str]]:
    quoted = {row.name: row for row in reference_rows()}
    rows = []
    for line in content.lines:
        if line.view != CLIP or line.name not in quoted or not all(t in quoted[line.name].scores for t in tasks):
            continue
        other = quoted[line.name]
        by_task = [f"{line.scores[task] - other.scores[task]:+.3f}" for task in tasks]
        rows.append([line.name, *by_task, f"{mean_of(line, tasks) - other.mean(list(tasks)):+.3f}"])
    return rows


def _about(content: Content) -> list[list[str]]:
    rows = {}
    for line in content.lines:
        seen = line.measured
        runtimes = ", ".join(f"{name} {version}" for name, version in seen.get("runtimes", {}).items())
        machine = f"{seen.get('processor', '')}, {seen.get('threads', '?')} thread(s), torch {seen.get('torch', '?')}"
        where = "; ".join(part for part in (seen.get("date", ""), machine, runtimes) if part)
        rows[line.name] = [line.name, line.how, line.license, where]
    return list(rows.values())


def mean_of(line: Line, tasks: Sequence[str]) -> float:
    """Return the mean accuracy over tasks."""
    return sum(line.scores[task] for task in tasks) / len(tasks)


def _figure(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def plot(content: Content, output: Path) -> None:
    """Plot accuracy by task: our weights with their intervals, and the other models.

    Of each model the readout `parts` is shown, or `clip` if that was not measured.
    """
    shown: dict[str, Line] = {}
    for line in content.lines:
        if line.view == PARTS or line.name not in shown:
            shown[line.name] = line
    own = shown.get(DEFAULT_MODEL)
    if own is None:
        return
    row = Row(own.view, own.scores, {name: Interval(*pair) for name, pair in own.intervals.items()})
    card = Scorecard(own.name, "", EvaluateOptions(), {t: content.tasks[t] for t in own.scores}, [row], 0.0)
    others = [ReferenceRow(line.title, None, line.scores) for line in shown.values() if line is not own]
    plot_scorecard(card, output, others)
