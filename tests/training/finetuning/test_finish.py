"""After the test: the refit on all clips, and what a finished run keeps."""

import json

import pytest
import torch

from ssamba.checkpoint import load_checkpoint, save_checkpoint
from ssamba.errors import DataError, OtherSettingsError
from ssamba.model import create_encoder
from ssamba.training.finetuning import finish
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.run import finetune

RECIPE = FinetuneRecipe.parse(
    {
        "clips": {"batch_size": 4, "workers": 0, "frames": 96},
        "run": {"epochs": 2, "validate_every": "epoch", "ema_decay": None, "checkpoint_every_steps": None},
        "schedule": {"warmup_steps": 2},
    },
    "test",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums of several threads differ in their last bits from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(0)
    return save_checkpoint(tmp_path_factory.mktemp("encoder"), create_encoder("tiny", "ssamba2", embed_dim=24, depth=2))


@pytest.fixture(scope="module")
def finished(classes, start, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return finetune(classes, out, start, recipe=RECIPE), out


def weights(folder):
    return load_checkpoint(folder).model.state_dict()


def test_the_refit_takes_as_many_steps_a_clip_from_all_clips(finished):
    report, out = finished
    (fold,) = report.folds
    assert report.refit.clips == sum(fold.clips.values()) == 24
    assert report.refit.trained_on == fold.clips["train"]
    assert report.refit.steps == round(fold.step * 24 / fold.clips["train"])
    own = json.loads((out / "refit" / "report.json").read_text())
    assert own["step"] == report.refit.steps
    assert own["clips"] == pytest.approx(24 * fold.epoch, abs=12)  # batches of more clips are filled better
    tested, final = weights(fold.model), weights(out)
    assert not all(torch.equal(tested[name], final[name]) for name in tested)
    assert "scores, temperature and thresholds are those of the same training on" in load_checkpoint(out).config.origin
    assert "refitted on all 24 labeled clips" in str(report)
    head = load_checkpoint(out).config.classifier
    assert head.temperature == report.calibration.temperature


def test_a_finished_run_keeps_two_models_and_no_state(finished):
    out = finished[1]
    kept = sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("*.safetensors"))
    assert kept == ["model", "rounds/all/chosen"]
    assert not list(out.rglob("*.pt"))
    assert json.loads((out / "refit" / "report.json").read_text())["model"] is None


def test_a_finished_run_is_recognized_by_settings_length_and_recordings(finished, classes, start):
    report, out = finished
    again = finetune(classes, out, start, recipe=RECIPE)
    assert again.was_finished
    assert (again.folds, again.scores(), again.intervals) == (report.folds, report.scores(), report.intervals)
    assert (again.calibration, again.refit, again.notes) == (report.calibration, report.refit, report.notes)
    with pytest.raises(OtherSettingsError, match=r"run\.seed was 0, is 1"):
        finetune(classes, out, start, recipe=RECIPE, seed=1)
    with pytest.raises(DataError, match="not those of the saved run"):
        finetune([classes / "choir", classes / "drum"], out, start, recipe=RECIPE)


def test_a_refit_that_was_killed_goes_on_with_the_tested_model_in_place(
    finished, classes, start, tmp_path, monkeypatch
):
    seen = []

    def kill(progress):
        if progress.unit == "%" and "refit" in progress.step:
            seen.append(progress.steps)
            if len(seen) == 3:
                raise KeyboardInterrupt

    real = finish.remove_states
    removed = []
    monkeypatch.setattr(finish, "remove_states", lambda out: removed.append(real(out)))
    often = {"run.checkpoint_every_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        finetune(classes, tmp_path / "run", start, recipe=RECIPE, set=often, progress=kill)
    assert not removed
    tested = weights(tmp_path / "run" / "rounds" / "all" / "chosen")
    assert all(torch.equal(value, tested[name]) for name, value in weights(tmp_path / "run").items())
    report = finetune(classes, tmp_path / "run", start, recipe=RECIPE, progress=kill)
    assert seen[3] > 1  # it went on
    assert not report.was_finished
    whole, cut = weights(finished[1]), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_without_a_refit_users_get_the_tested_model(classes, start, tmp_path):
    report = finetune(classes, tmp_path / "run", start, recipe=RECIPE, refit=False, epochs=1)
    assert report.refit is None
    tested = weights(tmp_path / "run" / "rounds" / "all" / "chosen")
    assert all(torch.equal(value, tested[name]) for name, value in weights(tmp_path / "run").items())
    longer = finetune(classes, tmp_path / "run", start, recipe=RECIPE, refit=True, epochs=1)
    assert longer.refit is not None  # the tests are repeated for it
    assert not longer.was_finished
