"""Every data set: missing and damaged files are listed, errors are explained, groups stay in one split."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from ssamba.cli import app
from ssamba.cli import prepare as command
from ssamba.data import listing
from ssamba.data.corpus import open_corpus
from ssamba.data.manifest import read_manifest
from ssamba.datasets import DATASETS, find_dataset, prepare, write_prepared
from ssamba.datasets.prepare import verify_archives
from ssamba.errors import ConfigError, DataError, DatasetStructureError, OtherSettingsError, SsambaError


def ssamba(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ssamba", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def replace_text(path, old, new):
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("name", DATASETS)
def test_a_folder_without_the_data_set_is_refused_with_the_expected_structure(name, tmp_path, sound):
    sound(tmp_path / "holiday" / "beach.wav")
    with pytest.raises(DatasetStructureError) as caught:
        prepare(name, tmp_path, audio=tmp_path / "audio")
    message = str(caught.value)
    assert DATASETS[name].structure in message
    assert DATASETS[name].reference in message
    with pytest.raises(DatasetStructureError, match="is not a folder"):
        prepare(name, tmp_path / "absent", audio=tmp_path / "audio")


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)
def test_published_numbers_agree_with_each_other(dataset):
    total = sum(dataset.published.values())
    if dataset.class_counts:
        assert len(dataset.class_counts) == dataset.num_classes
        assert sum(dataset.class_counts.values()) == total
    for digest in dataset.archives.values():
        algorithm, _, value = digest.partition(":")
        assert len(value) == hashlib.new(algorithm, usedforsecurity=False).digest_size * 2
    assert dataset.name in command.NAMES.split(", ")


def test_names_of_data_sets_are_matched_loosely():
    assert find_dataset("audioset20k").name == "audioset-20k"
    assert find_dataset("Speech_Commands_v1").name == "speech-commands-v1"
    with pytest.raises(ConfigError, match="did you mean 'urbansound8k'"):
        find_dataset("UrbanSounds8k")
    with pytest.raises(ConfigError, match="There are: audioset-20k"):
        find_dataset("?")


def test_missing_and_damaged_files_are_left_out_and_listed(esc50, tmp_path):
    (esc50 / "audio" / "1-137-A-32.wav").unlink()
    (esc50 / "audio" / "2-100648-A-43.wav").write_text("no audio")
    (esc50 / "audio" / "3-100018-A-18.wav").write_bytes(b"")
    whole = (esc50 / "audio" / "5-103415-A-2.wav").read_bytes()
    (esc50 / "audio" / "5-103415-A-2.wav").write_bytes(whole[: len(whole) // 2])
    seen = []
    prepared = prepare("esc50", tmp_path, progress=lambda p: seen.append((p.done, p.total)))
    assert seen[-1] == (7, 7)
    assert [clip.path.name for clip in prepared.clips] == ["1-100032-A-0.wav", "1-137-B-32.wav", "4-102844-A-49.wav"]
    assert [entry.path.rpartition("/")[2] for entry in prepared.missing] == ["1-137-A-32.wav"]
    assert len(prepared.damaged) == 3
    assert any("truncated" in entry.reason for entry in prepared.damaged)
    assert prepared.counts == {"fold1": 2, "fold4": 1}
    assert any("fold1 2 of 400" in note for note in prepared.notes)
    assert any("classes with recordings: 3 of 50" in note for note in prepared.notes)
    assert [clip.duration_s for clip in prepared.clips] == [0.5] * 3


def test_without_headers_only_missing_files_are_listed(esc50):
    (esc50 / "audio" / "1-137-A-32.wav").unlink()
    (esc50 / "audio" / "2-100648-A-43.wav").write_text("no audio")
    prepared = prepare("esc50", esc50, headers=False)
    assert len(prepared.clips) == 6
    assert len(prepared.missing) == 1
    assert not prepared.damaged
    assert prepared.hours is None


def test_worker_processes_find_the_same_clips(esc50):
    assert prepare("esc50", esc50, workers=2).clips == prepare("esc50", esc50).clips


def test_a_data_set_without_a_readable_file_is_an_error(esc50):
    for path in (esc50 / "audio").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none of the 7 recordings"):
        prepare("esc50", esc50)


def test_two_copies_in_a_folder_are_refused(esc50):
    (esc50.parent / "other" / "meta").mkdir(parents=True)
    (esc50.parent / "other" / "audio").mkdir()
    (esc50.parent / "other" / "meta" / "esc50.csv").write_text("")
    with pytest.raises(DatasetStructureError, match="several copies"):
        prepare("esc50", esc50.parent)


def test_a_recording_in_two_folds_is_refused_unless_allowed(urbansound8k, sound, tmp_path):
    table = urbansound8k / "metadata" / "UrbanSound8K.csv"
    replace_text(table, "121.wav,100263,60.5,64.5,1,5,", "121.wav,100263,60.5,64.5,1,7,")
    sound(urbansound8k / "audio" / "fold7" / "100263-2-0-121.wav")
    with pytest.raises(DataError, match="100263 is in fold5 and fold7"):
        prepare("urbansound8k", urbansound8k)
    prepared = prepare("urbansound8k", urbansound8k, allow_leaks=True)
    assert [clip.group for clip in prepared.clips if clip.path.name.startswith("100263")] == [None, None]
    assert any("1 group in more than one split" in note for note in prepared.notes)
    write_prepared(prepared, tmp_path / "m.csv")
    read_manifest(tmp_path / "m.csv")  # refuses groups that are divided


def test_a_missing_file_cannot_leak(urbansound8k):
    table = urbansound8k / "metadata" / "UrbanSound8K.csv"
    replace_text(table, "121.wav,100263,60.5,64.5,1,5,", "121.wav,100263,60.5,64.5,1,7,")
    assert len(prepare("urbansound8k", urbansound8k).missing) == 1


def test_a_clip_that_is_listed_twice_is_refused(urbansound8k):
    table = urbansound8k / "metadata" / "UrbanSound8K.csv"
    table.write_text(table.read_text() + "101415-3-0-2.wav,101415,1.0,5.0,1,1,3,dog_bark\n")
    with pytest.raises(DataError, match=r"listed twice.*101415-3-0-2\.wav"):
        prepare("urbansound8k", urbansound8k)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "no column 'filename'"),
        (lambda data: data.splitlines(True)[0], "holds no row"),
        (lambda data: data.replace(b"src_file", b"source"), "no column 'src_file'"),
        (lambda data: data[: data.index(b"100648")] + b"\n", "line 5: . values for 7 columns"),
        (lambda data: data.replace(b"dog", b"\xff"), "line 2: byte 0xff .* is not utf-8"),
        (lambda data: data.replace(b",5,2,pig", b",6,2,pig"), "line 8: fold must be a number from 1 to 5, got '6'"),
        (lambda data: data.replace(b",5,2,pig", b",4,2,pig"), "contradicts"),
        (lambda data: data.replace(b"B-32.wav,1,32,keyboard_typing", b"B-32.wav,1,32,cat"), "class 32 is 'cat'"),
    ],
)
def test_errors_in_tables_name_file_and_line(esc50, damage, message):
    table = esc50 / "meta" / "esc50.csv"
    table.write_bytes(damage(table.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        prepare("esc50", esc50)
    assert "esc50.csv" in str(caught.value)


def test_archives_are_compared_with_their_checksums(esc50, monkeypatch):
    (esc50 / "a.zip").write_bytes(b"whole")
    digests = {
        "a.zip": f"md5:{hashlib.md5(b'whole').hexdigest()}",
        "b.zip": f"sha256:{hashlib.sha256(b'b').hexdigest()}",
    }
    assert verify_archives(esc50, digests) == ["a.zip"]
    monkeypatch.setitem(DATASETS, "esc50", replace(DATASETS["esc50"], archives=digests))
    assert "checksums agree with the published ones: a.zip" in prepare("esc50", esc50, checksums=True).notes
    (esc50 / "b.zip").write_bytes(b"cut of")
    with pytest.raises(DataError, match=r"b\.zip: its sha256 is .*damaged"):
        prepare("esc50", esc50, checksums=True)


def test_a_note_says_that_no_checksum_was_compared(esc50):
    assert any("none is known" in note for note in prepare("esc50", esc50, checksums=True).notes)


def test_the_manifest_and_its_accompanying_files(audioset, tmp_path):
    output = tmp_path / "m.parquet"
    prepared = prepare("audioset-20k", audioset)
    written = write_prepared(prepared, output)
    assert [path.name for path in written] == [
        f"m.parquet{suffix}" for suffix in ("", ".classes.csv", ".weights.csv", ".skipped.csv")
    ]
    manifest = read_manifest(output)
    assert list(manifest) == list(prepared.clips)
    corpus = open_corpus(output, split="test")
    assert len(corpus.read(0)) == 8_000
    with (tmp_path / "m.parquet.classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert classes[0] == {"index": "0", "label": "Speech", "code": "/m/09x0r"}
    assert len(classes) == 527
    with (tmp_path / "m.parquet.weights.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    write_prepared(replace(prepared, dataset=DATASETS["esc50"], missing=(), classes=(), codes=()), output)
    assert sorted(path.name for path in tmp_path.glob("m.parquet*")) == ["m.parquet"]


def test_the_command_end_to_end(iemocap, tmp_path):
    (iemocap / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / "Ses01F_impro01_F000.wav").unlink()
    (iemocap / "Session2" / "sentences" / "wav" / "Ses02F_impro01" / "Ses02F_impro01_M001.wav").write_bytes(b"RIFF")
    output = tmp_path / "out" / "iemocap.parquet"
    done = ssamba("prepare", "iemocap", tmp_path, "-o", output, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert "23 clips" in done.stdout
    assert "1 missing, 1 damaged" in done.stdout
    assert "fold1 4, fold2 4, fold3 5" in done.stdout
    assert "Ses01F_impro01_F000.wav: missing" in done.stderr
    assert len(read_manifest(output)) == 23
    assert len((tmp_path / "out" / "iemocap.parquet.skipped.csv").read_text().splitlines()) == 3
    again = ssamba("prepare", "iemocap", tmp_path, "-o", output)
    assert (again.returncode, "(unchanged)" in again.stdout) == (0, True)
    again = ssamba("prepare", "iemocap", tmp_path, "-o", output, "--overwrite", "--strict", "--workers", 0)
    assert again.returncode == 3
    for code, *arguments in ((1, "iemocap", tmp_path / "out"), (2, "nothing", tmp_path)):
        done = ssamba("prepare", *arguments, "-o", tmp_path / "x.csv")
        assert done.returncode == code
        assert "Traceback" not in done.stderr
    assert ssamba("prepare", "iemocap", tmp_path, "-o", tmp_path / "x.txt").returncode == 2


def test_help_has_examples_and_exit_codes():
    done = ssamba("prepare", "--help")
    assert done.returncode == 0
    assert "Exit codes" in done.stdout
    assert "Examples" in done.stdout


def test_missing_recordings_are_added_later_and_changed_rows_are_kept(esc50, tmp_path):
    output, moved = tmp_path / "m.csv", esc50 / "audio" / "1-137-A-32.wav"
    content = moved.read_bytes()
    moved.unlink()
    assert len(prepare("esc50", esc50, output).clips) == 6
    moved.write_bytes(content)
    report = prepare("esc50", esc50, output)
    assert (len(read_manifest(output)), report.is_unchanged) == (7, False)
    assert prepare("esc50", esc50, output).is_unchanged
    replace_text(output, "keyboard_typing", "typing")
    edited = output.read_text()
    with pytest.raises(OtherSettingsError, match=r"1 of its 7 rows would change .*--overwrite"):
        prepare("esc50", esc50, output)
    assert output.read_text() == edited
    assert not prepare("esc50", esc50, output, overwrite=True).is_unchanged


@pytest.mark.parametrize(
    ("name", "source", "output", "options", "code", "message"),
    [
        ("esc51", ".", "m.csv", {}, 2, "did you mean 'esc50'"),
        ("", ".", "m.csv", {}, 2, "'' is not a known data set"),
        ("esc50", "absent", "m.csv", {}, 1, "absent is not a folder"),
        ("esc50", "empty", "m.csv", {}, 1, "does not contain ESC-50"),
        ("fsd50k", ".", "m.csv", {}, 1, "does not contain FSD50K"),
        ("esc50", ".", "m.txt", {}, 2, "ends in .csv, .jsonl, .parquet"),
        ("esc50", ".", "folder.csv", {}, 2, "is a folder"),
        ("esc50", ".", "other.csv", {}, 1, "1 of its 1 rows would change or be dropped"),
        ("esc50", ".", "broken.csv", {}, 1, "no column 'path'"),
        ("esc50", ".", "m.csv", {"strict": True}, 3, "1 clips are missing or damaged"),
    ],
)
def test_wrong_uses_end_in_one_clear_message(
    esc50, tmp_path, monkeypatch, name, source, output, options, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "other.csv").write_text("path\nx.wav\n")
    (tmp_path / "broken.csv").write_text("x\n")
    (esc50 / "audio" / "1-137-A-32.wav").unlink()
    flags = [f"--{flag}" for flag in options]
    done = CliRunner().invoke(app, ["prepare", name, source, "-o", output, "--workers", "0", *flags])
    assert done.exit_code == code, done.output
    assert message in done.stderr.replace("\n", " ")
    assert done.stderr.count("error:") == 1
    with pytest.raises(SsambaError) as caught:
        prepare(name, source, output, **options)
    assert message in str(caught.value)


def test_an_interrupted_command_keeps_the_lengths_that_it_read(esc50, tmp_path, monkeypatch):
    output, read = tmp_path / "m.csv", []
    measure = listing.measure_files

    def measure_three(*given):
        for number, found in enumerate(measure(*given)):
            if number == 3:
                raise KeyboardInterrupt
            read.append(found[0])
            yield found

    monkeypatch.setattr(listing, "measure_files", measure_three)
    done = CliRunner().invoke(app, ["prepare", "esc50", str(esc50), "-o", str(output), "--workers", "0"])
    assert (done.exit_code, done.stdout, output.exists()) == (130, "", False)
    assert "lengths of 3 files are kept: repeat the command to resume" in done.stderr
    monkeypatch.setattr(
        listing, "measure_files", lambda *given: (read.append(one[0]) or one for one in measure(*given))
    )
    assert len(prepare("esc50", esc50, output).clips) == len(read) == len(set(read)) == 7
