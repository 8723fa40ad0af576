"""Race two `ssamba embed` on one table, kill them at any moment, and check the table: `python -m benchmarks.races`.

In each round two processes write the same table, started in either order, each with or without `--overwrite` (and
sometimes `--take-over`), over no table, a complete one or an interrupted run. Either, both or none is killed by
SIGKILL: at a random moment, when the table is being written under its temporary name, or just after it was renamed.
Whenever a process has ended, the table must be absent or complete, with every row equal to that of a run alone; a
process that was not killed must have finished, or have been refused, or have lost the output to the other one. At the
end of a round a third process must complete the table.

    python -m benchmarks.races --rounds 200 --seed 1

The processes are forked from this one, which has loaded everything, so that a round takes about a second. POSIX only.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.timing import DEMO_AUDIO
from ssamba import cli
from ssamba.checkpoint import save_checkpoint
from ssamba.library import store
from ssamba.library.embed import embed_files
from ssamba.library.store import Store
from ssamba.library.tables import read_embeddings
from ssamba.model import create_encoder

RECORDINGS = sorted(DEMO_AUDIO.glob("*.flac"), key=lambda path: path.stat().st_size)[:8]
TOLERANCE = 1e-5  # between batches of other files
_LIMIT_S = 300.0


@dataclass
class Embed:
    """A process that embeds."""

    folder: Path
    output: Path
    flags: tuple[str, ...]
    pid: int = 0
    started_s: float = 0.0
    kill: Callable[[Embed], bool] | None = None
    """Says when to kill it."""
    status: int | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"log-{self.pid}"

    def start(self) -> None:
        """Fork, and run the command in the new process."""
        self.started_s = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            log = os.open(self.folder / f"log-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["ssamba", "embed", *map(str, RECORDINGS), "-o", str(self.output), *self.flags]
            sys.argv += ["-c", str(self.folder / "model")]
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> bool:
        """Kill it if it is time; return whether it has ended."""
        if self.kill is not None and self.kill(self):
            os.kill(self.pid, signal.SIGKILL)
            self.kill = None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = os.waitstatus_to_exitcode(status)
        elif time.monotonic() - self.started_s > _LIMIT_S:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"{self.text()} hangs")
        return bool(pid)

    def outcome(self) -> str:
        """Return how it ended."""
        said = self.log.read_text() if self.log.exists() else ""
        if self.status == -signal.SIGKILL:
            return "killed"
        if self.status == 0:
            return "finished"
        if self.status == 1 and "is being written by" in said and "Traceback" not in said:
            return "refused"
        if self.status == 1 and "taken over" in said and "Traceback" not in said:
            return "lost the output"
        raise AssertionError(f"{self.text()} ended with {self.status}: {said[-2000:]}")

    def text(self) -> str:
        """Describe it."""
        return f"embed {' '.join(self.flags)}"


@dataclass
class Race:
    """Rounds of races."""

    folder: Path
    rng: random.Random
    reference: dict[str, np.ndarray] = field(default_factory=dict)
    duration_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    def prepare(self) -> None:
        """Make a small model, and embed alone, for the vectors and the time it takes."""
        torch.manual_seed(0)
        model = save_checkpoint(self.folder / "model", create_encoder("tiny", embed_dim=32, depth=2).eval())
        for suffix in (".csv", ".parquet", ".npz"):  # in this process, which loads everything before it forks
            output = self.folder / f"reference{suffix}"
            embed_files(RECORDINGS if suffix == ".npz" else RECORDINGS[:1], output, str(model), workers=0)
        started_s = time.monotonic()
        self.run_alone(output, "--overwrite")
        self.duration_s = time.monotonic() - started_s
        table = read_embeddings(output)
        self.reference = dict(zip(table["path"].tolist(), table["embedding"], strict=True))
        rows = np.stack(list(self.reference.values()))
        nearest = min(np.abs(a - b).max() for i, a in enumerate(rows) for b in rows[:i])
        assert nearest > 100 * TOLERANCE, "two recordings have nearly the same vector"

    def run_alone(self, output: Path, *flags: str) -> None:
        """Embed in a process that nothing disturbs."""
        process = Embed(self.folder, output, flags)
        process.start()
        while not process.poll():
            time.sleep(0.001)
        assert process.outcome() == "finished"

    def check(self, output: Path) -> bool:
        """Return whether there is a table; it must be complete and hold each recording's own vector."""
        if not output.exists():
            return False
        table = read_embeddings(output)
        assert sorted(table["path"].tolist()) == sorted(self.reference), f"{output} is not complete"
        for path, row in zip(table["path"].tolist(), table["embedding"], strict=True):
            error = np.abs(row - self.reference[path]).max()
            assert error <= TOLERANCE, f"{output}: {path} is off by {error}"
        return True

    def round(self, number: int) -> str:
        """Run one round; return what happened."""
        rng = self.rng
        suffix = rng.choice([".npz", ".npz", ".npz", ".parquet", ".csv"])
        output = self.folder / str(number) / f"table{suffix}"
        output.parent.mkdir()
        before = rng.choice(["nothing", "a table", "a run"])
        if before != "nothing":
            process = Embed(self.folder, output, ())
            process.kill = self.some_moment(output) if before == "a run" else None
            process.start()
            while not process.poll():
                time.sleep(0.001)
            process.outcome()
        processes = [Embed(self.folder, output, self.flags()) for _ in range(2)]
        for process in processes:
            if rng.random() < 0.7:
                process.kill = self.some_moment(output)
        delay_s = rng.choice([0.0, 0.3, 1.2]) * rng.random() * self.duration_s
        processes[0].start()
        begin_s = time.monotonic() + delay_s
        running = processes[:1]
        waiting = processes[1:]
        while running or waiting:
            if waiting and time.monotonic() >= begin_s:
                waiting[0].start()
                running.append(waiting.pop())
            for process in list(running):
                if process.poll():
                    running.remove(process)
                    self.check(output)
            time.sleep(0.001)
        outcomes = [process.outcome() for process in processes]
        there = self.check(output)
        self.run_alone(output)
        assert self.check(output)
        names = {path.name for path in output.parent.iterdir()}
        assert names == {output.name}, f"left over: {names}"
        self.outcomes.update(outcomes)
        self.outcomes["table" if there else "no table"] += 1
        shutil.rmtree(output.parent)
        ends = ", ".join(f"{process.text()}: {end}" for process, end in zip(processes, outcomes, strict=True))
        return f"{suffix}, before: {before}; {ends}; {'a table' if there else 'no table'}"

    def flags(self) -> tuple[str, ...]:
        """Choose the flags of a process."""
        rng = self.rng
        flags = ["--workers", rng.choice(["0", "0", "1"])]
        flags += ["--overwrite"] if rng.random() < 0.5 else []
        return (*flags, *(["--take-over"] if rng.random() < 0.15 else []))

    def some_moment(self, output: Path) -> Callable[[Embed], bool]:
        """Choose when a process is killed: at some time, or in its last step."""
        kind = self.rng.choice(["time", "time", "writing", "renamed"])
        wait_s = self.rng.random() * 1.2 * self.duration_s
        partial = output.with_name(f"{output.name}.partial")
        after_s = self.rng.choice([0.0, 0.002, 0.01]) * self.rng.random()
        before_ns = output.stat().st_mtime_ns if output.exists() else None
        seen_s: float | None = None

        def is_time(process: Embed) -> bool:
            nonlocal seen_s
            if kind == "time":
                return time.monotonic() - process.started_s > wait_s
            if seen_s is None:
                if kind == "writing":
                    found = any(partial.glob(f"output*{output.suffix}"))
                else:
                    found = output.exists() and output.stat().st_mtime_ns != before_ns
                seen_s = time.monotonic() if found else None
            return seen_s is not None and time.monotonic() - seen_s >= after_s

        return is_time


