"""The pieces of the bidirectional mixer in C++: a direction's weights as the kernels want them, and calls of the kernels.

Shapes: B batch, L tokens, M = B L, E channels inside, N states, R rank of delta, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.ops.cpp import extension as cpu_extension
from ssamba.ops.cpp.scan import ABSENT, Rows, address, rows


class Packed(NamedTuple):
    """Clips that stand one behind the other in (1, M, channels), without padding."""

    lengths: Tensor
    """int64 (B,)."""
    starts: Tensor
    """The row where each begins, int64 (B,)."""
    longest: int


class Side(NamedTuple):
    """One direction's weights as the kernels want them: contiguous, float32 but for x_weight."""

    conv_weight: Tensor
    conv_bias: Tensor
    x_weight: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    reverse: bool

    @property
    def rank(self) -> int:
        """R."""
        return self.dt_weight.shape[1]

    @property
    def state(self) -> int:
        """N."""
        return self.A_log.shape[1]


def both_sides(weights: tuple[Tensor, ...], dtype: torch.dtype, reversed_time: bool) -> tuple[Side, Side]:
    """Both directions' weights, first the seven of the one ahead; `dtype` is that of the tokens."""
    return _side(weights[:7], dtype, reversed_time), _side(weights[7:], dtype, not reversed_time)


def _side(weights: tuple[Tensor, ...], dtype: torch.dtype, reverse: bool) -> Side:
    conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D = weights
    return Side(
        _plain(conv_weight),
        _plain(conv_bias),
        x_weight.to(dtype).contiguous(),
        _plain(dt_weight),
        _plain(dt_bias),
        _plain(A_log),
        _plain(D),
        reverse,
    )


def _plain(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()


def projects(dtype: torch.dtype) -> bool:
    """Whether `convolve` takes W_x u along: in float32, with vectors that are as good as a library's."""
    return dtype == torch.float32 and cpu_extension.capability() != "generic"


def columns_of(projected: Tensor, side: Side) -> tuple[Rows, Rows, Rows]:
    """Where delta's factor, B and C stand in (B, L, R + 2 N or more)."""
    address, batch_stride, row_stride, is_bf16 = rows(projected)
    size = projected.element_size()
    B, C = address + side.rank * size, address + (side.rank + side.state) * size
    return (
        (address, batch_stride, row_stride, is_bf16),
        (B, batch_stride, row_stride, is_bf16),
        (C, batch_stride, row_stride, is_bf16),
    )


def convolve(
    x: Tensor,
    lengths: Tensor | None,
    first: int,
    last: int,
    sides: Sequence[Side],
    out: Sequence[Rows],
    packed: Packed | None = None,
    projected: Sequence[Rows] | None = None,
) -> None:
    """Rows [first, last) of the directions' convolutions over x (B, L, E), into (B, last - first, E); all rows of `packed` clips.

    In float32, `projected` takes what W_x makes of them, (B, last - first, R + 2 N), while they are in the caches.
    """
    to = [ABSENT] * len(sides) if projected is None else projected
    batch, length, inner = x.shape if packed is None else (len(packed.lengths), packed.longest, x.shape[2])
    cpu_extension.module().mixer_conv(
        cpu_extension.capability(),
        cpu_extension.threads(),
        (batch, length, inner, sides[0].conv_weight.shape[1]),
        rows(x),
        address(lengths if packed is None else packed.lengths),
        0 if packed is None else packed.starts.data_ptr(),
        first if packed is None else 0,
        last if packed is None else 0,
        sides[0].x_weight.shape[0],
        [
            (
                side.reverse,
                side.conv_weight.data_ptr(),
                side.conv_bias.data_ptr(),
                out[i],
                0 if projected is None else side.x_weight.data_ptr(),
                to[i],
            )
            for i, side in enumerate(sides)
        ],
    )


def scan(
    u: Sequence[Rows],
    projected: Sequence[Tensor],
    z: Tensor | None,
    y: Tensor,
    lengths: Tensor | None,
    sides: Sequence[Side],
    *,
    accumulate: bool = False,
    before: Tensor | None = None,
    after: Tensor | None = None,
    borders: Sequence[Tensor] | None = None,
    packed: Packed | None = None,
) -> None:
    """The directions' scans over rows of u (B, L, E) and projections (B, L, R + 2 N or more); their sum into y, with z halved and gated. `after`: the last state."""
    columns = [columns_of(p, side) for p, side in zip(projected, sides, strict=True)]
    batch, length, inner = y.shape if packed is None else (len(packed.lengths), packed.longest, y.shape[2])
    directions = [
        (
            side.reverse,
            u[i],
            (columns[i][0], side.dt_weight.data_ptr(), side.rank),
            side.A_log.data_ptr(),
            columns[i][1],
            columns[i][2],
            side.D.data_ptr(),
            side.dt_bias.data_ptr(),
            address(before),
            address(after),
            0 if borders is None else borders[i].data_ptr(),
        )
        for i, side in enumerate(sides)
    ]
    cpu_extension.module().mixer_scan(
        cpu_extension.capability(),
        cpu_extension.threads(),
        (batch, length, inner, sides[0].state),
        ABSENT if z is None else rows(z),
        rows(y),
        address(lengths if packed is None else packed.lengths),
        0 if packed is None else packed.starts.data_ptr(),
        accumulate,
        directions,
    )


def gate(
    y: Tensor,
    z: Tensor,
    lengths: Tensor | None,
    gated: Tensor,
    grad: Tensor | None = None,
    grad_z: Tensor | None = None,
) -> None:
    """gated = y silu(z) / 2, all (B, L, E); `grad`, of gated, becomes that of y, and `grad_z` is filled."""
    cpu_extension.module().mixer_gate(
        cpu_extension.capability(),
        cpu_extension.threads(),
        tuple(y.shape),
        rows(y),
        rows(z),
        address(lengths),
        rows(gated),
        ABSENT if grad is None else rows(grad),
        ABSENT if grad_z is None else rows(grad_z),
    )
