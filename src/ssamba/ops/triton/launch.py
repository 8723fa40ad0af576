"""Launch the Triton kernels: block sizes, buffers, and the order of the passes.

Block sizes depend on the shapes and the number of multiprocessors alone; nothing is tuned at run time, so equal calls
give equal bits. The kernels, and the reasons for their design, are in `scan_kernels.py` and `conv_kernels.py`, which
are imported when the first kernel is launched.

Shapes: B clips, L tokens, E channels, N states of a channel (NP: rounded up to a power of two), W taps.
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

from ssamba.ops.operators import ConvInputs, ScanInputs

CHUNK = 32
"""Steps between saved states, which take N / 32 float32 numbers per element of u."""
_WARPS_PER_PROCESSOR = 8
"""Programs (one warp each) that hide each other's latencies; with fewer, L is cut into segments."""
_INTERPRETER_PROCESSORS = 4
_CONV_FORWARD = (32, 64)
"""Steps and channels of a tile; with fewer channels than threads, weights need no shared memory."""
_CONV_BACKWARD = (16, 64)


@dataclass(frozen=True)
class ScanPlan:
    """Block sizes of one scan. `segments` of `segment_steps` steps each cover L."""

    block_e: int
    """Channels of a program."""
    tile: int
    """Unrolled steps; divides CHUNK."""
    segments: int
    segment_steps: int
    """A multiple of CHUNK."""
    registers: int
    """Limit for each thread."""


def plan_forward(batch: int, length: int, channels: int, processors: int) -> ScanPlan:
    """Return block sizes of the forward scan on a chip with `processors` multiprocessors."""
    return _plan(batch, length, channels, processors, block_e=32, tile=8, registers=128)


def plan_backward(batch: int, length: int, channels: int, processors: int) -> ScanPlan:
    """Return block sizes of the backward scan."""
    # Two channels a lane halve the loads of B and C and the shuffles for their gradients; four steps of them fit in
    # 168 registers, so 12 warps on a multiprocessor.
    return _plan(batch, length, channels, processors, block_e=64 if channels > 32 else 32, tile=4, registers=168)


