"""Matrix products in float32 on CPUs: PyTorch's usual ones, or oneDNN's where those are slow.

PyTorch multiplies float32 by MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN, which PyTorch brings as well
(and takes for bfloat16), uses AVX-512 there: 250 instead of 105 GFLOP/s on one core of an AMD EPYC (Zen 5). So oneDNN is taken on
AMD processors with AVX-512, for products that are worth its start (small ones, other processors and dtypes: as usual). The
environment variable SSAMBA_CPU_PRODUCTS=mkl|onednn forces one.

Shapes: M rows, I inner, O columns.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.errors import ConfigError
from ssamba.ops.operators import is_traced

Library = Literal["mkl", "onednn"]
_VARIABLE = "SSAMBA_CPU_PRODUCTS"
_SMALLEST = 2**20  # M I O below which oneDNN's start costs more than it saves
_PIECE = (
    2**21
)  # elements of a result that is copied on: larger memory goes back to the system, which zeroes it each time
_FEWEST_ROWS = 32  # M, likewise: it lays the weight out anew for each product


def library() -> Library:
    """What multiplies float32 on this machine's CPU.

    Raises:
        ConfigError: SSAMBA_CPU_PRODUCTS names something else.
    """
    if _library not in ("mkl", "onednn"):
        raise ConfigError(f"{_VARIABLE}={_library!r}: expected mkl or onednn, or leave it unset")
    return _library


def use_library(name: Library | None) -> None:
    """Switch in this process, or back to what is best here (None). For tests and benchmarks."""
    global _library
    _library = _choose() if name is None else name
    library()


def made_new(a: Tensor, weight: Tensor) -> Tensor | None:
    """a (M, I) weight (O, I)^T, (M, O), where it comes in new memory anyway (oneDNN makes it so), else None."""
    return _onednn(a, weight, None) if _takes_onednn(a, weight) else None


def made(a: Tensor, weight: Tensor) -> Tensor:
    """a (M, I) weight (O, I)^T in new memory, (M, O), without a gradient; any of them may be a transposed view."""
    new = made_new(a, weight)
    return a @ weight.t() if new is None else new


def product(a: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (M, O) = a (M, I) weight (O, I)^T, without a gradient, all of one dtype; any of them may be a transposed view."""
    if _takes_onednn(a, weight):
        rows = max(_FEWEST_ROWS, _PIECE // weight.shape[0])
        for first in range(0, len(a), rows):
            out[first : first + rows].copy_(_onednn(a[first : first + rows], weight, None))
    else:
        torch.mm(a, weight.t(), out=out)


def add_product(out: Tensor, a: Tensor, weight: Tensor) -> None:
    """out (M, O) += a (M, I) weight (O, I)^T, without a gradient; all of one dtype."""
    if _takes_onednn(a, weight):
        out.add_(_onednn(a, weight, None))
    else:
        torch.addmm(out, a, weight.t(), out=out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by the library that is quicker here; x (..., I), weight (O, I), bias (O,) -> (..., O)."""
    if (
        is_traced()  # a compiled or exported model is to run anywhere
        or not _takes_onednn(x, weight)
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """x weight^T + bias, and its gradients, which are such products themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_x = linear(grad, weight.t()) if wants_x else None
        grad_weight = linear(rows.t(), x.flatten(0, -2).t()) if wants_weight else None
        return grad_x, grad_weight, rows.sum(0) if ctx.has_bias and wants_bias else None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        library() == "onednn"
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.dim() > 1
        and x.numel() * weight.shape[0] >= _SMALLEST
        and x.numel() >= _FEWEST_ROWS * weight.shape[1]
    )


def _choose() -> Library:
    asked: Any = os.environ.get(_VARIABLE)
    if asked:
        return asked  # type: ignore[no-any-return]
    has_mkl, has_onednn = torch.backends.mkl.is_available(), torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    is_wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    is_better = has_mkl and has_onednn and is_wide and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return "onednn" if is_better and _is_amd() else "mkl"


def _is_amd() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = platform.processor()  # Windows says it there
    return "AuthenticAMD" in text


_library: Library = _choose()
