"""The bidirectional mixer in C++ for CPUs: matrix products through PyTorch, everything between them in few passes.

Both directions share one pass of the convolution and one of the scan; delta is made from its factor inside the scan and
never stored; the second direction adds to the first's output and applies the gate on the way. Without gradients, tokens
are worked on in stretches that stay in the caches, and what lies between two products is memory that is used again and again:
beside the output, a long sequence needs its x, z and y.

Shapes: B batch, L tokens, M = B L, D channels outside, E inside, N states, R rank of delta, K taps.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.ops import cpu_extension
from ssamba.ops.cpu import _ABSENT, Rows, _address, _border_size, _int64, _library, _rows

_STRETCH = 2048
"""Tokens that are worked on together; a clip of up to half as many more stays in one piece."""
_VECTOR = 16
"""Columns of a matrix product come in so many, where they are ours to choose."""
_PADDED = 1.1
"""Clips of different lengths are worked on together if that makes no more than so many times their tokens."""
_KEPT_ELEMENTS = 2**25
"""Working memory of more is not kept."""
_STRETCHES = 64
"""Shapes of working memory that are remembered."""


class _Side(NamedTuple):
    """One direction's weights as the kernels want them: contiguous, float32 but for x_weight."""

    conv_weight: Tensor
    conv_bias: Tensor
    x_weight: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    reverse: bool

    @property
    def rank(self) -> int:
        return self.dt_weight.shape[1]


def bimamba_mixer(
    hidden: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    ahead: tuple[Tensor, ...],
    behind: tuple[Tensor, ...],
    lengths: Tensor | None,
    reversed_time: bool,
) -> Tensor:
    """(B, L, D); arguments are those of `ssamba.ops.bimamba_mixer`, the three tensors of one dtype."""
    inputs = (hidden, in_weight, out_weight, *ahead, *behind)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        out: Tensor = torch.ops.ssamba.bimamba_cpp_keeping(*inputs, lengths, reversed_time)[0]
        return out
    out = torch.ops.ssamba.bimamba_cpp(*inputs, lengths, reversed_time)
    return out


def _sides(weights: tuple[Tensor, ...], dtype: torch.dtype, reversed_time: bool) -> tuple[_Side, _Side]:
    return _side(weights[:7], dtype, reversed_time), _side(weights[7:], dtype, not reversed_time)


def _side(weights: tuple[Tensor, ...], dtype: torch.dtype, reverse: bool) -> _Side:
    conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D = weights
    return _Side(
        _plain(conv_weight),
        _plain(conv_bias),
        x_weight.to(dtype),
        _plain(dt_weight),
        _plain(dt_bias),
        torch.exp(_plain(A_log)).neg_(),
        _plain(D),
        reverse,
    )


