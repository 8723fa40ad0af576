"""Read recordings as blocks of mono samples at a model's rate: files by libsndfile, waveforms as arrays.

WAV, FLAC, MP3, Ogg, Opus, AIFF, CAF and similar. Files of other formats (M4A, WebM) and damaged ones are for `ssamba`,
which knows them; here a file that ends before the length in its header is an error (Ogg states none).

Shapes: S samples, C channels.
"""

from __future__ import annotations

import io
import os
import re
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
_CUT = re.compile(r"^\s*(?:data|SSND|riff|Riff size) : (\d+) \(should be (\d+)\)", re.MULTILINE)
"""How libsndfile notes bytes that a header of WAV, AIFF, W64 or RF64 states, and those that are there."""
_UNKNOWN_SIZES = (range(0x7FFFF000, 0x80000000), range(0xFFFFF000, 0x100000000))
"""Sizes that programs write while they do not know the length yet."""


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
    if channels not in (None, "mean") and (isinstance(channels, bool) or not isinstance(channels, int | np.integer)):
        raise AudioError(f"channels is 'mean' or the number of a channel (from 0), got {channels!r}")
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
        cause = (
            f"libsndfile cannot read it ({error.error_string.rstrip('. ')}). It reads WAV, FLAC, MP3, Ogg, Opus, AIFF "
            "and CAF: convert others, or use `ssamba`"
        )
        if isinstance(source, str | os.PathLike):
            if not os.path.exists(file):  # noqa: PTH110
                cause = "no such file"
            elif os.path.isdir(file):  # noqa: PTH112
                cause = "is a folder: give its recordings, such as Path(...).rglob('*.wav')"
        raise AudioError(f"{name}: {cause}") from None


def _blocks(sound: soundfile.SoundFile, channels: Channels, name: str) -> Iterator[Array]:
    """Yield mono blocks at the file's rate."""
    if isinstance(channels, int | np.integer) and not 0 <= channels < sound.channels:
        raise AudioError(f"{name}: channel {channels} does not exist: the file has {sound.channels}, counted from 0")
    for stated, there in _CUT.findall(sound.extra_info):
        if int(stated) > int(there) and not any(int(stated) in sizes for sizes in _UNKNOWN_SIZES):
            raise AudioError(f"{name}: truncated, {int(there):,} of the {int(stated):,} bytes in its header are there")
    frames, count = sound.frames, 0
    # Not `sound.blocks`, which returns what memory held where a file ends too early.
    while len(block := sound.read(round(_BLOCK_S * sound.samplerate), dtype="float32", always_2d=True)):
        mono = block[:, channels] if isinstance(channels, int | np.integer) else block.mean(1)
        if not np.isfinite(mono.sum(dtype=np.float64)):
            raise AudioError(f"{name}: holds samples that are NaN or infinite: repair it, or export it again")
        count += len(mono)
        yield np.ascontiguousarray(mono)
    if not count:
        raise AudioError(f"{name}: holds no audio")
    if count < frames:
        rate_hz = sound.samplerate
        raise AudioError(f"{name}: truncated or damaged, {count / rate_hz:.2f} of {frames / rate_hz:.2f} s can be read")


def _resampled(blocks: Iterator[Array], in_hz: int, rate_hz: int) -> Iterator[Array]:
    if in_hz == rate_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(in_hz, rate_hz, 1, "float32", _QUALITY)
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _checked_rate(sample_rate: int) -> int:
    if not (isinstance(sample_rate, int | np.integer) and sample_rate > 0):
        raise AudioError(f"a sample rate is a whole number of hertz above 0, got {sample_rate!r}")
    return int(sample_rate)


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
    if isinstance(channels, int | np.integer):
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
