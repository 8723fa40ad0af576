"""The SSAMBA encoder (Shams et al., SLT 2024, section 3), and `PatchEncoder`, the base that it shares with SSAST.

`PatchEncoder` turns features into patch tokens with positions and prefix tokens; subclasses add blocks and a final
norm.

`variant="official"` is the released structure with its quirks, each behind a flag of `EncoderConfig`: blocks run in
pairs, the second of a pair on the reversed sequence, outputs and residual streams summed (so the residual doubles at
every pair); the final LayerNorm is applied twice; patches are numbered frequency-major.

The block is Vision Mamba's "v2" mixer. Its symbols are Mamba's (Gu and Dao, 2023, arXiv:2312.00752, algorithm 2; Zhu et
al., 2024, arXiv:2401.09417, algorithm 1); `ssamba.ops.mixer` has the computation and its equations.

Shapes: B clips, T frames, M mel bins, R rows, K columns, L = R * K patch tokens, P prefix tokens, D channels, E inner
channels, N states, W taps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssamba.config import BaseEncoderConfig, EncoderConfig
from ssamba.model.initialize import initialize_encoder
from ssamba.model.patches import PatchEmbedding, column_counts, grid_positions, order_tokens
from ssamba.ops import DirectionWeights, bimamba_mixer
from ssamba.ops.mixer import can_mix_into, compute_dtype, mix_into

Layer = TypeVar("Layer", bound=Callable[..., object])


def recomputed(layer: Layer, enabled: bool) -> Layer:
    """Return the function of a layer; if `enabled` and gradients are on, backward keeps its inputs and recomputes it.

    Random numbers are the same again, so that stochastic depth drops the same clips.
    """
    if not enabled or not torch.is_grad_enabled():
        return layer
    return cast(Layer, partial(checkpoint, layer, use_reentrant=False))


class PatchTokens(NamedTuple):
    """Projected patches in sequence, before positions are added."""

    tokens: Tensor
    """(B, L, D), each clip's valid tokens first."""
    columns: Tensor | None
    """Columns of each clip (B,); None if all clips have `longest` columns."""
    longest: int
    """Columns K of the batch."""


