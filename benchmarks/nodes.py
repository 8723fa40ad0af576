"""Pretrain on two nodes, kill one and start it again: `python -m benchmarks.nodes`.

A node is a `torchrun` with a rendezvous of its own over the loopback, as it would run on each of two machines. The
second is killed by SIGKILL, with its process, after the first saved state, and started again, as a scheduler would. The
run has to resume from that state, and its model to equal that of two nodes that nothing disturbed. Writes
benchmarks/results/nodes.json. POSIX only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.timing import DEMO_AUDIO, relative_error, save
from ssamba.studies.harness import table
from ssamba.training.run_io import read_log
from ssamba.training.state import StateFolder

_LIMIT_S = 300.0
_SETTINGS = (
    *("model.encoder.embed_dim=48", "model.encoder.depth=2", "data.workers=0", "data.batch_s=8", "data.crop_s=1"),
    *("data.valid_share=0.2", "run.checkpoint_every_steps=10", "run.checkpoint_every_minutes=none"),
    *("run.validate_every=none", "run.picture_every=none", "schedule.warmup_steps=4"),
)


class Nodes:
    """Two nodes that train one run."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.nodes: list[subprocess.Popen[bytes]] = []

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self, number: int) -> subprocess.Popen[bytes]:
        """Start a node."""
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        command += ["--max-restarts=3", "--monitor-interval=0.1", "--rdzv-backend=c10d", f"--rdzv-id={self.port}"]
        command += [f"--rdzv-endpoint=127.0.0.1:{self.port}", f"--rdzv-conf=is_host={int(number == 0)}"]
        command += ["-m", "ssamba", "pretrain", str(DEMO_AUDIO), "-o", str(self.run), "--device", "cpu"]
        for setting in (*_SETTINGS, f"run.steps={self.steps}", "run.epochs=none"):
            command += ["--set", setting]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (self.folder / f"node-{number}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def newest(self) -> int:
        """Return the step of the newest state."""
        states = StateFolder(self.run / "checkpoints", 1).complete()
        return states[-1].step if states else 0

    def train(self, *, kill: bool) -> None:
        """Start both nodes, kill one of them if that is wanted, and wait until the run is finished."""
        self.folder.mkdir()
        began_s = time.monotonic()
        self.nodes = [self.start(0), self.start(1)]
        try:
            while any(node.poll() is None for node in self.nodes):
                assert time.monotonic() - began_s < _LIMIT_S, self.said("takes too long")
                if kill and self.newest():
                    kill_node(self.nodes[1])
                    self.nodes[1] = self.start(1)
                    kill = False
                time.sleep(0.005)
            assert [node.returncode for node in self.nodes] == [0, 0], self.said("failed")
        finally:
            for node in self.nodes:
                kill_node(node)

    def said(self, what: str) -> str:
        """Return a message with the end of each node's output."""
        return "\n".join([f"{self.run} {what}", *(path.read_text()[-3000:] for path in self.folder.glob("node-*.log"))])


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """Kill a node and its processes, if it runs."""
    if node.poll() is not None:
        return
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(node.pid)], capture_output=True, text=True, check=False)
    for pid in (node.pid, *map(int, listed.stdout.split())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


def main() -> None:
    """Train twice, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Nodes(Path(folder) / name, options.steps) for name in ("undisturbed", "killed")}
        seconds = {}
        for name, nodes in runs.items():
            began_s = time.monotonic()
            nodes.train(kill=name == "killed")
            seconds[name] = round(time.monotonic() - began_s, 1)
            print(f"{name}: {seconds[name]} s", flush=True)
        starts = [line for line in read_log(runs["killed"].run / "log.jsonl") if line["event"] == "start"]
        models = [load_file(nodes.run / "model" / "model.safetensors") for nodes in runs.values()]
        error = relative_error(list(models[1].values()), list(models[0].values()))
        result: dict[str, Any] = {
            "steps": options.steps,
            "processes": starts[-1]["processes"],
            "resumed from step": starts[-1]["step"],
            "seconds, undisturbed": seconds["undisturbed"],
            "seconds, killed": seconds["killed"],
            "largest relative difference of a weight": error,
        }
        assert len(starts) == 2, runs["killed"].said(f"has {len(starts)} starts")
        assert starts[-1]["step"] >= 10, "it resumes from a saved state"
        assert error < 1e-5, f"the models differ by {error}"
        shutil.rmtree(runs["killed"].run)
    rows = [[name, str(value)] for name, value in result.items()]
    save("nodes", result, f"# One of two nodes killed and started again\n\n{table(['what', 'value'], rows)}\n")


if __name__ == "__main__":
    main()
