"""The models as encoders of X-ARES (docs/use-with.md), which imports nothing of it: its protocol is a class.

    python -m xares.run ssamba/integrations/xares.py src/tasks/*.py        # in a checkout of X-ARES

Shapes: B clips, S samples, K time steps, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssamba.embedder import load_model

__all__ = ["SsambaEncoder"]


class SsambaEncoder(nn.Module):
    """Waveforms to embeddings of time steps.

    Attributes:
        sampling_rate: of the waveforms, in Hz.
        output_dim: D.
        hop_size_in_ms: time from step to step.
    """

    def __init__(self, model: str = "ssamba2-tiny"):
        """Args: name or path of the model, as `ssamba.load_model` takes them."""
        super().__init__()
        self.embedder = load_model(model, device="cpu")
        self.encoder = self.embedder.encoder
        front_end = self.embedder.front_end
        self.sampling_rate, self.output_dim = front_end.sample_rate_hz, self.embedder.dim
        stride_frames = self.encoder.config.patch_stride[1]
        self.hop_size_in_ms = 1000 * stride_frames * front_end.shift_samples / front_end.sample_rate_hz

    def forward(self, audio: Tensor) -> Tensor:
        """Return the embeddings (B, K, D) float32 of waveforms (B, S) or (S,), on their device."""
        found = self.embedder.embed(audio.reshape(-1, audio.shape[-1]), batch=True)
        return torch.stack([embedding.frames for embedding in found]).to(audio.device)
