"""Encoders over spectrogram patches: what they share (`PatchEncoder`), and SSAMBA (Shams et al., SLT 2024, section 3).

`variant="official"` is the released structure with its quirks, each behind a flag of `EncoderConfig`:
blocks run in pairs, the second of a pair on the reversed sequence, outputs and residual streams summed (so the residual
doubles at every pair); the final LayerNorm is applied twice; patches are numbered frequency-major.

Shapes: B clips, T frames, M mel bins, L patch tokens, P prefix tokens, D channels, E inner channels, N states.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ssamba.config import BaseEncoderConfig, EncoderConfig
from ssamba.model.initialize import initialize_encoder
from ssamba.model.patches import PatchEmbedding, column_counts, grid_positions, order_tokens
from ssamba.ops import DirectionWeights, bimamba_mixer, can_mix_into, mix_into, mixing_dtype


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


class DirectionalScan(nn.Module):
    """What one direction of time has for itself: convolution, projections of delta, B and C, and the scan."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        inner, rank, state = config.inner_dim, config.rank, config.state_size
        self.conv_weight = nn.Parameter(torch.empty(inner, config.conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))

    def weights(self) -> DirectionWeights:
        """Its parameters as the operator takes them."""
        step = self.dt_proj
        return DirectionWeights(
            self.conv_weight, self.conv_bias, self.x_proj.weight, step.weight, step.bias, self.A_log, self.D
        )


