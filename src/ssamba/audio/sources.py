"""Read a recording from a file, from bytes, from a file object, or from an array, as blocks of mono samples.

    for samples in read("dawn.flac", None, FrontEndConfig()): ...
    for samples in read(stereo, 48_000, FrontEndConfig(), "mean"): ...      # (2, S) or (S, 2)

`Recordings` is one recording, a list, or a batch, as `Embedder.embed` takes them.

Arrays are float in [-1, 1] or integer PCM (int8, int16, int32, uint8) of any byte order and layout; tensors may live on
any device. An array of two dimensions can be channels or a batch, so it is never read without being told which.

Shapes: S samples, C channels.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from numbers import Number
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, TypeGuard, TypeVar, cast

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor

from ssamba.audio import decode
from ssamba.audio.band import OnAboveBand, above_band_text, band_meter, collect_above_band, listener, tell
from ssamba.audio.files import AudioBytes, Remark
from ssamba.audio.readers import Samples
from ssamba.config import FrontEndConfig
from ssamba.errors import AudioBandWarning, AudioDecodeError, ConfigError
from ssamba.files import user_path
from ssamba.progress import OnProgress, ProgressReporter

Array: TypeAlias = npt.NDArray[Any]
File: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | AudioBytes"
"""A path, the contents of an audio file, or a file object opened in binary mode (read from its position to its end)."""
Source: TypeAlias = "File | Array | Tensor"
"""A file, or a waveform (S,), (1, S), or (C, S) or (S, C) with `channels`."""
OneChannel: TypeAlias = Literal["mean"] | int | None
"""`mean` averages the channels, a number takes one (from 0); None averages a file's channels and refuses an array's."""
Channels: TypeAlias = OneChannel | Literal["separate"]
"""Or `separate`: a result for each channel."""

Place: TypeAlias = tuple[int, bool]
"""Number of a recording, and whether a result is of its last channel."""
Result = TypeVar("Result")

_MAX_CHANNELS = 256
_MAX_PEAK = 16.0
_PCM = (np.int8, np.int16, np.int32, np.uint8)


def checked_channels(channels: Channels, *, separate: bool = True) -> None:
    """Raise ConfigError unless `channels` is None, "mean", a number from 0, or (if allowed) "separate"."""
    known = (None, "mean", "separate") if separate else (None, "mean")
    if isinstance(channels, int | np.integer) and not isinstance(channels, bool):
        is_right = bool(channels >= 0)
    else:
        is_right = channels in known
    if not is_right:
        more = ', or "separate" for a result of each' if separate else ""
        raise ConfigError(f'channels must be "mean" or the number of a channel (from 0){more}; got {channels!r}')


def read(
    source: Source,
    sample_rate: int | None,
    front_end: FrontEndConfig,
    channels: OneChannel = None,
    damaged: decode.Damaged = "skip",
    on_above_band: OnAboveBand | None = None,
) -> Iterator[Samples]:
    """Yield consecutive blocks of a recording's mono samples (S,), float32, at the front end's rate.

    Args:
        source: the recording; a file is streamed in constant memory.
        sample_rate: rate of a waveform; None means the front end's. Files carry their own.
        front_end: says the rate, and how long a recording must be.
        channels: how to make one channel of several.
        damaged: of a file, see `decode`.
        on_above_band: called at the end if much of the recording lies above half the front end's rate; None means what
            listens in this context (`collect_above_band`), if anything does.

    Raises:
        AudioDecodeError: a file cannot be read.
        ValueError: a waveform has another shape or type, holds NaN or infinity, or has no such channel; or the
            recording is shorter than one frame.

    Warns:
        UserWarning: floats have a peak above 16: integer samples, probably.
    """
    rate_hz, num_samples, name = front_end.sample_rate_hz, 0, ""
    if _is_array(source):
        samples = _mono(source, channels)
        if sample_rate is not None and decode.checked_rate(sample_rate) != rate_hz:
            on_above_band = on_above_band or listener()
            meter = band_meter(sample_rate, rate_hz / 2, on_above_band)
            if meter is not None:
                meter.add_all(samples)
            tell(meter, on_above_band, "the waveform", sample_rate, rate_hz / 2)
            samples = soxr.resample(samples, sample_rate, rate_hz)
        num_samples = len(samples)
        yield samples
    else:
        file = _file(source)
        name = f"{file}: "
        channel = None if channels == "mean" else channels
        peak = 0.0
        for block in decode.stream(
            file, sample_rate_hz=rate_hz, channel=channel, damaged=damaged, on_above_band=on_above_band
        ):
            num_samples += len(block)
            peak = max(peak, _peak(block))
            yield block
        if (remark := peak_remark(peak)) is not None:  # floats, since integers are scaled
            warnings.warn(f"{name}{remark}", stacklevel=_outside())
    if num_samples < front_end.frame_samples:
        raise ValueError(
            f"{name}the recording is {1000 * num_samples / rate_hz:.1f} ms long, shorter than one frame of "
            f"{front_end.frame_ms:g} ms: leave it out, or pad it"
        )


_CHOOSE = "load_model(..., front_end=...)"


def warn_once_above_band() -> OnAboveBand:
    """Return what listens in this context, or else a function that warns of the first recording it is told about."""
    seen: list[Remark] = []

    def warn(found: Remark) -> None:
        seen.append(found)
        if len(seen) == 1:
            text = above_band_text(seen, _CHOOSE, more=". Further recordings of this call are not named")
            warnings.warn(text, AudioBandWarning, stacklevel=_outside())

    return listener() or warn


class Recordings:
    """The recordings that a caller gave, one, a list or a batch, each as the blocks of its channels.

    Attributes:
        is_single: whether it is one recording, not a list.
        total: number of recordings; None for an iterator.
    """

    def __init__(
        self,
        source: Source | Iterable[Source],
        sample_rate: int | None,
        front_end: FrontEndConfig,
        *,
        channels: Channels = None,
        batch: bool = False,
        damaged: decode.Damaged = "skip",
    ):
        """Check what can be checked before anything is read; arguments as `Embedder.embed`.

        Raises:
            ValueError: an argument is of a wrong kind, or two of them contradict each other.
        """
        if batch:
            _check_batch(source)
        self.is_single = _is_source(source) and not batch
        self.total: int | None = 1
        self._sources: Iterable[Source]
        if self.is_single:
            self._sources = [cast("Source", source)]
        elif isinstance(source, Iterable) and not isinstance(source, Mapping):
            self._sources = cast("Iterable[Source]", source)
            self.total = len(source) if isinstance(source, Sized) else None
        else:
            raise ValueError(_expected(source))
        # In torchaudio's order or in scipy's.
        is_pair = isinstance(source, tuple) and len(source) == 2 and any(map(_is_array, source))
        if is_pair and any(isinstance(one, Number) for one in cast("tuple[object, ...]", source)):
            raise ValueError(
                "got a tuple of a waveform and a number: give them as two arguments, embed(waveform, sample_rate)"
            )
        if self.is_single or isinstance(source, Sequence):
            for number, item in enumerate(self._sources):
                self._check(item, number)
            if sample_rate is not None and self.total and not any(map(_is_array, self._sources)):
                raise ValueError(
                    f"sample_rate={sample_rate} is for waveforms, but a file has its own: omit it "
                    "(files of any rate are read at the model's)"
                )
        if sample_rate is not None:
            decode.checked_rate(sample_rate)
        checked_channels(channels)
        decode.checked_damaged(damaged)
        self._sample_rate, self._front_end, self._channels = sample_rate, front_end, channels
        self._damaged: decode.Damaged = damaged

    def collect(
        self,
        run: Callable[[Iterable[tuple[Place, Iterator[Samples]]]], Iterator[tuple[Place, Result | Exception]]],
        duration_s: Callable[[Result], float],
        progress: OnProgress | None,
        step: str,
    ) -> list[list[Result]]:
        """Run all recordings, and return the results of each one's channels.

        Args:
            run: yields the result of each item, or its error, with the item's key, in the order of the items.
            duration_s: returns the length of the recording of a result.
            progress: called after each recording. If it returns False, no further recording is read; those that were
                read before are finished, so that nothing is lost.
            step: what `run` does, for `progress`.

        Raises:
            ConfigError: `progress` is not a function.
            ValueError, OSError: the error of a recording, with its number.
        """
        reporter, audio_s = ProgressReporter(progress, step, self.total, "recordings"), 0.0
        found: list[list[Result]] = []
        is_stopped = False

        def items() -> Iterator[tuple[Place, Iterator[Samples]]]:
            for number, channels in enumerate(self._blocks()):
                yield from (((number, i == len(channels)), blocks) for i, blocks in enumerate(channels, 1))
                if is_stopped:
                    return

        with collect_above_band() as above_band:
            for (number, is_last_channel), result in run(items()):
                if isinstance(result, Exception):
                    raise self._located(result, number)
                found += [[]] if number == len(found) else []
                found[number].append(result)
                if is_last_channel and not is_stopped:
                    audio_s += duration_s(result)
                    is_stopped = not reporter.update(number + 1, audio_s=audio_s)
        if above_band:
            text = above_band_text(above_band[: len(found)], _CHOOSE, len(found))
            warnings.warn(text, AudioBandWarning, stacklevel=_outside())
        return found

    def _blocks(self) -> Iterator[list[Iterator[Samples]]]:
        """Yield the recordings: for each one the blocks of every channel that has a result of its own."""
        for number, source in enumerate(self._sources):
            self._check(source, number)
            if self._channels != "separate":
                yield [read(source, self._sample_rate, self._front_end, self._channels, self._damaged)]
                continue
            try:
                # A file object can be read only once, and each channel is decoded by itself.
                content: Source = source if _is_array(source) else _file(source)
                count = _num_channels(content)
            except ValueError as error:
                raise self._located(error, number) from None
            options = self._sample_rate, self._front_end
            yield [read(content, *options, channel, self._damaged) for channel in range(count)]

    def _located(self, error: Exception, number: int) -> Exception:
        """Return the error of a recording with the recording's number, if there are several."""
        if self.is_single or type(error) not in (ValueError, AudioDecodeError):
            return error
        return type(error)(f"recording {number} (from 0): {error}")

    def _check(self, source: object, number: int) -> None:
        if not _is_source(source):
            hint = f" as number {number} (from 0) of a list"
            raise ValueError(_expected(source, hint))