def _plain(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()


class _Memory(threading.local):
    """Working memory of the calling thread, by name, up to a limit; what is larger is made anew each time."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}
        self.stretches: dict[tuple[Any, ...], _Stretch] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, which the next call with this name gives again."""
        size = math.prod(shape)
        if size > _KEPT_ELEMENTS:
            return torch.empty(shape, dtype=dtype)
        memory = self.kept.get((name, dtype))
        if memory is None or memory.numel() < size:
            memory = self.kept[name, dtype] = torch.empty(size, dtype=dtype)
            self.stretches.clear()  # they stand in the old one
        return memory[:size].view(shape)

    def stretch(self, batch: int, length: int, side: _Side, count: int, dtype: torch.dtype) -> _Stretch:
        """What `count` directions work in on `length` tokens of `batch` clips."""
        key = batch, length, side.x_weight.shape, side.A.shape[1], side.rank, count, dtype
        found = self.stretches.get(key)
        if found is None:
            # Making one may clear those before, so it is kept afterwards.
            found = _Stretch(self, batch, length, side, count, dtype)
            if len(self.stretches) >= _STRETCHES:
                self.stretches.clear()
            self.stretches[key] = found
        return found


class _Stretch:
    """Working memory of some tokens, with the views of it that the kernels and matrix products take."""

    def __init__(self, memory: _Memory, batch: int, length: int, side: _Side, count: int, dtype: torch.dtype):
        columns, inner = side.x_weight.shape
        state, tokens, padded = side.A.shape[1], batch * length, -(-columns // _VECTOR) * _VECTOR
        self.u = memory.get("u", (count, batch, length, inner), dtype)
        self.projected = memory.get("projected", (count, batch, length, padded), dtype)
        self.x_weight = memory.get("x_weight", (count, padded, inner), dtype)
        self.state = memory.get("state", (batch, inner, state), torch.float32)
        self.u_rows = [_rows(u) for u in self.u]
        self.projected_rows = [_columns_of(p, side) for p in self.projected]
        self.u_flat, self.projected_flat = self.u.view(count, tokens, inner), self.projected.view(count, tokens, padded)
        self.x_weight_used = [weight[:columns] for weight in self.x_weight]
        self.x_weight_padding = self.x_weight[:, columns:]
        self.x_weight_transposed = self.x_weight.transpose(1, 2)

    def project(self, sides: Sequence[_Side]) -> None:
        """W_x u of each direction, in rows of whole vectors: products of 44 columns are slow."""
        self.x_weight_padding.zero_()
        for weight, side in zip(self.x_weight_used, sides, strict=True):
            weight.copy_(side.x_weight)
        torch.bmm(self.u_flat, self.x_weight_transposed, out=self.projected_flat)


_memory = _Memory()


def _columns_of(projected: Tensor, side: _Side) -> tuple[Rows, Rows, Rows]:
    """Where delta's factor, B and C stand in (B, L, R + 2 N or more)."""
    state = side.A.shape[1]
    address, batch_stride, row_stride, is_bf16 = _rows(projected)
    size = projected.element_size()
    B, C = address + side.rank * size, address + (side.rank + state) * size
    return (
        (address, batch_stride, row_stride, is_bf16),
        (B, batch_stride, row_stride, is_bf16),
        (C, batch_stride, row_stride, is_bf16),
    )


def _convolve(
    x: Tensor, lengths: Tensor | None, first: int, last: int, sides: Sequence[_Side], out: Sequence[Rows]
) -> None:
    """Rows [first, last) of the directions' convolutions over x (B, L, E), into (B, last - first, E)."""
    cpu_extension.module().mixer_conv(
        cpu_extension.capability(),
        cpu_extension.threads(),
        (*x.shape, sides[0].conv_weight.shape[1]),
        _rows(x),
        _address(lengths),
        first,
        last,
        [(s.reverse, s.conv_weight.data_ptr(), s.conv_bias.data_ptr(), o) for s, o in zip(sides, out, strict=True)],
    )


def _scan(
    u: Sequence[Rows],
    projected: Sequence[tuple[Rows, Rows, Rows]],
    z: Tensor | None,
    y: Tensor,
    lengths: Tensor | None,
    sides: Sequence[_Side],
    *,
    accumulate: bool = False,
    before: Tensor | None = None,
    after: Tensor | None = None,
    borders: Sequence[Tensor] | None = None,
) -> None:
    """The directions' scans over rows of u (B, L, E), delta's factor, B and C; their sum into y. `after`: the last state."""
    directions = [
        (
            side.reverse,
            u[i],
            (projected[i][0], side.dt_weight.data_ptr(), side.rank),
            side.A.data_ptr(),
            projected[i][1],
            projected[i][2],
            side.D.data_ptr(),
            side.dt_bias.data_ptr(),
            _address(before),
            _address(after),
            0 if borders is None else borders[i].data_ptr(),
        )
        for i, side in enumerate(sides)
    ]
    cpu_extension.module().mixer_scan(
        cpu_extension.capability(),
        cpu_extension.threads(),
        (*y.shape, sides[0].A.shape[1]),
        _ABSENT if z is None else _rows(z),
        _rows(y),
        _address(lengths),
        accumulate,
        directions,
    )


def _product(a: Tensor, weight: Tensor, out: Tensor, scale: float = 1.0) -> None:
    """out (M, O) = scale a (M, I) weight (O, I)^T."""
    if scale == 1.0:
        torch.mm(a, weight.t(), out=out)
    else:
        torch.addmm(out, a, weight.t(), beta=0, alpha=scale, out=out)


def _mix(hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any) -> Tensor:
    *weights, lengths, reversed_time = rest
    sides = _sides(tuple(weights), hidden.dtype, reversed_time)
    hidden, lengths = hidden.contiguous(), _int64(lengths)
    out = torch.empty_like(hidden)
    batch, length, _ = hidden.shape
    if not out.numel():
        return out
    if length > _STRETCH * 3 // 2:
        for clip in range(batch):
            valid = length if lengths is None else min(max(int(lengths[clip]), 0), length)
            _mix_long(hidden[clip], in_weight, out_weight, sides, valid, out[clip])
        return out
    counts = [length] * batch if lengths is None else [min(max(n, 0), length) for n in lengths.tolist()]
    for part, longest in _groups(counts):
        out[part, longest:] = 0
        if longest:
            some = None if lengths is None else lengths[part]
            shape = out[part, :longest].shape
            mixed = out[part] if longest == length else _memory.get("mixed", shape, out.dtype)
            _mix_short(hidden[part, :longest].contiguous(), in_weight, out_weight, sides, some, mixed)
            if longest < length:
                out[part, :longest] = mixed
    return out


def _groups(valid: list[int]) -> Iterator[tuple[slice, int]]:
    """Neighbouring clips to be worked on together, and the longest of them: a stretch of tokens, little of it padding."""
    first, longest, tokens = 0, 0, 0
    for clip, length in enumerate(valid):
        padded, own = max(longest, length) * (clip + 1 - first), tokens + length
        if clip > first and (padded > _STRETCH or padded > max(_PADDED * own, own + _VECTOR)):
            yield slice(first, clip), longest
            first, longest, tokens = clip, 0, 0
        longest, tokens = max(longest, length), tokens + length
    yield slice(first, len(valid)), longest


def _mix_short(
    hidden: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    sides: tuple[_Side, _Side],
    lengths: Tensor | None,
    out: Tensor,
) -> None:
    """A few whole clips."""
    batch, length, channels = hidden.shape
    tokens, inner, dtype = batch * length, out_weight.shape[1], hidden.dtype
    xz = _memory.get("xz", (batch, length, 2 * inner), dtype)
    y = _memory.get("y", (batch, length, inner), dtype)
    work = _memory.stretch(batch, length, sides[0], 2, dtype)
    _product(hidden.view(tokens, channels), in_weight, xz.view(tokens, -1))
    _convolve(xz[..., :inner], lengths, 0, length, sides, work.u_rows)
    work.project(sides)
    _scan(work.u_rows, work.projected_rows, xz[..., inner:], y, lengths, sides)
    _product(y.view(tokens, inner), out_weight, out.view(tokens, channels), 0.5)


def _mix_long(
    hidden: Tensor, in_weight: Tensor, out_weight: Tensor, sides: tuple[_Side, _Side], valid: int, out: Tensor
) -> None:
    """One clip (L, D), of which `valid` tokens count, stretch by stretch: first along time, then against it."""
    length, inner, dtype = hidden.shape[0], out_weight.shape[1], hidden.dtype
    along, against = sorted(sides, key=lambda side: side.reverse)
    xz, y = _memory.get("xz", (length, 2 * inner), dtype), _memory.get("y", (length, inner), dtype)
    _product(hidden, in_weight, xz)
    xz, all_valid = xz[None], torch.tensor([valid])
    count = -(-length // _STRETCH)
    starts = range(0, length, -(-length // count))  # stretches of equal length
    for side, order in ((along, starts), (against, reversed(starts))):
        state: Tensor | None = None
        for first in order:
            last = min(first + starts.step, length)
            work = _memory.stretch(1, last - first, side, 1, dtype)
            _convolve(xz[..., :inner], all_valid, first, last, (side,), work.u_rows)
            work.project((side,))
            here = torch.tensor([min(max(valid - first, 0), last - first)])
            z, y_here = xz[:, first:last, inner:] if side.reverse else None, y[None, first:last]
            # The state after a stretch replaces the one before it; a stretch of another length works in the same memory.
            _scan(
                work.u_rows,
                work.projected_rows,
                z,
                y_here,
                here,
                (side,),
                accumulate=side.reverse,
                before=state,
                after=work.state,
            )
            state = work.state
            if side.reverse:
                _product(y_here[0], out_weight, out[first:last], 0.5)


def _mix_fake(hidden: Tensor, *rest: Any) -> Tensor:
    return hidden.new_empty(hidden.shape)


def _mix_keeping(
    hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, and what the way back needs: xz, u, the projections and borders of both directions, and y before the gate."""
    *weights, lengths, reversed_time = rest
    outputs = _mix_keeping_fake(hidden, in_weight, out_weight, *rest)
    if not hidden.numel():
        return outputs
    out, xz, u_ahead, u_behind, projected_ahead, projected_behind, y, *borders = outputs
    sides = _sides(tuple(weights), hidden.dtype, reversed_time)
    hidden, lengths = hidden.contiguous(), _int64(lengths)
    batch, length, channels = hidden.shape
    tokens, inner = batch * length, out_weight.shape[1]
    u, projected = (u_ahead, u_behind), (projected_ahead, projected_behind)
    _product(hidden.view(tokens, channels), in_weight, xz.view(tokens, -1))
    u_rows = [_rows(side) for side in u]
    _convolve(xz[..., :inner], lengths, 0, length, sides, u_rows)
    for side, u_side, projected_side in zip(sides, u, projected, strict=True):
        _product(u_side.view(tokens, inner), side.x_weight, projected_side.view(tokens, -1))
    columns = [_columns_of(p, side) for p, side in zip(projected, sides, strict=True)]
    _scan(u_rows, columns, None, y, lengths, sides, borders=borders)
    gated = torch.empty_like(y)
    _gate(y, xz[..., inner:], lengths, gated)
    _product(gated.view(tokens, inner), out_weight, out.view(tokens, channels), 0.5)
    return outputs


def _mix_keeping_fake(
    hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, channels = hidden.shape
    inner, columns, state = out_weight.shape[1], rest[2].shape[0], rest[5].shape[1]
    borders = _border_size(batch, length, inner, state)

    def new(width: int) -> Tensor:
        return hidden.new_empty((batch, length, width))

    u = new(inner), new(inner)
    projected = new(columns), new(columns)
    kept = [hidden.new_empty(borders, dtype=torch.float32) for _ in range(2)]
    return new(channels), new(2 * inner), *u, *projected, new(inner), kept[0], kept[1]


def _gate(
    y: Tensor,
    z: Tensor,
    lengths: Tensor | None,
    gated: Tensor,
    grad: Tensor | None = None,
    grad_z: Tensor | None = None,
) -> None:
    """gated = y silu(z), all (B, L, E); `grad`, of gated, becomes that of y, and `grad_z` is filled."""
    cpu_extension.module().mixer_gate(
        cpu_extension.capability(),
        cpu_extension.threads(),
        tuple(y.shape),
        _rows(y),
        _rows(z),
        _address(lengths),
        _rows(gated),
        _ABSENT if grad is None else _rows(grad),
        _ABSENT if grad_z is None else _rows(grad_z),
    )


def _mix_backward(
    grad_out: Tensor, hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """Gradients of hidden, in_weight, out_weight and the seven weights of each direction."""
    weights, kept, (lengths, reversed_time) = rest[:14], rest[14:22], rest[22:]
    grads = _mix_backward_fake(grad_out, hidden, in_weight, out_weight, *rest)
    if not hidden.numel():
        for grad in grads:
            grad.zero_()
        return grads
    grad_hidden, grad_in, grad_out_weight = grads[:3]
    xz, u_ahead, u_behind, projected_ahead, projected_behind, y, borders_ahead, borders_behind = kept
    sides = _sides(weights, hidden.dtype, reversed_time)
    hidden, grad_out, lengths = hidden.contiguous(), grad_out.contiguous(), _int64(lengths)
    batch, length, channels = hidden.shape
    tokens, inner = batch * length, out_weight.shape[1]
    grad_rows = grad_out.view(tokens, channels)

    grad_y, grad_xz, gated = torch.empty_like(y), torch.empty_like(xz), torch.empty_like(y)
    flat_grad_y = grad_y.view(tokens, inner)
    torch.addmm(flat_grad_y, grad_rows, out_weight, beta=0, alpha=0.5, out=flat_grad_y)
    _gate(y, xz[..., inner:], lengths, gated, grad_y, grad_xz[..., inner:])
    torch.addmm(grad_out_weight, grad_rows.t(), gated.view(tokens, inner), beta=0, alpha=0.5, out=grad_out_weight)
    grad_u, grad_delta = gated, torch.empty_like(y)  # gated has done its work
    for i, (side, u, projected, borders) in enumerate(
        zip(
            sides,
            (u_ahead, u_behind),
            (projected_ahead, projected_behind),
            (borders_ahead, borders_behind),
            strict=True,
        )
    ):
        into = grads[3 + 7 * i : 10 + 7 * i]
        _side_backward(side, xz, u, projected, borders, grad_y, lengths, grad_u, grad_delta, grad_xz, bool(i), into)
    flat = grad_xz.view(tokens, 2 * inner)
    torch.mm(flat, in_weight, out=grad_hidden.view(tokens, channels))
    torch.mm(flat.t(), hidden.view(tokens, channels), out=grad_in)
    return grads


def _side_backward(
    side: _Side,
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
    into: tuple[Tensor, ...],
) -> None:
    """One direction: its weights' gradients into `into`, that of x into the first half of `grad_xz`; grad_u, grad_delta: memory."""
    grad_conv_weight, grad_conv_bias, grad_x_weight, grad_dt_weight, grad_dt_bias, grad_A, grad_D = into
    batch, length, inner = u.shape
    tokens, state, rank, columns = batch * length, side.A.shape[1], side.rank, projected.shape[2]
    extension, capability, threads = cpu_extension.module(), cpu_extension.capability(), cpu_extension.threads()
    grad_projected = torch.empty_like(projected)
    low, B, C = _columns_of(projected, side)
    _, grad_B, grad_C = _columns_of(grad_projected, side)
    extension.scan_backward(
        capability,
        threads,
        (batch, length, inner, state),
        True,
        side.reverse,
        _rows(u),
        (low, side.dt_weight.data_ptr(), rank),
        side.A.data_ptr(),
        B,
        C,
        side.D.data_ptr(),
        _ABSENT,
        side.dt_bias.data_ptr(),
        _address(lengths),
        borders.data_ptr(),
        _rows(grad_y),
        0,
        _rows(grad_u),
        _rows(grad_delta),
        grad_A.data_ptr(),
        grad_B,
        grad_C,
        grad_D.data_ptr(),
        _ABSENT,
        grad_dt_bias.data_ptr(),
        0,
    )
    grad_A.mul_(side.A)  # A = -exp(A_log), so that dA / dA_log = A
    flat_u, flat_grad_u = u.view(tokens, inner), grad_u.view(tokens, inner)
    flat_projected, flat_grad = projected.view(tokens, columns), grad_projected.view(tokens, columns)
    flat_grad_delta = grad_delta.view(tokens, inner)
    flat_grad[:, :rank] = flat_grad_delta @ side.dt_weight.to(u.dtype)
    grad_dt_weight.copy_(flat_grad_delta.t() @ flat_projected[:, :rank])
    grad_x_weight.copy_(flat_grad.t() @ flat_u)
    torch.addmm(flat_grad_u, flat_grad, side.x_weight, out=flat_grad_u)
    extension.conv_backward(
        capability,
        threads,
        (batch, length, inner, side.conv_weight.shape[1]),
        True,
        side.reverse,
        _rows(xz[..., :inner]),
        side.conv_weight.data_ptr(),
        side.conv_bias.data_ptr(),
        _address(lengths),
        _rows(grad_u),
        _rows(grad_xz[..., :inner]),
        accumulate,
        grad_conv_weight.data_ptr(),
        grad_conv_bias.data_ptr(),
    )


def _mix_backward_fake(
    grad_out: Tensor, hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (hidden, in_weight, out_weight, *rest[:14]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, lengths, reversed_time = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:], lengths)
    ctx.reversed_time = reversed_time


def _autograd(ctx: Any, grad_out: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 19
    *saved, lengths = ctx.saved_tensors
    grads = torch.ops.ssamba.bimamba_cpp_backward(grad_out, *saved, lengths, ctx.reversed_time)
    return (*grads, None, None)


_WEIGHTS = "Tensor hidden, Tensor in_weight, Tensor out_weight, " + ", ".join(
    f"Tensor {name}_{side}"
    for side in ("ahead", "behind")
    for name in ("conv_weight", "conv_bias", "x_weight", "dt_weight", "dt_bias", "A_log", "D")
)
_KEPT = "Tensor xz, Tensor u_ahead, Tensor u_behind, Tensor projected_ahead, Tensor projected_behind, Tensor y, Tensor borders_ahead, Tensor borders_behind"
_OPTIONS = "Tensor? lengths, bool reversed_time"


def _results(count: int) -> str:
    return "(" + ", ".join(["Tensor"] * count) + ")"


for _schema, _run, _fake in (
    (f"bimamba_cpp({_WEIGHTS}, {_OPTIONS}) -> Tensor", _mix, _mix_fake),
    (f"bimamba_cpp_keeping({_WEIGHTS}, {_OPTIONS}) -> {_results(9)}", _mix_keeping, _mix_keeping_fake),
    (
        f"bimamba_cpp_backward(Tensor grad_out, {_WEIGHTS}, {_KEPT}, {_OPTIONS}) -> {_results(17)}",
        _mix_backward,
        _mix_backward_fake,
    ),
):
    _name = _schema.partition("(")[0]
    _library.define(_schema)
    _library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"ssamba::{_name}", _fake, lib=_library)
torch.library.register_autograd("ssamba::bimamba_cpp_keeping", _autograd, setup_context=_setup, lib=_library)
