"""Reading suites, the folds of their tasks, and their clips."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ssamba.data.manifest import read_manifest
from ssamba.errors import ConfigError, DataError, SuiteError
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.suite import read_suite
from ssamba.evaluation.task import Task
from ssamba.files import path_text
from ssamba.splits import validation_mask


def make_task(splits, groups=None, labels=None, name="task"):
    count = len(splits)
    labels = [str(i % 2) for i in range(count)] if labels is None else labels
    groups = ["one"] * count if groups is None else groups
    clips = np.array([f"{i}.wav" for i in range(count)])
    return Task(name, None, None, clips, np.array(labels), np.array(splits), np.array(groups))


def test_reads_the_open_suite_first_and_in_order(suite):
    assert [task.name for task in read_suite(suite)] == ["drum8", "kinds"]
    assert [task.name for task in read_suite(suite, ["kinds"])] == ["kinds"]
    drum8 = read_suite(suite)[0]
    assert len(drum8.clips) == 30
    assert drum8.num_classes == 5
    assert drum8.audio.suffix == ".tar"


def test_waves_are_those_of_the_files_at_any_level(suite, tmp_path):
    for task in read_suite(suite):
        heard = []
        for _ in range(2):  # the second time from the cache
            waves = read_waves(task, cache=tmp_path, on_progress=heard.append)
            for index, clip in enumerate(task.clips):
                samples, _ = soundfile.read(suite / clip, dtype="float32")
                np.testing.assert_allclose(waves[index], samples, atol=1.6e-5 * np.abs(samples).max())
        assert heard == list(range(1, len(task.clips) + 1))
        chosen = waves.select(np.array([3, 1]), 0.9)
        assert list(chosen.lengths) == [len(chosen[0]), len(chosen[1])]
        assert np.abs(chosen[1]).max() == pytest.approx(0.9)
        np.testing.assert_allclose(chosen[0] / 0.9, waves[3] / np.abs(waves[3]).max(), atol=1e-6)
        assert len(chosen[:]) == 2


def test_a_damaged_cache_is_computed_again(suite, tmp_path):
    task = read_suite(suite, ["kinds"])[0]
    waves = read_waves(task, cache=tmp_path)
    (file,) = (tmp_path / "waves").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(read_waves(task, cache=tmp_path)[5], waves[5])


def test_the_digest_follows_table_and_recordings(suite, tmp_path):
    folder = shutil.copytree(suite, tmp_path / "suite")
    digests = {task.name: task.digest for task in read_suite(suite)}
    assert {task.name: task.digest for task in read_suite(folder)} == digests
    clip = next((folder / "kinds").iterdir())
    clip.write_bytes(clip.read_bytes() + b" ")
    (folder / "drum8.csv").write_text((folder / "drum8.csv").read_text().replace("tabla", "table"))
    changed = {task.name: task.digest for task in read_suite(folder)}
    assert all(changed[name] != digests[name] for name in digests)


def test_training_and_test_part_are_one_fold_or_two():
    task = make_task(["train", "test", "train", "test", "test"])
    (only,) = task.folds()
    assert list(only.train) == [0, 2]
    assert list(only.test) == [1, 3, 4]
    there, back = dataclasses.replace(task, both_directions=True).folds()
    assert list(there.train) == list(back.test) == [0, 2]
    assert list(there.test) == list(back.train) == [1, 3, 4]


def test_the_metadata_of_a_suite_orders_its_tasks_and_names_those_scored_in_both_directions(suite, tmp_path):
    folder = shutil.copytree(suite, tmp_path / "suite")
    # Without a suite.json the open suite's metadata holds: drum8 is one of its tasks, scored in one direction.
    assert not any(task.both_directions for task in read_suite(folder))
    digests = {task.name: task.digest for task in read_suite(folder)}
    (folder / "suite.json").write_text('{"tasks": {"kinds": {"both_directions": true}, "other": {}}}')
    kinds, drum8 = read_suite(folder)
    assert (kinds.name, drum8.name) == ("kinds", "drum8")
    assert len(kinds.folds()) == 2
    assert not drum8.both_directions
    assert {kinds.name: kinds.digest, drum8.name: drum8.digest} == digests
    (folder / "suite.json").write_text('{"tasks": {"kinds": {"both": true}}}')
    with pytest.raises(ConfigError, match=r"suite\.json: unknown key 'tasks.kinds.both'"):
        read_suite(folder)
    (folder / "suite.json").write_text("both")
    with pytest.raises(SuiteError, match=r"suite\.json is not JSON"):
        read_suite(folder)


def test_tables_of_the_open_suite_are_scored_as_published_without_metadata(tmp_path):
    for name in ("zh_final", "instr_family", "kws35"):
        (tmp_path / f"{name}.csv").write_text("clip,label,split,group\na,x,train,1\nb,y,test,2\n")
    tasks = read_suite(tmp_path)
    assert {task.name: len(task.folds()) for task in tasks} == {"kws35": 1, "instr_family": 2, "zh_final": 2}


def test_each_fold_is_scored_once():
    folds = make_task(["b", "a", "c", "a"]).folds()
    assert [list(fold.test) for fold in folds] == [[1, 3], [0], [2]]
    assert all(sorted([*fold.train, *fold.test]) == [0, 1, 2, 3] for fold in folds)


@settings(deadline=None)
@given(st.data())
def test_inner_folds_never_see_a_test_clip_nor_tear_a_group(data):
    count = data.draw(st.integers(8, 60))
    splits = ["train", "test", *data.draw(st.lists(st.sampled_from(["train", "test"]), min_size=count, max_size=count))]
    splits += ["train"] * 4
    groups = data.draw(st.lists(st.sampled_from("abcdef"), min_size=len(splits), max_size=len(splits)))
    task = make_task(splits, groups)
    inner, (outer,) = task.inner_folds(), task.folds()
    assert sorted(np.concatenate([fold.test for fold in inner])) == list(outer.train)
    for fold in inner:
        assert set(fold.train) | set(fold.test) == set(outer.train)
        assert len(fold.train)
        assert len(fold.test)
        if len(np.unique(task.groups[outer.train])) > 1:
            assert not set(task.groups[fold.train]) & set(task.groups[fold.test])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("clip,label,group\na,b,c\n", "no column 'split'"),
        ("clip,label,split,group\na,x,train,1\na,y,test,1\n", "names a clip twice"),
        ("clip,label,split,group\na,x,train,1\nb,y,test\n", r"task\.csv, line 3: 3 values for 4 columns"),
        ("clip,label,split,group\na,x,train,1,2\nb,y,test,2\n", r"task\.csv, line 2: more values than the 4"),
        ("clip,label,split,group\na,x,train,1\nb,x,test,1\n", "1 label"),
        ("clip,label,split,group\na,x,train,1\nb,y,train,1\n", "expected train and test"),
        (
            "clip,label,split,group\na,x,train,1\nb,y,test,1\nc,y,test,2\n",
            r"1 groups .*inflates scores: 1 \(test, train\)",
        ),
        ("clip,label,split,group\na,x,dev,1\nb,y,test,1\n", "expected train and test"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, table, message):
    (tmp_path / "task.csv").write_text(table)
    with pytest.raises(SuiteError, match=message):
        read_suite(tmp_path)


def test_one_table_is_a_task_and_a_manifest_for_training(suite, tmp_path):
    (kinds,) = read_suite(suite / "kinds.csv")
    manifest = tmp_path / "kinds.csv"
    manifest.write_text((suite / "kinds.csv").read_text().replace("clip,label", "path,labels", 1))
    shutil.copytree(suite / "kinds", tmp_path / "kinds")
    (same,) = read_suite(tmp_path)
    listed = read_manifest(suite / "kinds.csv")
    for clips in (same.clips, [clip.path.relative_to(suite).as_posix() for clip in listed]):
        assert list(clips) == list(kinds.clips)
    assert [clip.labels for clip in listed] == [(label,) for label in same.labels]
    shutil.rmtree(tmp_path / "kinds")
    table = shutil.copy(suite / "drum8.csv", tmp_path)
    shutil.copy(suite / "drum8.tar", tmp_path)
    with pytest.raises(DataError, match=r"are in drum8\.tar.*tar -xf"):
        read_manifest(table)


def test_missing_things_are_named(suite, tmp_path):
    with pytest.raises(SuiteError, match="not a folder"):
        read_suite(tmp_path / "nowhere")
    with pytest.raises(SuiteError, match=r"no TASK\.csv"):
        read_suite(tmp_path)
    with pytest.raises(SuiteError, match="has no task 'other'"):
        read_suite(suite, ["other"])
    folder = shutil.copytree(suite, tmp_path / "suite")
    gone = read_suite(folder, ["kinds"])[0].clips[0]
    (folder / gone).unlink()
    with pytest.raises(SuiteError, match="kinds/"):
        read_waves(read_suite(folder, ["kinds"])[0])
    (folder / "drum8.csv").write_text((folder / "drum8.csv").read_text().replace(gone, "kinds/other.flac"))
    with pytest.raises(SuiteError, match=r"not in drum8\.tar"):
        read_waves(read_suite(folder, ["drum8"])[0])


def test_damaged_files_of_a_suite_are_named(suite, tmp_path):
    folder = shutil.copytree(suite, tmp_path / "suite")
    (folder / "drum8.tar").write_text("not a tar")
    with pytest.raises(SuiteError, match=r"drum8\.tar is damaged or no tar"):
        read_waves(read_suite(folder, ["drum8"])[0])
    task = read_suite(folder, ["kinds"])[0]
    (folder / task.clips[0]).unlink()
    with pytest.raises(SuiteError, match=r"kinds\.csv names kinds/"):
        read_waves(task, cache=tmp_path / "cache")
    (folder / "kinds.csv").write_bytes(b"\xa7\xff\n")
    with pytest.raises(SuiteError, match=r"kinds\.csv, line 1: byte 0xa7 .* is not utf-8"):
        read_suite(folder, ["kinds"])


def test_clips_without_a_group_stand_for_themselves_where_others_have_one(tmp_path):
    (tmp_path / "some.csv").write_text(
        "clip,label,split,group\n"
        + "".join(
            f"{i}.wav,{i % 2},{'test' if i % 5 == 0 else 'train'},{'x' if i % 5 == 1 else ''}\n" for i in range(50)
        )
    )
    (task,) = read_suite(tmp_path)
    assert len(set(task.groups)) == 41
    held = validation_mask(task.groups[task.folds()[0].train])
    assert 6 <= held.sum() <= 17  # a fifth of 31 groups, one of which has ten clips
    (tmp_path / "some.csv").write_text((tmp_path / "some.csv").read_text().replace(",x\n", ",\n"))
    assert set(read_suite(tmp_path)[0].groups) == {""}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("start", "separator", "encoding"), [("", ";", "cp1252"), ("\ufeff", "\t", "utf-8"), ("", ", ", "utf-16")]
)
def test_tables_of_other_systems_are_read(tmp_path, clips, packed, start, separator, encoding):
    (tmp_path / "in").mkdir()
    rows = [("clip", " label", "split ", "group")]
    for number, name in enumerate(("a.flac", "Ä b.flac", "C.FLAC", "d.flac")):
        shutil.copy(clips[number], tmp_path / "in" / name)
        rows.append((f"in\\{name}", "Köter" if number % 2 else "x", "test" if number > 1 else "train", ""))
    if packed:
        with tarfile.open(tmp_path / "task.tar", "w") as archive:
            archive.add(tmp_path / "in", "./in")
        shutil.rmtree(tmp_path / "in")
    text = start + "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "task.csv").write_bytes(text.encode(encoding))
    (task,) = read_suite(tmp_path, encoding=encoding)
    assert sorted(set(task.labels)) == ["Köter", "x"]
    assert len(read_waves(task)) == 4
    if encoding == "cp1252":
        with pytest.raises(SuiteError, match=r"task.csv, line 3: byte 0xc4 .* is not utf-8"):
            read_suite(tmp_path)


def test_a_file_under_two_labels_is_refused_by_both_its_names(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.wav").symlink_to("a.wav")
    (tmp_path / "task.csv").write_text("clip,label,split,group\na.wav,x,train,1\nb.wav,y,test,2\n")
    message = r"a.wav \(line 2, label x, split train\) and b.wav \(line 3, label y, split test\) are one file"
    with pytest.raises(SuiteError, match=message):
        read_suite(tmp_path)


def test_names_of_clips_that_are_not_utf8_are_found(tmp_path, clips):
    names = [os.fsdecode(b"caf\xe9.flac"), "b.flac"]
    rows = ["clip,label,split,group"]
    for number, name in enumerate(names):
        shutil.copy(clips[number], tmp_path / name)
        rows.append(f"{path_text(name)},{number},{'test' if number else 'train'},")
    (tmp_path / "task.csv").write_text("\n".join(rows), encoding="utf-8")
    assert len(read_waves(read_suite(tmp_path)[0])) == 2
    with tarfile.open(tmp_path / "task.tar", "w") as archive:
        for name in names:
            archive.add(tmp_path / name, name)
            (tmp_path / name).unlink()
    assert len(read_waves(read_suite(tmp_path)[0])) == 2
