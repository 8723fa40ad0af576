"""The bidirectional mixer in C++ for CPUs: matrix products through PyTorch, everything between them in few passes.

Both directions share one pass of the convolution and one of the scan; delta is made from its factor inside the scan and
never stored; the second direction adds to the first's output and applies the gate on the way. Without gradients, tokens
are worked on in stretches that stay in the caches, and what lies between two products is memory that is used again and again:
beside the output, a long sequence needs its x, z and y.

Shapes: B batch, L tokens, M = B L, D channels outside, E inside, N states, R rank of delta, K taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.cpp.mixer_kernels import Packed, Side, both_sides, scan
from ssamba.ops.cpp.mixer_training import (
    Mixed,
    autograd,
    mix_backward,
    mix_backward_fake,
    mix_keeping,
    mix_keeping_fake,
    setup,
)
from ssamba.ops.cpp.scan import int64
from ssamba.ops.cpp.workspace import VECTOR, memory
from ssamba.ops.matmul import product
from ssamba.ops.operators import is_traced, library, register

_STRETCH = 2048
"""Tokens that are worked on together; a clip of up to half as many more stays in one piece."""
_PADDED = 1.1
"""Clips of different lengths are worked on together if that makes no more than so many times their tokens."""


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
    out: Tensor
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        if is_traced():
            out = torch.ops.ssamba.bimamba_cpp_keeping(*inputs, lengths, reversed_time)[0]
        else:
            out = Mixed.apply(*inputs, lengths, reversed_time)  # type: ignore[no-untyped-call]
        return out
    out = (torch.ops.ssamba.bimamba_cpp if is_traced() else _mix)(*inputs, lengths, reversed_time)
    return out


def mix_into(
    out: Tensor,
    stream: Tensor,
    norm: tuple[Tensor, Tensor, float],
    in_weight: Tensor,
    out_weight: Tensor,
    ahead: tuple[Tensor, ...],
    behind: tuple[Tensor, ...],
    lengths: Tensor | None,
    reversed_time: bool,
    accumulate: bool,
) -> None:
    """`ssamba.ops.mix_into`: norm and mixer without memory of their own, for inference that nothing traces."""
    sides = both_sides((*ahead, *behind), in_weight.dtype, reversed_time)
    _mix_all(_Work(stream, norm, in_weight, out_weight, sides, out, accumulate), lengths)


class _Work(NamedTuple):
    """What is to be mixed, and where it goes: out, (B, L, D) or packed (M, D), becomes mixer(norm(tokens)), or takes it on top."""

    tokens: Tensor
    norm: tuple[Tensor, Tensor, float] | None
    """Weight, bias and epsilon of a LayerNorm."""
    in_weight: Tensor
    out_weight: Tensor
    sides: tuple[Side, Side]
    out: Tensor
    accumulate: bool

    def normed(self, clips: slice | int, tokens: slice) -> Tensor:
        """Some rows of it, (M, D)."""
        rows, width = self.tokens[clips, tokens], self.tokens.shape[2]
        if self.norm is not None:
            weight, bias, eps = self.norm
            rows = F.layer_norm(rows, (width,), weight, bias, eps).to(self.in_weight.dtype)
        return rows.reshape(-1, width)

    def give(self, clips: slice | int, tokens: slice, y: Tensor) -> None:
        """The last product of y (M, E), the gated mean of both directions, and where it belongs."""
        into = self.out[clips, tokens]
        mixed = memory.multiplied("mixed", y, self.out_weight).view(into.shape)
        if self.accumulate:
            into.add_(mixed)
        else:
            into.copy_(mixed)


def _mix(hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any) -> Tensor:
    *weights, lengths, reversed_time = rest
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    sides = both_sides(tuple(weights), hidden.dtype, reversed_time)
    _mix_all(_Work(hidden, None, in_weight, out_weight, sides, out, False), lengths)
    return out


def _mix_all(work: _Work, lengths: Tensor | None) -> None:
    if not work.out.numel():
        return
    if work.out.ndim == 2:
        assert lengths is not None
        _mix_packed(work, lengths)
        return
    batch, length, _ = work.out.shape
    if lengths is None and batch * length <= _STRETCH:
        _mix_short(work, slice(0, batch), length, None)
        return
    counts = [length] * batch if lengths is None else [min(max(n, 0), length) for n in lengths.tolist()]
    parts = _groups(counts)
    if length > _STRETCH * 3 // 2:
        parts = ((slice(clip, clip + 1), count) for clip, count in enumerate(counts))
    lengths = int64(lengths)
    for part, longest in parts:
        if longest < length and not work.accumulate:
            work.out[part, longest:] = 0
        if longest > _STRETCH * 3 // 2:
            _mix_long(work, part.start, longest)
        elif longest:
            _mix_short(work, part, longest, None if lengths is None else lengths[part])


def _mix_packed(work: _Work, lengths: Tensor) -> None:
    """Clips that stand one behind the other: short ones together, as if they were one."""
    lengths, counts = lengths.to(torch.int64).contiguous(), lengths.tolist()
    if sum(counts) != len(work.out) or min(counts) < 0:
        raise ValueError(f"lengths must make up the {len(work.out)} tokens, got {sum(counts)}")
    starts = lengths.cumsum(0) - lengths
    clip, row = 0, 0
    while clip < len(counts):
        end, tokens = clip + 1, counts[clip]
        while end < len(counts) and tokens + counts[end] <= _STRETCH:
            tokens += counts[end]
            end += 1
        rows = slice(row, row + tokens)
        part = work._replace(tokens=work.tokens[None, rows], out=work.out[None, rows])
        if tokens > _STRETCH * 3 // 2:
            _mix_long(part, 0, tokens)
        elif tokens:
            clips = Packed(lengths[clip:end], starts[clip:end] - row, max(counts[clip:end]))
            _mix_short(part, slice(0, 1), tokens, None, clips)
        clip, row = end, rows.stop


def _groups(valid: list[int]) -> Iterator[tuple[slice, int]]:
    """Neighboring clips to be worked on together, and the longest of them: a stretch of tokens, little of it padding."""
    first, longest, tokens = 0, 0, 0
    for clip, length in enumerate(valid):
        padded, own = max(longest, length) * (clip + 1 - first), tokens + length
        if clip > first and (padded > _STRETCH or padded > max(_PADDED * own, own + VECTOR)):
            yield slice(first, clip), longest
            first, longest, tokens = clip, 0, 0
        longest, tokens = max(longest, length), tokens + length
    yield slice(first, len(valid)), longest


def _mix_short(work: _Work, part: slice, length: int, lengths: Tensor | None, packed: Packed | None = None) -> None:
    """The first `length` tokens of a few clips at once."""
    batch, inner, dtype = part.stop - part.start, work.out_weight.shape[1], work.in_weight.dtype
    tokens = batch * length
    y = memory.get("y", (batch, length, inner), dtype)
    place = memory.stretch(batch, length, work.sides[0], 2, dtype)
    hidden = work.normed(part, slice(0, length))
    xz = memory.multiplied("xz", hidden, work.in_weight).view(batch, length, 2 * inner)
    place.take_in(xz[..., :inner], lengths, 0, work.sides, packed)
    scan(place.u_rows, place.projected, xz[..., inner:], y, lengths, work.sides, packed=packed)
    work.give(part, slice(0, length), y.view(tokens, inner))


def _mix_long(work: _Work, clip: int, length: int) -> None:
    """The first `length` tokens of one clip, stretch by stretch: first along time, then against it."""
    inner, dtype = work.out_weight.shape[1], work.in_weight.dtype
    along, against = sorted(work.sides, key=lambda side: side.reverse)
    xz, y = memory.get("xz", (length, 2 * inner), dtype), memory.get("y", (length, inner), dtype)
    count = -(-length // _STRETCH)
    starts = range(0, length, -(-length // count))  # stretches of equal length
    for first in starts:
        here = slice(first, min(first + starts.step, length))
        product(work.normed(clip, here), work.in_weight, xz[here])
    xz = xz[None]
    state = memory.get("state", (1, *along.A_log.shape), torch.float32)  # after one stretch, before the next
    for side, order in ((along, starts), (against, reversed(starts))):
        before: Tensor | None = None
        for first in order:
            here = slice(first, min(first + starts.step, length))
            place = memory.stretch(1, here.stop - first, side, 1, dtype)
            place.take_in(xz[..., :inner], None, first, (side,))
            scan(
                place.u_rows,
                place.projected,
                xz[:, here, inner:] if side.reverse else None,
                y[None, here],
                None,
                (side,),
                accumulate=side.reverse,
                before=before,
                after=state,
            )
            before = state
            if side.reverse:
                work.give(clip, here, y[here])


def _mix_fake(hidden: Tensor, *rest: Any) -> Tensor:
    return hidden.new_empty(hidden.shape)


_WEIGHTS = "Tensor in_weight, Tensor out_weight, " + ", ".join(
    f"Tensor {name}_{side}"
    for side in ("ahead", "behind")
    for name in ("conv_weight", "conv_bias", "x_weight", "dt_weight", "dt_bias", "A_log", "D")
)
_KEPT = (
    "Tensor xz, Tensor projected_ahead, Tensor projected_behind, Tensor y, Tensor borders_ahead, Tensor borders_behind"
)
_OPTIONS = "Tensor? lengths, bool reversed_time"


def _results(count: int) -> str:
    return "(" + ", ".join(["Tensor"] * count) + ")"


register(f"bimamba_cpp(Tensor hidden, {_WEIGHTS}, {_OPTIONS}) -> Tensor", _mix, _mix_fake, "CPU")
_keeping_name = register(
    f"bimamba_cpp_keeping(Tensor hidden, {_WEIGHTS}, {_OPTIONS}) -> {_results(7)}", mix_keeping, mix_keeping_fake, "CPU"
)
register(
    f"bimamba_cpp_backward(Tensor grad_out, Tensor hidden, {_WEIGHTS}, {_KEPT}, {_OPTIONS}) -> {_results(17)}",
    mix_backward,
    mix_backward_fake,
    "CPU",
)
torch.library.register_autograd(_keeping_name, autograd, setup_context=setup, lib=library)
