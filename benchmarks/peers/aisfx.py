"""aisfx: a convolutional network for libraries of sound effects (Ma and Lerch, ISMIR 2022), parts of 2.3 s at 44.1 kHz.

The paper computed spectrograms with Essentia, and so does this, with the settings of the package's
`spectrogram_essentia.py`, which reads files only. (Its librosa function hands bands over as if they were frames.)
Parts overlap by half and a last incomplete one is dropped, as the package does by default.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.peer import Embed, Loaded, Peer, import_from, parameters_of
from ssamba.metrics.classification import Array


def load(folder: Path) -> Loaded:
    """From the unpacked wheel."""
    package = import_from(folder, "aisfx.inference")
    # Older than torch's safe loading, and no less to be trusted than the code beside it.
    weights, heads = torch.load(package.get_path_modelWeights(), map_location="cpu", weights_only=False)
    model = package.load_bestModel(weights, heads, "cpu")
    spectrogram = _spectrogram(package)
    frames = package.EMB_BLOCK_LENGTH

    def embed(wave: Array) -> Array:
        spectrum = package.spectrogram_normalize(spectrogram(wave))
        blocks = package.blocking(spectrum, block_size=frames, hop_size=frames // 2, drop_partial_block=True)
        with torch.no_grad():
            vectors: Array = model.get_embedding(torch.from_numpy(blocks).float()).numpy()
        mean: Array = vectors.mean(0)
        return mean

    return Loaded(embed, parameters_of(model.embedding_net))


def _spectrogram(package: Any) -> Embed:
    """Log-mel bands (T, M) of a clip (S,), by Essentia."""
    essentia = import_module("essentia.standard")
    size, hop = package.SPEC_BLOCK_LENGTH, package.SPEC_HOP_LENGTH
    window, spectrum = essentia.Windowing(type="hann", normalized=False), essentia.Spectrum(size=size)
    mels = essentia.MelBands(
        inputSize=size // 2 + 1,
        numberBands=package.MEL_BINS,
        sampleRate=package.SAMPLE_RATE,
        lowFrequencyBound=package.F_MIN,
        highFrequencyBound=package.F_MAX,
        warpingFormula="htkMel",
        weighting="warping",
        normalize="unit_sum",
        type="power",
        log=False,
    )

    def compute(wave: Array) -> Array:
        frames = essentia.FrameGenerator(wave.astype(np.float32), frameSize=size, hopSize=hop)
        bands = np.stack([mels(spectrum(window(frame))) for frame in frames])
        logarithm: Array = np.log10(1e4 * bands + 1)
        return logarithm

    return compute


PEER = Peer(
    package="aisfx",
    version="0.1.2",
    sample_rate_hz=44_100,
    license="MIT; weights CC BY 4.0",
    how="Essentia's log-mel bands as in the paper; parts of 2.3 s overlapping by half, their mean",
    needs=("essentia", "librosa"),
    load=load,
)
