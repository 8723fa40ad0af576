"""The bidirectional mixer in C++ with gradients: the pass that keeps what the way back needs, and the way back.

Kept for each token: x, z, both directions' projections, the sum of the scans before the gate, and every 64th state. The
convolutions, delta and the inside of a chunk are computed again.

Shapes: B batch, L tokens, M = B L, D channels outside, E inside, N states, R rank of delta, K taps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssamba.ops.cpp import extension as cpu_extension
from ssamba.ops.cpp.mixer_kernels import Side, both_sides, columns_of, convolve, gate, projects, scan
from ssamba.ops.cpp.scan import ABSENT, Rows, address, border_size, clear_borders, int64, rows
from ssamba.ops.cpp.workspace import memory
from ssamba.ops.matmul import add_product, made, product


def mix_keeping(
    hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, and what the way back needs: xz, the projections and borders of both directions, and y before the gate."""
    *weights, lengths, reversed_time = rest
    if not hidden.numel():
        return mix_keeping_fake(hidden, in_weight, out_weight, *rest)
    sides = both_sides(tuple(weights), hidden.dtype, reversed_time)
    hidden, lengths = hidden.contiguous(), int64(lengths)
    batch, length, channels = hidden.shape
    tokens, inner, state = batch * length, out_weight.shape[1], sides[0].state
    # What a product makes is kept as it comes: a copy into other memory would cost as much as the scan's way there.
    xz = made(hidden.view(tokens, channels), in_weight).view(batch, length, 2 * inner)
    if projects(xz.dtype):
        projected = [xz.new_empty((batch, length, side.x_weight.shape[0])) for side in sides]
        u = _convolved(xz, lengths, sides, [rows(each) for each in projected])
    else:
        u = _convolved(xz, lengths, sides)
        projected = [
            made(u_side.view(tokens, inner), side.x_weight).view(batch, length, -1)
            for side, u_side in zip(sides, u, strict=True)
        ]
    y, gated = hidden.new_empty(u[0].shape), memory.get("gated", (batch, length, inner), hidden.dtype)
    borders = [hidden.new_empty(border_size(batch, length, inner, state), dtype=torch.float32) for _ in sides]
    for border in borders:
        clear_borders(border, inner, lengths)
    scan([rows(side) for side in u], projected, None, y, lengths, sides, borders=borders)
    gate(y, xz[..., inner:], lengths, gated)
    out = made(gated.view(tokens, inner), out_weight).view(hidden.shape)
    return out, xz, projected[0], projected[1], y, borders[0], borders[1]


def _convolved(
    xz: Tensor, lengths: Tensor | None, sides: tuple[Side, Side], projected: list[Rows] | None = None
) -> list[Tensor]:
    """What both directions' scans take in, (B, L, E), in memory that the next block uses again; `projected` as in `convolve`."""
    batch, length, inner = *xz.shape[:2], xz.shape[2] // 2
    u = [memory.get(f"u {way}", (batch, length, inner), xz.dtype) for way in ("ahead", "behind")]
    convolve(xz[..., :inner], lengths, 0, length, sides, [rows(side) for side in u], projected=projected)
    return u


