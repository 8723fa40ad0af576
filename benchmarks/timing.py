"""Helpers of the benchmarks beside `ssamba.studies.harness`: medians, errors of results, demo recordings, saving.

Ratios are only given for sides whose results agree.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ssamba.studies.harness import Run, timings_s, write_report

RESULTS = Path(__file__).resolve().parent / "results"
DEMO_AUDIO = Path(__file__).resolve().parent.parent / "demo" / "audio"


def retain_freed_memory() -> bool:
    """Make the allocator retain freed memory, so that no side waits for the system to zero pages; return whether it
    does.

    glibc only. By default glibc returns large blocks to the system at once, and the first access to a page costs about
    as much as the scan of a row.
    """
    if not sys.platform.startswith("linux"):
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # parameters of mallopt in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((mmap_threshold, 2**30), (trim_threshold, 2**31 - 1), (top_pad, 2**26))
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in settings)


def medians_s(sides: Mapping[str, Run], budget_s: float = 3.0, repeats: int = 15) -> dict[str, float]:
    """Return the median seconds of a call of each side on the CPU; see `timings_s`."""
    return {name: statistics.median(times) for name, times in timings_s(sides, budget_s, repeats).items()}


def relative_error(results: Sequence[Tensor | None], reference: Sequence[Tensor | None]) -> float:
    """Return the largest error of any tensor, relative to the largest absolute value of its reference."""
    worst = 0.0
    for result, exact in zip(results, reference, strict=True):
        if result is not None and exact is not None:
            scale = exact.abs().max().clamp(min=1e-20)
            worst = max(worst, ((result - exact).abs().max() / scale).item())
    return worst


def demo_samples() -> npt.NDArray[np.float32]:
    """Return all demo recordings, one after the other, at 16 kHz: (S,)."""
    from ssamba.audio.decode import decode  # here, since `benchmarks.gpu` also runs where only torch is installed

    return np.concatenate([decode(path) for path in sorted(DEMO_AUDIO.glob("*.flac"))])


def inline(facts: Mapping[str, Any]) -> str:
    """Return facts in one line, for the head of a report."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def save(name: str, data: Mapping[str, Any], text: str) -> None:
    """Print `text`, and write it and `data` to benchmarks/results/NAME.md and NAME.json."""
    print(text)
    write_report(RESULTS, name, data, text + "\n")
