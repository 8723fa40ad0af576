"""What the benchmarks share: fair timing of several sides, what they ran on, and tables that are printed and saved.

Sides take turns, so that a machine that slows down slows all of them; the figure is the median. A ratio is only given for
sides whose results agree.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).resolve().parent / "results"


def medians_s(sides: Mapping[str, Callable[[], object]], budget_s: float = 3.0, repeats: int = 15) -> dict[str, float]:
    """Median seconds of a call of each side, all taking turns: at most `repeats` rounds, at least 3, about `budget_s` in all."""
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    started = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - started > budget_s:
            break
        for name, run in sides.items():
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def disagreement(results: Sequence[Tensor | None], reference: Sequence[Tensor | None]) -> float:
    """The largest error of any tensor, relative to the largest value of its reference."""
    worst = 0.0
    for result, exact in zip(results, reference, strict=True):
        if result is not None and exact is not None:
            scale = exact.abs().max().clamp(min=1e-20)
            worst = max(worst, ((result - exact).abs().max() / scale).item())
    return worst


def surroundings() -> dict[str, Any]:
    """Date, hardware and versions, for the head of every result."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version for name in ("ssamba", "mambapy") if (version := _version(name))},
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def save(name: str, data: Mapping[str, Any], text: str) -> None:
    """Print `text`, and write it and `data` to benchmarks/results/NAME.md and .json."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
