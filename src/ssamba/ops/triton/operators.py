"""Selective scan and causal convolution on NVIDIA GPUs, in Triton: where they run, the operators, and their gradients.

One launch serves one direction: the two directions of a block read different inputs and weights, so a common launch
would save nothing but its own few microseconds, and would double every argument.

Shapes: B clips, L tokens, E channels, N states of a channel (NP: rounded up to a power of two), W taps.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssamba.ops.operators import (
    ConvInputs,
    ScanInputs,
    arguments_of,
    conv_gradients,
    flat,
    library,
    register,
    save_conv,
    save_scan,
    saved_conv,
    saved_scan,
    scan_gradients,
    tensors,
)
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
    """Return None if the kernels can run on inputs of `dtype` on `device`, else the reason."""
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


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Return the output (B, L, E) and the last state (B, E, N)."""
    differentiable = *inputs[:8], inputs.initial_state
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in differentiable)
    out, last_state, _ = torch.ops.ssamba.selective_scan_triton.default(*inputs, save)
    return out, last_state


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Return the convolution (B, L, E)."""
    out: Tensor = torch.ops.ssamba.causal_conv_triton.default(*inputs)
    return out


def _scan(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return output (B, L, E), last state (B, E, N), and the state before each chunk (B, chunks, NP, E) if `save`."""
    u, initial_state = inputs.u, inputs.initial_state
    if u.numel() == 0:
        out, last, chunk_states = _scan_fake(inputs, save)
        return out, last.zero_() if initial_state is None else last.copy_(initial_state), chunk_states
    with on_device(u.device):
        return ScanLaunch(inputs).forward(torch.empty(u.shape, dtype=u.dtype, device=u.device), initial_state, save)


def _scan_fake(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    u, (batch, length, channels), state = inputs.u, inputs.u.shape, inputs.A.shape[1]
    return (
        u.new_empty(u.shape),
        u.new_empty(batch, channels, state, dtype=torch.float32),
        u.new_empty(batch, count_chunks(length) if save else 0, power_of_two(state), channels, dtype=torch.float32),
    )


def _scan_backward(grad_out: Tensor, grad_last: Tensor, chunk_states: Tensor, inputs: ScanInputs) -> tuple[Tensor, ...]:
    """Return gradients of u, delta, A, B, C, D, z, delta_bias (empty for absent inputs) and the initial state."""
    u = inputs.u
    grads = du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = _scan_backward_fake(
        grad_out, grad_last, chunk_states, inputs
    )
    if u.numel() == 0:
        for grad in grads:
            grad.zero_()
        dinitial.copy_(grad_last)
        return grads
    with on_device(u.device):
        scan = ScanLaunch(inputs)
        if chunk_states.shape[1] == 0:
            # Nothing was saved: the forward pass saw no input that required a gradient.
            out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
            _, _, chunk_states = scan.forward(out, inputs.initial_state, True)
        sums = scan.backward(grad_out, grad_last, chunk_states, du, ddelta, dz)
    for grad, total in zip((dA, dB, dC, dD, dbias, dinitial), sums, strict=True):
        if grad.numel():
            grad.copy_(total)
    return grads


def _scan_backward_fake(
    grad_out: Tensor, grad_last: Tensor, chunk_states: Tensor, inputs: ScanInputs
) -> tuple[Tensor, ...]:
    return *(_like(x, inputs.u) for x in inputs[:8]), _like(grad_last, grad_last)


def _like(x: Tensor | None, other: Tensor) -> Tensor:
    """Return an uninitialized, contiguous tensor like `x`, empty if it is None."""
    return other.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)


def _scan_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    record = ScanInputs(*inputs[:-1])
    save_scan(ctx, record, output[2], record.initial_state)


def _scan_autograd(ctx: Any, grad_out: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    chunk_states, inputs = saved_scan(ctx)
    backward = torch.ops.ssamba.selective_scan_triton_backward.default
    return *scan_gradients(ctx, inputs, backward(grad_out, grad_last, chunk_states, *inputs)), None


def _conv(inputs: ConvInputs) -> Tensor:
    return _conv_fake(inputs) if inputs.x.numel() == 0 else convolve(inputs)


def _conv_fake(inputs: ConvInputs) -> Tensor:
    return inputs.x.new_empty(inputs.x.shape)


def _conv_backward(grad_out: Tensor, inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of x, weight and bias (empty if there is none)."""
    grads = dx, dweight, dbias = _conv_backward_fake(grad_out, inputs)
    if inputs.x.numel() == 0:
        for grad in grads:
            grad.zero_()
        return grads
    weight_sum, bias_sum = convolve_backward(grad_out, inputs, dx)
    dweight.copy_(weight_sum)
    if inputs.bias is not None:
        dbias.copy_(bias_sum)
    return grads


def _conv_backward_fake(grad_out: Tensor, inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor]:
    return _like(inputs.x, inputs.x), _like(inputs.weight, inputs.x), _like(inputs.bias, inputs.x)


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save_conv(ctx, ConvInputs(*inputs))


def _conv_autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    inputs = saved_conv(ctx)
    return conv_gradients(inputs, torch.ops.ssamba.causal_conv_triton_backward.default(grad_out, *inputs))


def _register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> str:
    return register(schema, run, fake, "CUDA", "CPU")  # the CPU for the interpreter


_scan_name = _register(
    f"selective_scan_triton({arguments_of(ScanInputs)}, bool save) -> {tensors(3)}",
    flat(_scan, ScanInputs),
    flat(_scan_fake, ScanInputs),
)
_register(
    "selective_scan_triton_backward(Tensor grad_out, Tensor grad_last, Tensor borders, "
    f"{arguments_of(ScanInputs)}) -> {tensors(9)}",
    flat(_scan_backward, ScanInputs, 3),
    flat(_scan_backward_fake, ScanInputs, 3),
)
_conv_name = _register(
    f"causal_conv_triton({arguments_of(ConvInputs)}) -> Tensor", flat(_conv, ConvInputs), flat(_conv_fake, ConvInputs)
)
_register(
    f"causal_conv_triton_backward(Tensor grad_out, {arguments_of(ConvInputs)}) -> {tensors(3)}",
    flat(_conv_backward, ConvInputs, 1),
    flat(_conv_backward_fake, ConvInputs, 1),
)
torch.library.register_autograd(_scan_name, _scan_autograd, setup_context=_scan_setup, lib=library)
torch.library.register_autograd(_conv_name, _conv_autograd, setup_context=_conv_setup, lib=library)
