"""What the efficiency study found: where one side overtakes another, how each grows, Markdown, JSON, and a picture.

Times past the budget are of one call each: they are listed and drawn (hollow), and no crossover or growth is made of them.

A crossover is where SSAMBA becomes cheaper than SSAST and stays so up to the longest input that both ran: between two
measured lengths it is interpolated on logarithmic axes. Growth is the exponent p of cost = c * patches^p, fitted by least
squares on logarithmic axes to the lengths from 2,048 to 32,768 patches: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ssamba.checkpoint.files import read_json
from ssamba.errors import DataError
from ssamba.evaluation.report_files import write_report
from ssamba.plotting import blank_figure, save_figure
from ssamba.studies.efficiency import FRAMES_PER_PATCH, ROWS, SIDES, EfficiencyOptions, Pass, Point, Size, Study
from ssamba.studies.harness import table

Quantity = Literal["time", "memory"]
_SECONDS_PER_PATCH = FRAMES_PER_PATCH * 0.01 / ROWS
_COLOURS = {"official": ("#0b6e4f", "#5fb49c"), "ssast": ("#b23a48", "#e08e79"), "unfused": ("#555555", "#aaaaaa")}
_SCALES: dict[Quantity, float] = {"time": 1e3, "memory": 2**-20}  # to ms and MB
_GROWTH_FROM, _GROWTH_TO = 2048, 32_768
_STYLES = {"fp32": "-", "bf16": "--"}


class Crossover(NamedTuple):
    """Where SSAMBA becomes cheaper than a side of SSAST."""

    mode: Pass
    size: Size
    batch: int
    quantity: Quantity
    ours: str
    theirs: str
    patches: float | None
    """From this many patches on; None if not within what both ran."""
    first: int
    """Fewest patches that both ran."""
    last: int
    """Most patches that both ran."""
    factor: float
    """How many times as much SSAST costs at `last`."""

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
        return f"{name} from about {_rounded(self.patches):,} patches on, {seconds:.0f} s of audio {at_last}"


def crossovers(study: Study) -> list[Crossover]:
    """Every comparison of SSAMBA with SSAST in the same precision, where both have at least two lengths in common."""
    found = []
    options = study.options
    for mode in options.passes:
        for size in options.sizes:
            for batch in options.batches:
                for quantity in ("time", "memory"):
                    curves = {side: curve(study, mode, size, batch, side, quantity) for side in options.sides}
                    for ours in options.sides:
                        for theirs in options.sides:
                            if SIDES[ours].variant != "official" or SIDES[theirs].variant != "ssast":
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
    """Seconds or bytes of one side by number of patches; what was not measured, or is nothing, is left out.

    Times of single calls, past the budget, are only among them where `single` asks for these.
    """
    values: dict[int, float | None] = {
        p.patches: p.median_s if quantity == "time" else p.peak_bytes
        for p in study.points
        if (p.section, p.mode, p.size, p.batch, p.side) == ("length", mode, size, batch, side)
        and (single or quantity == "memory" or not p.is_single)
    }
    return {patches: value for patches, value in sorted(values.items()) if value}


def crossing(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float | None, int, int, float] | None:
    """Where `ours` falls below `theirs` for good: patches (None: nowhere), the range in common, theirs / ours at its end."""
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < 2:
        return None
    gaps = [math.log(ours[x] / theirs[x]) for x in common]
    factor = math.exp(-gaps[-1])
    if gaps[-1] >= 0:
        return None, common[0], common[-1], factor
    dearer = [index for index, gap in enumerate(gaps) if gap >= 0]
    if not dearer:
        return float(common[0]), common[0], common[-1], factor
    low = dearer[-1]
    share = gaps[low] / (gaps[low] - gaps[low + 1])
    at = math.exp(math.log(common[low]) + share * math.log(common[low + 1] / common[low]))
    return at, common[0], common[-1], factor


class Growth(NamedTuple):
    """How the cost of a side grows with the number of patches."""

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
    """The exponent of every side that ran at least three lengths of the fit's range."""
    found = []
    options = study.options
    for mode in options.passes:
        for size in options.sizes:
            for batch in options.batches:
                for side in options.sides:
                    for quantity in ("time", "memory"):
                        fit = growth(curve(study, mode, size, batch, side, quantity))
                        if fit is not None:
                            found.append(Growth(mode, size, batch, side, quantity, *fit))
    return found


