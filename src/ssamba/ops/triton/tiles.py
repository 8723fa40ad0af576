"""Building blocks of the Triton kernels: tiles in registers, their rows, sums over channels, softplus and sigmoid.

`scan_kernels.py` explains the layout of tiles. Shapes: `rows` of a tile are one thread's registers (R in the code);
E channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def pick_row(tile, rows, r: tl.constexpr):
    """Return row `r` of a (steps, channels) tile, float32."""
    minus_zero = tl.full((1,), 0.0, tl.float32) * -1.0  # a literal -0.0 becomes +0.0, and -0.0 + 0.0 is not -0.0
    return tl.sum(tl.where(rows == r, tile, minus_zero), axis=0)


@triton.jit
def _half_rows(x, lane, distance: tl.constexpr, R: tl.constexpr):
    """Reduce (R, 32) to (R / 2, 32): lane l adds lane l ^ `distance`'s values to its own, in the rows that it keeps."""
    half = tl.arange(0, 2)[:, None, None]
    x = tl.reshape(x, (2, R // 2, 32))
    return _exchange(pick_row(x, half, 0), pick_row(x, half, 1), lane, distance, R // 2)


@triton.jit
def _exchange(x, y, lane, distance: tl.constexpr, R: tl.constexpr):
    """Return (R, 32): lanes with bit `distance` clear add their own and their partner's x, the others y."""
    low = (lane & distance) == 0
    partner = tl.broadcast_to(lane ^ distance, (R, 32))
    return tl.where(low, x, y) + tl.gather(tl.where(low, y, x), partner, axis=1)


@triton.jit
def sum_channels(x, y, R: tl.constexpr, BLOCK_E: tl.constexpr):
    """Sum two (R, BLOCK_E) tiles over channels, R <= 16, into (32,): lanes 0-15 hold x's sums, 16-31 y's.

    Row r is in the lanes l with l % 16 // (16 / R) = r. Halving the rows at each exchange takes R + 5 shuffles of a
    warp where a sum of each row on its own takes 10 R.
    """
    lane = tl.arange(0, 32)[None, :]
    x = tl.sum(tl.reshape(x, (R, BLOCK_E // 32, 32)), axis=1)
    y = tl.sum(tl.reshape(y, (R, BLOCK_E // 32, 32)), axis=1)
    s = _exchange(x, y, lane, 16, R)
    if R == 16:
        s = _half_rows(_half_rows(_half_rows(_half_rows(s, lane, 8, 16), lane, 4, 8), lane, 2, 4), lane, 1, 2)
    elif R == 8:
        s = _half_rows(_half_rows(_half_rows(s, lane, 8, 8), lane, 4, 4), lane, 2, 2)
        s = _exchange(s, s, lane, 1, 1)
    else:
        tl.static_assert(R == 4)
        s = _half_rows(_half_rows(s, lane, 8, 4), lane, 4, 2)
        s = _exchange(s, s, lane, 2, 1)
        s = _exchange(s, s, lane, 1, 1)
    return tl.reshape(s, (32,))


@triton.jit
def softplus(x):
    """Compute log(1 + exp(x)) to 2e-7 relative: a polynomial for log1p(e) / e, since log(1 + e) loses small e."""
    e = tl.exp2(-tl.abs(x) * LOG2_E)
    p = 0.019542528316378593 + e * -0.0031760570127516985
    p = -0.05637361481785774 + e * p
    p = 0.10543623566627502 + e * p
    p = -0.1526966691017151 + e * p
    p = 0.1966327428817749 + e * p
    p = -0.24951615929603577 + e * p
    p = 0.33329710364341736 + e * p
    p = -0.49999892711639404 + e * p
    p = 1.0 + e * p
    return tl.maximum(x, 0.0) + e * p


@triton.jit
def sigmoid(x):
    """Compute 1 / (1 + exp(-x))."""
    r = tl.rsqrt(1.0 + tl.exp2(-x * LOG2_E))  # one instruction, where a division takes ten
    return r * r


@triton.jit
def clip_length(lengths, b, L, HAS_LENGTHS: tl.constexpr):
    """Return the valid steps of clip `b`, int32."""
    length = L
    if HAS_LENGTHS:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), L).to(tl.int32)
    return length


@triton.jit
def load_tile(pointer, t0, d, stride, limit, mask_d, TILE: tl.constexpr):
    """Load steps t0 .. t0 + TILE - 1 of a clip as (TILE, BLOCK_E) float32; steps from `limit` on are zero."""
    rows = tl.arange(0, TILE)[:, None]
    at = pointer + tl.cast(t0, tl.int64) * stride + rows * stride + d[None, :]
    return tl.load(at, mask=mask_d[None, :] & (t0 + rows < limit), other=0.0).to(tl.float32)


@triton.jit
def store_tile(pointer, t0, d, stride, tile, limit, mask_d, TILE: tl.constexpr):
    """Store a tile where `load_tile` reads it."""
    rows = tl.arange(0, TILE)[:, None]
    at = pointer + tl.cast(t0, tl.int64) * stride + rows * stride + d[None, :]
    tl.store(at, tile.to(pointer.dtype.element_ty), mask=mask_d[None, :] & (t0 + rows < limit))


@triton.jit
def zero_tiles(pointer, first, last, d, stride, limit, mask_d, TILE: tl.constexpr, BLOCK_E: tl.constexpr):
    """Zero the steps of tiles [first, last)."""
    zero = tl.zeros((TILE, BLOCK_E), tl.float32)
    for tile in range(first, last):
        store_tile(pointer, tile * TILE, d, stride, zero, limit, mask_d, TILE)


@triton.jit
def load_state(pointer, d, channels, mask_d, NP: tl.constexpr):
    """Load (NP, BLOCK_E) of (NP, E) float32."""
    return tl.load(pointer + tl.arange(0, NP)[:, None] * channels + d[None, :], mask=mask_d[None, :], other=0.0)


@triton.jit
def store_state(pointer, d, channels, state, mask_d, NP: tl.constexpr):
    """Store a state where `load_state` reads it."""
    tl.store(pointer + tl.arange(0, NP)[:, None] * channels + d[None, :], state, mask=mask_d[None, :])


@triton.jit
def own_channels(block, BLOCK_E: tl.constexpr):
    """Return a program's channels without their alignment, for which the compiler would give each lane several."""
    return tl.multiple_of(block * BLOCK_E + tl.arange(0, BLOCK_E), 1)


@triton.jit
def step_size(delta, bias, valid, SOFTPLUS: tl.constexpr):
    """Return delta after bias and softplus, zero beyond the clip."""
    step = delta + bias
    if SOFTPLUS:
        step = softplus(step)
    return tl.where(valid, step, 0.0)
