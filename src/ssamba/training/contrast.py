"""The clip objective over several processes: each compares its views with those of all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather_views(projections: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All processes' views, and where each of this one's finds itself and its partner.

    Args:
        projections: (2 n, C), the first views of n clips, then their second ones; n may differ between processes.

    Returns:
        This process's views (2 n, C), all views (A, C) with gradients back to their owners, and for each own view its
        row and its partner's among all (2 n, 2).
    """
    everyone, first = _gather_rows(projections)
    own = first + torch.arange(len(projections), device=projections.device)
    return projections, everyone, torch.stack((own, own.roll(len(projections) // 2)), dim=1)


def _gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """All processes' rows (n, C) one after the other, and the place of this process's first."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows, 0
    from torch.distributed.nn.functional import all_gather

    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    padded = torch.cat((rows, rows.new_zeros(max(sizes) - len(rows), rows.shape[1])))
    parts = all_gather(padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sum(sizes[: dist.get_rank()])
