"""The loop in one process: gradients, averages, steps that are not finite, signals, and the files it writes."""

from __future__ import annotations

import gc
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import ssamba
from ssamba.errors import ConfigError, MissingExtraError, TrainingDivergedError, TrainingError
from ssamba.training import OptimizerSettings, RunSettings, ScheduleSettings, StepOutcome, train


def test_a_run_learns_and_leaves_a_loadable_model(experiment, tmp_path):
    shown = []
    task = experiment.DemoTask(batch=14)
    report = experiment.run(
        task,
        tmp_path,
        steps=60,
        validate_every=20,
        picture_every=30,
        tensorboard=True,
        on_progress=lambda progress: shown.append((progress.step, progress.left_s, progress.share)),
    )
    losses = experiment.curve(tmp_path)
    assert losses[60] < 0.85 * losses[1]
    assert (report.stopped, report.step, report.epoch, report.clips) == ("finished", 60, 60, 840)
    assert report.audio_s == pytest.approx(840 * 0.32)
    assert [step for step, _, _ in shown] == [*range(1, 60), 60]
    assert shown[-1][1:] == (0.0, 1.0)
    best = min(experiment.log(tmp_path, "validation"), key=lambda record: record["loss"])
    assert report.best == (best["step"], best["loss"])
    for folder in (tmp_path / "model", tmp_path / "best", report.last_state / "model"):
        assert ssamba.load_checkpoint(folder).config.kind == "classifier"
    (line,) = [record for record in experiment.log(tmp_path) if record["step"] == 30]
    assert line["steps"] == 1
    for name in ("accuracy", "learning_rate", "grad_norm", "clips_per_s", "audio_h_per_s", "peak_memory_bytes"):
        assert line[name] >= 0, name
    assert 0 <= line["data_wait_share"] <= 1
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "step-00000020-weights.png",  # of the first validation
        "step-00000030-weights.png",
        "step-00000060-weights.png",
    ]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert (tmp_path / "skipped.csv").read_text().splitlines() == ["key,reason", "broken.wav,not audio"]
    assert json.loads((tmp_path / "report.json").read_text())["step"] == 60


