"""Finding recordings: files, folders, links and patterns; what is left out is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ssamba.audio.files import Skipped, find_audio


@pytest.fixture
def rec(tmp_path, monkeypatch) -> Path:
    """An empty folder `rec` in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("rec").mkdir()
    return Path("rec")


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def link(name: str, target: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(target)


def found(*entries: str) -> list[str]:
    return list(map(os.fspath, find_audio(entries)))


def test_a_folder_stands_for_its_audio_files_without_hidden_ones(rec):
    make("rec/b.wav", "rec/a/c.FLAC", "rec/._b.wav", "rec/.hidden/d.wav", "rec/notes.txt", "rec/__MACOSX/._b.wav")
    assert found("rec") == ["rec/a/c.FLAC", "rec/b.wav"]
    assert found("rec/._b.wav") == ["rec/._b.wav"]


@pytest.mark.parametrize(
    "name",
    ["~a.wav", "-a.wav", "a\nb.wav", '"a", b.wav', "caf\udce9.wav", "🐦.wav", "cafe\u0301.wav", "a..wav", "[a].wav"],
)
def test_any_name_is_a_name(rec, monkeypatch, name):
    make(f"rec/{name}", f"rec/{name}.d/b.wav")
    assert set(found("rec")) == {f"rec/{name}", f"rec/{name}.d/b.wav"}
    monkeypatch.chdir("rec")
    assert set(found(".")) == {name, f"{name}.d/b.wav"}
    assert found(name) == [name]
    assert found(f"{name}.d/*.wav") == [f"{name}.d/b.wav"]


def test_a_tilde_is_a_home_at_the_beginning_of_what_was_typed(rec, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "rec"))
    make("rec/a.wav", "rec/~/b.wav")
    assert found("~/a.wav") == [f"{tmp_path}/rec/a.wav"]
    assert found("~/*.wav") == [f"{tmp_path}/rec/a.wav"]
    monkeypatch.chdir("rec")
    assert found(".") == ["a.wav", "~/b.wav"]


def test_linked_folders_and_files_are_followed(rec):
    make("far/site/1.wav", "far/site/deep/2.wav", "far/3.wav", "rec/4.wav")
    link("rec/site", "../far/site")
    link("rec/three.wav", "../far/3.wav")
    assert found("rec") == ["rec/4.wav", "rec/site/1.wav", "rec/site/deep/2.wav", "rec/three.wav"]
    link("all", "rec")
    assert found("all") == ["all/4.wav", "all/site/1.wav", "all/site/deep/2.wav", "all/three.wav"]


def test_a_file_with_several_names_is_found_once_under_its_own(rec):
    make("rec/z/1.wav", "rec/z/2.wav")
    link("rec/a.wav", "z/1.wav")
    link("rec/b", "z")
    files = find_audio(["rec"])
    assert list(files) == [Path("rec/z/1.wav"), Path("rec/z/2.wav")]
    assert sorted(files.renamed_files()) == [
        (Path("rec/z/1.wav"), Path("rec/a.wav")),
        (Path("rec/z/1.wav"), Path("rec/b/1.wav")),
        (Path("rec/z/2.wav"), Path("rec/b/2.wav")),
    ]
    assert files.skipped == []


def test_the_first_name_that_was_typed_stays(rec, tmp_path):
    make("rec/1.wav")
    link("one.wav", "rec/1.wav")
    assert found("one.wav", "rec") == ["one.wav"]
    assert found(str(tmp_path / "rec"), "rec", "rec/../rec/1.wav") == [f"{tmp_path}/rec/1.wav"]
    assert list(find_audio(["rec", "./rec", str(tmp_path / "rec")]).renamed_files()) == []


def test_links_to_a_folder_around_them_are_not_followed(rec):
    make("rec/1.wav", "rec/a/2.wav", "beside/3.wav")
    link("rec/self", ".")
    link("rec/a/up", "..")
    link("rec/loop", "..")
    files = find_audio(["rec"])
    assert list(files) == [Path("rec/1.wav"), Path("rec/a/2.wav")]
    assert list(files.renamed_files()) == []
    (entry,) = files.skipped
    assert entry.path == "rec/loop"
    assert "a folder that holds it: not followed" in entry.reason
    assert find_audio(["rec", "."]).skipped == [], "nothing is left out if that folder is searched, too"


def test_links_that_lead_to_one_another_end(rec):
    for folder in "abcdefghij":
        make(f"rec/{folder}/{folder}.wav")
        for other in "abcdefghij":
            link(f"rec/{folder}/to_{other}", f"../{other}")
    link("rec/x.wav", "x.wav")
    files = find_audio(["rec"])
    assert list(files) == [*(Path(f"rec/{folder}/{folder}.wav") for folder in "abcdefghij"), Path("rec/x.wav")]
    make("far/1.wav")
    link("far/back", "../rec")
    link("rec/far", "../far")
    assert len(find_audio(["rec"])) == 12
    assert [entry.path for entry in find_audio(["rec"]).skipped] == []


