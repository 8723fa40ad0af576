"""`ssamba manifest`, `shard` and `stats`, as a user sees them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssamba.cli import app
from ssamba.config import FrontEndConfig
from ssamba.data.corpus import open_corpus
from ssamba.data.listing import make_manifest
from ssamba.data.manifest import Clip, read_manifest, write_manifest
from ssamba.data.shards import write_shards
from ssamba.data.statistics import corpus_statistics, measure_statistics
from ssamba.errors import Interrupted, SkippedFilesError, SsambaError


def ssamba(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ssamba", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["manifest", "shard", "stats"])
def test_help_has_examples_and_exit_codes(command):
    done = ssamba(command, "--help")
    assert done.returncode == 0
    assert "Exit codes" in done.stdout
    assert "Examples" in done.stdout


def test_from_a_folder_to_statistics(tmp_path, clips):
    for path in clips[:5]:
        (tmp_path / "in" / path.stem[:4]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "in" / path.stem[:4])
    (tmp_path / "in" / "bad.wav").write_text("no audio")
    listed = tmp_path / "in" / "m.csv"

    done = ssamba("manifest", tmp_path / "in", "-o", listed, "--labels", "folder", "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert "5 recordings" in done.stdout
    assert "1 skipped" in done.stdout
    assert "bad.wav" in done.stderr
    assert "bad.wav" in (tmp_path / "in" / "m.csv.skipped.csv").read_text()
    assert read_manifest(listed).labels == tuple(sorted({path.stem[:4] for path in clips[:5]}))
    again = ssamba("manifest", tmp_path / "in", "-o", listed)
    assert again.returncode == 0
    assert "(unchanged)" in again.stdout

    with listed.open("a") as file:
        file.write("gone.wav,,1.0,,,\n")
    done = ssamba("shard", listed, "-o", tmp_path / "out", "--shard-mb", 0.05, "--strict", "--workers", 1)
    assert done.returncode == 3, done.stderr
    assert "5 clips" in done.stdout
    assert "gone.wav" in done.stderr
    again = ssamba("shard", listed, "-o", tmp_path / "out", "--shard-mb", 0.05, "--workers", 0)
    assert (again.returncode, "all already written" in again.stdout) == (0, True)
    refused = ssamba("shard", listed, "-o", tmp_path / "out", "--codec", "flac")
    assert refused.returncode == 1
    assert "holds other shards" in refused.stderr

    done = ssamba("stats", tmp_path / "out", "--mel-bins", 64)
    assert done.returncode == 0, done.stderr
    assert "[front_end]" in done.stdout.splitlines()
    corpus = open_corpus(tmp_path / "out")
    result = corpus_statistics(corpus, FrontEndConfig(num_mel_bins=64))
    assert done.stdout.endswith(f"mean = {result.mean:.4f}\nstd = {result.std:.4f}\n")
    assert ssamba("stats", tmp_path / "out", "--low-hz", 9000).returncode == 2


@pytest.fixture
def folder(tmp_path, clips):
    """Three recordings, and a file that is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in clips[6:9]:
        shutil.copy(path, folder)
    (folder / "bad.wav").write_text("no audio")
    return folder


def test_a_manifest_is_brought_up_to_date_and_labels_added_by_hand_stay(folder, clips, tmp_path):
    output = tmp_path / "m.csv"
    report = make_manifest(folder, output)
    assert (report.recordings, report.new, report.updated, len(report.skipped)) == (3, 3, False, 1)
    rows = list(read_manifest(output))
    part = Clip(rows[2].path, 0.1, 0.2, ("part",), "test", "g")
    write_manifest([Clip(rows[0].path, 0.0, rows[0].duration_s, ("mine",), "train", "g0"), rows[1], part], output)
    edited = output.read_text()
    assert "(unchanged)" in str(make_manifest(folder, output))
    assert output.read_text() == edited
    shutil.copy(clips[0], folder / "new.flac")
    shutil.copy(clips[1], rows[0].path)
    report = make_manifest(folder, output)
    assert (report.recordings, report.new, report.changed, report.other) == (4, 1, 1, 0)
    first, *_, third, fourth = read_manifest(output)
    assert (first.labels, first.split, first.group) == (("mine",), "train", "g0")
    assert first.duration_s == next(iter(read_manifest(output))).duration_s != rows[0].duration_s
    assert third == part
    assert fourth.path.name == "new.flac"
    report = make_manifest(folder / "new.flac", output)
    assert (report.recordings, report.other) == (4, 3)
    assert "3 of files not named this time (--prune drops them)" in str(report)
    report = make_manifest(folder / "new.flac", output, prune=True)
    assert (report.recordings, report.dropped) == (1, 3)
    assert make_manifest(folder, output, overwrite=True, labels="folder").labels == ("in",)


