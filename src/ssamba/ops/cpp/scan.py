"""The selective scan in C++ for CPUs, float32 and bfloat16.

Inputs may be any mixture of float32 and bfloat16 (as autocast produces them) and any slices whose last dimension is
contiguous; nothing is copied. The state is float32. Threads follow `torch.set_num_threads`; results do not depend on
their number. Registered operators are called only where PyTorch traces (`is_traced`): their dispatch takes as long as a
scan of 50 tokens.

Shapes: B clips, L tokens, E channels, N states of a channel. Equations: see `reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssamba.ops.cpp import extension
from ssamba.ops.cpp.extension import (
    ABSENT,
    DTYPES,
    Rows,
    Sizes,
    Steps,
    address,
    dense,
    float32,
    in_rows,
    int64,
    optional_dense,
    optional_rows,
    rows,
)
from ssamba.ops.operators import (
    ScanInputs,
    arguments_of,
    flat,
    is_traced,
    library,
    register,
    save_scan,
    saved_scan,
    scan_gradients,
    tensors,
)

_CHUNK, _BLOCK = 64, 16  # of csrc/kernels.hpp


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if the operators can run on `device` with an input of `dtype`, else the reason."""
    if device.type != "cpu":
        return "it runs on CPUs only"
    if dtype not in DTYPES:
        return f"it takes float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    missing = extension.why_missing()
    if missing is None:
        extension.capability()
    return missing


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Return the output (B, L, E) and the last state (B, E, N)."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, initial_state = inputs
    save = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    )
    if is_traced():
        args: Any = (
            u, _supported(delta), float32(A), _supported(B), _supported(C), float32(D), _supported(z),
            float32(delta_bias), delta_softplus, reverse, lengths, float32(initial_state),
        )  # fmt: skip
        out, last_state, _ = torch.ops.ssamba.selective_scan_cpp(*args, save)
    elif save:
        out, last_state = _Scan.apply(*_prepared(inputs))  # type: ignore[no-untyped-call]
    else:
        out, last_state, _ = _forward(_prepared(inputs), False)
    return out, last_state


