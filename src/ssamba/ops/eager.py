"""Selective scan and causal convolution in plain PyTorch: any device, no compiler, memory linear in length.

The sequence is cut into chunks. Within a chunk everything but the recurrence is one vectorized operation over
(chunk, B, E, N), and the recurrence is one fused multiply-add per step over (B, E, N); only the state passes from one
chunk to the next. The backward pass starts from the states saved before each chunk and recomputes the inside of the
chunk, so nothing of size (B, L, E, N) ever exists.

Shapes: B clips, L tokens, E channels, N states of a channel; `chunk` is the steps of one chunk, time first inside it.
Equations: see `reference.py`. With g_t the gradient of h_t: g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.operators import (
    ConvInputs,
    ScanInputs,
    arguments_of,
    flat,
    save_scan,
    saved_scan,
    scan_gradients,
    tensors,
)

# The saved states then take 1 / 32 of (B, L, E, N), and a chunk of one clip stays in the cache.
_CHUNK_STEPS = 32


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Return the output (B, L, E) and the last state (B, E, N)."""
    out, last_state, _ = _scan(*inputs)
    return out, last_state


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Return the convolution (B, L, E): one shifted multiply-add per tap."""
    x, weight, bias, silu, reverse, lengths = inputs
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
    """One chunk in scan order, in the state's dtype; padding is zero, that of `delta` after softplus too."""

    u: Tensor  # (chunk, B, E)
    delta: Tensor  # (chunk, B, E), bias and softplus applied
    delta_slope: Tensor  # (chunk, B, E), derivative of delta by its raw value; empty if not asked for
    B: Tensor  # (chunk, B, N)
    C: Tensor  # (chunk, B, N)
    z: Tensor | None  # (chunk, B, E)


class _Chunks:
    """Read a scan's inputs chunk by chunk, in scan order and time first, and write results back."""

    def __init__(self, inputs: ScanInputs, dtype: torch.dtype):
        self.inputs, self.dtype = inputs, dtype
        self.length = inputs.u.shape[1]
        self.count = _count_chunks(self.length)
        self.valid = None if inputs.lengths is None else _valid_steps(inputs.lengths, self.length)

    def steps(self, index: int) -> slice:
        """Return the steps of chunk `index`, counted in scan order, as a slice of the time axis."""
        first, last = index * _CHUNK_STEPS, min((index + 1) * _CHUNK_STEPS, self.length)
        return slice(self.length - last, self.length - first) if self.inputs.reverse else slice(first, last)

    def read(self, x: Tensor, index: int, dtype: torch.dtype | None = None, masked: bool = True) -> Tensor:
        """Return chunk `index` of x (B, L, ...) as contiguous (chunk, B, ...)."""
        part = x[:, self.steps(index)]
        if masked and self.valid is not None:
            part = torch.where(self.valid[:, self.steps(index), None], part, 0)
        part = part.transpose(0, 1)
        return (part.flip(0) if self.inputs.reverse else part).to(dtype or self.dtype).contiguous()

    def write(self, target: Tensor, index: int, part: Tensor) -> None:
        """Write `part` (chunk, B, ...) to chunk `index` of `target` (B, L, ...), in its dtype."""
        part = part.flip(0) if self.inputs.reverse else part
        target[:, self.steps(index)] = part.transpose(0, 1).to(target.dtype)

    def load(self, index: int, slope: bool) -> _Chunk:
        """Return the inputs of chunk `index`; `slope`: with the derivative of delta."""
        u, delta, _, B, C, _, z, delta_bias, *_ = self.inputs
        raw = self.read(delta, index)
        if delta_bias is not None:
            raw = raw + delta_bias.to(self.dtype)
        step = F.softplus(raw) if self.inputs.delta_softplus else raw
        derivative = raw.new_empty(0)
        if slope:
            derivative = torch.sigmoid(raw) if self.inputs.delta_softplus else torch.ones_like(raw)
        if self.valid is not None:
            # A step of size zero leaves the state alone, so padding passes it through in either direction.
            keep = self.read(self.valid[..., None], index, torch.bool, masked=False)
            step = torch.where(keep, step, 0)
            derivative = torch.where(keep, derivative, 0) if slope else derivative
        z_chunk = None if z is None else self.read(z, index)
        return _Chunk(self.read(u, index), step, derivative, self.read(B, index), self.read(C, index), z_chunk)


