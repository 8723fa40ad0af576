"""Files of annotations: what is written is read back and opens in other programs, and theirs are read."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from ssamba.annotations import Annotation, read_annotations, write_annotations, write_label_files
from ssamba.errors import ConfigError, DataError

NIGHT = [
    Annotation("nights/a.wav", 0.5, 2.25, "Großer Abendsegler", 0.9312),
    Annotation("nights/a.wav", 3.0, 3.0, 'ツグミ, "song"'),
    Annotation("nights/a.wav", 4.123456, 7200.0, "owl", 0.5, 800.0, 4000.5, "x10"),
]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet", ".selections.txt", ".labels.txt"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / "new" / f"found{suffix}"
    write_annotations(path, NIGHT)
    found = read_annotations(path, recording="nights/a.wav")
    if suffix != ".labels.txt":  # which names none: others are found from the folder of the file
        assert {one.path for one in found} == {str(Path("nights/a.wav").absolute())}
    found = [replace(one, path="nights/a.wav") for one in found]
    if suffix == ".labels.txt":  # without a column for probabilities
        assert [one.label for one in found] == [one.label for one in NIGHT]
        assert [(one.start_s, one.end_s, one.low_hz, one.high_hz) for one in found] == [
            (one.start_s, one.end_s, one.low_hz, one.high_hz) for one in NIGHT
        ]
    elif suffix == ".selections.txt":  # without unknown bands
        assert found[2] == NIGHT[2]
        assert [(one.path, one.label, one.probability) for one in found] == [
            (one.path, one.label, one.probability) for one in NIGHT
        ]
    else:
        assert found == NIGHT
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    write_annotations(path, [])
    assert read_annotations(path) == []


def test_paths_start_at_the_folder_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nights").mkdir()
    rows = [Annotation("nights/a.wav", 0, 1, "owl"), Annotation("nights/b.wav", 0, 1, "owl")]
    for name, shown in (
        ("e.csv", "nights/a.wav"),
        ("nights/e.csv", "a.wav"),
        ("out/e.json", str(tmp_path / "nights/a.wav")),
    ):
        write_annotations(name, rows)
        assert shown in Path(name).read_text()
        for folder, up in ((tmp_path, Path()), (tmp_path / "nights", Path(".."))):
            monkeypatch.chdir(folder)
            found = read_annotations(up / name)
            assert [Path(one.path).resolve() for one in found] == [tmp_path / row.path for row in rows]
        monkeypatch.chdir(tmp_path)
    write_annotations("tracks", rows, "audacity")
    assert [one.path for one in read_annotations("tracks", recording="nights")] == [row.path for row in rows]
    write_annotations("tables", rows, "raven")
    assert [one.path for one in read_annotations("tables")] == [str(tmp_path / row.path) for row in rows]


def test_selections_of_raven_reach_as_high_as_the_model_heard(tmp_path):
    for front_end, high_hz in (("x10", 80_000), ("16khz", 8_000), ("50-9000 Hz", 24_000), (None, 24_000)):
        write_annotations(tmp_path / "a.selections.txt", [Annotation("a.wav", 0, 1, "bat", 0.9, front_end=front_end)])
        (found,) = read_annotations(tmp_path / "a.selections.txt")
        assert (found.high_hz, found.front_end) == (high_hz, front_end)


def test_csv_has_the_mark_that_excel_needs_only_where_it_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_annotations(tmp_path / "a.csv", NIGHT[2:])
    assert (tmp_path / "a.csv").read_bytes() == (
        b"path,start_s,end_s,label,probability,low_hz,high_hz,front_end\n"
        b"nights/a.wav,4.123456,7200,owl,0.5000,800,4000.5,x10\n"
    )
    write_annotations(tmp_path / "b.csv", NIGHT[:2])
    with (tmp_path / "b.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [one.label for one in NIGHT[:2]]
    assert (tmp_path / "b.csv").read_bytes().startswith(b"\xef\xbb\xbfpath,")
    excel = "path;start_s;end_s;label\nM\u00f6we.wav;1,5;2,75;M\u00f6we\n"  # as Excel saves it in half of the world
    (tmp_path / "c.csv").write_text(excel, encoding="cp1252")
    assert read_annotations(tmp_path / "c.csv", encoding="cp1252") == [
        Annotation(str(tmp_path / "Möwe.wav"), 1.5, 2.75, "Möwe")
    ]


def test_tables_of_raven_are_read(tmp_path):
    header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
    one = tmp_path / "dawn.Table.1.selections.txt"
    one.write_text(
        f"{header}\tSpecies\n1\tWaveform 1\t1\t1.5\t2.5\t0\t24000\twren\n"
        "1\tSpectrogram 1\t1\t1.5\t2.5\t2000\t8000\twren\n2\tSpectrogram 1\t1\t4\t5\t100\t900\towl\n"
    )
    assert read_annotations(one) == [
        Annotation(str(tmp_path / "dawn"), 1.5, 2.5, "wren", None, 2000, 8000),
        Annotation(str(tmp_path / "dawn"), 4, 5, "owl", None, 100, 900),
    ]
    several = tmp_path / "several.txt"  # one table of two recordings: times run on, offsets do not
    several.write_text(
        f"{header}\tCommon Name\tConfidence\tBegin Path\tFile Offset (s)\n"
        "1\tSpectrogram 1\t1\t3\t6\t0\t12000\twren\t0.81\ta.wav\t3\n"
        "2\tSpectrogram 1\t1\t63\t66\t0\t12000\towl\t0.5\tb.wav\t3\n"
    )
    assert read_annotations(several) == [
        Annotation(str(tmp_path / "a.wav"), 3, 6, "wren", 0.81, 0, 12000),
        Annotation(str(tmp_path / "b.wav"), 3, 6, "owl", 0.5, 0, 12000),
    ]
    one.write_text(f"{header}\tSinger\tMood\n1\tSpectrogram 1\t1\t1\t2\t0\t1\twren\tgay\n")
    with pytest.raises(DataError, match=r"which column holds the label\? Name it \(label_column\)\. .* Singer, Mood"):
        read_annotations(one)
    assert read_annotations(one, label_column="Singer")[0].label == "wren"


def test_label_tracks_of_audacity_are_read(tmp_path):
    track = tmp_path / "dawn.wav.labels.txt"
    track.write_text("1,500000\t2,500000\twren\n\\\t2000,0\t-1,0\n3.0\t3.0\n")
    assert read_annotations(track) == [
        Annotation(str(tmp_path / "dawn.wav"), 1.5, 2.5, "wren", None, 2000.0, None),
        Annotation(str(tmp_path / "dawn.wav"), 3, 3, ""),
    ]


@pytest.mark.parametrize("style", ["raven", "audacity"])
def test_each_recording_has_a_file_of_its_own(tmp_path, style):
    rows = [Annotation("n/x/a.wav", 1, 2, "owl"), Annotation("n/y/a.wav", 3, 4, "tab\tin label")]
    paths = write_label_files(tmp_path / "out", rows, style, ["n/x/a.wav", "n/y/a.wav", "n/y/empty.wav"])
    suffix = {"raven": ".selections.txt", "audacity": ".labels.txt"}[style]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == [
        f"x/a.wav{suffix}",
        f"y/a.wav{suffix}",
        f"y/empty.wav{suffix}",
    ]
    found = read_annotations(tmp_path / "out")
    assert [(one.start_s, one.end_s, one.label) for one in found] == [(1, 2, "owl"), (3, 4, "tab in label")]
    with pytest.raises(ConfigError, match="one file for each recording, and there are 2"):
        write_annotations(tmp_path / f"all{suffix}", rows)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,start_s,end_s,label\na.wav,2,1,owl\n", r"line 2: expected 0 <= start <= end .* 2\.0 and 1\.0"),
        ("a.csv", "path,start_s,end_s,label\na.wav,,1,owl\n", "line 2: start_s is empty"),
        ("a.csv", "path,start_s,end_s,label\na.wav,soon,1,owl\n", "line 2: start_s must be a number, got 'soon'"),
        ("a.csv", "path,start_s,end_s,kind\na.wav,0,1,owl\n", r"line 2: no label .*label_column"),
        ("a.json", '{"path": 1}', "expected a list of objects"),
        ("a.json", "[", "cannot be read as JSON"),
        ("a.txt", "notes of the day\n", "line 1: expected the start, the end and the label, separated by tabs"),
        ("a.parquet", "no", "cannot be read as Parquet"),
        ("a.xlsx", "no", "expected annotations in a file that ends in"),
    ],
)
def test_wrong_files_are_refused_with_the_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_annotations(tmp_path / name)


def test_wrong_calls_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.csv, .* or \.labels\.txt"):
        write_annotations(tmp_path / "a.xlsx", NIGHT)
    with pytest.raises(ConfigError, match="style must be 'raven' or 'audacity'"):
        write_annotations(tmp_path, NIGHT, style="praat")
    with pytest.raises(DataError, match="no such file"):
        read_annotations(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"no file ends in \.selections\.txt"):
        read_annotations(tmp_path)