def test_accumulated_batches_equal_one_big_batch(experiment, tmp_path):
    schedule = ScheduleSettings(kind="constant", warmup_steps=0)
    for name, batch, accumulate in (("big", 4, 1), ("parts", 1, 4)):
        experiment.run(
            experiment.DemoTask(batch=batch),
            tmp_path / name,
            epochs=2,
            steps=None,
            accumulate=accumulate,
            schedule=schedule,
        )
    big, parts = (experiment.log(tmp_path / name) for name in ("big", "parts"))
    assert len(big) == len(parts) == 8  # four steps an epoch, the last of two clips
    for one, other in zip(big, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert (one["accuracy"], one["epoch"]) == (pytest.approx(other["accuracy"]), other["epoch"])


def test_a_step_is_torchs_own(experiment, tmp_path):
    task = experiment.DemoTask(batch=14)
    reference = experiment.DemoTask(batch=14)
    optimizer = OptimizerSettings(clip_norm=0.5, decay_groups=False)
    schedule = ScheduleSettings(kind="constant", warmup_steps=0)
    experiment.run(task, tmp_path, steps=3, optimizer=optimizer, schedule=schedule, ema_decay=None)
    model = reference.model.train()
    adam = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(3):
        (batch,) = reference.batches(step, 0, 0, 1)
        context = experiment.StepContext(step, step, 0, torch.device("cpu"))
        loss = reference.step_loss(model, batch, context).loss
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adam.step()
    for (name, ours), theirs in zip(task.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=name)


def test_the_released_model_is_the_average(experiment, tmp_path):
    task = experiment.DemoTask()
    report = experiment.run(task, tmp_path, steps=6, ema_decay=0.5)
    state = experiment.last_state(tmp_path)
    averaged = state["averages"]["ema"]["tensors"]["linear.weight"]
    released = ssamba.load_checkpoint(report.model).model.state_dict()["linear.weight"]
    assert torch.equal(released, averaged)
    assert torch.equal(state["model"]["linear.weight"], task.model.linear.weight)
    assert not torch.equal(released, task.model.linear.weight)
    task = experiment.DemoTask(batch=14)
    report = experiment.run(task, tmp_path / "mean", steps=None, epochs=3, average_epochs=(1, 9))
    mean = experiment.last_state(tmp_path / "mean")["averages"]["mean"]
    assert mean["updates"] == 3
    assert torch.equal(
        ssamba.load_checkpoint(report.model).model.state_dict()["linear.weight"], mean["tensors"]["linear.weight"]
    )


def test_steps_that_are_not_finite_are_skipped_counted_and_listed(experiment, tmp_path):
    task = experiment.DemoTask(poisoned=(3,))
    report = experiment.run(task, tmp_path)
    assert report.bad_steps == 1
    assert task.seen == [2, 3, 5, 6, 7, 8]  # step number 4 changed nothing
    (record,) = experiment.log(tmp_path, "bad_step")
    assert record["step"] == 4
    assert record["loss"] is None
    assert len(record["keys"]) == 2
    assert all(torch.isfinite(p).all() for p in task.model.parameters())


def test_a_step_with_only_a_bad_gradient_is_skipped_too(experiment, tmp_path):
    task = experiment.DemoTask()
    plain = task.step_loss

    def step_loss(model, batch, context):
        outcome = plain(model, batch, context)
        zero = (task.model.linear.weight * 0).sum()
        return StepOutcome(outcome.loss + zero.sqrt(), outcome.weight, keys=outcome.keys)

    task.step_loss = step_loss
    with pytest.raises(TrainingDivergedError, match="all 3 steps had") as caught:
        experiment.run(task, tmp_path, bad_steps_limit=2)
    assert "gradient norm nan" in str(caught.value)
    assert "clip-" in str(caught.value)


def test_too_many_bad_steps_stop_the_run_and_the_weights_before_them_are_saved(experiment, tmp_path):
    healthy = experiment.DemoTask()
    experiment.run(healthy, tmp_path / "healthy", steps=8)
    good = experiment.last_state(tmp_path / "healthy")
    task = experiment.DemoTask(poisoned=tuple(range(8, 99)))
    with pytest.raises(TrainingDivergedError, match=r"4 steps in a row .*saved in .*step-00000012"):
        experiment.run(
            task, tmp_path / "diverged", steps=30, bad_steps_limit=3, schedule=ScheduleSettings(kind="constant")
        )
    task = experiment.DemoTask(poisoned=tuple(range(8, 99)))
    with pytest.raises(TrainingDivergedError):
        experiment.run(task, tmp_path / "diverged8", steps=8 + 30, bad_steps_limit=3, checkpoint_every_steps=8)
    steps = sorted(path.name for path in (tmp_path / "diverged8" / "checkpoints").iterdir())
    assert steps == ["step-00000008", "step-00000012"]
    before, after = (
        torch.load(tmp_path / "diverged8" / "checkpoints" / name / "state.pt", weights_only=True) for name in steps
    )
    assert experiment.same(before["model"], after["model"])
    assert after["bad_steps"] == 4
    assert good["model"].keys() == after["model"].keys()


def test_a_short_run_without_a_good_step_is_an_error_also_when_it_is_repeated(experiment, tmp_path):
    for _ in range(2):
        with pytest.raises(TrainingDivergedError, match=r"all 3 steps had .*Check the clips"):
            experiment.run(experiment.DemoTask(poisoned=tuple(range(9))), tmp_path, steps=3)
    assert not (tmp_path / "model").exists()


def test_a_run_whose_weights_overflow_is_an_error(experiment, tmp_path):
    optimizer, schedule = OptimizerSettings(learning_rate=1e30, weight_decay=10.0), ScheduleSettings(warmup_steps=0)
    for _ in range(2):
        with pytest.raises(TrainingDivergedError, match=r"steps.* had .*lower optimizer.learning_rate"):
            experiment.run(experiment.DemoTask(), tmp_path, steps=5, optimizer=optimizer, schedule=schedule)


def test_an_empty_batch_does_not_change_the_weights(experiment, tmp_path):
    task = experiment.DemoTask()
    plain = task.step_loss
    task.step_loss = lambda model, batch, context: plain(model, [] if context.step == 2 else batch, context)
    report = experiment.run(task, tmp_path, steps=4)
    assert (report.bad_steps, task.seen) == (0, [1, 2, 4])


@pytest.mark.parametrize("kind", ["steps", "epochs", "minutes"])
def test_a_run_ends_after_its_steps_epochs_or_minutes(experiment, tmp_path, kind):
    length = {"steps": {"steps": 3}, "epochs": {"steps": None, "epochs": 2}, "minutes": {"max_minutes": 0.01}}[kind]
    report = experiment.run(experiment.DemoTask(), tmp_path, **{"steps": None, **length})
    if kind == "minutes":
        assert report.elapsed_s >= 0.6
        assert experiment.log(tmp_path)[-1]["learning_rate"] < 0.003
    else:
        assert report.step == {"steps": 3, "epochs": 8}[kind]


def test_bfloat16_trains(experiment, tmp_path):
    task = experiment.DemoTask(batch=14)
    experiment.run(task, tmp_path, steps=20, precision="bf16")
    losses = experiment.curve(tmp_path)
    assert losses[20] < losses[1]
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("has_units", [False, True])
def test_automatic_precision_is_bf16_where_the_processor_computes_it_natively(
    experiment, tmp_path, monkeypatch, has_units
):
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: has_units)
    experiment.run(experiment.DemoTask(), tmp_path, steps=2, precision="auto")
    start = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert (start["event"], start["precision"]) == ("start", "bf16" if has_units else "fp32")


