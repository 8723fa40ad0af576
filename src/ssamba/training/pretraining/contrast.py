"""The clip objective over several processes: every view is compared with the views of all of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Views(NamedTuple):
    """The views of all processes."""

    projections: Tensor
    """(A, C); gradients reach this process's own."""
    partner: Tensor
    """Row of the other view of the same clip (A,)."""
    own_share: float
    """This process's share of the rows."""


def gather_views(projections: Tensor) -> Views:
    """Collect all processes' views; every process must call it, with no rows if it has none.

    Args:
        projections: (2 n, C), the first views of n clips, then their second ones; n may differ between processes.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        parts = [projections]
    else:
        counts = [torch.zeros(1, dtype=torch.int64, device=projections.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([len(projections)], device=projections.device))
        sizes = [int(count) for count in counts]
        own = projections.detach()
        padded = torch.cat((own, own.new_zeros(max(sizes) - len(own), own.shape[1])))
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        parts = [part[:size] for part, size in zip(everyone, sizes, strict=True)]
        parts[dist.get_rank()] = projections
    first, partners = 0, []
    for part in parts:
        partners.append(first + torch.arange(len(part), device=part.device).roll(len(part) // 2))
        first += len(part)
    return Views(torch.cat(parts), torch.cat(partners), len(projections) / max(1, first))


def as_own_mean(loss: Tensor, own_share: float) -> Tensor:
    """A loss that every process computes for all, as the mean over this process's terms.

    The loop adds up the processes' means weighted by their terms. Each holds the same value here, and the gradient with
    respect to its own rows alone; the latter must therefore count whole, not by the process's share.
    """
    return loss.detach() + (loss - loss.detach()) / own_share
