"""Read audio files with libsndfile (soundfile) or FFmpeg (PyAV, if installed), behind one interface.

`open_audio` chooses the library that reads a file, or raises with the reason why neither does. A `Reader` yields mono
blocks from any sample on and stops where decoding fails; its `fault` then says what is missing at the end. Exceptions
of the libraries do not leave this module.

Seeking is exact where the format allows it. Codecs that depend on earlier frames are decoded from the start of the file
if that is quick (`_SEEK_FROM_S`), and from shortly before the wanted sample otherwise (`_PREROLL_S`).

Shapes: blocks are (samples,), float32, at the file's own sample rate.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile

from ssamba.audio import containers
from ssamba.audio.files import AudioBytes, AudioSource
from ssamba.errors import AudioDecodeError

Samples: TypeAlias = "npt.NDArray[np.float32]"

_BLOCK_VALUES = 1 << 17  # values read at once, over all channels
_SEEK_FROM_S = {  # earlier starts are decoded from the beginning of the file, which is exact and takes under 0.5 s
    "OPUS": 60.0,  # exact only to about 1e-3 after a seek: the predictors decay slowly
    "MPEG_LAYER_III": 600.0,  # exact, but mpg123 warns on stderr about missing bits at every seek
    "AAC": 600.0,  # the codec's synthetic noise (PNS) differs after a seek
}
_PREROLL_S = 1.0  # decoded and dropped after a seek, until the codec's state has converged
_CODEC_SLACK_S = 0.1  # intact lossy files may be this much shorter than their stated duration
_EXACT_CODECS = ("PCM", "FLOAT", "DOUBLE", "FLAC", "ULAW", "ALAW")


@dataclass(frozen=True)
class AudioInfo:
    """Contents of a file's headers, before decoding."""

    path: Path
    """Path of the file, or the name given to bytes in memory."""
    sample_rate_hz: int
    """The file's own sample rate."""
    channels: int
    """Number of channels."""
    num_samples: int | None
    """Samples per channel that the header states (a truncated file holds fewer); None if it does not state them."""
    duration_s: float | None
    """`num_samples` in seconds."""
    container: str
    """The file format: `WAV`, `FLAC`, `OGG`, `MP4`..."""
    codec: str
    """The coding of the samples: `PCM_16`, `FLAC`, `VORBIS`, `AAC`..."""
    reader: str
    """The library that reads the file: `soundfile` or `pyav`."""
    fault: str | None = None
    """Message about a missing end that the container reveals; decoding may find more."""


def open_audio(source: AudioSource) -> Reader:
    """Open a file, or its bytes in memory, with the first library that reads it.

    Raises:
        AudioDecodeError: no library reads it; the message says why.
    """
    path = Path(source.name) if isinstance(source, AudioBytes) else source
    head = source.data[:4096] if isinstance(source, AudioBytes) else _head(source)
    if not head:
        raise AudioDecodeError(f"{path}: is empty, 0 bytes (expected an audio file). Copy or record it again")
    kind = containers.identify(head)
    if not kind.is_audio:
        raise AudioDecodeError(f"{path}: is {kind.name} (expected an audio file). Give the path of a recording")

    integrity = containers.inspect(source)
    reason = ""
    if not kind.needs_codecs:
        try:
            return _SoundfileReader(source, path, integrity)
        except (soundfile.SoundFileError, TypeError, ValueError, RuntimeError, OSError) as error:
            if getattr(error, "code", 0) != 7:  # "File does not exist", a misleading error for what resembles MP3
                reason = f" (libsndfile: {_cause(error)})"
    remedy = "Get a whole copy, or convert it to WAV or FLAC"
    try:
        import av  # noqa: F401
    except ImportError:
        remedy += ', or install further codecs: pip install "ssamba[codecs]"'
        if kind.needs_codecs or kind.name == "an Ogg file":
            raise AudioDecodeError(
                f"{path}: {kind.name}, which libsndfile does not decode{reason}. Install the codecs: "
                f'pip install "ssamba[codecs]"'
            ) from None
    else:
        try:
            return _PyavReader(source, path, integrity)
        except AudioDecodeError:
            raise
        except Exception as error:  # PyAV raises many types: FFmpegError, IndexError, UnicodeDecodeError...
            reason = reason or f" (FFmpeg: {_cause(error)})"
    if integrity.fault:
        raise AudioDecodeError(f"{path}: truncated or damaged: {integrity.fault}{reason}. Get a whole copy of it")
    if kind.name.startswith("of no format"):
        raise AudioDecodeError(f"{path}: is {kind.name}{reason}. {remedy}")
    raise AudioDecodeError(
        f"{path}: looks like {kind.name}, but its header is damaged or of an unknown variant{reason}. {remedy}"
    )


