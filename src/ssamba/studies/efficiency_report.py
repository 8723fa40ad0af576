"""Report the efficiency study: where SSAMBA becomes cheaper than SSAST, how costs grow, Markdown, JSON and figures.

A crossover is the number of patches from which on SSAMBA is cheaper than SSAST up to the longest input that both ran;
between two measured lengths it is interpolated on logarithmic axes. Growth is the exponent p of cost = c * patches^p,
fitted by least squares on logarithmic axes to the lengths from 2,048 to 32,768 patches: 1 is linear, 2 quadratic.

Times past the budget are of a single call: they are listed and plotted (hollow), but not used for crossovers and
growth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ssamba.plotting import LineEnd, blank_figure, draw_table, label_lines, save_figure, styled
from ssamba.studies.efficiency import FRAMES_PER_PATCH, ROWS, SIDES, EfficiencyOptions, Pass, Point, Size, Study
from ssamba.studies.harness import list_section, machine_name, read_report, report_head, table, write_report

Quantity = Literal["time", "memory"]
QUANTITIES: tuple[Quantity, ...] = ("time", "memory")
_SECONDS_PER_PATCH = FRAMES_PER_PATCH * 0.01 / ROWS
_COLORS = {"official": ("#0b6e4f", "#5fb49c"), "ssast": ("#b23a48", "#e08e79"), "unfused": ("#555555", "#aaaaaa")}
_SCALES: dict[Quantity, float] = {"time": 1e3, "memory": 2**-20}  # to ms and MB
_GROWTH_FROM, _GROWTH_TO = 2048, 32_768
_STYLES = {"fp32": "-", "bf16": "--"}


class Crossover(NamedTuple):
    """Number of patches from which on SSAMBA is cheaper than a side of SSAST."""

    mode: Pass
    size: Size
    batch: int
    quantity: Quantity
    ours: str
    theirs: str
    patches: float | None
    """The crossover; None if SSAMBA is not cheaper at the longest input that both ran."""
    first: int
    """Fewest patches that both ran."""
    last: int
    """Most patches that both ran."""
    factor: float
    """Cost of SSAST divided by that of SSAMBA at `last`."""

    def __str__(self) -> str:
        cheaper = "is faster" if self.quantity == "time" else "needs less memory"
        name = f"{SIDES[self.ours].title} {cheaper} than {SIDES[self.theirs].title}"
        factor = f"{self.factor:.2f}" if self.factor < 10 else f"{self.factor:.0f}"
        at_last = f"(at {self.last:,} SSAST costs {factor} times as much)"
        if self.patches is None:
            return f"{name} nowhere up to {self.last:,} patches {at_last}"
        if self.patches <= self.first:
            return f"{name} at every length measured, {self.first:,} to {self.last:,} patches {at_last}"
        seconds = self.patches * _SECONDS_PER_PATCH
        return f"{name} from about {_two_digits(self.patches):,} patches on, {seconds:.0f} s of audio {at_last}"


def crossovers(study: Study) -> list[Crossover]:
    """Compare SSAMBA with each side of SSAST in the same precision, where both have at least two lengths in common."""
    found = []
    options = study.options
    for mode, size, batch, quantity in product(options.passes, options.sizes, options.batches, QUANTITIES):
        curves = {side: curve(study, mode, size, batch, side, quantity) for side in options.sides}
        for ours, theirs in product(options.sides, options.sides):
            if (SIDES[ours].variant, SIDES[theirs].variant) != ("official", "ssast"):
                continue
            if SIDES[ours].precision != SIDES[theirs].precision:
                continue
            where = crossing(curves[ours], curves[theirs])
            if where is not None:
                found.append(Crossover(mode, size, batch, quantity, ours, theirs, *where))
    return found


def curve(
    study: Study, mode: Pass, size: Size, batch: int, side: str, quantity: Quantity, *, single: bool = False
) -> dict[int, float]:
    """Return seconds or bytes of one side by number of patches; missing and zero values are left out.

    Times of single calls, past the budget, are included only with `single`.
    """
    values: dict[int, float | None] = {
        p.patches: p.median_s if quantity == "time" else p.peak_bytes
        for p in study.points
        if (p.section, p.mode, p.size, p.batch, p.side) == ("length", mode, size, batch, side)
        and (single or quantity == "memory" or not p.is_single)
    }
    return {patches: value for patches, value in sorted(values.items()) if value}


def crossing(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float | None, int, int, float] | None:
    """Return from how many patches on `ours` stays below `theirs`, and where both were compared.

    Returns:
        The crossing (None if `ours` is not below at the end), fewest and most patches in common, and theirs / ours at
        the most. None with fewer than two lengths in common.
    """
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < 2:
        return None
    gaps = [math.log(ours[x] / theirs[x]) for x in common]
    factor = math.exp(-gaps[-1])
    if gaps[-1] >= 0:
        return None, common[0], common[-1], factor
    above = [index for index, gap in enumerate(gaps) if gap >= 0]
    if not above:
        return float(common[0]), common[0], common[-1], factor
    low = above[-1]
    share = gaps[low] / (gaps[low] - gaps[low + 1])
    at = math.exp(math.log(common[low]) + share * math.log(common[low + 1] / common[low]))
    return at, common[0], common[-1], factor


class Growth(NamedTuple):
    """Growth of the cost of a side with the number of patches."""

    mode: Pass
    size: Size
    batch: int
    side: str
    quantity: Quantity
    exponent: float
    """p of cost = c * patches^p."""
    first: int
    """Fewest patches of the fit."""
    last: int
    """Most patches of the fit."""


def growths(study: Study) -> list[Growth]:
    """Fit the exponent of every side that ran at least three lengths of the fit's range."""
    found = []
    o = study.options
    for mode, size, batch, side, quantity in product(o.passes, o.sizes, o.batches, o.sides, QUANTITIES):
        fit = growth(curve(study, mode, size, batch, side, quantity))
        if fit is not None:
            found.append(Growth(mode, size, batch, side, quantity, *fit))
    return found


