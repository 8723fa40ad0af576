"""Which implementations of the operators exist, which can run here, and which one `auto` picks.

A backend is one module that implements every operator over validated arguments. They stand in one
table in the order of preference; `resolve` is asked at each call, never at import, so moving a model to
another device or forcing a backend takes effect at once. A backend that is named explicitly and cannot
run raises with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssamba.errors import BackendUnavailableError
from ssamba.ops import eager, reference
from ssamba.ops.cpp import conv as cpu_conv
from ssamba.ops.cpp import mixer as cpu_mixer
from ssamba.ops.cpp import scan as cpu
from ssamba.ops.triton import operators as triton


class ScanKernel(Protocol):
    """The selective scan over validated arguments; returns output (B, L, D) and last state (B, D, N)."""

    def __call__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        reverse: bool,
        lengths: Tensor | None,
        initial_state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Run it."""
        ...


class ConvKernel(Protocol):
    """The depthwise causal convolution over validated arguments; returns (B, L, D)."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        silu: bool,
        reverse: bool,
        lengths: Tensor | None,
    ) -> Tensor:
        """Run it."""
        ...


class MixerKernel(Protocol):
    """The whole bidirectional mixer over validated arguments; returns (B, L, D)."""

    def __call__(
        self,
        hidden: Tensor,
        in_weight: Tensor,
        out_weight: Tensor,
        ahead: tuple[Tensor, ...],
        behind: tuple[Tensor, ...],
        lengths: Tensor | None,
        reversed_time: bool,
    ) -> Tensor:
        """Run it."""
        ...


class IntoKernel(Protocol):
    """Norm and mixer without gradients, into memory that is there; see `ssamba.ops.mix_into`."""

    def __call__(
        self,
        out: Tensor,
        stream: Tensor,
        norm: tuple[Tensor, Tensor, float],
        in_weight: Tensor,
        out_weight: Tensor,
        ahead: tuple[Tensor, ...],
        behind: tuple[Tensor, ...],
        lengths: Tensor | None,
        reversed_time: bool,
        accumulate: bool,
    ) -> None:
        """Run it."""
        ...


@dataclass(frozen=True)
class Backend:
    """One implementation. `why_not(device, dtype)` is None where it can run, else the reason."""

    name: str
    why_not: Callable[[torch.device, torch.dtype], str | None]
    selective_scan: ScanKernel
    causal_conv: ConvKernel
    bimamba_mixer: MixerKernel | None = None
    """None: `ssamba.ops.mixer.compose` puts it together from the other two."""
    mix_into: IntoKernel | None = None
    """None: it has none."""
    automatic: bool = True
    automatic_on: str | None = None
    """The only type of device where `auto` picks it; None: any."""

    def is_automatic(self, device: torch.device) -> bool:
        """Whether `auto` may pick it on `device`."""
        return self.automatic and self.automatic_on in (None, device.type)


@dataclass(frozen=True)
class BackendStatus:
    """What `available_backends` says of one backend."""

    name: str
    available: bool
    chosen: bool
    reason: str


def _runs_everywhere(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


# In the order of preference: `auto` takes the first automatic one that can run on the tensors' device.
_BACKENDS: tuple[Backend, ...] = (
    Backend("triton", triton.why_not, triton.selective_scan, triton.causal_conv, automatic_on="cuda"),
    Backend("cpp", cpu.why_not, cpu.selective_scan, cpu_conv.causal_conv, cpu_mixer.bimamba_mixer, cpu_mixer.mix_into),
    Backend("eager", _runs_everywhere, eager.selective_scan, eager.causal_conv),
    Backend("reference", _runs_everywhere, reference.selective_scan, reference.causal_conv, automatic=False),
)


def resolve(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend called `name`, or the one that `auto` picks for inputs of `dtype` on `device`.

    Raises:
        ValueError: no backend has that name.
        BackendUnavailableError: it exists and cannot run there; the message says why.
    """
    if name == "auto":
        return next(b for b in _BACKENDS if b.is_automatic(device) and b.why_not(device, dtype) is None)
    for backend in _BACKENDS:
        if backend.name == name:
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
    """Every backend, whether it can run there, which one `auto` picks, and why not the others."""
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
            note = "only when asked for by name: the slow oracle of the tests"
        elif not backend.is_automatic(device):
            note = f"only when asked for by name: on {device.type} it is for tests"
        else:
            note = f"can run; {chosen} is preferred"
        statuses.append(BackendStatus(backend.name, reason is None, backend.name == chosen, note))
    return statuses
