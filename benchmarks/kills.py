"""Kill pretraining and fine-tuning at any moment, and check what was lost: `python -m benchmarks.kills`.

In each round a run of some seconds is killed by SIGKILL up to four times: at a random moment, while a state is being
written, or just after one was renamed. After each kill the newest state must be complete, and no older than the
interval between two states, beside the longest step and the writing of a state. A run without a state must say that it
starts anew, and keep the earlier log. At the end the run is repeated until it finishes, and its model must equal that
of a run that was never killed, bit for bit.

    python -m benchmarks.kills --rounds 40 --seed 1

Runs are forked from this process, which has loaded everything. POSIX only. Writes benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import logging
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import soundfile
import torch

from benchmarks.timing import DEMO_AUDIO, save
from ssamba import finetune, pretrain
from ssamba.audio.decode import decode
from ssamba.checkpoint import save_checkpoint
from ssamba.model import create_encoder
from ssamba.studies.harness import table
from ssamba.training import loop
from ssamba.training.state import StateFolder, has_state

_LIMIT_S = 600.0
_SMALL = {"model.encoder": {"embed_dim": 64, "depth": 2}, "data.crop_s": 1.0, "data.batch_s": 4.0, "data.workers": 0}


@dataclass
class Run:
    """One process that trains, and what it said about its steps."""

    kind: str
    folder: Path
    output: Path
    settings: dict[str, Any]
    pid: int = 0
    status: int | None = None

    @property
    def steps_file(self) -> Path:
        """A line for each step: the monotonic clock, which all processes share, the number of steps done, and 1 if the
        step is of the refit on all clips, which is a training of its own."""
        return self.folder / f"steps-{self.pid}"

    @property
    def saves_file(self) -> Path:
        """A line for each state: how many seconds it took to write it."""
        return self.folder / f"saves-{self.pid}"

    @property
    def log_file(self) -> Path:
        return self.folder / f"log-{self.pid}"

    def newest(self) -> int:
        """Return the step of the newest state of what is trained: of the run, of its fold, or of its refit; or 0."""
        run = self.output if self.kind == "pretrain" else next(iter((self.output / "rounds").glob("*")), self.output)
        if self.trained()[1]:
            run = self.output / "refit"
        states = StateFolder(run / "checkpoints", 1).complete()
        return states[-1].step if states else 0

    def is_unfinished(self) -> bool:
        """Return whether a training has begun that has no state."""
        return any(not has_state(log.parent) for log in self.output.rglob("log.jsonl"))

    def states(self, pattern: str) -> set[str]:
        """Return the names of states, unfinished ones or others; a running training removes some meanwhile."""
        return {name for _, folders, _ in os.walk(self.output) for name in fnmatch.filter(folders, pattern)}

    def start(self) -> None:
        """Fork, and train in the new process."""
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        self.pid = os.getpid()
        code = 1
        try:
            log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            logging.basicConfig(level=logging.INFO)
            self.train()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)

    def train(self) -> None:
        """Call the public function."""
        loop._SAVING_SHARE = 1.0  # states by time alone, however long it takes here to write one
        whole, saves = StateFolder.save, self.saves_file.open("a")

        def timed(*arguments: Any, **options: Any) -> Path:
            began_s = time.monotonic()
            path = whole(*arguments, **options)
            saves.write(f"{time.monotonic() - began_s}\n")
            saves.flush()
            return path

        mock.patch.object(StateFolder, "save", timed).start()
        steps = self.steps_file.open("a")

        def note(state: Any) -> None:
            if hasattr(state, "steps"):
                steps.write(f"{time.monotonic()} {state.steps} {int(state.step.startswith('refit'))}\n")
                steps.flush()

        if self.kind == "pretrain":
            pretrain(self.folder.parent / "recordings", self.output, set=self.settings, device="cpu", progress=note)
        else:
            data, start = self.folder.parent / "classes", self.folder.parent / "model"
            finetune(data, self.output, str(start), set=self.settings, device="cpu", progress=note)

    def is_alive(self) -> bool:
        """Return whether it still runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is None

    def kill(self) -> float:
        """Kill it; return when."""
        at_s = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return at_s

    def trained(self) -> tuple[list[tuple[float, int]], bool]:
        """Return clock and number of each step of the training that the process was in, and if it is the refit."""
        text = self.steps_file.read_text() if self.steps_file.exists() else ""
        lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
        last = lines[-1][2] if lines else "0"
        return [(float(at), int(step)) for at, step, part in lines if part == last], last == "1"

    def said(self) -> str:
        """Return its output."""
        return self.log_file.read_text() if self.log_file.exists() else ""


