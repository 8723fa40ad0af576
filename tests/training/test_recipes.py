"""Recipes are found by name or path, and `--set` changes single settings, checked against the recipe's fields."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssamba.cli import app
from ssamba.errors import ConfigError
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.recipes import find_recipe, shipped_recipes


def test_recipes_are_found_by_name_or_path(tmp_path):
    assert find_recipe("pretrain", "laptop").name == "laptop.toml"
    (tmp_path / "mine.toml").write_text("[run]\nsteps = 3\n")
    assert find_recipe("pretrain", tmp_path / "mine.toml") == tmp_path / "mine.toml"
    with pytest.raises(
        ConfigError, match="desktop does not exist: expected one of adapt, laptop, many-nodes, official, one-gpu"
    ):
        find_recipe("pretrain", "desktop")
    with pytest.raises(ConfigError, match="expected one of adapt, laptop"):
        find_recipe("pretrain", "esc50")  # a fine-tuning recipe


def test_recipes_have_the_names_of_their_data_sets():
    assert find_recipe("finetune", "audioset-20k") == find_recipe("finetune", "audioset20k")
    assert find_recipe("finetune", "official-speech_commands_v1").stem == "official-speech-commands-v1"


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_every_shipped_recipe_has_a_command_to_run_it(command):
    for name, path in shipped_recipes(command).items():
        text = path.read_text(encoding="utf-8")
        assert f"--recipe {name}" in text, path


@pytest.mark.parametrize(
    ("change", "section", "field", "value"),
    [
        ("model.size=small", "model", "size", "small"),
        ('model.size="small"', "model", "size", "small"),
        ("masking.count = 250", "masking", "count", 250),
        ("schedule.warmup_every=none", "schedule", "warmup_every", None),
        ("optimizer.betas=[0.8, 0.9]", "optimizer", "betas", (0.8, 0.9)),
        ("optimiser.eps=1e-6", "optimizer", "eps", 1e-6),
        ("objectives.normalize_targets=true", "objectives", "normalize_targets", True),
        ("model.encoder.depth=4", "model", "encoder", {"drop_path": 0.1, "depth": 4}),
        ("data.backgrounds.share=0.5", "data", "backgrounds", {"share": 0.5}),
    ],
)
def test_one_setting_is_changed_and_all_others_are_kept(change, section, field, value):
    before, after = PretrainRecipe.read("official"), PretrainRecipe.read("official", [change])
    found = getattr(getattr(after, section), field)
    if field == "backgrounds":
        found = {"share": found.share}
    assert found == value
    old, new = before.model_dump(), after.model_dump()
    assert old[section].pop(field) != new[section].pop(field)
    assert old == new


def test_the_defaults_of_a_recipe_are_kept_beside_a_change():
    changed = FinetuneRecipe.read(None, ["run.epochs=3"])
    assert changed == FinetuneRecipe().with_changes(run=FinetuneRecipe().run.with_changes(epochs=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("masking.cont=250", "unknown key 'masking.cont'; did you mean 'count'"),
        ("maskin.count=250", "unknown key 'maskin'; did you mean 'masking'"),
        ("model.encoder.dept=2", "did you mean 'depth'"),
        ("masking.count=many", "masking.count: Input should be a valid integer"),
        ("best.of=loss", "best is a value, not a section"),
        ("masking.count", "expected KEY=VALUE"),
        ("=250", "expected KEY=VALUE"),
        ("masking..count=250", "expected KEY=VALUE"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_by_name(change, message):
    with pytest.raises(ConfigError) as error:
        PretrainRecipe.read("official", [change])
    assert message in str(error.value)
    assert change.partition("=")[0] in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        *("optimizer.learning_rate=inf", "run.max_minutes=inf", "data.crop_s=0.001"),
        *("validation_counts=[]", "validation_counts=[0]", "validation_counts=[300, 600]"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(change):
    with pytest.raises(ConfigError, match=r"finite number|shorter than one frame of 25 ms|validation_counts"):
        PretrainRecipe.read(changes=[change])


def test_the_length_of_a_run_is_replaced_as_a_whole():
    run = PretrainRecipe.from_arguments("laptop", None, epochs=3).run
    assert (run.steps, run.epochs, run.max_minutes, run.validate_every) == (None, 3, None, "epoch")
    run = FinetuneRecipe.from_arguments("cpu", {}, epochs=3, minutes=0.5).run
    assert (run.steps, run.epochs, run.max_minutes) == (None, 3, 0.5)
    assert PretrainRecipe.from_arguments(None, None) == PretrainRecipe()


def test_changes_are_assignments_or_a_mapping():
    one = PretrainRecipe.read("official", ["masking.ratio=0.5", "schedule.warmup_every=none"])
    assert one == PretrainRecipe.read("official", {"masking.ratio": 0.5, "schedule.warmup_every": None})
    assert one == PretrainRecipe.read(
        PretrainRecipe.read("official", "masking.ratio=0.5"), {"schedule.warmup_every": None}
    )
    with pytest.raises(ConfigError, match=r"run\.seed is set twice, to 1 and to 2"):
        PretrainRecipe.read(None, ["run.seed=1", "run.seed=2"])
    with pytest.raises(ConfigError, match=r"expected a PretrainRecipe, the name of a recipe .*got FinetuneRecipe"):
        PretrainRecipe.read(FinetuneRecipe())


def test_arguments_change_the_settings_they_stand_for():
    settings = PretrainRecipe.from_arguments(
        "laptop", {"data.crop_s": 2.0}, seed=3, batch_size=8, minutes=1, size=("model.size", "small")
    )
    assert (settings.run.seed, settings.data.batch_s, settings.model.size) == (3, 16.0, "small")
    assert (settings.run.max_minutes, settings.run.epochs) == (1, None)
    assert FinetuneRecipe.from_arguments(None, None, batch_size=8).clips.batch_size == 8
    with pytest.raises(ConfigError, match=r"seed=3 and run\.seed=4 contradict each other"):
        PretrainRecipe.from_arguments(None, {"run.seed": 4}, seed=3)
    with pytest.raises(ConfigError, match="batch_size is a number of clips, at least 1; got 0"):
        PretrainRecipe.from_arguments(None, None, batch_size=0)


def test_both_commands_pass_their_options_on(tmp_path, monkeypatch):
    seen = []

    def stop(*arguments, **options):
        seen.append((arguments, options))
        raise ConfigError("stop here")

    monkeypatch.setattr("ssamba.training.pretraining.run.pretrain", stop)
    monkeypatch.setattr("ssamba.training.finetuning.run.finetune", stop)
    shared = ["--set", "run.epochs=2", "--set", "run.seed=1", "--minutes", "2", "--epochs", "3", "--seed", "1"]
    shared += ["--batch-size", "4", "--device", "cpu", "--overwrite"]
    wanted = {"set": ["run.epochs=2", "run.seed=1"], "minutes": 2, "epochs": 3, "seed": 1, "batch_size": 4}
    wanted |= {
        "device": "cpu",
        "overwrite": True,
        "encoding": None,
        "take_over": False,
        "front_end": None,
        "tensorboard": False,
    }
    CliRunner().invoke(app, ["pretrain", "a", "b", "-o", "run", "-c", "x", "-r", "official", "--size", "base", *shared])
    CliRunner().invoke(app, ["finetune", "a", "b", "-o", "run", "-c", "x", "-r", "esc50", "--frozen", *shared])
    (one, first), (two, second) = seen
    assert one == two == (["a", "b"], Path("run"), "x")
    first.pop("progress"), second.pop("progress")
    assert first == {**wanted, "recipe": "official", "size": "base", "evaluate": None}
    not_given = dict.fromkeys(("background", "labels_from", "refit"))
    assert second == {**wanted, **not_given, "recipe": "esc50", "scratch": False, "frozen": True}
