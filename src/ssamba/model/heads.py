"""Heads on an encoder: those of pretraining, and the classifier for fine-tuning.

Shapes: B clips, T frames, M mel bins, P prefix tokens, L patch tokens, K columns, D channels, V values of a patch.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ssamba.config import BaseEncoderConfig, ClassifierConfig, HeadConfig
from ssamba.model.create import build_encoder
from ssamba.model.patches import column_counts, tokens_to_grid


def build_head(config: HeadConfig, dim: int) -> nn.Module:
    """Return a head of pretraining on vectors of `dim` channels: (..., D) -> (..., outputs)."""
    if config.hidden is None:
        return nn.Linear(dim, config.outputs)
    layers: list[nn.Module] = [nn.Linear(dim, config.hidden)]
    layers += [nn.LayerNorm(config.hidden)] if config.norm else []
    layers += [nn.ReLU() if config.activation == "relu" else nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(config.hidden, config.outputs))


class Classifier(nn.Module):
    """The original's fine-tuned model: encoder, pooling, LayerNorm, Linear."""

    def __init__(self, encoder_config: BaseEncoderConfig, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(encoder_config)
        self.norm = nn.LayerNorm(encoder_config.embed_dim)
        self.linear = nn.Linear(encoder_config.embed_dim, config.num_classes)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify normalized features (B, T, M) with `lengths` (B,) valid frames: logits (B, classes).

        With `label_frames`: (B, labels, classes), where `labels` is that of the longest clip; entries after a clip's
        own labels are arbitrary.
        """
        tokens = self.encoder(features, lengths)
        if self.config.label_frames is None:
            return self.classify(self.pool(tokens, lengths))
        return self.classify(self.pool_spans(tokens, features.shape[1], lengths))

    def classify(self, vectors: Tensor) -> Tensor:
        """Return the logits (..., classes) of pooled vectors (..., D)."""
        logits: Tensor = self.linear(self.norm(vectors))
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (..., classes) of logits, calibrated if a temperature was measured."""
        calibrated = logits if self.config.temperature is None else logits / self.config.temperature
        return calibrated.softmax(-1) if self.config.activation == "softmax" else calibrated.sigmoid()

    def pool(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pool tokens (B, P + L, D) to (B, D), by `pool_tokens`."""
        return pool_tokens(tokens, self.encoder.config, self.config.pooling, lengths)

    def pool_spans(self, tokens: Tensor, frames: int, lengths: Tensor | None = None) -> Tensor:
        """Pool the tokens (B, P + L, D) of `frames` frames to one vector for each label (B, labels, D)."""
        config, encoder, prefix = self.config, self.encoder.config, self.encoder.num_prefix_tokens
        assert config.label_frames is not None
        if config.token_segments is not None:
            each = tokens.shape[1] // config.token_segments
            return rearrange(tokens[:, : each * config.token_segments], "b (s n) d -> b s n d", n=each).mean(2)
        columns = [encoder.columns(frames)] * len(tokens)
        if lengths is not None:
            columns = column_counts(lengths, encoder).tolist()
        spans = []
        for own, count in zip(tokens[:, prefix:], columns, strict=True):
            grid = tokens_to_grid(own[: encoder.rows * count], encoder.rows, count, encoder)
            weights = span_weights(range(count), encoder, config.label_frames).to(own)
            spans.append(weights @ grid.mean(0))
        return pad_sequence(spans, batch_first=True)


def pool_tokens(
    tokens: Tensor, config: BaseEncoderConfig, pooling: Literal["mean", "cls"], lengths: Tensor | None = None
) -> Tensor:
    """Pool tokens (B, P + L, D) to (B, D): the mean over valid patch tokens, or (`cls`) over prefix tokens.

    `lengths` (B,) are valid frames; None if all are.
    """
    prefix = config.num_prefix_tokens
    if pooling == "cls":
        return tokens[:, :prefix].mean(1)
    if lengths is None:
        return tokens[:, prefix:].mean(1)
    columns = column_counts(lengths.to(tokens.device), config)
    # Padding tokens are zero.
    return tokens[:, prefix:].sum(1) / (columns * config.rows)[:, None]


def span_weights(columns: range, config: BaseEncoderConfig, span_frames: int, spans: range | None = None) -> Tensor:
    """Return the weight of each column for each span of `span_frames` frames: the share of common frames.

    Args:
        columns: the columns that there are.
        config: the encoder's configuration.
        span_frames: length of a span; span k begins at frame k * span_frames.
        spans: the spans; None means all from 0 that the columns reach.

    Returns:
        (spans, columns); rows sum to one.
    """
    if spans is None:
        spans = range(-(-config.frames_spanned(columns.stop) // span_frames))
    start = torch.arange(columns.start, columns.stop) * config.patch_stride[1]
    first = torch.arange(spans.start, spans.stop)[:, None] * span_frames
    shared = (torch.minimum(start + config.patch_size[1], first + span_frames) - torch.maximum(start, first)).clamp(
        min=0
    )
    # With a stride above the patch size some frames have no column: use the nearest one.
    nearest = (start + config.patch_size[1] / 2 - first - span_frames / 2).abs().argmin(1)
    empty = shared.sum(1) == 0
    shared[empty, nearest[empty]] = 1
    return shared / shared.sum(1, keepdim=True)