@dataclass
class Kills:
    """Rounds of runs that are killed."""

    folder: Path
    rng: random.Random
    interval_s: float
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    reference: dict[str, bytes] = field(default_factory=dict)
    duration_s: dict[str, float] = field(default_factory=dict)
    lost_s: list[float] = field(default_factory=list)
    allowed_s: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def prepare(self, epochs: dict[str, int]) -> None:
        """Write recordings and a small model, and train without a kill."""
        torch.manual_seed(0)
        save_checkpoint(self.folder / "model", create_encoder("tiny", embed_dim=64, depth=2).eval())
        recordings = sorted(DEMO_AUDIO.glob("*.flac"))
        (self.folder / "recordings").mkdir()
        for path in recordings:
            shutil.copy(path, self.folder / "recordings")
        for name, sources in {"drum": recordings[6:8], "tabla": recordings[10:12], "choir": recordings[:2]}.items():
            (self.folder / "classes" / name).mkdir(parents=True)
            for k in range(16):
                wave = decode(sources[k % 2])[k * 800 : k * 800 + 8000 + 500 * k]
                soundfile.write(self.folder / "classes" / name / f"{k}.wav", wave, 16_000)
        minutes = self.interval_s / 60
        common = {"run.checkpoint_every_minutes": minutes, "run.max_minutes": None}
        self.settings["pretrain"] = {**common, **_SMALL, "run.epochs": epochs["pretrain"], "run.validate_every": 20}
        self.settings["finetune"] = {
            **common,
            "clips.batch_size": 4,
            "run.epochs": epochs["finetune"],
            "run.patience": None,
        }
        for kind in self.settings:
            run = self.new(kind, "reference")
            started_s = time.monotonic()
            run.start()
            self.wait(run)
            self.duration_s[kind] = time.monotonic() - started_s
            self.reference[kind] = self.model(run)
            print(f"{kind}: {run.trained()[0][-1][1]} steps in {self.duration_s[kind]:.1f} s", flush=True)

    def new(self, kind: str, name: str) -> Run:
        """Return a run that is not started."""
        folder = self.folder / f"{kind}-{name}"
        folder.mkdir(exist_ok=True)
        return Run(kind, folder, folder / "run", self.settings[kind])

    def wait(self, run: Run) -> None:
        """Wait until a run has finished."""
        began_s = time.monotonic()
        while run.is_alive():
            assert time.monotonic() - began_s < _LIMIT_S, f"{run.output} hangs"
            time.sleep(0.01)
        assert run.status == 0, f"{run.output} ended with {run.status}: {run.said()[-3000:]}"

    @staticmethod
    def model(run: Run) -> bytes:
        """Return the weights of the trained model."""
        return (run.output / "model" / "model.safetensors").read_bytes()

    def round(self, number: int) -> str:
        """Run one round; return what happened."""
        kind = self.rng.choice(["pretrain", "finetune"])
        ends = []
        for _ in range(self.rng.randint(1, 4)):
            run = self.new(kind, str(number))
            ends.append(self.start_and_kill(run))
            if run.status == 0:
                break
        run = self.new(kind, str(number))
        run.start()
        self.wait(run)
        assert self.model(run) == self.reference[kind], f"{run.output} differs from a run that was never killed"
        shutil.rmtree(run.folder)
        return f"{kind}: {', '.join(ends)}"

    def start_and_kill(self, run: Run) -> str:
        """Start a run and kill it at some moment; check its newest state, and return what happened."""
        logs = len([*run.output.rglob("log-*.jsonl")])
        unfinished = run.is_unfinished()
        is_time, kind = self.some_moment(run)
        run.start()
        while run.is_alive() and not is_time():
            time.sleep(0.001)
        if run.status is not None:
            assert run.status == 0, f"{run.output} ended with {run.status}: {run.said()[-3000:]}"
            self.counts["finished before"] += 1
            return "finished"
        killed_s = run.kill()
        self.counts["kills"] += 1
        self.counts[f"killed {kind}"] += 1
        steps, _ = run.trained()
        if unfinished and "no saved state to resume from" in run.said():
            self.counts["kept logs"] += 1
            assert len([*run.output.rglob("log-*.jsonl")]) == logs + 1, "the earlier log is kept"
        elif unfinished:
            assert not steps, f"{run.output} starts anew and does not say so: {run.said()}"
        if not steps:
            self.counts["before the first step"] += 1
            return f"{kind} before the first step"
        done = {step: at for at, step in reversed(steps)}  # the first time that this process had done them
        newest = run.newest()
        if not newest and (run.output / "model").is_dir() and self.model(run) == self.reference[run.kind]:
            self.counts["killed when done"] += 1  # results written, states removed, the process about to end
            return f"{kind} when done"
        # The newest state may be from before this process, or of the step that it was about to report.
        began_s = killed_s if newest > steps[-1][1] else done.get(newest, steps[0][0])
        # What the last step takes is lost in any case, and on a busy machine it may take any time.
        longest_step_s = max([b[0] - a[0] for a, b in itertools.pairwise(steps)], default=0.0)
        unfinished_s = killed_s - steps[-1][0]
        longest_save_s = max(map(float, run.saves_file.read_text().split()), default=0.0)
        lost_s = killed_s - began_s
        allowed_s = self.interval_s + longest_step_s + longest_save_s + unfinished_s
        self.lost_s.append(lost_s)
        self.allowed_s.append(allowed_s)
        self.counts["without a state"] += not newest
        before = ", ".join(f"{step} at {at - killed_s:.2f}" for at, step in steps[-20:])
        told = f"state {newest}, saves {run.saves_file.read_text().split()}, steps {before} s; {run.said()}"
        assert lost_s <= allowed_s, f"{run.output}: {lost_s:.2f} s lost, {allowed_s:.2f} s allowed; {told}"
        return f"{kind} at step {steps[-1][1]}, {lost_s:.2f} s lost"

    def some_moment(self, run: Run) -> tuple[Callable[[], bool], str]:
        """Choose when a run is killed: at some time, or in or after a save."""
        kind = self.rng.choice(["at a random moment", "at a random moment", "while saving", "after saving"])
        started_s, wait_s = time.monotonic(), self.rng.random() * 1.1 * self.duration_s[run.kind]
        skip, seen = self.rng.randint(0, 3), run.states("step-*")
        moment_s = self.rng.random() * 0.01

        def is_time() -> bool:
            nonlocal skip
            if kind == "at a random moment":
                return time.monotonic() - started_s > wait_s
            pattern = ".unfinished-step-*" if kind == "while saving" else "step-*"
            new = run.states(pattern) - seen
            if new:
                seen.update(new)
                skip -= 1
            if skip < 0:
                time.sleep(moment_s)
            return skip < 0

        return is_time, kind