def growth(values: dict[int, float]) -> tuple[float, int, int] | None:
    """Return the exponent, and the fewest and most patches of the fit; None with fewer than three lengths in range."""
    lengths = [n for n in sorted(values) if _GROWTH_FROM <= n <= _GROWTH_TO]
    if len(lengths) < 3:
        return None
    slope = np.polyfit(np.log(lengths), np.log([values[n] for n in lengths]), 1)[0]
    return float(slope), lengths[0], lengths[-1]


def _two_digits(value: float) -> int:
    digits = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return int(round(value / digits) * digits)


def _three_digits(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(study: Study) -> str:
    """Return the whole study as Markdown."""
    parts = report_head("Cost of the encoders", study.environment, study.finished)
    parts.append(
        "Random input; medians of calls timed in turns, quartiles in brackets ('once': a single call, past the "
        "budget); peak memory beyond model and input, and in all (of the whole process or, on a GPU, of its "
        "allocator); training is forward and backward, gradients included."
    )
    if found := crossovers(study):
        columns = ["pass", "size", "batch", "quantity", "finding"]
        rows = [[c.mode, c.size, str(c.batch), c.quantity, str(c)] for c in found]
        parts += ["## Crossovers", table(columns, rows)]
    if fitted := growths(study):
        columns = ["pass", "size", "batch", "side", "quantity", "exponent", "from", "to patches"]
        rows = [
            [
                g.mode,
                g.size,
                str(g.batch),
                SIDES[g.side].title,
                g.quantity,
                f"{g.exponent:.2f}",
                f"{g.first}",
                f"{g.last}",
            ]
            for g in fitted
        ]
        parts += ["## Growth (1 is linear, 2 quadratic)", table(columns, rows)]
    if best := study.best_batches():
        columns = ["pass", "size", "side", "patches", "best batch", "clips/s"]
        rows = [
            [p.mode, p.size, SIDES[p.side].title, str(p.patches), str(p.batch), _three_digits(p.clips_per_s)]
            for p in best
        ]
        parts += ["## Clips per second at the best batch", table(columns, rows)]
    columns = ["pass", "size", "batch", "patches", "side", "ms", "quartiles", "peak MB", "in all", "clips/s"]
    lengths = [p for p in study.points if p.section == "length"]
    parts += ["## Every length", table(columns, [_row(p) for p in lengths])]
    batches = [p for p in study.points if p.section == "batch"]
    if batches:
        parts += ["## Every batch", table(columns, [_row(p) for p in batches])]
    stopped = [
        f"{p.mode}, {p.size}, batch {p.batch}, {p.patches:,} patches: {SIDES[p.side].title}: {p.stopped}"
        for p in [*lengths, *batches]
        if p.stopped
    ]
    parts += list_section("Where sides stopped", stopped)
    return "\n\n".join(parts) + "\n"


def _row(p: Point) -> list[str]:
    shape = [p.mode, p.size, str(p.batch), str(p.patches), SIDES[p.side].title]
    if p.median_s is None or p.low_s is None or p.high_s is None:
        return [*shape, "-", "-", "-", "-", "-"]
    quartiles = "once" if p.is_single else f"[{_three_digits(1e3 * p.low_s)}, {_three_digits(1e3 * p.high_s)}]"
    memory = ["-" if count is None else _three_digits(count / 2**20) for count in (p.peak_bytes, p.total_bytes)]
    return [*shape, _three_digits(1e3 * p.median_s), quartiles, *memory, _three_digits(p.clips_per_s)]


def save_study(study: Study, folder: str | Path, *, pictures: bool = True) -> list[Path]:
    """Write `efficiency.json`, `efficiency.md` and a figure for each batch size, each atomically; return the files.

    Raises:
        MissingExtraError: matplotlib is not installed; JSON and Markdown are written before.
    """
    folder = Path(folder)
    content = {
        "environment": study.environment,
        "options": study.options.model_dump(mode="json"),
        "finished": study.finished,
        "points": [asdict(point) for point in study.points],
        "crossovers": [c._asdict() for c in crossovers(study)],
        "growths": [g._asdict() for g in growths(study)],
    }
    files = write_report(folder, "efficiency", content, markdown(study))
    if pictures:
        for batch in study.options.batches:
            files.append(plot_study(study, batch, folder / f"efficiency_batch{batch}.png"))
    return files


def read_study(folder: str | Path) -> Study:
    """Read the study that `save_study` wrote into a folder.

    Raises:
        DataError: the file holds something else.
    """
    path = Path(folder) / "efficiency.json"

    def build(content: dict[str, Any]) -> Study:
        points = [Point(**entry) for entry in content["points"]]
        options = EfficiencyOptions.parse(content["options"], str(path))
        return Study(options, content["environment"], points, content["finished"])

    return read_report(path, "an efficiency study", build)


def plot_study(study: Study, batch: int, output: Path) -> Path:
    """Plot time and memory over patches on logarithmic axes, a column for each size, with marked crossovers.

    What an interrupted study did not reach has no panel. If it has one length alone, the figure is a table.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    reached = [p for p in study.points if p.section == "length" and p.batch == batch and p.median_s is not None]
    sizes = [size for size in study.options.sizes if any(p.size == size for p in reached)] or study.options.sizes
    passes = [m for m in study.options.passes if any(p.mode == m for p in reached)] or study.options.passes
    title = f"Cost of a batch of {batch} ({machine_name(study.environment)})"
    with styled():
        if len({p.patches for p in reached}) < 2:
            figure = blank_figure(6, 0.8 + 0.25 * len(reached))
            columns = ["side", "size", "pass", "patches", "ms", "peak MB beyond model and input"]
            draw_table(figure.subplots(), columns, [_table_row(p) for p in reached])
            figure.suptitle(title)
            return save_figure(figure, output)
        panels = list(product(passes, QUANTITIES))
        figure = blank_figure(0.8 + 4.4 * len(sizes), 0.9 + 2.5 * len(panels))
        figure.suptitle(title)
        axes = figure.subplots(len(panels), len(sizes), sharex=True, sharey="row", squeeze=False)
        crossed = [c for c in crossovers(study) if c.batch == batch]
        ends = {}
        for (mode, quantity), row in zip(panels, axes, strict=True):
            for size, axis in zip(sizes, row, strict=True):
                ends[axis] = _plot_panel(axis, study, mode, size, batch, quantity)
                here = [c for c in crossed if (c.mode, c.size, c.quantity) == (mode, size, quantity)]
                ends[axis] += _mark(axis, study, here)
            row[0].set_ylabel("ms" if quantity == "time" else "peak MB beyond model and input")
        lengths = sorted({p.patches for p in reached})
        for axis in axes[-1]:
            axis.set_xlabel("patches (circle: from here on SSAMBA is cheaper; hollow: measured once)")
            axis.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45)
            axis.minorticks_off()
            axis.set_xlim(0.85 * lengths[0], 2.2 * lengths[-1])  # room for the names of the lines
        label_lines(ends)
        return save_figure(figure, output)


def _table_row(p: Point) -> list[str]:
    assert p.median_s is not None
    memory = "-" if p.peak_bytes is None else _three_digits(p.peak_bytes / 2**20)
    return [SIDES[p.side].title, p.size, p.mode, f"{p.patches:,}", _three_digits(1e3 * p.median_s), memory]


def _plot_panel(axis: Any, study: Study, mode: Pass, size: Size, batch: int, quantity: Quantity) -> list[LineEnd]:
    """Plot the curves of a panel, and return x, y, name and color of their ends."""
    ends = []
    for name in study.options.sides:
        side = SIDES[name]
        values = curve(study, mode, size, batch, name, quantity, single=True)
        medians = curve(study, mode, size, batch, name, quantity)
        if not values:
            continue
        color = _COLORS["unfused" if side.attention == "unfused" else side.variant][side.precision == "bf16"]
        scaled = {n: _SCALES[quantity] * value for n, value in values.items()}
        axis.plot(list(scaled), list(scaled.values()), _STYLES[side.precision] + "o", color=color, markersize=3)
        single = {n: value for n, value in scaled.items() if n not in medians}
        axis.plot(list(single), list(single.values()), "o", markersize=3, markerfacecolor="white", color=color)
        ends.append((float(max(scaled)), scaled[max(scaled)], side.title, color))
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.margins(y=0.12)
    axis.grid()
    axis.set_title(f"{size}, {mode}: {quantity}")
    return ends


def _mark(axis: Any, study: Study, found: Sequence[Crossover]) -> list[LineEnd]:
    """Circle each crossover that lies between measured lengths; return x, y, the number of patches and a color."""
    marks = []
    for c in found:
        if not c.patches or c.patches <= c.first:
            continue
        values = curve(study, c.mode, c.size, c.batch, c.ours, c.quantity)
        height = np.exp(np.interp(np.log(c.patches), np.log(list(values)), np.log(list(values.values()))))
        height *= _SCALES[c.quantity]
        axis.plot(c.patches, height, "o", markersize=8, markerfacecolor="none", markeredgecolor="black")
        marks.append((c.patches, float(height), f"{_two_digits(c.patches):,}", "black"))
    return marks
