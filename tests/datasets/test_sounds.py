"""Sound events: ESC-50, UrbanSound8K and its scenes, AudioSet, FSD50K."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from ssamba.audio.decode import decode, probe
from ssamba.data.manifest import Clip, Manifest
from ssamba.datasets import prepare
from ssamba.datasets.audioset import audioset_classes
from ssamba.datasets.prepare import balanced_weights
from ssamba.datasets.urbansound8k import render_scenes
from ssamba.errors import DataError, DatasetStructureError


def test_esc50(esc50):
    prepared = prepare("esc50", esc50)
    clip = prepared.clips[2]
    assert clip == Clip(esc50 / "audio" / "1-137-B-32.wav", 0.0, 0.5, ("keyboard_typing",), "fold1", "137")
    assert Manifest(prepared.clips).splits == ("fold1", "fold2", "fold3", "fold4", "fold5")
    assert prepared.classes == ("dog", "pig", "toilet_flush", "keyboard_typing", "car_horn", "hand_saw")
    assert not prepared.skipped


def test_urbansound8k(urbansound8k):
    prepared = prepare("urbansound8k", urbansound8k.parent)
    assert len(prepared.clips) == 6
    clip = prepared.clips[3]
    assert clip.path == urbansound8k / "audio" / "fold10" / "100648-1-0-0.wav"
    assert (clip.labels, clip.split, clip.group) == (("car_horn",), "fold10", "100648")
    assert prepared.classes == ("car_horn", "children_playing", "dog_bark", "gun_shot")
    assert not prepared.skipped


@pytest.mark.parametrize(
    ("name", "rows", "group"),
    [
        (
            "esc50",
            ["2-131943-A-38.wav,2,38,clock_tick,True,131943,A", "3-131943-A-37.wav,3,37,clock_alarm,False,131943,A"],
            "131943",
        ),
        (
            "urbansound8k",
            ["77751-4-0-0.wav,77751,0,4,1,2,4,drilling", "77751-7-0-0.wav,77751,0,4,1,7,7,jackhammer"],
            "77751",
        ),
    ],
)
def test_recordings_that_are_in_two_folds_as_published_are_no_groups(request, sound, name, rows, group):
    root = request.getfixturevalue(name)
    table = next(root.glob("meta*/*.csv"))
    table.write_text(table.read_text() + "".join(f"{row}\n" for row in rows))
    for row in rows:
        file, *columns = row.split(",")
        sound(root / "audio" / ("" if name == "esc50" else f"fold{columns[4]}") / file)
    prepared = prepare(name, root)
    assert [clip.group for clip in prepared.clips[-2:]] == [None, None]
    assert [clip.group for clip in prepared.clips].count(None) == 2
    assert any(f"1 group in more than one split ({group})" in note for note in prepared.notes)
    table.write_text(table.read_text().replace(group, "99999"))
    for path in root.rglob(f"*{group}*"):
        path.rename(path.with_name(path.name.replace(group, "99999")))
    with pytest.raises(DataError, match="99999 is in fold2 and fold"):
        prepare(name, root)


def test_urbansound8k_names_must_agree_with_the_table(urbansound8k):
    table = urbansound8k / "metadata" / "UrbanSound8K.csv"
    table.write_text(table.read_text().replace("1,1,6,gun_shot", "1,1,3,dog_bark"))
    with pytest.raises(DataError, match=r"line 7: '102305-6-0-0\.wav' contradicts"):
        prepare("urbansound8k", urbansound8k)


def test_scenes_contain_each_clip_once_where_the_manifest_says(tmp_path, sound):
    """Ten clips, each of its own class, fill 70 s: one minute and the rest, with one clip cut in two."""
    lengths = [6.5, 7.0, 6.2, 6.9, 6.4, 6.1, 6.7, 6.6, 6.3, 6.8]
    clips = [
        Clip(sound(tmp_path / f"{i}.wav", length, 22_050), labels=(f"class {i}",), split="fold1", group=str(i))
        for i, length in enumerate(lengths)
    ]
    parts, skipped = render_scenes(clips, tmp_path / "scenes")
    assert not skipped
    scenes = {part.path: decode(part.path) for part in parts}
    assert [len(samples) for samples in scenes.values()] == [60 * 16_000, 10 * 16_000]
    assert probe(parts[0].path).sample_rate_hz == 16_000
    assert parts == render_scenes(clips, tmp_path / "scenes")[0]
    found = {}
    ends = dict.fromkeys(scenes, 0.0)
    for part in parts:
        assert part.start_s == ends[part.path], "one after the other, without gaps"
        assert part.duration_s is not None
        assert part.duration_s == int(part.duration_s)
        ends[part.path] += part.duration_s
        samples = scenes[part.path]
        piece = samples[round(part.start_s * 16_000) : round(ends[part.path] * 16_000)]
        found.setdefault(part.labels[0], []).append(piece)
        assert (part.split, part.group) == ("fold1", "fold1")
    assert list(ends.values()) == [60.0, 10.0]
    assert sorted(map(len, found.values())) == [1] * 9 + [2]
    assert list(found) != [f"class {i}" for i in range(10)], "shuffled, for varied neighbors"
    for i, length in enumerate(lengths):
        piece, expected = np.concatenate(found[f"class {i}"]), decode(clips[i].path)
        assert len(piece) == np.ceil(length) * 16_000
        np.testing.assert_allclose(piece[: len(expected)], expected, atol=1e-4)
        assert not piece[len(expected) :].any(), "filled with silence to whole seconds"


def test_scenes_leave_out_broken_clips_and_replace_older_scenes(urbansound8k, tmp_path):
    stale = tmp_path / "scenes" / "fold5" / "scene-007.flac"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    (urbansound8k / "audio" / "fold1" / "102305-6-0-0.wav").write_text("no audio")
    (urbansound8k / "audio" / "fold5" / "100032-3-0-0.wav").unlink()
    prepared = prepare("urbansound8k-scenes", urbansound8k, audio=tmp_path / "scenes")
    assert len(prepared.missing) == len(prepared.damaged) == 1
    assert {(part.split, part.path.name) for part in prepared.clips} == {
        (fold, "scene-000.flac") for fold in ("fold1", "fold5", "fold10")
    }
    assert [part.duration_s for part in prepared.clips] == [4.0, 4.0, 4.0, 1.0]
    assert prepared.counts == {"fold1": 1, "fold5": 2, "fold10": 1}
    assert not stale.exists()
    Manifest(prepared.clips).check()
    with pytest.raises(DataError, match="name their folder with audio"):
        prepare("urbansound8k-scenes", urbansound8k)


def test_the_shipped_class_list_of_audioset():
    classes = audioset_classes()
    names = list(classes.values())
    assert len(classes) == len(set(names)) == 527
    assert (names[0], names[137], names[500], names[526]) == ("Speech", "Music", "Silence", "Field recording")
    assert classes["/m/05zppz"] == "Male speech, man speaking"
    assert classes["/g/122z_qxw"] == "Firecracker"
    assert not [name for name in names if ";" in name or "_" in name], "names that CSV manifests hold"


def test_audioset_20k(audioset):
    prepared = prepare("audioset-20k", audioset)
    assert {clip.group: (clip.path.name, clip.split) for clip in prepared.clips} == {
        "--4gqARaEJE": ("--4gqARaEJE.flac", "train"),
        "--BfvyPmVMo": ("Y--BfvyPmVMo.wav", "train"),
        "Y0123456789": ("Y0123456789_30.000.wav", "train"),
        "--4gqARaEJF": ("--4gqARaEJF_0.000.wav", "test"),
        "-0RWZT-miFs": ("-0RWZT-miFs_220-230.wav", "test"),
    }
    assert prepared.clips[0].labels == ("Domestic animals, pets", "Squeak", "Dog", "Animal")
    assert [entry.path for entry in prepared.missing] == ["--U7joUcTCo"]
    assert "balanced_train_segments.csv" in prepared.missing[0].reason
    assert len(prepared.classes) == len(prepared.codes) == 527


def test_audioset_tables_may_be_in_a_folder_of_their_own(audioset):
    (audioset / "metadata").mkdir()
    for table in list(audioset.glob("*.csv")):
        table.rename(audioset / "metadata" / table.name)
    assert len(prepare("audioset-20k", audioset).clips) == 5


def test_audioset_2m_has_both_training_tables(audioset):
    prepared = prepare("audioset-2m", audioset)
    assert prepared.counts == {"train": 4, "test": 2}
    (audioset / "unbalanced_train_segments.csv").unlink()
    with pytest.raises(DatasetStructureError, match=r"no unbalanced_train_segments\.csv"):
        prepare("audioset-2m", audioset)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('-0RWZT-miFs, 220.000, 230.000, "/m/07st88b"\n', "", "states 2 segments, and it has 1"),
        ('"/m/07st88b"', '"/m/nothing"', "class '/m/nothing' is not one of the 527"),
        ("-0RWZT-miFs, 220.000,", "-0RWZT-miFs 220.000", "entry 2: expected"),
        ("-0RWZT-miFs", "--4gqARaEJE", "in train|is in test and train|listed twice"),
    ],
)
def test_damaged_audioset_tables_are_refused(audioset, old, new, message):
    table = audioset / "eval_segments.csv"
    content = table.read_text()
    assert old in content
    table.write_text(content.replace(old, new))
    with pytest.raises(DataError, match=message):
        prepare("audioset-20k", audioset)


def test_a_class_list_in_the_folder_replaces_the_shipped_one(audioset, text):
    text(audioset / "class_labels_indices.csv", 'index,mid,display_name\n0,/m/09x0r,"Talk"\n')
    with pytest.raises(DataError, match="one of the 1 known classes"):
        prepare("audioset-20k", audioset)
    text(audioset / "class_labels_indices.csv", 'index,mid,display_name\n1,/m/09x0r,"Talk"\n')
    with pytest.raises(DataError, match="expected index 0"):
        prepare("audioset-20k", audioset)


def test_weights_give_every_class_of_single_labels_the_same_share():
    labels = [("a",)] * 6 + [("b",)] * 3 + [("c",)]
    weights = balanced_weights(labels)
    for name in "abc":
        share = sum(w for w, clip in zip(weights, labels, strict=True) if name in clip)
        assert share == pytest.approx(10 / 3)
    # The formula of AST's gen_weight_file.py, with its constants.
    both = [("a", "b"), ("a",), ("b", "c"), ("a",)]
    counts = {"a": 3, "b": 2, "c": 1}
    official = np.array([sum(1000 / (counts[name] + 0.01) for name in clip) for clip in both])
    np.testing.assert_allclose(balanced_weights(both), official / official.mean(), rtol=0.01)
    np.testing.assert_array_equal(balanced_weights([("a",), ()]), [2, 0])
    assert len(balanced_weights([])) == 0


@pytest.fixture
def fsd50k(tmp_path, sound, text):
    """Rows of dev.csv, eval.csv and vocabulary.csv as on Zenodo (record 4060432)."""
    root = tmp_path / "FSD50K"
    truth = root / "FSD50K.ground_truth"
    text(
        truth / "dev.csv",
        "fname,labels,mids,split\n"
        '64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train\n'
        '16399,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",val\n'
        '16401,"Guitar,Music","/m/0342h,/m/04rlf",train\n',
    )
    text(truth / "eval.csv", 'fname,labels,mids\n37199,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf"\n')
    text(truth / "vocabulary.csv", "0,Electric_guitar,/m/02sgy\n1,Guitar,/m/0342h\n2,Music,/m/04rlf\n")
    for name in ("dev_audio/64760", "dev_audio/16399", "dev_audio/16401", "eval_audio/37199"):
        sound(root / f"FSD50K.{name}.wav", rate_hz=44_100)
    return root


def test_fsd50k(fsd50k, text):
    prepared = prepare("fsd50k", fsd50k)
    assert prepared.counts == {"train": 2, "valid": 1, "test": 1}
    assert prepared.clips[0].labels == ("Electric_guitar", "Guitar", "Music")
    assert prepared.clips[3].path == fsd50k / "FSD50K.eval_audio" / "37199.wav"
    assert prepared.codes == ("/m/02sgy", "/m/0342h", "/m/04rlf")
    assert any("no FSD50K.metadata" in note for note in prepared.notes)
    for part, people in (("dev", {"64760": "ann", "16399": "bob", "16401": "ann"}), ("eval", {"37199": "bob"})):
        entries = {name: {"title": "t", "uploader": who} for name, who in people.items()}
        text(fsd50k / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json", json.dumps(entries))
    prepared = prepare("fsd50k", fsd50k)
    assert [clip.group for clip in prepared.clips] == ["uploader ann", None, "uploader ann", None]
    assert any("uploader bob" in note for note in prepared.notes), "in two splits as published: said, not refused"


def test_damaged_fsd50k_tables_are_refused(fsd50k, text):
    truth = fsd50k / "FSD50K.ground_truth"
    vocabulary = (truth / "vocabulary.csv").read_text()
    text(truth / "vocabulary.csv", vocabulary.replace("1,Guitar", "2,Guitar"))
    with pytest.raises(DataError, match="line 2: expected '1,CLASS,MID'"):
        prepare("fsd50k", fsd50k)
    text(truth / "vocabulary.csv", "0,Music,/m/04rlf\n")
    with pytest.raises(DataError, match="'Electric_guitar' is not in vocabulary"):
        prepare("fsd50k", fsd50k)
    text(truth / "vocabulary.csv", vocabulary)
    text(truth / "dev.csv", (truth / "dev.csv").read_text().replace(",val\n", ",dev\n"))
    with pytest.raises(DataError, match="split must be train or val"):
        prepare("fsd50k", fsd50k)
    text(fsd50k / "FSD50K.metadata" / "dev_clips_info_FSD50K.json", "[1]")
    with pytest.raises(DataError, match="dev_clips_info"):
        prepare("fsd50k", fsd50k)


def test_classes_in_a_csv_manifest_equal_those_that_were_read(fsd50k):
    with (fsd50k / "FSD50K.ground_truth" / "vocabulary.csv").open() as file:
        assert prepare("fsd50k", fsd50k).classes == tuple(row[1] for row in csv.reader(file))
