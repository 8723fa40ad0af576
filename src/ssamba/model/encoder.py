"""The SSAMBA encoder: patches, positions, BiMamba blocks, final norm (Shams et al., SLT 2024, section 3).

`variant="official"` is the released structure with its quirks, each behind a flag of `EncoderConfig`:
blocks run in pairs, the second of a pair on the reversed sequence, outputs and residual streams summed (so the residual
doubles at every pair); the final LayerNorm is applied twice; patches are numbered frequency-major.

Shapes: B batch, T frames, M mel bins, L patch tokens, P = 1 prefix token, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssamba.config import EncoderConfig
from ssamba.model.initialize import initialize_encoder
from ssamba.model.mixer import BiMambaMixer
from ssamba.model.tokens import DropPath, PatchEncoder
from ssamba.ops import can_mix_into, mixing_dtype


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
