"""The upstream of s3prl: its shapes, the lengths that s3prl counts, and gradients, on real recordings."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import small_encoder

import ssamba
from ssamba.audio.decode import decode
from ssamba.config import FrontEndConfig
from ssamba.errors import ConfigError
from ssamba.integrations.s3prl import UpstreamExpert

STRIPES = {"variant": "ssamba2", "patch_size": (128, 4), "patch_stride": (128, 4)}


@pytest.mark.parametrize("changes", [{}, STRIPES], ids=["official", "stripes"])
def test_hidden_states_are_those_of_embed_of_each_recording(changes, clips, tmp_path):
    folder = ssamba.save_checkpoint(tmp_path / "model", small_encoder(**changes))
    upstream = UpstreamExpert(str(folder)).eval()
    wavs = [torch.from_numpy(decode(path)) for path in clips[:3]]
    found = upstream(wavs)
    rate = upstream.get_downsample_rates("hidden_states")
    embedder = ssamba.load_model(folder, device="cpu")
    assert {state.shape for state in found["hidden_states"]} == {(3, -(-max(map(len, wavs)) // rate), 32)}
    assert len(found["hidden_states"]) == embedder.encoder.config.num_layers + 2
    for layer, states in zip(
        (0, 1, None), (found["hidden_states"][0], found["hidden_states"][1], found["last_hidden_state"]), strict=True
    ):
        for wave, state in zip(wavs, states, strict=True):
            frames = embedder.embed(wave, layer=layer, context="full").frames
            torch.testing.assert_close(state[: len(frames)], frames, atol=1e-5, rtol=1e-5)
            assert (state[len(frames) :] == state[len(frames) - 1]).all()
    found["last_hidden_state"].sum().backward()
    assert all(weight.grad is not None for weight in upstream.encoder.blocks.parameters())
    assert upstream([wavs[0][:800]])["last_hidden_state"].shape == (1, -(-800 // rate), 32)


def test_models_of_other_rates_are_refused(tmp_path):
    front_end = FrontEndConfig(sample_rate_hz=48_000)
    folder = ssamba.save_checkpoint(tmp_path / "model", small_encoder(), front_end=front_end)
    with pytest.raises(ConfigError, match="48000 Hz"):
        UpstreamExpert(str(folder))
