"""resemblyzer: a speaker encoder (an LSTM over 1.6 s of 40 mel bands, d-vectors), for voices.

`preprocess_wav` of the package also cuts out what its voice detector takes for silence. That empties effects and drum
hits, so clips are only brought to its volume; `embed_utterance` averages parts of 1.6 s and fills shorter clips up.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.peer import Loaded, Peer, import_from, parameters_of
from ssamba.metrics.classification import Array


def load(folder: Path) -> Loaded:
    """From the unpacked wheel."""
    package = import_from(folder, "resemblyzer")
    parts = import_from(folder, "resemblyzer.hparams")
    encoder = package.VoiceEncoder("cpu", verbose=False)

    def embed(wave: Array) -> Array:
        if wave.any():
            wave = package.audio.normalize_volume(wave, parts.audio_norm_target_dBFS, increase_only=True)
        vector: Array = encoder.embed_utterance(wave)
        return vector

    return Loaded(embed, parameters_of(encoder))


PEER = Peer(
    package="resemblyzer",
    version="0.1.4",
    sample_rate_hz=16_000,
    license="Apache-2.0",
    how="its volume, no voice detection; parts of 1.6 s, their mean, normalized (embed_utterance)",
    needs=("librosa", "webrtcvad-wheels"),
    load=load,
)
