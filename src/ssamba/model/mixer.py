"""The bidirectional Mamba mixer (Vision Mamba's "v2" block, as SSAMBA uses it).

Parameters only: what is done with them, and the equations, stand in `ssamba.ops.mixer`. One input projection makes the stream x
and the gate z, shared by two directions of time; each direction has its own causal convolution, its own input-dependent step
size and projections, and its own selective scan.

Symbols are Mamba's (Gu and Dao, 2023, arXiv:2312.00752, algorithm 2; Zhu et al., 2024, arXiv:2401.09417, algorithm 1).
Shapes: B batch, L tokens, D_model channels outside, E inside, N states, R rank of delta.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssamba.config import EncoderConfig
from ssamba.ops import DirectionWeights, bimamba_mixer, mix_into


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
