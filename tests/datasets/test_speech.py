"""Speech: Speech Commands, IEMOCAP, VoxCeleb1, LibriSpeech."""

from __future__ import annotations

from collections import Counter

import pytest

from ssamba.data.manifest import Manifest
from ssamba.datasets import prepare
from ssamba.errors import DataError, DatasetStructureError


@pytest.fixture
def commands(tmp_path, sound, text):
    """speech_commands_v0.01 and the test set beside it; names as in the archives."""
    root = tmp_path / "speech_commands_v0.01"
    for name in (
        "bed/00176480_nohash_0.wav",
        "bed/004ae714_nohash_0.wav",
        "yes/00176480_nohash_0.wav",
        "yes/0a7c2a8d_nohash_0.wav",
        "yes/0a7c2a8d_nohash_1.wav",
        "go/0132a06d_nohash_2.wav",
        "zero/0132a06d_nohash_0.wav",
    ):
        sound(root / name, 1.0)
    text(root / "validation_list.txt", "yes/0a7c2a8d_nohash_0.wav\nyes/0a7c2a8d_nohash_1.wav\n")
    text(root / "testing_list.txt", "go/0132a06d_nohash_2.wav\nzero/0132a06d_nohash_0.wav\n")
    text(root / "README.md", "# Speech Commands Data Set v0.01\n")
    sound(root / "_background_noise_" / "running_tap.wav", 2.5)
    sound(root / "_background_noise_" / "pink_noise.wav", 3.0)
    test = tmp_path / "speech_commands_test_set_v0.01"
    for name in (
        "_silence_/1035.wav",
        "_unknown_/bed_3ff840aa_nohash_0.wav.wav",
        "go/0132a06d_nohash_2.wav",
        "yes/3ff840aa_nohash_0.wav",
    ):
        sound(test / name, 1.0)
    return root


def test_speech_commands_v1(commands):
    prepared = prepare("speech-commands-v1", commands)
    assert {f"{clip.path.parent.name}/{clip.path.name}": (clip.split, clip.group) for clip in prepared.clips} == {
        "bed/00176480_nohash_0.wav": ("train", "00176480"),
        "bed/004ae714_nohash_0.wav": ("train", "004ae714"),
        "go/0132a06d_nohash_2.wav": ("test", "0132a06d"),
        "yes/00176480_nohash_0.wav": ("train", "00176480"),
        "yes/0a7c2a8d_nohash_0.wav": ("valid", "0a7c2a8d"),
        "yes/0a7c2a8d_nohash_1.wav": ("valid", "0a7c2a8d"),
        "zero/0132a06d_nohash_0.wav": ("test", "0132a06d"),
    }
    assert all(clip.labels == (clip.path.parent.name,) for clip in prepared.clips)
    assert len(prepared.classes) == 30


def test_speech_commands_lists_show_what_is_missing(commands, text):
    (commands / "zero" / "0132a06d_nohash_0.wav").unlink()
    prepared = prepare("speech-commands-v1", commands)
    assert [entry.path.rpartition("zero/")[2] for entry in prepared.missing] == ["0132a06d_nohash_0.wav"]
    text(commands / "testing_list.txt", "go/0132a06d_nohash_2.wav\nrubbish\n")
    with pytest.raises(DataError, match="line 2: expected 'word/SPEAKER"):
        prepare("speech-commands-v1", commands)
    text(commands / "testing_list.txt", "yes/0a7c2a8d_nohash_0.wav\n")
    with pytest.raises(DataError, match="1 names are in both lists"):
        prepare("speech-commands-v1", commands)


def test_a_speaker_in_training_and_test_is_refused(commands, text):
    text(commands / "testing_list.txt", "bed/00176480_nohash_0.wav\n")
    with pytest.raises(DataError, match="00176480 is in test and train"):
        prepare("speech-commands-v1", commands)


def test_versions_of_speech_commands_are_distinguished(commands, sound, text):
    sound(commands / "visual" / "00176480_nohash_0.wav")
    with pytest.raises(DatasetStructureError, match="use speech-commands-v2"):
        prepare("speech-commands-v1", commands)
    sound(commands / "holiday" / "00176480_nohash_0.wav")
    prepared = prepare("speech-commands-v2", commands)
    assert len(prepared.clips) == 8
    assert len(prepared.classes) == 35
    assert any("holiday" in note for note in prepared.notes)


