"""What every operator shares: records of their inputs and of backends, validation, and registration with PyTorch.

A backend takes one record. A registered PyTorch operator takes the record's fields one after another, because schemas
know no records; `flat` converts between the two.

Shapes: B clips, L tokens, D channels of a token, E channels inside a block, N states of a channel, W taps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_type_hints

import torch
from torch import Tensor

Direction = Literal["forward", "reverse"]


class ScanInputs(NamedTuple):
    """Inputs of the selective scan; `ssamba.ops.selective_scan` documents them."""

    u: Tensor  # (B, L, E)
    delta: Tensor  # (B, L, E)
    A: Tensor  # (E, N)
    B: Tensor  # (B, L, N)
    C: Tensor  # (B, L, N)
    D: Tensor | None  # (E,)
    z: Tensor | None  # (B, L, E)
    delta_bias: Tensor | None  # (E,)
    delta_softplus: bool
    reverse: bool
    lengths: Tensor | None  # (B,)
    initial_state: Tensor | None = None  # (B, E, N)


class ConvInputs(NamedTuple):
    """Inputs of the causal convolution; `ssamba.ops.causal_conv` documents them."""

    x: Tensor  # (B, L, E)
    weight: Tensor  # (E, W)
    bias: Tensor | None  # (E,)
    silu: bool
    reverse: bool
    lengths: Tensor | None  # (B,)


class DirectionWeights(NamedTuple):
    """Weights of one direction of a bidirectional mixer; `delta_rank` is the rank of delta's projection."""

    conv_weight: Tensor
    """(E, W)."""
    conv_bias: Tensor
    """(E,)."""
    x_weight: Tensor
    """Projects to delta's low-rank factor, B and C: (delta_rank + 2 N, E)."""
    dt_weight: Tensor
    """Projects the low-rank factor to delta: (E, delta_rank)."""
    dt_bias: Tensor
    """(E,)."""
    A_log: Tensor
    """A = -exp(A_log), (E, N)."""
    D: Tensor
    """(E,)."""


class MixerInputs(NamedTuple):
    """Inputs of the bidirectional mixer; `ssamba.ops.bimamba_mixer` documents them."""

    hidden: Tensor  # (B, L, D)
    in_weight: Tensor  # (2 E, D)
    out_weight: Tensor  # (D, E)
    forward: DirectionWeights
    reverse: DirectionWeights
    lengths: Tensor | None  # (B,)
    reversed_time: bool


@dataclass(frozen=True)
class Backend:
    """One implementation of the operators."""

    name: str
    why_not: Callable[[torch.device, torch.dtype], str | None]
    """None if the backend can run with inputs of this dtype on this device, else the reason why not."""
    selective_scan: Callable[[ScanInputs], tuple[Tensor, Tensor]]
    """Returns the output (B, L, E) and the last state (B, E, N)."""
    causal_conv: Callable[[ConvInputs], Tensor]
    """Returns (B, L, E)."""
    bimamba_mixer: Callable[[MixerInputs], Tensor] | None = None
    """Returns (B, L, D); None: `ssamba.ops.mixer.compose` builds the mixer from the other two."""
    mix_into: Callable[[Tensor, tuple[Tensor, Tensor, float], MixerInputs, bool], None] | None = None
    """Takes out, norm, inputs and accumulate of `ssamba.ops.mixer.mix_into`; None: not implemented."""
    automatic: bool = True
    automatic_on: str | None = None
    """The only type of device where `auto` picks it; None: any."""
    needs_check: bool = False
    """Whether `auto` picks it only where it passes `ssamba.ops.self_check`."""

    def is_automatic(self, device: torch.device) -> bool:
        """Return True if `auto` may pick this backend on `device`."""
        return self.automatic and (self.automatic_on is None or self.automatic_on == device.type)


def is_reverse(direction: str) -> bool:
    """Return True for "reverse" and False for "forward"; raise ValueError for anything else."""
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction must be 'forward' or 'reverse', got {direction!r}")
    return direction == "reverse"


