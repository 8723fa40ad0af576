"""Recordings of packages as clips of the suite: 16 kHz, mono, of 0.3 s to a few seconds, as Opus.

Telephone codecs without a header (.g722, .gsm) are read by FFmpeg (PyAV, the `codecs` extra).

Shapes: samples are (samples,), float32.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import soxr

from ssamba.audio.decode import decode
from ssamba.audio.readers import Samples
from ssamba.data.shards import ShardSettings, encode
from ssamba.errors import AudioDecodeError, AudioTruncatedWarning, MissingExtraError

RATE_HZ = 16_000
SHORTEST_S = 0.3
"""Shorter clips are followed by silence."""
_SETTINGS = ShardSettings(bitrate_kbps=24.0)
_HEADERLESS = frozenset({".g722", ".gsm"})


def read_clip(path: Path, longest_s: float) -> Samples:
    """The beginning of a recording; what is there, where the file is cut off.

    Raises:
        AudioDecodeError: it cannot be read, or is silent.
        MissingExtraError: it needs PyAV.
    """
    if path.suffix.lower() in _HEADERLESS:
        samples = _read_headerless(path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioTruncatedWarning)
            samples = decode(path, sample_rate_hz=RATE_HZ, strict=False)
    return as_clip(samples, longest_s, str(path))


def as_clip(samples: Samples, longest_s: float, name: str) -> Samples:
    """Samples (samples,) at 16 kHz, cut or filled with silence.

    Raises:
        AudioDecodeError: they are silent.
    """
    samples = samples[: round(longest_s * RATE_HZ)]
    if not len(samples) or not samples.any():
        raise AudioDecodeError(f"{name}: is silent. Leave it out")
    return np.pad(samples, (0, max(0, round(SHORTEST_S * RATE_HZ) - len(samples))))


def as_opus(samples: Samples) -> bytes:
    """The bytes of an Opus file."""
    return encode(samples, _SETTINGS)


def digest(samples: Samples) -> str:
    """The same for recordings that are the same in 16 bits."""
    return hashlib.sha256((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()).hexdigest()


def _read_headerless(path: Path) -> Samples:
    try:
        import av
    except ImportError:
        raise MissingExtraError(f'{path}: needs further codecs. Install them: pip install "ssamba[codecs]"') from None
    try:
        with av.open(str(path.absolute()), "r", format=path.suffix.lower()[1:]) as container:
            rate_hz = int(container.streams.audio[0].codec_context.sample_rate)
            frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    except Exception as error:  # PyAV raises many kinds
        raise AudioDecodeError(f"{path}: cannot be decoded ({error}). Fetch its package again") from None
    samples: Samples = np.concatenate(frames or [np.zeros(0, np.int16)]).astype(np.float32) / np.float32(32768)
    if rate_hz == RATE_HZ:
        return samples
    resampled: Samples = soxr.resample(samples, rate_hz, RATE_HZ, quality="HQ").astype(np.float32, copy=False)
    return resampled
