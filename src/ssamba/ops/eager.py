"""Selective scan and causal convolution in plain PyTorch: any device, no compiler, memory linear in length.

The sequence is cut into chunks. Within a chunk everything but the recurrence is one vectorized operation
over (K, B, D, N), and the recurrence is one fused multiply-add per step over (B, D, N); between chunks
only the state is kept. The backward pass starts from the states saved at the chunks' borders and computes the
inside of each chunk again, so nothing of size (B, L, D, N) ever exists.

Shapes: B batch, L tokens, D channels, N state size, K steps of one chunk (time first inside a chunk).
Equations: see `reference.py`. With g_t the gradient of h_t: g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_STEPS = 32  # the saved states then take 1 / 32 of (B, L, D, N), and a chunk of one clip stays in cache


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
    """Output (B, L, D) and last state (B, D, N); arguments are those of `ssamba.ops.selective_scan`."""
    out, last_state, _ = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, initial_state)
    return out, last_state


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    lengths: Tensor | None,
) -> Tensor:
    """(B, L, D); arguments are those of `ssamba.ops.causal_conv`. One shifted multiply-add per tap."""
    length, taps = x.shape[1], weight.shape[1]
    if lengths is not None:
        valid = _valid_steps(lengths, length)[..., None]
        x = torch.where(valid, x, 0)
    padded = F.pad(x, (0, 0, 0, taps - 1) if reverse else (0, 0, taps - 1, 0))
    y = torch.zeros_like(x) if bias is None else bias.to(x.dtype).expand_as(x)
    for k in range(taps):
        first = taps - 1 - k if reverse else k
        y = torch.addcmul(y, weight[:, k].to(x.dtype), padded[:, first : first + length])
    y = F.silu(y) if silu else y
    return y if lengths is None else torch.where(valid, y, 0)


class _Chunk(NamedTuple):
    """One chunk in scan order, in the state's dtype, padding replaced by zeros (delta after softplus too)."""

    u: Tensor  # (K, B, D)
    delta: Tensor  # (K, B, D), bias and softplus applied
    delta_slope: Tensor | None  # (K, B, D), derivative of delta by its raw value
    B: Tensor  # (K, B, N)
    C: Tensor  # (K, B, N)
    z: Tensor | None  # (K, B, D)


class _Reader:
    """Cuts the tensors into chunks, in scan order and time first, and puts results back in their place."""

    def __init__(self, length: int, reverse: bool, lengths: Tensor | None):
        self.length, self.reverse = length, reverse
        self.count = _chunks(length)
        self.valid = None if lengths is None else _valid_steps(lengths, length)

    def steps(self, index: int) -> slice:
        """The steps of chunk `index` counted in scan order, as a slice of the time axis."""
        first, last = index * _CHUNK_STEPS, min((index + 1) * _CHUNK_STEPS, self.length)
        return slice(self.length - last, self.length - first) if self.reverse else slice(first, last)

    def read(self, x: Tensor, index: int, dtype: torch.dtype, masked: bool = True) -> Tensor:
        """(K, B, ...) of chunk `index`, contiguous."""
        part = x[:, self.steps(index)]
        if masked and self.valid is not None:
            part = torch.where(self.valid[:, self.steps(index), None], part, 0)
        part = part.transpose(0, 1)
        return (part.flip(0) if self.reverse else part).to(dtype).contiguous()

    def write(self, target: Tensor, index: int, part: Tensor) -> None:
        """Put (K, B, ...) back to chunk `index` of `target` (B, L, ...), in its dtype."""
        part = part.flip(0) if self.reverse else part
        target[:, self.steps(index)] = part.transpose(0, 1).to(target.dtype)

    def chunk(
        self,
        index: int,
        dtype: torch.dtype,
        u: Tensor,
        delta: Tensor,
        B: Tensor,
        C: Tensor,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        slope: bool,
    ) -> _Chunk:
        raw = self.read(delta, index, dtype)
        if delta_bias is not None:
            raw = raw + delta_bias.to(dtype)
        step = F.softplus(raw) if delta_softplus else raw
        derivative = None
        if slope:
            derivative = torch.sigmoid(raw) if delta_softplus else torch.ones_like(raw)
        if self.valid is not None:
            # A step of size zero leaves the state alone, so padding passes it through in either direction.
            keep = self.read(self.valid[..., None], index, torch.bool, masked=False)
            step = torch.where(keep, step, 0)
            derivative = None if derivative is None else torch.where(keep, derivative, 0)
        return _Chunk(
            u=self.read(u, index, dtype),
            delta=step,
            delta_slope=derivative,
            B=self.read(B, index, dtype),
            C=self.read(C, index, dtype),
            z=None if z is None else self.read(z, index, dtype),
        )