def _head(path: Path) -> bytes:
    """Return the first 4 KiB of a file."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise AudioDecodeError(f"{path}: is {what} (expected an audio file). Give the path of a recording")
        with path.open("rb") as file:
            return file.read(4096)
    except FileNotFoundError:
        raise AudioDecodeError(f"{path}: no such file. Check the path (relative ones start at {Path.cwd()})") from None
    except PermissionError:
        raise AudioDecodeError(f"{path}: may not be read by this user. Change its permissions") from None
    except OSError as error:
        raise AudioDecodeError(f"{path}: cannot be read ({error.strerror or error}). Check disk and path") from None


def _cause(error: Exception) -> str:
    """Return a library's error message without its prefix."""
    words = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(words).removeprefix("Error : ").rstrip(": .")


class Reader:
    """An open audio file. Call `blocks` once; afterwards `fault` says whether the file was complete."""

    info: AudioInfo
    position: int = 0  # samples before this one were read or skipped
    _integrity: containers.Integrity
    _read_error: str | None = None  # why decoding stopped before the end
    _slack_s: float = 0.0

    def blocks(self, first: int) -> Iterator[Samples]:
        """Yield mono blocks from sample `first` on, none if that is past the end; stop where decoding fails."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError

    def fault(self) -> str | None:
        """Return a message about what is missing from a file that ended at `position`, or None."""
        claimed = self.info.num_samples
        if self._integrity.fault:
            return self._integrity.fault
        if claimed is not None and self.position >= claimed and not self._slack_s:
            return None  # complete; the decoder failed on a tag after a FLAC stream, or the like
        if self._read_error:
            return self._read_error
        if claimed is not None and self.position < claimed - self._slack_s * self.info.sample_rate_hz:
            return f"its header claims {claimed:,} samples, {self.position:,} were decoded"
        return None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _OneWaySoundFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that does not seek after a read.

    The base class seeks to the current position after every read of a seekable file. MP3 and Opus decoders lose their
    state by that, which damages the frame after each read.
    """

    def seekable(self) -> bool:
        return False


