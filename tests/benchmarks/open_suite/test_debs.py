"""Packages are read without dpkg, whatever compresses them; what is damaged is said by name."""

from __future__ import annotations

import shutil

import pytest
from benchmarks.open_suite.debs import fetch_deb, find_debs, read_deb

from ssamba.errors import DataError


@pytest.mark.parametrize("compression", ["xz", "gz", "bz2", "", "zst"])
def test_files_of_a_package_are_read_whatever_compresses_it(compression, debs):
    if compression == "zst" and shutil.which("zstd") is None:
        pytest.skip("needs the program zstd to write one")
    folder = debs("a", {"usr/a.wav": b"sound", "usr/b.png": b"picture"}, compression=compression)
    found = find_debs(folder, ["a", "absent"])
    assert list(found) == ["a"]
    assert found["a"].version == "1:2.0-1"
    read = [(path, content.read()) for path, content in read_deb(found["a"].file, lambda path: path.endswith(".wav"))]
    assert read == [("usr/a.wav", b"sound")]  # and no symbolic link


def test_two_versions_of_a_package_are_not_guessed_between(debs):
    debs("a", {}, version="1")
    with pytest.raises(DataError, match=r"holds a twice.*keep one"):
        find_debs(debs("a", {}, version="2"), ["a"])
    with pytest.raises(DataError, match="not a folder"):
        find_debs(debs.folder / "absent", ["a"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "no Debian package"),
        (lambda data: b"<html>" + data, "no Debian package"),
        (lambda data: data[:80], "cut off"),
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: data[:-40], "damaged or cut off"),
        (lambda data: data.replace(b"data.tar.xz", b"data.bar.xz"), "data.tar"),
    ],
)
def test_a_damaged_package_is_one_error_with_its_name(damage, message, debs):
    file = find_debs(debs("a", {"usr/a.wav": bytes(range(256)) * 20}), ["a"])["a"].file
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        list(read_deb(file, lambda path: True))
    assert "a_1%3a2.0-1_all.deb" in str(caught.value)


def test_apt_downloads_to_the_folder_or_says_why_not(program, tmp_path):
    assert "no apt-get here" in (fetch_deb("a", tmp_path) or "")
    program(
        "apt-get",
        "from pathlib import Path\n"
        "if sys.argv[-1] == 'b': print('W: old', file=sys.stderr); print('E: Unable to locate', file=sys.stderr); sys.exit(100)\n"
        "Path(sys.argv[-1] + '_1_all.deb').write_bytes(b'x')",
    )
    assert fetch_deb("a", tmp_path) is None
    assert "E: Unable to locate" in (fetch_deb("b", tmp_path) or "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_1_all.deb", "bin"]
