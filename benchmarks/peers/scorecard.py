"""The scorecard: one line for each model and view, stored as JSON, shown as Markdown and as a figure.

Lines that a run does not measure again stay as they are, each with the date and machine of its measurement. So do lines
of the kind `fine-tuned`, which are measured elsewhere and may have only some of the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssamba.checkpoint.names import DEFAULT_MODEL
from ssamba.evaluation import EvaluateOptions, Scorecard
from ssamba.evaluation.report import ReferenceRow, plot_scorecard, reference_rows
from ssamba.evaluation.scorecard import Row
from ssamba.metrics.bootstrap import Interval
from ssamba.studies.harness import table, write_report

KINDS = ("ours", "fine-tuned", "peer")
"""Kinds of lines, in the order of the table."""
MEAN = "mean"


@dataclass(frozen=True)
class Line:
    """Scores of one model and view."""

    name: str
    """Name of the model."""
    kind: str
    """One of `KINDS`."""
    view: str
    """Layer and pooling, or `best`; `final.mean` for a peer."""
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
    chosen: dict[str, list[str]] = field(default_factory=dict)
    """For `best`: the view chosen in each fold, by task."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Date, machine, versions, seconds."""

    @property
    def title(self) -> str:
        """Name, and the view unless it is the default one."""
        return self.name if self.kind == "peer" or self.view == "final.mean" else f"{self.name}, {self.view}"


@dataclass(frozen=True)
class Content:
    """Contents of the scorecard."""

    tasks: dict[str, dict[str, Any]]
    """Digest, clips and classes by task, in the order of the tables."""
    lines: list[Line] = field(default_factory=list)
    """Measured lines."""
    missing: dict[str, str] = field(default_factory=dict)
    """Peers that could not be scored, and the reasons."""


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
            chosen=row.chosen,
            **about,
        )
        for row in map(card.row, views)
    ]


def card_of(path: Path) -> Scorecard:
    """Read a card that `ssamba evaluate SUITE -o FILE` wrote, without the single predictions."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        Row(**{**row, "intervals": {name: Interval(*pair) for name, pair in row["intervals"].items()}})
        for row in ({key: value for key, value in row.items() if key != MEAN} for row in content["rows"])
    ]
    options = EvaluateOptions.parse(content["options"], str(path))
    return Scorecard(
        content["model"],
        content["model_digest"],
        options,
        content["tasks"],
        rows,
        seconds=content["seconds"],
        repeated=content.get("repeated", {}),
        weights_digest=content.get("weights_digest"),
    )


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
    return Content({**old.tasks, **new.tasks}, ordered, missing)


def read(path: Path) -> Content:
    """Read a scorecard's JSON; a missing file gives empty contents."""
    if not path.exists():
        return Content({})
    content = json.loads(path.read_text(encoding="utf-8"))
    return Content(content["tasks"], [Line(**line) for line in content["lines"]], content["missing"])


def save(content: Content, folder: Path) -> None:
    """Write scorecard.json, scorecard.md and scorecard.png, each atomically."""
    write_report(folder, "scorecard", asdict(content), markdown(content) + "\n")
    plot(content, folder / "scorecard.png")


def markdown(content: Content) -> str:
    """Return tables of accuracies, of differences to the quoted rows, and of facts about each line."""
    tasks = list(content.tasks)
    columns = ["model", "M params", *tasks, MEAN, "95 % of the mean"]
    rows = [_cells(line, tasks) for line in content.lines]
    rows.append(["chance", "-", *(_figure(1 / content.tasks[task]["classes"]) for task in tasks), "-", "-"])
    parts = [f"Accuracy, linear probe, test clips.\n\n{table(columns, rows)}"]
    if differing := _differences(content, tasks):
        parts.append(f"Measured minus quoted with the suite.\n\n{table(['model', *tasks, MEAN], differing)}")
    parts.append(table(["model", "processing of a clip", "license", "measured"], _about(content)))
    if content.missing:
        parts.append(table(["not measured", "reason"], [list(pair) for pair in content.missing.items()]))
    return "\n\n".join(parts)


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
        if (
            line.view != "final.mean"
            or line.name not in quoted
            or not all(t in quoted[line.name].scores for t in tasks)
        ):
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
    """Plot accuracy by task: our weights with their intervals, and all other lines."""
    own = next((line for line in content.lines if line.name == DEFAULT_MODEL), None)
    if own is None:
        return
    row = Row(own.view, own.scores, {name: Interval(*pair) for name, pair in own.intervals.items()})
    card = Scorecard(own.name, "", EvaluateOptions(), {t: content.tasks[t] for t in own.scores}, [row], 0.0)
    others = [ReferenceRow(line.title, None, line.scores) for line in content.lines if line is not own]
    plot_scorecard(card, output, others)
