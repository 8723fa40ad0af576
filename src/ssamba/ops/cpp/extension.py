"""Loading the C++ extension, its instruction set, and its number of threads.

The C++ (csrc/) is compiled once per instruction set, and the best one that this machine has is used; the environment
variable SSAMBA_CPU_CAPABILITY=generic|avx2|avx512 forces one. A missing or broken extension is a reason in
`available_backends()` and breaks nothing else; a wrong variable is an error at the first call.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, NamedTuple

import torch

from ssamba.errors import ConfigError

_VARIABLE = "SSAMBA_CPU_CAPABILITY"
_CAPABILITIES = ("generic", "avx2", "avx512")


class _Found(NamedTuple):
    """What stands here. It is looked up once and read at every call: torch.compile can follow that, but not the look-up."""

    module: Any
    missing: str | None  # why there is no module
    capability: str
    misconfigured: str | None  # why the capability asked for cannot be had


def why_missing() -> str | None:
    """Why there is no extension; None if there is one."""
    return _found.missing


def module() -> Any:
    """The extension, only where `why_missing` is None."""
    assert _found.missing is None, _found.missing
    return _found.module


def capability() -> str:
    """The instruction set in use: the best that this machine has, or the one that SSAMBA_CPU_CAPABILITY names.

    Raises:
        ConfigError: the variable names one that does not exist or cannot run here.
    """
    if _found.misconfigured is not None:
        raise ConfigError(_found.misconfigured)
    return _found.capability


def use_capability(name: str | None) -> None:
    """Switch to another instruction set in this process, or back to the best one (None). For tests and benchmarks."""
    global _found
    _found = _choose(_found.module, name)
    capability()


def threads() -> int:
    """How many threads the kernels may use now: PyTorch's number, but one in a forked process."""
    return 1 if _forked else torch.get_num_threads()


def _look() -> _Found:
    try:
        loaded = importlib.import_module("ssamba.ops.cpp._cpu")
    except ModuleNotFoundError:
        return _Found(
            None,
            "its C++ extension was not built when ssamba was installed; get a C++17 compiler and install ssamba again "
            "(pip install -v shows what is missing)",
            "",
            None,
        )
    except ImportError as error:
        return _Found(None, f"its C++ extension cannot be loaded: {error}", "", None)
    return _choose(loaded, os.environ.get(_VARIABLE))


def _choose(loaded: Any, forced: str | None) -> _Found:
    usable: list[str] = loaded.capabilities()
    problem = None
    if forced and forced not in _CAPABILITIES:
        problem = f"{_VARIABLE} must be one of {', '.join(_CAPABILITIES)}, got {forced!r}"
    elif forced and forced not in usable:
        problem = f"{_VARIABLE}={forced} cannot run here; this machine and build have {', '.join(usable)}"
    return _Found(loaded, None, forced or usable[0], problem)


def _after_fork() -> None:
    global _forked
    _forked = True


_found = _look()

# OpenMP's threads do not survive a fork, and a child that waits for them hangs (data loaders fork). One thread needs none.
_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
