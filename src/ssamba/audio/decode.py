"""Any audio file, or a part of it, as mono float32 samples at the rate that is wanted.

    decode("dawn.flac")                                  # the whole recording at 16 kHz, (samples,)
    decode("dawn.flac", start_s=60, duration_s=10)       # ten seconds of it; what comes before is not read
    for block in stream("night.wav", block_s=30): ...    # hours in constant memory

WAV, FLAC, MP3, Ogg Vorbis, Opus, AIFF, AU, CAF and their kin are read by libsndfile (soundfile), what it refuses
(M4A/AAC, WebM, WMA, the sound of videos) by FFmpeg (PyAV, the `codecs` extra). Channels are averaged, and soxr
resamples. Both decoders pass over damage in silence, so everything that reaches the end of a file is held against what
its container claims (`containers.py`), and every sample is checked to be finite.

A part equals the same samples of the whole: reading starts on an input sample that coincides with an output sample
(every p-th, for in/out = p/q in lowest terms), far enough ahead to fill the resampler's filter. Codecs whose state
depends on what came before are decoded from the start of the file where that is quick (`_SEEK_FROM_S`).

Shapes: blocks and results are (samples,), float32. No torch here: decoding workers are light processes.
"""

from __future__ import annotations

import math
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ssamba.audio import containers
from ssamba.errors import AudioDecodeError, AudioTruncatedWarning

Samples: TypeAlias = "npt.NDArray[np.float32]"

_QUALITY = "HQ"  # 20 bits: below the noise of float32 features; VHQ takes twice the time
_FILTER_SAMPLES = 400  # more than half the length of soxr's filter, in samples of the lower of the two rates
_BLOCK_VALUES = 1 << 17  # read at a time, over all channels
_SEEK_FROM_S = {  # earlier starts are read from the beginning of the file, which is exact and takes under 0.5 s
    "OPUS": 60.0,  # exact only to about 1e-3 after a seek: its predictors forget slowly
    "MPEG_LAYER_III": 600.0,  # exact, but mpg123 writes about missing bits to stderr at every seek
    "AAC": 600.0,  # noise that the codec makes up (PNS) differs after a seek
}
_PREROLL_S = 1.0  # decoded and dropped after a seek, until codecs have forgotten what they did not see
_CODEC_SLACK_S = 0.1  # by how much healthy lossy files fall short of their stated duration
_EXACT_CODECS = ("PCM", "FLOAT", "DOUBLE", "FLAC", "ULAW", "ALAW")


@dataclass(frozen=True)
class AudioInfo:
    """What a file's headers say, before anything is decoded."""

    path: Path
    """The file."""
    sample_rate_hz: int
    """Its own sampling rate."""
    channels: int
    """Number of channels."""
    num_samples: int | None
    """Samples per channel that the header claims (a truncated file holds fewer); None if it does not say."""
    duration_s: float | None
    """The same in seconds."""
    container: str
    """The file format: `WAV`, `FLAC`, `OGG`, `MP4`..."""
    codec: str
    """How samples are coded: `PCM_16`, `FLAC`, `VORBIS`, `AAC`..."""
    reader: str
    """Which library reads it: `soundfile` or `pyav`."""


def probe(path: str | Path) -> AudioInfo:
    """Read the headers of the audio file `path`.

    Raises AudioDecodeError if there is no such file, or it is not audio that can be read here.
    """
    with _open(Path(path)) as reader:
        return reader.info


def decode(
    path: str | Path,
    *,
    sample_rate_hz: int = 16000,
    start_s: float = 0.0,
    duration_s: float | None = None,
    strict: bool = True,
) -> Samples:
    """Decode `path`, or `duration_s` seconds from `start_s` on: mono float32 (samples,) at `sample_rate_hz`.

    A whole recording of n samples gives round(n * out / in), at least one. A part is the slice
    [round(start_s * rate) : round((start_s + duration_s) * rate)] of the whole, shorter where the recording ends.

    Raises AudioDecodeError (a ValueError) if the file cannot be read, holds no samples, holds NaN or infinite ones,
    or ends before `start_s`; and when the end of the file is missing and the part reaches it, unless
    `strict=False`, which warns (AudioTruncatedWarning) and returns what is there. Raises ValueError for arguments
    out of range.
    """
    out_hz = _checked_rate(sample_rate_hz)
    if not (math.isfinite(start_s) and start_s >= 0):
        raise ValueError(f"start_s must be a finite number of seconds, at least 0; got {start_s}")
    if duration_s is not None and not (math.isfinite(duration_s) and round(duration_s * out_hz) > 0):
        raise ValueError(f"duration_s must be finite and last at least one sample at {out_hz} Hz; got {duration_s}")
    first = round(start_s * out_hz)
    count = None if duration_s is None else max(1, round((start_s + duration_s) * out_hz) - first)
    return np.concatenate(list(_read(Path(path), out_hz, first, count, strict)))


