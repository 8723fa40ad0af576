"""Windows of recordings without the classes: lengths, splits, training with them."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from ssamba.audio.decode import decode
from ssamba.checkpoint import load_checkpoint, save_checkpoint
from ssamba.config import FrontEndConfig
from ssamba.errors import ConfigError, DataError
from ssamba.events import Event
from ssamba.library.info import model_facts
from ssamba.model import create_encoder
from ssamba.splits import Fold
from ssamba.training.finetuning.background import open_background
from ssamba.training.finetuning.data import open_labeled
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.run import finetune
from ssamba.training.finetuning.scenes import LEVELS_DB, Scene, event_thresholds, lay, read_scenes
from ssamba.training.finetuning.task import FinetuneTask, Predictions, loss_error

RECIPE = {
    "clips": {"batch_size": 8, "workers": 0, "frames": 96, "balanced": True},
    "run": {"epochs": 2, "validate_every": "epoch", "ema_decay": None, "keep_last": 1},
    "schedule": {"warmup_steps": 2},
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(0)
    return save_checkpoint(tmp_path_factory.mktemp("encoder"), create_encoder("tiny", "ssamba2", embed_dim=24, depth=2))


@pytest.fixture(scope="module")
def nights(tmp_path_factory, clips):
    """Two recordings of 12 s."""
    folder = tmp_path_factory.mktemp("nights")
    for k, path in enumerate(clips[4:6]):
        soundfile.write(folder / f"{k}.wav", np.resize(decode(path), 12 * 16_000), 16_000)
    return folder


def test_windows_have_the_lengths_of_clips_and_no_split_divides_a_stretch(nights, tmp_path):
    seconds, splits = np.array([0.5, 0.7, 3.0]), ["train", "test", "train"]
    corpus = open_background(nights, seconds, 1.0, splits, 16_000)
    assert len(corpus) == 24 / np.mean([0.5, 0.7, 1.0]) // 1
    assert {round(float(one), 3) for one in corpus.seconds} == {0.5, 0.7, 1.0}
    assert {corpus.clip(i).labels for i in range(len(corpus))} == {("background",)}
    assert len(corpus.read(0)) == round(corpus.seconds[0] * 16_000)
    of_stretch = {}
    for i in range(len(corpus)):
        of_stretch.setdefault(corpus.file(i), set()).add(corpus.clip(i).split)
    assert all(len(sides) == 1 for sides in of_stretch.values())
    assert sorted(side for sides in of_stretch.values() for side in sides).count("test") == pytest.approx(
        len(of_stretch) / 3, abs=1
    )
    moved = shutil.copytree(nights, tmp_path / "moved")
    again = open_background([moved], seconds, 1.0, splits, 16_000)
    assert [again.key(i) for i in range(len(again))] == [corpus.key(i) for i in range(len(corpus))]
    with pytest.raises(DataError, match=r"no recording can be used.*shorter than the shortest labeled clip"):
        open_background(nights, np.array([20.0]), 20.0, [None], 16_000)


def test_a_share_of_the_training_is_background_which_is_also_mixed_under_clips(classes, nights, start):
    recipe = FinetuneRecipe.parse(RECIPE, "test")
    data = open_labeled(classes, recipe, FrontEndConfig(), 0.96, background=nights)
    assert data.classes == ("background", "choir", "drum", "tabla")
    everything = np.arange(len(data.corpus))
    fold = Fold(everything, everything[:0])
    base = load_checkpoint(start)
    task = FinetuneTask(recipe, data, fold, base.config.encoder, FrontEndConfig())
    keys = [key for batch in task.batches(0, 0, 0, 1) for (key,) in batch.keys]
    share = sum(key.startswith("background") for key in keys) / len(keys)
    assert share == pytest.approx(0.25, abs=0.02)
    batches = list(task.batches(0, 0, 0, 1))
    rows = [row for b in batches for row in zip(b.keys, b.waves, b.samples, strict=True)]
    own = {data.corpus.key(i): i for i in range(len(data.corpus))}
    plain = [np.array_equal(wave[:count].numpy(), data.corpus.read(own[key])) for (key,), wave, count in rows]
    assert 0.1 < np.mean(plain) < 0.6  # 70 % have a background
    fold = Fold(everything, everything[:0], valid=everything[::9])
    held_out = FinetuneTask(recipe, data, fold, base.config.encoder, FrontEndConfig())
    parts = held_out.held_out(held_out.model, everything[::9])
    assert len(parts) == 2  # labeled clips again, with background under them
    sums = [held_out.metrics(one)["loss"] * len(one.logits) for one in parts]
    loss = sum(sums) / sum(len(one.logits) for one in parts)
    assert held_out.validate(held_out.model)["loss"] == pytest.approx(loss)


def test_there_is_no_mixup_with_a_background(classes, nights, start):
    """A background does not change labels, mixup does, so that one clip in another would be both."""
    recipe = FinetuneRecipe.parse({**RECIPE, "clips": {**RECIPE["clips"], "mixup": {"share": 1.0}}}, "test")
    for background, expected in ((None, True), (nights, False)):
        data = open_labeled(classes, recipe, FrontEndConfig(), 0.96, background=background)
        everything = np.arange(len(data.corpus))
        task = FinetuneTask(
            recipe, data, Fold(everything, everything[:0]), load_checkpoint(start).config.encoder, FrontEndConfig()
        )
        batch = next(iter(task.batches(0, 0, 0, 1)))
        assert any(one is not None for one in batch.mixed) == expected


def test_scenes_hold_one_call_each_and_choose_thresholds_of_events(classes, nights, start):
    recipe = FinetuneRecipe.parse(RECIPE, "test")
    data = open_labeled(classes, recipe, FrontEndConfig(), 0.96, background=nights)
    everything = np.arange(len(data.corpus))
    fold = Fold(everything, everything[:0])
    task = FinetuneTask(recipe, data, fold, load_checkpoint(start).config.encoder, FrontEndConfig())
    labeled, background = everything[~data.is_background(everything)], everything[data.is_background(everything)]
    assert read_scenes(task, task.model, labeled) == []
    scenes = read_scenes(task, task.model, np.concatenate((labeled[:2], background)))
    assert len(scenes) == 2 * len(LEVELS_DB)
    for scene in scenes:
        assert 0 <= scene.event.start_s < scene.event.end_s <= scene.ends_s[-1] + 1e-6
        assert scene.logits.shape == (len(scene.starts_s), len(data.classes))
        assert scene.ends_s[-1] == pytest.approx(2.0)  # as long as the stretch
    # Windows of 1 s: calls of "a" are heard at .8, one of "b" at .3; "a" is also heard in the last window, at .4.
    edges = np.arange(4.0)
    answers = np.full((2, 3, 3), 0.01)
    answers[0, 0, 0], answers[0, 2, 0], answers[1, 0, 1] = 0.8, 0.4, 0.3
    seen = [
        Scene(np.log(p / (1 - p)), edges[:3], edges[1:], np.zeros(3, bool), Event(label, 0.0, 1.0))
        for label, p in zip("ab", answers, strict=True)
    ]
    a, b, nothing = event_thresholds(seen, ["a", "b", "c"], None, 1.0, 0.9, independent=True)
    assert (0.4 < a.threshold <= 0.45, a.precision, a.recall, a.positives) == (True, 1.0, 1.0, 1)
    assert (b.recall, b.positives, nothing.positives) == (1.0, 1, 0)  # "a" alone is wrong: F0.5 is highest
    assert event_thresholds(seen, ["a", "b", "c"], None, 1.0, 0.5, independent=True)[0].threshold == 0.05


def test_a_clip_is_laid_into_a_background_at_its_level():
    background, clip = np.full(100, 0.1, np.float32), np.ones(50, np.float32)
    mixed, start = lay(clip, background, -6.0, 0.5)
    assert (len(mixed), start) == (100, 25)
    assert mixed[25:75] == pytest.approx(0.1 + 0.1 * 10 ** (-6 / 20))
    assert mixed[:25] == pytest.approx(background[:25])
    assert len(lay(clip, background[:20], 0.0, 0.5)[0]) == 50


@pytest.mark.parametrize("binary", [True, False])
def test_the_standard_error_of_the_loss_is_that_of_recordings(binary):
    """Two predictions of a recording are one observation: the error is that of the means of recordings."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(200, 3)).astype(np.float32)
    targets = np.eye(3, dtype=np.float32)[random.integers(3, size=200)]
    alone = Predictions(logits, targets, np.arange(200), ())
    rows = torch.from_numpy(logits), torch.from_numpy(targets)
    if binary:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(*rows, reduction="none").mean(1)
    else:
        losses = torch.nn.functional.cross_entropy(*rows, reduction="none")
    expected = float(losses.std(correction=0)) / np.sqrt(200)
    assert loss_error(alone, binary=binary) == pytest.approx(expected, rel=1e-5)
    twice = Predictions.joined([alone, alone])
    assert loss_error(twice, binary=binary) == pytest.approx(expected, rel=1e-5)