def _file(source: object) -> Path | AudioBytes:
    if isinstance(source, AudioBytes):
        return source
    if isinstance(source, str | os.PathLike):
        # A `Path` may have been found in a folder, where `~a` is the name of a file.
        return source if isinstance(source, Path) else user_path(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return AudioBytes("bytes in memory", bytes(source))
    if hasattr(source, "read"):
        data = b"" if isinstance(source, io.TextIOBase) else source.read()
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) else f"a {type(source).__name__} object"
        if isinstance(source, io.TextIOBase) or not isinstance(data, bytes):
            raise ValueError(
                f"{name} gives text, where the bytes of an audio file are expected: open it with mode 'rb'"
            )
        if not data and hasattr(source, "seek") and source.seek(0, os.SEEK_END):
            raise ValueError(f"{name} has already been read to its end: call its seek(0) first")
        return AudioBytes(name, data)
    raise ValueError(_expected(source))


def _is_array(source: object) -> TypeGuard[Array | Tensor]:
    return isinstance(source, np.ndarray | Tensor)


def _is_source(source: object) -> TypeGuard[Source]:
    files = (str, os.PathLike, bytes, bytearray, memoryview, AudioBytes)
    return _is_array(source) or isinstance(source, files) or hasattr(source, "read")


def _expected(source: object, where: str = "") -> str:
    """Return the message about an object that is no recording."""
    hint = ""
    if isinstance(source, Mapping):
        hint = (
            ". For an item of a data set, give the waveform and its sample rate: item['array'], item['sampling_rate']"
        )
    elif isinstance(source, Number) and where:
        hint = ". Samples must be an array: np.asarray(samples, dtype=np.float32)"
    return (
        "expected a recording (a path, bytes, a binary file object, a NumPy array or a tensor) or a list of these, got "
        f"{type(source).__name__}{where}{hint}"
    )


