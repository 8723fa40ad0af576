"""The causal convolution in C++ for CPUs, float32 and bfloat16; what `cpu.py` says of the scan holds here.

Shapes: B batch, L tokens, D channels, K taps. Equations: see `reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssamba.ops.cpp import extension as cpu_extension
from ssamba.ops.cpp.scan import address, dense, float32, int64, lined_up, rows
from ssamba.ops.operators import is_traced, library, register


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    lengths: Tensor | None,
) -> Tensor:
    """(B, L, D); arguments are those of `ssamba.ops.causal_conv`."""
    inputs: tuple[Any, ...] = (x, float32(weight), float32(bias), silu, reverse, lengths)
    out: Tensor
    if is_traced():
        out = torch.ops.ssamba.causal_conv_cpp(*inputs)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        out = _Convolved.apply(*inputs)  # type: ignore[no-untyped-call]
    else:
        out = _conv(*inputs)
    return out


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, lengths: Tensor | None) -> Tensor:
    batch, length, channels = x.shape
    out = _conv_fake(x, weight, bias, silu, reverse, lengths)
    x, weight, bias, lengths = lined_up(x), weight.contiguous(), dense(bias), int64(lengths)
    cpu_extension.module().conv_forward(
        cpu_extension.capability(),
        cpu_extension.threads(),
        (batch, length, channels, weight.shape[1]),
        silu,
        reverse,
        rows(x),
        weight.data_ptr(),
        address(bias),
        address(lengths),
        rows(out),
    )
    return out


def _conv_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, lengths: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape)


def _conv_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight, and bias (empty where there is none)."""
    batch, length, channels = x.shape
    grads = _conv_backward_fake(grad_out, x, weight, bias, silu, reverse, lengths)
    grad_x, grad_weight, grad_bias = grads
    if batch == 0:
        grad_weight.zero_()
        grad_bias.zero_()
        return grads
    x, weight, bias, lengths = lined_up(x), weight.contiguous(), dense(bias), int64(lengths)
    grad_out = lined_up(grad_out)
    cpu_extension.module().conv_backward(
        cpu_extension.capability(),
        cpu_extension.threads(),
        (batch, length, channels, weight.shape[1]),
        silu,
        reverse,
        rows(x),
        weight.data_ptr(),
        address(bias),
        address(lengths),
        rows(grad_out),
        rows(grad_x),
        False,
        grad_weight.data_ptr(),
        0 if bias is None else grad_bias.data_ptr(),
    )
    return grads


def _conv_backward_fake(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else bias.shape)


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, silu, reverse, lengths = inputs
    ctx.save_for_backward(x, weight, bias, lengths)
    ctx.options = silu, reverse


def _conv_autograd(ctx: Any, grad_out: Tensor, run: Callable[..., Any] | None = None) -> tuple[Tensor | None, ...]:
    """The gradient of every input, by `run` or else by the operator."""
    x, weight, bias, lengths = ctx.saved_tensors
    backward = run or torch.ops.ssamba.causal_conv_cpp_backward
    grad_x, grad_weight, grad_bias = backward(grad_out, x, weight, bias, *ctx.options, lengths)
    return grad_x, grad_weight, None if bias is None else grad_bias, None, None, None


class _Convolved(torch.autograd.Function):
    """The convolution and its gradients without operators."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """The output for the operator's arguments."""
        out = _conv(*inputs)
        _conv_setup(ctx, inputs, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """The gradient of every one of them."""
        return _conv_autograd(ctx, grads[0], _conv_backward)


_conv_name = register(
    "causal_conv_cpp(Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse, Tensor? lengths) -> Tensor",
    _conv,
    _conv_fake,
    "CPU",
)
register(
    "causal_conv_cpp_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse, "
    "Tensor? lengths) -> (Tensor, Tensor, Tensor)",
    _conv_backward,
    _conv_backward_fake,
    "CPU",
)
torch.library.register_autograd(_conv_name, _conv_autograd, setup_context=_conv_setup, lib=library)
