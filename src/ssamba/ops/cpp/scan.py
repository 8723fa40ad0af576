"""The scan in C++ for CPUs, float32 and bfloat16: the extension's kernels for PyTorch, as its operators where it traces.

Inputs may be any mixture of float32 and bfloat16 (as autocast produces them) and any slices whose last dimension is
contiguous; nothing is copied. The state is float32. Threads follow `torch.set_num_threads`; results do not depend on
their number.

What `cpu_conv.py` and `cpu_mixer*.py` share of handing tensors to the kernels stands here, too.

Shapes: B batch, L tokens, D channels, N state size. Equations: see `reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssamba.ops.cpp import extension as cpu_extension
from ssamba.ops.operators import is_traced, library, register

_DTYPES = (torch.float32, torch.bfloat16)
_CHUNK, _BLOCK = 64, 16  # of csrc/kernels.hpp

Rows = tuple[int, int, int, bool]  # address, batch stride, row stride, whether bfloat16


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the operators can run on `device` with an input of `dtype`, else the reason."""
    if device.type != "cpu":
        return "it runs on CPUs only"
    if dtype not in _DTYPES:
        return f"it takes float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    missing = cpu_extension.why_missing()
    if missing is None:
        cpu_extension.capability()
    return missing


def selective_scan(
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
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output (B, L, D) and last state (B, D, N); arguments are those of `ssamba.ops.selective_scan`."""
    keep = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    )
    inputs: tuple[Any, ...] = (
        u, _row_dtype(delta), float32(A), _row_dtype(B), _row_dtype(C), float32(D), _row_dtype(z), float32(delta_bias),
        delta_softplus, reverse, lengths, float32(initial_state), keep,
    )  # fmt: skip
    if is_traced():
        out, last_state, _ = torch.ops.ssamba.selective_scan_cpp(*inputs)
    elif keep:
        out, last_state = _Scanned.apply(*inputs)  # type: ignore[no-untyped-call]
    else:
        out, last_state, _ = _scan(*inputs)
    return out, last_state


def float32(x: Tensor | None) -> Tensor | None:
    """It in float32."""
    return x if x is None or x.dtype == torch.float32 else x.float()


def _row_dtype(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.dtype in _DTYPES else x.float()


def lined_up(x: Tensor) -> Tensor:
    """x, or a copy if its last dimension is not contiguous."""
    return x if x.stride(2) == 1 else x.contiguous()


def rows(x: Tensor) -> Rows:
    """How the kernels find a (B, L, channels) tensor whose last dimension is contiguous."""
    stride = x.stride()
    return x.data_ptr(), stride[0], stride[1], x.dtype == torch.bfloat16


ABSENT: Rows = (0, 0, 0, False)


def _optional_rows(x: Tensor | None) -> Rows:
    return ABSENT if x is None else rows(x)


def address(x: Tensor | None) -> int:
    """Where its first element is; 0 for what is absent."""
    return 0 if x is None else x.data_ptr()


def dense(x: Tensor | None) -> Tensor | None:
    """It, or a copy if it has gaps."""
    return None if x is None else x.contiguous()


def int64(lengths: Tensor | None) -> Tensor | None:
    """Lengths as the kernels read them."""
    return None if lengths is None else lengths.to(torch.int64).contiguous()


def border_size(batch: int, length: int, channels: int, state: int) -> int:
    """Elements of the saved states: one state per chunk, channels padded to whole blocks, in an order of the kernels' own.

    One dimension, because torch.export would take a number of chunks that is 1 for a constant.
    """
    # A fake tensor needs these without the extension.
    return batch * -(-length // _CHUNK) * (-(-channels // _BLOCK) * _BLOCK) * state


def clear_borders(borders: Tensor, channels: int, lengths: Tensor | None) -> None:
    """Zero saved states where kernels leave some unwritten: chunks beyond a sequence's end, lanes that no channel fills.

    Nothing reads those, but what an operator returns must be defined.
    """
    if lengths is not None or channels % _BLOCK:
        borders.zero_()


def _scan(
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
    initial_state: Tensor | None,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, L, D), last state (B, D, N), and with `keep_states` what the backward pass starts from."""
    batch, length, channels = u.shape
    state = A.shape[1]
    out, last_state, borders = _scan_fake(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, initial_state, keep_states
    )
    clear_borders(borders, channels, lengths)
    u, delta, B, C = lined_up(u), lined_up(delta), lined_up(B), lined_up(C)
    z = None if z is None else lined_up(z)
    A, D, delta_bias, initial_state = A.contiguous(), dense(D), dense(delta_bias), dense(initial_state)
    lengths = int64(lengths)
    cpu_extension.module().scan_forward(
        cpu_extension.capability(),
        cpu_extension.threads(),
        (batch, length, channels, state),
        delta_softplus,
        reverse,
        rows(u),
        (rows(delta), 0, 0),
        A.data_ptr(),
        rows(B),
        rows(C),
        address(D),
        _optional_rows(z),
        address(delta_bias),
        address(lengths),
        address(initial_state),
        borders.data_ptr() if keep_states else 0,
        rows(out),
        last_state.data_ptr(),
    )
    return out, last_state, borders


def _scan_fake(
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
    initial_state: Tensor | None,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, channels), state = u.shape, A.shape[1]
    return (
        u.new_empty((batch, length, channels)),
        A.new_empty((batch, channels, state)),
        A.new_empty(border_size(batch, length, channels, state) if keep_states else 0),
    )


def _scan_backward(
    grad_out: Tensor,
    grad_last: Tensor,
    borders: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias (empty where the input is absent) and the initial state."""
    batch, length, channels = u.shape
    state = A.shape[1]
    grads = _scan_backward_fake(
        grad_out, grad_last, borders, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths
    )
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial = grads
    if batch == 0:
        for grad in (grad_A, grad_D, grad_bias):
            grad.zero_()
        return grads
    u, delta, B, C = lined_up(u), lined_up(delta), lined_up(B), lined_up(C)
    z = None if z is None else lined_up(z)
    A, D, delta_bias, grad_last = A.contiguous(), dense(D), dense(delta_bias), grad_last.contiguous()
    grad_out, lengths = lined_up(grad_out), int64(lengths)
    cpu_extension.module().scan_backward(
        cpu_extension.capability(),
        cpu_extension.threads(),
        (batch, length, channels, state),
        delta_softplus,
        reverse,
        rows(u),
        (rows(delta), 0, 0),
        A.data_ptr(),
        rows(B),
        rows(C),
        address(D),
        _optional_rows(z),
        address(delta_bias),
        address(lengths),
        borders.data_ptr(),
        rows(grad_out),
        grad_last.data_ptr(),
        rows(grad_u),
        rows(grad_delta),
        grad_A.data_ptr(),
        rows(grad_B),
        rows(grad_C),
        0 if D is None else grad_D.data_ptr(),
        ABSENT if z is None else rows(grad_z),
        0 if delta_bias is None else grad_bias.data_ptr(),
        grad_initial.data_ptr(),
    )
    return grads


def _scan_backward_fake(
    grad_out: Tensor,
    grad_last: Tensor,
    borders: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(x: Tensor | None) -> Tensor:
        return A.new_empty(0) if x is None else x.new_empty(x.shape)

    grads = like(u), like(delta), like(A), like(B), like(C), like(D), like(z), like(delta_bias)
    return (*grads, like(grad_last))


def _scan_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, initial_state, keep_states = inputs
    assert keep_states, "a gradient is wanted, so the call has to keep the states"
    ctx.save_for_backward(output[2], u, delta, A, B, C, D, z, delta_bias, lengths)
    ctx.options = delta_softplus, reverse
    ctx.has_initial = initial_state is not None


def _scan_autograd(
    ctx: Any, grad_out: Tensor, grad_last: Tensor, _: Tensor | None, run: Callable[..., Any] | None = None
) -> tuple[Tensor | None, ...]:
    """The gradient of every input, by `run` or else by the operator."""
    borders, u, delta, A, B, C, D, z, delta_bias, lengths = ctx.saved_tensors
    *grads, grad_initial = (run or torch.ops.ssamba.selective_scan_cpp_backward)(
        grad_out, grad_last, borders, u, delta, A, B, C, D, z, delta_bias, *ctx.options, lengths
    )
    inputs = u, delta, A, B, C, D, z, delta_bias
    present = [grad if x is not None else None for grad, x in zip(grads, inputs, strict=True)]
    return (*present, None, None, None, grad_initial if ctx.has_initial else None, None)


class _Scanned(torch.autograd.Function):
    """The scan and its gradients without operators, whose way through PyTorch takes as long as 50 tokens."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Output and last state for the operator's arguments."""
        output = _scan(*inputs)
        _scan_setup(ctx, inputs, output)
        return output[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """The gradient of every one of them."""
        return _scan_autograd(ctx, grads[0], grads[1], None, _scan_backward)


_nine = ", ".join(["Tensor"] * 9)
_scan_name = register(
    "selective_scan_cpp(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, bool reverse, Tensor? lengths, Tensor? initial_state, bool keep_states) "
    "-> (Tensor, Tensor, Tensor)",
    _scan,
    _scan_fake,
    "CPU",
)
register(
    "selective_scan_cpp_backward(Tensor grad_out, Tensor grad_last, Tensor borders, Tensor u, Tensor delta, Tensor A, "
    "Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, bool delta_softplus, bool reverse, Tensor? lengths) "
    f"-> ({_nine})",
    _scan_backward,
    _scan_backward_fake,
    "CPU",
)
torch.library.register_autograd(_scan_name, _scan_autograd, setup_context=_scan_setup, lib=library)
