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
from typing import Any

import torch
from torch import Tensor

from ssamba.ops.cpu import int64, library, rows
from ssamba.ops.cpu_mixer_kernels import Side, both_sides, columns_of, convolve, scan
from ssamba.ops.cpu_mixer_training import (
    autograd,
    mix_backward,
    mix_backward_fake,
    mix_keeping,
    mix_keeping_fake,
    setup,
)
from ssamba.ops.products import library as products_by
from ssamba.ops.products import multiplied, product

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
            with torch.inference_mode(False):  # what is made in that mode may not be written to outside
                memory = self.kept[name, dtype] = torch.empty(size, dtype=dtype)
            self.stretches.clear()  # they stand in the old one
        return memory[:size].view(shape)

    def stretch(self, batch: int, length: int, side: Side, count: int, dtype: torch.dtype) -> _Stretch:
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

    def __init__(self, memory: _Memory, batch: int, length: int, side: Side, count: int, dtype: torch.dtype):
        columns, inner = side.x_weight.shape
        tokens, padded = batch * length, -(-columns // _VECTOR) * _VECTOR
        self.u = memory.get("u", (count, batch, length, inner), dtype)
        self.projected = memory.get("projected", (count, batch, length, padded), dtype)
        self.x_weight = memory.get("x_weight", (count, padded, inner), dtype)
        self.u_rows = [rows(u) for u in self.u]
        self.projected_rows = [columns_of(p, side) for p in self.projected]
        self.u_flat, self.projected_flat = self.u.view(count, tokens, inner), self.projected.view(count, tokens, padded)
        self.x_weight_used = [weight[:columns] for weight in self.x_weight]
        self.x_weight_padding = self.x_weight[:, columns:]
        self.x_weight_transposed = self.x_weight.transpose(1, 2)

    def project(self, sides: Sequence[Side]) -> None:
        """W_x u of each direction, in rows of whole vectors: MKL's products of 44 columns are slow."""
        if self.u.dtype == torch.float32 and products_by() == "onednn":
            for side, u, projected in zip(sides, self.u_flat, self.projected_flat, strict=True):
                product(u, side.x_weight, projected[:, : side.x_weight.shape[0]])
            return
        self.x_weight_padding.zero_()
        for weight, side in zip(self.x_weight_used, sides, strict=True):
            weight.copy_(side.x_weight)
        torch.bmm(self.u_flat, self.x_weight_transposed, out=self.projected_flat)


_memory = _Memory()


def _mix(hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any) -> Tensor:
    *weights, lengths, reversed_time = rest
    sides = both_sides(tuple(weights), hidden.dtype, reversed_time)
    hidden, lengths = hidden.contiguous(), int64(lengths)
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
            memory = out[part] if longest == length else _memory.get("mixed", shape, out.dtype)
            mixed = _mix_short(hidden[part, :longest].contiguous(), in_weight, out_weight, sides, some, memory)
            if mixed is not memory and mixed.shape == out.shape:
                return mixed
            if longest < length or mixed is not memory:
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
    sides: tuple[Side, Side],
    lengths: Tensor | None,
    memory: Tensor,
) -> Tensor:
    """A few whole clips, mixed into `memory` or, where that saves a copy, into memory of their own."""
    batch, length, channels = hidden.shape
    tokens, inner, dtype = batch * length, out_weight.shape[1], hidden.dtype
    y = _memory.get("y", (batch, length, inner), dtype)
    work = _memory.stretch(batch, length, sides[0], 2, dtype)
    xz = multiplied(hidden.view(tokens, channels), in_weight, _memory.get("xz", (tokens, 2 * inner), dtype))
    xz = xz.view(batch, length, 2 * inner)
    convolve(xz[..., :inner], lengths, 0, length, sides, work.u_rows)
    work.project(sides)
    scan(work.u_rows, work.projected_rows, xz[..., inner:], y, lengths, sides)
    flat = memory.view(tokens, channels)
    mixed = multiplied(y.view(tokens, inner), out_weight, flat, 0.5)
    return memory if mixed is flat else mixed.view(memory.shape)


def _mix_long(
    hidden: Tensor, in_weight: Tensor, out_weight: Tensor, sides: tuple[Side, Side], valid: int, out: Tensor
) -> None:
    """One clip (L, D), of which `valid` tokens count, stretch by stretch: first along time, then against it."""
    length, inner, dtype = hidden.shape[0], out_weight.shape[1], hidden.dtype
    along, against = sorted(sides, key=lambda side: side.reverse)
    xz, y = _memory.get("xz", (length, 2 * inner), dtype), _memory.get("y", (length, inner), dtype)
    product(hidden, in_weight, xz)
    xz, all_valid = xz[None], torch.tensor([valid])
    state = _memory.get("state", (1, *along.A.shape), torch.float32)  # after one stretch, before the next
    count = -(-length // _STRETCH)
    starts = range(0, length, -(-length // count))  # stretches of equal length
    for side, order in ((along, starts), (against, reversed(starts))):
        before: Tensor | None = None
        for first in order:
            last = min(first + starts.step, length)
            work = _memory.stretch(1, last - first, side, 1, dtype)
            convolve(xz[..., :inner], all_valid, first, last, (side,), work.u_rows)
            work.project((side,))
            here = torch.tensor([min(max(valid - first, 0), last - first)])
            z, y_here = xz[:, first:last, inner:] if side.reverse else None, y[None, first:last]
            scan(
                work.u_rows,
                work.projected_rows,
                z,
                y_here,
                here,
                (side,),
                accumulate=side.reverse,
                before=before,
                after=state,
            )
            before = state
            if side.reverse:
                product(y_here[0], out_weight, out[first:last], 0.5)


def _mix_fake(hidden: Tensor, *rest: Any) -> Tensor:
    return hidden.new_empty(hidden.shape)


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
    (f"bimamba_cpp_keeping({_WEIGHTS}, {_OPTIONS}) -> {_results(9)}", mix_keeping, mix_keeping_fake),
    (
        f"bimamba_cpp_backward(Tensor grad_out, {_WEIGHTS}, {_KEPT}, {_OPTIONS}) -> {_results(17)}",
        mix_backward,
        mix_backward_fake,
    ),
):
    _name = _schema.partition("(")[0]
    library.define(_schema)
    library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"ssamba::{_name}", _fake, lib=library)
torch.library.register_autograd("ssamba::bimamba_cpp_keeping", autograd, setup_context=setup, lib=library)
