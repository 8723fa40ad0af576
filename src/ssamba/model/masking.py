"""Draw random masks over patches for pretraining (SSAMBA, section 3.3; SSAST, section 2.3).

`clustered` masks squares of neighboring patches, their side drawn for each clip from {3, 4, 5}, in random order until
the mask ratio is reached. Squares wrap around the clip's edges, so every patch is equally likely to be masked.
`official` is the original's rule with its quirks: squares run over the ends of rows, patch 0 is never masked, and
surplus patches are dropped from the end, which is the highest frequencies. `frames` masks whole columns.

All clips of a batch are masked at once, each from its own seed; padding is never masked.

Shapes: B clips, R rows, K columns of the longest clip, L = R * K tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor

from ssamba.config import BaseEncoderConfig
from ssamba.model.patches import order_tokens
from ssamba.randomness import integers, uniform

MaskStyle = Literal["clustered", "official", "frames"]
CLUSTER_SIDES = (3, 4, 5)
DEFAULT_MASK_RATIO = 400 / 512
"""Share of the patches that the original masks by default."""


def draw_mask(
    seeds: Tensor,
    config: BaseEncoderConfig,
    columns: Tensor,
    longest: int,
    *,
    ratio: float,
    style: MaskStyle | None = None,
) -> Tensor:
    """Draw a random mask for each clip.

    Args:
        seeds: seed of each clip (B,), int64; a seed gives the same mask in any batch.
        config: configuration of the encoder, for its rows and patch order.
        columns: valid columns of each clip (B,).
        longest: columns K of the batch.
        ratio: share of a clip's valid patches to mask (for `frames`, of its columns).
        style: `clustered`, `official` or `frames`; None means `frames` for SSAST's frame model, whose authors found
            clusters of frames to be worse (Gong et al., AAAI 2022), and `clustered` otherwise.

    Returns:
        Mask (B, L) in token order, each clip's tokens first, True where masked. Exactly round(ratio * n) of a clip's n
        patches are masked, but never all (for `frames`, of its n columns).

    Raises:
        ValueError: the ratio is not in [0, 1), or `official` is used with time-major patches.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"the mask ratio must be at least 0 and below 1, got {ratio:g}")
    rows = config.rows
    if style is None:
        style = "frames" if config.family == "ssast" and rows == 1 else "clustered"
    if style == "official":
        if config.patch_order != "frequency_major":
            raise ValueError("the official masks are defined on frequency-major patches, got " + config.patch_order)
        return _official(seeds, rows, columns, longest, ratio)
    if style == "frames":
        order = uniform(seeds, "mask.frames", longest)
        wanted = torch.minimum((columns * ratio).round().long(), columns - 1).clamp(min=0)
        masked = _smallest(order, torch.arange(longest, device=seeds.device) < columns[:, None], wanted)
        grid = repeat(masked, "b k -> b r k", r=rows)
    else:
        grid = _clustered(seeds, rows, columns, longest, ratio)
    return order_tokens(grid[..., None].long(), config, columns)[..., 0].bool() & _valid_tokens(rows, columns, longest)


def mask_count(patches: Tensor, ratio: float) -> Tensor:
    """Return the number of masked patches for clips of `patches` (B,): round(ratio * patches), but never all."""
    return torch.minimum((patches * ratio).round().long(), patches - 1).clamp(min=0)


def _valid_tokens(rows: int, columns: Tensor, longest: int) -> Tensor:
    return torch.arange(rows * longest, device=columns.device) < (rows * columns)[:, None]


def _smallest(order: Tensor, valid: Tensor, wanted: Tensor, ties: Tensor | None = None) -> Tensor:
    """Mark the `wanted` (B,) smallest valid entries of `order` (B, L); `ties` (B, L) orders equal entries."""
    order = order.masked_fill(~valid, torch.inf)
    shuffle = torch.argsort(ties, dim=1) if ties is not None else torch.arange(order.shape[1]).expand_as(order)
    shuffle = shuffle.to(order.device)
    ranked = shuffle.gather(1, torch.argsort(order.gather(1, shuffle), dim=1, stable=True))
    chosen = torch.arange(order.shape[1], device=order.device) < wanted[:, None]
    return torch.zeros_like(valid).scatter(1, ranked, chosen)


def _clustered(seeds: Tensor, rows: int, columns: Tensor, longest: int, ratio: float) -> Tensor:
    """Return a mask (B, R, K): a patch is masked if the first square that covers it comes early enough.

    Every place draws the rank of the square that starts there; a patch takes the smallest rank of the squares that
    cover it. This equals drawing squares one by one.
    """
    # Drawn column by column, so that a clip's numbers do not depend on the longest clip of its batch.
    drawn = rearrange(uniform(seeds, "mask.squares", rows * longest), "b (k r) -> b r k", r=rows)
    sides = integers(seeds, "mask.side", CLUSTER_SIDES[0], CLUSTER_SIDES[-1])
    step = torch.arange(longest, device=seeds.device)
    first = drawn
    for offset in range(1, CLUSTER_SIDES[-1]):
        covers = (offset < sides)[:, None, None]
        first = torch.where(covers, torch.minimum(first, drawn.roll(offset, dims=1)), first)
    drawn = first
    for offset in range(1, CLUSTER_SIDES[-1]):
        covers = (offset < sides)[:, None, None]
        source = (step - offset) % columns[:, None].clamp(min=1)
        shifted = drawn.gather(2, repeat(source, "b k -> b r k", r=rows))
        first = torch.where(covers, torch.minimum(first, shifted), first)
    valid = repeat(step < columns[:, None], "b k -> b (r k)", r=rows)
    ties = rearrange(uniform(seeds, "mask.equals", rows * longest), "b (k r) -> b (r k)", r=rows)
    masked = _smallest(first.flatten(1), valid, mask_count(rows * columns, ratio), ties)
    return rearrange(masked, "b (r k) -> b r k", r=rows)


def _official(seeds: Tensor, rows: int, columns: Tensor, longest: int, ratio: float) -> Tensor:
    """Return a mask (B, L) by the original's rule, in frequency-major order of each clip's own patches."""
    count = rows * longest
    sides = integers(seeds, "mask.side", CLUSTER_SIDES[0], CLUSTER_SIDES[-1])
    valid = _valid_tokens(rows, columns, longest)
    drawn = uniform(seeds, "mask.squares", count).masked_fill(~valid, torch.inf)
    patch = torch.arange(count, device=seeds.device)
    first = torch.full_like(drawn, torch.inf)
    for down in range(CLUSTER_SIDES[-1]):
        for right in range(CLUSTER_SIDES[-1]):
            start = patch - down * columns[:, None] - right
            covers = (max(down, right) < sides)[:, None] & (start >= 0)
            first = torch.where(covers, torch.minimum(first, drawn.gather(1, start.clamp(min=0))), first)
    first[:, 0] = torch.inf
    first = first.masked_fill(~valid, torch.inf)
    wanted = mask_count(rows * columns, ratio)
    # Squares are added until they cover more patches than wanted; the first `wanted` of these are masked.
    limit = first.sort(dim=1).values.gather(1, wanted[:, None].clamp(max=count - 1))
    covered = (first <= limit) & first.isfinite()
    return covered & (covered.cumsum(1) <= wanted[:, None])
