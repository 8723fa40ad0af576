"""The oracle: selective scan and causal convolution as plain loops, in any dtype, with autograd's own gradients.

Equation 2 of Mamba (Gu and Dao, 2023, arXiv:2312.00752), discretized as its code does (A by zero-order
hold, B by Euler):

    h_t = exp(delta_t * A) * h_{t-1} + delta_t * B_t * u_t        y_t = C_t . h_t + D * u_t

Shapes: B batch, L tokens, D channels, N state size. u, delta, z (B, L, D); A (D, N); B, C (B, L, N).
Nothing here shares code with a kernel; every kernel is compared with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    lengths: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One clip after another, one step after another. Returns output (B, L, D) and last state (B, D, N)."""
    state = _state_dtype(u.dtype)
    A = A.to(state)
    outputs, last_states = [], []
    for i in range(u.shape[0]):
        length = u.shape[1] if lengths is None else int(lengths[i])
        h = torch.zeros_like(A) if initial_state is None else initial_state[i].to(state)
        steps: list[Tensor] = [u.new_zeros(u.shape[2], dtype=state)] * u.shape[1]
        for t in reversed(range(length)) if reverse else range(length):
            u_t, delta_t = u[i, t].to(state), delta[i, t].to(state)
            if delta_bias is not None:
                delta_t = delta_t + delta_bias.to(state)
            if delta_softplus:
                delta_t = F.softplus(delta_t)
            h = torch.exp(delta_t[:, None] * A) * h + (delta_t * u_t)[:, None] * B[i, t].to(state)
            y = (h * C[i, t].to(state)).sum(-1)
            if D is not None:
                y = y + D.to(state) * u_t
            if z is not None:
                y = y * F.silu(z[i, t].to(state))
            steps[t] = y
        outputs.append(torch.stack(steps))
        last_states.append(h)
    return torch.stack(outputs).to(u.dtype), torch.stack(last_states)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    lengths: Tensor | None,
) -> Tensor:
    """y_t = sum_k weight[:, k] * x_{t - (K - 1) + k} within the clip's length; time runs backwards if `reverse`."""
    state = _state_dtype(x.dtype)
    taps = weight.shape[1]
    outputs = []
    for i in range(x.shape[0]):
        length = x.shape[1] if lengths is None else int(lengths[i])
        steps: list[Tensor] = [x.new_zeros(x.shape[2], dtype=state)] * x.shape[1]
        for t in range(length):
            y = torch.zeros_like(steps[t]) if bias is None else bias.to(state)
            for k in range(taps):
                source = t + (taps - 1 - k) if reverse else t - (taps - 1 - k)
                if 0 <= source < length:
                    y = y + weight[:, k].to(state) * x[i, source].to(state)
            steps[t] = F.silu(y) if silu else y
        outputs.append(torch.stack(steps))
    return torch.stack(outputs).to(x.dtype)
