"""efficientword-net: a ResNet-50 trained to tell spoken words apart (ArcFace), 1.5 s at 16 kHz, for wake words.

The package puts a shorter clip at a random place in 1.5 s of silence and cuts a random stretch out of a longer one. Here
it stands in the middle, and longer ones give windows that overlap by half.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.peer import Loaded, Peer, centered, float32_weights, import_from, windows
from ssamba.metrics.classification import Array


def load(folder: Path) -> Loaded:
    """From the unpacked wheel."""
    network = import_from(folder, "eff_word_net.audio_processing").Resnet50_Arc_loss()
    samples = network.window_frames
    (weights,) = (folder / "eff_word_net" / "models" / "resnet_50_arc").glob("*%.onnx")
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # by default it takes every core, also where it may not
    network.onnx_sess = runtime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])

    def embed(wave: Array) -> Array:
        parts = windows(centered(wave, samples), samples, samples // 2)
        vector: Array = np.mean([network.audioToVector(part)[0] for part in parts], axis=0)
        return vector

    return Loaded(embed, float32_weights(weights))


PEER = Peer(
    package="efficientword-net",
    version="1.0.5",
    sample_rate_hz=16_000,
    license="Apache-2.0",
    how="shorter clips in the middle of 1.5 s; windows of 1.5 s overlapping by half, their mean",
    needs=("onnxruntime",),
    load=load,
)
