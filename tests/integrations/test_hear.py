"""The module of HEAR gives the vectors of `embed` in the shapes of HEAR's API (its validator: docs/use-with.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conftest import SSAMBA_PTH

import ssamba
from ssamba.integrations import hear


@pytest.mark.parametrize("readout", ["clip", "parts"])
def test_embeddings_have_hears_shapes_and_even_centers(medley, readout):
    embedder = ssamba.load_model(SSAMBA_PTH, device="cpu")
    model = hear.load_model(str(SSAMBA_PTH), readout)
    audio = torch.from_numpy(medley[:180_000].reshape(3, 60_000))
    scenes = hear.get_scene_embeddings(audio, model)
    embeddings, times_ms = hear.get_timestamp_embeddings(audio, model)
    expected = embedder.embed(audio, batch=True)
    assert model.sample_rate == 16_000
    assert scenes.shape == (3, model.scene_embedding_size)
    assert embeddings.shape == (3, times_ms.shape[1], model.timestamp_embedding_size)
    assert scenes.dtype == embeddings.dtype == torch.float32
    torch.testing.assert_close(scenes, torch.stack([getattr(e, readout) for e in expected]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embeddings, torch.stack([e.frames for e in expected]), atol=1e-5, rtol=1e-5)
    assert times_ms.diff().sub(160).abs().max() < 1e-6
    np.testing.assert_allclose(times_ms[0, :-1], 1000 * expected[0].times_s[:-1], atol=1e-2)


def test_without_a_path_it_is_the_default_model():
    assert hear.load_model().embedder.name == "ssamba2-tiny-1"
