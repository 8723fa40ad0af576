"""The SLURM script of examples/, with stand-ins for SLURM's commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "pretrain.slurm"
# srun trains until it is told to stop, or ends at once; scancel tells it.
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "scontrol $*" >>calls; fi',
    "srun": 'echo "srun $*" >>calls; [ -n "$ENDS" ] && exit "$ENDS"; trap "echo saved >>calls; exit 130" TERM\n'
    "echo $$ >pid; while true; do sleep 0.02; done",
    "scancel": 'echo "scancel $*" >>calls; kill -TERM "$(cat pid)"',
}
ARGUMENTS = ["shards/", "-o", "runs/my base", "--recipe", "many-nodes"]


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the script."""
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "calls").touch()
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_GPUS_ON_NODE": "4"}
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(ends=""):
        environment = {**os.environ, **slurm, "PATH": path, "ENDS": ends}
        return subprocess.Popen(["bash", SCRIPT, *ARGUMENTS], cwd=tmp_path, env=environment)

    return run


pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")


def test_a_job_whose_time_is_up_saves_and_is_queued_again(start, tmp_path):
    job = start()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 0
    started, *after = (tmp_path / "calls").read_text().splitlines()
    assert after == ["scancel --signal=TERM 17", "saved", "scontrol requeue 17"]
    assert "torchrun --nnodes 2 --nproc-per-node 4" in started
    assert "--rdzv-endpoint node7:29500 -m ssamba pretrain shards/ -o runs/my base --recipe many-nodes" in started


@pytest.mark.parametrize("ends", ["0", "3"])
def test_a_job_that_ends_by_itself_is_not_queued_again(start, tmp_path, ends):
    assert start(ends).wait(timeout=60) == int(ends)
    assert "requeue" not in (tmp_path / "calls").read_text()
