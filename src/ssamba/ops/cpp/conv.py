"""The causal convolution in C++ for CPUs, float32 and bfloat16; layouts, threads and operators as in `scan.py`.

Shapes: B clips, L tokens, E channels, W taps. Equations: see `reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssamba.ops.cpp import extension
from ssamba.ops.cpp.extension import Rows, Sizes, address, dense, float32, in_rows, int64, optional_dense, rows
from ssamba.ops.operators import (
    ConvInputs,
    arguments_of,
    conv_gradients,
    flat,
    is_traced,
    library,
    register,
    save_conv,
    saved_conv,
    tensors,
)


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Return the convolution (B, L, E)."""
    x, weight, bias, silu, reverse, lengths = inputs
    out: Tensor
    if is_traced():
        out = torch.ops.ssamba.causal_conv_cpp(x, float32(weight), float32(bias), silu, reverse, lengths)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        out = _Conv.apply(*_prepared(inputs))  # type: ignore[no-untyped-call]
    else:
        out = _forward(_prepared(inputs))
    return out


def _prepared(inputs: ConvInputs) -> ConvInputs:
    """Return the inputs in dtypes and layouts that the kernels read; gradients pass through the conversions."""
    x, weight, bias, silu, reverse, lengths = inputs
    return ConvInputs(in_rows(x), dense(weight), optional_dense(bias), silu, reverse, int64(lengths))


def _arguments(prepared: ConvInputs) -> tuple[str, int, Sizes, bool, bool, Rows, int, int, int]:
    """Return the arguments that both kernels start with; they point into `prepared`, which has to outlive the call."""
    x, weight, bias, silu, reverse, lengths = prepared
    batch, length, channels = x.shape
    return (
        *extension.target(), (batch, length, channels, weight.shape[1]), silu, reverse, rows(x), weight.data_ptr(),
        address(bias), address(lengths),
    )  # fmt: skip


def _forward(inputs: ConvInputs) -> Tensor:
    out = _forward_fake(inputs)
    extension.kernels.conv_forward(*_arguments(inputs), rows(out))
    return out


def _forward_fake(inputs: ConvInputs) -> Tensor:
    return inputs.x.new_empty(inputs.x.shape)


def _backward(grad_out: Tensor, inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of x, weight, and bias (empty if there is none)."""
    grads = grad_x, grad_weight, grad_bias = _backward_fake(grad_out, inputs)
    if inputs.x.shape[0] == 0:
        grad_weight.zero_()
        grad_bias.zero_()
        return grads
    grad_out = in_rows(grad_out)
    extension.kernels.conv_backward(
        *_arguments(inputs),
        rows(grad_out),
        rows(grad_x),
        False,
        grad_weight.data_ptr(),
        0 if inputs.bias is None else grad_bias.data_ptr(),
    )
    return grads


def _backward_fake(grad_out: Tensor, inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = inputs[:3]
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else bias.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save_conv(ctx, ConvInputs(*inputs))


def _autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    inputs = saved_conv(ctx)
    return conv_gradients(inputs, torch.ops.ssamba.causal_conv_cpp_backward(grad_out, *inputs))


class _Conv(torch.autograd.Function):
    """The convolution and its gradients without registered operators."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Return the output for the fields of prepared `ConvInputs`."""
        inputs = ConvInputs._make(args)
        save_conv(ctx, inputs)
        return _forward(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient of every field."""
        inputs = saved_conv(ctx)
        return conv_gradients(inputs, _backward(grads[0], inputs))


_name = register(
    f"causal_conv_cpp({arguments_of(ConvInputs)}) -> Tensor",
    flat(lambda inputs: _forward(_prepared(inputs)), ConvInputs),
    flat(_forward_fake, ConvInputs),
    "CPU",
)
register(
    f"causal_conv_cpp_backward(Tensor grad_out, {arguments_of(ConvInputs)}) -> {tensors(3)}",
    flat(lambda grad_out, inputs: _backward(grad_out, _prepared(inputs)), ConvInputs, 1),
    flat(_backward_fake, ConvInputs, 1),
    "CPU",
)
torch.library.register_autograd(_name, _autograd, setup_context=_setup, lib=library)
