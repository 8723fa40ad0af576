"""Randomness that is a function of where the run is, so that there is none to save.

Before each batch every global generator (torch on all devices, numpy, Python) starts from (seed, step, part, process).
A resumed run therefore draws what the uninterrupted one drew, whatever validation, pictures or a data loader took from
the generators in between.
"""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_generators(seed: int, step: int, part: int = 0, rank: int = 0) -> None:
    """Set torch's, numpy's and Python's global generators.

    Args:
        seed: the run's.
        step: steps done.
        part: which batch of the step, or another number for what is not one.
        rank: the process.
    """
    words = np.random.SeedSequence((seed, step, part, rank)).generate_state(4, np.uint32).tolist()
    torch.manual_seed(words[0] << 31 | words[1] >> 1)
    np.random.seed(words[2])
    random.seed(words[3])
