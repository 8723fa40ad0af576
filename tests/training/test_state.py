"""Saving and resuming: runs that are killed or stopped, full disks, damaged states, other recipes, old spellings."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ssamba.config import RENAMED_KEYS
from ssamba.errors import CheckpointError, ConfigError, TrainingError
from ssamba.training import OptimizerSettings, ScheduleSettings, loop, state
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.run_io import StepProgress, TrainingProgress
from ssamba.training.settings import saved_settings

RUN = {
    "steps": None,
    "epochs": 3,
    "accumulate": 2,
    "validate_every": 3,
    "checkpoint_every_steps": 2,
    "average_epochs": [2, 3],
    "ema_decay": 0.9,
}
STEPS = 6
SPELLED = {"checkpoint_every_steps": 2, "schedule": {"kind": "constant", "warmup_steps": 2}}
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")


def reference(experiment, out: Path):
    """An uninterrupted run that uses every random generator."""
    experiment.run(experiment.DemoTask(global_noise=True, drop_path=0.5), out, **RUN)
    return experiment.last_state(out)


def reference_of_new_process(launch, out: Path):
    """The same in a process of its own, as the runs that are compared with it."""
    ran = launch(out, json.dumps(RUN), "--global-noise")
    assert ran.returncode == 0, ran.stderr


def spelled_as_before(value):
    """The same nested dicts with the old spelling of every renamed key."""
    old = {new: old for old, new in RENAMED_KEYS.items()}
    if isinstance(value, dict):
        return {old.get(key, key): spelled_as_before(inner) for key, inner in value.items()}
    return value


def assert_equal_runs(experiment, out: Path, other: Path):
    assert experiment.same(experiment.last_state(out), experiment.last_state(other))
    assert experiment.curve(out) == experiment.curve(other)
    for name in ("model", "best"):
        assert (out / name / "model.safetensors").read_bytes() == (other / name / "model.safetensors").read_bytes()
    validations = [[(r["step"], r["loss"]) for r in experiment.log(o, "validation")] for o in (out, other)]
    assert validations[0] == validations[1]


@POSIX
def test_killed_at_any_step_and_resumed_equals_uninterrupted(experiment, tmp_path, launch):
    reference_of_new_process(launch, tmp_path / "whole")
    out = tmp_path / "killed"
    at = random.SystemRandom().randrange(STEPS)
    # The second process dies with half a state on the disk, which must not count.
    lives = [["--kill-at", str(at)], ["--kill-in-save", "1"], []]
    ran = launch(out, json.dumps(RUN), "--global-noise", "--lives", json.dumps(lives))
    assert ran.returncode == 0, ran.stderr
    killed, killed_in_save, report, finished = map(json.loads, ran.stdout.splitlines())
    assert [life["exit"] for life in (killed, killed_in_save, finished)] == [-9, -9, 0], ran.stderr
    # States are saved every 2 steps, and at step 3 with the first validation, which is the best so far.
    assert report["resumed_from"] == {0: None, 1: None, 3: 3}.get(at, at // 2 * 2)
    assert not list((out / "checkpoints").glob(".*"))
    assert_equal_runs(experiment, out, tmp_path / "whole")


def test_stopped_at_every_step_and_resumed_equals_uninterrupted(experiment, tmp_path):
    reference(experiment, tmp_path / "whole")
    for step in range(STEPS):
        out = tmp_path / f"stopped-{step}"
        task = experiment.DemoTask(global_noise=True, drop_path=0.5)
        task.fail_at = step
        with pytest.raises(RuntimeError, match="on purpose"):
            experiment.run(task, out, **RUN)
        torch.manual_seed(step)
        experiment.run(experiment.DemoTask(global_noise=True, drop_path=0.5), out, **RUN)
        assert_equal_runs(experiment, out, tmp_path / "whole")


@POSIX
def test_sigterm_saves_and_exits_0(experiment, tmp_path, launch):
    reference_of_new_process(launch, tmp_path / "whole")
    out = tmp_path / "stopped"
    stopped = launch(out, json.dumps(RUN), "--global-noise", "--terminate-at", 2)
    assert stopped.returncode == 0, stopped.stderr
    report = json.loads(stopped.stdout)
    assert (report["stopped"], report["step"], report["model"]) == ("SIGTERM", 3, None)
    assert report["last_state"] == str(out / "checkpoints" / "step-00000003")
    report = json.loads(launch(out, json.dumps(RUN), "--global-noise").stdout)
    assert (report["resumed_from"], report["stopped"]) == (3, "finished")
    assert_equal_runs(experiment, out, tmp_path / "whole")


class Clock:
    """Stands for the module `time`; a training step takes 7 s and a validation 45 s."""

    def __init__(self):
        self.now_s = 0.0

    def monotonic(self):
        return self.now_s


@pytest.mark.parametrize("minutes", [1.0, 3.0])
def test_a_killed_run_loses_at_most_the_interval(experiment, tmp_path, monkeypatch, minutes):
    clock, task, lost_s, saved_s = Clock(), experiment.DemoTask(), [], [0.0]
    monkeypatch.setattr(loop, "time", clock)
    step_loss, validate, save = task.step_loss, task.validate, state.StateFolder.save

    def noted_save(*arguments, **options):
        saved_s.append(clock.now_s)
        return save(*arguments, **options)

    def advance(seconds):
        clock.now_s += seconds
        lost_s.append((clock.now_s, clock.now_s - saved_s[-1]))

    def slow_step(*arguments):
        advance(7)
        return step_loss(*arguments)

    def slow_validation(model):
        advance(45)
        return {**validate(model), "loss": clock.now_s}  # the first is the best

    monkeypatch.setattr(task, "step_loss", slow_step)
    monkeypatch.setattr(task, "validate", slow_validation)
    monkeypatch.setattr(state.StateFolder, "save", noted_save)
    experiment.run(task, tmp_path, steps=32, validate_every=15, checkpoint_every_minutes=minutes)
    assert max(lost for _, lost in lost_s) <= 60 * minutes
    assert saved_s[1] <= 10
    assert len(saved_s) <= 2 * clock.now_s / (60 * minutes) + 5


def test_saving_takes_at_most_a_twentieth_of_the_time(experiment, tmp_path, monkeypatch):
    clock, task, saved_s = Clock(), experiment.DemoTask(), []
    monkeypatch.setattr(loop, "time", clock)
    save, step_loss = state.StateFolder.save, task.step_loss

    def slow_save(*arguments, **options):
        saved_s.append(clock.now_s)
        clock.now_s += 10
        return save(*arguments, **options)

    def slow_step(*arguments):
        clock.now_s += 7
        return step_loss(*arguments)

    monkeypatch.setattr(state.StateFolder, "save", slow_save)
    monkeypatch.setattr(task, "step_loss", slow_step)
    experiment.run(task, tmp_path, steps=40, checkpoint_every_minutes=1.0)
    gaps = [
        later - former for former, later in pairwise(saved_s[:-2])
    ]  # the last two: around the validation at the end
    assert gaps
    assert all(180 <= gap <= 200 for gap in gaps), gaps


def test_a_run_without_a_state_starts_anew_and_keeps_the_earlier_log(experiment, tmp_path, caplog):
    out = tmp_path / "run"
    for number, fail_at in enumerate((2, 3, None)):
        task = experiment.DemoTask()
        task.fail_at = fail_at
        caplog.clear()
        with nullcontext() if fail_at is None else pytest.raises(RuntimeError, match="on purpose"):
            experiment.run(task, out, steps=4)
        assert ("no saved state to resume from" in caplog.text) == (number > 0)
        assert f"log-{number}.jsonl" in caplog.text or number == 0
    lines = [len((out / f"log-{number}.jsonl").read_text().splitlines()) for number in (1, 2)]
    assert lines == [3, 4], "a start and the steps"
    assert [record["step"] for record in experiment.log(out)] == [1, 2, 3, 4]
    experiment.run(experiment.DemoTask(), out, steps=4, overwrite=True)
    assert not (out / "log-1.jsonl").exists()
    assert (tmp_path / "run.old" / "log-1.jsonl").exists()


def test_settings_that_are_new_since_a_state_count_as_their_defaults(experiment, tmp_path):
    experiment.run(experiment.DemoTask(), tmp_path, steps=2, recipe={"masked": 400, "objectives": {"old": 1.0}})
    path = tmp_path / "checkpoints" / "step-00000002" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["recipe"]["optimizer"]["layer_decay"], meta["recipe"]["schedule"]
    path.write_text(json.dumps(meta))
    now = {"masked": 400, "objectives": {"old": 1.0, "new": 0.5}}
    options = {"task_defaults": {"masked": 300, "objectives": {"old": 0.0, "new": 0.5}}, "schedule": ScheduleSettings()}
    report = experiment.run(experiment.DemoTask(), tmp_path, steps=4, recipe=now, **options)
    assert report.resumed_from == 2
    meta = json.loads((tmp_path / "checkpoints" / "step-00000004" / "meta.json").read_text())
    del meta["recipe"]["task"]["objectives"]["new"]
    with pytest.raises(ConfigError, match=r"objectives.new was 0.5, is 0.7\. "):
        state.check_settings(
            meta["recipe"],
            {**meta["recipe"], "task": {**now, "objectives": {"old": 1.0, "new": 0.7}}},
            tmp_path,
            options["task_defaults"],
        )


@pytest.mark.parametrize("recipe", [PretrainRecipe, FinetuneRecipe])
def test_a_run_from_before_any_setting_existed_has_the_defaults(recipe, tmp_path):
    settings = recipe.parse({}, "test")
    now = saved_settings(settings.optimizer, settings.schedule, settings.run, settings.task_settings())
    state.check_settings({**now, "task": {}}, now, tmp_path, recipe.task_defaults())


def test_the_first_picture_comes_with_the_first_validation(experiment, tmp_path):
    experiment.run(experiment.DemoTask(), tmp_path, steps=6, validate_every=2, picture_every=5)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["step-00000002-weights.png", "step-00000005-weights.png"]
    experiment.run(experiment.DemoTask(), tmp_path, steps=8, validate_every=2, picture_every=5)
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_no_rate_is_shown_before_there_is_one():
    assert "clips/s" not in StepProgress.of(TrainingProgress(step=3), "pretraining").detail
    assert "0.5 clips/s" in StepProgress.of(TrainingProgress(step=3, clips_per_s=0.5), "pretraining").detail


def test_the_last_and_the_best_states_are_kept(experiment, tmp_path):
    task = experiment.DemoTask()
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.5])
    task.validate = lambda model: {"loss": next(losses)}
    report = experiment.run(task, tmp_path, steps=10, validate_every=2, checkpoint_every_steps=1, keep_last=2)
    assert report.best == (4, 1.0)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000009", "step-00000010"]
    best = (tmp_path / "checkpoints" / "step-00000004" / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == best


def test_a_run_continues_when_the_disk_is_full(experiment, tmp_path, monkeypatch, caplog):
    write, calls = state.write_state, []

    def full_in_the_middle(path, content):
        calls.append(path)
        write(path, content)
        if len(calls) in (2, 3):
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "write_state", full_in_the_middle)
    folders = {}

    def watch(progress):
        folders[progress.step] = sorted(path.name for path in (tmp_path / "checkpoints").glob("*"))

    report = experiment.run(experiment.DemoTask(), tmp_path, steps=8, checkpoint_every_steps=2, on_progress=watch)
    assert (report.failed_saves, report.stopped) == (2, "finished")
    assert folders[2] == folders[4] == folders[6] == ["step-00000002"]
    assert folders[8] == ["step-00000002", "step-00000008"]
    assert [record["step"] for record in experiment.log(tmp_path, "save_failed")] == [4, 6]
    assert caplog.text.count("No space left") == 2


def test_a_run_that_cannot_save_its_last_state_is_an_error(experiment, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "write_state", full)
    with pytest.raises(TrainingError, match=r"model is in .*, but .* step 8 could not be saved; .*--overwrite"):
        experiment.run(experiment.DemoTask(), tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_failed_write_raises_oserror_not_torchs_error():
    with pytest.raises(OSError, match="No space left"):
        state.write_state(Path("/dev/full"), {"x": torch.zeros(100_000)})


def test_there_is_a_complete_state_at_every_moment_of_replacing_one(experiment, tmp_path, monkeypatch):
    experiment.run(experiment.DemoTask(), tmp_path, steps=2, keep_last=1)
    folder = state.StateFolder(tmp_path / "checkpoints", 1)
    (saved,) = folder.complete()
    rename, seen = Path.rename, []

    def watched(self, target):
        seen.append(len(folder.complete()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    folder.save(2, saved.load(), {"again": True}, lambda model: None)
    assert seen == [1, 1]
    assert [again.meta["again"] for again in folder.complete()] == [True]
    # Killed between the two renames, and after them.
    folder.path(2).rename(folder.path(2).with_suffix(".replaced"))
    folder.clean()
    assert [again.step for again in folder.complete()] == [2]
    shutil.copytree(folder.path(2).with_suffix(".replaced"), folder.path(2))
    assert folder.complete()[-1].folder == folder.path(2)
    folder.clean()
    assert len(list(folder.folder.iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "scrambled", "no_meta"])
def test_after_a_damaged_state_the_one_before_it_is_resumed(experiment, tmp_path, damage):
    experiment.run(experiment.DemoTask(), tmp_path, steps=4, checkpoint_every_steps=2)
    newest = tmp_path / "checkpoints" / "step-00000004"
    if damage == "no_meta":
        (newest / "meta.json").unlink()
    else:
        data = (newest / "state.pt").read_bytes()
        junk = data[: len(data) // 2] if damage == "truncated" else b"\0" * len(data)
        (newest / "state.pt").write_bytes(junk)
    report = experiment.run(experiment.DemoTask(), tmp_path, steps=6, checkpoint_every_steps=2)
    assert (report.resumed_from, report.step) == (2, 6)
    assert [record["step"] for record in experiment.log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert report.last_state.name == "step-00000006"


def test_other_settings_are_refused_by_name(experiment, tmp_path):
    experiment.run(experiment.DemoTask(), tmp_path, steps=2, recipe={"masked": 400})
    with pytest.raises(ConfigError) as caught:
        experiment.run(
            experiment.DemoTask(),
            tmp_path,
            steps=4,
            seed=5,
            recipe={"masked": 300},
            optimizer=OptimizerSettings(learning_rate=1.0),
            schedule=ScheduleSettings(kind="wsd"),
        )
    for part in ("optimizer.learning_rate was 0.003, is 1.0", "run.seed was 0, is 5", "masked was 400, is 300"):
        assert part in str(caught.value)
    assert "schedule.kind was 'cosine', is 'wsd'" in str(caught.value)
    assert "steps" not in str(caught.value).replace("warmup_steps", "").replace(str(tmp_path), "")
    report = experiment.run(experiment.DemoTask(), tmp_path, steps=4, keep_last=5, recipe={"masked": 400})
    assert report.resumed_from == 2


def test_a_state_with_old_spellings_of_keys_resumes(experiment, tmp_path):
    recipe = {"masked": 400, "objectives": {"normalize_targets": True}}
    for name in ("whole", "old"):
        length = {"steps": 6} if name == "whole" else {"steps": 4}
        experiment.run(experiment.DemoTask(), tmp_path / name, **length, **SPELLED, recipe=recipe)
    folder = tmp_path / "old" / "checkpoints" / "step-00000004"
    content = torch.load(folder / "state.pt", weights_only=True)
    torch.save(spelled_as_before(content), folder / "state.pt")
    meta = spelled_as_before(json.loads((folder / "meta.json").read_text()))
    assert {"optimiser", "normalise_targets"} <= {*meta["recipe"], *meta["recipe"]["task"]["objectives"]}
    assert "optimizer" not in {*meta["recipe"], *spelled_as_before(content)}
    meta["files"]["state.pt"] = (folder / "state.pt").stat().st_size
    (folder / "meta.json").write_text(json.dumps(meta))
    report = experiment.run(experiment.DemoTask(), tmp_path / "old", steps=6, **SPELLED, recipe=recipe)
    assert report.resumed_from == 4
    assert experiment.same(experiment.last_state(tmp_path / "old"), experiment.last_state(tmp_path / "whole"))
    assert experiment.curve(tmp_path / "old") == experiment.curve(tmp_path / "whole")


def test_old_spellings_inside_a_tasks_state_are_read(tmp_path):
    folder = state.StateFolder(tmp_path, 1)
    centers = torch.arange(6.0)
    folder.save(1, {"task": {"units": {"centres": centers}}}, {}, lambda model: None)
    (saved,) = folder.complete()
    assert torch.equal(saved.load()["task"]["units"]["centers"], centers)


def test_a_model_without_a_state_and_states_that_are_incomplete_are_refused(experiment, tmp_path):
    experiment.run(experiment.DemoTask(), tmp_path, steps=2)
    again = experiment.run(experiment.DemoTask(), tmp_path, steps=2)
    assert (again.resumed_from, again.step) == (2, 2)
    assert "already finished" in str(again)
    (tmp_path / "checkpoints" / "step-00000002" / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"contains a trained model but no saved state.*--overwrite"):
        experiment.run(experiment.DemoTask(), tmp_path, steps=2)
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(CheckpointError, match=r"no saved state in .* is complete.*--overwrite"):
        experiment.run(experiment.DemoTask(), tmp_path, steps=2)


def test_overwrite_starts_anew_and_moves_the_earlier_run_aside(experiment, tmp_path):
    out = tmp_path / "run"
    experiment.run(experiment.DemoTask(), out, steps=2)
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    (out / "notes.txt").write_text("mine")
    for number, name in enumerate(("run.old", "run.old-2"), start=3):
        report = experiment.run(experiment.DemoTask(), out, steps=number, overwrite=True, recipe={"masked": number})
        assert (report.resumed_from, report.step, report.moved_to) == (None, number, tmp_path / name)
    assert sorted(path.relative_to(tmp_path / "run.old") for path in (tmp_path / "run.old").rglob("*")) == before
    assert (out / "notes.txt").exists()
    assert experiment.run(experiment.DemoTask(), tmp_path / "run.old", steps=4).resumed_from == 2


def test_returning_false_stops_after_the_step_and_the_state_is_saved(experiment, tmp_path):
    report = experiment.run(experiment.DemoTask(), tmp_path, on_progress=lambda state: state.step < 3)
    assert (report.stopped, report.step, report.model) == ("stopped", 3, None)
    assert "repeat the command to resume" in str(report)
    assert experiment.run(experiment.DemoTask(), tmp_path).resumed_from == 3