def _check_batch(source: object) -> None:
    if not _is_array(source):
        raise ValueError(
            f"batch=True is for an array (recordings, samples), got {type(source).__name__}: a list is a batch anyway, "
            "omit batch"
        )
    if source.ndim < 2:
        raise ValueError(
            f"batch=True is for an array (recordings, samples), got the shape {tuple(source.shape)}: leave it out, or "
            "give waveform[None]"
        )


def _num_channels(source: Source) -> int:
    if _is_array(source):
        return 1 if source.ndim == 1 else int(source.shape[_channel_axis(tuple(source.shape))])
    return decode.probe(_file(source)).channels


def _channel_axis(shape: tuple[int, ...]) -> int:
    """Return the axis of the channels, the shorter one: 0 of (C, S), as from torchaudio, 1 of (S, C), soundfile's."""
    if len(shape) != 2:
        raise ValueError(
            f"a waveform must have the shape (samples,), or (channels, samples) or (samples, channels), got {shape}; "
            "a batch (recordings, ..., samples) needs batch=True"
        )
    axis = 0 if shape[0] <= shape[1] else 1
    if not 1 <= shape[axis] <= _MAX_CHANNELS:
        raise ValueError(
            f"neither axis of a waveform of shape {shape} holds 1 to {_MAX_CHANNELS} channels: give (samples,), "
            "or batch=True if its rows are recordings"
        )
    return axis