def test_background_becomes_a_class_of_independent_labels(classes, nights, start, tmp_path):
    recipe = FinetuneRecipe.parse(RECIPE, "test")
    report = finetune(classes, tmp_path / "run", start, recipe=recipe, background=nights)
    assert report.classes == ("background", "choir", "drum", "tabla")
    head = load_checkpoint(tmp_path / "run").config.classifier
    assert head is not None
    assert (head.background, head.activation, head.wanted_precision) == ("background", "sigmoid", 0.9)
    assert report.metric == "loss"
    assert report.calibration is not None
    assert head.temperature == report.calibration.temperature
    assert head.thresholds == tuple(round(one.threshold, 4) for one in report.calibration.thresholds)
    written = json.loads((tmp_path / "run" / "results.json").read_text())["calibration"]
    assert written["thresholds"]["drum"]["threshold"] == report.calibration.thresholds[2].threshold
    table = str(report).split("\n\n")[-2].splitlines()
    assert [line.split()[0] for line in table] == ["event", "-----", "choir", "drum", "tabla"]
    assert float(table[3].split()[1]) == pytest.approx(report.calibration.thresholds[2].threshold, abs=5e-4)
    facts = dict(model_facts(tmp_path / "run"))
    assert facts["none of the others"] == "background"
    assert f"drum {head.thresholds[2]:.2f}, tabla" in facts["labels, thresholds for a precision of 0.9"]
    assert facts["training clips"].startswith("0.5")
    counts = report.folds[0].clips
    # The clips of test and validation, and those with a label once more with background under them.
    assert counts["valid"] + counts["test"] < written["answers"] < 2 * (counts["valid"] + counts["test"])


def test_a_folder_named_background_is_one_too_and_seconds_have_none(classes, nights, tmp_path, start):
    recipe = FinetuneRecipe.parse(RECIPE, "test")
    for name, own in (("drum", "drum"), ("tabla", "Background")):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / own).symlink_to(classes / name)
    data = open_labeled(tmp_path / "two", recipe, FrontEndConfig(), 0.96)
    assert data.background == "Background"
    assert data.is_background(np.arange(len(data.corpus))).sum() == 8
    assert open_labeled(tmp_path / "two", recipe, FrontEndConfig(), 0.96, background=nights).classes == data.classes
    seconds = recipe.with_values({"labels.unit": "second", "clips.balanced": False})
    with pytest.raises(ConfigError, match="list these recordings in the manifest, in rows without a label"):
        open_labeled(tmp_path / "two", seconds, FrontEndConfig(), 0.96, background=nights)
