"""Pretrain on two nodes, kill one, and start it again: `python -m benchmarks.nodes`.

A node is a `torchrun` with a rendezvous of its own over the loopback, as it would run on each of two machines. Where
the system permits it (`unshare`, as root), it also has a host name and process numbers of its own, so that the lock of
the run takes it for another machine, and all its processes end at once, as if its power were cut. After the first saved
state one is killed by SIGKILL:

- second: the one without the rendezvous, which is started again while the other waits;
- first: the one with the rendezvous, after which the other's `torchrun` ends by itself, and both are started again;
- elastic: the second again, with `--nnodes 1:2`: the first goes on alone, until the second is back.

Each run has to resume from a saved state, and the model to equal that of two nodes that nothing disturbed, bit for bit.
That of `elastic` is another one, because masks are drawn by each process. Writes benchmarks/results/nodes.json. POSIX
only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.timing import DEMO_AUDIO, relative_error, save
from ssamba.studies.harness import table
from ssamba.training.run_io import read_log
from ssamba.training.state import StateFolder

_LIMIT_S = 400.0
_SETTINGS = (
    *("model.encoder.embed_dim=48", "model.encoder.depth=2", "data.workers=0", "data.batch_s=8", "data.crop_s=1"),
    *("data.valid_share=0.2", "run.checkpoint_every_steps=10", "run.checkpoint_every_minutes=none"),
    *("run.validate_every=none", "run.picture_every=none", "schedule.warmup_steps=4"),
)
_OWN_SYSTEM = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts")


@cache
def own_system() -> bool:
    """Return whether nodes can have host names and process numbers of their own."""
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run([*_OWN_SYSTEM, "true"], capture_output=True, check=False).returncode == 0
    return False


class Nodes:
    """Two nodes that train one run."""

    def __init__(self, folder: Path, steps: int, machines: str = "2"):
        self.folder, self.steps, self.machines = folder, steps, machines
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.began_s = time.monotonic()

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self, number: int) -> subprocess.Popen[bytes]:
        """Start a node."""
        command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={self.machines}", "--nproc-per-node=1"]
        command += ["--max-restarts=3", "--monitor-interval=0.1", "--rdzv-backend=c10d", f"--rdzv-id={self.port}"]
        command += [f"--rdzv-endpoint=127.0.0.1:{self.port}", f"--rdzv-conf=is_host={int(number == 0)}"]
        command += [f"--local-addr=127.0.0.{number + 1}", "-m", "ssamba", "pretrain", str(DEMO_AUDIO)]
        command += ["-o", str(self.run), "--device", "cpu"]
        for setting in (*_SETTINGS, f"run.steps={self.steps}", "run.epochs=none"):
            command += ["--set", setting]
        if own_system():
            command = [*_OWN_SYSTEM, "sh", "-c", f'hostname node-{number}; exec "$@"', "sh", *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        environment["GLOO_SOCKET_IFNAME"] = "lo"
        with (self.folder / f"node-{number}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def newest(self) -> int:
        """Return the step of the newest state, or 0."""
        states = StateFolder(self.run / "checkpoints", 1).complete()
        return states[-1].step if states else 0

    def wait(self, until: Callable[[], object]) -> None:
        """Wait until something has happened."""
        while not until():
            assert time.monotonic() - self.began_s < _LIMIT_S, self.said("takes too long")
            time.sleep(0.005)

    def ended(self, *numbers: int) -> bool:
        """Return whether nodes have ended."""
        return all(self.nodes[number].poll() is not None for number in numbers)

    def train(self, disturb: Callable[[Nodes], None] | None = None) -> float:
        """Start both nodes, disturb them, and wait until the run is finished; return how many seconds that took."""
        self.folder.mkdir()
        self.began_s = time.monotonic()
        self.nodes = [self.start(0), self.start(1)]
        try:
            if disturb is not None:
                self.wait(self.newest)
                disturb(self)
            self.wait(lambda: self.ended(0, 1))
            assert [node.returncode for node in self.nodes] == [0, 0], self.said("failed")
        finally:
            for node in self.nodes:
                kill_node(node)
        return round(time.monotonic() - self.began_s, 1)

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


def second(nodes: Nodes) -> None:
    """Kill the second node, and start it again."""
    kill_node(nodes.nodes[1])
    nodes.nodes[1] = nodes.start(1)


def first(nodes: Nodes) -> None:
    """Kill the node with the rendezvous; when the other has ended, too, start both again."""
    kill_node(nodes.nodes[0])
    nodes.wait(lambda: nodes.ended(1))
    assert nodes.nodes[1].returncode, "without the rendezvous it ends with an error"
    nodes.nodes = [nodes.start(0), nodes.start(1)]


def elastic(nodes: Nodes) -> None:
    """Kill the second node, and start it again when the first has gone on alone."""
    kill_node(nodes.nodes[1])
    before = nodes.newest()
    nodes.wait(lambda: nodes.newest() > before)
    nodes.nodes[1] = nodes.start(1)


def main() -> None:
    """Train with and without disturbance, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    runs: dict[str, dict[str, Any]] = {}
    expected: list[Tensor] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, disturb in {"none": None, "second": second, "first": first, "elastic": elastic}.items():
            nodes = Nodes(Path(folder) / name, options.steps, "1:2" if name == "elastic" else "2")
            seconds = nodes.train(disturb)
            weights = list(load_file(nodes.run / "model" / "model.safetensors").values())
            expected = expected or weights
            report = json.loads((nodes.run / "report.json").read_text(encoding="utf-8"))
            losses = [value for key, value in report["validation"].items() if key.startswith("loss")]
            starts = [line for line in read_log(nodes.run / "log.jsonl") if line["event"] == "start"]
            runs[name] = {
                "seconds": seconds,
                "sessions": [{"step": start["step"], "processes": start["processes"]} for start in starts],
                "held_out_loss": round(losses[-1], 4),
                "relative_difference": relative_error(weights, expected),
            }
            print(f"{name}: {runs[name]}", flush=True)
            count = {"none": 1, "elastic": 3}.get(name, 2)
            assert len(starts) == count, nodes.said(f"has {len(starts)} sessions")
            assert all(start["step"] >= 10 for start in starts[1:]), f"{name} did not resume from a saved state"
            assert name == "elastic" or not runs[name]["relative_difference"], f"the model of {name} differs"
    result = {"steps": options.steps, "own_systems": own_system(), "runs": runs}
    rows = [
        [
            name,
            ", ".join(f"{session['step']} ({session['processes']})" for session in run["sessions"]),
            str(run["seconds"]),
            str(run["held_out_loss"]),
            f"{run['relative_difference']:.1g}",
        ]
        for name, run in runs.items()
    ]
    columns = ["killed", "sessions began at step (processes)", "s", "held-out loss", "largest difference of a weight"]
    save("nodes", result, f"# Two nodes, of which one is killed and started again\n\n{table(columns, rows)}\n")


if __name__ == "__main__":
    main()
