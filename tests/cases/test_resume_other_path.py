"""The same folder named another way (from another directory, absolute, through a link): its files are there already."""

from __future__ import annotations

import csv
import os
import shutil

import pytest

from ssamba.library.tables import read_embeddings


@pytest.fixture
def folder(tmp_path, clips):
    (tmp_path / "rec").mkdir()
    for number, clip in enumerate(clips[:3]):
        shutil.copy(clip, tmp_path / "rec" / f"{number}.flac")
    (tmp_path / "link").symlink_to("rec")
    return tmp_path


def other_ways(folder):
    """Other names of `rec` and `o`, with the directory that they are seen from."""
    return [
        (".", "../{}", folder / "rec"),
        (folder / "rec", "{}", folder),
        ("rec/../rec/*.flac", "./{}", folder),
        ("link", str(folder / "{}"), folder),
        (os.path.relpath(folder / "rec", "/"), str(folder / "{}"), "/"),
    ]


def test_a_table_has_a_row_for_each_file_whatever_its_name(ssamba, folder, ssamba_pth):
    code, out, _ = ssamba("embed", "rec", "-o", "o.npz", "-c", ssamba_pth)
    assert (code, out.split(":")[0]) == (0, "3 files embedded")
    before = (folder / "o.npz").read_bytes()
    for recordings, output, cwd in other_ways(folder):
        code, out, _ = ssamba("embed", recordings, "-o", output.format("o.npz"), "-c", ssamba_pth, cwd=cwd)
        assert (code, out.split(",")[0]) == (0, "nothing to do: 3 files already there")
    assert (folder / "o.npz").read_bytes() == before
    table = read_embeddings(folder / "o.npz")
    assert table["path"].tolist() == [f"rec/{number}.flac" for number in range(3)]
    code, out, _ = ssamba("embed", ".", "-o", "../o.npz", "-c", ssamba_pth, "--prune", cwd=folder / "rec")
    assert (code, out.split(",")[0]) == (0, "nothing to do: 3 files already there")


def test_predictions_have_rows_for_each_file_whatever_its_name(ssamba, folder, classifier_folder):
    code, out, _ = ssamba("predict", "rec", "-o", "p.csv", "-c", classifier_folder)
    assert (code, out.split(":")[0]) == (0, "3 files classified")
    for recordings, output, cwd in other_ways(folder)[:2]:
        code, out, _ = ssamba("predict", recordings, "-o", output.format("p.csv"), "-c", classifier_folder, cwd=cwd)
        assert (code, out.split(",")[0]) == (0, "nothing to do: 3 files already there")
    with (folder / "p.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [f"rec/{n}.flac" for n in range(3) for _ in range(3)]