def main() -> None:
    """Run the rounds, print, and write the result; an error ends it at the first loss that is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--interval-s", type=float, default=1.0, help="seconds between two states")
    parser.add_argument("--epochs", type=int, nargs=2, default=(40, 6), help="of pretraining and fine-tuning")
    parser.add_argument("--verbose", action="store_true", help="print every round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(Path(folder), random.Random(options.seed), options.interval_s)
        kills.prepare(dict(zip(("pretrain", "finetune"), options.epochs, strict=True)))
        for number in range(options.rounds):
            text = kills.round(number)
            if options.verbose:
                print(f"{number}: {text}", flush=True)
    result = {
        "rounds": options.rounds,
        "interval_s": options.interval_s,
        "run_s": {kind: round(seconds, 1) for kind, seconds in kills.duration_s.items()},
        **dict(sorted(kills.counts.items())),
        "lost_s": {
            "median": round(statistics.median(kills.lost_s), 2),
            "largest": round(max(kills.lost_s), 2),
            "largest_share_of_allowed": round(
                max(lost / allowed for lost, allowed in zip(kills.lost_s, kills.allowed_s, strict=True)), 2
            ),
        },
        "models_equal_to_the_reference": options.rounds,
    }
    save("kills", result, _text(result))


def _text(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    flat = {**result, **{f"{name} s lost": value for name, value in result["lost_s"].items()}}
    rows = [[name.replace("_", " "), str(value)] for name, value in flat.items() if not isinstance(value, dict)]
    return f"# Runs killed at any moment\n\n{table(['what', 'value'], rows)}\n"


if __name__ == "__main__":
    main()
