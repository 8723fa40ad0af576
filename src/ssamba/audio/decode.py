"""Decode any audio file, or a part of it, to mono float32 samples at a given sample rate.

    decode("dawn.flac")                                  # the whole recording at 16 kHz, (samples,)
    decode("dawn.flac", start_s=60, duration_s=10)       # ten seconds of it; the minute before is not read
    for block in stream("night.wav", block_s=30): ...    # hours in constant memory
    decode(AudioBytes("shard.tar/0001.opus", data))      # a file in memory

libsndfile (soundfile) reads WAV, FLAC, MP3, Ogg Vorbis, Opus, AIFF, AU, CAF and similar formats; FFmpeg (PyAV, the
`codecs` extra) reads the rest (M4A/AAC, WebM, WMA, the sound of videos). Channels are averaged, and soxr resamples.
Both decoders believe headers and ignore damage silently, so `probe` looks at what is there (`containers.py`), and every
function here agrees with it: files whose header is wrong are read whole, with a warning, and files that lack a part are
refused, or read as far as they go with `damaged="keep"`. Every sample is checked to be finite.

A part equals the same samples of the whole: reading starts on an input sample that coincides with an output sample
(every p-th, for in/out = p/q in lowest terms), far enough ahead to fill the resampler's filter.

Shapes: blocks and results are (samples,), float32. No torch here: decoding workers are light processes.
"""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import soxr

from ssamba.audio.band import OnAboveBand, band_meter, collect_above_band, listener, tell
from ssamba.audio.files import AudioBytes, AudioSource, Remark, path_text
from ssamba.audio.readers import AudioInfo, Reader, Samples, open_audio
from ssamba.errors import (
    AudioDecodeError,
    AudioHeaderWarning,
    AudioTruncatedWarning,
    AudioWarning,
    ConfigError,
    WorkerDiedError,
)
from ssamba.worker_pool import map_in_processes

__all__ = [
    "AudioBytes",
    "AudioInfo",
    "Damaged",
    "Measured",
    "Remark",
    "collect_remarks",
    "decode",
    "decode_files",
    "duration_or_error",
    "measure",
    "measure_files",
    "pass_on",
    "probe",
    "remark",
    "stream",
    "telling_blocks",
]

Damaged: TypeAlias = Literal["skip", "keep"]
"""What to do with files of which a part is missing: leave them out, or use what comes before it."""

LONG_S = 300.0

_QUALITY = "HQ"  # 20 bits: below the noise of float32 features; VHQ takes twice the time
_FILTER_SAMPLES = 400  # more than half the length of soxr's filter, in samples of the lower of the two rates


def probe(path: str | Path | AudioBytes) -> AudioInfo:
    """Find what an audio file holds: its length and format, and whether its headers state that (`AudioInfo.verdict`).

    Every function here uses this verdict. Headers are compared with the file, which is not decoded (except its end if
    it is FLAC), so damage in the middle of lossy formats without checksums is not found here.

    Raises:
        AudioDecodeError: the file does not exist, or is not audio that can be read here.
    """
    with open_audio(_source(path)) as reader:
        return reader.checked_info()


def decode(
    path: str | Path | AudioBytes,
    *,
    sample_rate_hz: int = 16000,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
    damaged: Damaged = "skip",
) -> Samples:
    """Decode an audio file, or `duration_s` seconds of it from `start_s` on.

    Args:
        path: the file, or its bytes in memory.
        sample_rate_hz: sample rate of the result.
        start_s: start of the part, in seconds.
        duration_s: duration of the part; None means to the end.
        channel: the channel to read, from 0; None averages all.
        damaged: what to do if a part of the file is missing or damaged, and is reached: `skip` raises; `keep` warns
            (AudioTruncatedWarning) and returns the samples before it.

    Returns:
        Mono float32 (samples,). A whole recording of n samples gives round(n * out / in), at least one. A part is the
        slice [round(start_s * rate) : round((start_s + duration_s) * rate)] of the whole, shorter at its end.

    Raises:
        AudioDecodeError (a ValueError): the file cannot be read, holds no samples, holds NaN or infinity, has no such
            channel, ends before `start_s`, or is cut (see `damaged`).
        ValueError: an argument is out of range.

    Warns:
        AudioHeaderWarning: the length in the headers differs from what was read.
        AudioTruncatedWarning: see `damaged`.
    """
    out_hz = checked_rate(sample_rate_hz)
    checked_damaged(damaged)
    if not (math.isfinite(start_s) and start_s >= 0):
        raise ValueError(f"start_s must be a finite number of seconds, at least 0; got {start_s}")
    if duration_s is not None and not (math.isfinite(duration_s) and round(duration_s * out_hz) > 0):
        raise ValueError(f"duration_s must be finite and last at least one sample at {out_hz} Hz; got {duration_s}")
    first = round(start_s * out_hz)
    count = None if duration_s is None else max(1, round((start_s + duration_s) * out_hz) - first)
    return np.concatenate(list(_read(_source(path), out_hz, first, count, channel, damaged == "keep")))


