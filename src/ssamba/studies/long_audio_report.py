"""What long recordings took in windows and in full context: a Markdown table, JSON, a picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.evaluation.report_files import write_report
from ssamba.plotting import blank_figure, save_figure
from ssamba.studies.harness import table
from ssamba.studies.long_audio import CONTEXTS, Context, LongPass, LongStudy

_COLOURS: dict[Context, str] = {"windows": "#0b6e4f", "full": "#b23a48"}


def headlines(study: LongStudy) -> list[str]:
    """A sentence for each pass, and one for each agreement."""
    lines = []
    for p in study.passes:
        if p.stopped:
            lines.append(f"{p.recording}, {p.context}: {p.stopped}")
        else:
            lines.append(f"{p.recording}, {p.context}: {_seconds(p)} s, {_megabytes(p.process_bytes)} MB in all")
    lines += [
        f"{a.recording}: cosine of time steps {a.median:.3f} in the median, {a.low:.3f} at the 5th percentile; centered "
        f"{a.centered_median:.3f}, {a.centered_low:.3f}"
        for a in study.agreements
    ]
    return lines


def markdown(study: LongStudy) -> str:
    """The whole study as Markdown."""
    parts = ["# Long recordings", "\n".join(f"- {name}: {value}" for name, value in study.environment.items())]
    if not study.finished:
        parts.append("**The study is not finished: the figures below are what it has.**")
    parts.append(
        "Each pass once, warm, in a process of its own, decoding included. `peak` is memory beyond the loaded model, "
        "`in all` that of the whole process."
    )
    heads = ["recording", "minutes", "context", "s", "x real time", "peak MB", "in all MB", "time steps"]
    parts.append(table(heads, [_row(p) for p in study.passes]))
    if study.agreements:
        heads = ["recording", "minutes", "cosine, median", "5th percentile", "centered, median", "5th percentile"]
        rows = [
            [
                a.recording,
                f"{a.duration_s / 60:.3g}",
                *(f"{x:.3f}" for x in (a.median, a.low, a.centered_median, a.centered_low)),
            ]
            for a in study.agreements
        ]
        parts += ["## Time steps of windows against full context", table(heads, rows)]
    stopped = [f"- {p.recording}, {p.context}: {p.stopped}" for p in study.passes if p.stopped]
    if stopped:
        parts += ["## What did not run", "\n".join(stopped)]
    if study.skipped:
        parts += ["## Left out", "\n".join(f"- {entry.reason}" for entry in study.skipped)]
    return "\n\n".join(parts) + "\n"


def _row(p: LongPass) -> list[str]:
    if p.stopped or p.duration_s is None or p.seconds is None:
        return [p.recording, "-", p.context, *["-"] * 5]
    rate = f"{p.duration_s / p.seconds:.0f}"
    memory = [_megabytes(p.peak_bytes), _megabytes(p.process_bytes)]
    return [p.recording, f"{p.duration_s / 60:.3g}", p.context, _seconds(p), rate, *memory, f"{p.frames:,}"]


def _seconds(p: LongPass) -> str:
    assert p.seconds is not None
    return f"{p.seconds:.0f}" if p.seconds >= 100 else f"{p.seconds:.3g}"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f}"


def save_long(study: LongStudy, folder: str | Path, *, picture: bool = True, name: str = "long") -> list[Path]:
    """Write `long.json`, `long.md` and `long.png` (or another name) into a folder, each atomically.

    Returns:
        The files.

    Raises:
        MissingExtraError: matplotlib is not installed; JSON and Markdown are written before.
    """
    folder = Path(folder)
    content = {**asdict(study), "options": study.options.model_dump(mode="json")}
    files = write_report(folder, name, content, markdown(study))
    if picture:
        files.append(plot_long(study, folder / f"{name}.png"))
    return files


def plot_long(study: LongStudy, output: Path) -> Path:
    """Time and memory against duration, and the agreement of the longest recording over its time.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = blank_figure(11, 6)
    env = study.environment
    where = env.get("gpu") or f"{env['processor']}, threads: {env['threads']}"
    figure.suptitle(f"Long recordings through {env['model']} ({where})", fontsize=11)
    grid = figure.add_gridspec(2, 2)
    _plot_cost(figure.add_subplot(grid[0, 0]), study, "seconds", 1.0, "s")
    _plot_cost(figure.add_subplot(grid[0, 1]), study, "process_bytes", 2**-20, "MB, whole process")
    axis = figure.add_subplot(grid[1, :])
    longest = max(study.agreements, key=lambda a: a.duration_s, default=None)
    if longest is not None:
        at_min = np.array(longest.times_s) / 60
        axis.plot(at_min, longest.over_time, color="#22577a", linewidth=0.9, label="median")
        axis.plot(at_min, longest.low_over_time, color="#22577a", linewidth=0.7, alpha=0.5, label="5th percentile")
        axis.set_title(f"{longest.recording}: centered cosine, windows to full context", fontsize=9, loc="left")
        axis.set_xlabel("minutes from the start", fontsize=8)
        axis.set_ylim(min(0.0, *longest.low_over_time), 1.02)
        axis.legend(fontsize=7, loc="lower left")
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    return save_figure(figure, output)


def _plot_cost(axis: Any, study: LongStudy, name: str, scale: float, unit: str) -> None:
    for context in CONTEXTS:
        points = sorted(
            (p.duration_s / 60, scale * value)
            for p in study.passes
            if p.context == context and p.duration_s and (value := getattr(p, name))
        )
        if not points:
            continue
        axis.plot(*zip(*points, strict=True), "o-", ms=4, color=_COLOURS[context], label=context)
        above = 1 if context == "full" else -1
        for x, y in points:
            axis.annotate(f"{y:,.3g}" if y < 100 else f"{y:,.0f}", (x, y), (0, 7 * above - 3), fontsize=6.5,
                          textcoords="offset points", ha="center", color=_COLOURS[context])  # fmt: skip
        axis.set(xscale="log", yscale="log")
        axis.legend(fontsize=7, loc="upper left")
    minutes = sorted({round(p.duration_s / 60, 1) for p in study.passes if p.duration_s})
    axis.set_xticks(minutes, [f"{m:g}" for m in minutes])
    axis.margins(0.12)
    axis.minorticks_off()
    axis.set_xlabel("minutes of audio", fontsize=8)
    axis.set_ylabel(unit, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
