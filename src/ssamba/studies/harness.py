"""Fair measurement: sides that take turns, peak memory of one call, what it all ran on, and tables of the figures.

Sides take turns, so that a machine that slows down slows all of them. Memory is what one call holds beyond what stood
there before it: by the allocator's count on a GPU; on a CPU the resident peak, best read in a process of its own, since
memory that an earlier call left behind would hide it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], object]
_CGROUP = Path("/sys/fs/cgroup")


def timings_s(
    sides: Mapping[str, Run],
    budget_s: float = 3.0,
    repeats: int = 15,
    device: str | torch.device = "cpu",
    *,
    each_s: float | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call of each side, warm, all taking turns.

    Args:
        sides: what to call.
        budget_s: about so many seconds in all, however many rounds that makes, but at least 3 rounds.
        repeats: rounds at most.
        device: where the sides work; a GPU is waited for before a clock is read.
        each_s: in place of `budget_s`: a side that has been at work for so long, in 5 rounds or more (3 where they take
            longer than 5 s), leaves the others to go on, so that a slow side does not use up the rounds of a quick one.
    """
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    if each_s is not None:
        for _ in range(repeats):
            for name in [name for name, own in times.items() if not _is_enough(own, each_s)]:
                times[name].append(once_s(sides[name], device))
        return times
    started = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - started > budget_s:
            break
        for name, run in sides.items():
            times[name].append(once_s(run, device))
    return times


def _is_enough(times: Sequence[float], each_s: float) -> bool:
    rounds = 3 if sum(times) > 5 * len(times) else 5
    return len(times) >= rounds and sum(times) >= each_s


def once_s(run: Run, device: str | torch.device = "cpu") -> float:
    """Seconds of one call, the device idle before and after."""
    _wait_for(device)
    begun = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - begun


def _wait_for(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def allocated_peak(run: Run, device: str | torch.device) -> int:
    """Most bytes that one call holds on a CUDA device beyond what its allocator had given out before."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def resident_peak(run: Run) -> int | None:
    """Most resident bytes that one call adds to this process; None where the system does not tell (not Linux).

    What earlier calls freed is given back to the system first: the allocator would hand it out again, uncounted.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
        before = _status_bytes("VmRSS")
    except OSError:
        run()
        return None
    run()
    return max(0, _status_bytes("VmHWM") - before)


def process_peak() -> int | None:
    """Most resident bytes of this process since it started or `resident_peak` began; None where the system does not tell."""
    try:
        return _status_bytes("VmHWM")
    except OSError:
        return None


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def limit_memory(share: float = 0.8) -> None:
    """Let this process ask for no more than a share of the memory that is free now (Linux; elsewhere nothing happens).

    Too much then ends in an error; where the system kills nevertheless, it takes this process and not its parent.
    """
    free = _free_bytes()
    if free is None:
        return
    import resource

    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _status_bytes("VmSize") + int(share * free)
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _free_bytes() -> int | None:
    """What the machine and this process's control group have left; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    groups = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit, used in groups:
        try:
            limit_text, used_text = ((_CGROUP / name).read_text(encoding="ascii") for name in (limit, used))
            statistics = (_CGROUP / used).with_name("memory.stat").read_text(encoding="ascii").split()
        except OSError:
            continue
        if limit_text.strip().isdigit():
            # Files that were read and can be dropped count as used.
            keys = ("inactive_file", "total_inactive_file")
            cached = [int(value) for key, value in zip(statistics[::2], statistics[1::2], strict=False) if key in keys]
            free.append(int(limit_text) - int(used_text) + max(cached, default=0))
    return max(0, min(free)) if free else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up; on CPUs torch says so in a plain RuntimeError."""
    told = ("allocate memory", "out of memory", "bad_alloc", "unable to allocate", "alloc_failed", "memoryerror")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error).lower() for text in told)


def in_child(code: str, arguments: Sequence[str], limit_s: float | None = None) -> Any:
    """Run Python code in a process of its own, where memory of earlier calls hides nothing and too much ends only that.

    Args:
        code: prints JSON as its last line.
        arguments: its `sys.argv[1:]`.
        limit_s: how long to wait for it.

    Returns:
        What it printed last.

    Raises:
        TimeoutError: it did not end in time.
        MemoryError: the system ended it.
        RuntimeError: it failed; the message is the last line that it wrote, or the signal that it died of.
    """
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"a call in a process of its own did not end within {limit_s:.0f} s") from None
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == -signal.SIGKILL:  # the system's last resort
        raise MemoryError(f"out of memory: {reason}")
    if done.returncode < 0:
        reason = f"{signal.Signals(-done.returncode).name}: {reason}"
    raise RuntimeError(reason)


def surroundings(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Date, hardware and versions, for the head of every result."""
    gpu = {}
    if torch.device(device).type == "cuda":
        gpu = {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        **gpu,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version for name in ("ssamba", "mambapy") if (version := _version(name))},
    }


def changed_surroundings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs of two results' surroundings, but for the date."""
    return [name for name, value in now.items() if name != "date" and before.get(name) != value]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


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
