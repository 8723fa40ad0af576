"""`ssamba manifest`, `shard` and `stats`, as a user sees them."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from ssamba.config import FrontEndConfig
from ssamba.data.corpus import open_corpus
from ssamba.data.manifest import read_manifest
from ssamba.data.statistics import corpus_statistics


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
    assert again.returncode == 1
    assert "--overwrite" in again.stderr

    with listed.open("a") as file:
        file.write("gone.wav,,1.0,,,\n")
    done = ssamba("shard", listed, tmp_path / "out", "--shard-mb", 0.05, "--strict", "--workers", 1)
    assert done.returncode == 3, done.stderr
    assert "5 clips" in done.stdout
    assert "gone.wav" in done.stderr
    assert "already written" in ssamba("shard", listed, tmp_path / "out", "--shard-mb", 0.05, "--workers", 0).stdout
    refused = ssamba("shard", listed, tmp_path / "out", "--codec", "flac")
    assert refused.returncode == 1
    assert "holds other shards" in refused.stderr

    done = ssamba("stats", tmp_path / "out", "--mel-bins", 64)
    assert done.returncode == 0, done.stderr
    assert "[front_end]" in done.stdout.splitlines()
    corpus = open_corpus(tmp_path / "out")
    result = corpus_statistics(corpus, FrontEndConfig(num_mel_bins=64))
    assert done.stdout.endswith(f"mean = {result.mean:.4f}\nstd = {result.std:.4f}\n")
    assert ssamba("stats", tmp_path / "out", "--low-hz", 9000).returncode == 2
