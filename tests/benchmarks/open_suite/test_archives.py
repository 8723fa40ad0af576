"""Sounds are found in the archives of games, and damage costs the archive alone."""

from __future__ import annotations

import io

import pytest
from benchmarks.open_suite.archives import inner_sounds, is_archive
from benchmarks.open_suite.debs import find_debs
from benchmarks.open_suite.unpack import unpack
from tests.benchmarks.open_suite.conftest import cat_bytes, files_below, rcc_bytes, zip_bytes

from ssamba.errors import DataError


def read(path, data):
    return dict(inner_sounds(path, io.BytesIO(data)))


def test_zips_under_every_name(wav):
    sound = wav()
    data = zip_bytes({"sound/door.wav": sound, "maps/a.bsp": b"x", "../up.wav": sound, "/abs.ogg": b"y"})
    for name in ("usr/pak0.pk3", "usr/pak0.wz", "usr/pak0.ZIP"):
        assert is_archive(name)
        assert read(name, data) == {"_inner/pak0/sound/door.wav": sound, "_inner/pak0/abs.ogg": b"y"}
    assert read("usr/other.dat", b"not a zip") == {}
    assert not is_archive("usr/x.png")


def test_resources_of_qt_plain_and_compressed(wav):
    files = {"a.wav": wav(), "b.wav": wav(), "c.png": b"picture"}
    found = read("usr/core.rcc", rcc_bytes(files))
    assert found == {"_inner/core/sounds/a.wav": files["a.wav"], "_inner/core/sounds/b.wav": files["b.wav"]}


def test_catalogs_of_openttd(wav):
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
def test_a_damaged_archive_is_one_error(name, make, wav):
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
