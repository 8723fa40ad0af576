"""Paths as text, homes, real paths, and files that are complete or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from ssamba.files import (
    RealPaths,
    finite,
    json_text,
    path_from_text,
    path_text,
    user_path,
    utf8_text,
    write_atomically,
    write_csv,
    write_text,
)


@given(st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name))
@example(b"caf\xe9.wav")
@example(rb"caf\xe9.wav")
@example(rb"caf\x5cxe9.wav")
@example(b"caf\\\xe9\\x.wav")
def test_every_file_name_becomes_text_of_its_own(name):
    path = os.fsdecode(name)
    text = path_text(path)
    assert os.fsencode(path_from_text(text)) == name
    text.encode("utf-8")


def test_bytes_that_are_not_utf8_are_escaped_as_people_know_it():
    assert path_text(Path(os.fsdecode(b"/x/caf\xe9.wav"))) == "/x/caf\\xe9.wav"
    assert path_text("/x/café.wav") == "/x/café.wav"
    assert utf8_text("a\udce9b\ud800") == "a\\xe9b\\ud800"


def test_a_tilde_is_a_home_only_if_there_is_one(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/someone")
    assert user_path("~/a.wav") == Path("/home/of/someone/a.wav")
    assert user_path("~a.wav") == Path("~a.wav")
    assert user_path("rec/~/a.wav") == Path("rec/~/a.wav")


def test_real_paths_follow_links_of_folders_and_files(tmp_path, monkeypatch):
    (tmp_path / "far" / "in").mkdir(parents=True)
    for name in ("far/a.wav", "far/in/b.wav"):
        (tmp_path / name).touch()
    (tmp_path / "near").symlink_to("far/in")
    (tmp_path / "c.wav").symlink_to("far/a.wav")
    monkeypatch.chdir(tmp_path)
    real = RealPaths()
    for name in ("far/a.wav", "near/b.wav", "c.wav", "near/../a.wav", "absent/x.wav", "near", "far/in"):
        assert real(name) == os.path.realpath(name), name
    assert real("near/../a.wav") == real("c.wav")


def test_writers_never_fail_for_what_a_name_holds(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\xa6.wav")
    write_csv(tmp_path / "a.csv", ["path"], [[name], [1]])
    write_text(tmp_path / "in" / "a.txt", name)
    assert (tmp_path / "a.csv").read_text(encoding="utf-8-sig").splitlines() == ["path", "caf\\xe9 🐦.wav", "1"]
    assert (tmp_path / "in" / "a.txt").read_text(encoding="utf-8") == "caf\\xe9 🐦.wav"
    for options in ({}, {"indent": 1, "ascii_only": False}):
        text = json_text({name: [name, 1, None]}, **options)
        text.encode("utf-8")
        assert json.loads(text) == {"caf\\xe9 🐦.wav": ["caf\\xe9 🐦.wav", 1, None]}


@pytest.mark.parametrize("name", ["x" * 251 + ".npz", "é" * 125 + ".csv", "a.b"])
def test_the_longest_names_can_be_written(tmp_path, name):
    write_atomically(tmp_path / name, lambda target: target.write_text("done"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "done"


def test_values_that_json_does_not_have_become_null():
    values = {"loss": float("nan"), "scores": [1.5, float("-inf"), {"n": 3}], "name": "x"}
    assert json_text(finite(values)) == '{"loss": null, "scores": [1.5, null, {"n": 3}], "name": "x"}'