def slow_down() -> None:
    """Make what writes take longer, so that processes overlap and are killed in the middle of it."""

    def slowed(function: Callable[..., Any], before_s: float, after_s: float) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            time.sleep(before_s)
            result = function(*arguments, **options)
            time.sleep(after_s)
            return result

        return call

    slow: tuple[tuple[Any, str, float, float], ...] = (
        (Store, "add", 0.01, 0.01),
        (store, "write_json", 0.004, 0.004),
        (store, "write_table", 0.02, 0.03),
        (shutil, "rmtree", 0.02, 0.0),
    )
    for owner, name, before_s, after_s in slow:
        mock.patch.object(owner, name, slowed(getattr(owner, name), before_s, after_s)).start()
    store._FLUSH_FILES = 1  # many parts


def main() -> None:
    """Race, print, and exit with 1 at the first table that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    slow_down()
    with tempfile.TemporaryDirectory() as folder:
        race = Race(Path(folder), random.Random(options.seed))
        race.prepare()
        for number in range(options.rounds):
            text = race.round(number)
            if options.verbose:
                print(f"{number}: {text}", flush=True)
    print(f"{options.rounds} rounds: " + ", ".join(f"{count} {name}" for name, count in sorted(race.outcomes.items())))


if __name__ == "__main__":
    main()