def growth(values: dict[int, float]) -> tuple[float, int, int] | None:
    """The fitted exponent, fewest and most patches of the fit; None with fewer than three lengths in its range."""
    lengths = [n for n in sorted(values) if _GROWTH_FROM <= n <= _GROWTH_TO]
    if len(lengths) < 3:
        return None
    slope = np.polyfit(np.log(lengths), np.log([values[n] for n in lengths]), 1)[0]
    return float(slope), lengths[0], lengths[-1]


def _rounded(value: float) -> int:
    """Two digits: more were not measured."""
    digits = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return int(round(value / digits) * digits)


def markdown(study: Study) -> str:
    """The whole study as Markdown: what it ran on, crossovers, growth, throughput, every point, and why sides stopped."""
    parts = ["# What the encoders cost", "\n".join(f"- {name}: {value}" for name, value in study.environment.items())]
    if not study.finished:
        parts.append("**The study was interrupted: the figures below are what it had.**")
    parts.append(
        "Random input; medians of calls in turns, quartiles in brackets ('once': a single call, past the budget); memory "
        "beyond model and input, and of the whole process or, on a GPU, of all that its allocator gave out; training is "
        "forward and backward, its gradients included."
    )
    found = crossovers(study)
    if found:
        heads = ["pass", "size", "batch", "quantity", "finding"]
        rows = [[c.mode, c.size, str(c.batch), c.quantity, str(c)] for c in found]
        parts += ["## Crossovers", table(heads, rows)]
    grown = growths(study)
    if grown:
        heads = ["pass", "size", "batch", "side", "quantity", "exponent", "from", "to patches"]
        rows = [
            [
                g.mode,
                g.size,
                str(g.batch),
                SIDES[g.side].title,
                g.quantity,
                f"{g.exponent:.2f}",
                str(g.first),
                str(g.last),
            ]
            for g in grown
        ]
        parts += ["## Growth (1 is linear, 2 quadratic)", table(heads, rows)]
    best = study.best_batches()
    if best:
        heads = ["pass", "size", "side", "patches", "best batch", "clips/s"]
        rows = [
            [p.mode, p.size, SIDES[p.side].title, str(p.patches), str(p.batch), _figure(p.clips_per_s)] for p in best
        ]
        parts += ["## Clips per second at the best batch", table(heads, rows)]
    lengths = [p for p in study.points if p.section == "length"]
    heads = ["pass", "size", "batch", "patches", "side", "ms", "quartiles", "peak MB", "in all", "clips/s"]
    parts += ["## Every length", table(heads, [_row(p) for p in lengths])]
    swept = [p for p in study.points if p.section == "batch"]
    if swept:
        parts += ["## Every batch", table(heads, [_row(p) for p in swept])]
    stopped = [
        f"- {p.mode}, {p.size}, batch {p.batch}, {p.patches:,} patches: {_reason(p)}"
        for p in [*lengths, *swept]
        if p.stopped
    ]
    if stopped:
        parts += ["## Where sides stopped", "\n".join(stopped)]
    return "\n\n".join(parts) + "\n"


def _row(p: Point) -> list[str]:
    shape = [p.mode, p.size, str(p.batch), str(p.patches), SIDES[p.side].title]
    if p.median_s is None or p.low_s is None or p.high_s is None:
        return [*shape, "-", "-", "-", "-", "-"]
    quartiles = "once" if p.is_single else f"[{_figure(1e3 * p.low_s)}, {_figure(1e3 * p.high_s)}]"
    memory = ["-" if count is None else _figure(count / 2**20) for count in (p.peak_bytes, p.total_bytes)]
    return [*shape, _figure(1e3 * p.median_s), quartiles, *memory, _figure(p.clips_per_s)]


def _reason(p: Point) -> str:
    return f"{SIDES[p.side].title}: {p.stopped}"


