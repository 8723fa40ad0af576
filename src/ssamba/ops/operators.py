"""Ours among PyTorch's operators: how they are registered, and when they must be called as such, not what stands behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Registered on a Library rather than by `custom_op`, whose checks around each call cost more than a launch.
library: Any = torch.library.Library("ssamba", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any], *devices: str) -> str:
    """Make `run` the operator of that schema on `devices`, `fake` what it returns, unfilled. Returns its full name."""
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in devices:
        library.impl(name, run, device)
    torch.library.register_fake(f"ssamba::{name}", fake, lib=library)
    return f"ssamba::{name}"


def is_traced() -> bool:
    """True where PyTorch compiles, exports, traces or transforms what runs, or something (a FLOP counter) sees each operator."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )
