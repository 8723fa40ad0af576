"""File names that begin with ~ (temporary copies of editors), in the folder one stands in."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from ssamba.library.tables import read_embeddings


@pytest.fixture
def rec(tmp_path, second, medley):
    """A folder of `~a.wav`, `b.wav`, and `~long.wav`, which is streamed because it lasts over five minutes."""
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "~a.wav").write_bytes(second(0))
    (tmp_path / "rec" / "b.wav").write_bytes(second(1))
    soundfile.write(tmp_path / "rec" / "~long.wav", np.tile(medley, 11)[: 301 * 16_000 : 2], 8_000)
    return tmp_path / "rec"


def test_a_file_named_by_its_tilde(ssamba, rec, monkeypatch, ssamba_pth):
    monkeypatch.chdir(rec)
    code, out, err = ssamba("embed", "~a.wav", "-o", "../o.npz", "-c", ssamba_pth)
    assert (code, err) == (0, "")
    assert out.startswith("1 files embedded: 1.0 s of audio")
    assert read_embeddings("../o.npz")["path"].tolist() == ["rec/~a.wav"]  # from the table


def test_a_folder_with_tildes(ssamba, rec, monkeypatch, ssamba_pth):
    monkeypatch.chdir(rec)
    code, out, err = ssamba("embed", ".", "-o", "../o.npz", "-c", ssamba_pth)
    assert (code, err) == (0, "")
    assert out.startswith("3 files embedded: 5.0 min of audio")
    assert read_embeddings("../o.npz")["path"].tolist() == ["rec/b.wav", "rec/~a.wav", "rec/~long.wav"]


def test_a_home_is_a_home(ssamba, rec, tmp_path, ssamba_pth):
    code, _, err = ssamba("embed", "~/b.wav", "~/~a.wav", "~/[b]*.wav", "-o", "o.npz", "-c", ssamba_pth, HOME=str(rec))
    assert (code, err) == (0, "")
    assert read_embeddings("o.npz")["path"].tolist() == [f"{rec}/b.wav", f"{rec}/~a.wav"]
