"""Packages and the archives inside them are read without dpkg; damage is reported by name and affects nothing else."""

from __future__ import annotations

import io
import shutil

import pytest
from benchmarks.open_suite.packages import fetch_deb, find_debs, inner_sounds, is_archive, read_deb, unpack
from tests.benchmarks.open_suite.conftest import cat_bytes, files_below, rcc_bytes, zip_bytes

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


def test_two_versions_of_a_package_are_an_error(debs):
    debs("a", {}, version="1")
    with pytest.raises(DataError, match=r"holds a twice.*keep one"):
        find_debs(debs("a", {}, version="2"), ["a"])
    with pytest.raises(DataError, match="not a folder"):
        find_debs(debs.folder / "absent", ["a"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "not a Debian package"),
        (lambda data: b"<html>" + data, "not a Debian package"),
        (lambda data: data[:80], "cut off"),
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: data[:-40], "damaged or cut off"),
        (lambda data: data.replace(b"data.tar.xz", b"data.bar.xz"), "data.tar"),
    ],
)
def test_a_damaged_package_raises_one_error_with_its_name(damage, message, debs):
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
        "if sys.argv[-1] == 'b':\n"
        "    print('W: old', file=sys.stderr); print('E: Unable to locate', file=sys.stderr); sys.exit(100)\n"
        "Path(sys.argv[-1] + '_1_all.deb').write_bytes(b'x')",
    )
    assert fetch_deb("a", tmp_path) is None
    assert "E: Unable to locate" in (fetch_deb("b", tmp_path) or "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_1_all.deb", "bin"]


def read(path, data):
    return dict(inner_sounds(path, io.BytesIO(data)))


def test_sounds_are_found_in_zips_under_every_name(wav):
    sound = wav()
    data = zip_bytes({"sound/door.wav": sound, "maps/a.bsp": b"x", "../up.wav": sound, "/abs.ogg": b"y"})
    for name in ("usr/pak0.pk3", "usr/pak0.wz", "usr/pak0.ZIP"):
        assert is_archive(name)
        assert read(name, data) == {"_inner/pak0/sound/door.wav": sound, "_inner/pak0/abs.ogg": b"y"}
    assert read("usr/other.dat", b"not a zip") == {}
    assert not is_archive("usr/x.png")


def test_sounds_are_found_in_qt_resources_plain_and_compressed(wav):
    files = {"a.wav": wav(), "b.wav": wav(), "c.png": b"picture"}
    found = read("usr/core.rcc", rcc_bytes(files))
    assert found == {"_inner/core/sounds/a.wav": files["a.wav"], "_inner/core/sounds/b.wav": files["b.wav"]}


def test_sounds_are_found_in_openttd_catalogs(wav):
    files = {"door slam": wav(), "horn": wav()}
    assert is_archive("usr/opensfx.cat")
    assert not is_archive("usr/other.cat")
    found = read("usr/opensfx.cat", cat_bytes(files))
    assert found == {"_inner/opensfx/00_door_slam.wav": files["door slam"], "_inner/opensfx/01_horn.wav": files["horn"]}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("usr/a.pk3", lambda sound: zip_bytes({"a.wav": sound})[:-30]),
        ("usr/a.pk3", lambda sound: zip_bytes({"a.wav": sound}).replace(b"a.wav", b"b.wav", 1)),
        ("usr/a.rcc", lambda sound: b"none" + rcc_bytes({"a.wav": sound})),
        ("usr/a.rcc", lambda sound: rcc_bytes({"a.wav": sound})[:60]),
        ("usr/a.rcc", lambda sound: rcc_bytes({"a.wav": sound})[:10]),
        ("usr/opensfx.cat", lambda sound: cat_bytes({"a": sound})[:-100]),
        ("usr/opensfx.cat", lambda sound: b""),
    ],
)
def test_a_damaged_archive_raises_one_error(name, make, wav):
    with pytest.raises(DataError, match=name.rpartition("/")[2]):
        read(name, make(wav()))


def test_a_package_is_unpacked_whole_and_only_once(debs, wav, tmp_path):
    sound = wav()
    files = {
        "usr/a.wav": sound,
        "usr/b.wav": sound,
        "usr/pak.pk3": zip_bytes({"c.wav": sound, "d.wav": sound}),
        "usr/bad.pk3": b"PK rubbish",
    }
    deb = find_debs(debs("game", files), ["game"])["game"]
    damaged = unpack(deb, tmp_path / "work", lambda package, path: path[-5] in "ac")
    assert len(damaged) == 1
    assert "usr/bad.pk3" in damaged[0]
    assert files_below(tmp_path / "work") == ["game/_inner/pak/c.wav", "game/usr/a.wav"]
    deb.file.unlink()
    assert unpack(deb, tmp_path / "work", lambda package, path: True) == []


def test_a_package_that_is_cut_off_leaves_nothing_that_looks_whole(debs, wav, tmp_path):
    deb = find_debs(debs("game", {"usr/a.wav": wav(), "usr/b.wav": wav()}, compression=""), ["game"])["game"]
    deb.file.write_bytes(deb.file.read_bytes()[:-15_000])
    with pytest.raises(DataError, match="cut off"):
        unpack(deb, tmp_path / "work", lambda package, path: True)
    assert not (tmp_path / "work" / "game").exists()
