"""What the mixer in C++ is made of: weights in the kernels' layout, kernel calls, and the workspace between them.

Shapes: B clips, L tokens, E channels inside, N states of a channel, W taps; `delta_rank` is the rank of delta's
projection, `columns` = delta_rank + 2 N.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.ops.cpp import extension
from ssamba.ops.cpp.extension import ABSENT, Rows, address, dense, optional_rows, rows
from ssamba.ops.matmul import onednn_matmul_t
from ssamba.ops.operators import DirectionWeights

VECTOR = 16
"""Columns of a matrix product are padded to a multiple of this where their number is ours to choose."""
MAX_WORKSPACE_ELEMENTS = 2**25
"""Larger buffers are allocated anew each time."""
MAX_SEGMENT_SHAPES = 64
"""Shapes whose `SegmentBuffers` are cached."""


class KernelWeights(NamedTuple):
    """`DirectionWeights` as kernels read them: contiguous, float32 except for x_weight, and the direction."""

    conv_weight: Tensor
    conv_bias: Tensor
    x_weight: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    reverse: bool

    @property
    def delta_rank(self) -> int:
        """Rank of delta's projection."""
        return self.dt_weight.shape[1]

    @property
    def state(self) -> int:
        """N."""
        return self.A_log.shape[1]


class PackedClips(NamedTuple):
    """Clips stored one after another, without padding, in (1, tokens, channels)."""

    lengths: Tensor
    """int64 (B,)."""
    starts: Tensor
    """The row where each clip begins, int64 (B,)."""
    longest: int


def kernel_weights(weights: DirectionWeights, dtype: torch.dtype, reverse: bool) -> KernelWeights:
    """Return the weights in the kernels' layout; `dtype` is that of the tokens."""
    conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D = weights
    return KernelWeights(
        dense(conv_weight),
        dense(conv_bias),
        x_weight.to(dtype).contiguous(),
        dense(dt_weight),
        dense(dt_bias),
        dense(A_log),
        dense(D),
        reverse,
    )


def fuses_projection(dtype: torch.dtype) -> bool:
    """Return True if `convolve` also computes W_x u: in float32, with vectors as fast as a library's."""
    return dtype == torch.float32 and extension.capability() != "generic"


def projected_rows(projected: Tensor, weights: KernelWeights) -> tuple[Rows, Rows, Rows]:
    """Return the rows of delta's low-rank factor, B and C in `projected` (B, L, columns or more)."""
    low = rows(projected)
    B = low[0] + weights.delta_rank * projected.element_size()
    C = B + weights.state * projected.element_size()
    return low, (B, *low[1:]), (C, *low[1:])


def convolve(
    x: Tensor,
    lengths: Tensor | None,
    first: int,
    last: int,
    directions: Sequence[KernelWeights],
    out: Sequence[Rows],
    packed: PackedClips | None = None,
    projected: Sequence[Rows] | None = None,
) -> None:
    """Compute rows [first, last) of each direction's convolution over x (B, L, E) into `out` (B, last - first, E).

    Of packed clips, compute all rows. If `fuses_projection`, also compute W_x u into `projected`
    (B, last - first, columns), while u is in the caches.
    """
    to = [ABSENT] * len(directions) if projected is None else projected
    batch, length, inner = x.shape if packed is None else (len(packed.lengths), packed.longest, x.shape[2])
    extension.kernels.mixer_conv(
        *extension.target(),
        (batch, length, inner, directions[0].conv_weight.shape[1]),
        rows(x),
        address(lengths if packed is None else packed.lengths),
        0 if packed is None else packed.starts.data_ptr(),
        first if packed is None else 0,
        last if packed is None else 0,
        directions[0].x_weight.shape[0],
        [
            (
                weights.reverse,
                weights.conv_weight.data_ptr(),
                weights.conv_bias.data_ptr(),
                out[i],
                0 if projected is None else weights.x_weight.data_ptr(),
                to[i],
            )
            for i, weights in enumerate(directions)
        ],
    )


def scan(
    u: Sequence[Rows],
    projected: Sequence[Tensor],
    z: Tensor | None,
    y: Tensor,
    lengths: Tensor | None,
    directions: Sequence[KernelWeights],
    *,
    accumulate: bool = False,
    before: Tensor | None = None,
    after: Tensor | None = None,
    chunk_states: Sequence[Tensor] | None = None,
    packed: PackedClips | None = None,
) -> None:
    """Scan u (B, L, E) with projections (B, L, columns or more) in each direction, and sum the results into `y`.

    With z, halve the sum and multiply it by silu(z). `before` and `after` (B, E, N): the state that enters, and where
    the last state is written; `chunk_states`: where each direction saves the state before each chunk.
    """
    batch, length, inner = y.shape if packed is None else (len(packed.lengths), packed.longest, y.shape[2])
    scans = []
    for i, weights in enumerate(directions):
        low, B, C = projected_rows(projected[i], weights)
        scans.append(
            (
                weights.reverse,
                u[i],
                (low, weights.dt_weight.data_ptr(), weights.delta_rank),
                weights.A_log.data_ptr(),
                B,
                C,
                weights.D.data_ptr(),
                weights.dt_bias.data_ptr(),
                address(before),
                address(after),
                0 if chunk_states is None else chunk_states[i].data_ptr(),
            )
        )
    extension.kernels.mixer_scan(
        *extension.target(),
        (batch, length, inner, directions[0].state),
        optional_rows(z),
        rows(y),
        address(lengths if packed is None else packed.lengths),
        0 if packed is None else packed.starts.data_ptr(),
        accumulate,
        scans,
    )


