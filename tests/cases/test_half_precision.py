"""An encoder that was converted, `model.encoder.half()`, `.bfloat16()` or `.double()`, embeds in its own dtype."""

from __future__ import annotations

import copy

import pytest
import torch

import ssamba
from ssamba.audio.fbank import log_mel

# The largest difference of a clip vector from float64's, as a share of its length: twice what was seen.
LOSS = {"float": 2e-6, "double": 1e-7, "half": 1e-3, "bfloat16": 1e-2}


@pytest.fixture(scope="module")
def model():
    return ssamba.load_model(device="cpu")


@pytest.fixture(scope="module")
def exact(model):
    encoder = copy.deepcopy(model.encoder).double()

    def clip_vector(samples):
        with torch.no_grad():
            features = log_mel(torch.from_numpy(samples).double(), config=model.front_end)
            return encoder(features[None])[0, 1:].mean(0)

    return clip_vector


@pytest.mark.parametrize("kind", LOSS)
def test_a_converted_encoder_embeds_in_its_own_dtype(model, exact, medley, kind):
    clip = medley[: 95 * 160 + 400]  # whole patches
    converted = copy.deepcopy(model)
    getattr(converted.encoder, kind)()
    assert converted.features(clip).dtype == getattr(torch, kind)
    embedding = converted.embed(clip)
    assert (embedding.clip.dtype, embedding.frames.dtype, embedding.times_s.dtype) == (torch.float32,) * 3
    truth = exact(clip)
    assert (embedding.clip - truth).norm() < LOSS[kind] * truth.norm()
    # A list gives what single recordings give, to the precision of the dtype.
    both = converted.embed([medley[:16_000], clip])
    torch.testing.assert_close(both[1].clip, embedding.clip, atol=2 * LOSS[kind], rtol=0)
    assert converted.digest() == model.digest() if kind == "float" else converted.digest() != model.digest()
