"""The models as `EmbeddingModel` of perch-hoplite (docs/use-with.md), for its databases, search and agile modeling.

Shapes: B recordings, S samples, F windows, D channels; one channel of audio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from perch_hoplite.zoo.zoo_interface import EmbeddingModel, InferenceOutputs, embed_from_batch_embed_fn

from ssamba.embedder import load_model
from ssamba.embedding import Readout, readout_dim

Array = np.ndarray[Any, Any]


@dataclass
class SsambaEmbeddingModel(EmbeddingModel):
    """A model that embeds windows of recordings, each as if it were a clip."""

    sample_rate: int = 0
    """Rate of the audio, in Hz; 0 means the model's."""
    model: str = "ssamba2-tiny"
    """Name or path, as `ssamba.load_model` takes them."""
    window_size_s: float = 5.0
    """Length of the windows."""
    hop_size_s: float = 5.0
    """Distance of their starts."""
    readout: Readout = "clip"
    """`clip` (D,) or `parts` (4 * D,), as in `ssamba.Embedding`."""
    front_end: str | None = None
    """Band that the model hears, as in `ssamba.load_model`: `x10` for bats."""
    unit_length: bool = True
    """Scale vectors to length 1, so that the inner products by which hoplite searches are cosines."""

    @classmethod
    def from_config(cls, model_config: Any) -> SsambaEmbeddingModel:
        """Load the model of a configuration with these fields."""
        return cls(**model_config)

    def __post_init__(self) -> None:
        self.embedder = load_model(self.model, front_end=self.front_end)
        self.sample_rate = self.sample_rate or self.embedder.front_end.sample_rate_hz
        self.embedding_dim = readout_dim(self.embedder.dim, self.readout)

    def embed(self, audio_array: Array) -> InferenceOutputs:
        """Return the embeddings (F, 1, D) of a recording (S,), float in [-1, 1]."""
        return embed_from_batch_embed_fn(self.batch_embed, audio_array)

    def batch_embed(self, audio_batch: Array) -> InferenceOutputs:
        """Return the embeddings (B, F, 1, D) of recordings (B, S); what is left after the last window is omitted.

        Raises:
            ValueError: recordings have several channels.
        """
        if np.ndim(audio_batch) != 2:
            shape = np.shape(audio_batch)[1:]
            raise ValueError(f"expected the samples of one channel, (S,), got an array of the shape {shape}")
        windows = self.frame_audio(np.asarray(audio_batch, np.float32), self.window_size_s, self.hop_size_s)
        found = self.embedder.embed(windows.reshape(-1, windows.shape[-1]), self.sample_rate, batch=True, frames=False)
        vectors = np.stack([getattr(embedding, self.readout).numpy() for embedding in found])
        if self.unit_length:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return InferenceOutputs(embeddings=vectors.reshape(*windows.shape[:2], 1, -1), batched=True)