def check_shape(name: str, tensor: Tensor | None, expected: tuple[int, ...], legend: str, like: Tensor) -> None:
    """Raise ValueError unless `tensor` is None or floating point, of the expected shape, on the device of `like`."""
    if tensor is None:
        return
    if tensor.shape != expected:
        raise ValueError(f"{name} must have shape {legend} = {expected}, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but the input is on {like.device}: move one of them")


def check_lengths(lengths: Tensor | None, batch: int, limit: int) -> None:
    """Raise ValueError unless `lengths` is None or holds `batch` integers in [0, limit]."""
    if lengths is None:
        return
    if tuple(lengths.shape) != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must hold {batch} integers, got shape {tuple(lengths.shape)} of {lengths.dtype}")
    # Reading values back from a GPU would wait for its queue, and a traced graph has no values.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > limit:
            raise ValueError(f"lengths must lie between 0 and {limit}, got values from {low} to {high}")


# Registered on a Library instead of by `custom_op`, whose checks around each call cost more than a kernel launch.
library: Any = torch.library.Library("ssamba", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any], *devices: str) -> str:
    """Register `run` on `devices` as the operator `ssamba::schema`, and `fake` for its shapes; return its full name."""
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in devices:
        library.impl(name, run, device)
    torch.library.register_fake(f"ssamba::{name}", fake, lib=library)
    return f"ssamba::{name}"


def arguments_of(record: type[ScanInputs | ConvInputs], without: str = "") -> str:
    """Return the fields of a record, but for `without`, as the arguments of an operator's schema."""
    types = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool"}
    return ", ".join(f"{types[hint]} {name}" for name, hint in get_type_hints(record).items() if name != without)


def tensors(count: int) -> str:
    """Return the result of an operator that returns `count` tensors, as a schema says it."""
    return "(" + ", ".join(["Tensor"] * count) + ")"


def flat(function: Callable[..., Any], record: type[ScanInputs | ConvInputs], first: int = 0) -> Callable[..., Any]:
    """Return `function` with its argument number `first`, a record, replaced by the record's fields."""
    last = first + len(record._fields)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args[:first], record(*args[first:last]), *args[last:])

    return call


def save_scan(ctx: Any, inputs: ScanInputs, chunk_states: Tensor, initial_state: Tensor | None = None) -> None:
    """Save a scan's inputs and saved states for `saved_scan`; the initial state only if it is given here."""
    ctx.save_for_backward(chunk_states, *inputs[:8], inputs.lengths, initial_state)
    ctx.options = inputs.delta_softplus, inputs.reverse
    ctx.initial_dtype = None if inputs.initial_state is None else inputs.initial_state.dtype


def saved_scan(ctx: Any) -> tuple[Tensor, ScanInputs]:
    """Return the saved states and inputs that `save_scan` saved."""
    chunk_states, *inputs, lengths, initial_state = ctx.saved_tensors
    return chunk_states, ScanInputs._make((*inputs, *ctx.options, lengths, initial_state))


def scan_gradients(ctx: Any, inputs: ScanInputs, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return one gradient for each field of `inputs`, given those of its eight tensors and of the initial state."""
    present = [None if x is None else grad for x, grad in zip(inputs[:8], grads, strict=False)]
    return *present, None, None, None, None if ctx.initial_dtype is None else grads[8].to(ctx.initial_dtype)


def save_conv(ctx: Any, inputs: ConvInputs) -> None:
    """Save a convolution's inputs for `saved_conv`."""
    ctx.save_for_backward(inputs.x, inputs.weight, inputs.bias, inputs.lengths)
    ctx.options = inputs.silu, inputs.reverse


def saved_conv(ctx: Any) -> ConvInputs:
    """Return the inputs that `save_conv` saved."""
    x, weight, bias, lengths = ctx.saved_tensors
    return ConvInputs._make((x, weight, bias, *ctx.options, lengths))


def conv_gradients(inputs: ConvInputs, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return one gradient for each field of `inputs`, given those of x, the weight and the bias."""
    return grads[0], grads[1], None if inputs.bias is None else grads[2], None, None, None


def is_traced() -> bool:
    """Return True while PyTorch compiles, exports, traces or transforms, or a dispatch mode sees each operator."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )
