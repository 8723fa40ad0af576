"""The public causal convolution: depthwise, before the scan in a Mamba block, with its SiLU, in either direction.

Shapes: B clips, L tokens, E channels, W taps.
"""

from __future__ import annotations

from torch import Tensor

from ssamba.ops.dispatch import resolve
from ssamba.ops.operators import ConvInputs, Direction, check_lengths, check_shape, is_reverse


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = True,
    direction: Direction = "forward",
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute y_t = silu(bias + sum_k weight[:, k] * x_{t-(W-1)+k}), with zeros outside the sequence.

    Args:
        x: input (B, L, E).
        weight: taps (E, W), the last one for the present step.
        bias: (E,).
        silu: apply SiLU to the result.
        direction: "reverse" reads later steps instead of earlier ones.
        lengths: valid steps of each sequence (B,); inputs beyond them count as zero, outputs there are zero.
        backend: "auto", or a name from `available_backends()`.

    Returns:
        (B, L, E) in x's dtype.

    Raises:
        ValueError: a shape, dtype or device does not fit, or a name is unknown.
        BackendUnavailableError: the named backend cannot run here.
    """
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"x must be floating point (batch, length, channels), got {tuple(x.shape)} of {x.dtype}")
    if weight.ndim != 2:
        raise ValueError(f"weight must be (channels, taps), got shape {tuple(weight.shape)}")
    batch, length, channels = x.shape
    check_shape("weight", weight, (channels, weight.shape[1]), "(channels, taps)", x)
    check_shape("bias", bias, (channels,), "(channels,)", x)
    check_lengths(lengths, batch, length)
    inputs = ConvInputs(x, weight, bias, silu, is_reverse(direction), lengths)
    return resolve(backend, x.device, x.dtype).causal_conv(inputs)