def test_links_that_lead_nowhere_are_named(rec):
    make("rec/1.wav")
    link("rec/disk2", "/mnt/disk2/recordings")
    link("rec/itself", "itself")
    link("rec/gone.wav", "nowhere.wav")
    files = find_audio(["rec"])
    assert list(files) == [Path("rec/1.wav"), Path("rec/gone.wav")]
    reasons = {entry.path: entry.reason for entry in files.skipped}
    assert reasons == {
        "rec/disk2": "rec/disk2: is a link to /mnt/disk2/recordings, which does not exist",
        "rec/itself": "rec/itself: is a link to itself, which does not exist",
    }


def test_folders_that_cannot_be_read_are_named(rec):
    make("rec/1.wav")
    here, name = os.open("rec", os.O_RDONLY), "x" * 250
    for _ in range(20):  # longer than any path may be
        os.mkdir(name, dir_fd=here)
        there = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    files = find_audio(["rec"])
    assert list(files) == [Path("rec/1.wav")]
    (entry,) = files.skipped
    assert "this folder cannot be read (File name too long)" in entry.reason
    with pytest.raises(ValueError, match=r"no audio file in this folder \(rec/x.*File name too long"):
        find_audio([f"rec/{name}"])


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("Cast16 [-37.5 141.3]/*.wav", ["Cast16 [-37.5 141.3]/a.wav"]),
        ("Cast16 [-37.5 141.3]/a.wav", ["Cast16 [-37.5 141.3]/a.wav"]),
        ("Cast16 [[]*/*.wav", ["Cast16 [-37.5 141.3]/a.wav"]),
        ("*/take [1]*.wav", ["x/take 1.wav"]),
        ("*/take [1] *.wav", ["x/take [1] b.wav"]),
        ("x/take [12].wav", ["x/take 1.wav", "x/take 2.wav"]),
        ("x/take [1].wav", ["x/take 1.wav"]),
        ("**/a.wav", ["Cast16 [-37.5 141.3]/a.wav", "x/y/a.wav"]),
        ("x/**", ["x/take 1.wav", "x/take 2.wav", "x/take [1] b.wav", "x/y/a.wav"]),
        ("x/**/take ?.wav", ["x/take 1.wav", "x/take 2.wav"]),
        ("x/*", ["x/take 1.wav", "x/take 2.wav", "x/take [1] b.wav", "x/y/a.wav"]),
        ("[xX]/y", ["x/y/a.wav"]),
        ("x/.*.wav", ["x/.hidden.wav"]),
        ("?/../x/y/*", ["x/../x/y/a.wav"]),
    ],
)
def test_patterns_stand_for_what_they_match(rec, pattern, matched):
    make("Cast16 [-37.5 141.3]/a.wav", "x/take 1.wav", "x/take 2.wav", "x/take [1] b.wav", "x/y/a.wav", "x/.hidden.wav")
    assert found(pattern) == matched
    here = Path.cwd()
    assert found(f"{here}/{pattern}") == [f"{here}/{name}" for name in matched]


def test_a_name_that_exists_is_no_pattern(rec):
    make("rec/take [1].wav", "rec/take 1.wav", "rec/[ab]/c.wav", "rec/a/c.wav", "rec/*.wav")
    assert found("rec/take [1].wav") == ["rec/take [1].wav"]
    assert found("rec/[ab]/*.wav") == ["rec/[ab]/c.wav"]
    assert found("rec/*.wav") == ["rec/*.wav"]


def test_patterns_follow_links_without_end(rec):
    make("rec/1.wav", "far/2.wav")
    link("rec/far", "../far")
    link("rec/loop", ".")
    link("far/back", "../rec")
    assert found("rec/**/*.wav") == ["rec/1.wav", "rec/far/2.wav"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("*.none", "the pattern matches no file"),
        ("absent/*.wav", "the pattern matches no file"),
        ("[", "the pattern matches no file"),
        ("*/", "the pattern matches folders without audio files"),
        ("rec", "no audio file in this folder .known suffixes: .3gp .aac"),
        ("", "got an empty name"),
    ],
)
def test_what_stands_for_nothing_is_refused(rec, entry, message):
    with pytest.raises(ValueError, match=message):
        find_audio([entry])


@pytest.mark.parametrize("name", ["absent.wav", "x" * 5000, "a\0b.wav", "~no-such-user/a.wav"])
def test_what_does_not_exist_is_returned_to_be_reported(rec, name):
    assert found(name) == [name]


def test_special_files_and_empty_folders_named_like_audio_are_returned(rec):
    os.mkfifo("rec/pipe.wav")
    Path("rec/folder.wav").mkdir()
    make("rec/full.wav/1.wav")
    link("rec/null.wav", "/dev/null")
    assert found("rec") == ["rec/folder.wav", "rec/full.wav/1.wav", "rec/null.wav", "rec/pipe.wav"]
    assert found("rec/full.wav/1.wav", "rec")[0] == "rec/full.wav/1.wav"
    assert "rec/full.wav" not in found("rec/full.wav/1.wav", "rec")


def test_the_reason_of_a_skipped_file_names_it_once_and_is_text():
    path = Path("caf\udce9.wav")
    expected = Skipped("caf\\xe9.wav", "caf\\xe9.wav: is damaged")
    assert Skipped.because(path, "is damaged") == expected
    assert Skipped.because(path, ValueError(f"{path}: is damaged")) == expected
