"""Integer samples that were converted to floats without scaling: `scipy.io.wavfile.read(...)[1].astype(float)`."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile as sf
import torch

import ssamba


def test_integer_samples_given_as_floats_warn_with_the_remedy(medley, tmp_path):
    model = ssamba.load_model(device="cpu")
    pcm = (medley[:48_000] * 32_767).astype(np.int16)
    right = model.embed(pcm).clip
    peak = int(np.abs(pcm.astype(int)).max())
    for floats in (pcm.astype(np.float32), pcm.astype(np.float64), torch.from_numpy(pcm).float()):
        with pytest.warns(UserWarning, match="peak") as caught:
            wrong = model.embed(floats).clip
        (warning,) = caught
        assert str(warning.message) == (
            f"the waveform has a peak of {peak}, where floats are expected in [-1, 1], so its embedding will mean "
            "little. If it holds 16-bit integers, divide it by 32768, or give it as int16"
        )
        assert warning.filename == __file__
        assert torch.cosine_similarity(wrong, right, 0) < 0.9
    sf.write(tmp_path / "loud.wav", pcm.astype(np.float32), 16_000, subtype="FLOAT")
    with pytest.warns(UserWarning, match="loud.wav: the waveform has a peak of"):
        model.embed(tmp_path / "loud.wav")
    # Both remedies work, and a recording that is merely too loud gives no warning.
    assert torch.equal(model.embed(pcm.astype(np.float32) / 32_768).clip, right)
    model.embed(8 * medley[:48_000])
