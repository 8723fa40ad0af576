"""The models as a module of HEAR (Turian et al., 2022; hearbenchmark.com/hear-api.html), for its kit and others'.

    hear-validator ssamba.integrations.hear --model ssamba2-tiny

Shapes: B sounds, S samples, K time steps, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssamba.embedder import Embedder
from ssamba.embedder import load_model as load_embedder
from ssamba.embedding import Readout, readout_dim


class HearModel(nn.Module):
    """A model as HEAR's API describes it; `.to(device)` moves it.

    Attributes:
        sample_rate: of the audio that it takes, in Hz.
        scene_embedding_size: D, or 4 * D with the readout `parts`.
        timestamp_embedding_size: D.
    """

    def __init__(self, embedder: Embedder, readout: Readout = "clip"):
        super().__init__()
        self.embedder, self.readout = embedder, readout
        self.encoder = embedder.encoder
        self.sample_rate = embedder.front_end.sample_rate_hz
        self.timestamp_embedding_size = embedder.dim
        self.scene_embedding_size = readout_dim(embedder.dim, readout)


def load_model(model_file_path: str = "", readout: Readout = "clip") -> HearModel:
    """Load a model.

    Args:
        model_file_path: name or path of a model, as `ssamba.load_model` takes them; empty means the default model.
        readout: scene embeddings are `Embedding.clip` or `Embedding.parts`.
    """
    return HearModel(load_embedder(model_file_path or None, device="cpu"), readout)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Return an embedding of each sound (B, D) float32, on the device of the audio (B, S)."""
    found = model.embedder.embed(audio, batch=True, frames=False)
    return torch.stack([getattr(embedding, model.readout) for embedding in found]).to(audio.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return embeddings of time steps (B, K, D) float32 and their centers in milliseconds (B, K) float64.

    The centers are evenly spaced, as HEAR asks: the last one may lie after the end of the sound.
    """
    found = model.embedder.embed(audio, batch=True)
    config, front_end = model.encoder.config, model.embedder.front_end
    shift_ms = 1000 * front_end.shift_samples / front_end.sample_rate_hz
    span_ms = (config.patch_size[1] - 1) * shift_ms + 1000 * front_end.frame_samples / front_end.sample_rate_hz
    embeddings = torch.stack([embedding.frames for embedding in found]).to(audio.device)
    steps = torch.arange(embeddings.shape[1], dtype=torch.float64, device=audio.device)
    return embeddings, (steps * config.patch_stride[1] * shift_ms + span_ms / 2).expand(len(audio), -1)
