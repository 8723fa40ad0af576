"""What stands on an encoder: prediction heads for pretraining, a classifier for fine-tuning.

Shapes: B batch, T frames, M mel bins, L tokens, D channels, V = values of a patch.
"""

from __future__ import annotations

from torch import Tensor, nn

from ssamba.config import BaseEncoderConfig, ClassifierConfig
from ssamba.model.create import build_encoder
from ssamba.model.patches import column_counts


class PredictionHead(nn.Sequential):
    """D -> D -> V with a ReLU: from a masked token to the values of its patch."""

    def __init__(self, config: BaseEncoderConfig):
        values = config.patch_size[0] * config.patch_size[1]
        super().__init__(nn.Linear(config.embed_dim, config.embed_dim), nn.ReLU(), nn.Linear(config.embed_dim, values))


class Classifier(nn.Module):
    """Encoder, pooling, LayerNorm, Linear: the original's fine-tuned model."""

    def __init__(self, encoder_config: BaseEncoderConfig, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(encoder_config)
        self.norm = nn.LayerNorm(encoder_config.embed_dim)
        self.linear = nn.Linear(encoder_config.embed_dim, config.num_classes)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised features (B, T, M) with valid frames `lengths` (B,) -> logits (B, classes)."""
        tokens = self.encoder(features, lengths)
        logits: Tensor = self.linear(self.norm(self.pool(tokens, lengths)))
        return logits

    def pool(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The encoder's tokens (B, P + L, D) -> (B, D): the mean over valid patch tokens, or over prefix tokens."""
        prefix = self.encoder.num_prefix_tokens
        if self.config.pooling == "cls":
            return tokens[:, :prefix].mean(1)
        if lengths is None:
            return tokens[:, prefix:].mean(1)
        columns = column_counts(lengths.to(tokens.device), self.encoder.config)
        # Tokens beyond a clip's own are zero.
        return tokens[:, prefix:].sum(1) / (columns * self.encoder.config.rows)[:, None]
