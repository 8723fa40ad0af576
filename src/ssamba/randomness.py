"""Random numbers that belong to a clip: the same whatever the batch, the worker, the rank or the device.

Every clip carries a seed (from run seed, epoch and clip). A draw is a hash of that seed, a stream's name and a counter
(splitmix64: Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators", figure 17), computed for a
whole batch at once in 64-bit integers, so masks and augmentations depend on the clip alone.

Shapes: B clips.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# The unsigned constants of splitmix64, as the signed integers that torch holds.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def stream_number(stream: str) -> int:
    """A 63-bit number for a stream's name."""
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little") >> 1


def uniform(seeds: Tensor, stream: str, count: int) -> Tensor:
    """Numbers in [0, 1) for each clip.

    Args:
        seeds: the clips' seeds (B,), int64.
        stream: what the numbers are for; different names give independent numbers.
        count: numbers for each clip.

    Returns:
        (B, count) float32, multiples of 2^-24, on the device of `seeds`.
    """
    start = _mix(seeds[:, None] + stream_number(stream))
    counter = torch.arange(1, count + 1, device=seeds.device) * _STEP
    return _shift_right(_mix(start + counter), 40).float() * 2.0**-24


def symmetric(seeds: Tensor, stream: str, count: int) -> Tensor:
    """Numbers in [-1, 1) for each clip, (B, count), from the same stream as `uniform`."""
    return 2 * uniform(seeds, stream, count) - 1


def integers(seeds: Tensor, stream: str, low: int, high: int) -> Tensor:
    """One integer for each clip, uniform from `low` to `high` inclusive: (B,) int64."""
    return low + (uniform(seeds, stream, 1)[:, 0] * (high - low + 1)).long()


def normal(seeds: Tensor, stream: str, count: int) -> Tensor:
    """Standard normal numbers (B, count) by Box and Muller's transform."""
    radius, angle = uniform(seeds, f"{stream}.radius", count), uniform(seeds, f"{stream}.angle", count)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)
