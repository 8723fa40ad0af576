"""The bidirectional mixer as one operator: everything in a BiMamba block between its norm and its residual.

    x, z = split(W_in hidden)
    in each direction d:   u_d = silu(conv_d(x))        low, B, C = split(W_x u_d)
                           y_d = scan(u_d, W_delta low, A, B, C) + D u_d
    out = W_out ((y_forward + y_reverse) / 2 * silu(z))

(Zhu et al., 2024, arXiv:2401.09417, algorithm 1, with Vision Mamba's halving.) `compose` builds the mixer from the
other operators of any backend; fused mixers are tested against it. A backend's fused mixer is used where it exists.
`mix_into` is the encoder's own path for inference; it is not exported from `ssamba.ops`.

Shapes: B clips, L tokens, D channels of a token, E channels inside, N states of a channel, W taps; `delta_rank` is the
rank of delta's projection.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ssamba.ops.conv import causal_conv
from ssamba.ops.dispatch import resolve
from ssamba.ops.matmul import linear
from ssamba.ops.operators import Direction, DirectionWeights, MixerInputs, check_lengths, check_shape, is_traced
from ssamba.ops.scan import selective_scan


def bimamba_mixer(
    hidden: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    forward: DirectionWeights,
    reverse: DirectionWeights,
    *,
    lengths: Tensor | None = None,
    reversed_time: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Mix tokens in both directions of time.

    Args:
        hidden: (B, L, D).
        in_weight: (2 E, D), rows for x first, then rows for the gate z.
        out_weight: (D, E).
        forward: weights of the direction that runs forward in time.
        reverse: weights of the direction that runs from the last valid step to the first.
        lengths: valid steps of each sequence (B,); outputs beyond them are zero. Inputs beyond them must be finite if a
            gradient is needed.
        reversed_time: exchange the two directions, which equals flipping input and output along L.
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
    for weights in (forward, reverse):
        rank, state = weights.dt_weight.shape[1], weights.A_log.shape[1]
        check_shape("x_weight", weights.x_weight, (rank + 2 * state, inner), "(rank + 2 state, inner)", hidden)
        check_shape("dt_weight", weights.dt_weight, (inner, rank), "(inner, rank)", hidden)
        check_shape("A_log", weights.A_log, (inner, state), "(inner, state)", hidden)
        check_shape("conv_weight", weights.conv_weight, (inner, weights.conv_weight.shape[1]), "(inner, taps)", hidden)
        for name, vector in (("conv_bias", weights.conv_bias), ("dt_bias", weights.dt_bias), ("D", weights.D)):
            check_shape(name, vector, (inner,), "(inner,)", hidden)
    for name in ("conv_weight", "dt_weight", "A_log"):
        shape = tuple(getattr(forward, name).shape)
        check_shape(f"reverse.{name}", getattr(reverse, name), shape, f"forward.{name}.shape", hidden)
    check_lengths(lengths, hidden.shape[0], hidden.shape[1])
    dtype = compute_dtype(hidden)
    fused = resolve(backend, hidden.device, dtype).bimamba_mixer
    if fused is None:
        return compose(
            hidden,
            in_weight,
            out_weight,
            forward,
            reverse,
            lengths=lengths,
            reversed_time=reversed_time,
            scan=partial(selective_scan, backend=backend),
            conv=partial(causal_conv, backend=backend),
        )
    return fused(
        MixerInputs(
            hidden.to(dtype), in_weight.to(dtype), out_weight.to(dtype), forward, reverse, lengths, reversed_time
        )
    )


def can_mix_into(stream: Tensor) -> bool:
    """Return True if `mix_into` may replace norm, mixer and addition for this residual stream, in this context."""
    if torch.is_grad_enabled() or is_traced():
        return False
    return resolve("auto", stream.device, compute_dtype(stream)).mix_into is not None


def mix_into(
    out: Tensor,
    stream: Tensor,
    norm: tuple[Tensor, Tensor, float],
    in_weight: Tensor,
    out_weight: Tensor,
    forward: DirectionWeights,
    reverse: DirectionWeights,
    *,
    lengths: Tensor | None = None,
    reversed_time: bool = False,
    accumulate: bool = False,
) -> None:
    """Set out to bimamba_mixer(layer_norm(stream)), or add it with `accumulate`; out may be the stream itself.

    For inference only, after `can_mix_into`. Nothing is allocated between blocks: the first touch of fresh pages was a
    sixth of the time over long recordings.

    Args:
        out: (B, L, D), contiguous; or (tokens, D), packed clips without padding.
        stream: as `out`.
        norm: weight and bias (D,) and epsilon of the LayerNorm.
        in_weight, out_weight, forward, reverse, reversed_time: as in `bimamba_mixer`; shapes are not checked.
        lengths: valid steps of each sequence (B,), or None; of packed clips, their lengths, whose sum is `tokens`.
        accumulate: add to `out`, zeros beyond `lengths`.
    """
    dtype = compute_dtype(stream)
    into = resolve("auto", stream.device, dtype).mix_into
    assert into is not None, "call can_mix_into first"
    weights = in_weight.to(dtype), out_weight.to(dtype), forward, reverse
    into(out, norm, MixerInputs(stream, *weights, lengths, reversed_time), accumulate)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of the mixer's products: hidden's, or autocast's."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def compose(
    hidden: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    forward: DirectionWeights,
    reverse: DirectionWeights,
    *,
    lengths: Tensor | None = None,
    reversed_time: bool = False,
    scan: Callable[..., Tensor] = selective_scan,
    conv: Callable[..., Tensor] = causal_conv,
) -> Tensor:
    """Compute `bimamba_mixer` step by step with any `selective_scan` and `causal_conv`; arguments as there."""
    x, z = linear(hidden, in_weight).chunk(2, dim=-1)

    def one_direction(weights: DirectionWeights, direction: Direction) -> Tensor:
        u = conv(x, weights.conv_weight, weights.conv_bias, direction=direction, lengths=lengths)
        rank, state = weights.dt_weight.shape[1], weights.A_log.shape[1]
        low, B, C = linear(u, weights.x_weight).split_with_sizes((rank, state, state), dim=-1)
        # The bias of delta's projection is added inside the scan, in the state's precision.
        delta = linear(low, weights.dt_weight)
        A = -torch.exp(weights.A_log if weights.A_log.dtype == torch.float64 else weights.A_log.float())
        return scan(u, delta, A, B, C, weights.D, z, weights.dt_bias, direction=direction, lengths=lengths)

    first: Direction = "reverse" if reversed_time else "forward"
    second: Direction = "forward" if reversed_time else "reverse"
    y = one_direction(forward, first) + one_direction(reverse, second)
    # Halving the weight gives the same bits as halving y, for a fraction of the work.
    return linear(y, out_weight * 0.5)
