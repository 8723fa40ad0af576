"""Task folders of HEAR, built as its archives unpack."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from ssamba.audio.decode import decode
from ssamba.errors import SuiteError
from ssamba.evaluation import LogMelStatistics, evaluate_model, read_suite


def write_task(folder, parts, **metadata):
    """A folder with the files of a task: `parts` gives {recording: (labels, samples)} for each split."""
    folder.mkdir(parents=True)
    described = {"embedding_type": "scene", "prediction_type": "multiclass", "task_name": "demo", **metadata}
    (folder / "task_metadata.json").write_text(json.dumps(described))
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,drum\n1,tabla\n")
    for part, recordings in parts.items():
        (folder / f"{part}.json").write_text(json.dumps({name: labels for name, (labels, _) in recordings.items()}))
        for rate in (16_000, 48_000):
            (folder / str(rate) / part).mkdir(parents=True)
            for name, (_, samples) in recordings.items():
                soundfile.write(folder / str(rate) / part / name, samples, rate)


@pytest.fixture
def parts(clips):
    found = {}
    for fold in range(3):
        found[f"fold0{fold}"] = {
            f"{path.stem}-{fold}{k}.wav": (
                [path.stem.split("_")[0]],
                decode(path, sample_rate_hz=48_000)[k * 3000 :][:9000],
            )
            for path in clips
            if path.stem.startswith(("drum", "tabla"))
            for k in range(3)
        }
    return found


def test_folds_are_read_and_scored(parts, tmp_path):
    root = tmp_path / "hear-2021.0.6" / "tasks" / "demo-v1.0.0-full"
    write_task(root, parts, split_mode="presplit_kfold", splits=list(parts))
    (task,) = read_suite(tmp_path)
    assert task.name == "demo-v1.0.0-full"
    assert len(task.clips) == 36
    assert task.num_classes == 2
    assert task.clips[0].startswith("48000/fold00/")
    for number, part in enumerate(task.folds()):
        assert set(task.splits[part.test]) == {f"fold0{number}"}
        assert len(part.train) == 24
    card = evaluate_model(LogMelStatistics(), [task])
    assert card.best().scores["demo-v1.0.0-full"] > 0.8
    assert [found.name for found in read_suite(root)] == ["demo-v1.0.0-full"]


def test_validation_clips_train_and_test_clips_do_not(parts, tmp_path):
    named = dict(zip(("train", "valid", "test"), parts.values(), strict=True))
    write_task(tmp_path / "demo", named, split_mode="trainvaltest")
    (task,) = read_suite(tmp_path)
    (only,) = task.folds()
    assert {clip.split("/")[1] for clip in task.clips[only.train_and_valid]} == {"train", "valid"}
    assert {clip.split("/")[1] for clip in task.clips[only.test]} == {"test"}
    assert np.array_equal(task.groups, task.clips)


def test_tasks_of_another_kind_are_left_out_by_name(parts, tmp_path):
    write_task(tmp_path / "demo", parts, split_mode="new_split_kfold", splits=list(parts))
    write_task(tmp_path / "events", {}, embedding_type="event", prediction_type="multiclass", split_mode="trainvaltest")
    left_out = []
    assert [task.name for task in read_suite(tmp_path, None, lambda *note: left_out.append(note))] == ["demo"]
    assert [name for name, _ in left_out] == ["events"]
    assert "'event' and prediction_type 'multiclass'" in left_out[0][1]
    with pytest.raises(SuiteError, match=r"events cannot be scored: .*'event'"):
        read_suite(tmp_path, ["events"])
    with pytest.raises(SuiteError, match="cannot be scored"):
        read_suite(tmp_path / "events")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task_metadata.json", "{", "is not JSON"),
        ("fold01.json", None, r"fold01\.json is missing"),
        ("fold01.json", "[]", "no JSON object"),
        ("fold01.json", '{"a.wav": ["drum", "tabla"]}', r"a\.wav has 2 labels"),
    ],
)
def test_damaged_tasks_are_refused_by_file(parts, tmp_path, name, content, message):
    write_task(tmp_path / "demo", parts, split_mode="presplit_kfold", splits=list(parts))
    if content is None:
        (tmp_path / "demo" / name).unlink()
    else:
        (tmp_path / "demo" / name).write_text(content)
    with pytest.raises(SuiteError, match=message):
        read_suite(tmp_path)
