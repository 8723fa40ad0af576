"""Which backends implement the operators, which of them can run here, and which one `auto` picks.

A backend is a set of functions, each of which takes one record of validated inputs. `_BACKENDS` lists them in order
of preference. `resolve` runs at every call, so moving a model to another device takes effect at once. Only the
operators take `backend=`; models always use `auto`. Requesting a backend that cannot run raises an error that says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssamba.errors import BackendUnavailableError
from ssamba.ops import eager, reference
from ssamba.ops.cpp import conv as cpp_conv
from ssamba.ops.cpp import mixer as cpp_mixer
from ssamba.ops.cpp import scan as cpp_scan
from ssamba.ops.operators import ConvInputs, MixerInputs, ScanInputs
from ssamba.ops.triton import operators as triton


@dataclass(frozen=True)
class Backend:
    """One implementation of the operators."""

    name: str
    why_not: Callable[[torch.device, torch.dtype], str | None]
    """None if the backend can run with inputs of this dtype on this device, else the reason why not."""
    selective_scan: Callable[[ScanInputs], tuple[Tensor, Tensor]]
    """Returns the output (B, L, E) and the last state (B, E, N)."""
    causal_conv: Callable[[ConvInputs], Tensor]
    """Returns (B, L, E)."""
    bimamba_mixer: Callable[[MixerInputs], Tensor] | None = None
    """Returns (B, L, D); None: `ssamba.ops.mixer.compose` builds the mixer from the other two."""
    mix_into: Callable[[Tensor, tuple[Tensor, Tensor, float], MixerInputs, bool], None] | None = None
    """Takes out, norm, inputs and accumulate of `ssamba.ops.mixer.mix_into`; None: not implemented."""
    automatic: bool = True
    automatic_on: str | None = None
    """The only type of device where `auto` picks it; None: any."""

    def is_automatic(self, device: torch.device) -> bool:
        """Return True if `auto` may pick this backend on `device`."""
        return self.automatic and (self.automatic_on is None or self.automatic_on == device.type)


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
    Backend("triton", triton.why_not, triton.selective_scan, triton.causal_conv, automatic_on="cuda"),
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
            if backend.is_automatic(device) and backend.why_not(device, dtype) is None:
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
        else:
            note = f"can run; {chosen} is preferred"
        statuses.append(BackendStatus(backend.name, reason is None, backend.name == chosen, note))
    return statuses
