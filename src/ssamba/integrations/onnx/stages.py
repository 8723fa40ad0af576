"""ONNX graphs of what stands around the encoder's blocks: front end, patches and positions, readouts, classifier.

Every clip of a batch has its own length, and gets the numbers that it gets alone: as in `Embedder.embed`, its last
patch is filled with silence.

Shapes: B clips, S samples, F frequencies, T frames, M mel bins, R rows, K columns of the longest clip, L = R * K patch
tokens, P prefix tokens, D channels, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange

from ssamba.audio.fbank import LOG_FLOOR, PREEMPHASIS, mel_matrix
from ssamba.config import BaseEncoderConfig, ClassifierConfig, FrontEndConfig
from ssamba.integrations.onnx.encoders import add_blocks
from ssamba.integrations.onnx.graph import Array, Graph
from ssamba.model.encoder import PatchEncoder
from ssamba.model.heads import Classifier
from ssamba.model.patches import axis_samples
from ssamba.model.readouts import SOUNDING_DB

TINY = float(np.finfo(np.float32).tiny)


def add_front_end(g: Graph, waveform: str, lengths: str, config: FrontEndConfig) -> tuple[str, str]:
    """Add the front end: waveform (B, S) of `lengths` (B,) samples -> features (B, M, T), and their frames (B,)."""
    count = g("Unsqueeze", lengths, [1])
    valid = g("Less", g.steps(g.dim(waveform, 1)), count)
    waveform = g("Where", valid, waveform, 0.0)
    total = g("ReduceSum", waveform, [1], keepdims=1)
    mean = g("Div", total, g.cast(g("Max", count, np.int64(1)), "float32"))
    waveform = g("Where", valid, g("Sub", waveform, mean), 0.0)
    filters, mel = spectral_filters(config)
    spectrum = g("Conv", g("Unsqueeze", waveform, [1]), filters[:, None], strides=[config.shift_samples])
    real, imaginary = g.many("Split", 2, spectrum, [len(mel), len(mel)], axis=1)
    power = g("Add", g("Mul", real, real), g("Mul", imaginary, imaginary))
    log = g("Log", g("Max", g("MatMul", mel.T, power), LOG_FLOOR))
    features = g("Mul", g("Sub", log, config.mean), 1 / (2 * config.std))
    frames = g("Div", g("Sub", lengths, [config.frame_samples - config.shift_samples]), [config.shift_samples])
    return features, g("Max", frames, np.int64(0))


def spectral_filters(config: FrontEndConfig) -> tuple[Array, Array]:
    """Return the filters (2 F, frame) whose outputs are the spectrum of a frame, and the mel matrix (F, M).

    Removal of the mean, pre-emphasis, window and Fourier transform are linear: their product is computed in float64.
    The first F filters are the real parts, at the frequencies that a mel bin needs.
    """
    size, mel = config.frame_samples, mel_matrix(config)
    fft_size = 2 * (len(mel) - 1)
    used = torch.nonzero(mel.sum(1))[:, 0]
    before = torch.eye(size, dtype=torch.float64).roll(1, 1).T
    before[0] = 0
    before[0, 0] = 1
    emphasis = torch.eye(size, dtype=torch.float64) - PREEMPHASIS * before
    centering = torch.eye(size, dtype=torch.float64) - 1 / size
    frame = torch.hann_window(size, periodic=False, dtype=torch.float64)[:, None] * (emphasis @ centering)
    spectrum = torch.fft.rfft(frame, n=fft_size, dim=0)[used]
    return torch.cat((spectrum.real, spectrum.imag)).float().numpy(), mel[used].numpy()


class Encoded(NamedTuple):
    """Names of what the encoder makes of a batch."""

    states: list[str]
    """Input of each layer, output of the last, final tokens: (B, P + L, D), zeros after a clip's own."""
    frames: str
    """Mean over rows of each time step (B, K, D), zeros after a clip's own."""
    levels: str
    """Level of each time step (B, K), minus infinity after the recording."""
    columns: str
    """Time steps of each clip (B,)."""