def _figure(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def save_study(study: Study, folder: str | Path, *, pictures: bool = True) -> list[Path]:
    """Write `efficiency.json`, `efficiency.md` and a picture for each batch size into a folder, each atomically.

    Returns:
        The files.

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
    """The study in a folder, as `save_study` wrote it.

    Raises:
        DataError: there is none, or the file is something else.
    """
    path = Path(folder) / "efficiency.json"
    content = read_json(path)
    try:
        points = [Point(**entry) for entry in content["points"]]
        options = EfficiencyOptions.parse(content["options"], str(path))
        return Study(options, content["environment"], points, content["finished"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not an efficiency study ({error}): choose another folder") from None


def plot_study(study: Study, batch: int, output: Path) -> Path:
    """Time and memory against patches on logarithmic axes, a column for each size; crossovers are marked and named.

    What an interrupted study did not come to has no panel.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    reached = [p for p in study.points if p.section == "length" and p.batch == batch]
    sizes = [size for size in study.options.sizes if any(p.size == size for p in reached)] or study.options.sizes
    passes = [m for m in study.options.passes if any(p.mode == m for p in reached)] or study.options.passes
    panels: list[tuple[Pass, Quantity]] = [(mode, q) for mode in passes for q in ("time", "memory")]
    figure = blank_figure(1 + 4.2 * len(sizes), 1 + 2.9 * len(panels))
    where = study.environment.get("gpu") or f"{study.environment['processor']}, {study.environment['threads']} threads"
    figure.suptitle(f"Cost of a batch of {batch} ({where})", fontsize=11)
    axes = figure.subplots(len(panels), len(sizes), squeeze=False)
    crossed = [c for c in crossovers(study) if c.batch == batch]
    for (mode, quantity), row in zip(panels, axes, strict=True):
        for size, axis in zip(sizes, row, strict=True):
            _plot_panel(axis, study, mode, size, batch, quantity)
            _mark(axis, study, [c for c in crossed if (c.mode, c.size, c.quantity) == (mode, size, quantity)])
    handles = {h.get_label(): h for axis in axes.flat for h in axis.get_lines() if h.get_label() in _titles()}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=8)
    return save_figure(figure, output)


def _titles() -> set[str]:
    return {side.title for side in SIDES.values()}


def _plot_panel(axis: Any, study: Study, mode: Pass, size: Size, batch: int, quantity: Quantity) -> None:
    for name in study.options.sides:
        side = SIDES[name]
        values = curve(study, mode, size, batch, name, quantity, single=True)
        medians = curve(study, mode, size, batch, name, quantity)
        if not values:
            continue
        shades = _COLOURS["unfused" if side.attention == "unfused" else side.variant]
        axis.plot(
            list(values),
            [_SCALES[quantity] * value for value in values.values()],
            _STYLES[side.precision],
            color=shades[side.precision == "bf16"],
            marker="o",
            markersize=3,
            linewidth=1.4,
            label=side.title,
        )
        single = {n: _SCALES[quantity] * value for n, value in values.items() if n not in medians}
        axis.plot(list(single), list(single.values()), "o", markersize=3, markerfacecolor="white", color=shades[0])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(study.options.patches, [f"{n:,}" for n in study.options.patches], fontsize=7, rotation=45)
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(alpha=0.25, which="major")
    axis.set_title(f"{size}, {mode}", fontsize=9, loc="left")
    axis.set_xlabel("patches", fontsize=8)
    axis.set_ylabel("ms" if quantity == "time" else "peak MB beyond model and input", fontsize=8)


def _mark(axis: Any, study: Study, found: Sequence[Crossover]) -> None:
    """A ring and a letter at each crossover that lies between measured lengths; its name in the corner."""
    names = []
    for letter, c in zip("ABCDEFGHI", (c for c in found if c.patches and c.patches > c.first), strict=False):
        assert c.patches is not None
        values = curve(study, c.mode, c.size, c.batch, c.ours, c.quantity)
        height = np.exp(np.interp(np.log(c.patches), np.log(list(values)), np.log(list(values.values()))))
        height *= _SCALES[c.quantity]
        axis.plot(c.patches, height, "o", markersize=9, markerfacecolor="none", markeredgecolor="black")
        axis.annotate(letter, (c.patches, height), (6, -10), textcoords="offset points", fontsize=7, weight="bold")
        names.append(f"{letter}: {SIDES[c.ours].title} < {SIDES[c.theirs].title} from {_rounded(c.patches):,}")
    axis.text(0.02, 0.97, "\n".join(names), transform=axis.transAxes, va="top", fontsize=6.5)
