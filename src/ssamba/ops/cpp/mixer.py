"""The bidirectional mixer in C++ for CPUs: matrix products by PyTorch, everything between them in few passes.

Both directions share one pass of the convolution and one of the scan; delta is computed from its low-rank factor inside
the scan and never stored; the second direction adds to the first's output and applies the gate.

Inference works on segments of tokens that fit in the caches, in a reused workspace: beside the output, a long sequence
needs its x, z and y. Training saves for each token x, z, both directions' projections, the sum of the scans before the
gate, and the state before every chunk of 64 steps; the backward pass recomputes the convolutions, delta and the inside
of a chunk.

Shapes: B clips, L tokens, D channels of a token, E channels inside, N states of a channel, W taps; `delta_rank` is the
rank of delta's projection, `columns` = delta_rank + 2 N, `tokens` = B L.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssamba.ops.cpp import extension
from ssamba.ops.cpp.extension import ABSENT, Rows, address, int64, rows
from ssamba.ops.cpp.mixer_kernels import (
    VECTOR,
    KernelWeights,
    PackedClips,
    convolve,
    fuses_projection,
    gate,
    kernel_weights,
    projected_rows,
    scan,
    workspace,
)
from ssamba.ops.cpp.scan import clear_saved_states, saved_states_size
from ssamba.ops.matmul import add_matmul_t, matmul_t
from ssamba.ops.operators import DirectionWeights, MixerInputs, is_traced, library, register, tensors

_SEGMENT_TOKENS = 2048
"""Tokens that are processed together; a clip of up to half as many more stays in one segment."""
_MAX_PADDING = 1.1
"""Clips of different lengths are processed together if padding makes no more than this multiple of their tokens."""


def bimamba_mixer(inputs: MixerInputs) -> Tensor:
    """Return (B, L, D); hidden, in_weight and out_weight are of one dtype."""
    args = _flat(inputs)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in args[:_TENSORS])
    out: Tensor
    if is_traced():
        out = torch.ops.ssamba.bimamba_cpp_keeping(*args)[0] if needs_grad else torch.ops.ssamba.bimamba_cpp(*args)
    else:
        out = _Mixer.apply(*args) if needs_grad else _inference(*args)  # type: ignore[no-untyped-call]
    return out


def mix_into(out: Tensor, norm: tuple[Tensor, Tensor, float], inputs: MixerInputs, accumulate: bool) -> None:
    """Run norm and mixer without memory of their own; see `ssamba.ops.mixer.mix_into`."""
    stream, in_weight, out_weight, *_ = inputs
    _run(_Inference(stream, norm, in_weight, out_weight, _directions(inputs), out, accumulate), inputs.lengths)


_TENSORS = 3 + 2 * len(DirectionWeights._fields)


def _flat(inputs: MixerInputs) -> tuple[Any, ...]:
    """Return the inputs as the operators take them: 17 tensors, lengths, reversed_time."""
    return (*inputs[:3], *inputs.forward, *inputs.reverse, inputs.lengths, inputs.reversed_time)


def _record(hidden: Tensor, in_weight: Tensor, out_weight: Tensor, *rest: Any) -> MixerInputs:
    """Return what `_flat` flattened as a record."""
    forward, reverse = DirectionWeights(*rest[:7]), DirectionWeights(*rest[7:14])
    return MixerInputs(hidden, in_weight, out_weight, forward, reverse, *rest[14:])


def _directions(inputs: MixerInputs) -> tuple[KernelWeights, KernelWeights]:
    dtype, reversed_time = inputs.in_weight.dtype, inputs.reversed_time
    return (
        kernel_weights(inputs.forward, dtype, reversed_time),
        kernel_weights(inputs.reverse, dtype, not reversed_time),
    )


class _Inference(NamedTuple):
    """One call without gradients: out, (B, L, D) or packed (tokens, D), becomes mixer(norm(hidden)), or is added to."""

    hidden: Tensor
    norm: tuple[Tensor, Tensor, float] | None
    """Weight, bias and epsilon of a LayerNorm."""
    in_weight: Tensor
    out_weight: Tensor
    directions: tuple[KernelWeights, KernelWeights]
    out: Tensor
    accumulate: bool

    def normed(self, clips: slice | int, steps: slice) -> Tensor:
        """Return norm(hidden) for some clips and steps, (tokens, D)."""
        part, width = self.hidden[clips, steps], self.hidden.shape[2]
        if self.norm is not None:
            weight, bias, eps = self.norm
            part = F.layer_norm(part, (width,), weight, bias, eps).to(self.in_weight.dtype)
        return part.reshape(-1, width)

    def write(self, clips: slice | int, steps: slice, y: Tensor) -> None:
        """Multiply y (tokens, E), the gated mean of both directions, by out_weight, and write it to `out` or add it."""
        out = self.out[clips, steps]
        mixed = workspace.matmul_t("mixed", y, self.out_weight).view(out.shape)
        if self.accumulate:
            out.add_(mixed)
        else:
            out.copy_(mixed)


def _inference(hidden: Tensor, *rest: Any) -> Tensor:
    inputs = _record(hidden, *rest)
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    call = _Inference(hidden, None, inputs.in_weight, inputs.out_weight, _directions(inputs), out, False)
    _run(call, inputs.lengths)
    return out


def _inference_fake(hidden: Tensor, *rest: Any) -> Tensor:
    return hidden.new_empty(hidden.shape)


def _run(call: _Inference, lengths: Tensor | None) -> None:
    if not call.out.numel():
        return
    if call.out.ndim == 2:
        assert lengths is not None
        _run_packed(call, lengths)
        return
    batch, length, _ = call.out.shape
    if lengths is None and batch * length <= _SEGMENT_TOKENS:
        _run_segment(call, slice(0, batch), length, None)
        return
    counts = [length] * batch if lengths is None else [min(max(n, 0), length) for n in lengths.tolist()]
    groups = _groups(counts)
    if length > _SEGMENT_TOKENS * 3 // 2:
        groups = ((slice(clip, clip + 1), count) for clip, count in enumerate(counts))
    lengths = int64(lengths)
    for clips, longest in groups:
        if longest < length and not call.accumulate:
            call.out[clips, longest:] = 0
        if longest > _SEGMENT_TOKENS * 3 // 2:
            _run_long_clip(call, clips.start, longest)
        elif longest:
            _run_segment(call, clips, longest, None if lengths is None else lengths[clips])


def _run_packed(call: _Inference, lengths: Tensor) -> None:
    """Run packed clips: short ones together, as if they were one."""
    lengths, counts = lengths.to(torch.int64).contiguous(), lengths.tolist()
    if sum(counts) != len(call.out) or min(counts) < 0:
        raise ValueError(f"lengths must add up to the {len(call.out)} tokens, got {sum(counts)}")
    starts = lengths.cumsum(0) - lengths
    clip, row = 0, 0
    while clip < len(counts):
        end, tokens = clip + 1, counts[clip]
        while end < len(counts) and tokens + counts[end] <= _SEGMENT_TOKENS:
            tokens += counts[end]
            end += 1
        part = slice(row, row + tokens)
        one = call._replace(hidden=call.hidden[None, part], out=call.out[None, part])
        if tokens > _SEGMENT_TOKENS * 3 // 2:
            _run_long_clip(one, 0, tokens)
        elif tokens:
            clips = PackedClips(lengths[clip:end], starts[clip:end] - row, max(counts[clip:end]))
            _run_segment(one, slice(0, 1), tokens, None, clips)
        clip, row = end, part.stop


def _groups(lengths: list[int]) -> Iterator[tuple[slice, int]]:
    """Yield neighboring clips to process together, and the length of the longest: one segment with little padding."""
    first, longest, tokens = 0, 0, 0
    for clip, length in enumerate(lengths):
        padded, own = max(longest, length) * (clip + 1 - first), tokens + length
        if clip > first and (padded > _SEGMENT_TOKENS or padded > max(_MAX_PADDING * own, own + VECTOR)):
            yield slice(first, clip), longest
            first, longest, tokens = clip, 0, 0
        longest, tokens = max(longest, length), tokens + length
    yield slice(first, len(lengths)), longest


def _run_segment(
    call: _Inference, clips: slice, length: int, lengths: Tensor | None, packed: PackedClips | None = None
) -> None:
    """Run the first `length` tokens of a few clips at once."""
    batch, inner, dtype = clips.stop - clips.start, call.out_weight.shape[1], call.in_weight.dtype
    y = workspace.get("y", (batch, length, inner), dtype)
    segment = workspace.segment(batch, length, call.directions[0], 2, dtype)
    hidden = call.normed(clips, slice(0, length))
    xz = workspace.matmul_t("xz", hidden, call.in_weight).view(batch, length, 2 * inner)
    segment.fill(xz[..., :inner], lengths, 0, call.directions, packed)
    scan(segment.u_rows, segment.projected, xz[..., inner:], y, lengths, call.directions, packed=packed)
    call.write(clips, slice(0, length), y.view(batch * length, inner))


def _run_long_clip(call: _Inference, clip: int, length: int) -> None:
    """Run the first `length` tokens of one clip segment by segment: first forward in time, then backward."""
    inner, dtype = call.out_weight.shape[1], call.in_weight.dtype
    forward, reverse = sorted(call.directions, key=lambda weights: weights.reverse)
    xz, y = workspace.get("xz", (length, 2 * inner), dtype), workspace.get("y", (length, inner), dtype)
    count = -(-length // _SEGMENT_TOKENS)
    starts = range(0, length, -(-length // count))  # segments of equal length
    for first in starts:
        steps = slice(first, min(first + starts.step, length))
        matmul_t(call.normed(clip, steps), call.in_weight, xz[steps])
    xz = xz[None]
    state = workspace.get("state", (1, *forward.A_log.shape), torch.float32)  # after one segment, before the next
    for weights, order in ((forward, starts), (reverse, reversed(starts))):
        before: Tensor | None = None
        for first in order:
            steps = slice(first, min(first + starts.step, length))
            segment = workspace.segment(1, steps.stop - first, weights, 1, dtype)
            segment.fill(xz[..., :inner], None, first, (weights,))
            scan(
                segment.u_rows,
                segment.projected,
                xz[:, steps, inner:] if weights.reverse else None,
                y[None, steps],
                None,
                (weights,),
                accumulate=weights.reverse,
                before=before,
                after=state,
            )
            before = state
            if weights.reverse:
                call.write(clip, steps, y[steps])


def _forward(hidden: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Return the output and what the backward pass needs: xz, projections, y before the gate, chunk states."""
    if not hidden.numel():
        return _forward_fake(hidden, *rest)
    inputs = _record(hidden, *rest)
    directions, in_weight, out_weight = _directions(inputs), inputs.in_weight, inputs.out_weight
    hidden, lengths = hidden.contiguous(), int64(inputs.lengths)
    batch, length, channels = hidden.shape
    tokens, inner, state = batch * length, out_weight.shape[1], directions[0].state
    # Results of products are saved as they are: a copy would cost as much as the scan's reading them.
    xz = matmul_t(hidden.view(tokens, channels), in_weight).view(batch, length, 2 * inner)
    if fuses_projection(xz.dtype):
        projected = [xz.new_empty((batch, length, weights.x_weight.shape[0])) for weights in directions]
        u = _convolved(xz, lengths, directions, [rows(each) for each in projected])
    else:
        u = _convolved(xz, lengths, directions)
        projected = [
            matmul_t(each.view(tokens, inner), weights.x_weight).view(batch, length, -1)
            for weights, each in zip(directions, u, strict=True)
        ]
    y, gated = hidden.new_empty(u[0].shape), workspace.get("gated", (batch, length, inner), hidden.dtype)
    size = saved_states_size(batch, length, inner, state)
    chunk_states = [hidden.new_empty(size, dtype=torch.float32) for _ in directions]
    for states in chunk_states:
        clear_saved_states(states, inner, lengths)
    scan([rows(each) for each in u], projected, None, y, lengths, directions, chunk_states=chunk_states)
    gate(y, xz[..., inner:], lengths, gated)
    out = matmul_t(gated.view(tokens, inner), out_weight).view(hidden.shape)
    return out, xz, *projected, y, *chunk_states


