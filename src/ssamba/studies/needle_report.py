"""Report the needle test: Markdown tables of accuracy, JSON from which a study resumes, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssamba.audio.files import Skipped
from ssamba.plotting import GRAY, GREEN, RED, LineEnd, blank_figure, label_lines, save_figure, styled
from ssamba.studies.harness import list_section, read_report, report_head, table, write_report
from ssamba.studies.needle import RULES, Curve, NeedleOptions, NeedleStudy, Pass, Rule, Side, Trial

_COLORS: dict[Side, str] = {"windows": GREEN, "full": RED, "log-mel": GRAY}
_LINES: dict[Side, str] = {"windows": "o-", "full": "s--", "log-mel": "^:"}
_RULES: dict[Rule, str] = {
    "frame": "single time steps, compared with the needle's mean",
    "matched": "sequences of time steps, after whitening the haystack",
}
_SECTIONS = 5  # of a haystack, in the table and panel by position


class Score(NamedTuple):
    """Accuracy over some trials."""

    trials: int
    first: float
    """Fraction whose best match lies inside the needle."""
    five: float
    """Fraction with the needle among the five best matches."""
    chance: float
    """Accuracy of a random time step."""


def score(trials: Sequence[Trial]) -> Score | None:
    """Return the accuracy over trials; None if there are none."""
    if not trials:
        return None
    ranks = [trial.rank for trial in trials]
    count = len(ranks)
    chance = sum(trial.chance for trial in trials) / count
    return Score(count, ranks.count(1) / count, sum(rank is not None for rank in ranks) / count, chance)


def select(study: NeedleStudy, side: Side, rule: Rule, **fields: Any) -> list[Trial]:
    """Return the trials of a side and rule whose other fields have these values."""
    return [
        trial
        for trial in study.trials
        if (trial.side, trial.rule) == (side, rule) and all(getattr(trial, name) == v for name, v in fields.items())
    ]


def headlines(study: NeedleStudy) -> list[str]:
    """Return one sentence for each duration and side: accuracy of the matched filter, all levels together."""
    lines = []
    for minutes in sorted(study.options.minutes):
        for side in study.options.sides:
            found = score(select(study, side, "matched", minutes=minutes))
            if found is not None:
                lines.append(
                    f"{minutes:g} min, {side}: {100 * found.first:.0f} % found first, {100 * found.five:.0f} % among "
                    f"five, of {found.trials} (chance {100 * found.chance:.2g} %)"
                )
    return lines


def markdown(study: NeedleStudy) -> str:
    """Return the whole study as Markdown."""
    parts = report_head("Needles in haystacks", study.environment, study.finished)
    needles = ", ".join(f"{name} ({seconds:.1f} s)" for name, seconds in study.needles.items())
    parts.append(
        f"{len(study.needles)} needles: {needles}. Haystacks of {study.files} recordings, joined at one level. A "
        "needle is found if the best time step lies inside it; each cell: found first / among the five best places, in "
        "percent. `log-mel` is the model's input without the model; chance is that of a random time step."
    )
    for rule in RULES:
        parts += [f"## By {_RULES[rule]}", _by_duration(study, rule)]
    parts += ["## By position in the haystack (matched, all durations and levels)", _by_position(study)]
    parts += ["## Seconds to embed a haystack", _seconds(study)]
    stopped = [f"{p.minutes:g} min, {p.side}: {p.stopped}" for p in study.passes if p.stopped]
    parts += list_section("Where sides stopped", stopped)
    parts += list_section("Skipped recordings", [entry.reason for entry in study.skipped])
    return "\n\n".join(parts) + "\n"


def _cell(found: Score | None) -> str:
    return "-" if found is None else f"{100 * found.first:.0f} / {100 * found.five:.0f}"


def _by_duration(study: NeedleStudy, rule: Rule) -> str:
    options = study.options
    rows = []
    for minutes in sorted(options.minutes):
        for level_db in options.levels_db:
            found = [score(select(study, s, rule, minutes=minutes, level_db=level_db)) for s in options.sides]
            some = next((one for one in found if one), None)
            if some is not None:
                tail = [f"{100 * some.chance:.2g}", str(some.trials)]
                rows.append([f"{minutes:g}", f"{level_db:g}", *map(_cell, found), *tail])
    return table(["minutes", "level, dB", *options.sides, "chance", "trials"], rows)


def _by_position(study: NeedleStudy) -> str:
    rows = []
    for section in range(_SECTIONS):
        trials = [_in_section(study, side, section) for side in study.options.sides]
        name = f"{section / _SECTIONS:.1f} to {(section + 1) / _SECTIONS:.1f}"
        rows.append([name, *(_cell(score(found)) for found in trials), str(len(trials[0]))])
    return table(["position", *study.options.sides, "trials"], rows)


def _in_section(study: NeedleStudy, side: Side, section: int) -> list[Trial]:
    """Return the trials whose needle lies in this fifth of its haystack."""

    def section_of(trial: Trial) -> int:
        position = (trial.start_s + trial.end_s) / 2 / (60 * trial.minutes)
        return min(int(position * _SECTIONS), _SECTIONS - 1)

    return [trial for trial in select(study, side, "matched") if section_of(trial) == section]


def _seconds(study: NeedleStudy) -> str:
    rows = []
    for minutes in sorted(study.options.minutes):
        row = [f"{minutes:g}"]
        for side in study.options.sides:
            times = [p.seconds for p in study.passes if (p.minutes, p.side) == (minutes, side) and not p.stopped]
            row.append(f"{np.median(times):.3g}" if times else "-")
        rows.append(row)
    return table(["minutes", *study.options.sides], rows)


def save_needles(study: NeedleStudy, folder: str | Path, *, picture: bool = True) -> list[Path]:
    """Write `needle.json`, `needle.md` and `needle.png` into a folder, each atomically; return the files.

    Raises:
        MissingExtraError: matplotlib is not installed; JSON and Markdown are written before.
    """
    folder = Path(folder)
    content = {**asdict(study), "options": study.options.model_dump(mode="json")}
    files = write_report(folder, "needle", content, markdown(study))
    if picture:
        files.append(plot_needles(study, folder / "needle.png"))
    return files


def read_needles(folder: str | Path) -> NeedleStudy:
    """Read the study, complete or not, that `save_needles` wrote into a folder.

    Raises:
        DataError: the file holds something else.
    """
    path = Path(folder) / "needle.json"

    def build(content: dict[str, Any]) -> NeedleStudy:
        return NeedleStudy(
            NeedleOptions.parse(content.pop("options"), str(path)),
            skipped=[Skipped(**entry) for entry in content.pop("skipped")],
            trials=[Trial(**entry) for entry in content.pop("trials")],
            passes=[Pass(**entry) for entry in content.pop("passes")],
            curves=[Curve(**entry) for entry in content.pop("curves")],
            **content,
        )

    return read_report(path, "a needle study", build)


def plot_needles(study: NeedleStudy, output: Path) -> Path:
    """Plot accuracy over duration and position, and similarity over the longest haystack with the needle marked.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    options = study.options
    levels = options.levels_db
    with styled([curve.needle for curve in study.curves]) as show:
        figure = blank_figure(2.6 * (len(levels) + 1), 3.0 + 1.2 * len(options.sides))
        figure.suptitle(f"Needles found by {show(study.environment['model'])}, {len(study.needles)} sounds")
        heights = (2.6, 0.4 + 1.2 * len(options.sides))
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        axes = above.subplots(1, len(levels) + 1, sharey=True, squeeze=False)[0]
        axes[0].set_ylim(-0.03, 1.03)
        axes[0].set_ylabel("found first")
        ends = [_plot_durations(axis, study, level_db) for level_db, axis in zip(levels, axes, strict=False)]
        _plot_positions(axes[-1], study)
        _plot_curves(below.subplots(len(options.sides), 1, sharex=True, squeeze=False)[:, 0], study, show)
        label_lines(dict(zip(axes, ends, strict=False)))
        return save_figure(figure, output)


