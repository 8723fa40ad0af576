"""Positions for a grid of patches of any size, from the table learned at pretraining.

The official rule (SSAST, section 2.4, kept by SSAMBA): along each axis, a grid that is smaller than the table takes
the table's middle; a larger one interpolates it linearly with half-pixel centers (`align_corners=False`), time first.
Written here as two samplings of one axis each, so that every clip of a batch can have its own number of columns.

Shapes: B clips with their own columns (or 1), R x K the wanted grid, R_t x K_t the table's, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grid_positions(table: Tensor, rows: int, columns: Tensor, longest: int) -> Tensor:
    """Positions of a grid for each clip.

    Args:
        table: (R_t, K_t, D).
        rows: wanted rows R.
        columns: wanted columns of each clip, (B,) integers.
        longest: columns to return, at least the largest of `columns`.

    Returns:
        (B, R, longest, D); beyond a clip's own columns the values are arbitrary but finite.
    """
    below, above, weight = _axis_samples(table.shape[1], columns, longest)
    in_time = torch.lerp(table[:, below], table[:, above], weight[..., None].to(table.dtype))  # (R_t, B, K, D)
    one_count = torch.full((1,), rows, device=table.device)
    below, above, weight = _axis_samples(table.shape[0], one_count, rows)
    weight = weight[0, :, None, None, None].to(table.dtype)
    return torch.lerp(in_time[below[0]], in_time[above[0]], weight).transpose(0, 1)


def _axis_samples(table_size: int, counts: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `counts` (B,): indices below and above, and the weight of the one above, each (B, longest)."""
    step = torch.arange(longest, device=counts.device)
    counts = counts[:, None]
    # In float64, so that a sample that falls on an entry of the table takes exactly that entry.
    interpolated = ((step + 0.5) * table_size / counts.clamp(min=1).double() - 0.5).clamp(0, table_size - 1)
    cut = (table_size // 2 - torch.div(counts, 2, rounding_mode="floor") + step).clamp(0, table_size - 1)
    where = torch.where(counts < table_size, cut.double(), interpolated)
    below = where.floor().long()
    return below, (below + 1).clamp(max=table_size - 1), where - below
