"""The log-mel front end: equal to torchaudio, independent of batch and padding, differentiable; and its inverse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssamba.audio.decode import decode
from ssamba.audio.fbank import fbank, features_to_waveform, frame_lengths, log_mel
from ssamba.config import FrontEndConfig
from ssamba.errors import ConfigError

CASES = ("one_second", "odd_23457", "short_400", "eight_khz_rate", "stereo_rate_44k1")

GOLDEN_SCRIPT = """
import sys
from safetensors.torch import load_file
from ssamba.audio.fbank import fbank
from ssamba.config import FrontEndConfig

arrays = load_file(sys.argv[1])
for case in sys.argv[2:]:
    config = FrontEndConfig(sample_rate_hz=int(arrays[case + ".sample_rate"]))
    ours = fbank(arrays[case + ".waveform"], config=config)
    assert ours.shape == arrays[case + ".fbank"].shape, case
    error = (ours - arrays[case + ".fbank"]).abs().max().item()
    print(case, error)
    assert error <= 1e-4, (case, error)
"""


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the golden numbers hold MKL's rounding")
def test_matches_torchaudio_to_1e_4():
    """In quiet bins the float32 FFT's own rounding is up to 1e-3 in the logarithm, and MKL rounds differently on
    different processors (torchaudio itself then misses its golden numbers by 7e-4). MKL_CBWR makes it use the code path
    of the machine that the golden numbers come from; it must be set before MKL starts, hence the process."""
    file = Path(__file__).parent.parent / "golden" / "fbank_torchaudio.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", GOLDEN_SCRIPT, str(file), *CASES],
        env={**os.environ, "MKL_CBWR": "COMPATIBLE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_float32_error_is_at_most_twice_that_of_torchaudio(golden, case):
    """On any processor, our float32 error is at most twice the error of torchaudio's golden values."""
    arrays = golden("fbank_torchaudio.safetensors")
    config = FrontEndConfig(sample_rate_hz=int(arrays[f"{case}.sample_rate"]))
    waveform = arrays[f"{case}.waveform"]
    exact = fbank(waveform.double(), config=config)
    theirs = (arrays[f"{case}.fbank"] - exact).abs()
    ours = (fbank(waveform, config=config) - exact).abs()
    assert ours.max() <= 2 * theirs.max() + 1e-5
    assert ours.mean() <= 2 * theirs.mean() + 1e-6


def test_batch_equals_single_clips(medley):
    waveform = torch.from_numpy(medley)[: 16000 * 8].reshape(4, -1)
    lengths = torch.tensor([32000, 399, 16001, 400])
    padded = waveform.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = float("nan")
    batched = fbank(padded, lengths)
    counts = frame_lengths(lengths, FrontEndConfig())
    assert counts.tolist() == [198, 0, 98, 1]
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        assert (batched[row, count:] == 0).all()
        if count:
            torch.testing.assert_close(batched[row, :count], fbank(waveform[row, :length]), atol=2e-3, rtol=0)
            exact = fbank(waveform[row, :length].double())
            torch.testing.assert_close(fbank(padded.double(), lengths)[row, :count], exact, atol=1e-9, rtol=0)


def test_silence_gives_the_floor_and_a_constant_offset_has_no_effect(medley):
    floor = torch.log(torch.tensor(torch.finfo(torch.float32).eps))
    assert torch.equal(fbank(torch.zeros(1000)), floor.expand(4, 128))
    waveform = torch.from_numpy(medley[:16000]).double()
    torch.testing.assert_close(fbank(waveform + 0.3), fbank(waveform), atol=1e-6, rtol=0)


def test_is_differentiable():
    waveform = torch.randn(500, dtype=torch.float64, requires_grad=True)
    config = FrontEndConfig(num_mel_bins=6)
    assert torch.autograd.gradcheck(lambda x: fbank(x, config=config), (waveform,))


def test_gradients_work_after_constants_were_cached_in_inference_mode():
    config = FrontEndConfig(num_mel_bins=9)
    with torch.inference_mode():
        fbank(torch.randn(800), config=config)
    waveform = torch.randn(800, requires_grad=True)
    fbank(waveform, config=config).sum().backward()
    assert torch.isfinite(waveform.grad).all()


def test_normalization_is_the_official_one(medley):
    waveform = torch.from_numpy(medley[:8000])
    torch.testing.assert_close(log_mel(waveform), (fbank(waveform) + 4.2677393) / (2 * 4.5689974))


@pytest.mark.parametrize("rate_hz", [48_000, 96_000, 250_000])
def test_a_tone_falls_into_its_mel_bin_for_other_front_ends(rate_hz):
    config = FrontEndConfig(
        sample_rate_hz=rate_hz, num_mel_bins=64, low_hz=500, high_hz=rate_hz / 2.5, frame_ms=20, shift_ms=5
    )
    tone_hz = rate_hz / 8
    tone = torch.sin(2 * torch.pi * tone_hz * torch.arange(rate_hz // 10) / rate_hz)
    features = fbank(tone, config=config)
    assert features.shape == (config.num_frames(rate_hz // 10), 64)
    edges = 1127 * torch.log1p(torch.tensor([500.0, tone_hz, rate_hz / 2.5]) / 700)
    expected = (edges[1] - edges[0]) / (edges[2] - edges[0]) * 65 - 1
    assert (features.mean(0).argmax() - expected).abs() <= 1


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(399), "needs 400"),
        (torch.zeros(2, 2, 800), "(samples,)"),
        (torch.zeros(800, dtype=torch.int16), "float32 or float64"),
    ],
)
def test_invalid_waveforms_raise_with_the_expected_shape(waveform, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fbank(waveform)


def test_invalid_frequency_bands_raise():
    with pytest.raises(ConfigError, match="low_hz < high_hz"):
        FrontEndConfig.parse({"high_hz": 9000}, "test")
    with pytest.raises(ConfigError, match="did you mean 'num_mel_bins'"):
        FrontEndConfig.parse({"n_mel_bins": 64}, "test")


def test_features_of_the_reconstructed_waveform_resemble_the_original(clips):
    features = log_mel(torch.from_numpy(decode(clips[0], duration_s=1.5)))
    rebuilt = log_mel(features_to_waveform(features))
    assert rebuilt.shape == features.shape
    # Levels differ (the sound is brought to a peak of 0.9), the pattern stays.
    a, b = (x - x.mean() for x in (features, rebuilt))
    assert float((a * b).sum() / (a.norm() * b.norm())) > 0.95
