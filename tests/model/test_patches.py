"""Patches and positions: token order, values, packing, and interpolation by the official rule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssamba.config import EncoderConfig
from ssamba.model.patches import fill_last_patch, grid_positions, order_tokens, patch_values, tokens_to_grid


@pytest.mark.parametrize("order", ["frequency_major", "time_major"])
def test_tokens_to_grid_inverts_order_tokens(order):
    config = EncoderConfig(patch_order=order)
    grid = torch.randn(2, 8, 5, 3)
    torch.testing.assert_close(tokens_to_grid(order_tokens(grid, config), 8, 5, config), grid)


def test_official_order_numbers_patches_along_time_first():
    grid = torch.arange(8 * 5).reshape(1, 8, 5, 1)
    assert order_tokens(grid, EncoderConfig())[0, :, 0].tolist() == list(range(40))
    assert order_tokens(grid, EncoderConfig(patch_order="time_major"))[0, :8, 0].tolist() == list(range(0, 40, 5))


@pytest.mark.parametrize("order", ["frequency_major", "time_major"])
def test_each_clip_is_packed_in_its_own_order(order):
    config = EncoderConfig(patch_order=order)
    grid = torch.randn(3, 8, 6, 2)
    columns = torch.tensor([6, 1, 4])
    packed = order_tokens(grid, config, columns)
    for clip, own, count in zip(packed, grid, columns.tolist(), strict=True):
        torch.testing.assert_close(clip[: 8 * count], order_tokens(own[None, :, :count], config)[0])


def test_patch_values_equal_torch_unfold():
    features = torch.randn(2, 70, 128)
    for stride in ((16, 16), (10, 10)):
        config = EncoderConfig(patch_stride=stride)
        ours = order_tokens(patch_values(features, config), config)
        theirs = F.unfold(features.transpose(1, 2)[:, None], (16, 16), stride=stride).transpose(1, 2)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("stride", "frames", "filled"), [(16, 1, 16), (16, 16, 16), (16, 17, 32), (10, 17, 26), (10, 26, 26)]
)
def test_only_the_last_patch_is_filled(stride, frames, filled):
    config = EncoderConfig(patch_stride=(stride, stride), position_grid=(8, 64))
    out = fill_last_patch(torch.zeros(frames, 128), config, 0.5)
    assert out.shape == (filled, 128)
    assert (out[frames:] == 0.5).all()
    assert config.columns(filled) == config.columns_covering(frames)


def official_positions(table, rows, columns):
    """Compute positions as SSAST and SSAMBA do, on (1, D, rows, columns)."""
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
def test_positions_follow_the_official_rule(rows, columns):
    table = torch.randn(8, 64, 3, dtype=torch.float64)
    ours = grid_positions(table, rows, torch.tensor([columns]), columns)
    torch.testing.assert_close(ours[0], official_positions(table, rows, columns), atol=1e-6, rtol=0)


def test_positions_of_a_clip_are_independent_of_the_batch():
    table = torch.randn(8, 64, 3)
    counts = torch.tensor([3, 64, 100])
    together = grid_positions(table, 12, counts, 100)
    assert torch.isfinite(together).all()
    for row, count in zip(together, counts.tolist(), strict=True):
        torch.testing.assert_close(row[:, :count], grid_positions(table, 12, torch.tensor([count]), count)[0])
