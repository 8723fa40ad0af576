"""predict on a file whose name is not UTF-8 (b'caf\\xe9.wav', an old archive): to files, and to a UTF-8 terminal."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

NAMES = {"rec/caf\\xe9.wav", "rec/plain.wav"}
STRICT = {"PYTHONIOENCODING": "utf-8:strict"}


@pytest.fixture
def rec(tmp_path, second):
    """A folder `rec` with two recordings, one of them of such a name."""
    (tmp_path / "rec").mkdir()
    for number, name in enumerate((b"caf\xe9.wav", b"plain.wav")):
        (tmp_path / "rec" / os.fsdecode(name)).write_bytes(second(number))
    return tmp_path / "rec"


def test_predictions_of_any_name_are_written_and_printed(ssamba, rec, classifier_folder):
    code, out, err = ssamba("predict", "rec", "-c", classifier_folder, "-o", "p.csv", **STRICT)
    assert (code, err) == (0, "")
    with Path("p.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert {row["path"] for row in table} == NAMES
    assert len(table) == 6
    code, _, err = ssamba("predict", "rec", "-c", classifier_folder, "-o", "p.json", **STRICT)
    assert (code, err) == (0, "")
    assert {entry["path"] for entry in json.loads(Path("p.json").read_text(encoding="utf-8"))} == NAMES
    code, out, err = ssamba("predict", "rec", "-c", classifier_folder, "--format", "csv", **STRICT)
    assert (code, err.partition(":")[0]) == (0, "2 files classified")
    assert {row["path"] for row in csv.DictReader(io.StringIO(out)) if row["probability"]} == NAMES
    code, out, err = ssamba("predict", "rec", "-c", classifier_folder, **STRICT)
    assert (code, err.partition(":")[0]) == (0, "2 files classified")
    assert all(name in out for name in NAMES)
    code, out, _ = ssamba("predict", "rec", "-c", classifier_folder, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert code == 0
    assert "caf\\xe9.wav" in out


def test_the_same_command_knows_such_a_file_again(ssamba, rec, classifier_folder):
    for first in (True, False):
        code, out, err = ssamba("predict", "rec", "-c", classifier_folder, "-o", "p.csv", **STRICT)
        assert (code, err) == (0, "")
        assert out.startswith("2 files classified" if first else "nothing to do: 2 files already there")
    damaged = rec / os.fsdecode(b"\xff.wav")
    damaged.write_text("no audio")
    code, _, err = ssamba("predict", "rec", "-c", classifier_folder, "-o", "p.csv", "--strict", **STRICT)
    assert code == 3
    assert "skipped rec/\\xff.wav: is text" in err