def _plan(
    batch: int, length: int, channels: int, processors: int, *, block_e: int, tile: int, registers: int
) -> ScanPlan:
    programs = batch * -(-channels // block_e)
    target = processors * _WARPS_PER_PROCESSOR
    # A segmented scan computes every state twice, so two segments alone would only break even.
    chunks = count_chunks(length)
    segments = 1 if 3 * programs > target else min(-(-target // programs), chunks)
    per_segment = -(-chunks // segments)
    return ScanPlan(block_e, tile, -(-chunks // per_segment), per_segment * CHUNK, registers)


def interpreting() -> bool:
    """Return True if kernels run in Triton's interpreter, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _scan_kernels() -> ModuleType:
    from ssamba.ops.triton import scan_kernels

    return scan_kernels


def _conv_kernels() -> ModuleType:
    from ssamba.ops.triton import conv_kernels

    return conv_kernels


def count_chunks(length: int) -> int:
    """Return the number of saved states of a sequence."""
    return -(-length // CHUNK)


@functools.cache
def processors(device: torch.device) -> int:
    """Return the multiprocessors of a device; few for the interpreter, so that small tests can have segments."""
    if device.type == "cpu":
        return _INTERPRETER_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def power_of_two(x: int) -> int:
    """Return the smallest power of two that is not below `x`."""
    return 1 << (x - 1).bit_length() if x > 0 else 1


def _rows(x: Tensor) -> Tensor:
    """Return x (B, L, E) in a dtype that the kernels read, with contiguous rows; the other strides are free."""
    x = x.float() if x.dtype == torch.float64 else x
    return x if x.stride(-1) == 1 else x.contiguous()


def _flat(x: Tensor) -> Tensor:
    """Return `x` contiguous, in a dtype that the kernels read."""
    return (x.float() if x.dtype == torch.float64 else x).contiguous()


def _optional_flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else _flat(x)


def _pack(B: Tensor, C: Tensor, padded_states: int) -> Tensor:
    """Return B and C side by side, float32 (B, L, 2 NP), zero beyond N."""
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
    """Make `device` current: Triton launches there."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


class ScanLaunch:
    """The arguments of one scan in the form that the kernels take, and its launches."""

    def __init__(self, inputs: ScanInputs):
        u, z, lengths = inputs.u, inputs.z, inputs.lengths
        (self.batch, self.length, self.channels), self.state = u.shape, inputs.A.shape[1]
        self.padded_state = power_of_two(self.state)
        self.device = u.device
        self.A = self.states_first(inputs.A[None])[0]
        self.u, self.delta, self.z = _rows(u), _rows(inputs.delta), None if z is None else _rows(z)
        self.BC = _pack(inputs.B, inputs.C, self.padded_state)
        self.D, self.bias = _optional_flat(inputs.D), _optional_flat(inputs.delta_bias)
        self.lengths = None if lengths is None else lengths.to(u.device).contiguous()
        self.softplus, self.reverse = inputs.delta_softplus, inputs.reverse

    def new(self, *shape: int) -> Tensor:
        """Return an uninitialized float32 tensor."""
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def states_first(self, x: Tensor) -> Tensor:
        """Return x (B, E, N) as new float32 (B, NP, E), zero beyond N."""
        result = self.new(len(x), self.padded_state, self.channels)
        result[:, : self.state] = x.transpose(1, 2)
        if self.padded_state > self.state:
            result[:, self.state :] = 0
        return result

    def programs(self, plan: ScanPlan) -> int:
        """Return the number of programs of a launch."""
        return self.batch * plan.segments * -(-self.channels // plan.block_e)

    def registers(self, plan: ScanPlan) -> int:
        """Return the limit of registers of a launch; more states than usual get all there are."""
        return plan.registers if self.padded_state <= 16 else 255

    def segment_states(self, plan: ScanPlan, start: Tensor | None, adjoint_of: Tensor | None = None) -> Tensor:
        """Return the state that enters each segment (B, segments, NP, E); `start` (B, NP, E) enters the first.

        With `adjoint_of`, the output's gradient (B, L, E): the state's gradient instead, in the other direction.
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
            NP=self.padded_state, BLOCK_E=plan.block_e, TILE=plan.tile,
            REVERSE=reverse, SOFTPLUS=self.softplus, HAS_Z=adjoint and self.z is not None,
            HAS_BIAS=self.bias is not None, HAS_LENGTHS=self.lengths is not None, ADJOINT=adjoint,
            num_warps=1, maxnreg=self.registers(plan),
        )  # fmt: skip
        block_e = 32
        kernels.combine[(self.batch * -(-self.channels // block_e),)](
            self.A, start, state, total,
            self.channels, plan.segments,
            NP=self.padded_state, BLOCK_E=block_e, REVERSE=reverse, HAS_START=start is not None,
            num_warps=1,
        )  # fmt: skip
        return state

    def forward(self, out: Tensor, initial_state: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Fill `out`; return it, the last state (B, E, N) and, if `save`, the chunk_states (B, chunks, NP, E)."""
        plan = plan_forward(self.batch, self.length, self.channels, processors(self.device))
        chunks = count_chunks(self.length)
        chunk_states = self.new(self.batch, chunks if save else 0, self.padded_state, self.channels)
        last = self.new(self.batch, self.channels, self.state)
        start = None if initial_state is None else self.states_first(initial_state)
        if plan.segments > 1:
            start = self.segment_states(plan, start)
        _scan_kernels().scan_forward[(self.programs(plan),)](
            self.u, self.delta, self.A, self.BC, self.D, self.z, self.bias, self.lengths, start,
            out, last, chunk_states if save else None,
            self.length, self.channels, plan.segments, plan.segment_steps // plan.tile, chunks,
            *_strides(self.u), *_strides(self.delta), *_strides(self.z),
            N=self.state, NP=self.padded_state, BLOCK_E=plan.block_e, TILE=plan.tile,
            CHUNK_TILES=CHUNK // plan.tile, REVERSE=self.reverse, SOFTPLUS=self.softplus,
            HAS_D=self.D is not None, HAS_Z=self.z is not None, HAS_BIAS=self.bias is not None,
            HAS_LENGTHS=self.lengths is not None, HAS_START=start is not None, SAVE=save,
            num_warps=1, maxnreg=self.registers(plan),
        )  # fmt: skip
        return out, last, chunk_states

    def backward(
        self, grad_out: Tensor, grad_last: Tensor, chunk_states: Tensor, du: Tensor, ddelta: Tensor, dz: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Fill du, ddelta and dz; return float32 gradients of A, B, C, D, delta_bias and the initial state."""
        plan = plan_backward(self.batch, self.length, self.channels, processors(self.device))
        dy = _rows(grad_out)
        shape = self.batch, plan.segments, self.padded_state, self.channels
        carry = self.states_first(grad_last)
        if plan.segments > 1:
            carry = self.segment_states(plan, carry, adjoint_of=dy)
        carry = carry.view(shape)
        blocks = -(-self.channels // plan.block_e)
        padded = -(-self.length // plan.tile) * plan.tile
        dBC = self.new(blocks, self.batch, 2 * self.padded_state, padded)
        if self.lengths is not None:
            dBC.zero_()
        dA = torch.zeros(shape, dtype=torch.float32, device=self.device)
        dD, dbias = self.new(*shape[:2], self.channels), self.new(*shape[:2], self.channels)
        inner = self.new(self.batch, plan.segments, CHUNK // plan.tile, self.padded_state, self.channels)
        _scan_kernels().scan_backward[(self.programs(plan),)](
            dy, self.u, self.delta, self.A, self.BC, self.D, self.z, self.bias, self.lengths, chunk_states, carry,
            inner, du, ddelta, dz, dA, dBC, dD, dbias,
            self.length, padded, self.channels, self.batch, plan.segments, plan.segment_steps // CHUNK,
            count_chunks(self.length),
            *_strides(dy), *_strides(self.u), *_strides(self.delta), *_strides(self.z),
            N=self.state, NP=self.padded_state, BLOCK_E=plan.block_e, TILE=plan.tile,
            CHUNK_TILES=CHUNK // plan.tile, REVERSE=self.reverse, SOFTPLUS=self.softplus,
            HAS_D=self.D is not None, HAS_Z=self.z is not None, HAS_BIAS=self.bias is not None,
            HAS_LENGTHS=self.lengths is not None, num_warps=1, maxnreg=self.registers(plan),
        )  # fmt: skip
        summed = dBC.sum(0)[..., : self.length].transpose(1, 2)
        dB, dC = summed[..., : self.state], summed[..., self.padded_state : self.padded_state + self.state]
        outer = plan.segments - 1 if self.reverse else 0
        dinitial = carry[:, outer, : self.state].transpose(1, 2)
        return dA.sum((0, 1))[: self.state].t(), dB, dC, dD.sum((0, 1)), dbias.sum((0, 1)), dinitial


def _prepared(inputs: ConvInputs) -> ConvInputs:
    """Return the inputs in dtypes and layouts that the kernels read."""
    x, weight, bias, silu, reverse, lengths = inputs
    lengths = None if lengths is None else lengths.to(x.device).contiguous()
    return ConvInputs(_rows(x), _flat(weight), _optional_flat(bias), silu, reverse, lengths)


def convolve(inputs: ConvInputs) -> Tensor:
    """Return the convolution (B, L, E), contiguous."""
    out = torch.empty(inputs.x.shape, dtype=inputs.x.dtype, device=inputs.x.device)
    (batch, length, channels), (block_t, block_e) = out.shape, _CONV_FORWARD
    x, weight, bias, silu, reverse, lengths = _prepared(inputs)
    with on_device(x.device):
        _conv_kernels().conv_forward[(batch * -(-length // block_t) * -(-channels // block_e),)](
            x, weight, bias, lengths, out, length, channels, *_strides(x),
            W=weight.shape[1], BLOCK_T=block_t, BLOCK_E=block_e, REVERSE=reverse, SILU=silu,
            HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, num_warps=4,
        )  # fmt: skip
    return out


def convolve_backward(grad_out: Tensor, inputs: ConvInputs, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Fill dx (B, L, E), contiguous; return float32 gradients of weight (E, W) and bias (E,)."""
    x, weight, bias, silu, reverse, lengths = _prepared(inputs)
    batch, length, channels = x.shape
    dy, taps, (block_t, block_e) = _rows(grad_out), weight.shape[1], _CONV_BACKWARD
    blocks = -(-channels // block_e)
    # More tiles along time per program mean less to add up afterwards, as long as the chip stays full.
    programs = batch * -(-length // block_t) * blocks
    tiles = max(1, min(8, programs // (8 * processors(x.device))))
    parts = batch * -(-length // (block_t * tiles))
    dw = torch.empty(parts, taps, channels, dtype=torch.float32, device=x.device)
    dbias = torch.empty(parts, channels, dtype=torch.float32, device=x.device)
    with on_device(x.device):
        _conv_kernels().conv_backward[(parts * blocks,)](
            dy, x, weight, bias, lengths, dx, dw, dbias, length, channels, tiles, *_strides(dy), *_strides(x),
            W=taps, BLOCK_T=block_t, BLOCK_E=block_e, REVERSE=reverse, SILU=silu,
            HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, num_warps=4,
        )  # fmt: skip
    return dw.sum(0).t(), dbias.sum(0)
