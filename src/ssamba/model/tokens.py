"""What all encoders over patches share: from features to a sequence of tokens with positions, lengths, prefix tokens.

An encoder adds its blocks and its final norm: see `ssamba.model.encoder` (SSAMBA) and `ssamba.model.ssast`.

Shapes: B batch, T frames, M mel bins, L patch tokens, P prefix tokens, D channels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ssamba.config import BaseEncoderConfig
from ssamba.model.patches import PatchEmbedding, column_counts, order_tokens
from ssamba.model.positions import grid_positions


class PatchTokens(NamedTuple):
    """Projected patches in sequence, before positions are added."""

    tokens: Tensor
    """(B, L, D), each clip's valid tokens first."""
    columns: Tensor | None
    """Patches along time of each clip (B,); None when every clip fills the batch."""
    longest: int
    """Patches along time of the batch, L / rows."""


class DropPath(nn.Module):
    """Stochastic depth: drops a whole clip's branch while training (Huang et al., 2016, arXiv:1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    @property
    def is_active(self) -> bool:
        """Whether anything is dropped now."""
        return self.training and self.rate > 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        if not self.is_active:
            return x
        keep = torch.empty(x.shape[0], 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class PatchEncoder(nn.Module):
    """Normalized log-mel features to tokens: `encoder(features, lengths)` gives (B, P + L, D), prefix tokens first."""

    def __init__(self, config: BaseEncoderConfig):
        super().__init__()
        self.config = config
        self.num_prefix_tokens = config.num_prefix_tokens
        rows, columns = config.grid
        self.patch_embed = PatchEmbedding(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        self.position_embed = nn.Parameter(torch.empty(1, config.num_prefix_tokens + rows * columns, config.embed_dim))

    def leaves_padding_out(self, hidden: Tensor) -> bool:
        """Whether the blocks spend no time on padding for tokens or features of this device and dtype, here and now."""
        return False

    @abstractmethod
    def _run_blocks(
        self, hidden: Tensor, lengths: Tensor | None, layers: int, *, finish: bool, states: list[Tensor] | None = None
    ) -> Tensor:
        """Run the first `layers` layers over (B, P + L, D), `lengths` (B,) of them valid; `finish`: the final norm too.

        `states` collects what enters each layer and what leaves the last. What stands beyond `lengths` is finite, and
        what is returned there is arbitrary.
        """

    def prefix_tokens(self) -> Tensor:
        """The learned tokens that stand before the patches, (1, P, D), without positions."""
        return self.cls_token

    def forward(self, features: Tensor, lengths: Tensor | None = None, *, layer: int | None = None) -> Tensor:
        """Encode a batch of normalized features.

        Args:
            features: (B, T, M).
            lengths: valid frames of each clip (B,), None when all are; frames after a clip's last whole patch are
                dropped. What stands beyond (NaN included) changes nothing.
            layer: return the hidden state after this layer instead, before the final norm, and compute no
                further: 0 is what enters the first block, k what leaves block k (SSAMBA: block pair k), up
                to `config.num_layers`; negative numbers count from the last.

        Returns:
            (B, P + L, D), prefix tokens first, with L = rows * columns of the longest clip. A clip with fewer columns has its
            P + rows * columns tokens at the front (in its own order), zeros after.

        Raises:
            ValueError: a shape does not fit, a clip is shorter than one patch, or there is no such layer.
        """
        return self.encode(self.embed_patches(features, lengths), layer=layer)

    def embed_patches(self, features: Tensor, lengths: Tensor | None = None) -> PatchTokens:
        """Project the patches of normalized features (B, T, M) and put them in sequence; arguments as `forward`."""
        lengths = self._checked(features, lengths)
        longest = self.config.columns(features.shape[1])
        columns = None
        if lengths is not None:
            columns = column_counts(lengths, self.config)
            valid = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
            features = torch.where(valid[..., None], features, 0)
        grid = self.patch_embed(features)
        return PatchTokens(order_tokens(grid, self.config, columns), columns, longest)

    def positions(self, columns: Tensor | None, longest: int) -> Tensor:
        """Positions of the patch tokens, (B, L, D), or (1, L, D) when `columns` is None."""
        rows, _ = self.config.grid
        if columns is None and not torch.compiler.is_compiling() and (self.config.rows, longest) == self.config.grid:
            grid = rearrange(self.position_embed[:, self.num_prefix_tokens :], "b (r k) d -> b r k d", r=rows)
            return order_tokens(grid, self.config)
        table = rearrange(self.position_embed[0, self.num_prefix_tokens :], "(r k) d -> r k d", r=rows)
        counts = torch.full((1,), longest, device=table.device) if columns is None else columns
        grid = grid_positions(table, self.config.rows, counts, longest)
        return order_tokens(grid, self.config, columns)

    def encode(self, patches: PatchTokens, *, layer: int | None = None) -> Tensor:
        """Run the blocks over patch tokens; returns and `layer` as `forward`."""
        columns = patches.columns
        entering = [self._with_prefix(patches.tokens + self.positions(columns, patches.longest))]
        del patches  # what nobody else holds is free while the blocks run: 140 MB for an hour
        return self._through_blocks(entering, None if columns is None else columns * self.config.rows, layer)

    def encode_tokens(self, tokens: Tensor, counts: Tensor | None = None, *, layer: int | None = None) -> Tensor:
        """Run the blocks over tokens that have their positions already, a clip's whole grid or some of it.

        Args:
            tokens: (B, L, D), each clip's valid tokens first.
            counts: valid tokens of each clip (B,), None when all are.
            layer: as `forward`.

        Returns:
            (B, P + L, D), the prefix tokens first, zeros behind a clip's own tokens.
        """
        return self._through_blocks([self._with_prefix(tokens)], counts, layer)

    def hidden_states(self, patches: PatchTokens) -> list[Tensor]:
        """Every layer's tokens from one pass over the blocks.

        Returns:
            `config.num_layers` + 2 tensors (B, P + L, D): what `encode` gives for `layer=0`, 1, ..., `num_layers`,
            then the final output (`layer=None`).
        """
        tokens, columns, longest = patches
        hidden = self._with_prefix(tokens + self.positions(columns, longest))
        lengths = self._with_prefix_lengths(None if columns is None else columns * self.config.rows)
        states: list[Tensor] = []
        states.append(self._run_blocks(hidden, lengths, self.config.num_layers, finish=True, states=states))
        return [_zero_padding(state, lengths) for state in states]

    def _with_prefix(self, tokens: Tensor) -> Tensor:
        """What enters the first block, (B, P + L, D)."""
        prefix = self.prefix_tokens() + self.position_embed[:, : self.num_prefix_tokens]
        return torch.cat((prefix.expand(tokens.shape[0], -1, -1), tokens), dim=1)

    def _with_prefix_lengths(self, counts: Tensor | None) -> Tensor | None:
        """Valid tokens of each clip with its prefix (B,), for `counts` of patch tokens."""
        return None if counts is None else self.num_prefix_tokens + counts

    def _through_blocks(self, entering: list[Tensor], counts: Tensor | None, layer: int | None) -> Tensor:
        """`encode_tokens` for what enters the first block, which is taken out of its list: the blocks may free it."""
        stop_after = self.config.num_layers if layer is None else self.layer_index(layer)
        lengths = self._with_prefix_lengths(counts)
        return _zero_padding(self._run_blocks(entering.pop(), lengths, stop_after, finish=layer is None), lengths)

    def layer_index(self, layer: int) -> int:
        """A layer as `forward` takes it, counted from the first; ValueError if there is none such."""
        count = self.config.num_layers
        if not -count - 1 <= layer <= count:
            raise ValueError(
                f"layer must lie between 0 (input of the first block) and {count} (the last), or be negative to "
                f"count from the end, got {layer}"
            )
        return layer if layer >= 0 else count + 1 + layer

    def _checked(self, features: Tensor, lengths: Tensor | None) -> Tensor | None:
        config = self.config
        if features.ndim != 3 or features.shape[2] != config.num_mel_bins:
            raise ValueError(
                f"features must be (batch, frames, {config.num_mel_bins} mel bins), got {tuple(features.shape)}"
            )
        if not features.is_floating_point():
            raise ValueError(f"features must be floating point, got {features.dtype}")
        shortest = features.shape[1]
        if lengths is not None:
            if tuple(lengths.shape) != features.shape[:1] or lengths.is_floating_point():
                raise ValueError(
                    f"lengths must hold {features.shape[0]} integers (valid frames of each clip), "
                    f"got shape {tuple(lengths.shape)} of {lengths.dtype}"
                )
            if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and len(lengths):
                if int(lengths.max()) > features.shape[1]:
                    raise ValueError(f"lengths go up to {int(lengths.max())}, but there are {features.shape[1]} frames")
                shortest = int(lengths.min())
                if 0 < config.columns(shortest) == config.columns(features.shape[1]):
                    return None  # no padding that any patch could see
            lengths = lengths.to(features.device)
        if config.columns(shortest) < 1:
            raise ValueError(
                f"a clip of {shortest} frames is shorter than one patch of {config.patch_size[1]} frames: pad it "
                "(ssamba.load_model(...).embed does so by itself)"
            )
        return lengths


def _zero_padding(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """Zeros in place of what stands behind each clip's valid tokens."""
    if lengths is None:
        return tokens
    valid = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return torch.where(valid[..., None], tokens, 0)
