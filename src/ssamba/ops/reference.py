"""Reference: selective scan and causal convolution as plain loops, in any dtype, differentiated by autograd.

Equation 2 of Mamba (Gu and Dao, 2023, arXiv:2312.00752), discretized as its code does (A by zero-order hold, B by
Euler):

    h_t = exp(delta_t * A) * h_{t-1} + delta_t * B_t * u_t        y_t = C_t . h_t + D * u_t

Shapes: B clips, L tokens, E channels, N states of a channel. u, delta, z (B, L, E); A (E, N); B, C (B, L, N); D (E,).
Nothing here shares code with a kernel; every kernel is compared with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.operators import ConvInputs, ScanInputs


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Run one clip and one step after another; return the output (B, L, E) and the last state (B, E, N)."""
    u, lengths, initial_state = inputs.u, inputs.lengths, inputs.initial_state
    state = torch.promote_types(u.dtype, torch.float32)
    A = inputs.A.to(state)
    outputs, last_states = [], []
    for i in range(u.shape[0]):
        length = u.shape[1] if lengths is None else int(lengths[i])
        h = torch.zeros_like(A) if initial_state is None else initial_state[i].to(state)
        steps: list[Tensor] = [u.new_zeros(u.shape[2], dtype=state)] * u.shape[1]
        for t in reversed(range(length)) if inputs.reverse else range(length):
            u_t, delta_t = u[i, t].to(state), inputs.delta[i, t].to(state)
            if inputs.delta_bias is not None:
                delta_t = delta_t + inputs.delta_bias.to(state)
            if inputs.delta_softplus:
                delta_t = F.softplus(delta_t)
            h = torch.exp(delta_t[:, None] * A) * h + (delta_t * u_t)[:, None] * inputs.B[i, t].to(state)
            y = (h * inputs.C[i, t].to(state)).sum(-1)
            if inputs.D is not None:
                y = y + inputs.D.to(state) * u_t
            if inputs.z is not None:
                y = y * F.silu(inputs.z[i, t].to(state))
            steps[t] = y
        outputs.append(torch.stack(steps))
        last_states.append(h)
    return torch.stack(outputs).to(u.dtype), torch.stack(last_states)


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Compute y_t = sum_k weight[:, k] * x_{t - (W - 1) + k} within each clip; time runs backwards if `reverse`."""
    x, weight, bias, silu, reverse, lengths = inputs
    state = torch.promote_types(x.dtype, torch.float32)
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
