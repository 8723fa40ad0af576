"""Measure what a busy core costs: `python -m benchmarks.busy`.

`Embedder.embed` on 10 s of a recording (`ssamba2-tiny`) is timed in processes that differ in threads and in how the
threads of OpenMP wait. The sides take turns, and each figure is the median over 10 rounds of a side's median call in a
round: first on the machine as it is, then beside a busy loop (another process). Rounds in which other programs use more
than a tenth of a core are repeated. Writes benchmarks/results/busy.json and busy.md.

`--environment NAME=VALUE,...` adds a side of two threads with these variables that does not look for free cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.timing import save
from ssamba.cores import OtherLoad
from ssamba.studies.harness import environment, table

AS_IT_IS, SPIN, FREE = "two threads, OpenMP as it is", "two threads, short spin", "two threads on free cores"
ONE = "one thread"
# Imported in the first order, ssamba finds that PyTorch is loaded, and sets nothing.
UNPREPARED, PREPARED = "import torch, ssamba", "import ssamba, torch"
FIXED = "from ssamba.inference import engine; engine.FREE_CORES.count = lambda: 64"
SIDES: dict[str, tuple[str, dict[str, str]]] = {
    AS_IT_IS: (f"{UNPREPARED}; {FIXED}", {"OMP_NUM_THREADS": "2"}),
    SPIN: (f"{PREPARED}; {FIXED}", {"OMP_NUM_THREADS": "2"}),
    FREE: (PREPARED, {"OMP_NUM_THREADS": "2"}),
    ONE: (PREPARED, {"OMP_NUM_THREADS": "1"}),
}
CHILD = """
import json, sys, time, warnings
{imports}
from benchmarks.timing import demo_samples
warnings.simplefilter("ignore")
model = ssamba.load_model("ssamba2-tiny", device="cpu")
samples = demo_samples()[:160_000]
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        started = time.perf_counter()
        model.embed(samples)
        times.append(time.perf_counter() - started)
    print(json.dumps(times), flush=True)
"""
MOST_OTHERS = 0.1
"""Cores that other programs may use in a round."""
BUSY_LOOP = "while True: pass"


def start(imports: str, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process that times as many calls as it reads from its standard input."""
    given = ("OMP_", "GOMP_", "KMP_", "MKL_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(given)}
    code = CHILD.replace("{imports}", imports)
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**own, **variables}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def calls_s(process: subprocess.Popen[str], count: int) -> list[float]:
    """Return the seconds of `count` calls."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    times: list[float] = json.loads(process.stdout.readline())
    return times


def cpu_s(process: subprocess.Popen[Any]) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def measure(
    processes: Mapping[str, subprocess.Popen[str]], rounds: int, calls: int, loop: subprocess.Popen[bytes] | None = None
) -> dict[str, list[float]]:
    """Return the median call of each side in each round, in ms; a round that other programs disturb is repeated."""
    found: dict[str, list[float]] = {name: [] for name in processes}
    own: list[subprocess.Popen[Any]] = [*processes.values(), *([] if loop is None else [loop])]
    for index in range(20 * rounds):
        names, load, used_s = list(processes), OtherLoad(), sum(cpu_s(one) for one in own)
        times = {}
        for name in names if index % 2 else reversed(names):
            calls_s(processes[name], 2)
            times[name] = 1000 * statistics.median(calls_s(processes[name], calls))
        others = load.cores() - (sum(cpu_s(one) for one in own) - used_s) / load.age_s
        if others < MOST_OTHERS:
            for name in names:
                found[name].append(times[name])
        if min(map(len, found.values())) == rounds:
            return found
    raise SystemExit(f"in most rounds other programs used more than {MOST_OTHERS} cores")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=7, help="calls in a round")
    parser.add_argument("--environment", action="append", default=[], help="variables of a further side")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    sides = dict(SIDES)
    for text in options.environment:
        variables = dict(part.split("=", 1) for part in text.split(","))
        sides[text] = (f"{UNPREPARED}; {FIXED}", {"OMP_NUM_THREADS": "2", **variables})
    processes = {name: start(*side) for name, side in sides.items()}
    for process in processes.values():
        calls_s(process, 5)
    found: dict[str, dict[str, list[float]]] = {"quiet": measure(processes, options.rounds, options.calls)}
    loop = subprocess.Popen([sys.executable, "-c", BUSY_LOOP])
    try:
        found["busy"] = measure(processes, options.rounds, options.calls, loop)
    finally:
        loop.kill()
        for process in processes.values():
            process.kill()
    medians = {state: {name: statistics.median(times) for name, times in one.items()} for state, one in found.items()}
    rows = [[name, *(f"{medians[state][name]:.1f}" for state in found)] for name in sides]
    text = table(["ms a call", "quiet machine", "beside a busy loop"], rows)
    ratios = {
        "quiet": medians["quiet"][FREE] / medians["quiet"][AS_IT_IS],
        "busy": medians["busy"][FREE] / medians["busy"][ONE],
    }
    text += f"\n\nOn a quiet machine {ratios['quiet']:.3f} of two threads as OpenMP is, "
    text += f"beside a busy loop {ratios['busy']:.3f} of one thread."
    results: dict[str, Any] = {
        "environment": environment(),
        "ratios": ratios,
        "medians_ms": medians,
        "rounds_ms": found,
    }
    if options.no_save:
        print(text)
    else:
        save("busy", results, text)


if __name__ == "__main__":
    main()
