"""A WAV whose size field is far too small: beyond 4 GiB, where 32 bits wrap; or written once, after a second, by a
recorder that lost its power."""

from __future__ import annotations

import csv
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ssamba.audio.decode import decode
from ssamba.library.tables import read_embeddings

RATE_HZ, CHANNELS, WIDTH = 384_000, 64, 4
"""Of the file beyond 4 GiB, of floats, so that it lasts three quarters of a minute."""


def wav(coded, size, riff, rate_hz=16_000, channels=1, width=2, tag=1):
    block = channels * width
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate_hz, rate_hz * block, block, 8 * width)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVE" + fmt + b"data" + struct.pack("<I", size) + coded


@pytest.fixture
def embed(ssamba, ssamba_pth):
    def run(*recordings):
        code, _, err = ssamba("embed", *recordings, "-o", "o.npz", "-c", ssamba_pth)
        assert code == 0, err
        with Path("o.npz.remarks.csv").open(newline="") as file:
            return read_embeddings("o.npz"), list(csv.DictReader(file)), err

    return run


def test_samples_after_a_size_that_was_written_once_are_embedded(embed, tmp_path, medley):
    pcm = np.round(medley[: 12 * 16_000] * 32767).astype("<i2")
    (tmp_path / "header_1s.wav").write_bytes(wav(pcm.tobytes(), 32_000, 36 + 32_000))
    table, remarks, text = embed("header_1s.wav")
    assert (table["path"].tolist(), table["duration_s"].tolist()) == (["header_1s.wav"], [12.0])
    said = (
        "header_1s.wav: 12.00 s are read, not the 1.00 s that its header claims (its header claims 32,000 bytes of "
        "samples, the file holds 384,000)"
    )
    assert remarks == [{"path": "header_1s.wav", "verdict": "wrong header", "reason": said}]
    assert f"warning: {said}" in text
    with pytest.warns(UserWarning, match="12.00 s are read"):
        np.testing.assert_array_equal(decode(tmp_path / "header_1s.wav"), pcm / np.float32(32768))


@pytest.fixture
def memory(tmp_path):
    """A folder where the holes of a file cost no time: in memory, if the system has such a place."""
    root = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=root if os.access(root, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def test_all_of_a_recording_beyond_4_gib_is_embedded(embed, memory):
    frame = CHANNELS * WIDTH
    samples = 2**32 // frame + 5 * RATE_HZ
    ends = np.random.default_rng(0).uniform(-1, 1, (2, RATE_HZ // 4, CHANNELS)).astype("<f4")
    size, path = samples * frame, memory / "wrapped.wav"
    with path.open("wb") as file:  # sparse: takes no room
        file.write(wav(ends[0].tobytes(), size % 2**32, (36 + size) % 2**32, RATE_HZ, CHANNELS, WIDTH, tag=3))
        file.seek(44 + size - ends[1].nbytes)
        file.write(ends[1].tobytes())
    table, remarks, text = embed(path)
    assert table["path"].tolist() == [str(path)]
    assert table["duration_s"].tolist() == pytest.approx([samples / RATE_HZ], abs=1e-3)
    assert [entry["verdict"] for entry in remarks] == ["wrong header", "above band"]  # white noise at 384 kHz
    assert f"wrapped.wav: {samples / RATE_HZ:.2f} s are read, not the 5.00 s that its header claims" in text
    with pytest.warns(UserWarning, match="not the 5.00 s"):
        end = decode(path, sample_rate_hz=RATE_HZ, start_s=samples / RATE_HZ - 0.5)
    assert not end[: RATE_HZ // 4].any()
    np.testing.assert_allclose(end[RATE_HZ // 4 :], ends[1].mean(1), atol=1e-6)