def _chunks(length: int) -> int:
    return -(-length // _CHUNK_STEPS)


def _valid_steps(lengths: Tensor, length: int) -> Tensor:
    """(B, L) bool."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def _states(chunk: _Chunk, A: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Decay exp(delta A) and states h of a chunk, each (K, B, D, N)."""
    decay = torch.exp(chunk.delta[..., None] * A)
    h = (chunk.delta * chunk.u)[..., None] * chunk.B[:, :, None, :]
    previous = start
    for decay_t, h_t in zip(decay.unbind(0), h.unbind(0), strict=True):
        torch.addcmul(h_t, decay_t, previous, out=h_t)
        previous = h_t
    return decay, h


def _project(states: Tensor, vector: Tensor) -> Tensor:
    """Sum over the state: (K, B, D, N), (K, B, N) -> (K, B, D)."""
    return torch.matmul(states, vector[..., None]).squeeze(-1)


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.custom_op("ssamba::selective_scan_eager", mutates_args=())
def _scan(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, L, D), last state (B, D, N), and the states before each chunk (chunks, B, D, N)."""
    (batch, length, channels), state, dtype = u.shape, A.shape[1], _state_dtype(u.dtype)
    reader = _Reader(length, reverse, lengths)
    A = A.to(dtype)
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    borders = torch.empty(reader.count, batch, channels, state, dtype=dtype, device=u.device)
    if initial_state is None:
        h_last = torch.zeros(batch, channels, state, dtype=dtype, device=u.device)
    else:
        h_last = initial_state.to(dtype, copy=True, memory_format=torch.contiguous_format)
    for index in range(reader.count):
        chunk = reader.chunk(index, dtype, u, delta, B, C, z, delta_bias, delta_softplus, slope=False)
        borders[index] = h_last
        _, h = _states(chunk, A, h_last)
        y = _project(h, chunk.C)
        if D is not None:
            y = torch.addcmul(y, D.to(dtype), chunk.u)
        if chunk.z is not None:
            y = y * F.silu(chunk.z)
        reader.write(out, index, y)
        h_last = h[-1]
    return out, h_last.clone(), borders


@_scan.register_fake
def _(
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
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, channels), state = u.shape, A.shape[1]
    dtype = _state_dtype(u.dtype)
    return (
        torch.empty_like(u, memory_format=torch.contiguous_format),
        u.new_empty((batch, channels, state), dtype=dtype),
        u.new_empty((_chunks(length), batch, channels, state), dtype=dtype),
    )


@torch.library.custom_op("ssamba::selective_scan_eager_backward", mutates_args=())
def _scan_backward(
    grad_out: Tensor,
    grad_last: Tensor,
    borders: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias (empty where the input is absent) and the initial state."""
    length, channels, dtype = u.shape[1], u.shape[2], borders.dtype
    reader = _Reader(length, reverse, lengths)
    A_state = A.to(dtype)
    grad_u, grad_delta, grad_B, grad_C = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C)
    )
    grad_z = u.new_empty(0) if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    grad_A = torch.zeros_like(A_state, memory_format=torch.contiguous_format)
    grad_D = torch.zeros(channels, dtype=dtype, device=u.device)
    grad_bias = torch.zeros(channels, dtype=dtype, device=u.device)
    carry = grad_last.to(dtype, copy=True)
    for index in reversed(range(reader.count)):
        chunk = reader.chunk(index, dtype, u, delta, B, C, z, delta_bias, delta_softplus, slope=True)
        decay, h = _states(chunk, A_state, borders[index])
        grad_y = reader.read(grad_out, index, dtype)
        if chunk.z is not None:
            y = _project(h, chunk.C)
            if D is not None:
                y = torch.addcmul(y, D.to(dtype), chunk.u)
            gate = torch.sigmoid(chunk.z)
            reader.write(grad_z, index, grad_y * y * gate * (1 + chunk.z * (1 - gate)))
            grad_y = grad_y * chunk.z * gate
        reader.write(grad_C, index, torch.matmul(grad_y[:, :, None, :], h).squeeze(2))
        g = grad_y[..., None] * chunk.C[:, :, None, :]
        for decay_t, g_t in _backwards(decay, g):
            g_t += carry
            carry = decay_t * g_t
        drive = _project(g, chunk.B)
        grad_input = chunk.delta * drive
        if D is not None:
            grad_input = torch.addcmul(grad_input, D.to(dtype), grad_y)
            grad_D += (grad_y * chunk.u).sum((0, 1))
        reader.write(grad_u, index, grad_input)
        reader.write(grad_B, index, torch.matmul((chunk.delta * chunk.u)[:, :, None, :], g).squeeze(2))
        # From here on g is the gradient of delta_t * A: g_t * exp(delta_t A) * h_{t-1}.
        g[0] *= borders[index]
        g[1:] *= h[:-1]
        g *= decay
        grad_A += torch.einsum("kbdn,kbd->dn", g, chunk.delta)
        assert chunk.delta_slope is not None
        grad_step = (torch.einsum("kbdn,dn->kbd", g, A_state) + chunk.u * drive) * chunk.delta_slope
        grad_bias += grad_step.sum((0, 1))
        reader.write(grad_delta, index, grad_step)
    none = u.new_empty(0)
    return (
        grad_u,
        grad_delta,
        grad_A.to(A.dtype),
        grad_B,
        grad_C,
        none if D is None else grad_D.to(D.dtype),
        grad_z,
        none.clone() if delta_bias is None else grad_bias.to(delta_bias.dtype),
        carry,
    )


def _backwards(decay: Tensor, g: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(reversed(decay.unbind(0)), reversed(g.unbind(0)), strict=True)


@_scan_backward.register_fake
def _(
    grad_out: Tensor,
    grad_last: Tensor,
    borders: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(x: Tensor | None) -> Tensor:
        return u.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)

    grads = like(u), like(delta), like(A), like(B), like(C), like(D), like(z), like(delta_bias)
    return (*grads, torch.empty_like(grad_last))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, initial_state = inputs
    ctx.save_for_backward(output[2], u, delta, A, B, C, D, z, delta_bias, lengths)
    ctx.options = delta_softplus, reverse
    ctx.initial_dtype = None if initial_state is None else initial_state.dtype


def _backward(ctx: Any, grad_out: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    borders, u, delta, A, B, C, D, z, delta_bias, lengths = ctx.saved_tensors
    *grads, grad_initial = _scan_backward(
        grad_out, grad_last, borders, u, delta, A, B, C, D, z, delta_bias, *ctx.options, lengths
    )
    present = [
        grad if x is not None else None for grad, x in zip(grads, (u, delta, A, B, C, D, z, delta_bias), strict=True)
    ]
    initial = None if ctx.initial_dtype is None else grad_initial.to(ctx.initial_dtype)
    return (*present, None, None, None, initial)


_scan.register_autograd(_backward, setup_context=_setup)
