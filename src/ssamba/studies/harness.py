"""Measure and report studies: fair timing, peak memory, child processes, environment, resuming, JSON and Markdown.

Sides are timed in turns, so that a machine that slows down slows all of them. Peak memory is what one call holds beyond
what was held before it: counted by the allocator on a GPU; on a CPU the peak of resident memory, which is best measured
in a process of its own, since memory that an earlier call left behind would hide it.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from ssamba.errors import DataError
from ssamba.files import write_atomically

Run = Callable[[], object]
S = TypeVar("S")
_CGROUP = Path("/sys/fs/cgroup")


class Progress(NamedTuple):
    """Progress of a study."""

    done: float
    total: float
    step: str
    """Name of the step that begins now."""


class CallCost(NamedTuple):
    """Time and memory of one call."""

    seconds: float
    peak_bytes: int | None
    """Peak memory beyond what was held before the call; None if the system does not report it (not Linux)."""
    total_bytes: int | None
    """Peak of everything: of the allocator on a GPU, of the whole process on a CPU."""


def timings_s(
    sides: Mapping[str, Run],
    budget_s: float = 3.0,
    repeats: int = 15,
    device: str | torch.device = "cpu",
    *,
    each_s: float | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each call of each side. The first call warms up; then the sides take turns.

    Args:
        sides: the calls to time, by name.
        budget_s: stop after this time in all, but not before 3 rounds.
        repeats: most rounds.
        device: device that the calls use; a GPU is synchronized before the clock is read.
        each_s: replaces `budget_s`: a side leaves once it has run this long and at least 5 rounds (3 if a call takes
            more than 5 s), so that a slow side does not use up the rounds of a fast one.
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
    """Return the seconds of one call; the device is idle before and after."""
    _synchronize(device)
    started = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def measure_call(run: Run, device: str | torch.device = "cpu") -> CallCost:
    """Return time and peak memory of one call. On a CPU, use a child process: its memory is limited."""
    seconds: list[float] = []

    def timed() -> None:
        seconds.append(once_s(run, device))

    if torch.device(device).type == "cuda":
        peak: int | None = allocated_peak(timed, device)
        return CallCost(seconds[0], peak, torch.cuda.max_memory_allocated(device))
    limit_memory()
    peak = resident_peak(timed)
    return CallCost(seconds[0], peak, process_peak())


def allocated_peak(run: Run, device: str | torch.device) -> int:
    """Return the peak bytes that one call allocates on a CUDA device beyond what was allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def resident_peak(run: Run) -> int | None:
    """Return the peak resident bytes that one call adds to this process; None if the system does not report it.

    Memory that earlier calls freed is returned to the system first: the allocator would hand it out again, uncounted.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        before = _status_bytes("VmRSS")
    except OSError:
        run()
        return None
    run()
    return max(0, _status_bytes("VmHWM") - before)


def process_peak() -> int | None:
    """Return the peak resident bytes of this process since its start or the last `resident_peak`, None if unknown."""
    try:
        return _status_bytes("VmHWM")
    except OSError:
        return None


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def limit_memory(share: float = 0.8) -> None:
    """Limit this process to a share of the memory that is free now (Linux; does nothing elsewhere).

    A larger allocation then raises an error; if the system kills a process nevertheless, it is this one, not its
    parent.
    """
    free = _free_bytes()
    if free is None:
        return
    import resource

    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _status_bytes("VmSize") + int(share * free)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _free_bytes() -> int | None:
    """Return the memory that the machine and this process's control group have free; None if not reported."""
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
            # Cached file contents, which can be dropped, count as used.
            keys = ("inactive_file", "total_inactive_file")
            cached = [int(value) for key, value in zip(statistics[::2], statistics[1::2], strict=False) if key in keys]
            free.append(int(limit_text) - int(used_text) + max(cached, default=0))
    return max(0, min(free)) if free else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed; on CPUs torch raises a plain RuntimeError."""
    texts = ("allocate memory", "out of memory", "bad_alloc", "unable to allocate", "alloc_failed", "memoryerror")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error).lower() for text in texts)


def in_child(code: str, arguments: Sequence[str], limit_s: float | None = None) -> Any:
    """Run Python code in a child process, so that memory peaks are its own and running out of memory ends only the
    child.

    Args:
        code: code whose last line of output is JSON.
        arguments: its `sys.argv[1:]`.
        limit_s: time limit.

    Returns:
        The parsed last line of output.

    Raises:
        TimeoutError: the child did not end in time.
        MemoryError: the system killed it.
        RuntimeError: it failed; the message is the last line of its standard error, or the signal that ended it.
    """
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"a call in a process of its own did not end within {limit_s:.0f} s") from None
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == -signal.SIGKILL:  # sent by the system when memory runs out
        raise MemoryError(f"out of memory: {reason}")
    if done.returncode < 0:
        reason = f"{signal.Signals(-done.returncode).name}: {reason}"
    raise RuntimeError(reason)


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return date, hardware and versions, which every result records."""
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


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two environments differ, except for the date."""
    return [name for name, value in now.items() if name != "date" and before.get(name) != value]


def machine_name(environment: Mapping[str, Any]) -> str:
    """Return the GPU, or the processor with its number of threads, for a figure's title."""
    return environment.get("gpu") or f"{environment['processor']}, threads: {environment['threads']}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def report_head(title: str, environment: Mapping[str, Any], finished: bool) -> list[str]:
    """Return the first paragraphs of a report: title, environment, and a notice if the study is incomplete."""
    parts = [f"# {title}", "\n".join(f"- {name}: {value}" for name, value in environment.items())]
    if not finished:
        parts.append("**This study is not finished: it was interrupted, and the figures below are incomplete.**")
    return parts


def list_section(title: str, lines: Iterable[str]) -> list[str]:
    """Return a heading and a bullet list; nothing if there are no lines."""
    items = [f"- {line}" for line in lines]
    return [f"## {title}", "\n".join(items)] if items else []


def write_report(folder: Path, name: str, content: Mapping[str, Any], text: str) -> list[Path]:
    """Write `NAME.json` and `NAME.md` into a folder, each atomically; return the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json", folder / f"{name}.md"]
    for path, written in zip(files, (json.dumps(content, indent=2) + "\n", text), strict=True):
        write_atomically(path, partial(Path.write_text, data=written, encoding="utf-8"))
    return files


def read_report(path: Path, kind: str, build: Callable[[dict[str, Any]], S]) -> S:
    """Build a study from the JSON file of a report, to resume it.

    Raises:
        DataError: the file is not a study of this kind.
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not {kind} ({error}): choose another folder") from None
