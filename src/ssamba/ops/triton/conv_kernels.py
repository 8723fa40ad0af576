"""The causal convolution's Triton kernels. `launch.py` imports this module, which needs triton, late.

    s_t = bias + sum_k w_k x_{t-(W-1)+k}        y_t = silu(s_t)

Both passes are bound by memory: one read of each input, one write of each output, neighboring steps from the cache.
REVERSE mirrors time, which only changes the sign of every shift.
Shapes: B clips, L tokens, E channels, W taps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssamba.ops.triton.tiles import clip_length, sigmoid


@triton.jit
def conv_forward(
    x_ptr, w_ptr, bias_ptr, lengths_ptr, out_ptr, L, channels, x_b, x_t,
    W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_T steps of BLOCK_E channels of one clip."""
    blocks = tl.cdiv(channels, BLOCK_E)
    tiles = tl.cdiv(L, BLOCK_T)
    pid = tl.program_id(0)
    d = (pid % blocks * BLOCK_E + tl.arange(0, BLOCK_E))[None, :]
    t = (pid // blocks % tiles * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    b = (pid // blocks // tiles).to(tl.int64)
    mask_d = d < channels
    length = clip_length(lengths_ptr, b, L, HAS_LENGTHS)
    x_ptr += b * x_b
    y = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    for k in tl.static_range(W):
        back = W - 1 - k
        source = t + back if REVERSE else t - back
        mask = mask_d & (source >= 0) & (source < length)
        x = tl.load(x_ptr + source.to(tl.int64) * x_t + d, mask=mask, other=0.0).to(tl.float32)
        y += tl.load(w_ptr + d * W + k, mask=mask_d, other=0.0).to(tl.float32) * x
    if SILU:
        y *= sigmoid(y)
    y = tl.where(t < length, y, 0.0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (b * L + t) * channels + d, y, mask=mask_d & (t < L))


@triton.jit
def conv_backward(
    dy_ptr, x_ptr, w_ptr, bias_ptr, lengths_ptr, dx_ptr, dw_ptr, dbias_ptr, L, channels, tiles, dy_b, dy_t, x_b, x_t,
    W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
    REVERSE: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of `tiles` times BLOCK_T steps of BLOCK_E channels of one clip.

    dw (programs along time, W, E) and dbias (programs along time, E) are this program's shares of the sums over steps.
    A step feeds W outputs; the s of each is recomputed from the 2 W - 1 inputs around the step, which are read once.
    """
    blocks = tl.cdiv(channels, BLOCK_E)
    parts = tl.cdiv(L, BLOCK_T * tiles)
    pid = tl.program_id(0)
    d = (pid % blocks * BLOCK_E + tl.arange(0, BLOCK_E))[None, :]
    part = (pid // blocks).to(tl.int64)
    b = part // parts
    mask_d = d < channels
    length = clip_length(lengths_ptr, b, L, HAS_LENGTHS)
    x_ptr += b * x_b
    dy_ptr += b * dy_b
    bias = tl.zeros((1, BLOCK_E), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    zero = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    dbias = zero
    dw = (zero,)  # the gradient of tap W - 1 - i in place i, not yet added up over the tile
    for _ in tl.static_range(W - 1):
        dw = dw + (zero,)  # noqa: RUF005 (Triton does not unpack)
    first = (pid // blocks % parts) * tiles
    for i in range(0, tiles):
        t = ((first + i) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
        around = ()
        for k in tl.static_range(2 * W - 1):
            source = t - (k - W + 1) if REVERSE else t + (k - W + 1)
            mask = mask_d & (source >= 0) & (source < length)
            x = tl.load(x_ptr + source.to(tl.int64) * x_t + d, mask=mask, other=0.0).to(tl.float32)
            around = around + (x,)  # noqa: RUF005
        dx = zero
        new_dw = ()
        for ahead in tl.static_range(W):
            target = t - ahead if REVERSE else t + ahead
            mask = mask_d & (target >= 0) & (target < length)
            ds = tl.load(dy_ptr + target.to(tl.int64) * dy_t + d, mask=mask, other=0.0).to(tl.float32)
            if SILU:
                s = zero + bias
                for k in tl.static_range(W):
                    w = tl.load(w_ptr + d * W + k, mask=mask_d, other=0.0).to(tl.float32)
                    s += w * around[ahead + k]
                gate = sigmoid(s)
                ds *= gate * (1.0 + s * (1.0 - gate))
            # x at t meets tap W - 1 - ahead in the output at `target`.
            dx += tl.load(w_ptr + d * W + (W - 1 - ahead), mask=mask_d, other=0.0).to(tl.float32) * ds
            new_dw = new_dw + (dw[ahead] + around[W - 1] * ds,)  # noqa: RUF005
            if ahead == 0:
                dbias += ds
        dw = new_dw
        dx = tl.where(t < length, dx, 0.0).to(dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + (b * L + t) * channels + d, dx, mask=mask_d & (t < L))
    for i in tl.static_range(W):
        tl.store(dw_ptr + (part * W + W - 1 - i) * channels + d, tl.sum(dw[i], axis=0)[None, :], mask=mask_d)
    tl.store(dbias_ptr + part * channels + d, tl.sum(dbias, axis=0)[None, :], mask=mask_d)