def mix_keeping_fake(
    hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `mix_keeping` returns, unfilled."""
    batch, length, channels = hidden.shape
    inner, columns, state = out_weight.shape[1], rest[2].shape[0], rest[5].shape[1]
    borders = border_size(batch, length, inner, state)

    def new(width: int) -> Tensor:
        return hidden.new_empty((batch, length, width))

    projected = new(columns), new(columns)
    kept = [hidden.new_empty(borders, dtype=torch.float32) for _ in range(2)]
    return new(channels), new(2 * inner), *projected, new(inner), kept[0], kept[1]


def mix_backward(
    grad_out: Tensor, hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """Gradients of hidden, in_weight, out_weight and the seven weights of each direction."""
    weights, kept, (lengths, reversed_time) = rest[:14], rest[14:20], rest[20:]
    if not hidden.numel():
        return tuple(torch.zeros_like(t) for t in (hidden, in_weight, out_weight, *weights))
    xz, projected_ahead, projected_behind, y, borders_ahead, borders_behind = kept
    sides = both_sides(weights, hidden.dtype, reversed_time)
    hidden, grad_out, lengths = hidden.contiguous(), grad_out.contiguous(), int64(lengths)
    batch, length, channels = hidden.shape
    tokens, inner = batch * length, out_weight.shape[1]
    grad_rows = grad_out.view(tokens, channels)

    grad_y = made(grad_rows, out_weight.t()).view(y.shape)
    grad_xz, gated = memory.get("grad_xz", xz.shape, xz.dtype), memory.get("gated", y.shape, y.dtype)
    gate(y, xz[..., inner:], lengths, gated, grad_y, grad_xz[..., inner:])
    grad_out_weight = made(grad_rows.t(), gated.view(tokens, inner).t())
    grad_u, grad_delta = gated, memory.get("grad_delta", y.shape, y.dtype)  # gated has done its work
    grads: list[Tensor] = []
    for i, (side, u, projected, borders) in enumerate(
        zip(
            sides,
            _convolved(xz, lengths, sides),
            (projected_ahead, projected_behind),
            (borders_ahead, borders_behind),
            strict=True,
        )
    ):
        own = weights[7 * i : 7 * i + 7]
        grads += _side_backward(
            side, own, xz, u, projected, borders, grad_y, lengths, grad_u, grad_delta, grad_xz, bool(i)
        )
    flat = grad_xz.view(tokens, 2 * inner)
    grad_hidden = made(flat, in_weight.t()).view(hidden.shape)
    return grad_hidden, made(flat.t(), hidden.view(tokens, channels).t()), grad_out_weight, *grads


def _side_backward(
    side: Side,
    weights: tuple[Tensor, ...],
    xz: Tensor,
    u: Tensor,
    projected: Tensor,
    borders: Tensor,
    grad_y: Tensor,
    lengths: Tensor | None,
    grad_u: Tensor,
    grad_delta: Tensor,
    grad_xz: Tensor,
    accumulate: bool,
) -> tuple[Tensor, ...]:
    """One direction: its weights' gradients, and that of x into the first half of `grad_xz`; grad_u, grad_delta: memory."""
    conv_weight, conv_bias, _, _, dt_bias, A_log, D = weights
    # The kernels write float32, whatever the weights are.
    grad_conv_weight, grad_conv_bias, grad_dt_bias, grad_A, grad_D = (
        torch.empty(t.shape, dtype=torch.float32) for t in (conv_weight, conv_bias, dt_bias, A_log, D)
    )
    batch, length, inner = u.shape
    tokens, rank, columns = batch * length, side.rank, projected.shape[2]
    A = torch.exp(side.A_log).neg_()
    extension, capability, threads = cpu_extension.module(), cpu_extension.capability(), cpu_extension.threads()
    grad_projected = memory.get("grad_projected", projected.shape, projected.dtype)
    low, B, C = columns_of(projected, side)
    _, grad_B, grad_C = columns_of(grad_projected, side)
    extension.scan_backward(
        capability,
        threads,
        (batch, length, inner, side.state),
        True,
        side.reverse,
        rows(u),
        (low, side.dt_weight.data_ptr(), rank),
        A.data_ptr(),
        B,
        C,
        side.D.data_ptr(),
        ABSENT,
        side.dt_bias.data_ptr(),
        address(lengths),
        borders.data_ptr(),
        rows(grad_y),
        0,
        rows(grad_u),
        rows(grad_delta),
        grad_A.data_ptr(),
        grad_B,
        grad_C,
        grad_D.data_ptr(),
        ABSENT,
        grad_dt_bias.data_ptr(),
        0,
    )
    grad_A.mul_(A)  # A = -exp(A_log), so that dA / dA_log = A
    flat_u, flat_grad_u = u.view(tokens, inner), grad_u.view(tokens, inner)
    flat_projected, flat_grad = projected.view(tokens, columns), grad_projected.view(tokens, columns)
    flat_grad_delta = grad_delta.view(tokens, inner)
    product(flat_grad_delta, side.dt_weight.to(u.dtype).t(), flat_grad[:, :rank])
    # The short side first: the other way round, the same product takes twice as long.
    grad_dt_weight = (flat_projected[:, :rank].t() @ flat_grad_delta).t().contiguous()
    grad_x_weight = made(flat_grad.t(), flat_u.t())
    add_product(flat_grad_u, flat_grad, side.x_weight.t())
    extension.conv_backward(
        capability,
        threads,
        (batch, length, inner, side.conv_weight.shape[1]),
        True,
        side.reverse,
        rows(xz[..., :inner]),
        side.conv_weight.data_ptr(),
        side.conv_bias.data_ptr(),
        address(lengths),
        rows(grad_u),
        rows(grad_xz[..., :inner]),
        accumulate,
        grad_conv_weight.data_ptr(),
        grad_conv_bias.data_ptr(),
    )
    grads = grad_conv_weight, grad_conv_bias, grad_x_weight, grad_dt_weight, grad_dt_bias, grad_A, grad_D
    return tuple(grad.to(weight.dtype) for grad, weight in zip(grads, weights, strict=True))


def mix_backward_fake(
    grad_out: Tensor, hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """What `mix_backward` returns, unfilled."""
    return tuple(t.new_empty(t.shape) for t in (hidden, in_weight, out_weight, *rest[:14]))


def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what `autograd` reads."""
    *tensors, lengths, reversed_time = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:], lengths)
    ctx.reversed_time = reversed_time


def autograd(
    ctx: Any, grad_out: Tensor | None, *_: Tensor | None, run: Callable[..., Any] | None = None
) -> tuple[Tensor | None, ...]:
    """The gradient of every input of `mix_keeping`, by `run` or else by the operator."""
    if grad_out is None:
        return (None,) * 19
    *saved, lengths = ctx.saved_tensors
    backward = run or torch.ops.ssamba.bimamba_cpp_backward
    return (*backward(grad_out, *saved, lengths, ctx.reversed_time), None, None)


class Mixed(torch.autograd.Function):
    """`mix_keeping`'s output and gradients without operators: their way through PyTorch costs 0.2 ms a block and step."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """The output (B, L, D) for the arguments of the operator."""
        output = mix_keeping(*inputs)
        setup(ctx, inputs, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """The gradient of every one of them."""
        return autograd(ctx, *grads, run=mix_backward)
