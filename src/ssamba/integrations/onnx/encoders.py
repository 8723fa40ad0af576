"""ONNX graphs of the encoders' blocks: SSAMBA of both block layouts, and SSAST.

A selective scan has no operator in ONNX. Here it is the operator Scan over time, whose body has six operators, for all
directions of a layer at once: two blocks of two directions, side by side. Directions that run backwards read the
sequence reversed within each clip's own length, so everything is causal, and padding after a clip changes nothing.

The equations are those of `ssamba.ops.mixer`.

Shapes: B clips, L tokens (prefix included), D channels, E inner channels, N states, W taps, S blocks of a layer (2 if
paired), G = 2 S B sequences; H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto, helper
from torch import Tensor, nn

from ssamba.config import EncoderConfig, SSASTConfig
from ssamba.integrations.onnx.graph import Graph, Weight
from ssamba.model.encoder import Block, DirectionalScan, PatchEncoder, SSAMBAEncoder
from ssamba.model.ssast import Block as AttentionBlock
from ssamba.model.ssast import SSASTEncoder


def add_blocks(g: Graph, encoder: PatchEncoder, hidden: str, lengths: str) -> list[str]:
    """Add all blocks over `hidden` (B, L, D), `lengths` (B,) tokens valid.

    Returns:
        The input of each layer and the output of the last, then the result of the final norm; arbitrary after a clip's
        own tokens.
    """
    states = [hidden]
    if isinstance(encoder, SSASTEncoder):
        bias = _attention_bias(g, hidden, lengths)
        for block in encoder.blocks:
            assert isinstance(block, AttentionBlock)
            states.append(_attention_block(g, block, states[-1], bias, encoder.config))
        return [*states, _norm(g, states[-1], encoder.norm.weight, encoder.norm.bias, encoder.config.norm_eps)]
    assert isinstance(encoder, SSAMBAEncoder)
    config = encoder.config
    size = 2 if config.block_layout == "paired" else 1
    blocks = [block for block in encoder.blocks if isinstance(block, Block)]
    lengths = g("Tile", lengths, [size])
    for first in range(0, len(blocks), size):
        stream, added = states[-1], _mixers(g, blocks[first : first + size], states[-1], lengths, config)
        if size == 2 and config.pair_residual == "sum":
            stream = g("Mul", stream, 2.0)
        states.append(g("Add", added, stream))
    tokens = states[-1]
    for _ in range(config.final_norms):
        tokens = _norm(g, tokens, encoder.norm.weight, encoder.norm.bias, config.norm_eps)
    return [*states, tokens]


def _norm(g: Graph, x: str, weight: Tensor, bias: Tensor, eps: float) -> str:
    return g("LayerNormalization", x, g.weight(weight), g.weight(bias), axis=-1, epsilon=eps)


def _mixers(g: Graph, blocks: Sequence[Block], stream: str, lengths: str, config: EncoderConfig) -> str:
    """Return the sum of what the blocks of a layer add to the stream (B, L, D); `lengths` (S B,).

    The second block of a pair runs backwards, so its two directions are exchanged.
    """
    dim, inner, states, taps = config.embed_dim, config.inner_dim, config.state_size, config.conv_kernel
    size, batch = len(blocks), g.dim(stream, 0)
    grid = g.shape(size, batch, -1, inner)
    sequences = g.shape(-1, *(g.dim(stream, 1), inner))

    # The norm's weight and bias become part of the input projection.
    normal = g("LayerNormalization", stream, np.ones(dim, np.float32), axis=-1, epsilon=config.norm_eps)
    normal = g("Unsqueeze", normal, [0])
    x, z = (_projected(g, blocks, normal, rows, config) for rows in (slice(0, inner), slice(inner, None)))

    def reverse(value: str) -> str:
        return g("ReverseSequence", value, lengths, batch_axis=0, time_axis=1)

    x = g("Reshape", x, sequences)
    directions = [(block.mixer.forward_scan, block.mixer.backward_scan) for block in blocks]
    directions = [pair if not i else pair[::-1] for i, pair in enumerate(directions)]
    scans = [ahead for ahead, _ in directions] + [behind for _, behind in directions]
    x = g("Reshape", g("Concat", x, reverse(x), axis=0), g.shape(2 * size, batch, -1, inner))

    def stacked(of: Callable[[DirectionalScan], Tensor], *shape: int, matrix: bool = False) -> Weight:
        """Return a parameter of every direction, transposed if it has two axes, (2 S, 1, *shape)."""
        each = [g.matrix(of(scan)) if matrix else g.weight(of(scan)) for scan in scans]
        if of(scans[0]).ndim == 2:
            each = [g.fold("Transpose", one, perm=[1, 0]) for one in each]
        return g.fold("Concat", *(g.fold("Reshape", one, [1, 1, *shape]) for one in each), axis=0)

    u = _convolved(g, x, stacked(lambda s: s.conv_weight, taps, 1, inner), taps)
    u = g("Add", u, stacked(lambda s: s.conv_bias, 1, inner))
    u = g("Mul", u, g("Sigmoid", u))

    rank = config.dt_rank
    low = g("MatMul", u, stacked(lambda s: s.x_proj.weight, inner, rank + 2 * states, matrix=True))
    low, b, c = g.many("Split", 3, low, [rank, states, states], axis=-1)
    delta = g("MatMul", low, stacked(lambda s: s.dt_proj.weight, rank, inner, matrix=True))
    delta = _softplus(g, g("Add", delta, stacked(lambda s: s.dt_proj.bias, 1, inner)))
    a_log = stacked(lambda s: s.A_log, states, inner)
    decay = g.fold("Neg", g.fold("Exp", a_log))
    decay = g("Reshape", g("Expand", decay, g.shape(1, batch, 1, 1)), [-1, states, inner])

    def over_time(value: str, *shape: int) -> str:
        """(2 S, B, L, n) -> (L, G, *shape)."""
        return g("Reshape", g("Transpose", value, perm=[2, 0, 1, 3]), g.shape(length, -1, *shape))

    length = g.dim(stream, 1)
    zeros = g("Mul", decay, 0.0)
    y = _scan(
        g,
        decay,
        zeros,
        over_time(delta, 1, inner),
        over_time(g("Mul", delta, u), 1, inner),
        over_time(b, states, 1),
        over_time(c, 1, states),
    )
    y = g("Reshape", y, g.shape(length, 2 * size, batch, inner))
    y = g("Add", g("Transpose", y, perm=[1, 2, 0, 3]), g("Mul", u, stacked(lambda s: s.D, 1, inner)))
    ahead, behind = (g("Reshape", half, sequences) for half in g.many("Split", 2, y, [size, size], axis=0))
    y = g("Reshape", g("Add", ahead, reverse(behind)), grid)
    y = g("Mul", y, g("Mul", z, g("Sigmoid", z)))
    out = [g.fold("Transpose", g.matrix(block.mixer.out_proj.weight), perm=[1, 0]) for block in blocks]
    weights = g.fold("Concat", *(g.fold("Reshape", one, [1, 1, inner, dim]) for one in out), axis=0)
    return g("ReduceSum", g("MatMul", y, g.fold("Mul", weights, 0.5)), [0], keepdims=0)


def _projected(g: Graph, blocks: Sequence[Block], normal: str, rows: slice, config: EncoderConfig) -> str:
    """Return x or z of every block, (S, B, L, E), from the normalized stream (1, B, L, D)."""
    weights, biases = [], []
    for block in blocks:
        weight = g.fold("Transpose", g.matrix(block.mixer.in_proj.weight[rows]), perm=[1, 0])
        scale, shift = g.weight(block.norm.weight), g.weight(block.norm.bias)
        weights.append(g.fold("Mul", weight, g.fold("Reshape", scale, [1, 1, -1, 1])))
        biases.append(g.fold("Reshape", g.fold("MatMul", shift, weight), [1, 1, 1, -1]))
    product = g("MatMul", normal, g.fold("Concat", *weights, axis=0))
    return g("Add", product, g.fold("Concat", *biases, axis=0))


def _convolved(g: Graph, x: str, weights: Weight, taps: int) -> str:
    """Convolve (2 S, B, L, E) along L, causally, with `weights` (2 S, 1, W, 1, E)."""
    length = g.dim(x, 2)
    padded = g("Pad", x, [0, 0, taps - 1, 0, 0, 0, 0, 0])
    total = ""
    for tap in range(taps):
        weight = g.fold("Gather", weights, np.int64(tap), axis=2)
        part = g("Slice", padded, [tap], g("Add", length, [tap]), [2])
        product = g("Mul", part, weight)
        total = g("Add", total, product) if total else product
    return total


def _softplus(g: Graph, x: str) -> str:
    """Return log(1 + exp(x)) from operators that runtimes compute with vector instructions, unlike Softplus."""
    small = g("Exp", g("Neg", g("Abs", x)))
    more = g("Add", small, 1.0)
    # What was lost when 1 was added comes back.
    log = g("Add", g("Log", more), g("Sub", small, g("Sub", more, 1.0)))
    return g("Add", g("Relu", x), log)


def _scan(g: Graph, decay: str, zeros: str, delta: str, delta_u: str, b: str, c: str) -> str:
    """Add the operator Scan: h = exp(delta A) h + B (delta u), y = C h; returns y (L, G, 1, E).

    `decay` is A (G, N, E), which the body reads from outside; delta and delta_u (L, G, 1, E), b (L, G, N, 1), c (L, G,
    1, N).
    """

    def value(name: str) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, None])

    prefix = f"body_{len(g.nodes)}_"
    h, d, du, b_t, c_t, out, y = (prefix + name for name in ("h", "delta", "delta_u", "b", "c", "next", "y"))
    rate, kept, old, new = (prefix + name for name in ("rate", "kept", "old", "new"))
    nodes = [
        helper.make_node("Mul", [d, decay], [rate]),
        helper.make_node("Exp", [rate], [kept]),
        helper.make_node("Mul", [kept, h], [old]),
        helper.make_node("MatMul", [b_t, du], [new]),
        helper.make_node("Add", [old, new], [out]),
        helper.make_node("MatMul", [c_t, out], [y]),
    ]
    body = helper.make_graph(nodes, "step", [value(name) for name in (h, d, du, b_t, c_t)], [value(out), value(y)])
    return g.many("Scan", 2, zeros, delta, delta_u, b, c, body=body, num_scan_inputs=4)[1]


def _linear(g: Graph, x: str, layer: nn.Module) -> str:
    assert isinstance(layer, nn.Linear)
    return g("Add", g("MatMul", x, g.fold("Transpose", g.matrix(layer.weight), perm=[1, 0])), g.weight(layer.bias))


def _attention_bias(g: Graph, hidden: str, lengths: str) -> str:
    """Return what is added to the scores (B, 1, 1, L): a large negative number for keys that are padding."""
    valid = g("Less", g.steps(g.dim(hidden, 1)), g("Unsqueeze", lengths, [1]))
    return g("Unsqueeze", g("Where", valid, 0.0, -1e30), [1, 2])


def _attention_block(g: Graph, block: AttentionBlock, x: str, bias: str, config: SSASTConfig) -> str:
    """Add pre-norm attention and MLP with their residual connections, (B, L, D)."""
    heads, size = config.num_heads, config.embed_dim // config.num_heads
    attention, mlp = block.attention, list(block.mlp)
    normal = _norm(g, x, block.norm1.weight, block.norm1.bias, config.norm_eps)
    qkv = _linear(g, normal, attention.qkv)
    each = g.many("Split", 3, qkv, [config.embed_dim] * 3, axis=-1)
    q, k, v = (g("Transpose", g("Reshape", one, [0, 0, heads, size]), perm=[0, 2, 1, 3]) for one in each)
    scores = g("MatMul", g("Mul", q, size**-0.5), g("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = g("MatMul", g("Softmax", g("Add", scores, bias), axis=-1), v)
    mixed = g("Reshape", g("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, config.embed_dim])
    x = g("Add", x, _linear(g, mixed, attention.proj))
    normal = _norm(g, x, block.norm2.weight, block.norm2.bias, config.norm_eps)
    y = _linear(g, normal, mlp[0])
    y = g("Mul", g("Mul", y, 0.5), g("Add", g("Erf", g("Mul", y, 0.5**0.5)), 1.0))
    return g("Add", x, _linear(g, y, mlp[2]))