def test_what_a_manifest_cannot_keep_is_refused(folder, tmp_path):
    output = tmp_path / "m.csv"
    make_manifest(folder, output)
    lines = output.read_text().splitlines()
    text = "\n".join([f"{lines[0]},site", *(f"{line},north" for line in lines[1:])])
    output.write_text(text)
    with pytest.raises(SsambaError, match=r"columns that would be lost \(site; .*--overwrite"):
        make_manifest(folder, output)
    assert output.read_text() == text
    output.write_text("name\nx\n")
    with pytest.raises(SsambaError, match=r"no column 'path'.*--overwrite replaces it"):
        make_manifest(folder, output)
    assert make_manifest(folder, output, overwrite=True).recordings == 3


def test_a_stopped_listing_resumes(folder, tmp_path, monkeypatch):
    from ssamba.data import listing

    output, read = tmp_path / "m.csv", []
    measure = listing.measure_files
    monkeypatch.setattr(listing, "measure_files", lambda *given: (read.append(x[0]) or x for x in measure(*given)))
    report = make_manifest(folder, output, progress=lambda state: state.done < 2)
    assert not report.finished
    assert not output.exists()

    def interrupt(state):
        if state.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="lengths of 2 files are kept: repeat the command to resume"):
        make_manifest(folder, output, progress=interrupt)
    assert make_manifest(folder, output).recordings == 3
    assert len(read) == 6  # each once, and the broken one every time
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_strict_raises_after_writing(folder, tmp_path):
    with pytest.raises(SkippedFilesError) as caught:
        make_manifest(folder, tmp_path / "m.csv", strict=True)
    assert caught.value.report.recordings == len(read_manifest(tmp_path / "m.csv")) == 3
    with pytest.raises(SkippedFilesError) as caught:
        write_shards(folder, tmp_path / "s", "flac", strict=True, workers=0)
    assert caught.value.report.clips == len(open_corpus(tmp_path / "s")) == 3
    with pytest.raises(SkippedFilesError):
        measure_statistics(folder, strict=True)


def test_several_sources_are_one_corpus(folder, clips, tmp_path):
    make_manifest(clips[:2], tmp_path / "m.csv")
    report = write_shards([folder, tmp_path / "m.csv"], tmp_path / "s", "flac", workers=0)
    assert report.clips == 5
    result = measure_statistics([folder, tmp_path / "m.csv", tmp_path / "s"])
    assert result.clips == 10
    assert len(result.skipped) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["manifest", "shard"])
def test_an_interrupted_command_exits_130_and_goes_on(folder, tmp_path, command, how):
    target = next(folder.glob("*.flac"))
    for number in range(3000):
        (folder / f"{number}.flac").hardlink_to(target)
    output = tmp_path / ("m.csv" if command == "manifest" else "out")
    begun = tmp_path / "m.csv.partial" if command == "manifest" else output / ".records"
    arguments = [sys.executable, "-m", "ssamba", command, str(folder), "-o", str(output), "--workers", "0"]
    arguments += ["--codec", "flac", "--shard-mb", "0.3"] if command == "shard" else []
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(slow_headers(tmp_path))},
        # A script's background job, as the tests may be, ignores SIGINT, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "repeat the command to resume" in errors
    assert "Traceback" not in errors
    assert not output.is_file()
    if command == "manifest":
        assert make_manifest(folder, output).recordings == 3003


