"""Fine-tuning end to end on the demo's recordings and tiny models: splits, losses, resuming, seconds, predictions."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.audio.decode import decode
from ssamba.checkpoint import load_checkpoint, save_checkpoint
from ssamba.cli import app
from ssamba.config import FrontEndConfig
from ssamba.data.manifest import Clip, Manifest, write_manifest
from ssamba.errors import CheckpointError, ConfigError, DataError, ModelMismatchError
from ssamba.model import create_encoder
from ssamba.training.finetuning.data import open_labeled
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.run import FinetuneReport, finetune
from ssamba.training.recipes import find_recipe, shipped_recipes

RECIPES = sorted((Path(__file__).parents[3] / "src" / "ssamba" / "recipes" / "finetune").glob("*.toml"))
SMALL = {
    "clips": {"batch_size": 4, "workers": 0, "frames": 96},
    "run": {"epochs": 2, "log_every": 1, "validate_every": "epoch", "ema_decay": None, "keep_last": 1},
    "schedule": {"warmup_steps": 2},
    "optimizer": {"learning_rate": 1e-3},
    "finish": {"refit": False},
}


def recipe(*changes):
    values = json.loads(json.dumps(SMALL))
    for change in changes:
        for section, fields in change.items():
            values[section] = {**values.get(section, {}), **fields}
    return FinetuneRecipe.parse(values, "test")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Checkpoint of a randomly initialized encoder."""
    torch.manual_seed(0)
    encoder = create_encoder("tiny", "ssamba2", embed_dim=24, depth=2)
    return save_checkpoint(tmp_path_factory.mktemp("encoder"), encoder)