def _forward_fake(hidden: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    inputs = _record(hidden, *rest)
    (batch, length, channels), (inner, state) = hidden.shape, inputs.forward.A_log.shape
    columns = inputs.forward.x_weight.shape[0]
    results = [hidden.new_empty((batch, length, n)) for n in (channels, 2 * inner, columns, columns, inner)]
    size = saved_states_size(batch, length, inner, state)
    return *results, *(hidden.new_empty(size, dtype=torch.float32) for _ in range(2))


def _convolved(
    xz: Tensor, lengths: Tensor | None, directions: Sequence[KernelWeights], projected: list[Rows] | None = None
) -> list[Tensor]:
    """Return both convolutions (B, L, E), in memory that the next block reuses; `projected` as in `convolve`."""
    batch, length, inner = *xz.shape[:2], xz.shape[2] // 2
    u = [workspace.get(f"u {direction}", (batch, length, inner), xz.dtype) for direction in ("forward", "reverse")]
    convolve(xz[..., :inner], lengths, 0, length, directions, [rows(each) for each in u], projected=projected)
    return u


def _backward(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Return gradients of hidden, in_weight, out_weight and the seven weights of each direction."""
    inputs = _record(*args[:_TENSORS], *args[-2:])
    xz, *projected, y, forward_states, reverse_states = args[_TENSORS:-2]
    hidden, in_weight, out_weight = inputs[:3]
    if not hidden.numel():
        return tuple(torch.zeros_like(t) for t in args[:_TENSORS])
    directions = _directions(inputs)
    hidden, grad_out, lengths = hidden.contiguous(), grad_out.contiguous(), int64(inputs.lengths)
    batch, length, channels = hidden.shape
    tokens, inner = batch * length, out_weight.shape[1]
    grad_flat = grad_out.view(tokens, channels)

    grad_y = matmul_t(grad_flat, out_weight.t()).view(y.shape)
    grad_xz, gated = workspace.get("grad_xz", xz.shape, xz.dtype), workspace.get("gated", y.shape, y.dtype)
    gate(y, xz[..., inner:], lengths, gated, grad_y, grad_xz[..., inner:])
    grad_out_weight = matmul_t(grad_flat.t(), gated.view(tokens, inner).t())
    grads: list[Tensor] = []
    for weights, own, u, own_projected, states in zip(
        directions,
        (inputs.forward, inputs.reverse),
        _convolved(xz, lengths, directions),
        projected,
        (forward_states, reverse_states),
        strict=True,
    ):
        # `gated` is free again: its memory takes grad_u.
        grads += _direction_backward(
            weights, own, xz, u, own_projected, states, grad_y, lengths, gated, grad_xz, accumulate=bool(grads)
        )
    flat = grad_xz.view(tokens, 2 * inner)
    grad_hidden = matmul_t(flat, in_weight.t()).view(hidden.shape)
    return grad_hidden, matmul_t(flat.t(), hidden.view(tokens, channels).t()), grad_out_weight, *grads


def _backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in args[:_TENSORS])


def _direction_backward(
    weights: KernelWeights,
    originals: DirectionWeights,
    xz: Tensor,
    u: Tensor,
    projected: Tensor,
    chunk_states: Tensor,
    grad_y: Tensor,
    lengths: Tensor | None,
    grad_u: Tensor,
    grad_xz: Tensor,
    *,
    accumulate: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of one direction's weights, and write that of x to the first half of `grad_xz`, or add it.

    `grad_u` (B, L, E) is memory to work in; `originals` give the gradients their dtypes.
    """
    # The kernels write float32, whatever the weights are.
    grad_conv_weight, grad_conv_bias, grad_dt_bias, grad_A, grad_D = (
        torch.empty(t.shape, dtype=torch.float32)
        for t in (originals.conv_weight, originals.conv_bias, originals.dt_bias, originals.A_log, originals.D)
    )
    batch, length, inner = u.shape
    tokens, rank, columns = batch * length, weights.delta_rank, projected.shape[2]
    A = torch.exp(weights.A_log).neg_()
    grad_delta = workspace.get("grad_delta", u.shape, u.dtype)
    grad_projected = workspace.get("grad_projected", projected.shape, projected.dtype)
    low, B, C = projected_rows(projected, weights)
    _, grad_B, grad_C = projected_rows(grad_projected, weights)
    extension.kernels.scan_backward(
        *extension.target(),
        (batch, length, inner, weights.state),
        True,
        weights.reverse,
        rows(u),
        (low, weights.dt_weight.data_ptr(), rank),
        A.data_ptr(),
        B,
        C,
        weights.D.data_ptr(),
        ABSENT,
        weights.dt_bias.data_ptr(),
        address(lengths),
        chunk_states.data_ptr(),
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
    matmul_t(flat_grad_delta, weights.dt_weight.to(u.dtype).t(), flat_grad[:, :rank])
    # The short side first: in the other order, the same product takes twice as long.
    grad_dt_weight = (flat_projected[:, :rank].t() @ flat_grad_delta).t().contiguous()
    grad_x_weight = matmul_t(flat_grad.t(), flat_u.t())
    add_matmul_t(flat_grad_u, flat_grad, weights.x_weight.t())
    extension.kernels.conv_backward(
        *extension.target(),
        (batch, length, inner, weights.conv_weight.shape[1]),
        True,
        weights.reverse,
        rows(xz[..., :inner]),
        weights.conv_weight.data_ptr(),
        weights.conv_bias.data_ptr(),
        address(lengths),
        rows(grad_u),
        rows(grad_xz[..., :inner]),
        accumulate,
        grad_conv_weight.data_ptr(),
        grad_conv_bias.data_ptr(),
    )
    grads = grad_conv_weight, grad_conv_bias, grad_x_weight, grad_dt_weight, grad_dt_bias, grad_A, grad_D
    return tuple(grad.to(weight.dtype) for grad, weight in zip(grads, originals, strict=True))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, lengths, reversed_time = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:], lengths)
    ctx.reversed_time = reversed_time


def _autograd(ctx: Any, grad_out: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * (_TENSORS + 2)
    grads = torch.ops.ssamba.bimamba_cpp_backward(grad_out, *ctx.saved_tensors, ctx.reversed_time)
    return *grads, None, None


class _Mixer(torch.autograd.Function):
    """The mixer with gradients without registered operators, whose dispatch costs 0.2 ms a block and step."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Return the output (B, L, D) for the operator's arguments."""
        output = _forward(*args)
        _setup(ctx, args, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument."""
        if grads[0] is None:
            return (None,) * (_TENSORS + 2)
        return *_backward(grads[0], *ctx.saved_tensors, ctx.reversed_time), None, None


_WEIGHTS = "Tensor in_weight, Tensor out_weight, " + ", ".join(
    f"Tensor {name}_{direction}" for direction in ("ahead", "behind") for name in DirectionWeights._fields
)
_SAVED = (
    "Tensor xz, Tensor projected_ahead, Tensor projected_behind, Tensor y, Tensor borders_ahead, Tensor borders_behind"
)
_OPTIONS = "Tensor? lengths, bool reversed_time"

register(f"bimamba_cpp(Tensor hidden, {_WEIGHTS}, {_OPTIONS}) -> Tensor", _inference, _inference_fake, "CPU")
_forward_name = register(
    f"bimamba_cpp_keeping(Tensor hidden, {_WEIGHTS}, {_OPTIONS}) -> {tensors(7)}", _forward, _forward_fake, "CPU"
)
register(
    f"bimamba_cpp_backward(Tensor grad_out, Tensor hidden, {_WEIGHTS}, {_SAVED}, {_OPTIONS}) -> {tensors(_TENSORS)}",
    _backward,
    _backward_fake,
    "CPU",
)
torch.library.register_autograd(_forward_name, _autograd, setup_context=_setup, lib=library)
