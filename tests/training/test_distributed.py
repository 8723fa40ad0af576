"""Two processes under torchrun, compared with one."""

from __future__ import annotations

import json
import os

import pytest

from ssamba.training.distributed import warn_if_restarts_fail

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills a process by SIGKILL")

# Batches of 13 and 1 clips: the second process gets no clip of an epoch's second batch.
BATCH = 13
RUN = {
    "steps": 6,
    "checkpoint_every_steps": 2,
    "validate_every": 2,
    "ema_decay": 0.9,
    "schedule": {"kind": "constant", "warmup_steps": 2},
}


def alone(experiment, out, poisoned=(), **changes):
    experiment.run(experiment.DemoTask(batch=BATCH, poisoned=poisoned), out, **{**RUN, **changes})
    return out


def assert_same_curve(experiment, out, other):
    ours, theirs = experiment.log(out), experiment.log(other)
    assert len(ours) == len(theirs) == 6
    for one, other_one in zip(ours, theirs, strict=True):
        assert ("loss" in one) == ("loss" in other_one) == (one["grad_norm"] is not None)
        if "loss" not in one:
            continue
        assert one["loss"] == pytest.approx(other_one["loss"], rel=2e-5)
        assert one["grad_norm"] == pytest.approx(other_one["grad_norm"], rel=2e-4)
        assert one["accuracy"] == pytest.approx(other_one["accuracy"])
        assert one["steps"] == 1
    for one, other_one in zip(experiment.log(out, "validation"), experiment.log(other, "validation"), strict=True):
        assert one["loss"] == pytest.approx(other_one["loss"], rel=2e-5)
    assert experiment.last_state(out)["clips"] == experiment.last_state(other)["clips"]


@pytest.mark.parametrize(
    ("world", "shared", "warns"), [("4", "True", True), ("4", "False", False), ("2", "True", False)]
)
def test_several_machines_that_could_not_be_restarted_are_warned_of(monkeypatch, caplog, world, shared, warns):
    values = {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": world, "TORCHELASTIC_USE_AGENT_STORE": shared}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    warn_if_restarts_fail()
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in caplog.text) == warns


def test_two_processes_train_like_one_which_can_resume_their_run(experiment, tmp_path, launch):
    out = tmp_path / "two"
    ran = launch(out, json.dumps({**RUN, "steps": 4}), "--batch", BATCH, processes=2)
    assert ran.returncode == 0, ran.stderr
    # A process group that is still alive when Python exits sometimes aborts it.
    assert ran.stdout.count('"gloo_threads": []') == 2, ran.stdout
    assert experiment.log(out, "start")[0]["processes"] == 2
    report = experiment.run(experiment.DemoTask(batch=BATCH), out, **RUN)
    assert report.resumed_from == 4
    assert_same_curve(experiment, out, alone(experiment, tmp_path / "one"))


def test_a_process_that_dies_is_restarted_and_the_run_resumes(experiment, tmp_path, launch):
    # With accumulation, the second process's gradients of a step are synchronized by a batch of which it has no clip.
    # One of its losses is NaN, which skips the step on both.
    out, run = tmp_path / "two", {**RUN, "accumulate": 2}
    options = ["--batch", BATCH, "--kill-at", 3, "--poison", 4, "--only-rank", 1]
    ran = launch(out, json.dumps(run), *options, processes=2, restarts=1)
    assert ran.returncode == 0, ran.stderr
    assert [record["step"] for record in experiment.log(out, "start")] == [0, 2]
    assert_same_curve(experiment, out, alone(experiment, tmp_path / "one", (4,), accumulate=2))
    (bad,) = experiment.log(out, "bad_step")
    assert (bad["step"], len(bad["keys"])) == (5, 6)