def _supported(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.dtype in DTYPES else x.float()


def saved_states_size(batch: int, length: int, channels: int, state: int) -> int:
    """Return the elements of the saved states: one per chunk, channels padded to whole blocks, in the kernels' order.

    They have one dimension, because torch.export would take a number of chunks that is 1 for a constant.
    """
    # A fake tensor needs these sizes without the extension.
    return batch * -(-length // _CHUNK) * (-(-channels // _BLOCK) * _BLOCK) * state


def clear_saved_states(states: Tensor, channels: int, lengths: Tensor | None) -> None:
    """Zero saved states if kernels leave some unwritten: chunks beyond a sequence's end, lanes without a channel.

    Nothing reads those, but what an operator returns must be defined.
    """
    if lengths is not None or channels % _BLOCK:
        states.zero_()


def _prepared(inputs: ScanInputs) -> ScanInputs:
    """Return the inputs in dtypes and layouts that the kernels read; gradients pass through the conversions."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, initial_state = inputs
    return ScanInputs(
        in_rows(u),
        in_rows(delta),
        dense(A),
        in_rows(B),
        in_rows(C),
        optional_dense(D),
        None if z is None else in_rows(z),
        optional_dense(delta_bias),
        delta_softplus,
        reverse,
        int64(lengths),
        optional_dense(initial_state),
    )


def _arguments(
    prepared: ScanInputs,
) -> tuple[str, int, Sizes, bool, bool, Rows, Steps, int, Rows, Rows, int, Rows, int, int]:
    """Return the arguments that both kernels start with; they point into `prepared`, which has to outlive the call."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, _ = prepared
    batch, length, channels = u.shape
    return (
        *extension.target(), (batch, length, channels, A.shape[1]), delta_softplus, reverse, rows(u),
        (rows(delta), 0, 0), A.data_ptr(), rows(B), rows(C), address(D), optional_rows(z), address(delta_bias),
        address(lengths),
    )  # fmt: skip


def _forward(inputs: ScanInputs, save_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return output (B, L, E), last state (B, E, N), and the state before each chunk, empty without `save_states`."""
    out, last_state, states = _forward_fake(inputs, save_states)
    if save_states:
        clear_saved_states(states, inputs.u.shape[2], inputs.lengths)
    extension.kernels.scan_forward(
        *_arguments(inputs),
        address(inputs.initial_state),
        states.data_ptr() if save_states else 0,
        rows(out),
        last_state.data_ptr(),
    )
    return out, last_state, states


def _forward_fake(inputs: ScanInputs, save_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    u, A = inputs.u, inputs.A
    (batch, length, channels), state = u.shape, A.shape[1]
    return (
        u.new_empty((batch, length, channels)),
        A.new_empty((batch, channels, state)),
        A.new_empty(saved_states_size(batch, length, channels, state) if save_states else 0),
    )


def _backward(grad_out: Tensor, grad_last: Tensor, states: Tensor, inputs: ScanInputs) -> tuple[Tensor, ...]:
    """Return gradients of u, delta, A, B, C, D, z, delta_bias (empty for absent inputs) and the initial state."""
    grads = _backward_fake(grad_out, grad_last, states, inputs)
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial = grads
    if inputs.u.shape[0] == 0:
        for grad in (grad_A, grad_D, grad_bias):
            grad.zero_()
        return grads
    grad_out, grad_last = in_rows(grad_out), grad_last.contiguous()
    extension.kernels.scan_backward(
        *_arguments(inputs),
        states.data_ptr(),
        rows(grad_out),
        grad_last.data_ptr(),
        rows(grad_u),
        rows(grad_delta),
        grad_A.data_ptr(),
        rows(grad_B),
        rows(grad_C),
        0 if inputs.D is None else grad_D.data_ptr(),
        ABSENT if inputs.z is None else rows(grad_z),
        0 if inputs.delta_bias is None else grad_bias.data_ptr(),
        grad_initial.data_ptr(),
    )
    return grads


def _backward_fake(grad_out: Tensor, grad_last: Tensor, states: Tensor, inputs: ScanInputs) -> tuple[Tensor, ...]:
    def like(x: Tensor | None) -> Tensor:
        return inputs.A.new_empty(0) if x is None else x.new_empty(x.shape)

    return *[like(x) for x in inputs[:8]], like(grad_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *args, save_states = inputs
    assert save_states, "a gradient is needed, so the call has to save the states"
    save_scan(ctx, ScanInputs(*args), output[2])


def _autograd(ctx: Any, grad_out: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    states, inputs = saved_scan(ctx)
    grads = torch.ops.ssamba.selective_scan_cpp_backward(grad_out, grad_last, states, *inputs[:-1])
    return *scan_gradients(ctx, inputs, grads), None


class _Scan(torch.autograd.Function):
    """The scan and its gradients without registered operators."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        """Return output and last state for the fields of prepared `ScanInputs`."""
        inputs = ScanInputs._make(args)
        out, last_state, states = _forward(inputs, True)
        save_scan(ctx, inputs, states)
        return out, last_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient of every field."""
        states, inputs = saved_scan(ctx)
        return scan_gradients(ctx, inputs, _backward(grads[0], grads[1], states, inputs))


_name = register(
    f"selective_scan_cpp({arguments_of(ScanInputs)}, bool keep_states) -> {tensors(3)}",
    flat(lambda inputs, save_states: _forward(_prepared(inputs), save_states), ScanInputs),
    flat(_forward_fake, ScanInputs),
    "CPU",
)
register(
    "selective_scan_cpp_backward(Tensor grad_out, Tensor grad_last, Tensor borders, "
    f"{arguments_of(ScanInputs, without='initial_state')}) -> {tensors(9)}",
    flat(lambda out, last, states, inputs: _backward(out, last, states, _prepared(inputs)), ScanInputs, 3),
    flat(_backward_fake, ScanInputs, 3),
    "CPU",
)
torch.library.register_autograd(_name, _autograd, setup_context=_setup, lib=library)
