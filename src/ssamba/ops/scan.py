"""The public selective scan: validate the arguments, choose a backend, run it.

Mamba's recurrence (Gu and Dao, 2023, arXiv:2312.00752, equation 2) together with what surrounds it in a block: softplus
of delta + bias, the skip connection D, the SiLU gate z, and both directions of time.
Shapes: B clips, L tokens, E channels, N states of a channel.
"""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from ssamba.ops.dispatch import resolve
from ssamba.ops.operators import Direction, ScanInputs, check_lengths, check_shape, is_reverse


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
    """Compute h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = (C_t . h_t + D u_t) * silu(z_t).

    Args:
        u: input (B, L, E).
        delta: step sizes before bias and softplus (B, L, E).
        A: diagonal of the state matrix (E, N), usually negative.
        B: input projection (B, L, N).
        C: output projection (B, L, N).
        D: weight of the skip connection (E,).
        z: gate (B, L, E).
        delta_bias: added to delta (E,).
        delta_softplus: whether delta becomes softplus(delta + bias).
        direction: "reverse" runs from the last valid step to the first.
        lengths: valid steps of each sequence (B,), integers; outputs beyond them are zero, and inputs beyond them
            (NaN included) reach neither a valid output nor a gradient.
        initial_state: state before the first step (B, E, N).
        return_last_state: also return the state after the last valid step.
        backend: "auto", "triton", "cpp", "eager" or "reference"; `available_backends()` says which can run here.

    Returns:
        Output (B, L, E) in u's dtype; with `return_last_state` also the state (B, E, N), float32 for every
        input but float64 (then float64). Time and memory grow linearly with L.

    Raises:
        ValueError: a shape, dtype or device does not fit, or a name is unknown.
        BackendUnavailableError: the named backend cannot run here.
    """
    inputs = ScanInputs(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, is_reverse(direction), lengths, initial_state
    )
    _check(inputs)
    out, last_state = resolve(backend, u.device, u.dtype).selective_scan(inputs)
    return (out, last_state) if return_last_state else out


def _check(inputs: ScanInputs) -> None:
    u, A = inputs.u, inputs.A
    if u.ndim != 3 or not u.is_floating_point():
        raise ValueError(f"u must be floating point (batch, length, channels), got {tuple(u.shape)} of {u.dtype}")
    if A.ndim != 2:
        raise ValueError(f"A must be (channels, state), got shape {tuple(A.shape)}")
    batch, length, channels = u.shape
    state = A.shape[1]
    check_shape("A", A, (channels, state), "(channels, state)", u)
    check_shape("delta", inputs.delta, (batch, length, channels), "(batch, length, channels)", u)
    check_shape("B", inputs.B, (batch, length, state), "(batch, length, state)", u)
    check_shape("C", inputs.C, (batch, length, state), "(batch, length, state)", u)
    check_shape("D", inputs.D, (channels,), "(channels,)", u)
    check_shape("z", inputs.z, (batch, length, channels), "(batch, length, channels)", u)
    check_shape("delta_bias", inputs.delta_bias, (channels,), "(channels,)", u)
    check_shape("initial_state", inputs.initial_state, (batch, channels, state), "(batch, channels, state)", u)
    check_lengths(inputs.lengths, batch, length)
