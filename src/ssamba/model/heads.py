"""What stands on an encoder: prediction heads for pretraining, a classifier for fine-tuning.

Shapes: B batch, T frames, M mel bins, L tokens, D channels, K masked patches of a clip, V = values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssamba.config import ClassifierConfig, EncoderConfig
from ssamba.model.encoder import PatchTokens, SSAMBAEncoder
from ssamba.model.initialise import initialise_mask_token
from ssamba.model.patches import column_counts, order_tokens, patch_values


class PredictionHead(nn.Sequential):
    """D -> D -> V with a ReLU: from a masked token to the values of its patch."""

    def __init__(self, config: EncoderConfig):
        values = config.patch_size[0] * config.patch_size[1]
        super().__init__(nn.Linear(config.embed_dim, config.embed_dim), nn.ReLU(), nn.Linear(config.embed_dim, values))


class PretrainingModel(nn.Module):
    """Encoder, mask token, and one head for each objective (SSAMBA, section 3.3)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.encoder = SSAMBAEncoder(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        self.discriminative_head = PredictionHead(config)
        self.generative_head = PredictionHead(config)
        initialise_mask_token(self.mask_token)

    def masked_tokens(self, features: Tensor, mask_index: Tensor) -> tuple[Tensor, Tensor]:
        """Encode with some patches hidden.

        Args:
            features: normalised, (B, T, M).
            mask_index: patches to hide (B, K), as positions in the token sequence without the prefix.

        Returns:
            The encoder's output at the hidden patches (B, K, D), and the values that were hidden (B, K, V).
        """
        patches = self.encoder.embed_patches(features)
        if mask_index.ndim != 2 or mask_index.shape[0] != features.shape[0]:
            raise ValueError(f"mask_index must be ({features.shape[0]}, masked patches), got {tuple(mask_index.shape)}")
        if mask_index.numel() and not 0 <= int(mask_index.min()) <= int(mask_index.max()) < patches.tokens.shape[1]:
            raise ValueError(f"mask_index must lie between 0 and {patches.tokens.shape[1] - 1}")
        hidden = torch.zeros(patches.tokens.shape[:2], dtype=torch.bool, device=features.device)
        hidden.scatter_(1, mask_index, True)
        tokens = torch.where(hidden[..., None], self.mask_token, patches.tokens)
        encoded = self.encoder.encode(PatchTokens(tokens, patches.columns, patches.longest))
        values = order_tokens(patch_values(features, self.encoder.config), self.encoder.config)
        encoded = encoded[:, self.encoder.num_prefix_tokens :]
        return _take(encoded, mask_index), _take(values, mask_index)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """(B, L, C), (B, K) -> (B, K, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


class Classifier(nn.Module):
    """Encoder, pooling, LayerNorm, Linear: the original's fine-tuned model."""

    def __init__(self, encoder_config: EncoderConfig, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.encoder = SSAMBAEncoder(encoder_config)
        self.norm = nn.LayerNorm(encoder_config.embed_dim)
        self.linear = nn.Linear(encoder_config.embed_dim, config.num_classes)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised features (B, T, M) with valid frames `lengths` (B,) -> logits (B, classes)."""
        tokens = self.encoder(features, lengths)
        logits: Tensor = self.linear(self.norm(self.pool(tokens, lengths)))
        return logits

    def pool(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The encoder's tokens (B, 1 + L, D) -> (B, D): the mean over valid patch tokens, or the prefix token."""
        prefix = self.encoder.num_prefix_tokens
        if self.config.pooling == "cls":
            return tokens[:, 0]
        if lengths is None:
            return tokens[:, prefix:].mean(1)
        columns = column_counts(lengths.to(tokens.device), self.encoder.config)
        # Tokens beyond a clip's own are zero.
        return tokens[:, prefix:].sum(1) / (columns * self.encoder.config.rows)[:, None]