@pytest.mark.parametrize("where", ["speech_commands_v0.01", "."])
def test_superb_has_twelve_classes(commands, where):
    prepared = prepare("speech-commands-v1-superb", commands.parent / where)
    found = Counter((clip.split, clip.labels[0]) for clip in prepared.clips)
    assert found == {
        ("train", "_unknown_"): 2,
        ("train", "yes"): 1,
        ("valid", "yes"): 2,
        ("train", "_silence_"): 3,
        ("valid", "_silence_"): 2,
        ("test", "_silence_"): 1,
        ("test", "_unknown_"): 1,
        ("test", "go"): 1,
        ("test", "yes"): 1,
    }
    assert {clip.path.parent.parent.name for clip in prepared.clips if clip.split == "test"} == {
        "speech_commands_test_set_v0.01"
    }
    groups = [clip.group for clip in prepared.clips if clip.split == "test"]
    assert groups == ["test set, _silence_/1035", "3ff840aa", "0132a06d", "3ff840aa"]
    silence = [clip for clip in prepared.clips if clip.labels == ("_silence_",) and clip.split != "test"]
    assert all(clip.duration_s == 1.0 for clip in silence)
    Manifest(prepared.clips).check()


def test_superb_needs_its_test_set_and_lists_broken_noise(commands):
    (commands / "_background_noise_" / "pink_noise.wav").write_text("no audio")
    prepared = prepare("speech-commands-v1-superb", commands)
    assert len(prepared.skipped) == 1
    (commands.parent / "speech_commands_test_set_v0.01").rename(commands.parent.parent / commands.parent.name / ".gone")
    with pytest.raises(DatasetStructureError, match="no test set"):
        prepare("speech-commands-v1-superb", commands)


def test_iemocap_merges_excited_into_happy_and_leaves_out_the_rest(iemocap):
    prepared = prepare("iemocap", iemocap)
    assert Counter(clip.labels[0] for clip in prepared.clips) == {"neutral": 5, "happy": 10, "angry": 5, "sad": 5}
    assert prepared.counts == {f"fold{session}": 5 for session in range(1, 6)}
    clip = prepared.clips[0]
    assert clip.path == iemocap / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    assert (clip.split, clip.group) == ("fold1", "Session1")
    assert any("fru 5" in note and "xxx 5" in note for note in prepared.notes)
    assert not prepared.skipped


def test_moved_or_missing_parts_of_iemocap_are_noticed(iemocap, sound):
    sound(iemocap / "Session3" / "sentences" / "wav" / "extra" / "extra.wav")
    folder = iemocap / "Session5" / "dialog" / "EmoEvaluation"
    (folder / "Ses05F_impro01.txt").rename(folder / ".Ses05F_impro01.txt")
    notes = prepare("iemocap", iemocap).notes
    assert any("Session5" in note and "left out" in note for note in notes)
    assert any("Session3: 1 recordings are in no table" in note for note in notes)
    (iemocap / "Session1").rename(iemocap / ".Session1")
    assert prepare("iemocap", iemocap).counts == {"fold2": 5, "fold3": 5, "fold4": 5}
    (iemocap / ".Session1").rename(iemocap / "Session1")
    (folder / ".Ses05F_impro01.txt").rename(iemocap / "Session4" / "dialog" / "EmoEvaluation" / "Ses05F_impro01.txt")
    with pytest.raises(DataError, match="Ses05F_impro01_F000, which belongs to another session"):
        prepare("iemocap", iemocap)
    table = iemocap / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    table.write_text(table.read_text().replace("\tneu\t", " neu "))
    with pytest.raises(DataError, match="expected '\\[start - end\\]<tab>turn"):
        prepare("iemocap", iemocap)


@pytest.fixture
def voxceleb1(tmp_path, sound, text):
    """iden_split.txt as published: `3 id10003/na8-QEFmj44/00003.wav`."""
    root = tmp_path / "VoxCeleb1"
    lines = [
        "3 id10003/na8-QEFmj44/00003.wav",
        "1 id10003/tCq2LcKO6xY/00002.wav",
        "1 id10003/K5zRxtXc27s/00001.wav",
        "2 id10003/K5zRxtXc27s/00002.wav",
        "1 id10270/5r0dWxy17C8/00001.wav",
        "2 id10270/8jEAjG6SegY/00001.wav",
        "3 id10270/GWXujl-xAVM/00001.wav",
    ]
    text(root / "iden_split.txt", "\n".join(lines) + "\n")
    for line in lines:
        name = line.split()[1]
        sound(root / ("test" if "id10270" in name else "dev") / "wav" / name)
    return root


