"""Which patches a model must not see while it is pretrained (SSAMBA, section 3.3; SSAST, section 2.3).

`clustered` hides squares of neighboring patches, their side drawn for each clip from {3, 4, 5}, in random order until
the wanted number is hidden. Squares wrap around the clip's edges, so every patch is equally likely to be hidden.
`official` is the original's rule with its quirks: squares run over the ends of rows, patch 0 is never hidden, and what
is too many is dropped from the highest numbers, which are the highest frequencies. `frames` hides whole columns.

All clips of a batch are masked at once, each from its own seed; padding is never masked.

Shapes: B clips, R rows, K columns (K_max the longest clip's), L = R * K_max tokens.
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


def draw_mask(
    seeds: Tensor,
    config: BaseEncoderConfig,
    columns: Tensor,
    longest: int,
    *,
    ratio: float,
    style: MaskStyle | None = None,
) -> Tensor:
    """Choose the patches to hide.

    Args:
        seeds: the clips' seeds (B,), int64; the same seed gives the same mask in any batch.
        config: the encoder's, for its rows and patch order.
        columns: valid columns of each clip (B,).
        longest: columns of the batch, K_max.
        ratio: share of a clip's valid patches to hide (of its columns, for `frames`).
        style: `clustered`, `official` or `frames`; None is `frames` for SSAST's frame model, whose authors found clusters of
            frames to be worse (Gong et al., AAAI 2022), and `clustered` for every other.

    Returns:
        (B, L) bool in token order, each clip's tokens first; True is hidden. Exactly round(ratio * R * K) of a clip's
        patches are hidden, at most all but one (for `frames` round(ratio * K) columns).

    Raises:
        ValueError: the ratio is not between 0 and 1, or `official` is asked of another order than frequency-major.
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
        hidden = _first(order, torch.arange(longest, device=seeds.device) < columns[:, None], wanted)
        grid = repeat(hidden, "b k -> b r k", r=rows)
    else:
        grid = _clustered(seeds, rows, columns, longest, ratio)
    return order_tokens(grid[..., None].long(), config, columns)[..., 0].bool() & _valid(rows, columns, longest)


def mask_count(patches: Tensor, ratio: float) -> Tensor:
    """How many of so many valid patches (B,) are hidden: round(ratio * patches), leaving at least one."""
    return torch.minimum((patches * ratio).round().long(), patches - 1).clamp(min=0)


def _valid(rows: int, columns: Tensor, longest: int) -> Tensor:
    return torch.arange(rows * longest, device=columns.device) < (rows * columns)[:, None]


def _first(order: Tensor, valid: Tensor, wanted: Tensor, breaker: Tensor | None = None) -> Tensor:
    """Mark the `wanted` (B,) smallest of `order` (B, L) among the valid; `breaker` (B, L) decides between equals."""
    order = order.masked_fill(~valid, torch.inf)
    shuffle = torch.argsort(breaker, dim=1) if breaker is not None else torch.arange(order.shape[1]).expand_as(order)
    shuffle = shuffle.to(order.device)
    ranked = shuffle.gather(1, torch.argsort(order.gather(1, shuffle), dim=1, stable=True))
    chosen = torch.arange(order.shape[1], device=order.device) < wanted[:, None]
    return torch.zeros_like(valid).scatter(1, ranked, chosen)


def _clustered(seeds: Tensor, rows: int, columns: Tensor, longest: int, ratio: float) -> Tensor:
    """(B, R, K_max): a patch is hidden when the first of the squares that cover it is drawn early enough."""
    # Drawn column by column, so that a clip's numbers do not depend on the longest of its batch.
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
    breaker = rearrange(uniform(seeds, "mask.equals", rows * longest), "b (k r) -> b (r k)", r=rows)
    hidden = _first(first.flatten(1), valid, mask_count(rows * columns, ratio), breaker)
    return rearrange(hidden, "b (r k) -> b r k", r=rows)


def _official(seeds: Tensor, rows: int, columns: Tensor, longest: int, ratio: float) -> Tensor:
    """(B, L) by the original's rule, in its own numbering of each clip's patches."""
    count = rows * longest
    sides = integers(seeds, "mask.side", CLUSTER_SIDES[0], CLUSTER_SIDES[-1])
    valid = _valid(rows, columns, longest)
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
    # Squares are drawn until more patches than wanted are covered; the lowest-numbered of these stay.
    limit = first.sort(dim=1).values.gather(1, wanted[:, None].clamp(max=count - 1))
    covered = (first <= limit) & first.isfinite()
    return covered & (covered.cumsum(1) <= wanted[:, None])