def test_the_model_is_compiled_when_asked(experiment, tmp_path, monkeypatch):
    calls = []

    def fake_compile(model):
        calls.append(model)
        return model

    monkeypatch.setattr(torch, "compile", fake_compile)
    task = experiment.DemoTask()
    experiment.run(task, tmp_path, steps=2, compile=True)
    assert calls == [task.model]


def test_a_plateau_needs_validations(experiment, tmp_path):
    with pytest.raises(ConfigError, match=r"set run\.validate_every"):
        experiment.run(experiment.DemoTask(), tmp_path, schedule=ScheduleSettings(kind="plateau"))
    report = experiment.run(
        experiment.DemoTask(),
        tmp_path,
        validate_every="epoch",
        schedule=ScheduleSettings(kind="plateau", warmup_steps=0, plateau_patience=0, plateau_threshold=0.9),
        optimizer=OptimizerSettings(learning_rate=1e-3),
    )
    assert [record["step"] for record in experiment.log(tmp_path, "validation")] == [4, 8]
    assert report.step == 8
    assert {record["learning_rate"] for record in experiment.log(tmp_path)} == {1e-3}
    assert experiment.last_state(tmp_path)["schedule"]["level"] == 0.5


def test_a_task_that_breaks_its_interface_is_refused(experiment, tmp_path):
    task = experiment.DemoTask()
    task.best_metric = ("f1", "max")
    with pytest.raises(TrainingError, match="best_metric is 'f1', but its validation gave loss, accuracy"):
        experiment.run(task, tmp_path / "metric")
    task = experiment.DemoTask()
    task.batches_in_epoch = lambda epoch: 5
    task.batches = lambda epoch, start, rank, world: iter([[0, 1]])
    with pytest.raises(TrainingError, match="ended after 1 batches in process 0, but the task said 5"):
        experiment.run(task, tmp_path / "short")
    task = experiment.DemoTask()
    task.state_dict = lambda: {"path": {"deep": [Path("x")]}}
    with pytest.raises(TrainingError, match=r"task.state_dict\(\)\['path'\]\['deep'\]\[0\] is a .*Path"):
        experiment.run(task, tmp_path / "state")


def test_a_second_interrupt_ends_at_once(experiment, tmp_path):
    task = experiment.DemoTask()
    plain = task.step_loss

    def step_loss(model, batch, context):
        if context.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return plain(model, batch, context)

    task.step_loss = step_loss
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(task, tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler


def test_memory_stays_constant(experiment, tmp_path):
    objects, resident = {}, {}

    def count(progress):
        if progress.step in (50, 150):
            gc.collect()
            objects[progress.step] = len(gc.get_objects())
            pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
            resident[progress.step] = pages * os.sysconf("SC_PAGE_SIZE") if pages else 0

    experiment.run(experiment.DemoTask(), tmp_path, steps=150, log_every=10, validate_every=25, on_progress=count)
    assert objects[150] - objects[50] < 200
    assert resident[150] - resident[50] < 4e6


def test_curves_go_to_weights_and_biases_when_asked(experiment, tmp_path, monkeypatch):
    import sys
    import types

    sent = []
    session = types.SimpleNamespace(id="abc", log=lambda values, step: sent.append((step, values)), finish=lambda: None)
    started = {}
    client = types.ModuleType("wandb")
    client.init = lambda **arguments: started.update(arguments) or session
    monkeypatch.setitem(sys.modules, "wandb", client)
    experiment.run(experiment.DemoTask(), tmp_path / "on", steps=2, wandb="birds")
    assert (started["project"], started["id"]) == ("birds", None)
    assert [step for step, _ in sent] == [1, 2, 2]
    assert "train/loss" in sent[0][1]
    assert experiment.last_state(tmp_path / "on")["wandb_id"] == "abc"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r'pip install "ssamba\[wandb\]'):
        experiment.run(experiment.DemoTask(), tmp_path / "off", steps=2, wandb="birds")


def test_train_takes_the_settings_it_documents(experiment, tmp_path):
    report = train(
        experiment.DemoTask(),
        OptimizerSettings(),
        ScheduleSettings(),
        RunSettings(steps=1),
        str(tmp_path),
        device="cpu",
    )
    assert report.model == tmp_path / "model"
