"""The whole bidirectional mixer as one operator: what a BiMamba block does between its norm and its residual.

    x, z = split(W_in hidden)
    of each direction d:   x_d = silu(conv_d(x))    low, B, C = split(W_x x_d)    y_d = scan(x_d, W_delta low, A, B, C) + D x_d
    out = W_out ((y_ahead + y_behind) / 2 * silu(z))

(Zhu et al., 2024, arXiv:2401.09417, algorithm 1, with Vision Mamba's halving.) `compose` puts it together from the operators of
any backend, and is what a fused one is tested against; a backend that has a fused one is used where it can run.

Shapes: B batch, L tokens, D channels outside, E inside, N states, R rank of delta, K taps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.ops.conv import causal_conv
from ssamba.ops.dispatch import resolve
from ssamba.ops.matmul import linear
from ssamba.ops.operators import is_traced
from ssamba.ops.scan import Direction, check_lengths, check_shape, selective_scan


class DirectionWeights(NamedTuple):
    """What one direction of time has for itself."""

    conv_weight: Tensor
    """(E, K)."""
    conv_bias: Tensor
    """(E,)."""
    x_weight: Tensor
    """To delta's factor, B and C: (R + 2 N, E)."""
    dt_weight: Tensor
    """From delta's factor to delta: (E, R)."""
    dt_bias: Tensor
    """(E,)."""
    A_log: Tensor
    """A = -exp(A_log), (E, N)."""
    D: Tensor
    """(E,)."""