class DropPath(nn.Module):
    """Stochastic depth: drop a branch for whole clips in training (Huang et al., 2016, arXiv:1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    @property
    def is_active(self) -> bool:
        """Whether the module drops branches in its current mode."""
        return self.training and self.rate > 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Drop clips of x (B, L, D) at random, and scale the others."""
        if not self.is_active:
            return x
        keep = torch.empty(x.shape[0], 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class PatchEncoder(nn.Module):
    """Base of encoders: normalized log-mel features (B, T, M) -> tokens (B, P + L, D), prefix tokens first.

    Attributes:
        config: the encoder's configuration.
        num_prefix_tokens: P.
        gradient_checkpointing: keep only the inputs of each layer (SSAMBA: block pair) for the backward pass, which
            computes the rest again: the same gradients, for less memory and another forward pass. False by default.
    """

    def __init__(self, config: BaseEncoderConfig):
        super().__init__()
        self.config = config
        self.num_prefix_tokens = config.num_prefix_tokens
        self.gradient_checkpointing = False
        rows, columns = config.grid
        self.patch_embed = PatchEmbedding(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        self.position_embed = nn.Parameter(torch.empty(1, config.num_prefix_tokens + rows * columns, config.embed_dim))

    def skips_padding(self, hidden: Tensor) -> bool:
        """Return whether the blocks skip padding now, for a tensor of this device and dtype: then it costs no time."""
        return False

    @abstractmethod
    def _run_blocks(
        self, hidden: Tensor, lengths: Tensor | None, layers: int, *, finish: bool, states: list[Tensor] | None = None
    ) -> Tensor:
        """Run the first `layers` layers over `hidden` (B, P + L, D), and the final norm if `finish`.

        `lengths` (B,) are valid tokens; padding is finite in the input and arbitrary in the output. The input of each
        layer and the output of the last are appended to `states`.
        """

    def prefix_tokens(self) -> Tensor:
        """Return the learned prefix tokens (1, P, D), without positions."""
        return self.cls_token

    def forward(self, features: Tensor, lengths: Tensor | None = None, *, layer: int | None = None) -> Tensor:
        """Encode a batch of normalized features.

        Args:
            features: (B, T, M).
            lengths: valid frames of each clip (B,), None if all are. Frames after a clip's last whole patch are
                dropped, and padding (NaN included) has no effect.
            layer: return the hidden state after this layer, before the final norm, and skip the rest: 0 is the input of
                the first block, k the output of block k (SSAMBA: block pair k), up to `config.num_layers`; negative
                numbers count from the last.

        Returns:
            Tokens (B, P + L, D), prefix tokens first, with L = R * K of the longest clip. A clip with fewer columns has
            its own tokens first, in its own order, then zeros.

        Raises:
            ValueError: a shape or dtype is wrong, a clip is shorter than one patch, or the layer does not exist.
        """
        return self.encode(self.embed_patches(features, lengths), layer=layer)

    def embed_patches(self, features: Tensor, lengths: Tensor | None = None) -> PatchTokens:
        """Project the patches of normalized features (B, T, M) to a token sequence; arguments as `forward`."""
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
        """Return the positions of the patch tokens (B, L, D), or (1, L, D) if `columns` is None."""
        rows, _ = self.config.grid
        if columns is None and not torch.compiler.is_compiling() and (self.config.rows, longest) == self.config.grid:
            grid = rearrange(self.position_embed[:, self.num_prefix_tokens :], "b (r k) d -> b r k d", r=rows)
            return order_tokens(grid, self.config)
        table = rearrange(self.position_embed[0, self.num_prefix_tokens :], "(r k) d -> r k d", r=rows)
        counts = torch.full((1,), longest, device=table.device) if columns is None else columns
        grid = grid_positions(table, self.config.rows, counts, longest)
        return order_tokens(grid, self.config, columns)

    def encode(self, patches: PatchTokens, *, layer: int | None = None) -> Tensor:
        """Add positions and prefix tokens to patch tokens, and run the blocks; `layer` and result as `forward`."""
        columns = patches.columns
        inputs = [self._with_prefix(patches.tokens + self.positions(columns, patches.longest))]
        del patches  # frees the patch tokens while the blocks run: 140 MB for an hour of audio
        return self._apply_blocks(inputs, None if columns is None else columns * self.config.rows, layer)

    def encode_tokens(self, tokens: Tensor, counts: Tensor | None = None, *, layer: int | None = None) -> Tensor:
        """Add prefix tokens to tokens that already have positions (any subset of a clip's patches), and run the blocks.

        Args:
            tokens: (B, L, D), each clip's valid tokens first.
            counts: valid tokens of each clip (B,), None if all are.
            layer: as `forward`.

        Returns:
            Tokens (B, P + L, D), prefix tokens first, zeros after a clip's own tokens.
        """
        return self._apply_blocks([self._with_prefix(tokens)], counts, layer)

    def hidden_states(self, patches: PatchTokens) -> list[Tensor]:
        """Return the tokens of every layer from one pass over the blocks.

        Returns:
            `config.num_layers` + 2 tensors (B, P + L, D): the results of `encode` for `layer=0`, 1, ..., `num_layers`,
            then the final output (`layer=None`).
        """
        tokens, columns, longest = patches
        hidden = self._with_prefix(tokens + self.positions(columns, longest))
        lengths = self._with_prefix_lengths(None if columns is None else columns * self.config.rows)
        states: list[Tensor] = []
        states.append(self._run_blocks(hidden, lengths, self.config.num_layers, finish=True, states=states))
        return [_zero_padding(state, lengths) for state in states]

    def _with_prefix(self, tokens: Tensor) -> Tensor:
        """Prepend the prefix tokens with their positions: (B, L, D) -> (B, P + L, D)."""
        prefix = self.prefix_tokens() + self.position_embed[:, : self.num_prefix_tokens]
        return torch.cat((prefix.expand(tokens.shape[0], -1, -1), tokens), dim=1)

    def _with_prefix_lengths(self, counts: Tensor | None) -> Tensor | None:
        """Return the valid tokens of each clip (B,) with its prefix, for `counts` patch tokens."""
        return None if counts is None else self.num_prefix_tokens + counts

    def _apply_blocks(self, inputs: list[Tensor], counts: Tensor | None, layer: int | None) -> Tensor:
        """Run the blocks over the single tensor of `inputs`, which is popped so that its memory can be freed."""
        layers = self.config.num_layers if layer is None else self.layer_index(layer)
        lengths = self._with_prefix_lengths(counts)
        return _zero_padding(self._run_blocks(inputs.pop(), lengths, layers, finish=layer is None), lengths)

    def layer_index(self, layer: int) -> int:
        """Return a `layer` argument of `forward` as a number from 0; raise ValueError if the layer does not exist."""
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
        weights = self.cls_token.dtype
        if features.dtype != weights and not torch.is_autocast_enabled(features.device.type):
            raise ValueError(
                f"features must have the dtype of the encoder's weights, {weights}, got {features.dtype}: convert one "
                f"of them (features.to({weights}) or encoder.to({features.dtype})), or use torch.autocast"
            )
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
                    return None  # no patch contains padding
            lengths = lengths.to(features.device)
        if config.columns(shortest) < 1:
            raise ValueError(
                f"a clip of {shortest} frames is shorter than one patch of {config.patch_size[1]} frames: pad it "
                "(ssamba.load_model(...).embed does so by itself)"
            )
        return lengths


def _zero_padding(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """Set tokens (B, P + L, D) beyond each clip's `lengths` (B,) to zero."""
    if lengths is None:
        return tokens
    valid = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return torch.where(valid[..., None], tokens, 0)


def _check_linear(*layers: nn.Module) -> None:
    for layer in layers:
        if not isinstance(layer, nn.Linear):
            raise TypeError(
                f"a linear layer of the mixer was replaced by {type(layer).__name__}, which would not be called: the "
                "mixer is one operator that reads the weights of torch.nn.Linear. Change the weights instead (LoRA: "
                "torch.nn.utils.parametrize), or wrap a whole mixer or block"
            )


class DirectionalScan(nn.Module):
    """Parameters of one direction of time: convolution, projections to delta, B and C, and the scan."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        inner, delta_rank, state = config.inner_dim, config.dt_rank, config.state_size
        self.conv_weight = nn.Parameter(torch.empty(inner, config.conv_kernel))  # (E, W)
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.x_proj = nn.Linear(inner, delta_rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(delta_rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.empty(inner, state))  # (E, N)
        self.D = nn.Parameter(torch.empty(inner))

    def weights(self) -> DirectionWeights:
        """Return the parameters as the operator takes them."""
        x_proj, dt_proj = self.x_proj, self.dt_proj
        _check_linear(x_proj, dt_proj)
        return DirectionWeights(
            self.conv_weight, self.conv_bias, x_proj.weight, dt_proj.weight, dt_proj.bias, self.A_log, self.D
        )


class BiMambaMixer(nn.Module):
    """Bidirectional Mamba mixer, (B, L, D) -> (B, L, D): every token sees all others, in time linear in L.

    One input projection makes the stream x and the gate z for both directions of time. Each direction has its own
    causal convolution, input-dependent step sizes and projections, and selective scan.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.in_proj = nn.Linear(config.embed_dim, 2 * config.inner_dim, bias=False)
        self.forward_scan = DirectionalScan(config)
        self.backward_scan = DirectionalScan(config)
        self.out_proj = nn.Linear(config.inner_dim, config.embed_dim, bias=False)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None, reversed_time: bool = False) -> Tensor:
        """Mix tokens (B, L, D), `lengths` (B,) of them valid.

        `reversed_time=True` equals flipping input and output along L.
        """
        return bimamba_mixer(hidden, *self.weights(), lengths=lengths, reversed_time=reversed_time)

    def weights(self) -> tuple[Tensor, Tensor, DirectionWeights, DirectionWeights]:
        """Return the parameters as the operator takes them.

        Raises:
            TypeError: a linear layer was replaced by a module with a `forward` of its own, which would not be called.
        """
        in_proj, out_proj = self.in_proj, self.out_proj
        _check_linear(in_proj, out_proj)
        return in_proj.weight, out_proj.weight, self.forward_scan.weights(), self.backward_scan.weights()


class Block(nn.Module):
    """Pre-norm mixer over the residual stream, with stochastic depth on its input."""

    def __init__(self, config: EncoderConfig, drop_path: float):
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mixer = BiMambaMixer(config)

    @property
    def is_plain(self) -> bool:
        """False if forward hooks are registered (the in-place path would not call them) or the norm was replaced."""
        parts: tuple[nn.Module, ...] = (self, self.norm, self.mixer)
        return type(self.norm) is nn.LayerNorm and not any(m._forward_hooks or m._forward_pre_hooks for m in parts)

    def add_residual(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        """Add the output of the previous blocks to the residual stream, both (B, P + L, D)."""
        return hidden if residual is None else residual + self.drop_path(hidden)

    def forward(self, stream: Tensor, lengths: Tensor | None, reversed_time: bool) -> Tensor:
        """Return this block's contribution to the residual stream (B, P + L, D)."""
        out: Tensor = self.mixer(self.norm(stream), lengths, reversed_time)
        return out

    def add_to(
        self, out: Tensor, stream: Tensor, lengths: Tensor | None, reversed_time: bool, *, accumulate: bool = True
    ) -> None:
        """Add the result of `forward` to `out`, which may be `stream` itself, or write it there."""
        mix_into(
            out,
            stream,
            (self.norm.weight, self.norm.bias, self.norm.eps),
            *self.mixer.weights(),
            lengths=lengths,
            reversed_time=reversed_time,
            accumulate=accumulate,
        )


class SSAMBAEncoder(PatchEncoder):
    """Normalized log-mel features (B, T, M) -> tokens (B, 1 + L, D) after the final norm, the [CLS] token first."""

    config: EncoderConfig

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config, rate) for rate in _drop_path_rates(config))
        self.drop_path = DropPath(config.drop_path)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        initialize_encoder(self, config)

    def skips_padding(self, hidden: Tensor) -> bool:
        """Return whether inference runs in place on packed clips (no padding) for a tensor like `hidden`."""
        if self.training and self.config.drop_path:
            return False
        return can_mix_into(hidden) and all(isinstance(block, Block) and block.is_plain for block in self.blocks)

    def _run_blocks(
        self, hidden: Tensor, lengths: Tensor | None, layers: int, *, finish: bool, states: list[Tensor] | None = None
    ) -> Tensor:
        residual: Tensor | None = None
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        if states is None and self.skips_padding(hidden):
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
        size = 1 if self.config.block_layout == "sequential" else 2
        run = recomputed(self._run_layer, self.gradient_checkpointing)
        for layer in range(layers):
            if states is not None:
                states.append(_hidden_state(hidden, residual))
            hidden, residual = run(blocks[size * layer : size * (layer + 1)], hidden, residual, lengths)
        if states is not None:
            states.append(_hidden_state(hidden, residual))
        if not finish:
            return _hidden_state(hidden, residual)
        assert residual is not None
        return self._final_norm(residual + self.drop_path(hidden))

    def _run_layer(
        self, blocks: list[Block], hidden: Tensor, residual: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run a block, or a pair of them: return its output and the residual stream, both (B, P + L, D)."""
        first, second = blocks[0], blocks[-1]
        stream = first.add_residual(hidden, residual)
        if second is first:
            return first(stream, lengths, False), stream
        # The two streams differ only if stochastic depth drops the input of one of them.
        other = stream
        if first.drop_path.is_active or second.drop_path.is_active:
            other = second.add_residual(hidden, residual)
        hidden = first(stream, lengths, False) + second(other, lengths, True)
        if self.config.pair_residual == "sum":
            return hidden, stream + other
        return hidden, stream if other is stream else (stream + other) * 0.5

    def _run_in_place(self, stream: Tensor, lengths: Tensor | None, blocks: list[Block], layers: int) -> None:
        """Run the first `layers` layers in place, for inference; afterwards `stream` is the last hidden state.

        `stream` is (B, P + L, D), or with `lengths` (tokens, D): clips packed without padding.
        """
        if self.config.block_layout == "sequential":
            for block in blocks[:layers]:
                block.add_to(stream, stream, lengths, False)
            return
        added = torch.empty_like(stream, dtype=compute_dtype(stream))
        for first, second in zip(blocks[: 2 * layers : 2], blocks[1 : 2 * layers : 2], strict=True):
            first.add_to(added, stream, lengths, False, accumulate=False)
            second.add_to(added, stream, lengths, True)
            torch.add(added, stream, alpha=2 if self.config.pair_residual == "sum" else 1, out=stream)

    def _final_norm(self, tokens: Tensor) -> Tensor:
        for _ in range(self.config.final_norms):
            tokens = self.norm(tokens)
        return tokens


class AlternatingBlocks(nn.ModuleList):
    """A stack of blocks, every second one on the reversed sequence, for a decoder."""

    def __init__(self, config: EncoderConfig, depth: int):
        super().__init__(Block(config, 0.0) for _ in range(depth))

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run the blocks over `hidden` (B, L, D), `lengths` (B,) tokens valid; without a final norm."""
        residual: Tensor | None = None
        for index, block in enumerate(self):
            assert isinstance(block, Block)
            residual = block.add_residual(hidden, residual)
            hidden = block(residual, lengths, bool(index % 2))
        return _hidden_state(hidden, residual)


def _hidden_state(hidden: Tensor, residual: Tensor | None) -> Tensor:
    """Return the hidden state between two layers: residual + output."""
    return hidden if residual is None else residual + hidden


def _drop_path_rates(config: EncoderConfig) -> list[float]:
    """Return rates that rise linearly from 0 to `drop_path`, shifted by one block as in the original (0, 0, ...)."""
    linear = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
    return [0.0, *linear][: config.depth]
