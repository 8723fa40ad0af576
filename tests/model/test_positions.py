"""Positions of any grid against PyTorch's own cutting and interpolation, the official rule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssamba.model.positions import grid_positions


def official(table, rows, columns):
    """The rule as SSAST and SSAMBA write it, on (1, D, rows, columns)."""
    grid = table.permute(2, 0, 1)[None]
    if columns < grid.shape[3]:
        start = grid.shape[3] // 2 - columns // 2
        grid = grid[..., start : start + columns]
    else:
        grid = F.interpolate(grid, size=(grid.shape[2], columns), mode="bilinear")
    if rows < grid.shape[2]:
        start = grid.shape[2] // 2 - rows // 2
        grid = grid[:, :, start : start + rows]
    else:
        grid = F.interpolate(grid, size=(rows, columns), mode="bilinear")
    return grid[0].permute(1, 2, 0)


@pytest.mark.parametrize("rows", [1, 5, 8, 12, 17])
@pytest.mark.parametrize("columns", [1, 2, 7, 63, 64, 65, 101, 640])
def test_follows_the_official_rule(rows, columns):
    table = torch.randn(8, 64, 3, dtype=torch.float64)
    ours = grid_positions(table, rows, torch.tensor([columns]), columns)
    torch.testing.assert_close(ours[0], official(table, rows, columns), atol=1e-6, rtol=0)


def test_each_clip_of_a_batch_has_its_own_grid():
    table = torch.randn(8, 64, 3)
    counts = torch.tensor([3, 64, 100])
    together = grid_positions(table, 12, counts, 100)
    assert torch.isfinite(together).all()
    for row, count in zip(together, counts.tolist(), strict=True):
        torch.testing.assert_close(row[:, :count], grid_positions(table, 12, torch.tensor([count]), count)[0])