def stream(
    path: str | Path, *, sample_rate_hz: int = 16000, block_s: float = 30.0, strict: bool = True
) -> Iterator[Samples]:
    """Decode `path` block by block in constant memory: joined, the blocks equal `decode(path)` exactly.

    Yields mono float32 (round(block_s * sample_rate_hz),), the last one shorter. Errors are those of `decode`; a missing end
    is found when it is reached, after the blocks before it have been handed out.
    """
    out_hz = _checked_rate(sample_rate_hz)
    if not (math.isfinite(block_s) and round(block_s * out_hz) > 0):
        raise ValueError(f"block_s must be finite and last at least one sample at {out_hz} Hz; got {block_s}")
    return _regrouped(_read(Path(path), out_hz, 0, None, strict), round(block_s * out_hz))


def _checked_rate(sample_rate_hz: int) -> int:
    if not (math.isfinite(sample_rate_hz) and sample_rate_hz > 0 and sample_rate_hz == int(sample_rate_hz)):
        raise ValueError(f"sample_rate_hz must be a positive whole number; got {sample_rate_hz}")
    return int(sample_rate_hz)


def _regrouped(pieces: Iterator[Samples], size: int) -> Iterator[Samples]:
    """The same samples in blocks of `size`."""
    held: list[Samples] = []
    num_held = 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece)
        if num_held >= size:
            joined = np.concatenate(held)
            whole = num_held - num_held % size
            for start in range(0, whole, size):
                yield joined[start : start + size].copy()
            held, num_held = [joined[whole:]], num_held - whole
    if num_held:
        yield np.concatenate(held)