def gate(
    y: Tensor,
    z: Tensor,
    lengths: Tensor | None,
    gated: Tensor,
    grad: Tensor | None = None,
    grad_z: Tensor | None = None,
) -> None:
    """Compute gated = y silu(z) / 2, all (B, L, E); turn `grad` of `gated` into that of y, and fill `grad_z`."""
    batch, length, inner = y.shape
    extension.kernels.mixer_gate(
        *extension.target(),
        (batch, length, inner),
        rows(y),
        rows(z),
        address(lengths),
        rows(gated),
        optional_rows(grad),
        optional_rows(grad_z),
    )


class Workspace(threading.local):
    """Buffers of the calling thread, by name, reused by every call.

    The first touch of fresh memory costs more than the work in it. Buffers above `MAX_WORKSPACE_ELEMENTS` are allocated
    anew each time.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.segments: dict[tuple[Any, ...], SegmentBuffers] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialized tensor; the next call with this name returns the same memory."""
        size = math.prod(shape)
        if size > MAX_WORKSPACE_ELEMENTS:
            return torch.empty(shape, dtype=dtype)
        buffer = self.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # tensors made in that mode must not be written to outside it
                buffer = self.buffers[name, dtype] = torch.empty(size, dtype=dtype)
            self.segments.clear()  # they are views of the old buffer
        return buffer[:size].view(shape)

    def matmul_t(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Return a b^T (rows, columns), valid until the next call with this name."""
        product = onednn_matmul_t(a, b)
        if product is None:
            product = self.get(name, (a.shape[0], b.shape[0]), a.dtype)
            torch.mm(a, b.t(), out=product)
        return product

    def segment(
        self, batch: int, length: int, weights: KernelWeights, count: int, dtype: torch.dtype
    ) -> SegmentBuffers:
        """Return the buffers of `count` directions for `length` tokens of `batch` clips."""
        key = batch, length, weights.x_weight.shape, count, dtype, fuses_projection(dtype)
        found = self.segments.get(key)
        if found is None:
            # Creating one may clear those before, so it is stored afterwards.
            found = SegmentBuffers(self, batch, length, weights, count, dtype)
            if len(self.segments) >= MAX_SEGMENT_SHAPES:
                self.segments.clear()
            self.segments[key] = found
        return found


class SegmentBuffers:
    """Inputs of the scans over a segment of tokens, and the views of them that kernels and matrix products take."""

    def __init__(
        self, workspace: Workspace, batch: int, length: int, weights: KernelWeights, count: int, dtype: torch.dtype
    ):
        columns, inner = weights.x_weight.shape
        tokens = batch * length
        self.is_fused = fuses_projection(dtype)
        width = columns if self.is_fused else -(-columns // VECTOR) * VECTOR
        self.u = workspace.get("u", (count, batch, length, inner), dtype)
        projected = workspace.get("projected", (count, batch, length, width), dtype)
        self.projected = list(projected)
        self.u_rows, self.projected_rows = [rows(u) for u in self.u], [rows(p) for p in self.projected]
        if self.is_fused:
            return
        self.u_flat, self.projected_flat = self.u.view(count, tokens, inner), projected.view(count, tokens, width)
        self.x_weight = workspace.get("x_weight", (count, width, inner), dtype)
        self.x_weight_used = [weight[:columns] for weight in self.x_weight]
        self.x_weight_padding = self.x_weight[:, columns:]
        self.x_weight_transposed = self.x_weight.transpose(1, 2)

    def fill(
        self,
        x: Tensor,
        lengths: Tensor | None,
        first: int,
        directions: Sequence[KernelWeights],
        packed: PackedClips | None = None,
    ) -> None:
        """Compute u, the convolutions over x (B, L, E), and W_x u for the segment that starts at token `first`."""
        last = first + self.u.shape[2]
        if self.is_fused:
            convolve(x, lengths, first, last, directions, self.u_rows, packed, self.projected_rows)
            return
        convolve(x, lengths, first, last, directions, self.u_rows, packed)
        self.x_weight_padding.zero_()
        for used, weights in zip(self.x_weight_used, directions, strict=True):
            used.copy_(weights.x_weight)
        # In rows of whole vectors: MKL's products of 44 columns are slow.
        torch.bmm(self.u_flat, self.x_weight_transposed, out=self.projected_flat)


workspace = Workspace()
