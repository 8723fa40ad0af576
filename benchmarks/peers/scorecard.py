"""The scorecard: one line for each model and view, kept as JSON, shown as Markdown and as a picture.

Lines that a run does not measure again stay as they were, each with the date and machine it was measured on; so do
lines of the kind `fine-tuned`, which are measured elsewhere and may have some of the tasks only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ssamba.evaluation import EvaluateOptions, Scorecard
from ssamba.evaluation.evaluate import Row
from ssamba.evaluation.report import ReferenceRow, plot_scorecard, reference_rows
from ssamba.files import write_atomically
from ssamba.metrics.bootstrap import Interval
from ssamba.studies.harness import table

KINDS = ("ours", "fine-tuned", "peer")
"""What lines may be, in the order of the table."""
MEAN = "mean"


@dataclass(frozen=True)
class Line:
    """One model, seen one way."""

    name: str
    """What it is called."""
    kind: str
    """One of `KINDS`."""
    view: str
    """Layer and pooling; `best`; of a peer `final.mean`."""
    scores: dict[str, float]
    """Accuracy by task."""
    intervals: dict[str, list[float]]
    """By task, and under `mean`: 95 % over test clips."""
    how: str
    """What becomes of a clip."""
    license: str = ""
    """Of code and weights."""
    parameters: int | None = None
    """Weights that the embedding uses; None for a formula."""
    chosen: dict[str, list[str]] = field(default_factory=dict)
    """For `best`: the view of each round, by task."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Date, machine, versions, seconds."""

    @property
    def title(self) -> str:
        """Name and view, the view where it says something."""
        return self.name if self.kind == "peer" or self.view == "final.mean" else f"{self.name}, {self.view}"


@dataclass(frozen=True)
class Content:
    """All that the scorecard holds."""

    tasks: dict[str, dict[str, Any]]
    """Digest, clips and classes by task, in the order of the tables."""
    lines: list[Line] = field(default_factory=list)
    """What was measured."""
    missing: dict[str, str] = field(default_factory=dict)
    """Peers that could not be scored, and why."""


def lines_of(card: Scorecard, views: Sequence[str], **about: Any) -> list[Line]:
    """Lines of a model's views.

    Args:
        card: what was found.
        views: which of its rows.
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
    """A card as `ssamba evaluate --json` wrote it, without the single predictions."""
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
    )


def merged(old: Content, new: Content) -> Content:
    """The old lines with those that were measured again in their place, new ones behind those of their kind.

    Raises:
        ValueError: the old lines are of other recordings, so that the scores do not compare.
    """
    shared = old.tasks.keys() & new.tasks.keys()
    changed = [name for name in shared if old.tasks[name] != new.tasks[name]]
    if old.lines and changed:
        raise ValueError(f"{changed[0]} is not the task that the kept lines were measured on: write to another place")
    lines = {(line.name, line.view): line for line in (*old.lines, *new.lines)}
    measured = {line.name for line in new.lines}
    missing = {name: reason for name, reason in old.missing.items() if name not in measured} | new.missing
    ordered = sorted(lines.values(), key=lambda line: KINDS.index(line.kind))  # a stable sort
    return Content({**old.tasks, **new.tasks}, ordered, missing)


def read(path: Path) -> Content:
    """What a scorecard's JSON holds; nothing where there is none."""
    if not path.exists():
        return Content({})
    content = json.loads(path.read_text(encoding="utf-8"))
    return Content(content["tasks"], [Line(**line) for line in content["lines"]], content["missing"])


def save(content: Content, folder: Path) -> None:
    """Write scorecard.json, scorecard.md and scorecard.png, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"json": json.dumps(asdict(content), indent=1) + "\n", "md": text(content) + "\n"}
    for suffix, written in texts.items():
        path = folder / f"scorecard.{suffix}"
        write_atomically(path, partial(Path.write_text, data=written, encoding="utf-8"))
    plot(content, folder / "scorecard.png")


def text(content: Content) -> str:
    """Tables of accuracies, of differences to the quoted rows, and of what each line is."""
    tasks = list(content.tasks)
    columns = ["model", "M params", *tasks, MEAN, "95 % of the mean"]
    rows = [_cells(line, tasks) for line in content.lines]
    rows.append(["chance", "-", *(_figure(1 / content.tasks[task]["classes"]) for task in tasks), "-", "-"])
    parts = [f"Accuracy, linear probe, test clips.\n\n{table(columns, rows)}"]
    if differing := _differences(content, tasks):
        parts.append(f"Measured minus quoted with the suite.\n\n{table(['model', *tasks, MEAN], differing)}")
    parts.append(table(["model", "what becomes of a clip", "license", "measured"], _about(content)))
    if content.missing:
        parts.append(table(["not measured", "why"], [list(pair) for pair in content.missing.items()]))
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
    """Mean accuracy over the tasks."""
    return sum(line.scores[task] for task in tasks) / len(tasks)


def _figure(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def plot(content: Content, output: Path) -> None:
    """Accuracy by task: the first of our lines with its intervals, whose name holds `shipped`, beside all others."""
    own = next((line for line in content.lines if "shipped" in line.name), None)
    if own is None:
        return
    row = Row(own.view, own.scores, {name: Interval(*pair) for name, pair in own.intervals.items()})
    card = Scorecard(own.name, "", EvaluateOptions(), {t: content.tasks[t] for t in own.scores}, [row], 0.0)
    others = [ReferenceRow(line.title, None, line.scores) for line in content.lines if line is not own]
    plot_scorecard(card, output, others)
