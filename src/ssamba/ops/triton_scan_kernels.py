"""The selective scan's Triton kernels; needs triton, so `triton_launch.py` imports it when one is about to run.

Equations: see `reference.py`. With g_t the gradient of h_t before it decays: g_t = C_t dy_t + exp(delta_{t+1} A)
g_{t+1}. Shapes: B batch, L tokens, D channels, N states (NP: rounded up to a power of two).

How the work is laid out, and why:

- A program is one warp that owns BLOCK_D channels of a clip. Triton spreads the last axis of a tile over the lanes, so
  a (states, BLOCK_D) or (steps, BLOCK_D) tile keeps its first axis in the registers of one thread: the recurrence and
  the sums over states need no shuffle and no barrier. `pick_row` takes one row of such a tile by a masked sum; rows are
  constants and x + -0.0 is x for every x, so the compiler reduces it to a register's name.
- Loads of (steps, BLOCK_D) tiles hide their contiguity from the compiler (`max_contiguous(.., 1)`). It would otherwise
  give each thread 16 bytes of a row and pass every tile through shared memory to get the layout above.
- Forward: the state (NP, BLOCK_D) in registers, TILE steps unrolled, the next tile's loads issued before this one is
  computed. exp bounds it: one per state update, 16 per clock on a multiprocessor against 128 multiply-adds.
- Backward: the states h_t of TILE steps are needed at once. Looping over n inside a tile keeps one state's history
  (TILE, BLOCK_D) in registers instead of all N; the gradient carried between tiles lies in a small buffer that only its
  program touches. dB and dC are sums over channels, across lanes: `_sum_channels`.
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

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def pick_row(tile, rows, r: tl.constexpr):
    """Row `r` of a (steps, channels) tile, float32."""
    minus_zero = tl.full((1,), 0.0, tl.float32) * -1.0  # a literal -0.0 becomes +0.0, and -0.0 + 0.0 is not -0.0
    return tl.sum(tl.where(rows == r, tile, minus_zero), axis=0)


@triton.jit
def _half_rows(x, lane, distance: tl.constexpr, R: tl.constexpr):
    """(R, 32) to (R / 2, 32): lane l adds up its own and lane l ^ `distance`'s values, of the rows that it keeps."""
    half = tl.arange(0, 2)[:, None, None]
    x = tl.reshape(x, (2, R // 2, 32))
    return _exchange(pick_row(x, half, 0), pick_row(x, half, 1), lane, distance, R // 2)


@triton.jit
def _exchange(x, y, lane, distance: tl.constexpr, R: tl.constexpr):
    """(R, 32): the lanes with bit `distance` clear keep x and receive x, the others y."""
    low = (lane & distance) == 0
    partner = tl.broadcast_to(lane ^ distance, (R, 32))
    return tl.where(low, x, y) + tl.gather(tl.where(low, y, x), partner, axis=1)


@triton.jit
def _sum_channels(x, y, lane, R: tl.constexpr, BLOCK_D: tl.constexpr):
    """Sums of two (R, BLOCK_D) tiles over channels, R <= 16, as (1, 32): lanes 0-15 hold x's, 16-31 y's.

    Row r stands in the lanes l with l % 16 // (16 / R) = r. Halving the rows at each exchange takes R + 5 shuffles of a
    warp where a sum of each row on its own takes 10 R.
    """
    x = tl.sum(tl.reshape(x, (R, BLOCK_D // 32, 32)), axis=1)
    y = tl.sum(tl.reshape(y, (R, BLOCK_D // 32, 32)), axis=1)
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
    return s


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) to 2e-7 relative: a polynomial for log1p(e) / e, since log(1 + e) loses small e."""
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
    """1 / (1 + exp(-x))."""
    r = tl.rsqrt(1.0 + tl.exp2(-x * LOG2_E))  # one instruction, where a division takes ten
    return r * r


@triton.jit
def clip_length(lengths, b, L, HAS_LENGTHS: tl.constexpr):
    """Valid steps of clip `b`, int32."""
    length = L
    if HAS_LENGTHS:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), L).to(tl.int32)
    return length


@triton.jit
def _tile(pointer, t0, rows, d, stride, mask):
    """(steps, channels) in float32, zero where masked; `pointer` stands at the clip's first step."""
    return tl.load(pointer + t0.to(tl.int64) * stride + rows * stride + d, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store_tile(pointer, t0, rows, d, stride, value, mask):
    tl.store(pointer + t0.to(tl.int64) * stride + rows * stride + d, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _zero_tiles(pointer, first, last, L, rows, d, stride, mask_d, TILE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Zero the rows of tiles [first, last)."""
    zero = tl.zeros((TILE, BLOCK_D), tl.float32)
    for tile in range(first, last):
        t0 = tile * TILE
        _store_tile(pointer, t0, rows, d, stride, zero, mask_d & (t0 + rows < L))


@triton.jit
def _step_size(delta, bias, valid, SOFTPLUS: tl.constexpr):
    """Delta after bias and softplus, zero beyond the clip."""
    step = delta + bias
    if SOFTPLUS:
        step = _softplus(step)
    return tl.where(valid, step, 0.0)


# Sizes are not specialised: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["L", "channels", "segments", "segment_tiles", "chunks"])
def scan_forward(
    u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, lengths_ptr, start_ptr,
    out_ptr, last_ptr, borders_ptr,
    L, channels, segments, segment_tiles, chunks,
    u_b, u_t, delta_b, delta_t, z_b, z_t, A_d, A_n, start_b, start_s, start_d, start_n,
    N: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, CHUNK_TILES: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_START: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """One segment of one clip: output, last state (B, D, N), and borders (B, chunks, NP, D) if SAVE."""
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    d = tl.max_contiguous(pid % blocks * BLOCK_D + tl.arange(0, BLOCK_D), 1)
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
    state_mask = (n[:, None] < N) & mask_d[None, :]
    A = tl.load(A_ptr + n[:, None] * A_n + d[None, :] * A_d, mask=state_mask, other=0.0).to(tl.float32) * LOG2_E
    bias = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    h = tl.zeros((NP, BLOCK_D), tl.float32)
    if HAS_START:
        start = start_ptr + b * start_b + segment.to(tl.int64) * start_s
        h = tl.load(start + n[:, None] * start_n + d[None, :] * start_d, mask=state_mask, other=0.0).to(tl.float32)

    first = segment * segment_tiles
    end = tl.minimum(first + segment_tiles, tl.cdiv(L, TILE))
    last = tl.maximum(tl.minimum(end, tl.cdiv(length, TILE)), first)
    _zero_tiles(out_ptr, last, end, L, rows, d[None, :], channels, mask_d[None, :], TILE, BLOCK_D)

    tile = first
    if REVERSE:
        tile = last - 1
    mask = mask_d[None, :] & (tile * TILE + rows < length) & (last > first)
    u_next = _tile(u_ptr, tile * TILE, rows, d[None, :], u_t, mask)
    delta_next = _tile(delta_ptr, tile * TILE, rows, d[None, :], delta_t, mask)
    z_next = u_next
    if HAS_Z:
        z_ptr += b * z_b
        z_next = _tile(z_ptr, tile * TILE, rows, d[None, :], z_t, mask)
    for i in range(0, last - first):
        u, delta, z = u_next, delta_next, z_next
        tile = first + i
        ahead = tile + 1
        if REVERSE:
            tile = last - 1 - i
            ahead = tile - 1
        t0 = tile * TILE
        mask = mask_d[None, :] & (ahead * TILE + rows < length) & (i + 1 < last - first)
        u_next = _tile(u_ptr, ahead * TILE, rows, d[None, :], u_t, mask)
        delta_next = _tile(delta_ptr, ahead * TILE, rows, d[None, :], delta_t, mask)
        if HAS_Z:
            z_next = _tile(z_ptr, ahead * TILE, rows, d[None, :], z_t, mask)
        if SAVE:
            enters = tile % CHUNK_TILES == 0
            if REVERSE:
                enters = (tile % CHUNK_TILES == CHUNK_TILES - 1) | (i == 0)
            if enters:
                border = borders_ptr + (tile // CHUNK_TILES).to(tl.int64) * NP * channels
                tl.store(border + n[:, None] * channels + d[None, :], h, mask=mask_d[None, :])
        valid = t0 + rows < length
        step = _step_size(delta, bias[None, :], valid, SOFTPLUS)
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
        y = tl.where(valid, y, 0.0)
        _store_tile(out_ptr, t0, rows, d[None, :], channels, y, mask_d[None, :] & (t0 + rows < L))

    final = segment == segments - 1
    if REVERSE:
        final = segment == 0
    if final:
        tl.store(last_ptr + b * channels * N + d[None, :] * N + n[:, None], h, mask=state_mask)


# Sizes are not specialised: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["L", "channels", "segments", "segment_tiles"])
def scan_local(
    u_ptr, delta_ptr, A_ptr, BC_ptr, z_ptr, bias_ptr, lengths_ptr, state_ptr, total_ptr,
    L, channels, segments, segment_tiles,
    u_b, u_t, delta_b, delta_t, z_b, z_t, A_d, A_n,
    N: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """What one segment adds to the state that enters it, (B, segments, NP, D), and its sum of delta, (B, segments, D).

    ADJOINT: `u` is the output's gradient and what is carried is the state's gradient, against the scan's direction.
    REVERSE is the direction that this pass runs in.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    d = tl.max_contiguous(pid % blocks * BLOCK_D + tl.arange(0, BLOCK_D), 1)
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
    state_mask = (n[:, None] < N) & mask_d[None, :]
    A = tl.load(A_ptr + n[:, None] * A_n + d[None, :] * A_d, mask=state_mask, other=0.0).to(tl.float32) * LOG2_E
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
        mask = mask_d[None, :] & valid
        drive = _tile(u_ptr, t0, rows, d[None, :], u_t, mask)
        delta = _tile(delta_ptr, t0, rows, d[None, :], delta_t, mask)
        step = _step_size(delta, bias[None, :], valid, SOFTPLUS)
        if ADJOINT:
            if HAS_Z:
                z = _tile(z_ptr, t0, rows, d[None, :], z_t, mask)
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
    tl.store(state_ptr + (place * NP + n[:, None]) * channels + d[None, :], h, mask=mask_d[None, :])
    tl.store(total_ptr + place * channels + d, total, mask=mask_d)


# Sizes are not specialised: each multiple of 16, and 1, would compile a kernel of its own.
@triton.jit(do_not_specialize=["channels", "segments"])
def combine(
    A_ptr, start_ptr, state_ptr, total_ptr,
    channels, segments, A_d, A_n, start_b, start_d, start_n,
    N: tl.constexpr, NP: tl.constexpr, BLOCK_D: tl.constexpr, REVERSE: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """Replace what each segment adds by the state that enters it, one segment after another; REVERSE from the last."""
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    d = tl.max_contiguous(pid % blocks * BLOCK_D + tl.arange(0, BLOCK_D), 1)
    b = (pid // blocks).to(tl.int64)
    mask_d = d < channels
    n = tl.arange(0, NP)
    state_mask = (n[:, None] < N) & mask_d[None, :]
    A = tl.load(A_ptr + n[:, None] * A_n + d[None, :] * A_d, mask=state_mask, other=0.0).to(tl.float32) * LOG2_E
    h = tl.zeros((NP, BLOCK_D), tl.float32)
    if HAS_START:
        start = start_ptr + b * start_b + n[:, None] * start_n + d[None, :] * start_d
        h = tl.load(start, mask=state_mask, other=0.0).to(tl.float32)
    for i in range(0, segments):
        place = b * segments + i
        if REVERSE:
            place = b * segments + (segments - 1 - i)
        state = state_ptr + (place * NP + n[:, None]) * channels + d[None, :]
        total = tl.load(total_ptr + place * channels + d, mask=mask_d, other=0.0)
        added = tl.load(state, mask=mask_d[None, :], other=0.0)
        tl.store(state, h, mask=mask_d[None, :])
        h = tl.exp2(total[None, :] * A) * h + added


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
    dD, dbias (B, segments, D); dBC (channel blocks, B, 2 NP, padded). inner: scratch, (programs, CHUNK_TILES, NP,
    BLOCK_D).
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    block = pid % blocks
    lane = tl.max_contiguous(tl.arange(0, BLOCK_D), 1)
    d = tl.max_contiguous(block * BLOCK_D + tl.arange(0, BLOCK_D), 1)
    segment = pid // blocks % segments
    b = (pid // blocks // segments).to(tl.int64)
    mask_d = d < channels
    steps = tl.arange(0, TILE)
    rows = steps[:, None]
    warp_lane = tl.arange(0, 32)[None, :]
    length = clip_length(lengths_ptr, b, L, HAS_LENGTHS)

    place = b * segments + segment
    dy_ptr += b * dy_b
    u_ptr += b * u_b
    delta_ptr += b * delta_b
    BC_ptr += b * L * (2 * NP)
    borders_ptr += b * chunks * NP * channels
    carry_ptr += place * NP * channels
    dA_ptr += place * NP * channels
    inner_ptr += pid.to(tl.int64) * (CHUNK_TILES * NP * BLOCK_D)
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
    _zero_tiles(du_ptr, begin, end, L, rows, d[None, :], channels, mask_d[None, :], TILE, BLOCK_D)
    _zero_tiles(ddelta_ptr, begin, end, L, rows, d[None, :], channels, mask_d[None, :], TILE, BLOCK_D)
    if HAS_Z:
        z_ptr += b * z_b
        dz_ptr += b * L * channels
        _zero_tiles(dz_ptr, begin, end, L, rows, d[None, :], channels, mask_d[None, :], TILE, BLOCK_D)

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
                tl.store(inner_ptr + n * BLOCK_D + lane, entering)
            for j in range(0, tiles - 1):
                tile = low + j
                if REVERSE:
                    tile = low + tiles - 1 - j
                t0 = tile * TILE
                mask = mask_d[None, :] & (t0 + rows < length)
                delta = _tile(delta_ptr, t0, rows, d[None, :], delta_t, mask)
                step = _step_size(delta, bias[None, :], t0 + rows < length, SOFTPLUS)
                drive = step * _tile(u_ptr, t0, rows, d[None, :], u_t, mask)
                BC_row = BC_ptr + tl.minimum(t0 + steps, length - 1).to(tl.int64) * (2 * NP)
                for n in range(0, N):
                    A = tl.load(A_ptr + n * channels + d, mask=mask_d, other=0.0) * LOG2_E
                    state = tl.load(inner_ptr + (j * NP + n) * BLOCK_D + lane)
                    decay = tl.exp2(step * A[None, :])
                    added = drive * tl.load(BC_row + n)[:, None]
                    for k in tl.static_range(TILE):
                        r = TILE - 1 - k if REVERSE else k
                        state = pick_row(decay, rows, r) * state + pick_row(added, rows, r)
                    tl.store(inner_ptr + ((j + 1) * NP + n) * BLOCK_D + lane, state)
            tl.debug_barrier()

        for back in range(0, tiles):
            j = tiles - 1 - back
            tile = low + j
            if REVERSE:
                tile = low + back
            t0 = tile * TILE
            valid = t0 + rows < length
            mask = mask_d[None, :] & valid
            step = _step_size(_tile(delta_ptr, t0, rows, d[None, :], delta_t, mask), bias[None, :], valid, SOFTPLUS)
            drive = step * _tile(u_ptr, t0, rows, d[None, :], u_t, mask)
            dy = _tile(dy_ptr, t0, rows, d[None, :], dy_t, mask)
            if HAS_Z:
                z = _tile(z_ptr, t0, rows, d[None, :], z_t, mask)
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
                    state = tl.load(inner_ptr + (j * NP + n) * BLOCK_D + lane)
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
                dBC = _sum_channels(g * drive, dy * h, warp_lane, TILE, BLOCK_D)
                decayed *= before
                dA += tl.sum(decayed * step, axis=0)
                dstep += decayed * A[None, :]
                tl.store(carry_ptr + n * channels + d, carry, mask=mask_d)
                tl.store(dA_ptr + n * channels + d, dA, mask=mask_d)
                tl.store(dBC_tile + n * padded, dBC, mask=warp_lane % (16 // TILE) == 0)
            # What the loop had no use for is loaded again rather than kept in registers through it.
            u = _tile(u_ptr, t0, rows, d[None, :], u_t, mask)
            dstep += u * ddrive
            if SOFTPLUS:
                dstep *= sigmoid(_tile(delta_ptr, t0, rows, d[None, :], delta_t, mask) + bias[None, :])
            dstep = tl.where(valid, dstep, 0.0)
            du = step * ddrive
            if HAS_D:
                du += skip[None, :] * dy
                dD += tl.sum(dy * u, axis=0)
                y += skip[None, :] * u
            dbias += tl.sum(dstep, axis=0)
            inside = mask_d[None, :] & (t0 + rows < L)
            _store_tile(du_ptr, t0, rows, d[None, :], channels, du, inside)
            _store_tile(ddelta_ptr, t0, rows, d[None, :], channels, dstep, inside)
            if HAS_Z:
                z = _tile(z_ptr, t0, rows, d[None, :], z_t, mask)
                gate = sigmoid(z)
                dz = _tile(dy_ptr, t0, rows, d[None, :], dy_t, mask) * y * gate * (1.0 + z * (1.0 - gate))
                _store_tile(dz_ptr, t0, rows, d[None, :], channels, dz, inside)
            tl.debug_barrier()
    tl.store(dD_ptr + place * channels + d, dD, mask=mask_d)
    tl.store(dbias_ptr + place * channels + d, dbias, mask=mask_d)
