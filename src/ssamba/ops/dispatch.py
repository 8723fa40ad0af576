"""Which backends implement the operators, which of them can run here, and which one `auto` picks.

A backend is a set of functions, each of which takes one record of validated inputs. `_BACKENDS` lists them in order
of preference. `resolve` runs at every call, so moving a model to another device takes effect at once. Only the
operators take `backend=`; models always use `auto`. Requesting a backend that cannot run raises an error that says why.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from functools import cache

import torch

from ssamba.errors import BackendUnavailableError
from ssamba.ops import eager, reference, self_check
from ssamba.ops.cpp import conv as cpp_conv
from ssamba.ops.cpp import extension
from ssamba.ops.cpp import mixer as cpp_mixer
from ssamba.ops.cpp import scan as cpp_scan
from ssamba.ops.operators import Backend
from ssamba.ops.triton import operators as triton

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendStatus:
    """Whether one backend can run, whether `auto` picks it, and why or why not."""

    name: str
    available: bool
    chosen: bool
    reason: str


def _runs_everywhere(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


# In the order of preference: `auto` takes the first automatic one that can run on the tensors' device.
_BACKENDS: tuple[Backend, ...] = (
    Backend("triton", triton.why_not, triton.selective_scan, triton.causal_conv, automatic_on="cuda", needs_check=True),
    Backend(
        "cpp",
        cpp_scan.why_not,
        cpp_scan.selective_scan,
        cpp_conv.causal_conv,
        cpp_mixer.bimamba_mixer,
        cpp_mixer.mix_into,
    ),
    Backend("eager", _runs_everywhere, eager.selective_scan, eager.causal_conv),
    Backend("reference", _runs_everywhere, reference.selective_scan, reference.causal_conv, automatic=False),
)


def resolve(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend called `name`, or the one that `auto` picks for inputs of `dtype` on `device`.

    Raises:
        ValueError: no backend has that name.
        BackendUnavailableError: the backend exists and cannot run there; the message says why.
    """
    for backend in _BACKENDS:
        if name == "auto":
            runs = backend.is_automatic(device) and backend.why_not(device, dtype) is None
            if runs and not (backend.needs_check and _problem(backend.name, device, dtype)):
                return backend
        elif backend.name == name:
            reason = backend.why_not(device, dtype)
            if reason is not None:
                raise BackendUnavailableError(
                    f"backend={name!r} cannot run on {device} with {dtype}: {reason}. "
                    "Use backend='auto', or see ssamba.ops.available_backends()."
                )
            return backend
    known = ", ".join(["auto", *(b.name for b in _BACKENDS)])
    raise ValueError(f"unknown backend {name!r}: expected one of {known}")


def _problem(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    return self_check.problem(next(b for b in _BACKENDS if b.name == name), device, dtype)


# A traced call asks while it is traced. `torch.compiler.assume_constant_result` sets this, and imports the compiler.
_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]


def available_backends(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> list[BackendStatus]:
    """Return, for every backend, whether it can run on `device`, whether `auto` picks it, and why or why not."""
    device = torch.device(device)
    chosen = resolve("auto", device, dtype).name
    statuses = []
    for backend in _BACKENDS:
        reason = backend.why_not(device, dtype)
        if backend.name == chosen:
            note = f"used on {device} by default"
        elif reason is not None:
            note = reason
        elif not backend.automatic:
            note = "only on request: slow, for tests"
        elif not backend.is_automatic(device):
            note = f"only on request: on {device.type} it is for tests"
        elif backend.needs_check and (problem := _problem(backend.name, device, dtype)) is not None:
            note = f"only on request: {problem}"
        else:
            note = f"can run; {chosen} is preferred"
        statuses.append(BackendStatus(backend.name, reason is None, backend.name == chosen, note))
    return statuses


@cache
def warn_without_kernels() -> None:
    """Log once that the C++ kernels are missing, and why, unless there is a GPU, which does without them."""
    reason = cpp_scan.why_not(torch.device("cpu"), torch.float32)
    if reason is not None and not torch.cuda.is_available():
        _log.warning("plain PyTorch computes, several times slower than the kernels of ssamba: %s", reason)


@dataclass(frozen=True)
class BackendCheck:
    """What the test of one backend on one device with inputs of one dtype found."""

    name: str
    """The backend, with the instruction set where it has several."""
    dtype: torch.dtype
    outcome: self_check.Outcome


def check_backends(device: torch.device | str = "cpu") -> list[BackendCheck]:
    """Compare every backend that can run on `device` with exact results, forward and backward, in each dtype.

    Each instruction set of the C++ kernels counts as a backend. What `auto` goes by is renewed.
    """
    device, found = torch.device(device), []
    for backend, dtype in itertools.product(_BACKENDS, self_check.TOLERANCES):
        if not backend.automatic or backend.why_not(device, dtype) is not None:
            continue
        if backend.name == "cpp":
            before = extension.capability()
            for capability in extension.kernels.capabilities():
                extension.use_capability(capability)
                outcome = self_check.examine(backend, device, dtype)
                found.append(BackendCheck(f"{backend.name} {capability}", dtype, outcome))
            extension.use_capability(before)
        else:
            outcome = self_check.examine(backend, device, dtype)
            if backend.needs_check:
                self_check.remember(backend, device, dtype, outcome)
            found.append(BackendCheck(backend.name, dtype, outcome))
    return found
