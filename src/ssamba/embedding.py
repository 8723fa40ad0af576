"""Options and result of embedding a recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ssamba.config import Config


class EmbedOptions(Config):
    """How recordings are embedded; the defaults suit most uses."""

    context: Literal["windows", "full"] = "windows"
    """`windows`: windows of the pretraining length, half overlapping, in constant memory; `full`: the whole recording
    at once, with interpolated positions, in memory linear in its length."""
    layer: int | None = None
    """Hidden state to use instead of the final output: 0 enters the first block, k leaves block pair k; negative
    numbers count from the last (-1 is the last hidden state, still without the final norm)."""
    padding: Literal["patch", "official"] = "patch"
    """`patch`: only the last partial patch is filled; `official`: recordings shorter than the pretraining length are
    padded to it with silence and `clip` averages everything, as the released weights saw it."""


@dataclass(frozen=True)
class Embedding:
    """A recording's embedding, K time steps of D channels. All tensors are float32 on the CPU."""

    clip: Tensor
    """One vector for the recording, (D,)."""
    frames: Tensor
    """One vector for each time step, (K, D)."""
    times_s: Tensor
    """Center of each time step, in seconds from the start of the recording, (K,)."""
    duration_s: float
    """Length of the recording."""
