"""Launching the Triton kernels: block sizes, buffers, and the order of the passes.

Everything is chosen from the shape and the number of multiprocessors alone; nothing is tuned at run time, so equal
calls give equal bits. The kernels, and the reasons for their shape, are in `triton_scan_kernels.py` and
`triton_conv_kernels.py`; they are imported when the first one is launched.

Shapes: B batch, L tokens, D channels, N states (NP: rounded up to a power of two), K taps.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

CHUNK = 32  # steps between saved states: they take N / 32 float32 numbers per element of u
_WARPS_PER_PROCESSOR = 8  # programs (one warp each) that hide each other's latencies; fewer, and L is cut into segments
_INTERPRETER_PROCESSORS = 4
_CONV_FORWARD = (
    32,
    64,
)  # steps and channels of a tile; with fewer channels than threads, weights need no shared memory
_CONV_BACKWARD = (16, 64)


@dataclass(frozen=True)
class ScanPlan:
    """Block sizes of one scan; `segments` of `segment_steps` steps each cover L."""

    block_d: int
    """Channels of a program."""
    tile: int
    """Steps that are unrolled; divides the steps between saved states."""
    segments: int
    segment_steps: int
    """A multiple of the steps between saved states."""
    registers: int
    """The most that a thread may use."""


def plan_forward(batch: int, length: int, channels: int, processors: int) -> ScanPlan:
    """Block sizes of the forward scan on a chip of `processors` multiprocessors."""
    return _plan(batch, length, channels, processors, block_d=32, tile=8, registers=128)


def plan_backward(batch: int, length: int, channels: int, processors: int) -> ScanPlan:
    """Block sizes of the backward scan."""
    # Two channels a lane halve the loads of B and C and the shuffles for their gradients; four steps of them fit in
    # 168 registers, so 12 warps on a multiprocessor.
    return _plan(batch, length, channels, processors, block_d=64 if channels > 32 else 32, tile=4, registers=168)


def _plan(
    batch: int, length: int, channels: int, processors: int, *, block_d: int, tile: int, registers: int
) -> ScanPlan:
    programs = batch * -(-channels // block_d)
    wanted = processors * _WARPS_PER_PROCESSOR
    # A segmented scan computes every state twice, so two segments alone would only break even.
    chunks = count_chunks(length)
    segments = 1 if 3 * programs > wanted else min(-(-wanted // programs), chunks)
    per_segment = -(-chunks // segments)
    return ScanPlan(block_d, tile, -(-chunks // per_segment), per_segment * CHUNK, registers)


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _scan_kernels() -> ModuleType:
    from ssamba.ops.triton import scan_kernels as triton_scan_kernels

    return triton_scan_kernels


def _scan_backward_kernel() -> ModuleType:
    from ssamba.ops.triton import scan_backward_kernel as triton_scan_backward_kernel

    return triton_scan_backward_kernel


def _conv_kernels() -> ModuleType:
    from ssamba.ops.triton import conv_kernels as triton_conv_kernels

    return triton_conv_kernels


def count_chunks(length: int) -> int:
    """Saved states of a sequence."""
    return -(-length // CHUNK)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a device; a few for the interpreter, so that small tests see segments and none."""
    if device.type == "cpu":
        return _INTERPRETER_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def power_of_two(x: int) -> int:
    """The smallest power of two that is not below `x`."""
    return 1 << (x - 1).bit_length() if x > 0 else 1


def _rows(x: Tensor) -> Tensor:
    """`x` (B, L, D) in a dtype the kernels read, each row contiguous; the other strides are free."""
    x = x.float() if x.dtype == torch.float64 else x
    return x if x.stride(-1) == 1 else x.contiguous()


