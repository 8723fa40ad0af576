"""The selective scan's backward Triton kernel; needs triton. How it works and why: see `triton_scan_kernels.py`.

Shapes: B batch, L tokens, D channels, N states (NP: rounded up to a power of two).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssamba.ops.triton.tiles import (
    LOG2_E,
    clip_length,
    load_tile,
    own_channels,
    pick_row,
    sigmoid,
    step_size,
    store_tile,
    sum_channels,
    zero_tiles,
)


# Sizes are not specialised: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["L", "padded", "channels", "batch", "segments", "segment_chunks", "chunks"])
def scan_backward(
    dy_ptr, u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, lengths_ptr, borders_ptr, carry_ptr, inner_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dA_ptr, dBC_ptr, dD_ptr, dbias_ptr,
    L, padded, channels, batch, segments, segment_chunks, chunks,
    dy_b, dy_t, u_b, u_t, delta_b, delta_t, z_b, z_t,
    N: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, CHUNK_TILES: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """One segment of one clip, against the scan's direction.

    A (NP, D) float32, zero beyond N. carry (B, segments, NP, D) holds the gradient that enters each segment and is
    left with the one that leaves it. Sums over less than everything: dA (B, segments, NP, D), zero on entry;
    dD, dbias (B, segments, D); dBC (channel blocks, B, 2 NP, padded). inner (B, segments, CHUNK_TILES, NP, D): scratch.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    block = pid % blocks
    d = own_channels(block, BLOCK_D)
    segment = pid // blocks % segments
    b = (pid // blocks // segments).to(tl.int64)
    mask_d = d < channels
    steps = tl.arange(0, TILE)
    rows = steps[:, None]
    warp_lane = tl.arange(0, 32)
    length = clip_length(lengths_ptr, b, L, HAS_LENGTHS)

    place = b * segments + segment
    dy_ptr += b * dy_b
    u_ptr += b * u_b
    delta_ptr += b * delta_b
    BC_ptr += b * L * (2 * NP)
    borders_ptr += b * chunks * NP * channels
    carry_ptr += place * NP * channels
    dA_ptr += place * NP * channels
    inner_ptr += place * CHUNK_TILES * NP * channels
    du_ptr += b * L * channels
    ddelta_ptr += b * L * channels
    dBC_ptr += (block.to(tl.int64) * batch + b) * (2 * NP) * padded
    bias = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=mask_d, other=0.0).to(tl.float32)

    all_tiles = tl.cdiv(L, TILE)
    valid_tiles = tl.cdiv(length, TILE)
    first = segment * segment_chunks
    last = tl.maximum(tl.minimum(first + segment_chunks, tl.cdiv(length, TILE * CHUNK_TILES)), first)
    begin = tl.maximum(first * CHUNK_TILES, valid_tiles)
    end = tl.minimum((first + segment_chunks) * CHUNK_TILES, all_tiles)
    zero_tiles(du_ptr, begin, end, d, channels, L, mask_d, TILE, BLOCK_D)
    zero_tiles(ddelta_ptr, begin, end, d, channels, L, mask_d, TILE, BLOCK_D)
    if HAS_Z:
        z_ptr += b * z_b
        dz_ptr += b * L * channels
        zero_tiles(dz_ptr, begin, end, d, channels, L, mask_d, TILE, BLOCK_D)

    dD = tl.zeros((BLOCK_D,), tl.float32)
    dbias = tl.zeros((BLOCK_D,), tl.float32)
    for i in range(0, last - first):
        chunk = last - 1 - i
        if REVERSE:
            chunk = first + i
        # Tiles of this chunk; in the scan's order tile j is `low + j`, or `high - j` if REVERSE.
        low = chunk * CHUNK_TILES
        tiles = tl.minimum(CHUNK_TILES, valid_tiles - low)
        border = borders_ptr + chunk.to(tl.int64) * NP * channels
        if CHUNK_TILES > 1:
            for n in range(0, N):
                entering = tl.load(border + n * channels + d, mask=mask_d, other=0.0)
                tl.store(inner_ptr + n * channels + d, entering, mask=mask_d)
            for j in range(0, tiles - 1):
                tile = low + j
                if REVERSE:
                    tile = low + tiles - 1 - j
                t0 = tile * TILE
                delta = load_tile(delta_ptr, t0, d, delta_t, length, mask_d, TILE)
                step = step_size(delta, bias[None, :], t0 + rows < length, SOFTPLUS)
                drive = step * load_tile(u_ptr, t0, d, u_t, length, mask_d, TILE)
                BC_row = BC_ptr + tl.minimum(t0 + steps, length - 1).to(tl.int64) * (2 * NP)
                for n in range(0, N):
                    A = tl.load(A_ptr + n * channels + d, mask=mask_d, other=0.0) * LOG2_E
                    state = tl.load(inner_ptr + (j * NP + n) * channels + d, mask=mask_d, other=0.0)
                    decay = tl.exp2(step * A[None, :])
                    added = drive * tl.load(BC_row + n)[:, None]
                    for k in tl.static_range(TILE):
                        r = TILE - 1 - k if REVERSE else k
                        state = pick_row(decay, rows, r) * state + pick_row(added, rows, r)
                    tl.store(inner_ptr + ((j + 1) * NP + n) * channels + d, state, mask=mask_d)
            tl.debug_barrier()

        for back in range(0, tiles):
            j = tiles - 1 - back
            tile = low + j
            if REVERSE:
                tile = low + back
            t0 = tile * TILE
            valid = t0 + rows < length
            delta = load_tile(delta_ptr, t0, d, delta_t, length, mask_d, TILE)
            step = step_size(delta, bias[None, :], valid, SOFTPLUS)
            drive = step * load_tile(u_ptr, t0, d, u_t, length, mask_d, TILE)
            dy = load_tile(dy_ptr, t0, d, dy_t, length, mask_d, TILE)
            if HAS_Z:
                z = load_tile(z_ptr, t0, d, z_t, length, mask_d, TILE)
                dy *= z * sigmoid(z)
            y = tl.zeros((TILE, BLOCK_D), tl.float32)
            ddrive = tl.zeros((TILE, BLOCK_D), tl.float32)
            dstep = tl.zeros((TILE, BLOCK_D), tl.float32)
            BC_row = BC_ptr + tl.minimum(t0 + steps, length - 1).to(tl.int64) * (2 * NP)
            dBC_tile = dBC_ptr + t0 + warp_lane // 16 * NP * padded + warp_lane % 16 // (16 // TILE)
            for n in range(0, N):
                A = tl.load(A_ptr + n * channels + d, mask=mask_d, other=0.0)
                B_n = tl.load(BC_row + n)[:, None]
                C_n = tl.load(BC_row + NP + n)[:, None]
                if CHUNK_TILES > 1:
                    state = tl.load(inner_ptr + (j * NP + n) * channels + d, mask=mask_d, other=0.0)
                else:
                    state = tl.load(border + n * channels + d, mask=mask_d, other=0.0)
                carry = tl.load(carry_ptr + n * channels + d, mask=mask_d, other=0.0)
                dA = tl.load(dA_ptr + n * channels + d, mask=mask_d, other=0.0)
                decay = tl.exp2(step * (A * LOG2_E)[None, :])
                added = drive * B_n
                h = tl.zeros((TILE, BLOCK_D), tl.float32)
                before = tl.zeros((TILE, BLOCK_D), tl.float32)
                for k in tl.static_range(TILE):
                    r = TILE - 1 - k if REVERSE else k
                    before = tl.where(rows == r, state[None, :], before)
                    state = pick_row(decay, rows, r) * state + pick_row(added, rows, r)
                    h = tl.where(rows == r, state[None, :], h)
                y += h * C_n
                seed = dy * C_n
                g = tl.zeros((TILE, BLOCK_D), tl.float32)
                decayed = tl.zeros((TILE, BLOCK_D), tl.float32)
                for k in tl.static_range(TILE):
                    r = k if REVERSE else TILE - 1 - k
                    carry += pick_row(seed, rows, r)
                    g = tl.where(rows == r, carry[None, :], g)
                    carry *= pick_row(decay, rows, r)
                    decayed = tl.where(rows == r, carry[None, :], decayed)
                ddrive += g * B_n
                dBC = sum_channels(g * drive, dy * h, TILE, BLOCK_D)
                decayed *= before
                dA += tl.sum(decayed * step, axis=0)
                dstep += decayed * A[None, :]
                tl.store(carry_ptr + n * channels + d, carry, mask=mask_d)
                tl.store(dA_ptr + n * channels + d, dA, mask=mask_d)
                tl.store(dBC_tile + n * padded, dBC, mask=warp_lane % (16 // TILE) == 0)
            # What the loop had no use for is loaded again rather than kept in registers through it.
            u = load_tile(u_ptr, t0, d, u_t, length, mask_d, TILE)
            dstep += u * ddrive
            if SOFTPLUS:
                delta = load_tile(delta_ptr, t0, d, delta_t, length, mask_d, TILE)
                dstep *= sigmoid(delta + bias[None, :])
            dstep = tl.where(valid, dstep, 0.0)
            du = step * ddrive
            if HAS_D:
                du += skip[None, :] * dy
                dD += tl.sum(dy * u, axis=0)
                y += skip[None, :] * u
            dbias += tl.sum(dstep, axis=0)
            store_tile(du_ptr, t0, d, channels, du, L, mask_d, TILE)
            store_tile(ddelta_ptr, t0, d, channels, dstep, L, mask_d, TILE)
            if HAS_Z:
                z = load_tile(z_ptr, t0, d, z_t, length, mask_d, TILE)
                gate = sigmoid(z)
                dz = load_tile(dy_ptr, t0, d, dy_t, length, mask_d, TILE)
                dz *= y * gate * (1.0 + z * (1.0 - gate))
                store_tile(dz_ptr, t0, d, channels, dz, L, mask_d, TILE)
            tl.debug_barrier()
    tl.store(dD_ptr + place * channels + d, dD, mask=mask_d)
    tl.store(dbias_ptr + place * channels + d, dbias, mask=mask_d)