def _rows(array: Array, channels: OneChannel) -> Array:
    """Return the channels (C, S) of an array that are asked for; they are to be averaged."""
    if array.ndim == 1:
        rows = array[None]
    else:
        shape = array.shape
        axis = _channel_axis(shape)
        if channels is None and shape[0] != 1:
            seen = (
                "(channels, samples), as torchaudio returns" if axis == 0 else "(samples, channels), as soundfile does"
            )
            raise ValueError(
                f"a waveform of shape {shape} looks like {seen}: say how to read it, channels='mean' (average), "
                "channels=0 (the first), or channels='separate' (a result for each); or batch=True, if each row is a "
                "recording"
            )
        rows = array if axis == 0 else array.T
    if channels is None or channels == "mean":
        return rows
    if channels >= len(rows):
        raise ValueError(
            f"channels={channels} does not exist: the waveform has {len(rows)} "
            f"{'channel' if len(rows) == 1 else 'channels'}, counted from 0"
        )
    chosen: Array = rows[channels, None]
    return chosen


def _mono(waveform: Array | Tensor, channels: OneChannel) -> Samples:
    """Convert a waveform to mono float32 (S,); integers are PCM of full scale."""
    if isinstance(waveform, Tensor):
        if waveform.layout != torch.strided:
            raise ValueError(f"a waveform must be a dense tensor, got {waveform.layout}: use waveform.to_dense()")
        tensor = waveform.detach().cpu().resolve_neg()
        # NumPy has no bfloat16.
        array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    else:
        array = waveform
    rows = _rows(array, channels)
    kind = rows.dtype.newbyteorder("=").type
    if np.issubdtype(kind, np.floating):
        with np.errstate(over="ignore"):  # beyond float32's range: infinity, which is reported below
            samples: Array = rows.astype(np.float32)
    elif kind == np.uint8:
        samples = (rows.astype(np.float32) - 128) / 128
    elif kind in _PCM:
        samples = rows.astype(np.float32) / -float(np.iinfo(kind).min)
    else:
        remedy = ""
        if np.issubdtype(kind, np.integer):
            remedy = ": convert it to the type of the recording, such as waveform.astype(np.int16)"
        elif rows.dtype.kind in "OUS":
            remedy = ": give a list of recordings, not an array of them"
        raise ValueError(f"a waveform must be float, int16, int32, int8 or uint8, got {rows.dtype}{remedy}")
    mono: Samples = samples[0] if len(samples) == 1 else samples.mean(0)
    if len(mono):
        _check_peak(mono, is_float=np.issubdtype(kind, np.floating))
    return mono


def _check_peak(samples: Samples, *, is_float: bool) -> None:
    """Raise if samples are not finite, and warn if they look like integers."""
    peak = _peak(samples)
    if not np.isfinite(peak):
        first = int(np.argmin(np.isfinite(samples)))
        raise ValueError(f"the waveform holds NaN or infinity, first at sample {first}: repair or omit it")
    remark = peak_remark(peak) if is_float else None
    if remark is not None:
        warnings.warn(remark, stacklevel=_outside())


def _peak(samples: Samples) -> float:
    """Return the largest absolute value; NaN if one is NaN."""
    return max(float(samples.max()), -float(samples.min()))


PEAK_REMARK = "the waveform has a peak of "


def peak_remark(peak: float) -> str | None:
    """Return what is to be said about a peak that no float waveform should have, with the remedy; else None."""
    if peak <= _MAX_PEAK:
        return None
    bits = next((bits for bits in (16, 24, 32) if peak <= 2 ** (bits - 1)), None)
    remedy = ": scale it to [-1, 1]"
    if bits is not None:
        remedy = f". If it holds {bits}-bit integers, divide it by {2 ** (bits - 1)}"
        remedy += ", or give it as int16" if bits == 16 else ""
    return f"{PEAK_REMARK}{peak:g}, where floats are expected in [-1, 1], so its embedding will mean little{remedy}"


def _outside() -> int:
    """Return the stack level of the first caller outside the package, for a warning of the calling function."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ssamba":
        level, frame = level + 1, frame.f_back
    return level