def table(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def listed(folder, split=None, group=None):
    paths = sorted(folder.rglob("*.wav"))
    return [Clip(p, labels=(p.parent.name,), split=split and split(p), group=group and group(p)) for p in paths]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_file_is_a_recipe(path):
    settings = FinetuneRecipe.read(path)
    assert shipped_recipes("finetune")[path.stem] == path
    if path.stem.startswith("official"):
        assert settings.optimizer.name == "adam"
        assert settings.optimizer.betas == (0.95, 0.999)
        assert settings.optimizer.weight_decay == 5e-7
        assert settings.schedule.warmup_every == 50
        assert settings.clips.short_clips == "pad"
        assert find_recipe("finetune", path.stem) == path
        assert path.with_name(path.name.removeprefix("official-")).exists()


def test_official_recipes_hold_the_originals_numbers():
    esc, audioset, urban = (
        FinetuneRecipe.read(f"official-{name}") for name in ("esc50", "audioset20k", "urbansound8k-1min")
    )
    assert (esc.clips.mean, esc.clips.std, esc.clips.frames, esc.clips.batch_size) == (-6.6268077, 5.358466, 512, 48)
    assert (esc.spec_augment.mel_bins, esc.spec_augment.frames, esc.spec_augment.roll_frames) == (24, 96, 10)
    assert audioset.optimizer.head_multiplier == 3
    assert audioset.run.average_epochs == (12, 40)
    assert audioset.clips.mixup.share == 0.5
    assert urban.labels.tokens == "official"
    assert urban.start.patch_stride == 16
    with pytest.raises(ConfigError, match="expected one of audioset20k, cpu, cpu-speech, esc50"):
        FinetuneRecipe.read("esc51")


def test_a_folder_per_class_becomes_a_classifier(classes, start, tmp_path):
    report = finetune(classes, tmp_path / "run", start, recipe=recipe())
    assert report.classes == ("choir", "drum", "tabla")
    assert any("held out for testing" in note for note in report.notes)
    (only,) = report.folds
    assert only.clips["train"] + only.clips["valid"] + only.clips["test"] == 24
    assert min(only.clips.values()) >= 3
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["scores"]["accuracy"]["mean"] == only.scores["accuracy"]
    assert np.sum(results["confusion"]) == only.clips["test"]
    assert (tmp_path / "run" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert set(only.scores) == {"loss", "accuracy", "balanced_accuracy", "macro_f1", "mAUC", "EER"}
    assert set(only.intervals) == set(only.scores) - {"loss"}
    low, high = results["scores"]["accuracy"]["interval"]
    assert low <= only.scores["accuracy"] <= high
    assert results["rounds"][0]["intervals"]["accuracy"] == [low, high]
    rows = table(tmp_path / "run" / "classes.csv")
    assert {row["label"] for row in rows} == set(report.classes)
    assert sum(int(row["clips"]) for row in rows) == only.clips["test"]
    assert set(rows[0]) == {"label", "clips", "precision", "recall", "f1", "average_precision", "auc"}
    model = ssamba.load_model(tmp_path / "run" / "model")
    assert model.classifier is not None
    assert model.classifier.config.labels == report.classes
    assert model.classifier.config.clip_lengths_s is not None
    low_s, median_s, high_s = model.classifier.config.clip_lengths_s  # of clips of 0.5 to 0.9375 s
    assert 0.5 <= low_s < median_s < high_s <= 0.938
    assert ssamba.load_model(tmp_path / "run").identity.weights_digest == model.identity.weights_digest
    # Users get the model that was tested.
    data = open_labeled(classes, recipe(), FrontEndConfig(), 1.0)
    found = {
        path.parent.name + path.name: result[0]
        for path, result in model.predict_stream((path, path) for path in sorted(classes.rglob("*.wav")))
    }
    assert len(found) == len(data.corpus)
    assert all(abs(p.probabilities.sum() - 1) < 1e-5 for p in found.values())


def test_folds_are_cross_validated(classes, start, tmp_path):
    number = lambda path: int(path.stem)  # noqa: E731
    write_manifest(listed(classes, lambda p: f"fold{number(p) % 2 + 1}"), tmp_path / "m.csv")
    report = finetune(tmp_path / "m.csv", tmp_path / "run", start, recipe=recipe())
    assert [part.name for part in report.folds] == ["fold1", "fold2"]
    assert [part.clips["test"] for part in report.folds] == [12, 12]
    mean, spread = report.scores()["accuracy"]
    scores = [part.scores["accuracy"] for part in report.folds]
    assert mean == pytest.approx(np.mean(scores))
    assert spread == pytest.approx(np.std(scores, ddof=1))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert np.sum(results["confusion"]) == 24
    whole, *folds = (
        table(folder / "classes.csv")
        for folder in (tmp_path / "run", *(tmp_path / "run" / "rounds" / name for name in ("fold1", "fold2")))
    )
    assert [sum(int(row["clips"]) for row in rows) for rows in (whole, *folds)] == [24, 12, 12]
    assert (tmp_path / "run" / "rounds" / "fold1" / "confusion.png").exists()
    low, high = results["scores"]["macro_f1"]["interval"]
    assert low <= report.scores()["macro_f1"][0] <= high


def test_training_never_reads_test_clips(classes, start, tmp_path):
    """The same model comes out when the test recordings are noise and their labels wrong."""
    split = lambda path: {6: "valid", 7: "test"}.get(int(path.stem), "train")  # noqa: E731
    reports = []
    for name in ("as it is", "changed"):
        folder = tmp_path / name
        shutil.copytree(classes, folder)
        clips = listed(folder, split)
        if name == "changed":
            for k, clip in enumerate(clips):
                if clip.split == "test":
                    noise = np.random.default_rng(0).normal(size=soundfile.info(clip.path).frames) * 0.1
                    soundfile.write(clip.path, noise, 16_000)
                    clips[k] = Clip(clip.path, labels=("drum" if clip.labels == ("choir",) else "choir",), split="test")
        write_manifest(clips, folder / "m.csv")
        changes = recipe({"run": {"epochs": 4, "patience": 1}})
        reports.append(finetune(folder / "m.csv", tmp_path / name / "run", start, recipe=changes))
    first, second = reports
    assert first.folds[0].step == second.folds[0].step
    assert first.scores() != second.scores()
    a, b = (load_checkpoint(tmp_path / name / "run" / "model").model.state_dict() for name in ("as it is", "changed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_patience_ends_a_run(classes, start, tmp_path):
    changes = {"run": {"epochs": 30, "patience": 2}, "optimizer": {"learning_rate": 1e-9}}
    found = finetune(classes, tmp_path / "run", start, recipe=recipe(changes))
    report = json.loads((tmp_path / "run" / "rounds" / "all" / "report.json").read_text())
    assert report["epoch"] == 3
    why = "accuracy had not been better for 2 validations (run.patience); its epoch"
    assert any(note.startswith("training ended after 3 epochs of 30") and why in note for note in found.notes)


def test_a_frozen_encoder_stays_as_it_was(classes, start, tmp_path):
    finetune(classes, tmp_path / "run", start, recipe=recipe({"start": {"frozen": True}}))
    before = load_checkpoint(start).model.encoder.state_dict()
    model = load_checkpoint(tmp_path / "run" / "model").model
    after = model.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    finetune(classes, tmp_path / "whole", start, recipe=recipe())
    after = load_checkpoint(tmp_path / "whole" / "model").model.encoder.state_dict()
    assert not torch.equal(before["blocks.0.mixer.in_proj.weight"], after["blocks.0.mixer.in_proj.weight"])


def test_the_default_recipe_takes_a_frozen_encoder_beyond_the_warm_up(classes, start, tmp_path):
    settings = FinetuneRecipe.parse({"start": {"frozen": True}, "clips": SMALL["clips"]}, "test")
    settings = settings.with_changes(run={**settings.run.model_dump(), "epochs": 30})
    finetune(classes, tmp_path / "run", start, recipe=settings)
    report = json.loads((tmp_path / "run" / "rounds" / "all" / "report.json").read_text())
    assert report["step"] > settings.schedule.warmup_steps


def test_a_run_records_its_start_and_is_resumed_from_the_same_alone(classes, start, tmp_path):
    torch.manual_seed(1)
    other = save_checkpoint(tmp_path / "other", create_encoder("tiny", "ssamba2", embed_dim=24, depth=2))
    begun, given = load_checkpoint(start).identity, load_checkpoint(other).identity
    finetune(classes, tmp_path / "run", recipe=recipe({"start": {"checkpoint": str(start)}}))
    assert load_checkpoint(tmp_path / "run").config.base == begun
    assert json.loads((tmp_path / "run" / "results.json").read_text())["base"] == begun.model_dump()
    with pytest.raises(ModelMismatchError) as error:
        finetune(classes, tmp_path / "run", other, recipe=recipe())
    assert f"started from {begun}, not from {given}: start from the same model" in str(error.value)
    with pytest.raises(ModelMismatchError, match=f"not from {re.escape('random weights')}"):
        finetune(classes, tmp_path / "run", start, recipe=recipe({"start": {"scratch": True}}))
    shutil.copytree(start, tmp_path / "copy")  # the same weights by another path
    finetune(classes, tmp_path / "run", tmp_path / "copy", recipe=recipe())


def test_a_run_from_scratch_has_no_base(classes, start, tmp_path):
    finetune(classes, tmp_path / "run", start, recipe=recipe({"start": {"scratch": True}}))
    assert load_checkpoint(tmp_path / "run").config.base is None


class StopError(Exception):
    pass


def test_a_resumed_run_equals_an_uninterrupted_one(classes, start, tmp_path):
    changes = {
        "clips": {"mixup": {"share": 0.5}, "balanced": True, "batch_size": 3},
        "spec_augment": {"mel_bins": 20, "frames": 20, "noise": 0.1, "roll_frames": 5},
        "augmentation": {"formants": 0.2, "pitch": 0.5, "speed": 0.25},
        "start": {"drop_path": 0.2},
        "run": {"epochs": 3, "checkpoint_every_steps": 2},
        "finish": {"refit": True},
    }
    write_manifest(listed(classes, lambda p: f"fold{int(p.stem) % 2 + 1}"), tmp_path / "m.csv")
    finetune(tmp_path / "m.csv", tmp_path / "whole", start, recipe=recipe(changes))

    seen = []

    def stop(progress):
        if progress.unit == "clips":  # recordings are read
            return
        seen.append(progress.steps)
        if len(seen) == 12:  # in the second fold
            raise StopError

    with pytest.raises(StopError):
        finetune(tmp_path / "m.csv", tmp_path / "cut", start, recipe=recipe(changes), progress=stop)
    finetune(tmp_path / "m.csv", tmp_path / "cut", start, recipe=recipe(changes))
    for folder in ("rounds/fold1/chosen", "rounds/fold2/chosen", "model"):
        a, b = (load_checkpoint(tmp_path / run / folder).model.state_dict() for run in ("whole", "cut"))
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert (tmp_path / "whole" / "results.json").read_text() == (tmp_path / "cut" / "results.json").read_text()
    assert max(seen) > 2


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_mixup_learns_from_shares_of_labels(classes, start, tmp_path, kind):
    changes = {"clips": {"mixup": {"share": 1.0, "alpha": 10.0}}, "loss": {"kind": kind}}
    report = finetune(classes, tmp_path / "run", start, recipe=recipe(changes))
    assert 0 <= report.scores()["accuracy"][0] <= 1
    head = load_checkpoint(tmp_path / "run" / "model").config.classifier
    assert head is not None
    assert head.activation == {"ce": "softmax", "bce": "sigmoid"}[kind]


def test_several_labels_are_scored_by_average_precision(classes, start, tmp_path):
    clips = [
        Clip(clip.path, labels=(*clip.labels, "short") if int(clip.path.stem) < 4 else clip.labels)
        for clip in listed(classes)
    ]
    report = finetune(Manifest(clips), tmp_path / "run", start, recipe=recipe({"clips": {"balanced": True}}))
    assert report.metric == "mAP"
    assert set(report.scores()) == {"loss", "mAP", "mAUC", "d_prime"}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["confusion"] is None
    assert len(results["scores"]["mAP"]["interval"]) == 2
    rows = table(tmp_path / "run" / "classes.csv")
    assert {row["label"] for row in rows} == {"choir", "drum", "short", "tabla"}
    known = [float(row["average_precision"]) for row in rows if row["average_precision"]]
    assert report.scores()["mAP"][0] == pytest.approx(np.mean(known), abs=1e-3)
    with pytest.raises(DataError, match="use 'bce'"):
        finetune(Manifest(clips), tmp_path / "ce", start, recipe=recipe({"loss": {"kind": "ce"}}))


@pytest.fixture(scope="module")
def minutes(tmp_path_factory, clips):
    """Six recordings of four seconds whose seconds are labeled by stretches, as a manifest."""
    folder = tmp_path_factory.mktemp("minutes")
    sources = {"drum": decode(clips[6]), "choir": decode(clips[0])}
    rows = []
    for k in range(6):
        order = ["drum", "choir", "choir", "drum"] if k % 2 else ["choir", "drum", "drum", "choir"]
        parts = [np.resize(sources[name][1000 * k :], 16_000) for name in order]
        soundfile.write(folder / f"{k}.wav", np.concatenate(parts), 16_000)
        split = "test" if k == 5 else "valid" if k == 4 else "train"
        rows += [
            Clip(folder / f"{k}.wav", 0.0, 1.0, (order[0],), split),
            Clip(folder / f"{k}.wav", 1.0, 2.0, (order[1],), split),
            Clip(folder / f"{k}.wav", 3.0, 1.0, (order[3],), split),
        ]
    write_manifest(rows, folder / "m.csv")
    return folder / "m.csv"


def test_labels_of_seconds_are_learned_and_predicted(minutes, start, tmp_path):
    changes = {
        "labels": {"unit": "second"},
        "clips": {"frames": 400},
        "run": {"epochs": 25},
        "optimizer": {"learning_rate": 1e-2, "layer_decay": 1.0},
    }
    settings = recipe(changes)
    data = open_labeled(minutes, settings, FrontEndConfig(), 4.0)
    assert data.targets_of(0).argmax(1).tolist() == [0, 1, 1, 0]
    report = finetune(minutes, tmp_path / "run", start, recipe=settings)
    assert report.scores()["accuracy"][0] >= 0.75
    (only,) = report.folds
    assert only.scores["segment_f1"] == pytest.approx(only.scores["accuracy"])  # of seconds with one label each
    assert only.scores["error_rate"] == pytest.approx(1 - only.scores["accuracy"])
    assert only.intervals["accuracy"].low == only.intervals["accuracy"].high  # its four seconds are of one recording
    model = ssamba.load_model(tmp_path / "run" / "model")
    found = model.predict(minutes.parent / "5.wav")
    assert not isinstance(found, Exception)
    assert [(p.start_s, p.end_s) for p in found] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert sum(p.best()[0][0] == name for p, name in zip(found, ["drum", "choir", "choir", "drum"], strict=True)) >= 3


def test_seconds_may_have_several_labels(minutes, start, tmp_path):
    rows = list(csv.DictReader(minutes.read_text().splitlines()))
    clips = [
        Clip(
            minutes.parent / row["path"],
            float(row["start_s"] or 0),
            float(row["duration_s"]),
            ("short", row["labels"]) if k % 3 else (row["labels"],),
            row["split"],
        )
        for k, row in enumerate(rows)
    ]
    changes = {"labels": {"unit": "second"}, "clips": {"frames": 400}}
    report = finetune(Manifest(clips), tmp_path / "run", start, recipe=recipe(changes))
    assert {"mAP", "mAUC", "d_prime", "segment_f1", "error_rate"} <= set(report.scores())
    assert 0 <= report.scores()["segment_f1"][0] <= 1
    rows = table(tmp_path / "run" / "classes.csv")
    assert sum(int(row["clips"]) for row in rows if row["label"] != "short") == 4  # its four seconds


def test_seconds_without_labels_are_ignored(minutes, start, tmp_path):
    rows = list(csv.DictReader(minutes.read_text().splitlines()))
    with (minutes.parent / "gap.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row for k, row in enumerate(rows) if k % 3 != 1)
    data = open_labeled(minutes.parent / "gap.csv", recipe({"labels": {"unit": "second"}}), FrontEndConfig(), 4.0)
    assert np.isnan(data.targets_of(0)).all(1).tolist() == [False, True, True, False]
    settings = {"labels.unit": "second", "clips.frames": 400, "run.precision": "fp32"}  # of the CPU's recipe
    report = finetune(minutes.parent / "gap.csv", tmp_path / "run", start, set=settings, epochs=1, refit=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["recipe"]["start"]["fitted_head"]
    assert np.sum(results["confusion"]) == 2
    assert report.metric == "accuracy"


def test_seconds_can_be_predicted_as_in_the_original(minutes, tmp_path, ssamba_pth):
    changes = {
        "start": {"patch_stride": 16},
        "labels": {"unit": "second", "tokens": "official"},
        "clips": {"frames": 6144, "short_clips": "pad", "batch_size": 2},
        "run": {"epochs": 1},
    }
    report = finetune(minutes, tmp_path / "run", ssamba_pth, recipe=recipe(changes))
    head = load_checkpoint(tmp_path / "run" / "model").config.classifier
    assert head is not None
    assert (head.token_segments, head.label_frames, head.padding) == (60, 100, "official")
    assert report.folds[0].scores["accuracy"] >= 0


def test_splits_that_leak_are_refused(classes, start, tmp_path):
    split = lambda path: "test" if int(path.stem) < 3 else "train"  # noqa: E731
    clips = listed(classes, split, lambda p: p.parent.name)
    with pytest.raises(DataError, match=r"3 groups are in train and in test.*choir, drum, tabla"):
        finetune(Manifest(clips), tmp_path / "run", start, recipe=recipe({"choice": {"state": "last"}}))
    path = sorted(classes.rglob("*.wav"))[0]
    halves = [
        Clip(path, 0.0, 0.2, ("choir",), "train"),
        Clip(path, 0.2, 0.2, ("choir",), "test"),
        Clip(sorted(classes.rglob("*.wav"))[9], labels=("drum",), split="train"),
    ]
    with pytest.raises(DataError, match="1 files are in train and in test"):
        finetune(Manifest(halves), tmp_path / "run", start, recipe=recipe())


def test_wrong_inputs_are_refused_by_name(classes, start, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(next(classes.rglob("*.wav")), flat)
    with pytest.raises(DataError, match="expected at least two"):
        finetune(flat, tmp_path / "run", start, recipe=recipe())
    mixed = listed(classes, lambda p: None if int(p.stem) == 0 else "train")
    with pytest.raises(DataError, match="3 of 24 clips have no split"):
        finetune(Manifest(mixed), tmp_path / "run", start, recipe=recipe())
    odd = listed(classes, lambda p: "test" if int(p.stem) == 0 else "fold1")
    with pytest.raises(DataError, match="expected train, valid and test, or two or more folds"):
        finetune(Manifest(odd), tmp_path / "run", start, recipe=recipe())
    for change, message in (
        ({"labels": {"tokens": "official"}}, "needs labels.unit = 'second'"),
        ({"labels": {"unit": "second"}, "augmentation": {"speed": 0.1}}, "shifts sounds in time"),
        ({"clips": {"meen": 1.0}}, "did you mean 'mean'"),
        ({"run": {"validate_every": None, "patience": 3}}, "set validate_every"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            recipe(change)
    with pytest.raises(ValueError, match="has no classifier"):
        ssamba.load_model(start).predict(next(classes.rglob("*.wav")))


def run_cli(*arguments):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_notes_name_assumptions_and_skipped_recordings(classes, start, tmp_path):
    write_manifest(listed(classes, lambda p: "dev" if int(p.stem) % 2 else "eval"), tmp_path / "m.csv")
    report = finetune(tmp_path / "m.csv", tmp_path / "run", start, recipe=recipe({"run": {"epochs": 1}}))
    assert "the splits dev, eval were treated as folds: each is the test set once" in report.notes
    folder = shutil.copytree(classes, tmp_path / "classes")
    (folder / "drum" / "text.wav").write_text("no audio")
    report = finetune(folder, tmp_path / "text", start, recipe=recipe({"run": {"epochs": 1}}))
    (note,) = (note for note in report.notes if "cannot be used" in note)
    assert "text.wav" in (tmp_path / "text" / note.split(": ")[1]).read_text()


def test_an_unknown_device_is_refused(classes, start, tmp_path):
    with pytest.raises(ConfigError, match=r"device must be 'cpu', 'cuda', .* got 'abacus'"):
        finetune(classes, tmp_path / "run", start, recipe=recipe(), device="abacus")


def test_the_commands_finetune_and_predict(classes, start, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text(
        "[clips]\nbatch_size = 8\nworkers = 0\nframes = 96\n"
        "[run]\nepochs = 1\nvalidate_every = 'epoch'\nema_decay = 'none'\n"
    )
    nested = shutil.copytree(classes / "drum", tmp_path / "nested" / "drum" / "one").parents[1]
    shutil.copytree(classes / "choir", nested / "choir" / "two")
    done = run_cli("finetune", nested, "-c", start, "-r", file, "-o", tmp_path / "run")
    assert done.exit_code == 2
    assert "level 1: choir, drum (2 names)" in done.output
    done = run_cli("finetune", classes, "-c", start, "-r", file, "-o", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "3 labels, classifier in" in done.output
    assert done.output.index("3 labels, 24 clips:") < done.output.index("classifier in")
    assert re.search(r"choir +8 +\d +\d +\d", done.output)
    for word in ("accuracy", "balanced"):  # of a table in 80 columns
        assert word in done.output
    wave = next(classes.rglob("*.wav"))
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    printed = run_cli("predict", wave, "-c", tmp_path / "run", "--format", "csv", "--top", "0")
    rows = list(csv.DictReader(printed.stdout.splitlines()))
    assert [",".join(row) for row in rows] == ["path,start_s,end_s,label,probability,front_end"] * 3
    assert abs(sum(float(row["probability"]) for row in rows) - 1) < 1e-3
    printed = run_cli("predict", wave, "-c", tmp_path / "run", "--format", "json", "--per", "second")
    entry = json.loads(printed.stdout)[0]
    assert (entry["start_s"], len(entry["labels"])) == (0, 3)
    assert json.loads(printed.stdout)[-1]["end_s"] == pytest.approx(soundfile.info(wave).duration)  # not a whole second
    printed = run_cli("predict", wave, text, "-c", tmp_path / "run", "-o", tmp_path / "p.json", "--strict")
    assert printed.exit_code == 3
    assert json.loads((tmp_path / "p.json").read_text())[0]["path"] == str(wave)
    header, line = run_cli("predict", wave, "-c", tmp_path / "run").stdout.splitlines()[:2]  # not wrapped
    assert header.split() == ["recording", "seconds", "labels"]
    assert re.fullmatch(rf"{re.escape(str(wave))}  0 to [\d.]+  .+ 0\.\d+", line)
    assert run_cli("predict", text, "-c", tmp_path / "run").exit_code == 1
    assert run_cli("predict", wave, "-c", start).exit_code == 1
    assert load_checkpoint(tmp_path / "run").config == load_checkpoint(tmp_path / "run" / "model").config
    assert run_cli("predict", wave, "-c", start, "--format", "xml").exit_code == 2


def test_a_stopped_run_does_not_count_as_finished(tmp_path):
    stopped = FinetuneReport("stopped", "accuracy", ("a", "b"), (), (), None)
    assert str(stopped) == "stopped: repeat the command to resume"
    (tmp_path / "run" / "rounds" / "fold1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="has not finished: repeat its command"):
        load_checkpoint(tmp_path / "run")


def test_two_processes_give_what_one_gives(classes, start, tmp_path):
    write_manifest(listed(classes, lambda p: f"fold{int(p.stem) % 2 + 1}"), tmp_path / "m.csv")
    file = tmp_path / "r.toml"
    file.write_text(
        "[clips]\nbatch_size = 5\nworkers = 0\nframes = 96\nmixup = {share = 0.5}\n"
        "[run]\nepochs = 2\nvalidate_every = 'epoch'\nema_decay = 'none'\n"
    )
    results = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        options = [tmp_path / "m.csv", "-c", start, "-r", file, "-o", out]
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "ssamba", "finetune", *map(str, options)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("classifier in") == 1
        results.append(json.loads((out / "results.json").read_text()))
    one, two = (result["rounds"] for result in results)
    for a, b in zip(one, two, strict=True):
        assert a["clips"] == b["clips"]
        assert a["scores"]["loss"] == pytest.approx(b["scores"]["loss"], rel=2e-3)
