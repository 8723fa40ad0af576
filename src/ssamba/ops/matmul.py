"""Float32 matrix products on CPUs: PyTorch's usual ones (MKL), or oneDNN's where those are slow.

PyTorch multiplies float32 with MKL, which uses only AVX2 on processors that are not Intel's; oneDNN, which PyTorch
contains too (and uses for bfloat16), uses AVX-512 there: 250 instead of 105 GFLOP/s on one core of an AMD EPYC (Zen 5).
So AMD processors with AVX-512 use oneDNN for products that are worth its start; small products, other processors and
other dtypes go to PyTorch as usual. The environment variable SSAMBA_CPU_PRODUCTS=mkl|onednn forces one.

Matrices here are named by what they multiply: a (rows, inner), b (columns, inner), their product a b^T (rows, columns).
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
_MIN_WORK = 2**20
"""rows * inner * columns below which oneDNN's start costs more than it saves."""
_MIN_ROWS = 32
"""Rows below which it costs more: oneDNN lays out the weight anew for each product."""
_PIECE_ELEMENTS = 2**21
"""Elements of a result that is copied; the system takes back larger memory and zeroes it each time."""


def library() -> Library:
    """Return the library that multiplies float32 on this machine's CPU.

    Raises:
        ConfigError: SSAMBA_CPU_PRODUCTS names something else.
    """
    if _library not in ("mkl", "onednn"):
        raise ConfigError(f"{_VARIABLE}={_library!r}: expected mkl or onednn, or leave it unset")
    return _library


def use_library(name: Library | None) -> None:
    """Switch to a library in this process, or back to the best one here (None). For tests and benchmarks."""
    global _library
    _library = _choose() if name is None else name
    library()


def matmul_t(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a b^T (rows, columns), in `out` if given, without a gradient; all may be transposed views."""
    if out is None:
        new = onednn_matmul_t(a, b)
        return a @ b.t() if new is None else new
    if _uses_onednn(a, b):
        rows = max(_MIN_ROWS, _PIECE_ELEMENTS // b.shape[0])
        for first in range(0, len(a), rows):
            out[first : first + rows].copy_(_onednn(a[first : first + rows], b, None))
    else:
        torch.mm(a, b.t(), out=out)
    return out


def onednn_matmul_t(a: Tensor, b: Tensor) -> Tensor | None:
    """Return a b^T if oneDNN computes it, which always allocates its result; else None."""
    return _onednn(a, b, None) if _uses_onednn(a, b) else None


def add_matmul_t(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b^T to `out` (rows, columns), without a gradient; all of one dtype."""
    if _uses_onednn(a, b):
        out.add_(_onednn(a, b, None))
    else:
        torch.addmm(out, a, b.t(), out=out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `torch.nn.functional.linear` with the faster library; x (..., inner), weight (columns, inner)."""
    # A compiled or exported model has to run on any machine.
    if is_traced() or not _uses_onednn(x, weight) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., inner) -> (..., columns)."""
        return linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """x weight^T + bias; its gradients are such products themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_x = linear(grad, weight.t()) if needs_x else None
        grad_weight = linear(rows.t(), x.flatten(0, -2).t()) if needs_weight else None
        return grad_x, grad_weight, rows.sum(0) if ctx.has_bias and needs_bias else None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


def _uses_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        library() == "onednn"
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.dim() > 1
        and x.numel() * weight.shape[0] >= _MIN_WORK
        and x.numel() >= _MIN_ROWS * weight.shape[1]
    )


def _choose() -> Library:
    forced: Any = os.environ.get(_VARIABLE)
    if forced:
        return forced  # type: ignore[no-any-return]
    has_mkl, has_onednn = torch.backends.mkl.is_available(), torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    is_better = has_mkl and has_onednn and has_avx512 and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return "onednn" if is_better and _is_amd() else "mkl"


def _is_amd() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = platform.processor()  # names the vendor on Windows
    return "AuthenticAMD" in text


_library: Library = _choose()