def slow_headers(tmp_path: Path) -> Path:
    """Return a folder for PYTHONPATH in which Python starts with a slow reader of headers."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import time\n"
        "import ssamba.data.listing as listing\n"
        "fast = listing.measure_files\n"
        "listing.measure_files = lambda *given: (time.sleep(0.003) or found for found in fast(*given))\n"
    )
    return folder


WRONG = [
    ("manifest", ("absent/",), {}, 1, "no recording can be read. absent: no such file"),
    ("manifest", ("*.none",), {}, 1, "the pattern matches no file"),
    ("manifest", ("empty",), {}, 1, "no audio file in this folder"),
    ("manifest", ("in",), {"output": "m.txt"}, 2, "ends in .csv, .jsonl, .parquet"),
    ("manifest", ("in",), {"output": "in"}, 2, "expected a file name that ends in"),
    ("manifest", ("in",), {"output": "folder.csv"}, 2, "is a folder"),
    ("manifest", ("in",), {"labels": "names"}, 2, "labels is 'folder' or None, got 'names'"),
    ("manifest", ("in/bad.wav",), {}, 1, "no recording can be read"),
    ("manifest", ("in",), {"output": "broken.csv"}, 1, "--overwrite replaces it"),
    ("manifest", ("in",), {"output": "columns.csv"}, 1, "columns that would be lost (site"),
    ("shard", ("absent/",), {}, 1, "absent"),
    ("shard", ("hf:someone/sounds",), {}, 1, "expected a folder of audio, a manifest or audio files"),
    ("shard", ("absent.csv",), {}, 1, "no such file"),
    ("shard", ("empty",), {}, 1, "no audio file in this folder"),
    ("shard", ("in",), {"codec": "mp3"}, 2, "Input should be 'opus' or 'flac'"),
    ("shard", ("in",), {"sample_rate": 44100}, 2, "Opus knows the rates"),
    ("shard", ("in",), {"bitrate": 3.0}, 2, "bitrate_kbps"),
    ("shard", ("in",), {"shard_mb": 0.0}, 2, "shard_mb"),
    ("shard", ("in",), {"max_clip_s": -1.0}, 2, "max_clip_s"),
    ("shard", ("in",), {"output": "in/bad.wav"}, 2, "is a file"),
    ("shard", ("in",), {"output": "tars"}, 1, "foreign.tar was not written by ssamba"),
    ("shard", ("in/bad.wav",), {}, 1, "none of 1 recordings can be read"),
    ("stats", ("absent/",), {}, 1, "no such file or folder"),
    ("stats", ("in/bad.wav",), {}, 1, "is neither a folder of audio, nor a manifest"),
    ("stats", ("empty",), {}, 1, "no audio file in this folder"),
    ("stats", ("in",), {"split": "train"}, 1, "a folder of audio has no splits"),
    ("stats", ("good.csv",), {"split": "train"}, 1, "no clip is in split 'train'"),
    ("stats", ("in",), {"mel_bins": 0}, 2, "num_mel_bins"),
    ("stats", ("in",), {"low_hz": 9000.0}, 2, "low_hz"),
    ("stats", ("in",), {"sample_rate": -1}, 2, "sample_rate_hz"),
    ("stats", ("in",), {"high_hz": 10.0}, 2, "high_hz"),
    ("stats", ("in",), {"hours": float("nan")}, 2, "hours must be a number of hours"),
]
FUNCTIONS = {"manifest": make_manifest, "shard": write_shards, "stats": measure_statistics}


@pytest.mark.parametrize(("command", "data", "options", "code", "message"), WRONG)
def test_wrong_uses_end_in_one_clear_message(folder, tmp_path, monkeypatch, command, data, options, code, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "folder.csv", "tars"):
        (tmp_path / name).mkdir()
    (tmp_path / "tars" / "foreign.tar").write_bytes(b"")
    (tmp_path / "broken.csv").write_text("x\n")
    (tmp_path / "columns.csv").write_text("path,site\na.wav,b\n")
    good = next((tmp_path / "in").glob("*.flac"))
    (tmp_path / "good.csv").write_text(f"path\n{good}\n")
    if command != "stats":
        options = {"output": "m.csv" if command == "manifest" else "out", **options}
    before = sorted(tmp_path.rglob("*"))
    arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    done = CliRunner().invoke(app, [command, *data, *arguments])
    assert done.exit_code == code, done.output
    assert message in done.stderr.replace("\n", " ")
    assert done.stderr.count("error:") == 1
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        FUNCTIONS[command](list(data), **options)
    assert message in str(caught.value)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "skipped" not in path.name] == []
