"""Split log-mel spectrograms into patches, order patches as tokens, and compute their positions.

A patch is `patch_size` = (mel bins, frames), 16 x 16 in SSAMBA; overlapping patches have a smaller stride. Rows of the
patch grid run along frequency, columns along time. The official order is frequency-major (token = row * columns +
column); time-major is ours.

In a padded batch each clip has its own number of columns. Its tokens come first, in the order that they have when the
clip is alone, and padding follows.

Positions are learned for the pretraining grid. The official rule for other grids (SSAST, section 2.4, also in SSAMBA):
along each axis, a smaller grid takes the middle of the table, and a larger one interpolates it linearly with half-pixel
centers (`align_corners=False`), time first. Here each axis is sampled separately, so that each clip of a batch can have
its own number of columns.

Shapes: B clips, T frames, M mel bins, R rows, K columns of the longest clip, L = R * K tokens, D channels, V values of
a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssamba.config import BaseEncoderConfig
from ssamba.ops.matmul import linear
from ssamba.ops.operators import is_traced


class PatchEmbedding(nn.Module):
    """Linear projection of each patch; the weight has the layout of the official convolution."""

    def __init__(self, config: BaseEncoderConfig):
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(1, config.embed_dim, config.patch_size, config.patch_stride)

    def forward(self, features: Tensor) -> Tensor:
        """Project (B, T, M) to (B, R, K, D); frames and bins after the last whole patch are dropped."""
        if self.config.patch_size == self.config.patch_stride:
            # Without overlap this is one matrix product, with a several times faster backward than a convolution.
            return linear(patch_values(features, self.config), self.proj.weight.flatten(1), self.proj.bias)
        patches: Tensor = self.proj(rearrange(features, "b t m -> b 1 m t"))
        return rearrange(patches, "b d r k -> b r k d")


def patch_values(features: Tensor, config: BaseEncoderConfig) -> Tensor:
    """Return the values of each patch, (B, T, M) -> (B, R, K, V), mel bins outermost."""
    size_m, size_t = config.patch_size
    stride_m, stride_t = config.patch_stride
    patches = rearrange(features, "b t m -> b m t").unfold(1, size_m, stride_m).unfold(2, size_t, stride_t)
    return rearrange(patches, "b r k m t -> b r k (m t)")


def order_tokens(grid: Tensor, config: BaseEncoderConfig, columns: Tensor | None = None) -> Tensor:
    """Order the patches of a grid as a sequence, each clip's valid patches first.

    Args:
        grid: (B, R, K, D); B may be 1 to serve every clip if `columns` is None.
        config: configuration of the encoder, for the patch order.
        columns: valid columns of each clip (B,); None if all are valid.

    Returns:
        (B, L, D); padding after a clip's tokens is arbitrary.
    """
    if config.patch_order == "time_major":
        return rearrange(grid, "b r k d -> b (k r) d")
    # One by one where PyTorch traces: merging two dimensions would exclude grids of one column from an exported model.
    tokens = torch.cat(grid.unbind(1), dim=1) if is_traced() else rearrange(grid, "b r k d -> b (r k) d")
    if columns is None:
        return tokens
    longest = grid.shape[2]
    position = torch.arange(tokens.shape[1], device=grid.device)
    own = columns[:, None].clamp(min=1)
    row = torch.div(position, own, rounding_mode="floor").clamp(max=grid.shape[1] - 1)
    source = row * longest + position % own
    return tokens.gather(1, source[..., None].expand(-1, -1, tokens.shape[2]))


def tokens_to_grid(tokens: Tensor, rows: int, columns: int, config: BaseEncoderConfig) -> Tensor:
    """Arrange the patch tokens of one clip as a grid: (..., rows * columns, D) -> (..., rows, columns, D)."""
    pattern = "(k r)" if config.patch_order == "time_major" else "(r k)"
    return rearrange(tokens, f"... {pattern} d -> ... r k d", r=rows, k=columns)


def column_counts(lengths: Tensor, config: BaseEncoderConfig) -> Tensor:
    """Return the columns of clips of `lengths` (B,) frames: `BaseEncoderConfig.columns` for a batch."""
    return torch.div(lengths - config.patch_size[1], config.patch_stride[1], rounding_mode="floor") + 1


def fill_last_patch(features: Tensor, config: BaseEncoderConfig, silent: float) -> Tensor:
    """Append frames of value `silent` to (..., T, M) until the last patch is whole."""
    frames = features.shape[-2]
    missing = config.frames_spanned(config.columns_covering(frames)) - frames
    return F.pad(features, (0, 0, 0, missing), value=silent) if missing > 0 else features


def grid_positions(table: Tensor, rows: int, columns: Tensor, longest: int) -> Tensor:
    """Compute the positions of each clip's grid.

    Args:
        table: learned positions (table rows, table columns, D).
        rows: rows R of the grid.
        columns: columns of each clip, (B,) integers.
        longest: columns K to return, at least the largest of `columns`.

    Returns:
        (B, R, K, D); beyond a clip's own columns the values are arbitrary but finite.
    """
    below, above, weight = axis_samples(table.shape[1], columns, longest)
    in_time = torch.lerp(table[:, below], table[:, above], weight[..., None].to(table.dtype))  # (table rows, B, K, D)
    one_count = torch.full((1,), rows, device=table.device)
    below, above, weight = axis_samples(table.shape[0], one_count, rows)
    weight = weight[0, :, None, None, None].to(table.dtype)
    return torch.lerp(in_time[below[0]], in_time[above[0]], weight).transpose(0, 1)


def axis_samples(table_size: int, counts: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """For grids of `counts` (B,) entries: lower index, upper index and weight of the upper one, each (B, longest)."""
    step = torch.arange(longest, device=counts.device)
    counts = counts[:, None]
    # In float64, so that a sample on an entry of the table takes exactly that entry.
    interpolated = ((step + 0.5) * table_size / counts.clamp(min=1).double() - 0.5).clamp(0, table_size - 1)
    cropped = (table_size // 2 - torch.div(counts, 2, rounding_mode="floor") + step).clamp(0, table_size - 1)
    where = torch.where(counts < table_size, cropped.double(), interpolated)
    below = where.floor().long()
    return below, (below + 1).clamp(max=table_size - 1), where - below