def add_encoder(
    g: Graph, encoder: PatchEncoder, features: str, lengths: str, min_frames: int, front_end: FrontEndConfig
) -> Encoded:
    """Add patches, positions, blocks and the means of time steps.

    Args:
        g: the graph.
        encoder: the encoder.
        features: normalized features (B, M, T).
        lengths: frames of each clip (B,).
        min_frames: frames up to which shorter clips are filled with silence; 0 fills their last patch alone.
        front_end: how features were normalized.
    """
    config = encoder.config
    rows, prefix, dim = config.rows, config.num_prefix_tokens, config.embed_dim
    size, stride = config.patch_size[1], config.patch_stride[1]

    columns = g("Div", g("Add", lengths, [stride - 1 - size]), [stride])
    columns = g("Max", g("Add", columns, [1]), np.int64(max(1, config.columns(min_frames))))
    longest = g("ReduceMax", columns, keepdims=1)
    frames = g("Add", g("Mul", g("Sub", longest, [1]), [stride]), [size])
    missing = g("Max", g("Sub", frames, g.dim(features, 2)), np.int64(0))
    features = g("Pad", features, g.shape(0, 0, 0, 0, 0, missing), front_end.silent_feature)
    features = g("Slice", features, [0], frames, [2])
    is_own = g("Less", g.steps(frames), g("Unsqueeze", lengths, [1]))
    features = g("Where", g("Unsqueeze", is_own, [1]), features, front_end.silent_feature)
    levels = _levels(g, features, is_own, config, front_end)

    proj, strides = encoder.patch_embed.proj, [config.patch_stride[0], stride]
    assert proj.bias is not None
    weight, bias = g.matrix(proj.weight), g.weight(proj.bias)
    patches = g("Conv", g("Unsqueeze", features, [1]), weight, bias, strides=strides)
    own = g("Unsqueeze", columns, [1])
    grid = g("Add", g("Transpose", patches, perm=[0, 3, 2, 1]), _positions(g, encoder, own, longest))  # (B, K, R, D)
    batch, count = g.dim(features, 0), g("Mul", longest, [rows])
    tokens = g("Reshape", grid, g.shape(batch, -1, dim))
    step = g.steps(longest)
    if config.patch_order == "frequency_major":
        # Token p of a clip with k columns is at row p / k and column p % k.
        place = g("Unsqueeze", g.steps(count), [0])
        row = g("Min", g("Div", place, own), np.int64(rows - 1))
        column = g("Sub", place, g("Mul", g("Div", place, own), own))
        tokens = _gather(g, tokens, g("Add", g("Mul", column, [rows]), row))

    vectors = (encoder.prefix_tokens() + encoder.position_embed[:, :prefix]).detach().float().numpy()
    hidden = g("Concat", g("Expand", vectors, g.shape(batch, 1, 1)), tokens, axis=1)
    own_tokens = g("Add", g("Mul", columns, [rows]), [prefix])
    is_token = g("Less", g.steps(g("Add", count, [prefix])), g("Unsqueeze", own_tokens, [1]))
    is_token = g("Unsqueeze", is_token, [2])
    states = [g("Where", is_token, one, 0.0) for one in add_blocks(g, encoder, hidden, own_tokens)]

    last = g("Slice", states[-1], [prefix], [np.iinfo(np.int64).max], [1])
    if config.patch_order == "frequency_major":
        index = g("Add", g("Mul", np.arange(rows)[:, None], g("Unsqueeze", own, [2])), step)  # (B, R, K)
        index = g("Reshape", g("Transpose", index, perm=[0, 2, 1]), g.shape(batch, -1))
        last = _gather(g, last, g("Min", index, g("Sub", count, [1])))
    steps = g("ReduceMean", g("Reshape", last, g.shape(batch, -1, rows, dim)), [2], keepdims=0)
    steps = g("Where", g("Unsqueeze", g("Less", step, own), [2]), steps, 0.0)
    return Encoded(states, steps, levels, columns)


def _gather(g: Graph, tokens: str, index: str) -> str:
    """Return tokens (B, L, D) at places of their clip, `index` (B, n) or (1, n)."""
    batch = g("Unsqueeze", g("Mul", g.steps(g.dim(tokens, 0)), g.dim(tokens, 1)), [1])
    return g("Gather", g("Reshape", tokens, g.shape(-1, g.dim(tokens, 2))), g("Add", index, batch), axis=0)


