"""Loading the C++ extension, its instruction set, and its number of threads.

The C++ (csrc/) is compiled once per instruction set, and the best one that this machine has is used; the environment
variable SSAMBA_CPU_CAPABILITY=generic|avx2|avx512 forces one. The extension is loaded at first use, so a missing or broken
one shows up as a reason in `available_backends()` and breaks nothing else.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch

from ssamba.errors import ConfigError

_VARIABLE = "SSAMBA_CPU_CAPABILITY"
_CAPABILITIES = ("generic", "avx2", "avx512")


@functools.cache
def extension() -> ModuleType | str:
    """The extension module, or why there is none."""
    try:
        return importlib.import_module("ssamba.ops._cpu")
    except ModuleNotFoundError as error:
        if error.name != "ssamba.ops._cpu":
            raise
        return "its C++ extension was not built when ssamba was installed; get a C++17 compiler and install ssamba again (pip install -v shows what is missing)"
    except ImportError as error:
        return f"its C++ extension cannot be loaded: {error}"


def loaded() -> ModuleType:
    """The extension module; only where `extension` has found one."""
    module = extension()
    assert not isinstance(module, str), module
    return module


def use_capability(name: str | None) -> None:
    """Switch to another instruction set in this process, or back to the default (None). For tests and benchmarks."""
    capability.cache_clear()
    if name is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = name
    capability()


# OpenMP's threads do not survive a fork, and a child that waits for them hangs (data loaders fork). One thread needs none.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads the kernels may use now: PyTorch's number, but one in a forked process."""
    return 1 if _forked else torch.get_num_threads()


@functools.cache
def capability() -> str:
    """The instruction set in use: the best that this machine has, or the one that SSAMBA_CPU_CAPABILITY names.

    Raises:
        ConfigError: the variable names one that does not exist or cannot run here.
    """
    usable: list[str] = loaded().capabilities()
    forced = os.environ.get(_VARIABLE)
    if not forced:
        return usable[0]
    if forced not in _CAPABILITIES:
        raise ConfigError(f"{_VARIABLE} must be one of {', '.join(_CAPABILITIES)}, got {forced!r}")
    if forced not in usable:
        raise ConfigError(f"{_VARIABLE}={forced} cannot run here; this machine and build have {', '.join(usable)}")
    return forced
