"""Cores that this process may use and others leave free, and how the threads of OpenMP wait for each other.

PyTorch's threads meet at a barrier many hundred times a second. There GNU's OpenMP spins for milliseconds by default,
LLVM's and Intel's for 200 ms: that is quickest on a quiet machine, but where another program keeps a core busy, threads
that spin hold the core which the one that they wait for could use. So `import ssamba` chooses a short spin, unless the
user chose; OpenMP reads that when PyTorch is loaded. And inference uses no more threads than there are free cores, as
measured while it runs: beside a busy loop, one thread is quicker than two on two cores (`python -m benchmarks.busy`).
Training keeps its number of threads, as the last bits of its results depend on it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from pathlib import Path

_log = logging.getLogger(__name__)

SPIN = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}
"""A short spin: rounds of GNU's OpenMP (tens of microseconds), milliseconds of LLVM's and Intel's."""
_WAITING = ("OMP_WAIT_POLICY", *SPIN)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SAMPLE_S = 0.1
_REFRESH_S = 0.2
_PAUSE_S = 0.5
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def prepare_openmp() -> bool:
    """Set how OpenMP's threads wait, and their number if control groups limit it, where the user did not.

    Returns:
        Whether that is so; False if PyTorch was loaded before.
    """
    if "torch" in sys.modules:
        return any(name in os.environ for name in _WAITING)
    if not any(name in os.environ for name in _WAITING):
        os.environ.update(SPIN)
    if _quota() < _affinity() and not any(name in os.environ for name in _THREADS):
        os.environ["OMP_NUM_THREADS"] = str(allowed_cores())
    return True


def say_if_spinning(threads: int, is_known: list[bool] = []) -> None:  # noqa: B006 - said once in a process
    """Log what to set if PyTorch's threads spin long because it was loaded before ssamba, once in a process."""
    if not (_is_prepared or is_known or threads < 2):
        is_known.append(True)
        settings = " ".join(f"{name}={value}" for name, value in SPIN.items())
        _log.warning(
            "PyTorch was loaded before ssamba, and its %d threads spin while they wait, which makes them slow beside "
            "other programs: import ssamba before torch, or set %s before Python starts",
            threads,
            settings,
        )


def allowed_cores() -> int:
    """Return the cores that this process may use, at least 1, by its affinity and the limits of its control groups."""
    return max(1, int(min(_affinity(), _quota())))


def free_cores() -> int:
    """Return how many of the allowed cores others leave free, at least 1, by what they do in a tenth of a second.

    What others do is known on Linux alone. Elsewhere all allowed cores count as free.
    """
    return _without(OtherLoad().cores())


def _without(others: float) -> int:
    return max(1, int(min(_affinity() - math.floor(others + 0.5), _quota())))


class FreeCores:
    """The cores that others leave free while this process works, measured between calls that follow each other."""

    def __init__(self) -> None:
        self._load, self._others, self._worked_at_s = OtherLoad(), 0.0, time.monotonic()

    def count(self) -> int:
        """Return their number, at least 1; after a pause it is that of before until it has been measured again."""
        if time.monotonic() - self._worked_at_s > _PAUSE_S:  # others may have worked for this process meanwhile
            self._load = OtherLoad()
        elif self._load.age_s > _REFRESH_S:
            self._others, self._load = self._load.cores(), OtherLoad()
        return _without(self._others)

    def worked(self) -> None:
        """Note that work ends, so that a pause before the next call is known."""
        self._worked_at_s = time.monotonic()


class OtherLoad:
    """How many of this process's cores others keep busy, from now on."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._busy_s, self._own_s = _busy_s(), time.process_time()

    @property
    def age_s(self) -> float:
        """Time since the measurement began."""
        return time.monotonic() - self._started_s

    def cores(self) -> float:
        """Return their number, a mean over the time since the measurement began, which is 0.1 s at least."""
        time.sleep(max(0.0, _SAMPLE_S - self.age_s))  # the system counts in steps of 10 ms
        others_s = (_busy_s() - self._busy_s) - (time.process_time() - self._own_s)
        return max(0.0, others_s / self.age_s)


def _busy_s() -> float:
    """Return how long the cores of this process have been busy since the system started; 0 if that is not known."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    except (OSError, AttributeError):
        return 0.0
    times = [line.split() for line in lines if line.partition(" ")[0] in own]
    # user, nice, system, idle, iowait, irq, softirq, steal
    return sum(sum(map(int, (*one[1:4], *one[6:9]))) for one in times) / os.sysconf("SC_CLK_TCK")


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota() -> float:
    """Return the cores that the control groups of this process allow; infinity without a limit."""
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return math.inf
    limits = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be that of the host: then the root of the mount is the container's group.
        root = _CGROUP / "cpu" if controllers else _CGROUP
        inner = root / group.lstrip("/")
        limits += [_limit(folder) for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return min(limits)


def _limit(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            files = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
            quota, period = (file.read_text(encoding="ascii") for file in files)
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no limit here: no such file, or `max`
        return math.inf


def thread_settings() -> str:
    """Return the cores, and what is set about threads, for `ssamba info`."""
    found = [f"{name}={os.environ[name]}" for name in (*_THREADS, *_WAITING) if name in os.environ]
    return f"{allowed_cores()} allowed, {free_cores()} free; {' '.join(found) or 'OpenMP as it is'}"


_is_prepared = prepare_openmp()
