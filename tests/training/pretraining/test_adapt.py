"""Adapting a model: original objectives, a frozen start, the best validation, and what labels say about it."""

import json
import shutil

import pytest
import torch
from tests.conftest import invoke
from tests.training.pretraining.test_pretrain import OURS, recipe

from ssamba.checkpoint import load_checkpoint
from ssamba.config import ModelConfig, PretrainingConfig
from ssamba.errors import AudioDecodeError, ConfigError, SuiteError
from ssamba.model import encoder_config
from ssamba.training.pretraining.data import open_corpora
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.pretraining.run import pretrain
from ssamba.training.pretraining.task import PretrainingTask

QUICK = {
    "data.batch_s": 4.0,
    "data.valid_share": 0.3,
    "data.workers": 0,
    "optimizer.frozen_steps": 2,
    "run.steps": 2,
    "run.max_minutes": None,
    "run.validate_every": 1,
    "run.log_every": 1,
    "schedule.warmup_steps": 0,
}


@pytest.fixture(scope="module")
def start(classes, tmp_path_factory):
    """A run with all objectives."""
    run = tmp_path_factory.mktemp("start") / "run"
    pretrain(classes, run, recipe=recipe(OURS, {"run": {"steps": 2, "validate_every": None}}))
    return run


@pytest.fixture(scope="module")
def labeled(classes):
    """Write a table with the classes as labels."""
    rows = [f"{path.parent.name}/{path.name},{path.parent.name},{'test' if path.stem > '4' else 'train'},"
            for path in sorted(classes.glob("*/*.wav"))]  # fmt: skip
    table = classes / "labeled.csv"
    table.write_text("\n".join(["clip,label,split,group", *rows]) + "\n")
    return table


def encoder(run):
    return load_checkpoint(run).model.encoder.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapted_model_is_compared_with_its_start_and_is_the_best_of_the_run(classes, start, labeled, tmp_path):
    out, options = tmp_path / "run", {"recipe": "adapt", "evaluate": labeled}
    report = pretrain(classes, out, start, set=QUICK, **options)
    saved = json.loads((out / "report.json").read_text())
    # Two frozen steps: the encoder is the start's, and so is every score.
    assert same(encoder(out), encoder(start))
    assert "the model has the encoder that it started from" in report.notes[0]
    assert report.comparison.difference == 0
    assert report.comparison.interval == (0, 0)
    assert report.comparison.clips == 9
    assert "no difference that these clips can show" in str(report)
    assert str(report).count("held out, ") == 3  # a line for each count of masked patches
    assert saved["comparison"]["verdict"] == report.comparison.verdict
    recorded = load_checkpoint(out).config.recipe
    assert recorded == load_checkpoint(start).config.recipe
    # The same run goes on, and the encoder learns. The model is that of the best validation.
    report = pretrain(classes, out, start, set={**QUICK, "run.steps": 4}, **options)
    assert report.resumed_from == 2
    assert same(encoder(out), encoder(out / "best"))
    assert same(encoder(out), encoder(start)) == (report.best[0] <= 2)


def test_heads_of_units_start_at_zero_and_targets_standardized(classes, start):
    first = load_checkpoint(start)
    settings = PretrainRecipe.read("adapt", QUICK).with_original_objectives(first.config, QUICK)
    settings = settings.starting_from(str(start), first.config.encoder, first.front_end, QUICK)
    assert settings.objectives.unit_count == 8
    assert settings.views.longest_s == 0.8
    assert settings.data.crop_s == 1.0
    assert settings.data.batch_s == 4.0
    task = PretrainingTask(settings, open_corpora(classes, settings), first)
    state = task.model.state_dict()
    assert not state["hidden_units_head.weight"].any()
    assert state["statistics_head.weight"].any()
    seen = {objective.name: objective.scale.seen for objective in task.objectives if hasattr(objective, "scale")}
    assert seen.keys() == {"statistics", "profile", "texture"}
    assert min(seen.values()) > 0
    plain = PretrainingTask(settings.model_copy(update={"adapt": None}), open_corpora(classes, settings), first)
    assert not plain.model.state_dict()["seen_units_head.bias"].any()


def test_objectives_of_a_model_without_a_recipe_are_those_of_its_heads():
    adapt = PretrainRecipe.read("adapt")
    small = encoder_config("tiny", depth=2)

    def original(given=(), **values):
        config = ModelConfig(kind="pretraining", encoder=small, pretraining=PretrainingConfig(**values))
        return adapt.with_original_objectives(config, given)

    official = original()
    assert official.objectives.encode == "all"
    assert not official.objectives.normalize_targets
    assert official.pretraining() == PretrainingConfig()
    ours = original(encode="visible", decoder_depth=2, clip_dim=16, profile=3, units=7)
    assert ours.pretraining() == PretrainingConfig(encode="visible", decoder_depth=2, clip_dim=16, profile=3, units=7)
    assert ours.views.count == 2
    assert original(["objectives.encode"]).objectives.encode == adapt.objectives.encode
    encoder_only = ModelConfig(kind="encoder", encoder=small)
    assert adapt.with_original_objectives(encoder_only, ()) == adapt


def test_the_weights_that_ship_record_their_objectives():
    start = load_checkpoint("ssamba2-tiny")
    settings = PretrainRecipe.read("adapt", ["masking.count=40"]).with_original_objectives(
        start.config, ["masking.count"]
    )
    assert settings.pretraining() == start.config.pretraining
    assert settings.objectives.profile_target == "clean"
    assert settings.augmentation.shift_bins == 6
    assert settings.masking.count == 40
    recorded, own = settings.recorded()["objectives"], start.config.recipe["objectives"]
    assert recorded == PretrainRecipe().recorded()["objectives"] | own  # objectives that are newer are off


def test_what_cannot_be_adapted_or_evaluated_is_refused_at_once(classes, tmp_path):
    with pytest.raises(ConfigError, match=r"goes on from a model: name it by -c"):
        pretrain(classes, tmp_path / "run", recipe="adapt")
    with pytest.raises(SuiteError, match=r"none.csv: expected a table TASK.csv"):
        pretrain(classes, tmp_path / "run", recipe="adapt", checkpoint="ssamba2-tiny", evaluate=tmp_path / "none.csv")
    done = invoke("pretrain", classes, "-o", tmp_path / "run", "--evaluate", classes / "none.csv")
    assert done.exit_code == 1
    assert "expected a table TASK.csv" in done.stderr
    # Labels of a recording that cannot be read, before the training begins.
    (tmp_path / "gone.csv").write_text("clip,label,split,group\ngone.wav,a,train,\nother.wav,b,test,\n")
    with pytest.raises(SuiteError, match=r"names gone.wav, but neither"):
        pretrain(classes, tmp_path / "run", evaluate=tmp_path / "gone.csv", epochs=1)
    (tmp_path / "gone.wav").write_bytes(b"")
    shutil.copy(next(classes.glob("*/*.wav")), tmp_path / "other.wav")
    with pytest.raises(AudioDecodeError, match=r"gone.wav"):
        pretrain(classes, tmp_path / "run", evaluate=tmp_path / "gone.csv", epochs=1)
    assert not (tmp_path / "run" / "log.jsonl").exists()