def stream(
    path: str | Path | AudioBytes,
    *,
    sample_rate_hz: int = 16000,
    block_s: float = 30.0,
    channel: int | None = None,
    damaged: Damaged = "skip",
    on_above_band: OnAboveBand | None = None,
) -> Iterator[Samples]:
    """Decode an audio file block by block in constant memory; joined, the blocks equal `decode` exactly.

    `on_above_band` is called at the end if much of the recording lies above half the sample rate (`band.py`); None
    means what listens in this context, if anything does. Yields mono float32 blocks (round(block_s * sample_rate_hz),),
    the last one shorter. Errors and warnings are those of `decode`; those about the end come when it is reached, after
    the blocks before it.
    """
    out_hz = checked_rate(sample_rate_hz)
    checked_damaged(damaged)
    if not (math.isfinite(block_s) and round(block_s * out_hz) > 0):
        raise ValueError(f"block_s must be finite and last at least one sample at {out_hz} Hz; got {block_s}")
    pieces = _read(_source(path), out_hz, 0, None, channel, damaged == "keep", on_above_band)
    return _told(_regrouped(pieces, round(block_s * out_hz)), out_hz)


_on_block: ContextVar[Callable[[float], object] | None] = ContextVar("on block", default=None)


@contextmanager
def telling_blocks(on_block: Callable[[float], object]) -> Iterator[None]:
    """Call `on_block` with the seconds of each block that `stream` yields in this context, before the next one."""
    token = _on_block.set(on_block)
    try:
        yield
    finally:
        _on_block.reset(token)


def _told(blocks: Iterator[Samples], rate_hz: int) -> Iterator[Samples]:
    on_block = _on_block.get()
    for block in blocks:
        yield block
        if on_block is not None:
            on_block(len(block) / rate_hz)


def _source(path: str | Path | AudioBytes) -> AudioSource:
    return path if isinstance(path, AudioBytes) else Path(path)


def checked_rate(sample_rate_hz: int) -> int:
    """Return the sample rate as an int; raise ValueError unless it is a positive whole number."""
    number: object = sample_rate_hz
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if not (is_number and 0 < sample_rate_hz < math.inf and sample_rate_hz == int(sample_rate_hz)):
        raise ValueError(f"a sample rate must be a positive whole number of hertz; got {reprlib.repr(number)}")
    return int(sample_rate_hz)


def checked_damaged(damaged: str) -> None:
    """Raise ConfigError unless `damaged` is one of the choices."""
    if damaged not in ("skip", "keep"):
        raise ConfigError(f"damaged must be 'skip' or 'keep'; got {damaged!r}")


_WARNINGS: dict[str, type[AudioWarning]] = {"wrong header": AudioHeaderWarning, "cut": AudioTruncatedWarning}
_remarks: ContextVar[list[Remark] | None] = ContextVar("remarks", default=None)


@contextmanager
def collect_remarks() -> Iterator[list[Remark]]:
    """Collect what would be warnings about files that are used although something is wrong with them.

    Yields:
        The list that decoding in this context adds to, in place of warnings.
    """
    remarks: list[Remark] = []
    token = _remarks.set(remarks)
    try:
        yield remarks
    finally:
        _remarks.reset(token)


def remark(found: Remark, stacklevel: int = 2) -> None:
    """Warn about a file that is used although something is wrong with it, or add to the remarks being collected."""
    remarks = _remarks.get()
    if remarks is None:
        warnings.warn(found.reason, _WARNINGS[found.verdict], stacklevel=stacklevel + 1)
    else:
        remarks.append(found)


def pass_on(remarks: Iterable[Remark], above_band: Iterable[Remark]) -> None:
    """Hand remarks that were collected elsewhere, as in another process, to what listens in this context."""
    for found in remarks:
        remark(found)
    if (on_above_band := listener()) is not None:
        for found in above_band:
            on_above_band(found)


def _regrouped(pieces: Iterator[Samples], size: int) -> Iterator[Samples]:
    """Regroup pieces into blocks of `size` samples."""
    buffered: list[Samples] = []
    num_buffered = 0
    for piece in pieces:
        buffered.append(piece)
        num_buffered += len(piece)
        if num_buffered >= size:
            joined = np.concatenate(buffered)
            whole = num_buffered - num_buffered % size
            for start in range(0, whole, size):
                yield joined[start : start + size].copy()
            buffered, num_buffered = [joined[whole:]], num_buffered - whole
    if num_buffered:
        yield np.concatenate(buffered)