@pytest.mark.parametrize("together", [False, True])
def test_voxceleb1(voxceleb1, together):
    if together:
        (voxceleb1 / "dev" / "wav").rename(voxceleb1 / "wav")
        (voxceleb1 / "test" / "wav" / "id10270").rename(voxceleb1 / "wav" / "id10270")
    prepared = prepare("voxceleb1", voxceleb1)
    assert prepared.counts == {"train": 3, "valid": 2, "test": 2}
    assert prepared.classes == ("id10003", "id10270")
    assert not prepared.skipped
    groups = {clip.path.parent.name: clip.group for clip in prepared.clips}
    assert groups["na8-QEFmj44"] == "id10003/na8-QEFmj44"
    assert groups["K5zRxtXc27s"] is None, "a video that both trains and validates is said, and not refused"
    assert any("K5zRxtXc27s" in note for note in prepared.notes)


def test_a_voxceleb1_video_in_training_and_test_is_refused(voxceleb1):
    path = voxceleb1 / "iden_split.txt"
    path.write_text(path.read_text().replace("2 id10003/K5zRxtXc27s", "3 id10003/K5zRxtXc27s"))
    with pytest.raises(DataError, match="K5zRxtXc27s is in test and train"):
        prepare("voxceleb1", voxceleb1)


def test_missing_parts_and_a_damaged_list_of_voxceleb1_are_noticed(voxceleb1):
    (voxceleb1 / "test" / "wav" / "id10270").rename(voxceleb1 / "test" / "wav" / "gone")
    assert len(prepare("voxceleb1", voxceleb1).missing) == 3
    path = voxceleb1 / "iden_split.txt"
    path.write_text(path.read_text() + "4 id10003/na8-QEFmj44/00004.wav\n")
    with pytest.raises(DataError, match="line 8: expected '1 id10001/VIDEO"):
        prepare("voxceleb1", voxceleb1)
    path.unlink()
    with pytest.raises(DatasetStructureError, match=r"no iden_split\.txt"):
        prepare("voxceleb1", voxceleb1)


@pytest.fixture
def librispeech(tmp_path, sound, text):
    """READER/CHAPTER/READER-CHAPTER-NUMBER.flac and a transcript for each chapter, as on openslr.org/12."""
    root = tmp_path / "LibriSpeech"
    for subset, reader, chapter in (
        ("train-clean-100", "103", "1240"),
        ("dev-clean", "84", "121123"),
        ("test-other", "367", "130732"),
    ):
        folder = root / subset / reader / chapter
        names = [f"{reader}-{chapter}-{i:04d}" for i in range(2)]
        for name in names:
            sound(folder / f"{name}.flac")
        text(folder / f"{reader}-{chapter}.trans.txt", "".join(f"{name} GO DO YOU HEAR\n" for name in names))
    text(root / "SPEAKERS.TXT", "; ID |SEX| SUBSET | MINUTES | NAME\n")
    return root


def test_librispeech(librispeech):
    (librispeech / "dev-clean" / "84" / "121123" / "84-121123-0001.flac").unlink()
    prepared = prepare("librispeech", librispeech.parent)
    assert prepared.counts == {"train": 2, "valid": 1, "test": 2}
    assert [clip.group for clip in prepared.clips] == ["103", "103", "84", "367", "367"]
    assert [entry.path.rpartition("/")[2] for entry in prepared.missing] == ["84-121123-0001.flac"]
    assert not any(clip.labels for clip in prepared.clips)
    assert any("train-other-500 is not there" in note for note in prepared.notes)
    assert any("train-clean-100: its transcripts have 2 utterances, published are 28539" in n for n in prepared.notes)


def test_librispeech_readers_in_two_subsets_and_misplaced_files_are_refused(librispeech, text):
    reader = librispeech / "train-clean-100" / "103"
    (librispeech / "test-clean").mkdir()
    reader.rename(librispeech / "test-clean" / "103")
    (librispeech / "dev-clean" / "84").rename(librispeech / "train-clean-100" / "367")
    with pytest.raises(DataError, match=r"84-121123-0000\.flac, which belongs to another reader"):
        prepare("librispeech", librispeech)
    folder = librispeech / "train-clean-100" / "367" / "121123"
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("84-", "367-"))
    text(folder / "367-121123.trans.txt", "367-121123-0000 GO\n")
    with pytest.raises(DataError, match="367 is in test and train"):
        prepare("librispeech", librispeech)
