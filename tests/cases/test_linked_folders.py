"""Folders that are symbolic links (recordings on other disks; a data set put together of links), below a given one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ssamba.library.tables import read_embeddings


@pytest.fixture
def linked(tmp_path, second):
    """Four recordings in each folder; `rec` and `cls` hold links to other folders, and one to a folder around them."""
    for number, folder in enumerate(("far/siteA", "far/dog", "rec", "cls/cat", "cls/owl")):
        (tmp_path / "d" / folder).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "d" / folder / f"{i}.wav").write_bytes(second(4 * number + i))
    (tmp_path / "d/rec/siteA").symlink_to("../far/siteA")
    (tmp_path / "d/cls/dog").symlink_to("../far/dog")
    (tmp_path / "d/rec/loop").symlink_to("..")
    return tmp_path / "d"


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_linked_folders_are_embedded_and_the_loop_is_named(ssamba, linked, ssamba_pth):
    code, out, err = ssamba("embed", "d/rec", "-o", "o.npz", "-c", ssamba_pth)
    assert code == 0
    assert out.startswith("8 files embedded, 1 skipped: 8.0 s of audio")
    assert f"skipped d/rec/loop: is a link to {linked}, a folder that holds it: not followed" in err
    names = [f"d/rec/{i}.wav" for i in range(4)] + [f"d/rec/siteA/{i}.wav" for i in range(4)]
    assert read_embeddings("o.npz")["path"].tolist() == names
    assert [row["path"] for row in rows("o.npz.skipped.csv")] == ["d/rec/loop"]
    assert ssamba("embed", "d/rec", "-o", "o.npz", "-c", ssamba_pth, "--strict")[0] == 3


def test_linked_folders_are_classes_by_the_name_of_the_link(ssamba, linked):
    (linked / "cls" / "Hund").symlink_to(linked / "far" / "siteA")
    code, out, err = ssamba("manifest", "d/cls", "--labels", "folder", "-o", "m.csv")
    few = "warning: 4 classes are in fewer than 5 clips, too few to judge: Hund (4), cat (4), dog (4), owl (4)\n"
    assert (code, err) == (0, few)
    assert out.startswith("16 recordings, 16.0 s, 4 labels, 0 skipped")
    assert [row["path"] for row in rows("m.csv")][4:8] == [f"d/cls/cat/{i}.wav" for i in range(4)]
    assert sorted({row["labels"] for row in rows("m.csv")}) == ["Hund", "cat", "dog", "owl"]


def test_a_file_in_the_folders_of_two_classes_is_an_error_that_names_both(ssamba, linked):
    (linked / "cls" / "owl" / "cat.wav").symlink_to("../cat/0.wav")
    code, out, err = ssamba("manifest", "d/cls", "--labels", "folder", "-o", "m.csv")
    assert (code, out) == (1, "")
    assert err == (
        "error: d/cls/cat/0.wav (label cat) and d/cls/owl/cat.wav (label owl) are one file, through a link: remove one "
        "of them, so that it has one label and is in one split\n"
    )
    assert not (linked.parent / "m.csv").exists()


def test_a_link_to_a_disk_that_is_not_there_is_named(ssamba, linked, ssamba_pth):
    (linked / "rec" / "loop").unlink()
    (linked / "rec" / "siteB").symlink_to("/mnt/disk2/siteB")
    code, out, err = ssamba("embed", "d/rec", "-o", "o.npz", "-c", ssamba_pth, "--strict")
    assert code == 3
    assert out.startswith("8 files embedded, 1 skipped")
    assert "skipped d/rec/siteB: is a link to /mnt/disk2/siteB, which does not exist" in err