class BiMambaMixer(nn.Module):
    """(B, L, D_model) -> (B, L, D_model), every token informed by all others, in time linear in L."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.in_proj = nn.Linear(config.embed_dim, 2 * config.inner_dim, bias=False)
        self.forward_scan = DirectionalScan(config)
        self.backward_scan = DirectionalScan(config)
        self.out_proj = nn.Linear(config.inner_dim, config.embed_dim, bias=False)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None, reversed_time: bool = False) -> Tensor:
        """`lengths` (B,) are valid tokens. `reversed_time` gives what flipping input and output along L would."""
        return bimamba_mixer(
            hidden,
            *self._weights(),
            lengths=lengths,
            reversed_time=reversed_time,
        )

    def add_to(
        self,
        out: Tensor,
        stream: Tensor,
        norm: nn.LayerNorm,
        lengths: Tensor | None,
        *,
        reversed_time: bool = False,
        accumulate: bool = True,
    ) -> None:
        """out += mixer(norm(stream)), or out = that: `ssamba.ops.mix_into`, where `can_mix_into`."""
        mix_into(
            out,
            stream,
            (norm.weight, norm.bias, norm.eps),
            *self._weights(),
            lengths=lengths,
            reversed_time=reversed_time,
            accumulate=accumulate,
        )

    def _weights(self) -> tuple[Tensor, Tensor, DirectionWeights, DirectionWeights]:
        return self.in_proj.weight, self.out_proj.weight, self.forward_scan.weights(), self.backward_scan.weights()


class Block(nn.Module):
    """LayerNorm and mixer over the residual stream, and the stochastic depth of what enters it."""

    def __init__(self, config: EncoderConfig, drop_path: float):
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mixer = BiMambaMixer(config)

    @property
    def is_plain(self) -> bool:
        """False where somebody listens in (a hook would not be called) or has put another norm in place."""
        parts: tuple[nn.Module, ...] = (self, self.norm, self.mixer)
        return type(self.norm) is nn.LayerNorm and not any(m._forward_hooks or m._forward_pre_hooks for m in parts)

    def enter(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        """The residual stream (B, P + L, D) with what the blocks before gave."""
        return hidden if residual is None else residual + self.drop_path(hidden)

    def forward(self, stream: Tensor, lengths: Tensor | None, reversed_time: bool) -> Tensor:
        """stream (B, P + L, D) -> what this block adds to it."""
        out: Tensor = self.mixer(self.norm(stream), lengths, reversed_time)
        return out

    def add_to(
        self, out: Tensor, stream: Tensor, lengths: Tensor | None, reversed_time: bool, *, accumulate: bool = True
    ) -> None:
        """Add to `out`, where it may be the stream itself, what `forward` returns, or put it there."""
        self.mixer.add_to(out, stream, self.norm, lengths, reversed_time=reversed_time, accumulate=accumulate)


class SSAMBAEncoder(PatchEncoder):
    """Normalized log-mel features to tokens.

    `encoder(features, lengths)` gives (B, 1 + L, D) after the final norm, the prefix token ([CLS]) first.
    """

    config: EncoderConfig

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config, rate) for rate in _drop_path_rates(config))
        self.drop_path = DropPath(config.drop_path)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        initialize_encoder(self, config)

    def leaves_padding_out(self, hidden: Tensor) -> bool:
        """True for inference where the mixer can work in memory that is there, clips one behind the other."""
        if self.training and self.config.drop_path:
            return False
        return can_mix_into(hidden) and all(isinstance(block, Block) and block.is_plain for block in self.blocks)

    def _run_blocks(
        self, hidden: Tensor, lengths: Tensor | None, layers: int, *, finish: bool, states: list[Tensor] | None = None
    ) -> Tensor:
        residual: Tensor | None = None
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        if states is None and self.leaves_padding_out(hidden):
            if lengths is None:
                self._run_in_place(hidden, None, blocks, layers)
                return self._final_norm(hidden) if finish else hidden
            valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
            stream = hidden[valid]
            self._run_in_place(stream, lengths, blocks, layers)
            tokens = self._final_norm(stream) if finish else stream
            padded = tokens.new_zeros(hidden.shape)
            padded[valid] = tokens
            return padded
        for layer in range(layers):
            if states is not None:
                states.append(_state(hidden, residual))
            if self.config.block_layout == "sequential":
                block = blocks[layer]
                residual = block.enter(hidden, residual)
                hidden = block(residual, lengths, False)
                continue
            ahead, behind = blocks[2 * layer], blocks[2 * layer + 1]
            stream = ahead.enter(hidden, residual)
            # The two streams differ only where one of them drops what enters.
            other = (
                behind.enter(hidden, residual) if ahead.drop_path.is_active or behind.drop_path.is_active else stream
            )
            hidden = ahead(stream, lengths, False) + behind(other, lengths, True)
            if self.config.pair_residual == "sum":
                residual = stream + other
            else:
                residual = stream if other is stream else (stream + other) * 0.5
        if states is not None:
            states.append(_state(hidden, residual))
        if not finish:
            return _state(hidden, residual)
        assert residual is not None
        return self._final_norm(residual + self.drop_path(hidden))

    def _run_in_place(self, stream: Tensor, lengths: Tensor | None, blocks: list[Block], layers: int) -> None:
        """The same for inference, without new memory and padding: the stream becomes what leaves the last layer.

        (B, P + L, D), or with `lengths` (M, D): clips one behind the other.
        """
        if self.config.block_layout == "sequential":
            for block in blocks[:layers]:
                block.add_to(stream, stream, lengths, False)
            return
        added = torch.empty_like(stream, dtype=mixing_dtype(stream))
        for ahead, behind in zip(blocks[: 2 * layers : 2], blocks[1 : 2 * layers : 2], strict=True):
            ahead.add_to(added, stream, lengths, False, accumulate=False)
            behind.add_to(added, stream, lengths, True)
            torch.add(added, stream, alpha=2 if self.config.pair_residual == "sum" else 1, out=stream)

    def _final_norm(self, tokens: Tensor) -> Tensor:
        for _ in range(self.config.final_norms):
            tokens = self.norm(tokens)
        return tokens


class AlternatingBlocks(nn.ModuleList):
    """A few blocks in a row, every second one on the reversed sequence: the stack of a decoder."""

    def __init__(self, config: EncoderConfig, depth: int):
        super().__init__(Block(config, 0.0) for _ in range(depth))

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L, D) with `lengths` (B,) valid tokens -> (B, L, D), before any final norm."""
        residual: Tensor | None = None
        for index, block in enumerate(self):
            assert isinstance(block, Block)
            residual = block.enter(hidden, residual)
            hidden = block(residual, lengths, bool(index % 2))
        return hidden if residual is None else residual + hidden


def _state(hidden: Tensor, residual: Tensor | None) -> Tensor:
    """The hidden state between two layers."""
    return hidden if residual is None else residual + hidden


def _drop_path_rates(config: EncoderConfig) -> list[float]:
    """Linear from 0 to `drop_path`, shifted by one block as in the original: blocks 0 and 1 both get 0."""
    linear = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
    return [0.0, *linear][: config.depth]
