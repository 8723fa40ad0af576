"""Read recordings as blocks of mono samples at a model's rate: files by libsndfile, waveforms as arrays.

WAV, FLAC, MP3, Ogg, Opus, AIFF, CAF and similar. Files of other formats (M4A, WebM) and damaged ones are for `ssamba`,
which knows them; here a file that ends before the length in its header is an error.

Shapes: S samples, C channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import soundfile
import soxr

from ssamba_onnx.results import Array

Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Array"
Channels: TypeAlias = "Literal['mean'] | int | None"

_BLOCK_S = 30.0
_MAX_CHANNELS = 64
_PCM = {"int8", "int16", "int32"}
_QUALITY = "HQ"


class AudioError(ValueError):
    """A recording cannot be read; the message says why."""


def is_source(source: object) -> bool:
    """Return whether an object is one recording."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | np.ndarray) or hasattr(source, "read")


def read(source: Source, sample_rate: int | None, rate_hz: int, channels: Channels) -> Iterator[Array]:
    """Yield blocks of mono samples (S,), float32, at `rate_hz`; arguments as `OnnxEmbedder.embed`.

    Raises:
        AudioError: the recording cannot be read, is not finite or is empty; or an array has a wrong shape or type.
    """
    if isinstance(source, np.ndarray):
        samples = _mono(source, channels)
        if sample_rate is not None and sample_rate != rate_hz:
            samples = soxr.resample(samples, _checked_rate(sample_rate), rate_hz)
        yield samples
        return
    if not is_source(source):
        raise AudioError(
            "expected a path, the bytes of an audio file, a binary file object or an array, got "
            f"{type(source).__name__}"
        )
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the file"
    file: Any = os.path.expanduser(name) if isinstance(source, str) else source  # noqa: PTH111 - no error without a home
    if isinstance(source, bytes | bytearray) or hasattr(source, "read"):
        data = source if isinstance(source, bytes | bytearray) else source.read()
        if not isinstance(data, bytes | bytearray):
            raise AudioError("a file object gives text, where bytes are expected: open it with mode 'rb'")
        file = io.BytesIO(data)
    try:
        with soundfile.SoundFile(file) as sound:
            yield from _resampled(_blocks(sound, channels, name), sound.samplerate, rate_hz)
    except soundfile.LibsndfileError as error:
        missing = isinstance(source, str | os.PathLike) and not os.path.exists(file)  # noqa: PTH110
        cause = "no such file" if missing else f"libsndfile cannot read it ({error.error_string.rstrip('.')})"
        raise AudioError(f"{name}: {cause}") from None


def _blocks(sound: soundfile.SoundFile, channels: Channels, name: str) -> Iterator[Array]:
    """Yield mono blocks at the file's rate."""
    if isinstance(channels, int) and not 0 <= channels < sound.channels:
        raise AudioError(f"{name}: channel {channels} does not exist: the file has {sound.channels}, counted from 0")
    stated, count = sound.frames, 0
    for block in sound.blocks(round(_BLOCK_S * sound.samplerate), dtype="float32", always_2d=True):
        mono = block[:, channels] if isinstance(channels, int) else block.mean(1)
        if not np.isfinite(mono.sum(dtype=np.float64)):
            raise AudioError(f"{name}: holds samples that are NaN or infinite: repair it, or export it again")
        count += len(mono)
        yield np.ascontiguousarray(mono)
    if not count:
        raise AudioError(f"{name}: holds no audio")
    if count < stated:
        rate_hz = sound.samplerate
        raise AudioError(f"{name}: truncated or damaged, {count / rate_hz:.2f} of {stated / rate_hz:.2f} s can be read")


def _resampled(blocks: Iterator[Array], in_hz: int, rate_hz: int) -> Iterator[Array]:
    if in_hz == rate_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(in_hz, rate_hz, 1, "float32", _QUALITY)
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _checked_rate(sample_rate: int) -> int:
    if not (isinstance(sample_rate, int) and sample_rate > 0):
        raise AudioError(f"a sample rate is a whole number of hertz above 0, got {sample_rate!r}")
    return sample_rate


def _mono(waveform: Array, channels: Channels) -> Array:
    """Return a waveform as mono float32 (S,); integers are PCM of full scale."""
    rows = waveform[None] if waveform.ndim == 1 else waveform
    if rows.ndim != 2 or min(rows.shape) > _MAX_CHANNELS:
        raise AudioError(
            "a waveform is (samples,), or of several channels (channels, samples) or (samples, channels); got the "
            f"shape {waveform.shape}. A batch (recordings, samples) needs batch=True"
        )
    rows = rows if rows.shape[0] <= rows.shape[1] or waveform.ndim == 1 else rows.T
    if len(rows) > 1 and channels is None:
        raise AudioError(
            f"a waveform of shape {waveform.shape} has several channels: give channels='mean' or a number, or "
            "batch=True if each row is a recording"
        )
    if isinstance(channels, int):
        if not 0 <= channels < len(rows):
            raise AudioError(f"channel {channels} does not exist: the waveform has {len(rows)}, counted from 0")
        rows = rows[channels, None]
    kind = rows.dtype.newbyteorder("=")
    samples: Array
    if kind.kind == "f":
        samples = rows.astype(np.float32)
    elif kind.name == "uint8":
        samples = (rows.astype(np.float32) - 128) / 128
    elif kind.name in _PCM:
        samples = rows.astype(np.float32) / -float(np.iinfo(kind).min)
    else:
        raise AudioError(f"a waveform is float, int16, int32, int8 or uint8, got {rows.dtype}")
    mono: Array = samples[0] if len(samples) == 1 else samples.mean(0)
    if not np.isfinite(mono).all():
        raise AudioError("the waveform holds NaN or infinity: repair or omit it")
    return np.ascontiguousarray(mono)
