"""The bidirectional Mamba mixer (Vision Mamba's "v2" block, as SSAMBA uses it).

One input projection makes the stream x and the gate z, shared by two directions of time. Each direction has its own
causal convolution, its own input-dependent step size and projections, and its own selective scan:

    x_d = silu(conv_d(x))     delta_low, B, C = split(W_d x_d)     delta = softplus(W_delta delta_low + b_delta)
    y_d = (scan(x_d, delta, A, B, C) + D x_d) * silu(z)            y = W_out (y_forward + y_backward) / 2

Symbols are Mamba's (Gu and Dao, 2023, arXiv:2312.00752, algorithm 2; Zhu et al., 2024, arXiv:2401.09417, algorithm 1).
Shapes: B batch, L tokens, D_model channels outside, E inside, N states, R rank of delta.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.config import EncoderConfig
from ssamba.ops import causal_conv, selective_scan
from ssamba.ops.scan import Direction


class DirectionalScan(nn.Module):
    """What one direction of time has for itself: convolution, projections of delta, B and C, and the scan."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        inner, rank, state = config.inner_dim, config.rank, config.state_size
        self.split = (rank, state, state)
        self.conv_weight = nn.Parameter(torch.empty(inner, config.conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.x_proj = nn.Linear(inner, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))

    def forward(self, x: Tensor, z: Tensor, direction: Direction, lengths: Tensor | None) -> Tensor:
        """x, z (B, L, E) -> (B, L, E); `lengths` (B,) are valid tokens."""
        x = causal_conv(x, self.conv_weight, self.conv_bias, direction=direction, lengths=lengths)
        delta, B, C = self.x_proj(x).split(self.split, dim=-1)
        # The bias of delta's projection is added inside the scan, in the state's precision.
        delta = F.linear(delta, self.dt_proj.weight)
        A = -torch.exp(self.A_log.float())
        return selective_scan(x, delta, A, B, C, self.D, z, self.dt_proj.bias, direction=direction, lengths=lengths)


class BiMambaMixer(nn.Module):
    """(B, L, D_model) -> (B, L, D_model), every token informed by all others, in time linear in L."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.in_proj = nn.Linear(config.embed_dim, 2 * config.inner_dim, bias=False)
        self.forward_scan = DirectionalScan(config)
        self.backward_scan = DirectionalScan(config)
        self.out_proj = nn.Linear(config.inner_dim, config.embed_dim, bias=False)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None, reversed_time: bool = False) -> Tensor:
        """`reversed_time` gives what flipping input and output along L would, without the flips."""
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        ahead: Direction = "reverse" if reversed_time else "forward"
        behind: Direction = "forward" if reversed_time else "reverse"
        y = self.forward_scan(x, z, ahead, lengths) + self.backward_scan(x, z, behind, lengths)
        # Halving the weight gives the same digits as halving y, for a fraction of the work.
        return F.linear(y, self.out_proj.weight * 0.5)
