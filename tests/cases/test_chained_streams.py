"""Recordings that were joined with `cat`, of 4 s and 6 s; chained Ogg is legal (RFC 3533, section 4)."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import soundfile

from ssamba.audio.decode import decode
from ssamba.library.tables import read_embeddings

KINDS = {
    "vorbis.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus.ogg": {"format": "OGG", "subtype": "OPUS"},
    "two.flac": {"format": "FLAC", "subtype": "PCM_16"},
    "two.wav": {"format": "WAV", "subtype": "PCM_16"},
}


def encode(samples, kind):
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", 16_000, 1, **kind) as file:
        for start in range(0, len(samples), 8192):
            file.write(samples[start : start + 8192])
    return target.getvalue()


@pytest.fixture
def folder(tmp_path, medley):
    for name, kind in KINDS.items():
        first, second = medley[: 4 * 16_000], medley[4 * 16_000 : 10 * 16_000]
        (tmp_path / name).write_bytes(encode(first, kind) + encode(second, kind))
        (tmp_path / f"whole-{name}").write_bytes(encode(medley[: 10 * 16_000], kind))
    return tmp_path


def test_all_parts_of_joined_files_are_embedded_with_a_word_where_the_header_is_wrong(ssamba, folder, ssamba_pth):
    code, _, err = ssamba("embed", *KINDS, "-o", "o.npz", "-c", ssamba_pth)
    assert code == 0
    table = read_embeddings(folder / "o.npz")
    assert table["path"].tolist() == list(KINDS)
    assert table["duration_s"].tolist() == [10.0] * 4
    # A chain of Ogg streams is a file as it should be; FLAC and WAV state the length of the first part.
    with (folder / "o.npz.remarks.csv").open(newline="") as file:
        remarks = [(row["path"], row["verdict"]) for row in csv.DictReader(file)]
    assert remarks == [("two.flac", "wrong header"), ("two.wav", "wrong header")]
    for name in ("two.flac", "two.wav"):
        assert f"warning: {name}: 10.00 s are read, not the 4.00 s that its header claims" in err
    assert not (folder / "o.npz.skipped.csv").exists()


@pytest.mark.parametrize("name", ["two.flac", "two.wav"])
def test_joined_lossless_files_hold_the_samples_of_the_whole(folder, name):
    with pytest.warns(UserWarning, match="2 recordings"):
        np.testing.assert_array_equal(decode(folder / name), decode(folder / f"whole-{name}"))