def _read(path: Path, out_hz: int, first: int, count: int | None, strict: bool) -> Iterator[Samples]:
    """Output samples [first : first + count] of `path` (to the end for None), in pieces of no particular size."""
    with _open(path) as reader:
        in_hz = reader.info.sample_rate_hz
        common = math.gcd(in_hz, out_hz)
        p, q = in_hz // common, out_hz // common
        margin = 0 if p == q else math.ceil(_FILTER_SAMPLES * in_hz / min(in_hz, out_hz))
        first_in = max(0, (first * p // q - margin) // p * p)
        stop_in = None if count is None else -(-(first + count) * p // q) + margin
        skip, left = first - first_in // p * q, math.inf if count is None else count

        resampler = None if p == q else soxr.ResampleStream(in_hz, out_hz, 1, "float32", _QUALITY)
        position, num_out, block = first_in, 0, np.zeros(0, np.float32)
        for block in _finite(reader, first_in):
            if stop_in is not None:
                block = block[: stop_in - position]
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
        if left == 0 or position == stop_in:
            return

        _check_end(reader, position, num_out > 0, strict)
        if num_out == 0 and first == 0:
            yield block.mean(keepdims=True)  # shorter than half an output sample: better one than none
        elif num_out == 0:
            raise AudioDecodeError(
                f"{path}: start_s={first / out_hz:g} lies past the end of the recording, which lasts "
                f"{min(position, reader.end(position)) / in_hz:.3f} s. Choose an earlier start"
            )


def _finite(reader: _Reader, first: int) -> Iterator[Samples]:
    """The reader's blocks, all of whose samples are finite."""
    position = first
    for block in reader.blocks(first):
        # A sum is one pass without a temporary array, and float64 cannot overflow here.
        with np.errstate(invalid="ignore"):
            suspicious = not np.isfinite(block.sum(dtype=np.float64))
        if suspicious:
            at = int(np.argmin(np.isfinite(block)))
            raise AudioDecodeError(
                f"{reader.info.path}: the sample at {(position + at) / reader.info.sample_rate_hz:.3f} s is "
                f"{block[at]}, where every sample must be a finite number. Export the recording anew, or repair it"
            )
        position += len(block)
        yield block


def _check_end(reader: _Reader, num_samples: int, some_wanted: bool, strict: bool) -> None:
    """Complain if a file that was read to its end, after `num_samples`, lacks a part of what it claims."""
    info = reader.info
    fault = reader.fault(num_samples)
    if num_samples == 0:
        cause = f"truncated ({fault})" if fault else "its header is valid, but no samples follow"
        raise AudioDecodeError(f"{info.path}: holds no audio: {cause}. Get a whole copy, or leave it out")
    if fault is None:
        return
    there = f"{num_samples / info.sample_rate_hz:.2f} s"
    of = f" of {info.duration_s:.2f} s" if info.num_samples and info.num_samples > num_samples else ""
    found = f"{info.path}: truncated or damaged, {there}{of} can be read ({fault})"
    if strict or not some_wanted:
        raise AudioDecodeError(f"{found}. Get a whole copy, or pass strict=False to use what is there")
    warnings.warn(found, AudioTruncatedWarning, stacklevel=4)


# --- readers ------------------------------------------------------------------------------------------------------------


def _open(path: Path) -> _Reader:
    """Open `path` with whichever library reads it; AudioDecodeError says why none does."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise AudioDecodeError(f"{path}: is {what} (expected an audio file). Give the path of a recording")
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise AudioDecodeError(f"{path}: no such file. Check the path (relative ones start at {Path.cwd()})") from None
    except PermissionError:
        raise AudioDecodeError(f"{path}: may not be read by this user. Change its permissions") from None
    except OSError as error:
        raise AudioDecodeError(f"{path}: cannot be read ({error.strerror or error}). Check disk and path") from None
    if not head:
        raise AudioDecodeError(f"{path}: is empty, 0 bytes (expected an audio file). Copy or record it again")
    kind = containers.identify(head)
    if not kind.is_audio:
        raise AudioDecodeError(f"{path}: is {kind.name} (expected an audio file). Give the path of a recording")

    integrity = containers.inspect(path)
    reason = ""
    if not kind.needs_codecs:
        try:
            return _SoundfileReader(path, integrity)
        except (soundfile.SoundFileError, TypeError, ValueError, RuntimeError, OSError) as error:
            reason = f" (libsndfile: {getattr(error, 'error_string', error)})".rstrip(".")
    try:
        import av  # noqa: F401
    except ImportError:
        if kind.needs_codecs or kind.name == "an Ogg file":
            raise AudioDecodeError(
                f"{path}: {kind.name}, which libsndfile does not decode{reason}. Install the codecs: "
                f'pip install "ssamba[codecs]"'
            ) from None
    else:
        try:
            return _PyavReader(path, integrity)
        except AudioDecodeError:
            raise
        except Exception as error:  # PyAV raises many kinds: FFmpegError, IndexError, UnicodeDecodeError...
            reason = reason or f" (FFmpeg: {getattr(error, 'strerror', None) or error})"
    if integrity.fault:
        raise AudioDecodeError(f"{path}: truncated or damaged: {integrity.fault}{reason}. Get a whole copy of it")
    if kind.name.startswith("of no format"):
        raise AudioDecodeError(f"{path}: is {kind.name}{reason}. Convert it to WAV or FLAC")
    raise AudioDecodeError(
        f"{path}: begins as {kind.name}, but its header is damaged or of an unknown variant{reason}. "
        f"Get a whole copy, or convert it to WAV or FLAC"
    )


class _Reader:
    """An open file. `blocks` may be called once; afterwards `fault` judges what came."""

    info: AudioInfo
    _integrity: containers.Integrity
    _read_error: str | None = None  # why decoding stopped before the end
    _slack_s: float = 0.0

    def blocks(self, first: int) -> Iterator[Samples]:
        """Mono blocks from sample `first` on; none if that is past the end. Stops where decoding fails."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def end(self, position: int) -> int:
        """Where the recording ended, if nothing came from `position` on."""
        return position

    def fault(self, num_samples: int) -> str | None:
        """What is missing from a file that gave `num_samples` up to its end, in words; None for nothing."""
        claimed = self.info.num_samples
        if self._integrity.fault or self._read_error:
            return self._integrity.fault or self._read_error
        if claimed is not None and num_samples < claimed - self._slack_s * self.info.sample_rate_hz:
            return f"its header claims {claimed:,} samples, {num_samples:,} were decoded"
        return None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _SoundfileReader(_Reader):
    def __init__(self, path: Path, integrity: containers.Integrity) -> None:
        self._integrity = integrity
        self._patched = _PatchedFile(path, integrity.patches) if integrity.patches else None
        try:
            self._file = soundfile.SoundFile(self._patched or str(path))
        except BaseException:
            if self._patched:
                self._patched.close()
            raise
        file = self._file
        # libsndfile says 2^63 - 1 for a FLAC stream of unknown length.
        frames = file.frames if file.frames < 1 << 60 else None
        if frames and integrity.fraction and file.format != "MP3":  # MP3: already the header's count
            frames = round(frames / integrity.fraction)
        duration_s = None if frames is None else frames / file.samplerate
        self.info = AudioInfo(
            path, file.samplerate, file.channels, frames, duration_s, file.format, file.subtype, "soundfile"
        )
        self._slack_s = 0.0 if file.subtype.startswith(_EXACT_CODECS) else _CODEC_SLACK_S

    def close(self) -> None:
        self._file.close()
        if self._patched:
            self._patched.close()

    def end(self, position: int) -> int:
        return min(position, self._file.frames)

    def _seek(self, first: int) -> int:
        """Go to sample `first`, or as far before it as the codec needs; returns where."""
        codec, rate_hz = self.info.codec, self.info.sample_rate_hz
        first = min(first, self._file.frames)
        if first < rate_hz * _SEEK_FROM_S.get(codec, 0.0):
            return 0
        if codec == "VORBIS":
            first = min(first, containers.ogg_seekable_before(self.info.path))
        if codec in ("OPUS", "VORBIS", "MPEG_LAYER_III"):
            first = max(0, first - round(_PREROLL_S * rate_hz))
        if first:
            self._file.seek(first)
        return first

    def blocks(self, first: int) -> Iterator[Samples]:
        try:
            drop = first - self._seek(first)
        except soundfile.SoundFileError as error:
            self._read_error = f"libsndfile: {error}"
            return
        size = max(1024, _BLOCK_VALUES // self.info.channels)
        while self._read_error is None:
            buffer = np.full((size, self.info.channels), np.nan, np.float32)
            try:
                block = self._file.read(out=buffer)
            except soundfile.SoundFileError as error:
                # What was decoded before the damage is in the buffer, and NaN after it.
                block = buffer[: int(np.argmax(np.isnan(buffer[:, 0])))] if np.isnan(buffer[-1, 0]) else buffer
                if self.info.num_samples is not None:  # otherwise libsndfile takes the end itself for an error
                    detail = getattr(error, "error_string", error)
                    self._read_error = f"it cannot be decoded any further; libsndfile: {detail}".rstrip(": .")
                else:
                    self._read_error = ""
            if len(block) == 0:
                return
            if drop < len(block):
                yield _mean(block[drop:].T)
            drop = max(0, drop - len(block))


class _PatchedFile:
    """A file to read with some of its bytes replaced, for libsndfile."""

    def __init__(self, path: Path, patches: dict[int, bytes]) -> None:
        self._file = path.open("rb")
        self._patches = patches

    def read(self, size: int = -1) -> bytes:
        at = self._file.tell()
        data = bytearray(self._file.read(size))
        for offset, patch in self._patches.items():
            for i, byte in enumerate(patch, offset - at):
                if 0 <= i < len(data):
                    data[i] = byte
        return bytes(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: bytes) -> int:
        raise OSError("open for reading only")

    def close(self) -> None:
        self._file.close()


class _PyavReader(_Reader):
    def __init__(self, path: Path, integrity: containers.Integrity) -> None:
        import av

        self._integrity = integrity
        self._slack_s = _CODEC_SLACK_S
        # Only files: a crafted playlist must not make FFmpeg fetch addresses.
        self._container = av.open(
            str(path.absolute()), metadata_errors="replace", options={"protocol_whitelist": "file"}
        )
        try:
            if not self._container.streams.audio:
                raise AudioDecodeError(f"{path}: has no sound (a video or image?). Give the path of a recording")
            self._stream = self._container.streams.audio[0]
            self.info = self._describe(path)
        except BaseException:
            self._container.close()
            raise

    def _describe(self, path: Path) -> AudioInfo:
        stream, names = self._stream, self._container.format.name.split(",")
        rate_hz = stream.codec_context.sample_rate
        if not rate_hz:
            raise AudioDecodeError(f"{path}: its sound cannot be decoded (FFmpeg finds no sampling rate). Convert it")
        duration_s = None
        # Elsewhere FFmpeg guesses from size and bit rate, which is no claim of the file.
        if {"mov", "matroska", "asf", "caf", "wav", "w64", "flac", "ogg", "aiff"} & set(names):
            if stream.duration is not None:
                duration_s = float(stream.duration * stream.time_base)
            elif "DURATION" in stream.metadata:  # Matroska says it per track, as 00:01:02.003
                duration_s = _clock_s(stream.metadata["DURATION"])
            elif self._container.duration is not None and len(self._container.streams) == 1:
                duration_s = self._container.duration / 1e6
        num_samples = None if duration_s is None else round(duration_s * rate_hz)
        name = {"mov": "MP4", "matroska": "MATROSKA", "aac": "ADTS"}.get(names[0], names[0].upper())
        codec = stream.codec_context.name.upper()
        channels = stream.codec_context.channels
        return AudioInfo(path, rate_hz, channels, num_samples, duration_s, name, codec, "pyav")

    def close(self) -> None:
        self._container.close()

    def blocks(self, first: int) -> Iterator[Samples]:
        held: list[Samples] = []
        for piece in self._pieces(first):
            held.append(piece)
            if sum(map(len, held)) >= _BLOCK_VALUES // 4:  # frames hold about 1,000 samples
                yield np.concatenate(held)
                held = []
        if held:
            yield np.concatenate(held)

    def _pieces(self, first: int) -> Iterator[Samples]:
        rate_hz, position = self.info.sample_rate_hz, 0
        frames = self._frames()
        # Only MP4 has an index that is exact to the sample; times in WebM are whole milliseconds.
        seekable = self.info.container == "MP4" and self._stream.time_base * rate_hz <= 2
        if seekable and first >= rate_hz * max(_PREROLL_S, _SEEK_FROM_S.get(self.info.codec, 0.0)):
            origin = next((frame.pts for frame in frames), None)
            if origin is not None:
                ahead_s = first / rate_hz - _PREROLL_S
                self._container.seek(origin + int(ahead_s / self._stream.time_base), stream=self._stream)
                frames = self._frames()
                position = -1
        for frame in frames:
            if position < 0:
                position = round((frame.pts - origin) * self._stream.time_base * rate_hz)
            if frame.sample_rate != rate_hz:
                self._read_error = f"its sampling rate changes at {position / rate_hz:.2f} s"
                return
            if position + frame.samples > first:
                yield _frame_mono(frame)[max(0, first - position) :]
            position += frame.samples

    def _frames(self) -> Iterator[Any]:
        """Decoded frames until the end or the first damage."""
        num_samples, error = 0, None
        try:
            for packet in self._container.demux(self._stream):
                try:
                    decoded = packet.decode()
                except Exception as caught:  # of many kinds, see _open
                    error = error or caught
                    continue
                if error and decoded:  # damage in the middle: what follows would be out of place
                    self._read_error = f"a packet cannot be decoded; FFmpeg: {getattr(error, 'strerror', error)}"
                    return
                yield from decoded
        except GeneratorExit:
            raise
        except Exception as caught:
            error = error or caught
        if error and not self._integrity.is_whole:
            self._read_error = f"it cannot be decoded any further; FFmpeg: {getattr(error, 'strerror', error)}"


def _clock_s(text: str) -> float | None:
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _frame_mono(frame: Any) -> Samples:
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float32) / 2.0 ** (8 * values.itemsize - 1)
    return _mean(values.astype(np.float32, copy=False))


def _mean(channels: Samples) -> Samples:
    """(channels, samples) to (samples,)."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are reported afterwards
        if len(channels) == 1:
            return np.ascontiguousarray(channels[0])
        if len(channels) == 2:
            return (channels[0] + channels[1]) * np.float32(0.5)
        mean: Samples = channels.mean(axis=0, dtype=np.float32)
        return mean