def bimamba_mixer(
    hidden: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    ahead: DirectionWeights,
    behind: DirectionWeights,
    *,
    lengths: Tensor | None = None,
    reversed_time: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Mix tokens in both directions of time.

    Args:
        hidden: (B, L, D).
        in_weight: (2 E, D), the stream's rows first, then the gate's.
        out_weight: (D, E).
        ahead: weights of the direction that runs forward.
        behind: weights of the one that runs from the last valid step to the first.
        lengths: valid steps of each sequence (B,); outputs beyond are zero. What stands there must be finite where a
            gradient is wanted.
        reversed_time: both directions the other way round: what flipping input and output along L would give.
        backend: "auto", or a name from `available_backends()`.

    Returns:
        (B, L, D) in hidden's dtype, or autocast's.

    Raises:
        ValueError: a shape, dtype or device does not fit, or a name is unknown.
        BackendUnavailableError: the named backend cannot run here.
    """
    if hidden.ndim != 3 or not hidden.is_floating_point():
        raise ValueError(
            f"hidden must be floating point (batch, length, channels), got {tuple(hidden.shape)} of {hidden.dtype}"
        )
    channels, inner = hidden.shape[2], out_weight.shape[1]
    check_shape("in_weight", in_weight, (2 * inner, channels), "(2 inner, channels)", hidden)
    check_shape("out_weight", out_weight, (channels, inner), "(channels, inner)", hidden)
    for side in (ahead, behind):
        rank, state = side.dt_weight.shape[1], side.A_log.shape[1]
        check_shape("x_weight", side.x_weight, (rank + 2 * state, inner), "(rank + 2 state, inner)", hidden)
        check_shape("dt_weight", side.dt_weight, (inner, rank), "(inner, rank)", hidden)
        check_shape("A_log", side.A_log, (inner, state), "(inner, state)", hidden)
        check_shape("conv_weight", side.conv_weight, (inner, side.conv_weight.shape[1]), "(inner, taps)", hidden)
        for name, vector in (("conv_bias", side.conv_bias), ("dt_bias", side.dt_bias), ("D", side.D)):
            check_shape(name, vector, (inner,), "(inner,)", hidden)
    for name in ("conv_weight", "dt_weight", "A_log"):
        shape = tuple(getattr(ahead, name).shape)
        check_shape(f"behind's {name}", getattr(behind, name), shape, "as ahead's", hidden)
    check_lengths(lengths, hidden.shape[0], hidden.shape[1])
    dtype = mixing_dtype(hidden)
    fused = resolve(backend, hidden.device, dtype).bimamba_mixer
    if fused is None:
        return compose(
            hidden,
            in_weight,
            out_weight,
            ahead,
            behind,
            lengths=lengths,
            reversed_time=reversed_time,
            scan=lambda *inputs, **options: selective_scan(*inputs, **options, backend=backend),
            conv=lambda *inputs, **options: causal_conv(*inputs, **options, backend=backend),
        )
    return fused(hidden.to(dtype), in_weight.to(dtype), out_weight.to(dtype), ahead, behind, lengths, reversed_time)


def can_mix_into(stream: Tensor) -> bool:
    """Whether `mix_into` may take the place of norm, mixer and addition for such a residual stream, here and now."""
    if torch.is_grad_enabled() or is_traced():
        return False
    return resolve("auto", stream.device, mixing_dtype(stream)).mix_into is not None


def mix_into(
    out: Tensor,
    stream: Tensor,
    norm: tuple[Tensor, Tensor, float],
    in_weight: Tensor,
    out_weight: Tensor,
    ahead: DirectionWeights,
    behind: DirectionWeights,
    *,
    lengths: Tensor | None = None,
    reversed_time: bool = False,
    accumulate: bool = False,
) -> None:
    """out = bimamba_mixer(layer_norm(stream)), or out += that with `accumulate`; out may be the stream itself.

    For inference, where `can_mix_into`: between blocks nothing new is allocated. (Fresh memory costs the first touch of every page;
    over long recordings that was a sixth of the time.)

    Args:
        out: (B, L, D), contiguous; or (M, D), clips of different lengths one behind the other, without padding.
        stream: as `out`.
        norm: weight and bias (D,) and epsilon of the LayerNorm.
        in_weight, out_weight, ahead, behind, reversed_time: as `bimamba_mixer`, of fitting shapes.
        lengths: valid steps of each sequence (B,), or None; of clips one behind the other, their lengths, M in sum.
        accumulate: add to what stands in `out`; zeros beyond `lengths`.
    """
    dtype = mixing_dtype(stream)
    into = resolve("auto", stream.device, dtype).mix_into
    assert into is not None, "ask can_mix_into first"
    into(
        out, stream, norm, in_weight.to(dtype), out_weight.to(dtype), ahead, behind, lengths, reversed_time, accumulate
    )


def mixing_dtype(hidden: Tensor) -> torch.dtype:
    """What is multiplied in: hidden's dtype, or autocast's."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def compose(
    hidden: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    ahead: DirectionWeights,
    behind: DirectionWeights,
    *,
    lengths: Tensor | None = None,
    reversed_time: bool = False,
    scan: Callable[..., Tensor] = selective_scan,
    conv: Callable[..., Tensor] = causal_conv,
) -> Tensor:
    """`bimamba_mixer` step by step, over any `selective_scan` and `causal_conv`; arguments as there."""
    x, z = linear(hidden, in_weight).chunk(2, dim=-1)

    def one_way(weights: DirectionWeights, direction: Direction) -> Tensor:
        u = conv(x, weights.conv_weight, weights.conv_bias, direction=direction, lengths=lengths)
        rank, state = weights.dt_weight.shape[1], weights.A_log.shape[1]
        low, B, C = linear(u, weights.x_weight).split_with_sizes((rank, state, state), dim=-1)
        # The bias of delta's projection is added inside the scan, in the state's precision.
        delta = linear(low, weights.dt_weight)
        A = -torch.exp(weights.A_log if weights.A_log.dtype == torch.float64 else weights.A_log.float())
        return scan(u, delta, A, B, C, weights.D, z, weights.dt_bias, direction=direction, lengths=lengths)

    first: Direction = "reverse" if reversed_time else "forward"
    second: Direction = "forward" if reversed_time else "reverse"
    y = one_way(ahead, first) + one_way(behind, second)
    # Halving the weight gives the same digits as halving y, for a fraction of the work.
    return linear(y, out_weight * 0.5)