def _plot_durations(axis: Any, study: NeedleStudy, level_db: float) -> list[LineEnd]:
    """Plot the sides at one level, and return x, y, name and color of the ends of their lines."""
    minutes = sorted(study.options.minutes)
    ends: list[LineEnd] = []
    chance: dict[float, float] = {}
    for side in study.options.sides:
        points = {
            m: found for m in minutes if (found := score(select(study, side, "matched", minutes=m, level_db=level_db)))
        }
        if not points:
            continue
        axis.plot(list(points), [p.first for p in points.values()], _LINES[side], color=_COLORS[side])
        ends.append((max(points), points[max(points)].first, side, _COLORS[side]))
        chance |= {m: p.chance for m, p in points.items()}
    if chance:
        axis.plot(list(chance), list(chance.values()), "-", color="0.75", linewidth=0.8)
        ends.append((max(chance), chance[max(chance)], "chance", "0.6"))
    axis.set_xscale("log")
    axis.set_xticks(minutes, [f"{m:g}" for m in minutes])
    axis.minorticks_off()
    axis.set_xlim(0.8 * minutes[0], 1.2 * minutes[-1] * (minutes[-1] / minutes[0]) ** 0.3)  # room for the names
    axis.set_xlabel("minutes")
    axis.set_title(f"needle at {level_db:g} dB")
    axis.grid()
    return ends


def _plot_positions(axis: Any, study: NeedleStudy) -> None:
    sides = study.options.sides
    for number, side in enumerate(sides):
        heights = [found.first if (found := score(_in_section(study, side, f))) else 0.0 for f in range(_SECTIONS)]
        places = np.arange(_SECTIONS) + 0.8 * ((number + 0.5) / len(sides) - 0.5)
        axis.bar(places, heights, 0.8 / len(sides), color=_COLORS[side])
    axis.set_xticks(range(_SECTIONS), [f"{(f + 0.5) / _SECTIONS:.1f}" for f in range(_SECTIONS)])
    axis.set_xlabel("position (0 start, 1 end)")
    axis.set_title("all durations and levels")
    axis.grid(axis="y")


def _plot_curves(axes: Sequence[Any], study: NeedleStudy, show: Callable[[str], str]) -> None:
    """Plot the similarity over the time of the longest haystack, one axis for each side."""
    for side, axis in zip(study.options.sides, axes, strict=True):
        curve = next((c for c in study.curves if c.side == side), None)
        axis.set_ylabel(side, color=_COLORS[side])
        if curve is None:
            continue
        at_min = np.array(curve.times_s) / 60
        axis.axvspan(curve.start_s / 60, curve.end_s / 60, color="#f2b134", linewidth=3)
        axis.plot(at_min, curve.similarity, color=_COLORS[side], linewidth=0.7)
        best = int(np.argmax(curve.similarity))
        axis.plot(at_min[best], curve.similarity[best], "x", color="black", markersize=6, clip_on=False)
        axis.set_xlim(0, at_min[-1])
        axis.grid(axis="y")
        if axis is axes[0]:
            title = f"similarity to {show(curve.needle)} at {curve.level_db:g} dB over {curve.minutes:g} min"
            axis.set_title(f"{title} (yellow: the needle; cross: the best match)")
    axes[-1].set_xlabel("minutes from the start")