def _positions(g: Graph, encoder: PatchEncoder, columns: str, longest: str) -> str:
    """Return the positions of each clip's grid (B, K, R, D), for `columns` (B, 1): `patches.grid_positions`."""
    config = encoder.config
    rows, table_columns = config.grid
    learned = encoder.position_embed[0, config.num_prefix_tokens :].detach().float()
    table = rearrange(learned, "(r k) d -> r k d", r=rows)
    below, above, weight = (one[0] for one in axis_samples(rows, torch.tensor([config.rows]), config.rows))
    if bool((weight == 0).all()):
        stored = g.weight(rearrange(table[below], "r k d -> k r d"))
    else:
        lerped = torch.lerp(table[below], table[above], weight[:, None, None].float())
        stored = rearrange(lerped, "r k d -> k r d").contiguous().numpy()

    step, size = g.cast(g.steps(longest), "float64"), np.float64(table_columns)
    share = g("Div", g("Mul", g("Add", step, np.float64(0.5)), size), g.cast(columns, "float64"))
    spread = g("Sub", share, np.float64(0.5))
    half = g.cast(g("Sub", np.int64(table_columns // 2), g("Div", columns, np.int64(2))), "float64")
    where = g("Where", g("Less", columns, np.int64(table_columns)), g("Add", step, half), spread)
    where = g("Max", g("Min", where, np.float64(table_columns - 1)), np.float64(0))
    floor = g("Floor", where)
    index = g.cast(floor, "int64")
    low = g("Gather", stored, index, axis=0)
    high = g("Gather", stored, g("Min", g("Add", index, [1]), np.int64(table_columns - 1)), axis=0)
    upper = g("Unsqueeze", g.cast(g("Sub", where, floor), "float32"), [2, 3])
    return g("Add", low, g("Mul", g("Sub", high, low), upper))


def _levels(g: Graph, features: str, is_own: str, config: BaseEncoderConfig, front_end: FrontEndConfig) -> str:
    """Return the level of each time step (B, K): `readouts.step_levels`."""
    power = g("Exp", g("Add", g("Mul", features, 2 * front_end.std), front_end.mean))
    energy = g("Max", g("ReduceMean", power, [1], keepdims=1), TINY)
    valid = g("Unsqueeze", g.cast(is_own, "float32"), [1])
    size, strides = config.patch_size[1], [config.patch_stride[1]]
    energy = g("Mul", energy, valid)
    total, share = (g("AveragePool", x, kernel_shape=[size], strides=strides) for x in (energy, valid))
    return g("Squeeze", g("Log", g("Div", total, g("Max", share, 0.5 / size))), [1])


def add_readouts(g: Graph, encoded: Encoded, dim: int) -> tuple[str, str]:
    """Return `clip` (B, D) and `parts` (B, 4 D) of a batch: `readouts.parts`."""
    _, frames, levels, columns, *_ = encoded
    own, longest = g("Unsqueeze", columns, [1]), g.dim(levels, 1)
    step, own_steps = g.steps(longest), g.cast(own, "float32")
    is_own = g("Less", step, own)
    levels = g("Where", is_own, levels, -math.inf)
    floor = g("Sub", g("ReduceMax", levels, [1], keepdims=1), SOUNDING_DB * math.log(10) / 10)
    inside = g("GreaterOrEqual", levels, floor)
    first = g("ReduceMin", g("Where", inside, step, longest), [1], keepdims=1)
    last = g("ReduceMax", g("Where", inside, step, np.int64(-1)), [1], keepdims=1)
    count = g("Add", g("Sub", last, first), [1])  # (B, 1)
    start = g.cast(g("Unsqueeze", g("Sub", step, first), [1]), "float32")  # (B, 1, K), in the region
    edges = g("Div", g.cast(g("Unsqueeze", g("Mul", count, np.arange(4)), [2]), "float32"), 3.0)  # (B, 4, 1)
    low, high = (g("Slice", edges, [i], [i + 3], [1]) for i in (0, 1))
    shared = g("Sub", g("Min", g("Add", start, 1.0), high), g("Max", start, low))
    steps = g("Unsqueeze", g.cast(g("Max", count, np.int64(1)), "float32"), [2])
    weights = g("Div", g("Mul", g("Max", shared, 0.0), 3.0), steps)
    mean = g("Unsqueeze", g("Div", g.cast(is_own, "float32"), own_steps), [1])
    weights = g("Where", g("Less", g("Unsqueeze", count, [2]), np.int64(3)), mean, weights)
    clip = g("Div", g("ReduceSum", frames, [1], keepdims=0), own_steps)
    thirds = g("Reshape", g("MatMul", weights, frames), [-1, 3 * dim])
    return clip, g("Concat", clip, thirds, axis=1)


def add_classifier(g: Graph, classifier: Classifier, encoded: Encoded, clip: str) -> tuple[str, str]:
    """Return logits and probabilities, (B, C), or (B, labels, C) of a model that labels seconds."""
    config, encoder, tokens = classifier.config, classifier.encoder.config, encoded.states[-1]
    pooled = clip
    if config.label_frames is not None:
        pooled = g("MatMul", _span_weights(g, config, encoder, encoded), _pooled_tokens(config, encoded))
    elif config.pooling == "cls":
        pooled = g("ReduceMean", g("Slice", tokens, [0], [encoder.num_prefix_tokens], [1]), [1], keepdims=0)
    return add_head(g, classifier, pooled)


def _pooled_tokens(config: ClassifierConfig, encoded: Encoded) -> str:
    return encoded.frames if config.token_segments is None else encoded.states[-1]


def _span_weights(g: Graph, config: ClassifierConfig, encoder: BaseEncoderConfig, encoded: Encoded) -> str:
    """Return the weights of time steps (B, labels, K), or of tokens (B, labels, P + L), in the mean of each label."""
    size, stride, own = encoder.patch_size[1], encoder.patch_stride[1], g("Unsqueeze", encoded.columns, [1, 2])
    assert config.label_frames is not None
    if config.token_segments is not None:
        count = g("Add", g("Mul", own, [encoder.rows]), [encoder.num_prefix_tokens])
        each = g("Max", g("Div", count, [config.token_segments]), np.int64(1))
        place = g("Div", g.steps(g.dim(encoded.states[-1], 1)), each)
        chosen = g("Equal", place, np.arange(config.token_segments)[:, None])
        return g("Div", g.cast(chosen, "float32"), g.cast(each, "float32"))
    span, longest = config.label_frames, g.dim(encoded.frames, 1)
    frames = g("Add", g("Mul", g("Sub", longest, [1]), [stride]), [size])
    step = g.steps(longest)
    start = g("Mul", step, [stride])
    first = g("Unsqueeze", g("Mul", g.steps(g("Div", g("Add", frames, [span - 1]), [span])), [span]), [1])
    shared = g("Sub", g("Min", g("Add", start, [size]), g("Add", first, [span])), g("Max", start, first))
    shared = g("Where", g("Less", step, own), g("Max", shared, np.int64(0)), np.int64(0))
    shared = g.cast(shared, "float32")
    return g("Div", shared, g("Max", g("ReduceSum", shared, [2], keepdims=1), 1.0))


def add_head(g: Graph, classifier: Classifier, vectors: str) -> tuple[str, str]:
    """Return logits and probabilities (..., C) of vectors (..., D); calibrated if a temperature was measured."""
    norm, linear, config = classifier.norm, classifier.linear, classifier.config
    x = g("LayerNormalization", vectors, g.weight(norm.weight), g.weight(norm.bias), axis=-1, epsilon=norm.eps)
    x = g("MatMul", x, g.fold("Transpose", g.matrix(linear.weight), perm=[1, 0]))
    logits = g("Add", x, g.weight(linear.bias))
    calibrated = logits if config.temperature is None else g("Div", logits, config.temperature)
    if config.activation == "softmax":
        return logits, g("Softmax", calibrated, axis=-1)
    return logits, g("Sigmoid", calibrated)
