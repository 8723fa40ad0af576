"""The selective scan's Triton kernels; needs triton, so `triton_launch.py` imports it when one is about to run.

Equations: see `reference.py`. With g_t the gradient of h_t before it decays: g_t = C_t dy_t + exp(delta_{t+1} A)
g_{t+1}. Shapes: B batch, L tokens, D channels, N states (NP: rounded up to a power of two).

How the work is laid out, and why:

- A program is one warp that owns BLOCK_D channels of a clip. Triton spreads the last axis of a tile over the lanes, so
  a (states, BLOCK_D) or (steps, BLOCK_D) tile keeps its first axis in the registers of one thread: the recurrence and
  the sums over states need no shuffle and no barrier. `pick_row` takes one row of such a tile by a masked sum; rows are
  constants and x + -0.0 is x for every x, so the compiler reduces it to a register's name.
- Every state lies in memory as (NP, D), so that all tiles have channels as their contiguous axis, and `own_channels` hides
  their alignment: each lane then loads one element at a time, which is the layout above. Otherwise it would take 16 bytes
  of a row, and every tile would pass through shared memory.
- Forward: the state (NP, BLOCK_D) in registers, TILE steps unrolled, the next tile's loads issued before this one is
  computed. exp bounds it: one per state update, 16 per clock on a multiprocessor against 128 multiply-adds.
- Backward: the states h_t of TILE steps are needed at once. Looping over n inside a tile keeps one state's history
  (TILE, BLOCK_D) in registers instead of all N; the gradient carried between tiles lies in a small buffer that only its
  program touches. dB and dC are sums over channels, across lanes: `sum_channels`.
- The forward saves the state before every chunk of CHUNK_TILES tiles; the backward first reruns a chunk for the states
  between its tiles.
- B and C come packed as float32 (B, L, 2 NP), zero beyond N: one aligned row per step, read by all lanes at once.
- Too few programs for the chip: L is cut into segments. `scan_local` runs each from zero, `combine` chains their last
  states through exp(A sum(delta)), and the real pass starts every segment from there. The carried gradient obeys the
  same recurrence backwards, so both kernels serve the backward pass too (ADJOINT).
- Steps beyond a clip's length get delta = 0 and input 0, which leave the state alone; tiles beyond are only zeroed.
- No float atomics: sums across programs go through buffers that the launcher adds up in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssamba.ops.triton.tiles import (
    LOG2_E,
    clip_length,
    load_state,
    load_tile,
    own_channels,
    pick_row,
    sigmoid,
    step_size,
    store_state,
    store_tile,
    zero_tiles,
)


# Sizes are not specialised: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["L", "channels", "segments", "segment_tiles", "chunks"])
def scan_forward(
    u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, lengths_ptr, start_ptr,
    out_ptr, last_ptr, borders_ptr,
    L, channels, segments, segment_tiles, chunks,
    u_b, u_t, delta_b, delta_t, z_b, z_t,
    N: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, CHUNK_TILES: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_START: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """One segment of one clip: output, last state (B, D, N), and borders (B, chunks, NP, D) if SAVE.

    A (NP, D) float32, zero beyond N; start (B, segments, NP, D), the state that enters each segment.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    d = own_channels(pid % blocks, BLOCK_D)
    segment = pid // blocks % segments
    b = (pid // blocks // segments).to(tl.int64)
    mask_d = d < channels
    n = tl.arange(0, NP)
    rows = tl.arange(0, TILE)[:, None]
    length = clip_length(lengths_ptr, b, L, HAS_LENGTHS)

    u_ptr += b * u_b
    delta_ptr += b * delta_b
    BC_ptr += b * L * (2 * NP)
    out_ptr += b * L * channels
    if SAVE:
        borders_ptr += b * chunks * NP * channels
    A = load_state(A_ptr, d, channels, mask_d, NP) * LOG2_E
    bias = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    h = tl.zeros((NP, BLOCK_D), tl.float32)
    if HAS_START:
        h = load_state(start_ptr + (b * segments + segment) * NP * channels, d, channels, mask_d, NP)

    first = segment * segment_tiles
    end = tl.minimum(first + segment_tiles, tl.cdiv(L, TILE))
    last = tl.maximum(tl.minimum(end, tl.cdiv(length, TILE)), first)
    zero_tiles(out_ptr, last, end, d, channels, L, mask_d, TILE, BLOCK_D)

    tile = first
    if REVERSE:
        tile = last - 1
    limit = tl.where(last > first, length, tile * TILE)
    u_next = load_tile(u_ptr, tile * TILE, d, u_t, limit, mask_d, TILE)
    delta_next = load_tile(delta_ptr, tile * TILE, d, delta_t, limit, mask_d, TILE)
    z_next = u_next
    if HAS_Z:
        z_ptr += b * z_b
        z_next = load_tile(z_ptr, tile * TILE, d, z_t, limit, mask_d, TILE)
    for i in range(0, last - first):
        u, delta, z = u_next, delta_next, z_next
        tile = first + i
        ahead = tile + 1
        if REVERSE:
            tile = last - 1 - i
            ahead = tile - 1
        t0 = tile * TILE
        limit = tl.where(i + 1 < last - first, length, ahead * TILE)
        u_next = load_tile(u_ptr, ahead * TILE, d, u_t, limit, mask_d, TILE)
        delta_next = load_tile(delta_ptr, ahead * TILE, d, delta_t, limit, mask_d, TILE)
        if HAS_Z:
            z_next = load_tile(z_ptr, ahead * TILE, d, z_t, limit, mask_d, TILE)
        if SAVE:
            enters = tile % CHUNK_TILES == 0
            if REVERSE:
                enters = (tile % CHUNK_TILES == CHUNK_TILES - 1) | (i == 0)
            if enters:
                border = borders_ptr + (tile // CHUNK_TILES).to(tl.int64) * NP * channels
                store_state(border, d, channels, h, mask_d, NP)
        valid = t0 + rows < length
        step = step_size(delta, bias[None, :], valid, SOFTPLUS)
        drive = step * u
        y = tl.zeros((TILE, BLOCK_D), tl.float32)
        for k in tl.static_range(TILE):
            r = TILE - 1 - k if REVERSE else k
            BC_row = BC_ptr + tl.minimum(t0 + r, length - 1).to(tl.int64) * (2 * NP) + n
            B_t = tl.load(BC_row)
            C_t = tl.load(BC_row + NP)
            h = tl.exp2(pick_row(step, rows, r)[None, :] * A) * h + pick_row(drive, rows, r)[None, :] * B_t[:, None]
            y = tl.where(rows == r, tl.sum(h * C_t[:, None], axis=0)[None, :], y)
        if HAS_D:
            y += skip[None, :] * u
        if HAS_Z:
            y *= z * sigmoid(z)
        store_tile(out_ptr, t0, d, channels, tl.where(valid, y, 0.0), L, mask_d, TILE)

    final = segment == segments - 1
    if REVERSE:
        final = segment == 0
    if final:
        at = last_ptr + b * channels * N + d[None, :] * N + n[:, None]
        tl.store(at, h, mask=mask_d[None, :] & (n[:, None] < N))


# Sizes are not specialised: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["L", "channels", "segments", "segment_tiles"])
def scan_local(
    u_ptr, delta_ptr, A_ptr, BC_ptr, z_ptr, bias_ptr, lengths_ptr, state_ptr, total_ptr,
    L, channels, segments, segment_tiles,
    u_b, u_t, delta_b, delta_t, z_b, z_t,
    NP: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """What one segment adds to the state that enters it, (B, segments, NP, D), and its sum of delta, (B, segments, D).

    ADJOINT: `u` is the output's gradient and what is carried is the state's gradient, against the scan's direction.
    REVERSE is the direction that this pass runs in.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    d = own_channels(pid % blocks, BLOCK_D)
    segment = pid // blocks % segments
    b = (pid // blocks // segments).to(tl.int64)
    mask_d = d < channels
    n = tl.arange(0, NP)
    rows = tl.arange(0, TILE)[:, None]
    length = clip_length(lengths_ptr, b, L, HAS_LENGTHS)

    u_ptr += b * u_b
    delta_ptr += b * delta_b
    if HAS_Z:
        z_ptr += b * z_b
    BC_ptr += b * L * (2 * NP)
    A = load_state(A_ptr, d, channels, mask_d, NP) * LOG2_E
    bias = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    h = tl.zeros((NP, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    first = segment * segment_tiles
    last = tl.maximum(tl.minimum(first + segment_tiles, tl.cdiv(length, TILE)), first)
    for i in range(0, last - first):
        tile = first + i
        if REVERSE:
            tile = last - 1 - i
        t0 = tile * TILE
        valid = t0 + rows < length
        drive = load_tile(u_ptr, t0, d, u_t, length, mask_d, TILE)
        delta = load_tile(delta_ptr, t0, d, delta_t, length, mask_d, TILE)
        step = step_size(delta, bias[None, :], valid, SOFTPLUS)
        if ADJOINT:
            if HAS_Z:
                z = load_tile(z_ptr, t0, d, z_t, length, mask_d, TILE)
                drive *= z * sigmoid(z)
        else:
            drive *= step
        total += tl.sum(step, axis=0)
        for k in tl.static_range(TILE):
            r = TILE - 1 - k if REVERSE else k
            BC_row = BC_ptr + tl.minimum(t0 + r, length - 1).to(tl.int64) * (2 * NP) + n
            decay = tl.exp2(pick_row(step, rows, r)[None, :] * A)
            if ADJOINT:
                h = decay * (h + pick_row(drive, rows, r)[None, :] * tl.load(BC_row + NP)[:, None])
            else:
                h = decay * h + pick_row(drive, rows, r)[None, :] * tl.load(BC_row)[:, None]
    place = b * segments + segment
    store_state(state_ptr + place * NP * channels, d, channels, h, mask_d, NP)
    tl.store(total_ptr + place * channels + d, total, mask=mask_d)


# Sizes are not specialised: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["channels", "segments"])
def combine(
    A_ptr, start_ptr, state_ptr, total_ptr,
    channels, segments,
    NP: tl.constexpr, BLOCK_D: tl.constexpr, REVERSE: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """Replace what each segment adds by the state that enters it, one segment after another; REVERSE from the last.

    start (B, NP, D) enters the first.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    d = own_channels(pid % blocks, BLOCK_D)
    b = (pid // blocks).to(tl.int64)
    mask_d = d < channels
    A = load_state(A_ptr, d, channels, mask_d, NP) * LOG2_E
    h = tl.zeros((NP, BLOCK_D), tl.float32)
    if HAS_START:
        h = load_state(start_ptr + b * NP * channels, d, channels, mask_d, NP)
    for i in range(0, segments):
        place = b * segments + i
        if REVERSE:
            place = b * segments + (segments - 1 - i)
        state = state_ptr + place * NP * channels
        total = tl.load(total_ptr + place * channels + d, mask=mask_d, other=0.0)
        added = load_state(state, d, channels, mask_d, NP)
        store_state(state, d, channels, h, mask_d, NP)
        h = tl.exp2(total[None, :] * A) * h + added