def _read(
    path: AudioSource,
    out_hz: int,
    first: int,
    count: int | None,
    channel: int | None,
    keep: bool,
    on_above_band: OnAboveBand | None = None,
) -> Iterator[Samples]:
    """Yield output samples [first : first + count] of `path` (to the end if None), in pieces of any size."""
    on_above_band = on_above_band or listener()
    with open_audio(path, channel) as reader:
        in_hz = reader.info.sample_rate_hz
        common = math.gcd(in_hz, out_hz)
        p, q = in_hz // common, out_hz // common
        margin = 0 if p == q else math.ceil(_FILTER_SAMPLES * in_hz / min(in_hz, out_hz))
        first_in = max(0, (first * p // q - margin) // p * p)
        stop_in = None if count is None else -(-(first + count) * p // q) + margin
        skip, left = first - first_in // p * q, math.inf if count is None else count

        resampler = None if p == q else soxr.ResampleStream(in_hz, out_hz, 1, "float32", _QUALITY)
        position, num_out, block = first_in, 0, np.zeros(0, np.float32)
        meter = band_meter(in_hz, out_hz / 2, on_above_band)
        for block in reader.blocks(first_in):
            if stop_in is not None:
                block = block[: stop_in - position]
            _check_finite(block, position, reader.info)
            if meter is not None:
                meter.add(block)
            position += len(block)
            out = block if resampler is None else resampler.resample_chunk(block)
            piece, skip = out[skip:], max(0, skip - len(out))
            piece = piece[: int(min(left, len(piece)))]
            left -= len(piece)
            num_out += len(piece)
            if len(piece):
                yield piece
            if position == stop_in:
                break
        if resampler is not None:
            out = resampler.resample_chunk(np.zeros(0, np.float32), last=True)[skip:]
            out = out[: int(min(left, len(out)))]
            left -= len(out)
            num_out += len(out)
            if len(out):
                yield out
        is_part = left == 0 or position == stop_in
        if not is_part:
            _check_end(reader, num_out > 0, keep)
        tell(meter, on_above_band, path_text(reader.info.path), in_hz, out_hz / 2)
        if is_part:
            return
        if num_out == 0 and first == 0:
            yield block.mean(keepdims=True)  # shorter than half an output sample: return one
        elif num_out == 0:
            raise AudioDecodeError(
                f"{path}: start_s={first / out_hz:g} lies past the end of the recording, which lasts "
                f"{reader.position / in_hz:.3f} s. Choose an earlier start"
            )


def _check_finite(block: Samples, position: int, info: AudioInfo) -> None:
    """Raise AudioDecodeError if `block`, which begins at sample `position` of the file, holds NaN or infinity."""
    # A sum needs one pass and no temporary array, and float64 cannot overflow here.
    with np.errstate(invalid="ignore"):
        if np.isfinite(block.sum(dtype=np.float64)):
            return
    at = int(np.argmin(np.isfinite(block)))
    raise AudioDecodeError(
        f"{info.path}: the sample at {(position + at) / info.sample_rate_hz:.3f} s is {block[at]}, "
        f"but every sample must be finite. Export the recording again, or repair it"
    )


def _check_end(reader: Reader, some_wanted: bool, keep: bool) -> None:
    """Raise or warn if a file that was read to its end is not what its headers state."""
    info, num_samples = reader.info, reader.position
    fault = reader.fault()
    if num_samples == 0:
        cause = f"truncated ({fault})" if fault else "its header is valid, but no samples follow"
        raise AudioDecodeError(f"{info.path}: holds no audio: {cause}. Get a whole copy, or omit it")
    if fault is None:
        _remark_header(info, num_samples, 5)
        return
    there = f"{num_samples / info.sample_rate_hz:.2f} s"
    missing_s = (info.duration_s or 0) - num_samples / info.sample_rate_hz
    of = f" of {info.duration_s:.2f} s" if missing_s >= 0.005 else ""
    found = f"{info.path}: truncated or damaged, {there}{of} can be read ({fault})"
    if not (keep and some_wanted):
        raise AudioDecodeError(
            f"{found}. Get a whole copy, or use that part: --damaged keep (in Python damaged='keep')"
        )
    remark(Remark(path_text(info.path), "cut", found), 4)


def _remark_header(info: AudioInfo, num_samples: int, stacklevel: int) -> None:
    """Warn if the headers of a file that was read to its end state something else."""
    if info.verdict == "wrong header":
        read, claim = f"{num_samples / info.sample_rate_hz:.2f} s", f"{info.claimed_s or 0:.2f} s"
        claimed = "" if info.claimed_s is None or claim == read else f", not the {claim} that its header claims"
        text = f"{info.path}: {read} are read{claimed} ({info.reason})"
        remark(Remark(path_text(info.path), "wrong header", text), stacklevel)


class Measured(NamedTuple):
    """Length of a recording, as decoding it would find it."""

    duration_s: float | Exception
    """In seconds; or the error that decoding raises."""
    remark: Remark | None = None
    """What is wrong with the file, if it can be used."""


def measure(path: str | Path | AudioBytes, damaged: Damaged = "skip") -> Measured:
    """Return the length of a recording, decoding it only if it is damaged or its length is unknown; never raises.

    Args:
        path: the file, or its bytes in memory.
        damaged: see `decode`.
    """
    try:
        with collect_remarks() as remarks, open_audio(_source(path)) as reader:
            info = reader.checked_info()
            if info.verdict == "cut" or not info.num_samples:
                rate_hz = info.sample_rate_hz
                num_samples = sum(map(len, stream(path, sample_rate_hz=rate_hz, damaged=damaged)))
            else:
                num_samples = info.num_samples
                _remark_header(info, num_samples, 1)
        return Measured(num_samples / info.sample_rate_hz, remarks[-1] if remarks else None)
    except (ValueError, OSError) as error:
        return Measured(error)
    except Exception as error:  # a damaged file can provoke any error, which must not cost the other files
        text = f"{path}: cannot be read ({type(error).__name__}: {error}). Re-encode or omit it"
        return Measured(AudioDecodeError(text))


def duration_or_error(path: str | Path | AudioBytes, damaged: Damaged = "skip") -> float | Exception:
    """Return the length of a recording in seconds, or the error that decoding raises; remarks come as warnings."""
    return _duration(Path(str(path)), measure(path, damaged))


def measure_files(
    paths: Iterable[Path], workers: int, damaged: Damaged = "skip"
) -> Iterator[tuple[Path, float | Exception]]:
    """Yield each file with its length in seconds or the error, in order, measured in worker processes.

    Args:
        paths: audio files.
        workers: number of processes; 0 measures in this one.
        damaged: see `decode`.
    """
    for path, result in map_in_processes(partial(measure, damaged=damaged), paths, workers, ahead=256):
        yield path, _duration(path, result)


def _duration(path: Path, result: Measured | WorkerDiedError) -> float | Exception:
    if isinstance(result, WorkerDiedError):
        return _died(path, result)
    if result.remark is not None:
        remark(result.remark)
    return result.duration_s


def decode_files(
    paths: Iterable[Path],
    sample_rate_hz: int,
    workers: int,
    damaged: Damaged = "skip",
    channel: int | None = None,
) -> Iterator[tuple[Path, Samples | Path | Exception]]:
    """Decode many files in worker processes, ahead of the caller, and yield them in order.

    The result of a file is its mono samples at `sample_rate_hz`; or its path if it is longer than `LONG_S`, to be
    streamed instead of being sent between processes; or the error, also if a worker died on it (a fault in a codec).
    Warnings come in this process, and can be collected (`collect_remarks`, `collect_above_band`).

    Args:
        paths: audio files; consumed some ahead of the work.
        sample_rate_hz: wanted rate.
        workers: number of processes; 0 decodes in this one.
        damaged: see `decode`.
        channel: see `decode`.
    """
    work = partial(_decode_file, sample_rate_hz=sample_rate_hz, damaged=damaged, channel=channel)
    for path, result in map_in_processes(work, paths, workers):
        if isinstance(result, WorkerDiedError):
            yield path, _died(path, result)
            continue
        pass_on(result.remarks, result.above_band)
        yield path, result.decoded


def _died(path: Path, error: WorkerDiedError) -> AudioDecodeError:
    return AudioDecodeError(f"{path}: {error}")


class _Result(NamedTuple):
    """What a worker returns."""

    decoded: Samples | Path | Exception
    remarks: tuple[Remark, ...] = ()
    above_band: tuple[Remark, ...] = ()


def _decode_file(path: Path, sample_rate_hz: int, damaged: Damaged, channel: int | None) -> _Result:
    try:
        with open_audio(path) as reader:
            duration_s = reader.info.duration_s
        if duration_s is None or duration_s > LONG_S:
            return _Result(path)
        with collect_remarks() as remarks, collect_above_band() as above_band:
            samples = decode(path, sample_rate_hz=sample_rate_hz, damaged=damaged, channel=channel)
        return _Result(samples, tuple(remarks), tuple(above_band))
    except (ValueError, OSError) as error:
        return _Result(error)
    except Exception as error:  # whatever a damaged file provokes, it must not cost the other files
        text = f"{path}: cannot be decoded ({type(error).__name__}: {error}). Re-encode or omit it"
        return _Result(AudioDecodeError(text))
