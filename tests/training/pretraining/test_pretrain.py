"""Pretraining end to end on the demo's recordings: recipes, objectives, broken files, processes, resuming, plots."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.checkpoint import load_checkpoint
from ssamba.errors import ConfigError, DataError, ModelMismatchError
from ssamba.model.pretraining import PretrainingModel
from ssamba.training.pretraining.data import open_corpora
from ssamba.training.pretraining.extensions import ObjectiveStep
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.pretraining.run import pretrain
from ssamba.training.pretraining.targets import RunningScale, gather_views
from ssamba.training.pretraining.task import PretrainingTask
from ssamba.training.task import StepContext

ROOT = Path(__file__).parents[3]
RECIPES = sorted(
    [*(ROOT / "src" / "ssamba" / "recipes" / "pretrain").glob("*.toml"), *(ROOT / "docs" / "model-card").glob("*.toml")]
)
SMALL = {
    "model": {"encoder": {"embed_dim": 24, "depth": 2}},
    "data": {"crop_s": 1.0, "batch_s": 4.0, "workers": 0, "valid_share": 0.3},
    "run": {"steps": 4, "log_every": 1, "validate_every": 2, "ema_decay": 0.9},
    "schedule": {"warmup_steps": 2},
}
OURS = {
    "views": {"count": 2, "longest_s": 0.8},
    "objectives": {
        "clip": 1.0,
        "statistics": 1.0,
        "profile": 1.0,
        "texture": 1.0,
        "units": 1.0,
        "unit_count": 8,
        "teacher": 1.0,
        "clip_dim": 8,
    },
    "augmentation": {"gain_db": 6.0, "shift_bins": 2, "formants": 0.2, "pitch": 0.5, "speed": 0.2},
}
OFFICIAL = {
    "model": {"variant": "official", "encoder": {"embed_dim": 24, "depth": 2}},
    "objectives": {"passes": 2, "encode": "all", "normalize_targets": False},
    "masking": {"style": "official"},
}


def recipe(*changes):
    values = json.loads(json.dumps(SMALL))
    for change in changes:
        for section, fields in change.items():
            values[section] = {**values.get(section, {}), **fields}
    return PretrainRecipe.parse(values, "test")


@pytest.fixture
def recordings(tmp_path, clips):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for path in clips:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_file_is_a_recipe(path):
    PretrainRecipe.read(path)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("count", [250, 300, 400])
def test_the_official_recipe_holds_the_settings_of_every_released_model(size, count):
    settings = PretrainRecipe.read("official", [f"model.size={size}", f"masking.count={count}"])
    assert settings.best == "accuracy"
    assert settings.data.crop == "start"
    assert settings.model.size == size
    assert settings.mask_ratio == count / 512
    assert settings.objectives.passes == 2
    assert settings.optimizer.clip_norm is None
    assert settings.run.ema_decay is None


@pytest.mark.parametrize(
    "change", [{}, OURS, OFFICIAL, {"data": {"short_clips": "join"}}], ids=["default", "ours", "official", "join"]
)
def test_a_folder_becomes_a_model(recordings, tmp_path, change):
    report = pretrain([recordings], tmp_path / "run", recipe=recipe(change))
    assert report.stopped == "finished"
    assert report.step == 4
    assert report.skipped == 0
    for count in (250, 300, 400):
        assert {f"discriminative@{count}", f"generative@{count}", f"accuracy@{count}"} <= report.validation.keys()
    assert isinstance(load_checkpoint(tmp_path / "run" / "model").model, PretrainingModel)
    embedding = ssamba.load_model(tmp_path / "run" / "model").embed(next(recordings.iterdir()))
    assert embedding.clip.shape == (24,)


def test_broken_files_are_skipped_and_listed(recordings, tmp_path):
    for i in range(4):
        (recordings / f"text{i}.wav").write_text("not audio")
    whole = next(recordings.glob("*.flac")).read_bytes()
    (recordings / "cut.flac").write_bytes(whole[: len(whole) // 2])
    report = pretrain(
        [recordings], tmp_path / "run", recipe=recipe({"data": {"cache_gb": 0.0}, "run": {"steps": None, "epochs": 2}})
    )
    assert report.stopped == "finished"
    listed = (tmp_path / "run" / "skipped.csv").read_text()
    for name in ("text0.wav", "text3.wav", "cut.flac"):
        assert listed.count(name) >= 1, listed


def test_a_folder_smaller_than_a_batch_trains_and_too_short_clips_are_listed(recordings, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(recordings.iterdir())[:3]:
        shutil.copy(path, few)
    soundfile.write(few / "short.wav", np.full(300, 0.1), 16_000)  # 19 ms: no frame
    changes = {
        "data": {"batch_s": 640.0, "valid_share": 0.0},
        "objectives": {"statistics": 1.0},
        "run": {"steps": 2, "picture_every": 1},
    }
    report = pretrain([few], tmp_path / "run", recipe=recipe(OURS, changes))
    assert report.step == 2
    assert report.clips == 6
    assert "short.wav" in (tmp_path / "run" / "skipped.csv").read_text()
    assert "shorter than one frame" in (tmp_path / "run" / "skipped.csv").read_text()


def test_one_of_ten_recordings_is_held_out_however_small_the_share(recordings):
    for path in sorted(recordings.iterdir())[10:]:
        path.unlink()
    for share, held in ((0.0001, 1), (0.0, 0)):
        corpora = open_corpora(recordings, recipe({"data": {"valid_share": share}}))
        assert [len(corpora.training[0]), sum(map(len, corpora.held_out))] == [10 - held, held]
        assert not corpora.notes()
    next(recordings.iterdir()).unlink()
    (note,) = open_corpora(recordings, recipe({"data": {"valid_share": 0.0001}})).notes()
    assert "no recording is held out" in note


def test_recordings_that_are_all_too_short_or_too_few_are_refused(tmp_path):
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", np.ones(300), 16_000)
    with pytest.raises(DataError, match="at least one frame of 25 ms: 0 of 2, expected at least 1"):
        open_corpora(tmp_path, recipe())
    soundfile.write(tmp_path / "0.wav", np.ones(3000), 16_000)
    with pytest.raises(DataError, match=r"1 of 2, expected at least 2 \(objectives.clip"):
        open_corpora(tmp_path, recipe(OURS))


def test_broken_held_out_clips_are_listed(recordings, tmp_path):
    whole = next(recordings.glob("*.flac")).read_bytes()
    for i in range(40):
        (recordings / f"cut{i}.flac").write_bytes(whole[: len(whole) // 2])
    settings = recipe(
        {"data": {"cache_gb": 0.0, "valid_share": 0.5}, "run": {"steps": None, "epochs": 2, "validate_every": 1}}
    )
    pretrain([recordings], tmp_path / "run", recipe=settings)
    listed = (tmp_path / "run" / "skipped.csv").read_text()
    assert all(f"cut{i}.flac" in listed for i in range(40))


def test_values_that_are_not_finite_do_not_update_a_running_scale():
    scale = RunningScale(3)
    scale.standardize(torch.randn(8, 3), training=True)
    before = {name: torch.as_tensor(value).clone() for name, value in scale.state_dict().items()}
    scale.standardize(torch.full((2, 3), torch.inf), training=True)
    scale.standardize(torch.zeros(0, 3), training=True)
    for name, value in scale.state_dict().items():
        assert torch.equal(torch.as_tensor(value), before[name])


def test_wrong_recipes_are_refused_by_name(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[optimizer]\nlearning_rat = 1e-3\n[model]\nsize = "huge"\n')
    with pytest.raises(ConfigError, match=r"learning_rate.*") as error:
        PretrainRecipe.read(path)
    assert "huge" in str(error.value)
    path.write_text("[objectives]\nclip = 1.0\n")
    with pytest.raises(ConfigError, match=r"views.count = 2"):
        PretrainRecipe.read(path)
    with pytest.raises(ConfigError, match="does not exist"):
        PretrainRecipe.read(tmp_path / "none.toml")
    path.write_text("[objectives\n")
    with pytest.raises(ConfigError, match="TOML"):
        PretrainRecipe.read(path)


def test_masking_is_given_by_ratio_or_by_count():
    assert PretrainRecipe().mask_ratio == 400 / 512
    assert PretrainRecipe.read("official").masking.count == 400
    assert PretrainRecipe.read("official", ["masking.ratio=0.5"]).mask_ratio == 0.5
    laptop = PretrainRecipe.read("laptop", ["masking.count=40"])  # crops of 3.2 s: 80 patches of 4 frames
    assert laptop.mask_ratio == 0.5
    assert laptop.task_settings()["masking"] == {"ratio": 0.5, "style": None}
    with pytest.raises(ConfigError, match="exclude each other"):
        PretrainRecipe.read("official", ["masking.ratio=0.5", "masking.count=250"])
    with pytest.raises(ConfigError, match=r"a crop of 10\.24 s has 512 patches"):
        PretrainRecipe.read("official", ["masking.count=512"])


def test_a_run_saved_with_the_old_spelling_of_keys_is_resumed(recordings, tmp_path):
    out, settings = tmp_path / "run", (OURS, OFFICIAL, {"objectives": {**OURS["objectives"], "passes": 1}})
    pretrain([recordings], out, recipe=recipe(*settings))
    spellings = {"optimizer": "optimiser", "normalize_targets": "normalise_targets", "centers": "centres"}

    def old(value):
        return {spellings.get(k, k): old(v) for k, v in value.items()} if isinstance(value, dict) else value

    for folder in (out / "checkpoints").glob("step-*"):
        state = old(torch.load(folder / "state.pt", weights_only=True))
        assert {"optimiser", "task"} <= state.keys()
        assert "centres" in state["task"]["units"]
        torch.save(state, folder / "state.pt")
        meta = old(json.loads((folder / "meta.json").read_text()))
        meta["files"]["state.pt"] = (folder / "state.pt").stat().st_size
        (folder / "meta.json").write_text(json.dumps(meta))
    report = pretrain([recordings], out, recipe=recipe(*settings, {"run": {"steps": 5}}))
    assert (report.resumed_from, report.step) == (4, 5)


def losses_of(settings, recordings, training=True):
    corpora = open_corpora([recordings], settings)
    task = PretrainingTask(settings, corpora)
    batch = next(iter(corpora.batches(0, 0, 0, 1)))
    inputs = task.inputs(batch, torch.device("cpu"), training=training)
    return task, batch, inputs


def test_one_pass_gives_what_two_passes_give_with_the_same_masks(recordings):
    task, _, inputs = losses_of(recipe({"objectives": {"encode": "all"}}), recordings)
    with torch.no_grad():
        _, one = task.losses(task.model, inputs, training=True)
    two = PretrainingTask(recipe({"objectives": {"encode": "all", "passes": 2}}), task.corpora)
    two.model.load_state_dict(task.model.state_dict())
    two.predict = lambda model, inputs, stream, ratio=None: task.predict(model, inputs, "mask", ratio)
    with torch.no_grad():
        _, other = two.losses(two.model, inputs, training=True)
    for name in ("discriminative", "generative"):
        torch.testing.assert_close(one[name], other[name])


def test_a_clips_views_do_not_depend_on_its_batch(recordings):
    task, batch, inputs = losses_of(recipe(OURS), recordings)
    count = len(batch)
    row = count - 1
    alone = type(batch)(
        batch.waves[row:, : int(batch.samples[row])],
        batch.samples[row:],
        batch.seeds[row:],
        batch.keys[row:],
        batch.pieces[row:],
        batch.labels[row:],
    )
    single = task.inputs(alone, torch.device("cpu"), training=True)
    for view in range(2):
        length = int(inputs.lengths[view * count + row])
        assert length == int(single.lengths[view])
        torch.testing.assert_close(
            single.features[view, :length], inputs.features[view * count + row, :length], atol=1e-4, rtol=1e-4
        )


def units_of(task):
    return next(objective for objective in task.objectives if objective.name == "units")


def test_the_unit_of_a_patch_is_that_of_its_column_before_augmentation(recordings):
    changes = (
        {"model": {"encoder": {"embed_dim": 24, "depth": 2, "patch_size": [64, 4], "patch_stride": [64, 4]}}},
        OURS,
    )
    task, _, inputs = losses_of(recipe(*changes), recordings)
    assert not torch.equal(inputs.clean, inputs.features)
    out = task.predict(task.model, inputs, "mask")
    objective = units_of(task)
    step = ObjectiveStep(inputs, out, out, True, task.model.encoder.config, task.recipe.front_end)
    units = objective.targets(step).view(len(inputs.features), -1, 2)
    assert torch.equal(units[..., 0], units[..., 1])  # time-major: two rows to a column
    assert torch.equal(units[..., 0], objective.units.units(inputs.clean, inputs.frames)[:, : units.shape[1]])
    again = PretrainingTask(task.recipe, task.corpora)
    assert torch.equal(units_of(again).units.centers, objective.units.centers)


def test_a_clean_profile_does_not_depend_on_the_augmentation(recordings):
    changes = (OURS, {"objectives": {"profile": 1.0}, "augmentation": {"gain_db": 20.0, "floor_share": 1.0}})
    plain, clean = ({"objectives": {"profile_target": target}} for target in ("heard", "clean"))
    task, _, inputs = losses_of(recipe(*changes, plain), recordings)
    other = PretrainingTask(recipe(*changes, clean), task.corpora)
    other.model.load_state_dict(task.model.state_dict())
    louder = inputs._replace(clean=inputs.clean + 0.1)
    with torch.no_grad():
        (_, heard), (_, first), (_, second) = (
            one.losses(one.model, given, training=False)
            for one, given in ((task, inputs), (other, inputs), (other, louder))
        )
    assert not torch.allclose(heard["profile"], first["profile"])
    torch.testing.assert_close(first["profile"], second["profile"])


def test_a_run_starts_from_the_model_of_another_run(recordings, tmp_path):
    pretrain([recordings], tmp_path / "first", recipe=recipe())
    first = load_checkpoint(tmp_path / "first").model.state_dict()
    settings = recipe(OURS, {"model": {"start": str(tmp_path / "first")}})
    task = PretrainingTask(settings, open_corpora([recordings], settings))
    for name, value in task.model.encoder.state_dict().items():
        assert torch.equal(value, first[f"encoder.{name}"])


def test_a_run_records_its_start_and_is_resumed_from_the_same_alone(recordings, tmp_path):
    for name, seed in (("first", 1), ("second", 2)):
        pretrain([recordings], tmp_path / name, recipe=recipe({"run": {"steps": 1, "seed": seed}}))
    first, second = (load_checkpoint(tmp_path / name).identity for name in ("first", "second"))

    def start(name, steps):
        settings = recipe({"model": {"start": name}, "run": {"steps": steps}})
        return pretrain([recordings], tmp_path / "run", recipe=settings)

    start(str(tmp_path / "first"), 1)
    assert load_checkpoint(tmp_path / "run").config.base == first
    for other, text in ((str(tmp_path / "second"), str(second)), (None, "random weights")):
        with pytest.raises(ModelMismatchError) as error:
            start(other, 2)
        assert f"started from {first}, not from {text}: start from the same model" in str(error.value)
    assert start(str(tmp_path / "first" / "model"), 2).step == 2  # the same weights by another path


def test_an_empty_batch_has_no_loss(recordings):
    task, batch, _ = losses_of(recipe(OURS), recordings)
    empty = type(batch)(batch.waves[:0], batch.samples[:0], batch.seeds[:0], (), (), (), (("a", "broken"),))
    outcome = task.step_loss(task.model, empty, StepContext(0, 0, 0, torch.device("cpu"), "fp32"))
    assert outcome.loss is None
    assert outcome.skipped == (("a", "broken"),)


def test_the_partner_of_a_view_is_the_other_view_of_its_clip():
    views = gather_views(torch.arange(6.0)[:, None])
    assert views.partner.tolist() == [3, 4, 5, 0, 1, 2]
    assert views.rank_share == 1


def test_a_run_is_not_resumed_with_other_recordings(recordings, tmp_path, clips):
    pretrain([recordings], tmp_path / "run", recipe=recipe())
    next(recordings.glob("*.flac")).unlink()
    with pytest.raises(DataError, match=r"not those of the saved run \(they were recordings: .* --overwrite"):
        pretrain([recordings], tmp_path / "run", recipe=recipe({"run": {"steps": 6}}))


def write_toml(path, settings):
    def value(x):
        return (
            '"none"'
            if x is None
            else json.dumps(x)
            if not isinstance(x, dict)
            else "{" + ", ".join(f"{k} = {value(v)}" for k, v in x.items()) + "}"
        )

    lines = []
    for section, fields in settings.model_dump(mode="json", exclude_unset=True).items():
        if isinstance(fields, dict):
            lines += [f"[{section}]", *(f"{name} = {value(field)}" for name, field in fields.items())]
    path.write_text("\n".join(lines))
    return path


def command(recordings, recipe_file, out, processes=None):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    return [
        sys.executable,
        *torchrun,
        "-m",
        "ssamba",
        "pretrain",
        str(recordings),
        "-r",
        str(recipe_file),
        "-o",
        str(out),
    ]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def logged(out, event="train", key="loss"):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if line.get("event") == event]


def test_a_killed_run_resumed_equals_an_uninterrupted_one_bit_for_bit(recordings, tmp_path):
    settings = recipe(OURS, {"run": {"steps": 12, "checkpoint_every_steps": 2, "validate_every": 100}})
    file = write_toml(tmp_path / "r.toml", settings)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(recordings, file, whole), env=ENVIRONMENT, check=True, capture_output=True)
    process = subprocess.Popen(
        command(recordings, file, killed), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not list((killed / "checkpoints").glob("step-*4")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model").exists()
    subprocess.run(command(recordings, file, killed), env=ENVIRONMENT, check=True, capture_output=True)
    first, second = (load_checkpoint(out / "model").model.state_dict() for out in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert logged(whole) == logged(killed)


def test_two_processes_give_the_curve_of_one(recordings, tmp_path):
    settings = recipe(OURS, {"run": {"steps": 5, "validate_every": 100}})
    file = write_toml(tmp_path / "r.toml", settings)
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run(command(recordings, file, one), env=ENVIRONMENT, check=True, capture_output=True)
    done = subprocess.run(
        command(recordings, file, two, processes=2), env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for key in (
        "loss",
        "clip",
        "statistics",
        "profile",
        "texture",
        "units_seen",
        "units_hidden",
        "discriminative",
        "grad_norm",
    ):
        torch.testing.assert_close(
            torch.tensor(logged(two, key=key)), torch.tensor(logged(one, key=key)), rtol=2e-3, atol=2e-4
        )


def test_a_reconstruction_is_plotted_and_written_as_sound(recordings, tmp_path):
    pretrain([recordings], tmp_path / "run", recipe=recipe({"run": {"steps": 2}}))
    arguments = [
        str(next(recordings.glob("*.flac"))),
        "-c",
        str(tmp_path / "run" / "model"),
        "-o",
        str(tmp_path / "p.png"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ssamba", "reconstruct", *arguments, "--audio", str(tmp_path / "p.wav")],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    from ssamba.audio.decode import decode

    assert abs(decode(tmp_path / "p.wav")).max() > 0.5
