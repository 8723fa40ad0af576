"""Cores: what limits and other programs leave free, and what is set before PyTorch is loaded."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time

import pytest
import torch

from ssamba import cores

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def settings_after(code, **chosen):
    """The settings of OpenMP in a new process that runs `code`."""
    script = f"{code}\nimport json, os; print(json.dumps({{n: os.environ[n] for n in {SETTINGS} if n in os.environ}}))"
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | chosen
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_short_spin_is_set_unless_the_user_chose_or_pytorch_is_there():
    before_torch, torch_first = "import ssamba", "import sys; sys.modules['torch'] = sys\nimport ssamba"
    assert settings_after(before_torch) == cores.SPIN
    assert settings_after(before_torch, OMP_WAIT_POLICY="active") == {"OMP_WAIT_POLICY": "active"}
    assert settings_after(torch_first) == {}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes files of control groups."""
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(cores, "_affinity", lambda: 8)
    membership = tmp_path / "self"
    monkeypatch.setattr(cores, "_MEMBERSHIP", membership)

    def write(lines, **files):
        membership.write_text(lines)
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_max", ".max").replace("cfs", "cpu.cfs")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_limits_of_control_groups_are_followed(groups):
    groups("0::/user/job\n")
    assert cores.allowed_cores() == 8
    groups("0::/user/job\n", user__cpu_max="350000 100000\n", user__job__cpu_max="max 100000\n")
    assert cores.allowed_cores() == 3
    groups("0::/elsewhere\n", cpu_max="50000 100000\n")
    assert cores.allowed_cores() == 1
    groups("4:memory:/a\n3:cpu,cpuacct:/a\n", cpu__a__cfs_quota_us="200000\n", cpu__a__cfs_period_us="100000\n")
    assert cores.allowed_cores() == 2
    groups("3:cpu,cpuacct:/a\n", cpu__a__cfs_quota_us="-1\n")
    assert cores.allowed_cores() == 8


def test_a_busy_loop_takes_a_core_and_own_work_does_not(monkeypatch):
    busy = iter([100.0, 101.5])
    monkeypatch.setattr(cores, "_busy_s", lambda: next(busy))
    load, started_s = cores.OtherLoad(), time.process_time()
    while time.process_time() < started_s + 0.1:  # own work
        pass
    others = load.cores()
    assert others * load.age_s == pytest.approx(1.5 - (time.process_time() - started_s), rel=0.1)


def test_free_cores_are_measured_while_this_process_works(monkeypatch):
    monkeypatch.setattr(cores, "_affinity", lambda: 4)
    monkeypatch.setattr(cores, "_quota", lambda: float("inf"))
    monkeypatch.setattr(cores.OtherLoad, "cores", lambda _: 2.6)
    clock = [0.0]
    monkeypatch.setattr(cores.time, "monotonic", lambda: clock[0])
    free, counts = cores.FreeCores(), []
    for now_s in (0.1, 0.3, 5.0, 5.3):
        clock[0] = now_s
        counts.append(free.count())
        free.worked()
    assert counts == [4, 1, 1, 1]
    monkeypatch.setattr(cores.OtherLoad, "cores", lambda _: 0.2)
    for now_s in (9.0, 9.1, 9.3):  # after a pause, in which others may have worked for this process
        clock[0] = now_s
        counts.append(free.count())
        free.worked()
    assert counts[4:] == [1, 1, 4]


def test_inference_runs_on_the_free_cores(embedder, medley, monkeypatch, caplog):
    counts = []
    monkeypatch.setattr("ssamba.inference.engine.FREE_CORES.count", lambda: 1)
    embedder.encoder.register_forward_pre_hook(lambda *_: counts.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with caplog.at_level(logging.WARNING, "ssamba"):
            embedder.embed(medley[:16_000])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        embedder.encoder._forward_pre_hooks.clear()
    assert counts == [1]


def test_it_is_said_once_what_to_set_where_pytorch_was_loaded_first(monkeypatch, caplog):
    known = []
    monkeypatch.setattr(cores, "_is_prepared", False)
    for threads in (1, 2, 2):
        cores.say_if_spinning(threads, known)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set GOMP_SPINCOUNT=2000 KMP_BLOCKTIME=1 before Python starts" in caplog.text