class _SoundfileReader(Reader):
    def __init__(self, source: AudioSource, path: Path, integrity: containers.Integrity) -> None:
        self._integrity, self._source = integrity, source
        opened = io.BytesIO(source.data) if isinstance(source, AudioBytes) else None
        self._patched = _PatchedFile(opened or path.open("rb"), integrity.patches) if integrity.patches else None
        try:
            self._file = _OneWaySoundFile(self._patched or opened or str(path))
        except BaseException:
            if self._patched:
                self._patched.close()
            raise
        file = self._file
        # libsndfile reports 2^63 - 1 samples for a FLAC stream of unknown length.
        frames = file.frames if file.frames < 1 << 60 else None
        if frames and integrity.fraction and file.format != "MP3":  # MP3: already the header's count
            frames = round(frames / integrity.fraction)
        duration_s = None if frames is None else frames / file.samplerate
        self.info = AudioInfo(
            path,
            file.samplerate,
            file.channels,
            frames,
            duration_s,
            file.format,
            file.subtype,
            "soundfile",
            integrity.fault,
        )
        self._slack_s = 0.0 if file.subtype.startswith(_EXACT_CODECS) else _CODEC_SLACK_S

    def close(self) -> None:
        self._file.close()
        if self._patched:
            self._patched.close()

    def _seek(self, first: int) -> int:
        """Seek to sample `first`, or as far before it as the codec needs, and return the position."""
        codec, rate_hz = self.info.codec, self.info.sample_rate_hz
        first = min(first, self._file.frames)
        if first < rate_hz * _SEEK_FROM_S.get(codec, 0.0):
            return 0
        if codec == "VORBIS":
            first = min(first, containers.ogg_seekable_before(self._source))
        if codec in ("OPUS", "VORBIS", "MPEG_LAYER_III"):
            first = max(0, first - round(_PREROLL_S * rate_hz))
        if first:
            self._file.seek(first)
        return first

    def blocks(self, first: int) -> Iterator[Samples]:
        try:
            self.position = self._seek(first)
        except soundfile.SoundFileError as error:
            self._read_error = f"libsndfile: {_cause(error)}"
            return
        size = max(1024, _BLOCK_VALUES // self.info.channels)
        while self._read_error is None:
            buffer = np.full((size, self.info.channels), np.nan, np.float32)
            try:
                block = self._file.read(out=buffer)
            except soundfile.SoundFileError as error:
                # The buffer holds the samples decoded before the damage, then NaN.
                block = buffer[: int(np.argmax(np.isnan(buffer[:, 0])))] if np.isnan(buffer[-1, 0]) else buffer
                if self.info.num_samples is not None:  # otherwise libsndfile reports the end of the file as an error
                    self._read_error = f"it cannot be decoded any further; libsndfile: {_cause(error)}"
                else:
                    self._read_error = ""
            if len(block) == 0:
                return
            drop = max(0, first - self.position)
            self.position += len(block)
            if drop < len(block):
                yield _mean(block[drop:].T)


class _PatchedFile:
    """A readable file with some bytes replaced, for libsndfile."""

    def __init__(self, file: BinaryIO, patches: dict[int, bytes]) -> None:
        self._file = file
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


class _PyavReader(Reader):
    def __init__(self, source: AudioSource, path: Path, integrity: containers.Integrity) -> None:
        import av

        self._integrity = integrity
        self._slack_s = 5 * _CODEC_SLACK_S  # Matroska may count the last frame of FLAC as full
        # Allow files only: a crafted playlist must not make FFmpeg open URLs.
        opened = io.BytesIO(source.data) if isinstance(source, AudioBytes) else str(path.absolute())
        self._container = av.open(opened, "r", metadata_errors="replace", options={"protocol_whitelist": "file"})
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
        # For other formats FFmpeg estimates the duration from size and bit rate.
        if {"mov", "matroska", "asf", "caf", "wav", "w64", "flac", "ogg", "aiff"} & set(names):
            if stream.duration is not None and stream.time_base is not None:
                duration_s = float(stream.duration * stream.time_base)
            elif "DURATION" in stream.metadata:  # Matroska, per track: 00:01:02.003
                duration_s = _clock_to_s(stream.metadata["DURATION"])
            elif self._container.duration is not None and len(self._container.streams) == 1:
                duration_s = self._container.duration / 1e6
        num_samples = None if duration_s is None else round(duration_s * rate_hz)
        name = {"mov": "MP4", "matroska": "MATROSKA", "aac": "ADTS"}.get(names[0], names[0].upper())
        codec = stream.codec_context.name.upper()
        channels = stream.codec_context.channels
        return AudioInfo(path, rate_hz, channels, num_samples, duration_s, name, codec, "pyav", self._integrity.fault)

    def close(self) -> None:
        self._container.close()

    def blocks(self, first: int) -> Iterator[Samples]:
        held: list[Samples] = []
        for piece in self._pieces(first):
            held.append(piece)
            if sum(map(len, held)) >= _BLOCK_VALUES // 4:  # a codec's frame has about 1,000 samples
                yield np.concatenate(held)
                held = []
        if held:
            yield np.concatenate(held)

    def _pieces(self, first: int) -> Iterator[Samples]:
        rate_hz, position_known = self.info.sample_rate_hz, True
        frames = self._frames()
        # Only MP4 has a sample-exact index; WebM's times are whole milliseconds.
        tick_s = self._stream.time_base or Fraction(1)
        if (
            self.info.container == "MP4"
            and tick_s * rate_hz <= 2
            and first >= rate_hz * max(_PREROLL_S, _SEEK_FROM_S.get(self.info.codec, 0.0))
        ):
            origin = next((frame.pts for frame in frames), None)
            if origin is not None:
                ahead_s = first / rate_hz - _PREROLL_S
                self._container.seek(origin + int(ahead_s / tick_s), stream=self._stream)
                frames = self._frames()
                position_known = False
        for frame in frames:
            if not position_known:
                position_known, self.position = True, round((frame.pts - origin) * tick_s * rate_hz)
            if frame.sample_rate != rate_hz:
                self._read_error = f"its sampling rate changes at {self.position / rate_hz:.2f} s"
                return
            drop = max(0, first - self.position)
            self.position += frame.samples
            if drop < frame.samples:
                yield _frame_mono(frame)[drop:]

    def _frames(self) -> Iterator[Any]:
        """Yield decoded frames until the end or the first damage."""
        error: Exception | None = None
        try:
            for packet in self._container.demux(self._stream):
                try:
                    decoded = packet.decode()
                except Exception as caught:  # of many types, see open_audio
                    error = error or caught
                    continue
                if error and decoded:  # damage in the middle: later frames would be misplaced
                    self._read_error = f"a packet cannot be decoded; FFmpeg: {_cause(error)}"
                    return
                yield from decoded
        except Exception as caught:
            error = error or caught
        if error and not self._integrity.is_whole:
            self._read_error = f"it cannot be decoded any further; FFmpeg: {_cause(error)}"


def _clock_to_s(text: str) -> float | None:
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
    """Average channels: (channels, samples) -> (samples,)."""
    if len(channels) == 1:
        return np.ascontiguousarray(channels[0])
    mean: Samples = np.zeros(channels.shape[1], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are reported later
        for channel in channels:
            mean += channel
        mean /= np.float32(len(channels))
    return mean
