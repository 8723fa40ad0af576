"""Random numbers that belong to a clip: the same whatever the batch, the worker, the rank or the device.

Every clip carries a seed, made from the run's seed, the epoch and the clip. A random number is a hash (splitmix64) of
that seed, the name of a stream and a counter, computed for a whole batch at once, so masks and augmentations depend on
the clip alone. Everything else that is random starts from `seed_generators`.

Shapes: B clips.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from ssamba.hashing import GOLDEN_GAMMA, hash_bytes, mix64, shift_right


def stream_number(stream: str) -> int:
    """Return the 63-bit number that stands for a stream's name."""
    return int.from_bytes(hash_bytes(stream.encode()), "little") >> 1


def uniform(seeds: Tensor, stream: str, count: int) -> Tensor:
    """Return numbers in [0, 1) for each clip.

    Args:
        seeds: the clips' seeds (B,), int64.
        stream: what the numbers are for; different names give independent numbers.
        count: numbers for each clip.

    Returns:
        (B, count) float32, multiples of 2^-24, on the device of `seeds`.
    """
    start = mix64(seeds[:, None] + stream_number(stream))
    counter = torch.arange(1, count + 1, device=seeds.device) * GOLDEN_GAMMA
    return shift_right(mix64(start + counter), 40).float() * 2.0**-24


def symmetric(seeds: Tensor, stream: str, count: int) -> Tensor:
    """Return numbers in [-1, 1) for each clip, (B, count), made from those of `uniform`."""
    return 2 * uniform(seeds, stream, count) - 1


def integers(seeds: Tensor, stream: str, low: int, high: int) -> Tensor:
    """Return one integer for each clip, uniform from `low` to `high` inclusive: (B,) int64."""
    return low + (uniform(seeds, stream, 1)[:, 0] * (high - low + 1)).long()


def normal(seeds: Tensor, stream: str, count: int) -> Tensor:
    """Return standard normal numbers (B, count), by the Box-Muller transform."""
    radius, angle = uniform(seeds, f"{stream}.radius", count), uniform(seeds, f"{stream}.angle", count)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)


def seed_generators(seed: int, step: int, part: int = 0, rank: int = 0) -> None:
    """Seed the global generators of torch (all devices), NumPy and Python from the position in a run.

    Called before each batch, so a resumed run draws the same numbers as an uninterrupted one, whatever validation,
    plots or a data loader drew in between, and a checkpoint need not hold the generators' states.

    Args:
        seed: the run's seed.
        step: optimizer steps done.
        part: index of the batch within the step, or another number for a draw outside the batches.
        rank: rank of this process.
    """
    words = np.random.SeedSequence((seed, step, part, rank)).generate_state(4, np.uint32).tolist()
    torch.manual_seed(words[0] << 31 | words[1] >> 1)
    np.random.seed(words[2])
    random.seed(words[3])
