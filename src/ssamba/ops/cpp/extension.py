"""The C++ extension `_cpu`: load it, choose its instruction set and threads, and pass tensors to it.

The C++ (csrc/) is compiled once per instruction set, and the best one that this machine has is used; the environment
variable SSAMBA_CPU_CAPABILITY=generic|avx2|avx512 forces one. A missing or broken extension is a reason in
`available_backends()` and breaks nothing else; a wrong value of the variable is an error at the first call.

`kernels` is the extension's module, and is defined only if `why_missing()` is None.
"""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.errors import ConfigError

_VARIABLE = "SSAMBA_CPU_CAPABILITY"
_CAPABILITIES = ("generic", "avx2", "avx512")

DTYPES = (torch.float32, torch.bfloat16)
"""What kernels read and write where a tensor has a length; they take float32 everywhere else."""
Rows = tuple[int, int, int, bool]
"""A (B, L, channels) tensor: address, strides of B and L in elements, whether it is bfloat16."""
ABSENT: Rows = (0, 0, 0, False)
Sizes = tuple[int, int, int, int]
"""B, L, channels, and states or taps."""
Steps = tuple[Rows, int, int]
"""Delta, 0, 0; or its low-rank factor, the address of the factor's weights, the rank."""


class _Status(NamedTuple):
    """Set at import and read at every call: torch.compile can trace reading it, but not loading the extension."""

    missing: str | None  # why there is no extension
    capability: str
    misconfigured: str | None  # why the requested capability cannot be used


def why_missing() -> str | None:
    """Return why there is no extension; None if there is one."""
    return _status.missing


def capability() -> str:
    """Return the instruction set in use: the best that this machine has, or the one in SSAMBA_CPU_CAPABILITY.

    Raises:
        ConfigError: the variable names one that does not exist or cannot run here.
    """
    if _status.misconfigured is not None:
        raise ConfigError(_status.misconfigured)
    return _status.capability


def use_capability(name: str | None) -> None:
    """Switch to another instruction set in this process, or back to the best one (None). For tests and benchmarks."""
    global _status
    _status = _choose(name)
    capability()


def target() -> tuple[str, int]:
    """Return the first two arguments of every kernel call: instruction set and number of threads, PyTorch's."""
    if _status.misconfigured is not None:
        raise ConfigError(_status.misconfigured)
    return _status.capability, torch.get_num_threads()


def rows(x: Tensor) -> Rows:
    """Return address and strides of x (B, L, channels), whose last dimension is contiguous."""
    stride = x.stride()
    return x.data_ptr(), stride[0], stride[1], x.dtype == torch.bfloat16


def optional_rows(x: Tensor | None) -> Rows:
    """Return `rows(x)`, or `ABSENT` for None."""
    return ABSENT if x is None else rows(x)


def address(x: Tensor | None) -> int:
    """Return the address of the first element; 0 for None."""
    return 0 if x is None else x.data_ptr()


def in_rows(x: Tensor) -> Tensor:
    """Return x (B, L, channels) in float32 or bfloat16 with a contiguous last dimension, copied only if necessary."""
    x = x if x.dtype in DTYPES else x.float()
    return x if x.stride(2) == 1 else x.contiguous()


def dense(x: Tensor) -> Tensor:
    """Return `x` as contiguous float32, copied only if necessary."""
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()


def optional_dense(x: Tensor | None) -> Tensor | None:
    """Return `dense(x)`; None passes through."""
    return None if x is None else dense(x)


def float32(x: Tensor | None) -> Tensor | None:
    """Return `x` as float32; None passes through."""
    return x if x is None or x.dtype == torch.float32 else x.float()


def int64(lengths: Tensor | None) -> Tensor | None:
    """Return `lengths` as contiguous int64; None passes through."""
    return None if lengths is None else lengths.to(torch.int64).contiguous()


def _choose(forced: str | None) -> _Status:
    usable = kernels.capabilities()
    problem = None
    if forced and forced not in _CAPABILITIES:
        problem = f"{_VARIABLE} must be one of {', '.join(_CAPABILITIES)}, got {forced!r}"
    elif forced and forced not in usable:
        problem = f"{_VARIABLE}={forced} cannot run here; this machine and build have {', '.join(usable)}"
    return _Status(None, forced or usable[0], problem)


try:
    import ssamba.ops.cpp._cpu as _cpu
except ModuleNotFoundError:
    _status = _Status(
        "its C++ extension was not built when ssamba was installed; get a C++17 compiler and install ssamba again "
        "(pip install -v shows what is missing)",
        "",
        None,
    )
except ImportError as error:
    _status = _Status(f"its C++ extension cannot be loaded: {error}", "", None)
else:
    kernels = _cpu
    _status = _choose(os.environ.get(_VARIABLE))

# OpenMP's threads do not survive a fork. If the parent had used them, the next parallel region of the forked thread
# would wait for them forever, in PyTorch's operators as in ours. So a forked child starts with one thread, as PyTorch's
# data loader workers do; threads that the child starts itself may use more (`torch.set_num_threads`).
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))