def _count_chunks(length: int) -> int:
    return -(-length // _CHUNK_STEPS)


def _valid_steps(lengths: Tensor, length: int) -> Tensor:
    """Return (B, L) bool, True for valid steps."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def _states(chunk: _Chunk, A: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return decay exp(delta A) and states h of a chunk, each (chunk, B, E, N); `start` (B, E, N) enters it."""
    decay = torch.exp(chunk.delta[..., None] * A)
    h = (chunk.delta * chunk.u)[..., None] * chunk.B[:, :, None, :]
    previous = start
    for decay_t, h_t in zip(decay.unbind(0), h.unbind(0), strict=True):
        torch.addcmul(h_t, decay_t, previous, out=h_t)
        previous = h_t
    return decay, h


def _project(states: Tensor, vector: Tensor) -> Tensor:
    """Sum over the states: (chunk, B, E, N), (chunk, B, N) -> (chunk, B, E)."""
    return torch.matmul(states, vector[..., None]).squeeze(-1)


def _forward(inputs: ScanInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return output (B, L, E), last state (B, E, N), and the states before each chunk (chunks, B, E, N)."""
    out, h_last, chunk_states = _forward_fake(inputs)
    dtype, D = h_last.dtype, inputs.D
    chunks, A = _Chunks(inputs, dtype), inputs.A.to(dtype)
    if inputs.initial_state is None:
        h_last.zero_()
    else:
        h_last.copy_(inputs.initial_state)
    for index in range(chunks.count):
        chunk = chunks.load(index, slope=False)
        chunk_states[index] = h_last
        _, h = _states(chunk, A, h_last)
        y = _project(h, chunk.C)
        if D is not None:
            y = torch.addcmul(y, D.to(dtype), chunk.u)
        if chunk.z is not None:
            y = y * F.silu(chunk.z)
        chunks.write(out, index, y)
        h_last = h[-1]
    return out, h_last.clone(), chunk_states


def _forward_fake(inputs: ScanInputs) -> tuple[Tensor, Tensor, Tensor]:
    u, (batch, length, channels), state = inputs.u, inputs.u.shape, inputs.A.shape[1]
    dtype = torch.promote_types(u.dtype, torch.float32)
    return (
        torch.empty_like(u, memory_format=torch.contiguous_format),
        u.new_empty((batch, channels, state), dtype=dtype),
        u.new_empty((_count_chunks(length), batch, channels, state), dtype=dtype),
    )


def _backward(grad_out: Tensor, grad_last: Tensor, chunk_states: Tensor, inputs: ScanInputs) -> tuple[Tensor, ...]:
    """Return gradients of u, delta, A, B, C, D, z, delta_bias (empty for absent inputs) and the initial state."""
    u, D, dtype = inputs.u, inputs.D, chunk_states.dtype
    chunks, A = _Chunks(inputs, dtype), inputs.A.to(dtype)
    grad_u, grad_delta, _, grad_B, grad_C, _, grad_z, _, _ = _backward_fake(grad_out, grad_last, chunk_states, inputs)
    grad_A = torch.zeros_like(A, memory_format=torch.contiguous_format)
    grad_D = torch.zeros(u.shape[2], dtype=dtype, device=u.device)
    grad_bias = torch.zeros_like(grad_D)
    carry = grad_last.to(dtype, copy=True)
    for index in reversed(range(chunks.count)):
        chunk = chunks.load(index, slope=True)
        decay, h = _states(chunk, A, chunk_states[index])
        grad_y = chunks.read(grad_out, index)
        if chunk.z is not None:
            y = _project(h, chunk.C)
            if D is not None:
                y = torch.addcmul(y, D.to(dtype), chunk.u)
            gate = torch.sigmoid(chunk.z)
            chunks.write(grad_z, index, grad_y * y * gate * (1 + chunk.z * (1 - gate)))
            grad_y = grad_y * chunk.z * gate
        chunks.write(grad_C, index, torch.matmul(grad_y[:, :, None, :], h).squeeze(2))
        g = grad_y[..., None] * chunk.C[:, :, None, :]
        for decay_t, g_t in zip(reversed(decay.unbind(0)), reversed(g.unbind(0)), strict=True):
            g_t += carry
            carry = decay_t * g_t
        drive = _project(g, chunk.B)
        grad_input = chunk.delta * drive
        if D is not None:
            grad_input = torch.addcmul(grad_input, D.to(dtype), grad_y)
            grad_D += (grad_y * chunk.u).sum((0, 1))
        chunks.write(grad_u, index, grad_input)
        chunks.write(grad_B, index, torch.matmul((chunk.delta * chunk.u)[:, :, None, :], g).squeeze(2))
        # From here on g is the gradient of delta_t * A: g_t * exp(delta_t A) * h_{t-1}.
        g[0] *= chunk_states[index]
        g[1:] *= h[:-1]
        g *= decay
        grad_A += torch.einsum("kben,kbe->en", g, chunk.delta)
        grad_step = (torch.einsum("kben,en->kbe", g, A) + chunk.u * drive) * chunk.delta_slope
        grad_bias += grad_step.sum((0, 1))
        chunks.write(grad_delta, index, grad_step)
    return (
        grad_u,
        grad_delta,
        grad_A.to(inputs.A.dtype),
        grad_B,
        grad_C,
        u.new_empty(0) if D is None else grad_D.to(D.dtype),
        grad_z,
        u.new_empty(0) if inputs.delta_bias is None else grad_bias.to(inputs.delta_bias.dtype),
        carry,
    )


def _backward_fake(grad_out: Tensor, grad_last: Tensor, chunk_states: Tensor, inputs: ScanInputs) -> tuple[Tensor, ...]:
    def like(x: Tensor | None) -> Tensor:
        return inputs.u.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)

    return *(like(x) for x in inputs[:8]), torch.empty_like(grad_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    save_scan(ctx, ScanInputs(*inputs), output[2])


def _autograd(ctx: Any, grad_out: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    chunk_states, inputs = saved_scan(ctx)
    return scan_gradients(ctx, inputs, _scan_backward(grad_out, grad_last, chunk_states, *inputs[:-1]))


_scan: Any = torch.library.custom_op(
    "ssamba::selective_scan_eager",
    flat(_forward, ScanInputs),
    mutates_args=(),
    schema=f"({arguments_of(ScanInputs)}) -> {tensors(3)}",
)
_scan_backward: Any = torch.library.custom_op(
    "ssamba::selective_scan_eager_backward",
    flat(_backward, ScanInputs, 3),
    mutates_args=(),
    schema="(Tensor grad_out, Tensor grad_last, Tensor borders, "
    f"{arguments_of(ScanInputs, without='initial_state')}) -> {tensors(9)}",
)
_scan.register_fake(flat(_forward_fake, ScanInputs))
_scan_backward.register_fake(flat(_backward_fake, ScanInputs, 3))
_scan.register_autograd(_autograd, setup_context=_setup)
