"""File names as people and recorders write them, through every command that reads or writes them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ssamba.audio.decode import probe
from ssamba.cli.app import printable
from ssamba.files import path_from_text, path_text
from ssamba.library.embed import embed_files
from ssamba.library.tables import read_embeddings

NAMES = ["~a.wav", "-b.wav", 'c "d", e.wav', "f\ng,h.wav", "i \U0001f426.wav", "cafe\u0301.wav", "1.5.wav", "j..wav"]
NAMES += map(os.fsdecode, (b"caf\xe9.wav", rb"caf\xe9.wav", b"\xff\xfe.wav"))


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_recordings_of_any_name_are_embedded_into_tables_of_any_name(tmp_path, embedder, clips, suffix, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9: [1]")
    for number, name in enumerate([*NAMES, "~a.wav"]):
        (folder / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(clips[number % 3 + 4], folder / str(number % 2) / name)
    (folder / "1" / os.fsdecode(b"\xe9.wav")).touch()
    monkeypatch.chdir(folder / "0")
    output = folder / os.fsdecode(f"\xe9{suffix}".encode("latin-1"))
    assert embed_files(".", output, embedder).done == 6
    monkeypatch.chdir(folder / "1")
    report = embed_files([".", "~a.wav"], output, embedder)
    assert (report.done, report.kept, report.rows) == (6, 6, 12)
    assert [entry.path for entry in report.skipped] == ["\\xe9.wav"]
    assert Path(f"{output}.skipped.csv").read_text(encoding="utf-8").count("\\xe9.wav: is empty") == 1
    table = read_embeddings(output)
    names = [f"{number % 2}/{path_text(name)}" for number, name in enumerate([*NAMES, "~a.wav"])]
    assert sorted(table["path"].tolist()) == sorted(names)
    files = list(map(path_from_text, table["absolute_path"].tolist()))
    assert {Path(file).name for file in files} == set(NAMES)
    assert all(map(os.path.isfile, files))
    assert embed_files([folder], output, embedder).unchanged == 12


@pytest.mark.parametrize("name", NAMES)
def test_the_name_does_not_choose_the_decoder(tmp_path, clips, name, ssamba):
    shutil.copy(clips[0], tmp_path / name)
    assert probe(tmp_path / name).reader == "soundfile"
    code, out, err = ssamba("info", f"./{name}")
    assert (code, err) == (0, "")
    assert printable(name).splitlines()[-1] in out