def _flat(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    return (x.float() if x.dtype == torch.float64 else x).contiguous()


def _pack(B: Tensor, C: Tensor, padded_states: int) -> Tensor:
    """B and C side by side, float32 (B, L, 2 NP), zero beyond N."""
    batch, length, state = B.shape
    if state == padded_states:
        packed = torch.empty(batch, length, 2 * padded_states, dtype=torch.float32, device=B.device)
    else:
        packed = torch.zeros(batch, length, 2 * padded_states, dtype=torch.float32, device=B.device)
    packed[..., :state] = B
    packed[..., padded_states : padded_states + state] = C
    return packed


def _strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


class ScanLaunch:
    """The arguments of one scan in the form the kernels take, and the launches that both passes share."""

    def __init__(
        self,
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
    ):
        (self.batch, self.length, self.channels), self.state = u.shape, A.shape[1]
        self.padded_state = power_of_two(self.state)
        self.device = u.device
        self.A = self.states_first(A[None])[0]
        self.u, self.delta, self.z = _rows(u), _rows(delta), None if z is None else _rows(z)
        self.BC = _pack(B, C, self.padded_state)
        self.D, self.bias = _flat(D), _flat(delta_bias)
        self.lengths = None if lengths is None else lengths.to(u.device).contiguous()
        self.softplus, self.reverse = delta_softplus, reverse

    def new(self, *shape: int) -> Tensor:
        """Uninitialized float32."""
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def states_first(self, x: Tensor) -> Tensor:
        """(B, D, N) to new memory (B, NP, D) in float32, zero beyond N."""
        result = self.new(len(x), self.padded_state, self.channels)
        result[:, : self.state] = x.transpose(1, 2)
        if self.padded_state > self.state:
            result[:, self.state :] = 0
        return result

    def programs(self, plan: ScanPlan) -> int:
        """The grid of a launch."""
        return self.batch * plan.segments * -(-self.channels // plan.block_d)

    def registers(self, plan: ScanPlan) -> int:
        """The limit of a launch; a state that is longer than usual gets all there are."""
        return plan.registers if self.padded_state <= 16 else 255

    def entering(self, plan: ScanPlan, start: Tensor | None, adjoint_of: Tensor | None = None) -> Tensor:
        """The state that enters each segment, (B, segments, NP, D), given the first's, `start` (B, NP, D).

        With `adjoint_of`, the output's gradient (B, L, D), the same for the state's gradient, in the other direction.
        """
        kernels = _scan_kernels()
        state = self.new(self.batch, plan.segments, self.padded_state, self.channels)
        total = self.new(self.batch, plan.segments, self.channels)
        adjoint = adjoint_of is not None
        source = self.u if adjoint_of is None else adjoint_of
        reverse = self.reverse != adjoint
        kernels.scan_local[(self.programs(plan),)](
            source, self.delta, self.A, self.BC, self.z if adjoint else None, self.bias, self.lengths, state, total,
            self.length, self.channels, plan.segments, plan.segment_steps // plan.tile,
            *_strides(source), *_strides(self.delta), *_strides(self.z),
            NP=self.padded_state, BLOCK_D=plan.block_d, TILE=plan.tile,
            REVERSE=reverse, SOFTPLUS=self.softplus, HAS_Z=adjoint and self.z is not None,
            HAS_BIAS=self.bias is not None, HAS_LENGTHS=self.lengths is not None, ADJOINT=adjoint,
            num_warps=1, maxnreg=self.registers(plan),
        )  # fmt: skip
        block_d = 32
        kernels.combine[(self.batch * -(-self.channels // block_d),)](
            self.A, start, state, total,
            self.channels, plan.segments,
            NP=self.padded_state, BLOCK_D=block_d, REVERSE=reverse, HAS_START=start is not None,
            num_warps=1,
        )  # fmt: skip
        return state

    def forward(self, out: Tensor, initial_state: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`out` filled, the last state (B, D, N), and borders (B, chunks, NP, D), without chunks unless `save`."""
        plan = plan_forward(self.batch, self.length, self.channels, processors(self.device))
        chunks = count_chunks(self.length)
        borders = self.new(self.batch, chunks if save else 0, self.padded_state, self.channels)
        last = self.new(self.batch, self.channels, self.state)
        start = None if initial_state is None else self.states_first(initial_state)
        if plan.segments > 1:
            start = self.entering(plan, start)
        _scan_kernels().scan_forward[(self.programs(plan),)](
            self.u, self.delta, self.A, self.BC, self.D, self.z, self.bias, self.lengths, start,
            out, last, borders if save else None,
            self.length, self.channels, plan.segments, plan.segment_steps // plan.tile, chunks,
            *_strides(self.u), *_strides(self.delta), *_strides(self.z),
            N=self.state, NP=self.padded_state, BLOCK_D=plan.block_d, TILE=plan.tile,
            CHUNK_TILES=CHUNK // plan.tile, REVERSE=self.reverse, SOFTPLUS=self.softplus,
            HAS_D=self.D is not None, HAS_Z=self.z is not None, HAS_BIAS=self.bias is not None,
            HAS_LENGTHS=self.lengths is not None, HAS_START=start is not None, SAVE=save,
            num_warps=1, maxnreg=self.registers(plan),
        )  # fmt: skip
        return out, last, borders

    def backward(
        self, grad_out: Tensor, grad_last: Tensor, borders: Tensor, du: Tensor, ddelta: Tensor, dz: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Fill du, ddelta and dz; returns float32 gradients of A, B, C, D, delta_bias and the initial state."""
        plan = plan_backward(self.batch, self.length, self.channels, processors(self.device))
        dy = _rows(grad_out)
        shape = self.batch, plan.segments, self.padded_state, self.channels
        carry = self.states_first(grad_last)
        if plan.segments > 1:
            carry = self.entering(plan, carry, adjoint_of=dy)
        carry = carry.view(shape)
        blocks = -(-self.channels // plan.block_d)
        padded = -(-self.length // plan.tile) * plan.tile
        dBC = self.new(blocks, self.batch, 2 * self.padded_state, padded)
        if self.lengths is not None:
            dBC.zero_()
        dA = torch.zeros(shape, dtype=torch.float32, device=self.device)
        dD, dbias = self.new(*shape[:2], self.channels), self.new(*shape[:2], self.channels)
        inner = self.new(self.batch, plan.segments, CHUNK // plan.tile, self.padded_state, self.channels)
        _scan_backward_kernel().scan_backward[(self.programs(plan),)](
            dy, self.u, self.delta, self.A, self.BC, self.D, self.z, self.bias, self.lengths, borders, carry, inner,
            du, ddelta, dz, dA, dBC, dD, dbias,
            self.length, padded, self.channels, self.batch, plan.segments, plan.segment_steps // CHUNK,
            count_chunks(self.length),
            *_strides(dy), *_strides(self.u), *_strides(self.delta), *_strides(self.z),
            N=self.state, NP=self.padded_state, BLOCK_D=plan.block_d, TILE=plan.tile,
            CHUNK_TILES=CHUNK // plan.tile, REVERSE=self.reverse, SOFTPLUS=self.softplus,
            HAS_D=self.D is not None, HAS_Z=self.z is not None, HAS_BIAS=self.bias is not None,
            HAS_LENGTHS=self.lengths is not None, num_warps=1, maxnreg=self.registers(plan),
        )  # fmt: skip
        summed = dBC.sum(0)[..., : self.length].transpose(1, 2)
        dB, dC = summed[..., : self.state], summed[..., self.padded_state : self.padded_state + self.state]
        outer = plan.segments - 1 if self.reverse else 0
        dinitial = carry[:, outer, : self.state].transpose(1, 2)
        return dA.sum((0, 1))[: self.state].t(), dB, dC, dD.sum((0, 1)), dbias.sum((0, 1)), dinitial


def _conv_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    flat_weight = _flat(weight)
    assert flat_weight is not None
    return _rows(x), flat_weight, _flat(bias), None if lengths is None else lengths.to(x.device).contiguous()


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, lengths: Tensor | None
) -> Tensor:
    """The convolution (B, L, D), contiguous."""
    batch, length, channels = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, weight, bias, lengths = _conv_arguments(x, weight, bias, lengths)
    block_t, block_d = _CONV_FORWARD
    with on_device(x.device):
        _conv_kernels().conv_forward[(batch * -(-length // block_t) * -(-channels // block_d),)](
            x, weight, bias, lengths, out, length, channels, *_strides(x),
            K=weight.shape[1], BLOCK_T=block_t, BLOCK_D=block_d, REVERSE=reverse, SILU=silu,
            HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, num_warps=4,
        )  # fmt: skip
    return out


def convolve_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    lengths: Tensor | None,
    dx: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fill dx (B, L, D), contiguous; returns float32 gradients of weight (D, K) and bias (D,)."""
    batch, length, channels = x.shape
    x, weight, bias, lengths = _conv_arguments(x, weight, bias, lengths)
    dy, taps, (block_t, block_d) = _rows(grad_out), weight.shape[1], _CONV_BACKWARD
    blocks = -(-channels // block_d)
    # Longer stretches of time per program mean less to add up afterwards, as long as the chip stays full.
    programs = batch * -(-length // block_t) * blocks
    tiles = max(1, min(8, programs // (8 * processors(x.device))))
    parts = batch * -(-length // (block_t * tiles))
    dw = torch.empty(parts, taps, channels, dtype=torch.float32, device=x.device)
    dbias = torch.empty(parts, channels, dtype=torch.float32, device=x.device)
    with on_device(x.device):
        _conv_kernels().conv_backward[(parts * blocks,)](
            dy, x, weight, bias, lengths, dx, dw, dbias, length, channels, tiles, *_strides(dy), *_strides(x),
            K=taps, BLOCK_T=block_t, BLOCK_D=block_d, REVERSE=reverse, SILU=silu,
            HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, num_warps=4,
        )  # fmt: skip
    return dw.sum(0).t(), dbias.sum(0)
