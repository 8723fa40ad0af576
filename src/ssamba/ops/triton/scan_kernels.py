"""The selective scan's Triton kernels, forward and backward. `launch.py` imports this module, which needs triton, late.

Equations: see `reference.py`. With g_t the gradient of h_t before it decays: g_t = C_t dy_t + exp(delta_{t+1} A)
g_{t+1}. Shapes: B clips, L tokens, E channels, N states of a channel (NP: rounded up to a power of two).

How the work is laid out, and why:

- A program is one warp that owns BLOCK_E channels of a clip. Triton spreads the last axis of a tile over the lanes, so
  a (states, BLOCK_E) or (steps, BLOCK_E) tile keeps its first axis in the registers of one thread: the recurrence and
  the sums over states need no shuffle and no barrier. `pick_row` takes one row of such a tile by a masked sum; rows are
  constants and x + -0.0 is x for every x, so the compiler reduces it to a register's name.
- Every state is stored as (NP, E), so that all tiles have channels as their contiguous axis, and `own_channels` hides
  their alignment: each lane then loads one element at a time, which is the layout above. Otherwise a lane would load
  16 bytes of a row, and every tile would pass through shared memory.
- Forward: the state (NP, BLOCK_E) stays in registers, TILE steps are unrolled, and the next tile's loads are issued
  before this one is computed. exp limits the speed: one per state update, 16 per clock on a multiprocessor against
  128 multiply-adds.
- Backward: the states h_t of TILE steps are needed at once. Looping over n inside a tile keeps one state's history
  (TILE, BLOCK_E) in registers instead of all N; the gradient carried between tiles is in a small buffer that only its
  program touches. dB and dC are sums over channels, across lanes: `sum_channels`.
- The forward pass saves the state before every chunk of CHUNK_TILES tiles; the backward pass first reruns a chunk for
  the states between its tiles.
- B and C are packed as float32 (B, L, 2 NP), zero beyond N: one aligned row per step, read by all lanes at once.
- With too few programs for the chip, L is cut into segments. `scan_local` runs each from zero, `combine` chains their
  last states through exp(A sum(delta)), and the real pass starts every segment from there. The carried gradient obeys
  the same recurrence backwards, so both kernels serve the backward pass too (ADJOINT).
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
    sum_channels,
    zero_tiles,
)


# Sizes are not specialized: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["L", "channels", "segments", "segment_tiles", "chunks"])
def scan_forward(
    u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, lengths_ptr, start_ptr,
    out_ptr, last_ptr, chunk_states_ptr,
    L, channels, segments, segment_tiles, chunks,
    u_b, u_t, delta_b, delta_t, z_b, z_t,
    N: tl.constexpr, NP: tl.constexpr, BLOCK_E: tl.constexpr, TILE: tl.constexpr, CHUNK_TILES: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_START: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Scan one segment of one clip: output, last state (B, E, N), and chunk_states (B, chunks, NP, E) if SAVE.

    A (NP, E) float32, zero beyond N; start (B, segments, NP, E), the state that enters each segment.
    """
    blocks = tl.cdiv(channels, BLOCK_E)
    pid = tl.program_id(0)
    d = own_channels(pid % blocks, BLOCK_E)
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
        chunk_states_ptr += b * chunks * NP * channels
    A = load_state(A_ptr, d, channels, mask_d, NP) * LOG2_E
    bias = tl.zeros((BLOCK_E,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    skip = tl.zeros((BLOCK_E,), tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    h = tl.zeros((NP, BLOCK_E), tl.float32)
    if HAS_START:
        h = load_state(start_ptr + (b * segments + segment) * NP * channels, d, channels, mask_d, NP)

    first = segment * segment_tiles
    end = tl.minimum(first + segment_tiles, tl.cdiv(L, TILE))
    last = tl.maximum(tl.minimum(end, tl.cdiv(length, TILE)), first)
    zero_tiles(out_ptr, last, end, d, channels, L, mask_d, TILE, BLOCK_E)

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
                border = chunk_states_ptr + (tile // CHUNK_TILES).to(tl.int64) * NP * channels
                store_state(border, d, channels, h, mask_d, NP)
        valid = t0 + rows < length
        step = step_size(delta, bias[None, :], valid, SOFTPLUS)
        drive = step * u
        y = tl.zeros((TILE, BLOCK_E), tl.float32)
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


# Sizes are not specialized: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["L", "channels", "segments", "segment_tiles"])
def scan_local(
    u_ptr, delta_ptr, A_ptr, BC_ptr, z_ptr, bias_ptr, lengths_ptr, state_ptr, total_ptr,
    L, channels, segments, segment_tiles,
    u_b, u_t, delta_b, delta_t, z_b, z_t,
    NP: tl.constexpr, BLOCK_E: tl.constexpr, TILE: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Compute what a segment adds to its first state (B, segments, NP, E), and its sum of delta (B, segments, E).

    ADJOINT: `u` is the output's gradient, and the state's gradient is carried against the scan's direction.
    REVERSE is the direction of this pass.
    """
    blocks = tl.cdiv(channels, BLOCK_E)
    pid = tl.program_id(0)
    d = own_channels(pid % blocks, BLOCK_E)
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
    bias = tl.zeros((BLOCK_E,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    h = tl.zeros((NP, BLOCK_E), tl.float32)
    total = tl.zeros((BLOCK_E,), tl.float32)
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


# Sizes are not specialized: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["channels", "segments"])
def combine(
    A_ptr, start_ptr, state_ptr, total_ptr,
    channels, segments,
    NP: tl.constexpr, BLOCK_E: tl.constexpr, REVERSE: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """Replace what each segment adds by the state that enters it, one segment after another; REVERSE: from the last.

    start (B, NP, E) enters the first segment.
    """
    blocks = tl.cdiv(channels, BLOCK_E)
    pid = tl.program_id(0)
    d = own_channels(pid % blocks, BLOCK_E)
    b = (pid // blocks).to(tl.int64)
    mask_d = d < channels
    A = load_state(A_ptr, d, channels, mask_d, NP) * LOG2_E
    h = tl.zeros((NP, BLOCK_E), tl.float32)
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


# Sizes are not specialized: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["L", "padded", "channels", "batch", "segments", "segment_chunks", "chunks"])
def scan_backward(
    dy_ptr, u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, lengths_ptr, chunk_states_ptr, carry_ptr,
    inner_ptr, du_ptr, ddelta_ptr, dz_ptr, dA_ptr, dBC_ptr, dD_ptr, dbias_ptr,
    L, padded, channels, batch, segments, segment_chunks, chunks,
    dy_b, dy_t, u_b, u_t, delta_b, delta_t, z_b, z_t,
    N: tl.constexpr, NP: tl.constexpr, BLOCK_E: tl.constexpr, TILE: tl.constexpr, CHUNK_TILES: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one segment of one clip, against the scan's direction.

    A (NP, E) float32, zero beyond N. carry (B, segments, NP, E) holds the gradient that enters each segment on entry,
    and the one that leaves it on exit. Partial sums: dA (B, segments, NP, E), zero on entry;
    dD, dbias (B, segments, E); dBC (channel blocks, B, 2 NP, padded).
    inner (B, segments, CHUNK_TILES, NP, E): workspace.
    """
    blocks = tl.cdiv(channels, BLOCK_E)
    pid = tl.program_id(0)
    block = pid % blocks
    d = own_channels(block, BLOCK_E)
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
    chunk_states_ptr += b * chunks * NP * channels
    carry_ptr += place * NP * channels
    dA_ptr += place * NP * channels
    inner_ptr += place * CHUNK_TILES * NP * channels
    du_ptr += b * L * channels
    ddelta_ptr += b * L * channels
    dBC_ptr += (block.to(tl.int64) * batch + b) * (2 * NP) * padded
    bias = tl.zeros((BLOCK_E,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    skip = tl.zeros((BLOCK_E,), tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=mask_d, other=0.0).to(tl.float32)

    all_tiles = tl.cdiv(L, TILE)
    valid_tiles = tl.cdiv(length, TILE)
    first = segment * segment_chunks
    last = tl.maximum(tl.minimum(first + segment_chunks, tl.cdiv(length, TILE * CHUNK_TILES)), first)
    begin = tl.maximum(first * CHUNK_TILES, valid_tiles)
    end = tl.minimum((first + segment_chunks) * CHUNK_TILES, all_tiles)
    zero_tiles(du_ptr, begin, end, d, channels, L, mask_d, TILE, BLOCK_E)
    zero_tiles(ddelta_ptr, begin, end, d, channels, L, mask_d, TILE, BLOCK_E)
    if HAS_Z:
        z_ptr += b * z_b
        dz_ptr += b * L * channels
        zero_tiles(dz_ptr, begin, end, d, channels, L, mask_d, TILE, BLOCK_E)

    dD = tl.zeros((BLOCK_E,), tl.float32)
    dbias = tl.zeros((BLOCK_E,), tl.float32)
    for i in range(0, last - first):
        chunk = last - 1 - i
        if REVERSE:
            chunk = first + i
        # Tiles of this chunk; in the scan's order tile j is `low + j`, or `high - j` if REVERSE.
        low = chunk * CHUNK_TILES
        tiles = tl.minimum(CHUNK_TILES, valid_tiles - low)
        border = chunk_states_ptr + chunk.to(tl.int64) * NP * channels
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
            y = tl.zeros((TILE, BLOCK_E), tl.float32)
            ddrive = tl.zeros((TILE, BLOCK_E), tl.float32)
            dstep = tl.zeros((TILE, BLOCK_E), tl.float32)
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
                h = tl.zeros((TILE, BLOCK_E), tl.float32)
                before = tl.zeros((TILE, BLOCK_E), tl.float32)
                for k in tl.static_range(TILE):
                    r = TILE - 1 - k if REVERSE else k
                    before = tl.where(rows == r, state[None, :], before)
                    state = pick_row(decay, rows, r) * state + pick_row(added, rows, r)
                    h = tl.where(rows == r, state[None, :], h)
                y += h * C_n
                seed = dy * C_n
                g = tl.zeros((TILE, BLOCK_E), tl.float32)
                decayed = tl.zeros((TILE, BLOCK_E), tl.float32)
                for k in tl.static_range(TILE):
                    r = k if REVERSE else TILE - 1 - k
                    carry += pick_row(seed, rows, r)
                    g = tl.where(rows == r, carry[None, :], g)
                    carry *= pick_row(decay, rows, r)
                    decayed = tl.where(rows == r, carry[None, :], decayed)
                ddrive += g * B_n
                dBC = sum_channels(g * drive, dy * h, TILE, BLOCK_E)
                decayed *= before
                dA += tl.sum(decayed * step, axis=0)
                dstep += decayed * A[None, :]
                tl.store(carry_ptr + n * channels + d, carry, mask=mask_d)
                tl.store(dA_ptr + n * channels + d, dA, mask=mask_d)
                tl.store(dBC_tile + n * padded, dBC, mask=warp_lane % (16 // TILE) == 0)
            # u was not needed in the loop: loading it again costs less than keeping it in registers.
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
