"""Selective scan and causal convolution on NVIDIA GPUs, in Triton: where they run, the operators, and their gradients.

One launch serves one direction: the two directions of a block read different inputs and weights, so a common launch
would save nothing but its own few microseconds, and would double every argument.

Shapes: B batch, L tokens, D channels, N states (NP: rounded up to a power of two), K taps.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssamba.ops.operators import library, register
from ssamba.ops.triton.launch import (
    ScanLaunch,
    convolve,
    convolve_backward,
    count_chunks,
    interpreting,
    on_device,
    power_of_two,
)

_PRESENT = importlib.util.find_spec("triton") is not None  # found, not imported
_NEW_ENOUGH = tuple(int(x) for x in torch.__version__.split(".")[:2]) >= (2, 7)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None where the kernels can run on inputs of `dtype` on `device`, else the reason."""
    if not _PRESENT:
        return "triton is not installed (pip install 'ssamba[gpu]'; Linux only)"
    if not _NEW_ENOUGH:
        return f"its kernels need Triton 3.3, which comes with torch 2.7, and this is torch {torch.__version__}"
    if device.type != "cuda" and not (device.type == "cpu" and interpreting()):
        return f"Triton's kernels run on CUDA devices, not on {device.type}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its inputs are float32, bfloat16 or float16, not {dtype}"
    if device.type == "cuda" and torch.version.cuda is None:
        return "it was written for and compiled on NVIDIA GPUs only, and this torch is not built for them"
    # A graph is traced where its tensors are, and torch cannot trace questions to the driver.
    if device.type == "cpu" or torch.compiler.is_compiling():
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 (A100, RTX 30 series) or newer"
    return None


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
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    operator = torch.ops.ssamba.selective_scan_triton.default
    arguments = u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, initial_state
    out, last_state, _ = operator(*arguments, save)
    return out, last_state


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    lengths: Tensor | None,
) -> Tensor:
    """(B, L, D); arguments are those of `ssamba.ops.causal_conv`."""
    out: Tensor = torch.ops.ssamba.causal_conv_triton.default(x, weight, bias, silu, reverse, lengths)
    return out


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
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, L, D), last state (B, D, N), and the state before each chunk (B, chunks, NP, D) if `save`."""
    if u.numel() == 0:
        out, last, borders = _scan_fake(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, initial_state, save
        )
        return out, last.zero_() if initial_state is None else last.copy_(initial_state), borders
    with on_device(u.device):
        scan = ScanLaunch(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths)
        return scan.forward(torch.empty(u.shape, dtype=u.dtype, device=u.device), initial_state, save)


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
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, channels), state = u.shape, A.shape[1]
    return (
        u.new_empty(u.shape),
        u.new_empty(batch, channels, state, dtype=torch.float32),
        u.new_empty(batch, count_chunks(length) if save else 0, power_of_two(state), channels, dtype=torch.float32),
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
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias (empty where the input is absent) and the initial state."""
    grads = _scan_backward_fake(
        grad_out, grad_last, borders, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths,
        initial_state,
    )  # fmt: skip
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = grads
    if u.numel() == 0:
        for grad in grads:
            grad.zero_()
        dinitial.copy_(grad_last)
        return grads
    with on_device(u.device):
        scan = ScanLaunch(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths)
        if borders.shape[1] == 0:
            # Nothing was saved: the forward pass saw no input that required a gradient.
            _, _, borders = scan.forward(torch.empty(u.shape, dtype=u.dtype, device=u.device), initial_state, True)
        sums = scan.backward(grad_out, grad_last, borders, du, ddelta, dz)
    for grad, total in zip((dA, dB, dC, dD, dbias, dinitial), sums, strict=True):
        if grad.numel():
            grad.copy_(total)
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
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = tuple(_like(x, u) for x in (u, delta, A, B, C, D, z, delta_bias))
    du, ddelta, dA, dB, dC, dD, dz, dbias = grads
    return du, ddelta, dA, dB, dC, dD, dz, dbias, torch.empty_like(grad_last, memory_format=torch.contiguous_format)


def _like(x: Tensor | None, other: Tensor) -> Tensor:
    """Uninitialized and contiguous, empty if `x` is None."""
    return other.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)


def _scan_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, lengths, initial_state, _ = inputs
    ctx.save_for_backward(output[2], u, delta, A, B, C, D, z, delta_bias, lengths, initial_state)
    ctx.options = delta_softplus, reverse


def _scan_autograd(ctx: Any, grad_out: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    borders, *inputs, lengths, initial_state = ctx.saved_tensors
    *grads, grad_initial = torch.ops.ssamba.selective_scan_triton_backward.default(
        grad_out, grad_last, borders, *inputs, *ctx.options, lengths, initial_state
    )
    present = [grad if x is not None else None for grad, x in zip(grads, inputs, strict=True)]
    initial = None if initial_state is None else grad_initial.to(initial_state.dtype)
    return (*present, None, None, None, initial, None)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, lengths: Tensor | None) -> Tensor:
    """The convolution (B, L, D)."""
    return x.new_empty(x.shape) if x.numel() == 0 else convolve(x, weight, bias, silu, reverse, lengths)


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
    """Gradients of x, weight and bias (empty if there is none)."""
    dx, dweight, dbias = grads = _conv_backward_fake(grad_out, x, weight, bias, silu, reverse, lengths)
    if x.numel() == 0:
        for grad in grads:
            grad.zero_()
        return grads
    weight_sum, bias_sum = convolve_backward(grad_out, x, weight, bias, silu, reverse, lengths, dx)
    dweight.copy_(weight_sum)
    if bias is not None:
        dbias.copy_(bias_sum)
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
    return _like(x, x), _like(weight, x), _like(bias, x)


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, silu, reverse, lengths = inputs
    ctx.save_for_backward(x, weight, bias, lengths)
    ctx.options = silu, reverse


def _conv_autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, lengths = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.ssamba.causal_conv_triton_backward.default(
        grad_out, x, weight, bias, *ctx.options, lengths
    )
    return dx, dweight, None if bias is None else dbias, None, None, None


def _register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> str:
    return register(schema, run, fake, "CUDA", "CPU")  # the CPU for the interpreter


_SCAN_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, bool reverse, Tensor? lengths, Tensor? initial_state"
)
_CONV_INPUTS = "Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse, Tensor? lengths"
_nine = ", ".join(["Tensor"] * 9)
_scan_name = _register(
    f"selective_scan_triton({_SCAN_INPUTS}, bool save) -> (Tensor, Tensor, Tensor)", _scan, _scan_fake
)
_register(
    f"selective_scan_triton_backward(Tensor grad_out, Tensor grad_last, Tensor borders, {_SCAN_INPUTS}) -> ({_nine})",
    _scan_backward,
    _scan_backward_fake,
)
_conv_name = _register(f"causal_conv_triton({_CONV_INPUTS}) -> Tensor", _conv, _conv_fake)
_register(
    f"causal_conv_triton_backward(Tensor grad_out, {_CONV_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _conv_backward,
    _conv_backward_fake,
)
torch.library.register_autograd(_scan_name, _scan_autograd, setup_context=_scan_setup, lib=library)
torch.library.register_autograd(_conv_name, _conv_autograd, setup_context=_conv_setup, lib=library)
