"""Manifests: every format gives the same clips back, errors name the line, broken files are left out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ssamba.annotations import Annotation, write_annotations
from ssamba.audio.decode import decode
from ssamba.audio.files import find_audio
from ssamba.data.folders import read_places
from ssamba.data.manifest import (
    Clip,
    Manifest,
    read_manifest,
    scan_folder,
    with_durations,
    write_manifest,
)
from ssamba.errors import DataError

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0;/\r\n"), min_size=1, max_size=12).map(str.strip)
WORDS = NAMES.filter(lambda name: name not in ("", ".", ".."))
CLIPS = st.builds(
    Clip,
    path=WORDS.map(lambda name: Path("/somewhere") / name),
    start_s=st.floats(0, 1e6),
    duration_s=st.none() | st.floats(1e-3, 1e6),
    labels=st.lists(WORDS, max_size=3).map(tuple),
    split=st.none() | WORDS,
    group=st.none() | WORDS,
)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@settings(deadline=None, max_examples=40)
@given(clips=st.lists(CLIPS, min_size=1, max_size=5))
def test_every_format_gives_the_same_clips_back(suffix, tmp_path_factory, clips):
    path = tmp_path_factory.mktemp("manifest") / f"m{suffix}"
    write_manifest(clips, path)
    manifest = read_manifest(path, check=False)
    assert list(manifest) == clips
    assert list(Manifest(manifest)) == clips
    assert manifest[-1] == clips[-1]
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_paths_are_relative_to_the_manifest_so_both_can_be_moved(tmp_path, clips):
    (tmp_path / "a" / "sounds").mkdir(parents=True)
    shutil.copy(clips[0], tmp_path / "a" / "sounds" / "x.flac")
    write_manifest([Clip(tmp_path / "a" / "sounds" / "x.flac"), Clip(clips[1].absolute())], tmp_path / "a" / "m.csv")
    assert "sounds/x.flac" in (tmp_path / "a" / "m.csv").read_text().splitlines()[1].split(",")
    (tmp_path / "a").rename(tmp_path / "b")
    one, other = read_manifest(tmp_path / "b" / "m.csv")
    assert one.path == tmp_path / "b" / "sounds" / "x.flac"
    assert one.path.is_file()
    assert other.path == clips[1].absolute()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "name", [b"\xff.wav", rb"\xff.wav", b'\xc3\x28 \n,".wav', "\u65b0 \U0001f426.wav".encode(), b"~a.wav"]
)
def test_any_file_name_is_found_again(tmp_path, suffix, name):
    tmp_path = tmp_path / os.fsdecode(b"a: caf\xe9")
    tmp_path.mkdir()
    path = tmp_path / os.fsdecode(name)
    path.touch()
    elsewhere = Path("/x") / os.fsdecode(name)
    write_manifest([Clip(path), Clip(elsewhere)], tmp_path / f"m{suffix}")
    if suffix != ".parquet":
        (tmp_path / f"m{suffix}").read_text(encoding="utf-8")
    manifest = read_manifest(tmp_path / f"m{suffix}")
    assert manifest[0].path == path
    assert manifest[1].path == elsewhere


def test_a_label_that_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match="separates labels"):
        write_manifest([Clip(Path("a.wav"), labels=("a;b",))], tmp_path / "n.csv")
    assert not (tmp_path / "n.csv").exists()
    write_manifest([Clip(Path("a.wav"), labels=("a;b",))], tmp_path / "n.jsonl")
    assert read_manifest(tmp_path / "n.jsonl").labels == ("a;b",)


def test_hand_written_csv_and_the_original_json_are_read(tmp_path):
    (tmp_path / "m.csv").write_text("﻿path,start,label,license\na.wav,1.5,dog; rain,CC0\nb.wav,,,\n", encoding="utf-8")
    manifest = read_manifest(tmp_path / "m.csv")
    assert manifest[0] == Clip(tmp_path / "a.wav", 1.5, None, ("dog", "rain"))
    assert manifest.notes == ("columns ignored: license",)
    assert manifest.labels == ("dog", "rain")
    assert manifest.hours is None
    (tmp_path / "o.json").write_text(
        json.dumps({"data": [{"wav": "/x/a.flac", "labels": "/m/1,/m/2"}, {"wav": "b.wav"}]})
    )
    official = read_manifest(tmp_path / "o.json")
    assert official[0] == Clip(Path("/x/a.flac"), labels=("/m/1", "/m/2"))
    assert official[1] == Clip(tmp_path / "b.wav")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_annotations_are_clips(tmp_path, suffix):
    owl, fox = (str(tmp_path / name) for name in ("a.wav", "b.wav"))
    rows = [Annotation(owl, 1.5, 2.25, "owl", 0.9), Annotation(fox, 0.0, 3.0, "fox")]
    write_annotations(tmp_path / f"found{suffix}", rows)
    assert list(read_manifest(tmp_path / f"found{suffix}")) == [
        Clip(tmp_path / "a.wav", 1.5, 0.75, ("owl",)),
        Clip(tmp_path / "b.wav", 0.0, 3.0, ("fox",)),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "file,label\na.wav,x\n", "no column 'path'.*rename 'file'"),
        ("m.csv", "path,start_s\na.wav,soon\n", "line 2: start_s must be a number"),
        ("m.csv", "path,start_s\na.wav,-1\n", "line 2.*at least 0"),
        ("m.csv", "path,duration_s\na.wav,0\n", "above 0"),
        ("m.csv", "path,start_s\na.wav,1,2,3\n", "line 2: more values"),
        ("m.csv", "path,start,start_s\na.wav,1,2\n", "both"),
        ("m.csv", "path\n", "lists no recording"),
        ("m.csv", "", "no column 'path'"),
        ("m.csv", "path,split\n,x\n", "line 2: expected the path"),
        ("m.csv", "path\na.wav\na.wav\n", "listed twice: .*a.wav .clips 1 and 2"),
        ("m.csv", "path,split\na.wav,train\n./a.wav,test\n", "clips 1 and 2, splits train and test"),
        ("m.csv", "path,split,group\na.wav,train,anna\nb.wav,test,anna\n", "1 groups.*anna .test, train"),
        ("m.jsonl", '{"path": "a.wav"}\nnonsense\n', "line 2: is not JSON"),
        ("m.csv", 'path,label\n"a.wav,x\nb.wav,x\nc.wav,x\n', "line 2: a quote .* to the end of the file"),
        ("m.csv", "path,label\nC:\\x\\a.wav,x\n", "line 2: C:.* is a path of Windows"),
        ("m.csv", "path,path\na.wav,x\n", "two columns are named 'path'"),
        ("m.jsonl", "[1]\n", "expected an object"),
        ("m.jsonl", '{"path": "a.wav"}\n{"path": "b.wav", "label": "\\ud800"}\n', "line 2: .ud800 is not valid"),
        ("m.jsonl", '{"path": "a\\u0000.wav"}\n', "line 1: expected the path"),
        ("m.json", '{"data": [{"path": "a.wav"}]}', "the original's layout"),
        ("m.json", "[", "is not JSON"),
        ("m.parquet", "PAR1 or not", "no Parquet file"),
        ("m.txt", "a.wav", "ends in .csv"),
    ],
)
def test_errors_name_the_line_and_the_problem(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path / name)


def test_a_missing_file_and_a_missing_split_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_manifest(tmp_path / "m.csv")
    manifest = Manifest([Clip(Path("a"), split="train"), Clip(Path("b"), split="test"), Clip(Path("c"))])
    assert [clip.path.name for clip in manifest.in_split("test")] == ["b"]
    assert manifest.in_split(None) is manifest
    with pytest.raises(DataError, match="train, test"):
        manifest.in_split("valid")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_scan_lists_readable_and_broken_files(tmp_path, clips, workers):
    for path in clips[:4]:
        (tmp_path / path.stem).mkdir()
        shutil.copy(path, tmp_path / path.stem / "take.flac")
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "empty.wav").touch()
    seen = []
    found, skipped = scan_folder(tmp_path, workers, lambda p: seen.append((p.done, p.skipped)), labels="folder")
    assert seen[-1] == (6, 2)
    assert [clip.labels[0] for clip in found] == sorted(path.stem for path in clips[:4])
    assert {Path(entry.path).name for entry in skipped} == {"text.wav", "empty.wav"}
    assert all(entry.path in entry.reason for entry in skipped)
    for clip in found:
        assert clip.duration_s == pytest.approx(len(decode(clip.path)) / 16_000, abs=1e-4)


def test_a_label_is_that_of_the_path_as_found_not_of_a_links_target(tmp_path):
    for name in ("far/dog/1.wav", "cls/cat/2.wav", "far/3.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "cls" / "Hund").symlink_to("../far/dog")
    (tmp_path / "cls" / "cat" / "link.wav").symlink_to("../../far/3.wav")
    (tmp_path / "cls" / os.fsdecode(b"caf\xe9")).mkdir()
    (tmp_path / "cls" / os.fsdecode(b"caf\xe9") / "4.wav").touch()
    (tmp_path / "cls" / "cafe\u0301").mkdir()
    (tmp_path / "cls" / "cafe\u0301" / "5.wav").touch()
    files = find_audio([tmp_path / "cls"])
    labels = {file.name: place.label for file, place in zip(files, read_places(files), strict=True)}
    expected = {"1.wav": "Hund", "2.wav": "cat", "link.wav": "cat", "4.wav": "caf\\xe9", "5.wav": "caf\u00e9"}
    assert labels == expected


@pytest.mark.parametrize(
    ("file", "link", "target", "message"),
    [
        ("cat/1.wav", "owl/2.wav", "../cat/1.wav", r"cat/1.wav \(label cat\) and .*owl/2.wav \(label owl\)"),
        ("cat/in/1.wav", "owl", "cat/in", r"cat/in/1.wav \(label cat\) and .*owl/1.wav \(label owl\)"),
        ("train/cat/1.wav", "test", "train", r"label cat, split train\) and .*label cat, split test\)"),
    ],
)
def test_a_file_under_two_labels_or_splits_is_refused(tmp_path, file, link, target, message):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target)
    with pytest.raises(DataError, match=message):
        scan_folder(tmp_path, labels="folder")


def test_links_within_a_class_are_one_recording(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    for name in ("cat/1.wav", "dog/1.wav"):
        (tmp_path / name).touch()
    (tmp_path / "cat" / "2.wav").symlink_to("1.wav")
    (tmp_path / "dog" / "loop").symlink_to("..")
    assert len(scan_folder(tmp_path, labels="folder")[1]) == 2


def test_rows_through_links_are_one_file_and_belong_to_one_split(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.wav").symlink_to("a.wav")
    (tmp_path / "in").symlink_to(".")
    path = tmp_path / "m.csv"
    path.write_text("path,label\na.wav,dog\nin/b.wav,cat\n")
    with pytest.raises(DataError, match=r"a.wav and .*in/b.wav \(clips 1 and 2, labels dog and cat\)"):
        read_manifest(path)
    path.write_text("path,start,duration,split\na.wav,0,1,train\nb.wav,1,1,test\n")
    with pytest.raises(DataError, match=r"a.wav \(train\) and .*b.wav \(test\). Put each recording in one split"):
        read_manifest(path)
    path.write_text("path,start,duration,label\na.wav,0,1,dog\nb.wav,1,1,cat\n")
    assert len(read_manifest(path)) == 2


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("path;start;duration;label\r\nsounds\\1.wav;1,5;2;K\xf6ter\r\n", "cp1252"),
        ("path\tstart\tduration\tlabel\nsounds/1.wav\t1.5\t2\tK\xf6ter\n", "utf-16"),
        ("\ufeffpath, start, duration, label, note\nsounds/1.wav, 1.5, 2, K\xf6ter\n", "utf-8"),
        ('{"path": "sounds/1.wav", "start": 1.5, "duration": 2, "label": "K\xf6ter"}\r\n', "latin-1"),
        ('{"data": [{"wav": "sounds/1.wav", "start": 1.5, "duration": 2, "labels": "K\xf6ter"}]}', "cp1252"),
    ],
)
def test_tables_of_other_systems_are_read(tmp_path, content, encoding):
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "1.wav").touch()
    path = tmp_path / f"m{'.csv' if content[0] != '{' else '.json' if 'data' in content else '.jsonl'}"
    path.write_bytes(content.encode(encoding))
    clip = Clip(tmp_path / "sounds" / "1.wav", 1.5, 2.0, ("K\xf6ter",))
    assert list(read_manifest(path, encoding=encoding)) == [clip]
    if encoding in ("cp1252", "latin-1"):
        with pytest.raises(DataError, match=rf"{path.name}, line [12]: byte 0xf6"):
            read_manifest(path)


def test_durations_are_filled_in(clips, tmp_path):
    manifest = Manifest([Clip(clips[0]), Clip(clips[1], 0.1), Clip(clips[2], 99.0), Clip(tmp_path / "none.wav")])
    full, skipped = with_durations(manifest)
    assert [clip.path for clip in full] == clips[:2]
    assert full[1].duration_s == pytest.approx(len(decode(clips[1])) / 16_000 - 0.1, abs=1e-4)
    assert full.hours is not None
    assert ["past the end" in skipped[0].reason, "no such file" in skipped[1].reason] == [True, True]
    assert with_durations(full)[0] is full
