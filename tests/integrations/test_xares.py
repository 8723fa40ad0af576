"""The encoder of X-ARES has its attributes and shapes (its checker and a task: `python -m benchmarks.clients`)."""

from __future__ import annotations

import torch
from tests.conftest import SSAMBA_PTH

import ssamba
from ssamba.integrations import xares


def test_time_steps_are_those_of_embed(medley):
    encoder = xares.SsambaEncoder(str(SSAMBA_PTH))
    audio = torch.from_numpy(medley[:180_000].reshape(3, 60_000))
    steps = encoder(audio)
    expected = ssamba.load_model(SSAMBA_PTH, device="cpu").embed(audio, batch=True)
    torch.testing.assert_close(steps, torch.stack([one.frames for one in expected]), atol=1e-5, rtol=1e-5)
    assert (encoder.sampling_rate, encoder.hop_size_in_ms, encoder.output_dim) == (16_000, 160, steps.shape[2])
    assert encoder(audio[0]).shape == steps[:1].shape
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["SsambaEncoder"]
