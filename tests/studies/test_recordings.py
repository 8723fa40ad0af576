"""Recordings are concatenated to any duration, at one level, and in the same order for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ssamba.errors import DataError
from ssamba.studies.recordings import (
    LEVEL,
    RecordingPool,
    fade_ends,
    loudest_segment,
    normalize_level,
    require_files,
)

RATE_HZ = 16_000


def rms(samples):
    return np.sqrt(np.mean(np.square(samples, dtype=np.float64)))


def test_recordings_are_concatenated_to_any_duration_at_one_level(clips):
    pool = RecordingPool(clips, RATE_HZ)
    for seconds in (1, 28, 70):
        wave = pool.concatenate(seconds * RATE_HZ, np.random.default_rng(seconds))
        assert wave.shape == (seconds * RATE_HZ,)
        assert wave.dtype == np.float32
    assert rms(wave) == pytest.approx(LEVEL, rel=0.1)
    assert np.array_equal(wave, RecordingPool(clips, RATE_HZ).concatenate(70 * RATE_HZ, np.random.default_rng(70)))
    assert not np.array_equal(wave, pool.concatenate(70 * RATE_HZ, np.random.default_rng(71)))


def test_unusable_recordings_are_skipped_with_a_reason(clips, tmp_path):
    text = tmp_path / "a.wav"
    text.write_text("not audio")
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    pool = RecordingPool([text, clips[0], tmp_path / "silent.wav"], RATE_HZ)
    assert rms(pool.concatenate(6 * RATE_HZ, np.random.default_rng(0))) == pytest.approx(LEVEL, rel=0.1)
    assert {Path(entry.path).name for entry in pool.skipped} == {"a.wav", "silent.wav"}
    with pytest.raises(DataError, match="none of 1 recordings can be used"):
        RecordingPool([text], RATE_HZ).concatenate(10, np.random.default_rng(0))
    with pytest.raises(DataError, match="no such file"):
        require_files([text, tmp_path / "b.wav"])


@settings(deadline=None)
@given(length=st.integers(1, 400), size=st.integers(1, 300), seed=st.integers(0, 99))
def test_the_loudest_segment_has_the_most_energy_of_all(length, size, seed):
    samples = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    segment = loudest_segment(samples, size)
    assert len(segment) == min(length, size)
    energies = [np.square(samples[i : i + size], dtype=np.float64).sum() for i in range(max(1, length - size + 1))]
    assert np.square(segment, dtype=np.float64).sum() == pytest.approx(max(energies), rel=1e-6)


@settings(deadline=None)
@given(length=st.integers(2, 1000), gain=st.floats(1e-3, 10))
def test_levels_do_not_depend_on_the_gain_and_ends_fade(length, gain):
    samples = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    np.testing.assert_allclose(normalize_level(samples * np.float32(gain)), normalize_level(samples), rtol=1e-4)
    soft = fade_ends(samples, RATE_HZ)
    assert abs(soft[0]) <= 0.51 * abs(samples[0])
    assert abs(soft[-1]) <= 0.51 * abs(samples[-1])
    assert (np.abs(soft) <= np.abs(samples)).all()
    assert np.array_equal(soft[80:-80], samples[80:-80])
