"""A quoted pattern below a folder with square brackets in its name (Frontier Labs writes GPS positions so)."""

from __future__ import annotations

import pytest

from ssamba.library.tables import read_embeddings

FOLDER = "Cast16-001 [-37.5397 141.3252]"


@pytest.mark.parametrize("pattern", [f"{FOLDER}/*.wav", f"{FOLDER}/?.wav", "*/*.wav", FOLDER, f"{FOLDER}/a.wav"])
def test_a_folder_with_brackets_is_no_pattern(ssamba, tmp_path, second, pattern, ssamba_pth):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "a.wav").write_bytes(second(0))
    code, out, err = ssamba("embed", pattern, "-o", "o.npz", "-c", ssamba_pth)
    assert (code, err) == (0, "")
    assert out.startswith("1 files embedded: 1.0 s of audio")
    assert read_embeddings("o.npz")["path"].tolist() == [f"{FOLDER}/a.wav"]


def test_file_names_with_brackets_may_have_wildcards_beside_them(ssamba, tmp_path, second, ssamba_pth):
    for number in range(2):
        (tmp_path / f"S20210601T0{number} [-37.5397 141.3252].wav").write_bytes(second(number))
    code, _, err = ssamba("embed", "S2021* [-37.5397 141.3252].wav", "-o", "o.npz", "-c", ssamba_pth)
    assert (code, err) == (0, "")
    assert len(read_embeddings("o.npz")["path"]) == 2


def test_a_pattern_that_matches_nothing_is_an_error_at_once(ssamba, tmp_path, ssamba_pth):
    (tmp_path / FOLDER).mkdir()
    code, out, err = ssamba("embed", f"{FOLDER}/*.wav", "-o", "o.npz", "-c", ssamba_pth)
    assert (code, out) == (1, "")
    assert err == f"error: {FOLDER}/*.wav: the pattern matches no file\n"
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
