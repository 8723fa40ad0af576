"""Labeled data before training: classes, splits, skipped clips, held-out clips."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile

from ssamba.checkpoint import save_checkpoint
from ssamba.config import FrontEndConfig
from ssamba.data.manifest import Clip, Manifest
from ssamba.errors import DataError
from ssamba.model import create_encoder
from ssamba.splits import make_folds
from ssamba.training.finetuning import job
from ssamba.training.finetuning.data import open_labeled, split_by_class
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.report import FinetuneReport, FoldResult
from ssamba.training.finetuning.run import finetune

SMALL = {
    "clips": {"batch_size": 4, "workers": 0, "frames": 96},
    "run": {"epochs": 1, "log_every": 1, "validate_every": "epoch", "ema_decay": None, "keep_last": 1},
    "finish": {"refit": False},
}


def recipe(**changes):
    values = json.loads(json.dumps(SMALL))
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields}
    return FinetuneRecipe.parse(values, "test")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    encoder = create_encoder("tiny", "ssamba2", embed_dim=24, depth=2)
    return save_checkpoint(tmp_path_factory.mktemp("encoder"), encoder)


def listed(folder):
    return [Clip(path, labels=(path.parent.name,)) for path in sorted(folder.rglob("*.wav"))]


def opened(source, **changes):
    return open_labeled(source, recipe(**changes), FrontEndConfig(), 0.96)


def test_a_clip_without_a_label_is_skipped_unless_labels_are_multi(classes):
    clips = listed(classes)
    clips[3] = dataclasses.replace(clips[3], labels=())
    for cache_gb in (4.0, 0.0):
        data = opened(Manifest(clips), clips={"cache_gb": cache_gb})
        assert not data.multi
        assert len(data.corpus) == len(data.files) == 23
        assert str(clips[3].path.resolve()) not in data.files
        (entry,) = data.corpus.skipped
        assert "labels.kind = 'multi'" in entry.reason
    data = opened(Manifest(clips), labels={"kind": "multi"})
    assert data.multi
    assert len(data.corpus) == 24
    # Clips without a label are balanced as a class of their own.
    parts = split_by_class(data, np.arange(24))
    assert [len(part) for part in parts] == [7, 8, 8, 1]
    clips[3] = dataclasses.replace(clips[3], labels=("choir", "drum"))
    assert opened(Manifest(clips)).multi
    with pytest.raises(DataError, match=r"none or several labels \(.*3.wav\)"):
        opened(Manifest(clips), loss={"kind": "ce"})
    with pytest.raises(DataError, match=r"several labels: .*3.wav"):
        opened(Manifest(clips), labels={"kind": "single"})


def test_a_clip_shorter_than_a_frame_is_skipped_and_listed(classes, start, tmp_path):
    folder = shutil.copytree(classes, tmp_path / "classes")
    soundfile.write(folder / "drum" / "click.wav", 0.1 * np.ones(160, np.float32), 16_000)
    data = opened(folder)
    assert len(data.corpus) == 24
    assert [(entry.path, entry.reason) for entry in data.corpus.skipped] == [
        ("drum/click.wav", "shorter than one frame of 25 ms")
    ]
    finetune(folder, tmp_path / "run", start, recipe=recipe())
    assert "drum/click.wav" in (tmp_path / "run" / "rounds" / "all" / "skipped.csv").read_text()
    for path in folder.rglob("*.wav"):
        soundfile.write(path, 0.1 * np.ones(160, np.float32), 16_000)
    with pytest.raises(DataError, match=r"no clip can be used.*shorter than one frame"):
        opened(folder)


def test_folders_of_splits_keep_them(classes, tmp_path):
    for path in classes.rglob("*.wav"):
        side = tmp_path / "data" / ("test" if int(path.stem) < 2 else "train") / path.parent.name / "deeper"
        side.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, side)
    shutil.copy(path, tmp_path / "data" / "train" / "stray.wav")
    data = opened(tmp_path / "data")
    assert data.classes == ("choir", "drum", "tabla")
    assert sorted(data.splits) == ["test"] * 6 + ["train"] * 18
    assert all(f"/{split}/" in file for split, file in zip(data.splits, data.files, strict=True))
    assert [entry.path.endswith("stray.wav") for entry in data.corpus.skipped] == [True]


def test_copies_stay_on_one_side_of_a_split_or_are_noted(classes, start, tmp_path):
    folder = shutil.copytree(classes, tmp_path / "classes")
    for k in range(4):
        shutil.copy(folder / "drum" / f"{k}.wav", folder / "drum" / f"copy{k}.wav")
    for cache_gb in (4.0, 0.0):  # decoded, and as files
        data = opened(folder, clips={"cache_gb": cache_gb})
        names = dict(zip((file.rsplit("/", 1)[1] for file in data.files if "drum" in file), data.copies, strict=False))
        of = {
            file.rsplit("/", 1)[1]: name for file, name in zip(data.files, data.copies, strict=True) if "drum" in file
        }
        assert names
        assert all(of[f"{k}.wav"] == of[f"copy{k}.wav"] is not None for k in range(4))
        assert of["5.wav"] is None
        rounds, _ = make_folds(
            data.splits, data.groups, data.files, data.clip_targets(),
            valid_share=0.3, test_share=0.3, validate=True, copies=data.copies,
        )  # fmt: skip
        for side in (rounds[0].train, rounds[0].valid, rounds[0].test):
            held = {data.files[i].rsplit("/", 1)[1] for i in side if "drum" in data.files[i]}
            assert all((f"{k}.wav" in held) == (f"copy{k}.wav" in held) for k in range(4))
    clips = [dataclasses.replace(c, split="test" if "copy" in c.path.name else "train") for c in listed(folder)]
    report = finetune(Manifest(clips), tmp_path / "run", start, recipe=recipe(choice={"state": "last"}))
    assert any("4 test clips are copies of training" in note and "copy0.wav is 0.wav" in note for note in report.notes)


def test_silent_clips_are_not_copies(classes, tmp_path):
    folder = shutil.copytree(classes, tmp_path / "classes")
    for name in ("drum", "choir"):
        soundfile.write(folder / name / "silence.wav", np.zeros(8000, np.float32), 16_000)
    assert not any(opened(folder).copies)


def test_patience_does_not_end_a_run_without_validation_clips(classes, start, tmp_path):
    changes = {"run": {"epochs": 5, "patience": 2}, "clips": {"valid_share": 0.0}}
    report = finetune(classes, tmp_path / "run", start, recipe=recipe(**changes))
    assert report.folds[0].epoch == 5


def test_a_run_whose_labels_changed_is_not_resumed(classes, start, tmp_path, monkeypatch):
    clips = [dataclasses.replace(c, split="test" if c.path.stem in "01" else "train") for c in listed(classes)]
    finetune(Manifest(clips), tmp_path / "run", start, recipe=recipe())
    for i in (0, 3):  # of a test clip, and of one that trains
        other = [*clips]
        other[i] = dataclasses.replace(clips[i], labels=("tabla",))
        with pytest.raises(DataError, match="are not those of the saved run"):
            finetune(Manifest(other), tmp_path / "run", start, recipe=recipe())
    # An unfinished state does not prevent the fit of the classifier.
    fitted = []
    monkeypatch.setattr(job, "fit_initial_head", lambda task, device: fitted.append(task))
    (tmp_path / "killed" / "rounds" / "all" / "checkpoints" / ".unfinished-step-00000001").mkdir(parents=True)
    finetune(Manifest(clips), tmp_path / "killed", start, recipe=recipe(start={"fitted_head": True}))
    assert len(fitted) == 1


def test_means_are_over_the_folds_that_have_a_score(tmp_path):
    def tested(name, scores):
        return FoldResult(name, {}, 1, 1, None, scores, tmp_path)

    rounds = (tested("a", {"mAP": 0.8, "loss": 1.0}), tested("b", {"mAP": float("nan"), "loss": 3.0}))
    report = FinetuneReport("finished", "mAP", ("x", "y"), rounds, (), None)
    assert report.scores()["mAP"] == (0.8, None)
    assert report.scores()["loss"][0] == 2.0
    (note,) = report.partly_scored()
    assert note.startswith("mAP covers 1 of 2 folds")
