"""The SSAMBA encoder: patches, positions, BiMamba blocks, final norm (Shams et al., SLT 2024, section 3).

`variant="official"` is the released structure with its quirks, each behind a flag of `EncoderConfig`:
blocks run in pairs, the second of a pair on the reversed sequence, outputs and residual streams summed (so the residual
doubles at every pair); the final LayerNorm is applied twice; patches are numbered frequency-major.

Shapes: B batch, T frames, M mel bins, L patch tokens, P = 1 prefix token, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ssamba.config import EncoderConfig
from ssamba.model.initialise import initialise_encoder
from ssamba.model.mixer import BiMambaMixer
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

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.empty(x.shape[0], 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """Residual add, LayerNorm, mixer: takes what the blocks before gave, returns its output and the new residual."""

    def __init__(self, config: EncoderConfig, drop_path: float):
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mixer = BiMambaMixer(config)

    def forward(
        self, hidden: Tensor, residual: Tensor | None, lengths: Tensor | None, reversed_time: bool
    ) -> tuple[Tensor, Tensor]:
        """hidden, residual (B, P + L, D) -> the same pair."""
        residual = hidden if residual is None else residual + self.drop_path(hidden)
        return self.mixer(self.norm(residual), lengths, reversed_time), residual


class SSAMBAEncoder(nn.Module):
    """Normalised log-mel features to tokens.

    `encoder(features, lengths)` gives (B, 1 + L, D) after the final norm, the prefix token ([CLS]) first.
    """

    num_prefix_tokens = 1

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        rows, columns = config.grid
        self.patch_embed = PatchEmbedding(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        self.position_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config, rate) for rate in _drop_path_rates(config))
        self.drop_path = DropPath(config.drop_path)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        initialise_encoder(self, config)

    def forward(self, features: Tensor, lengths: Tensor | None = None, *, layer: int | None = None) -> Tensor:
        """Encode a batch of normalised features.

        Args:
            features: (B, T, M).
            lengths: valid frames of each clip (B,), None when all are; frames after a clip's last whole patch are
                dropped. What stands beyond (NaN included) changes nothing.
            layer: return the hidden state after this layer instead, before the final norm, and compute no
                further: 0 is what enters the first block, k what leaves block pair k (block k when sequential), up
                to `config.num_layers`; negative numbers count from the last.

        Returns:
            (B, 1 + L, D) with L = rows * columns of the longest clip. A clip with fewer columns has its
            1 + rows * columns tokens at the front (in its own order), zeros after.

        Raises:
            ValueError: a shape does not fit, a clip is shorter than one patch, or there is no such layer.
        """
        return self.encode(self.embed_patches(features, lengths), layer=layer)

    def embed_patches(self, features: Tensor, lengths: Tensor | None = None) -> PatchTokens:
        """Project the patches of normalised features (B, T, M) and put them in sequence; arguments as `forward`."""
        lengths = self._checked(features, lengths)
        longest = self.config.columns(features.shape[1])
        if lengths is None:
            columns = None
        else:
            columns = column_counts(lengths, self.config)
            valid = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
            features = torch.where(valid[..., None], features, 0)
        grid = self.patch_embed(features)
        return PatchTokens(order_tokens(grid, self.config, columns), columns, longest)

    def positions(self, columns: Tensor | None, longest: int) -> Tensor:
        """Positions of the patch tokens, (B, L, D), or (1, L, D) when `columns` is None."""
        rows, _ = self.config.grid
        table = rearrange(self.position_embed[0, self.num_prefix_tokens :], "(r k) d -> r k d", r=rows)
        counts = torch.tensor([longest], device=table.device) if columns is None else columns
        grid = grid_positions(table, self.config.rows, counts, longest)
        return order_tokens(grid, self.config, columns)

    def encode(self, patches: PatchTokens, *, layer: int | None = None) -> Tensor:
        """Run the blocks over patch tokens; returns and `layer` as `forward`."""
        stop_after = self.config.num_layers if layer is None else self.layer_index(layer)
        hidden, lengths = self._enter(patches)
        hidden, residual = self._run_blocks(hidden, lengths, stop_after)
        tokens = self._leave(hidden, residual) if layer is None else _state(hidden, residual)
        return _zero_padding(tokens, lengths)

    def hidden_states(self, patches: PatchTokens) -> list[Tensor]:
        """Every layer's tokens from one pass over the blocks.

        Returns:
            `config.num_layers` + 2 tensors (B, 1 + L, D): what `encode` gives for `layer=0`, 1, ..., `num_layers`,
            then the final output (`layer=None`).
        """
        hidden, lengths = self._enter(patches)
        states: list[Tensor] = []
        hidden, residual = self._run_blocks(hidden, lengths, self.config.num_layers, states)
        states.append(self._leave(hidden, residual))
        return [_zero_padding(state, lengths) for state in states]

    def _enter(self, patches: PatchTokens) -> tuple[Tensor, Tensor | None]:
        """What enters the first block, (B, P + L, D), and its valid tokens (B,)."""
        tokens, columns, longest = patches
        prefix = (self.cls_token + self.position_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        hidden = torch.cat((prefix, tokens + self.positions(columns, longest)), dim=1)
        return hidden, None if columns is None else self.num_prefix_tokens + columns * self.config.rows

    def _leave(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        """The final residual and norm."""
        assert residual is not None
        tokens: Tensor = residual + self.drop_path(hidden)
        for _ in range(self.config.final_norms):
            tokens = self.norm(tokens)
        return tokens

    def _run_blocks(
        self, hidden: Tensor, lengths: Tensor | None, stop_after: int, states: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run `stop_after` layers; `states` collects the hidden state before each of them, and after the last."""
        residual: Tensor | None = None
        paired = self.config.block_layout == "paired"
        for layer in range(stop_after):
            if states is not None:
                states.append(_state(hidden, residual))
            if not paired:
                hidden, residual = self.blocks[layer](hidden, residual, lengths, False)
                continue
            ahead, residual_ahead = self.blocks[2 * layer](hidden, residual, lengths, False)
            behind, residual_behind = self.blocks[2 * layer + 1](hidden, residual, lengths, True)
            hidden = ahead + behind
            residual = residual_ahead + residual_behind
            if self.config.pair_residual == "mean":
                residual = residual * 0.5
        if states is not None:
            states.append(_state(hidden, residual))
        return hidden, residual

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
            lengths = lengths.to(features.device)
        if config.columns(shortest) < 1:
            raise ValueError(
                f"a clip of {shortest} frames is shorter than one patch of {config.patch_size[1]} frames: pad it "
                "(ssamba.load_model(...).embed does so by itself)"
            )
        return lengths


def _state(hidden: Tensor, residual: Tensor | None) -> Tensor:
    """The hidden state between two layers."""
    return hidden if residual is None else residual + hidden


def _zero_padding(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """Zeros in place of what stands behind each clip's valid tokens."""
    if lengths is None:
        return tokens
    valid = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return torch.where(valid[..., None], tokens, 0)


def _drop_path_rates(config: EncoderConfig) -> list[float]:
    """Linear from 0 to `drop_path`, shifted by one block as in the original: blocks 0 and 1 both get 0."""
    linear = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
    return [0.0, *linear][: config.depth]
