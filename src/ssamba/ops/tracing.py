"""Whether PyTorch looks on: operators must then be called as such, not what stands behind them."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """True where PyTorch compiles, exports, traces or transforms what runs, or something (a FLOP counter) sees each operator."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )
