"""The one public selective scan: it checks its arguments and hands them to a backend.

Mamba's recurrence (Gu and Dao, 2023, arXiv:2312.00752, equation 2) with everything that surrounds it in
a block: softplus of delta + bias, the skip D, the SiLU gate z, and both directions of time.
Shapes: B batch, L tokens, D channels, N state size.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ssamba.ops.dispatch import resolve

Direction = Literal["forward", "reverse"]


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    direction: Direction = "forward",
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    direction: Direction = "forward",
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    direction: Direction = "forward",
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = (C_t . h_t + D u_t) * silu(z_t).

    Args:
        u: input (B, L, D).
        delta: step sizes before bias and softplus (B, L, D).
        A: state matrix's diagonal (D, N), usually negative.
        B: input projection (B, L, N).
        C: output projection (B, L, N).
        D: skip weight (D,).
        z: gate (B, L, D).
        delta_bias: added to delta (D,).
        delta_softplus: delta becomes softplus(delta + bias).
        direction: "reverse" runs from the last valid step to the first.
        lengths: valid steps of each sequence (B,), integers; outputs beyond are zero, and what stands in
            the inputs there (NaN included) reaches neither a valid output nor a gradient.
        initial_state: state before the first step (B, D, N).
        return_last_state: also return the state after the last valid step.
        backend: "auto", or a name from `available_backends()`.

    Returns:
        Output (B, L, D) in u's dtype; with `return_last_state` also the state (B, D, N), float32 for every
        input but float64 (then float64). Time and memory grow linearly with L.

    Raises:
        ValueError: a shape, dtype or device does not fit, or a name is unknown.
        BackendUnavailableError: the named backend cannot run here.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, lengths, initial_state)
    kernel = resolve(backend, u.device, u.dtype).selective_scan
    out, last_state = kernel(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, is_reverse(direction), lengths, initial_state
    )
    return (out, last_state) if return_last_state else out


def is_reverse(direction: str) -> bool:
    """True for "reverse", False for "forward", ValueError for anything else."""
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction must be 'forward' or 'reverse', got {direction!r}")
    return direction == "reverse"


def check_shape(name: str, tensor: Tensor | None, expected: tuple[int, ...], legend: str, like: Tensor) -> None:
    """ValueError unless `tensor` (None passes) is floating point of the expected shape on `like`'s device."""
    if tensor is None:
        return
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {legend} = {expected}, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but the input is on {like.device}: move one of them")


def check_lengths(lengths: Tensor | None, batch: int, limit: int) -> None:
    """ValueError unless `lengths` (None passes) holds `batch` integers in [0, limit]."""
    if lengths is None:
        return
    if tuple(lengths.shape) != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must hold {batch} integers, got shape {tuple(lengths.shape)} of {lengths.dtype}")
    # Reading values back from a GPU would stop its queue, and a traced graph has none to read.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > limit:
            raise ValueError(f"lengths must lie between 0 and {limit}, got values from {low} to {high}")


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if u.ndim != 3 or not u.is_floating_point():
        raise ValueError(f"u must be floating point (batch, length, channels), got {tuple(u.shape)} of {u.dtype}")
    if A.ndim != 2:
        raise ValueError(f"A must be (channels, state), got shape {tuple(A.shape)}")
    batch, length, channels = u.shape
    state = A.shape[1]
    check_shape("A", A, (channels, state), "(channels, state)", u)
    check_shape("delta", delta, (batch, length, channels), "(batch, length, channels)", u)
    check_shape("B", B, (batch, length, state), "(batch, length, state)", u)
    check_shape("C", C, (batch, length, state), "(batch, length, state)", u)
    check_shape("D", D, (channels,), "(channels,)", u)
    check_shape("z", z, (batch, length, channels), "(batch, length, channels)", u)
    check_shape("delta_bias", delta_bias, (channels,), "(channels,)", u)
    check_shape("initial_state", initial_state, (batch, channels, state), "(batch, channels, state)", u)
    check_lengths(lengths, batch, length)
