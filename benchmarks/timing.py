"""What the benchmarks share beside `ssamba.studies.harness`: medians, agreement of results, and saving what was measured.

A ratio is only given for sides whose results agree.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ssamba.studies.harness import Run, timings_s

RESULTS = Path(__file__).resolve().parent / "results"


def keep_memory() -> bool:
    """Have the allocator keep what this process frees, so that no side waits for the system to zero pages; False: it cannot.

    glibc only. By default it returns large blocks at once, and the first touch of a page costs about as much as the scan of a row.
    """
    if not sys.platform.startswith("linux"):
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((mmap_threshold, 2**30), (trim_threshold, 2**31 - 1), (top_pad, 2**26))
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in settings)


def medians_s(sides: Mapping[str, Run], budget_s: float = 3.0, repeats: int = 15) -> dict[str, float]:
    """Median seconds of a call of each side on the CPU, all taking turns; arguments as `timings_s`."""
    return {name: statistics.median(times) for name, times in timings_s(sides, budget_s, repeats).items()}


def disagreement(results: Sequence[Tensor | None], reference: Sequence[Tensor | None]) -> float:
    """The largest error of any tensor, relative to the largest value of its reference."""
    worst = 0.0
    for result, exact in zip(results, reference, strict=True):
        if result is not None and exact is not None:
            scale = exact.abs().max().clamp(min=1e-20)
            worst = max(worst, ((result - exact).abs().max() / scale).item())
    return worst


def save(name: str, data: Mapping[str, Any], text: str) -> None:
    """Print `text`, and write it and `data` to benchmarks/results/NAME.md and .json."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
