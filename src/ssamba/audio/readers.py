"""Read audio files with libsndfile (soundfile) or FFmpeg (PyAV, if installed), behind one interface.

`open_audio` chooses the library that reads a file, or raises with the reason why neither does. A `Reader` yields mono
blocks from any sample on and stops where decoding fails; its `fault` then says what is missing at the end. Exceptions
of the libraries do not leave this module.

Seeking is exact where the format allows it. Codecs that depend on earlier frames are decoded from the start of the file
if that is quick (`_SEEK_FROM_S`), and from shortly before the wanted sample otherwise (`_PREROLL_S`).

Shapes: blocks are (samples,), float32, at the file's own sample rate.
"""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile

from ssamba.audio import containers
from ssamba.audio.contents import Contents, Part, Raw, Verdict
from ssamba.audio.files import AudioBytes, AudioSource, Bytes, PiecesFile, memory_map, refuse_url
from ssamba.audio.ogg import seekable_before
from ssamba.errors import AudioDecodeError
from ssamba.files import soundfile_path

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
    """What a file holds: its format, its length, and whether that is what its headers state."""

    path: Path
    """Path of the file, or the name given to bytes in memory."""
    sample_rate_hz: int
    """The file's own sample rate."""
    channels: int
    """Number of channels; the maximum, if recordings with different numbers of channels were joined."""
    num_samples: int | None
    """Samples per channel; for a truncated file, the number in its header. None if unknown."""
    duration_s: float | None
    """`num_samples` in seconds."""
    container: str
    """The file format: `WAV`, `FLAC`, `OGG`, `MP4`..."""
    codec: str
    """The coding of the samples: `PCM_16`, `FLAC`, `VORBIS`, `AAC`..."""
    reader: str
    """The library that reads the file: `soundfile` or `pyav`."""
    verdict: Verdict = "whole"
    """Whether the file holds what its headers state (see `contents.Verdict`). Decoding may find more damage."""
    reason: str | None = None
    """What the headers state and what is there; None if the file is whole."""
    claimed_s: float | None = None
    """Duration in the headers, if it differs from that of the samples."""


_known: dict[tuple[str, int, int, int], tuple[containers.Kind, Contents]] = {}
_MAX_KNOWN = 4096


def open_audio(source: AudioSource, channel: int | None = None) -> Reader:
    """Open a file, or its bytes in memory, with the first library that reads it.

    Args:
        source: the file.
        channel: the channel to read, from 0; None averages all.

    Raises:
        AudioDecodeError: no library reads it, or it has no such channel; the message says why.
    """
    reader = _opened(source)
    count = reader.info.channels
    if channel is not None and not 0 <= channel < count:
        reader.close()
        raise AudioDecodeError(
            f"{reader.info.path}: has no channel {channel}, but {count} {'channel' if count == 1 else 'channels'}, "
            "counted from 0"
        )
    reader.channel = channel
    return reader


def _opened(source: AudioSource) -> Reader:
    path = Path(source.name) if isinstance(source, AudioBytes) else source
    kind, contents = _examine(source, path)
    reason = ""
    if not kind.needs_codecs:
        try:
            return _open_soundfile(source, path, contents)
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
            return _PyavReader(source, path, contents)
        except AudioDecodeError:
            raise
        except Exception as error:  # PyAV raises many types: FFmpegError, IndexError, UnicodeDecodeError...
            reason = reason or f" (FFmpeg: {_cause(error)})"
    if contents.verdict == "cut":
        raise AudioDecodeError(f"{path}: truncated or damaged: {contents.reason}{reason}. Get a whole copy of it")
    if kind.name.startswith("of no format"):
        raise AudioDecodeError(f"{path}: is {kind.name}{reason}. {remedy}")
    raise AudioDecodeError(
        f"{path}: looks like {kind.name}, but its header is damaged or of an unknown variant{reason}. {remedy}"
    )


def _examine(source: AudioSource, path: Path) -> tuple[containers.Kind, Contents]:
    """Identify the format of a file, and find what it holds; remembered while the file's size and date stay.

    Raises:
        AudioDecodeError: it cannot be opened, or is not audio.
    """
    if isinstance(source, AudioBytes):
        return _examine_bytes(source, source.data, path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise AudioDecodeError(f"{path}: is {what} (expected an audio file). Give the path of a recording")
        key = str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns
        if (known := _known.get(key)) is None:
            with memory_map(source) as data:
                known = _known[key] = _examine_bytes(source, data, path)
            for oldest in list(_known)[: max(0, len(_known) - _MAX_KNOWN)]:  # a list, since threads share it
                _known.pop(oldest, None)
        return known
    except FileNotFoundError:
        refuse_url(path)
        raise AudioDecodeError(f"{path}: no such file. Check the path (relative ones start at {Path.cwd()})") from None
    except PermissionError:
        raise AudioDecodeError(f"{path}: may not be read by this user. Change its permissions") from None
    except OSError as error:
        refuse_url(path)
        raise AudioDecodeError(f"{path}: cannot be read ({error.strerror or error}). Check disk and path") from None


def _examine_bytes(source: AudioSource, data: Bytes, path: Path) -> tuple[containers.Kind, Contents]:
    head = data[:4096]
    if not head:
        raise AudioDecodeError(f"{path}: is empty, 0 bytes (expected an audio file). Copy or record it again")
    kind = containers.identify(head)
    if not kind.is_audio:
        raise AudioDecodeError(f"{path}: is {kind.name} (expected an audio file). Give the path of a recording")
    contents = containers.inspect(data)
    if contents.md5 and _has_digest(source, path, contents):
        contents = contents.with_verdict("wrong header", contents.reason or "")
    return kind, contents


def _has_digest(source: AudioSource, path: Path, contents: Contents) -> bool:
    """Return whether the samples of a FLAC file are those of its MD5 digest."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with closing(_OneWaySoundFile(PiecesFile(source, contents.parts[0].pieces))) as file:
            width = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}.get(file.subtype, 4)
            while len(block := file.read(_BLOCK_VALUES // file.channels, dtype="int32", always_2d=True)):
                octets = block.astype("<i4", copy=False).view(np.uint8).reshape(-1, 4)
                digest.update(np.ascontiguousarray(octets[:, 4 - width :]).tobytes())
    except (soundfile.SoundFileError, TypeError, OSError):
        return False
    return digest.digest() == contents.md5


def _cause(error: Exception) -> str:
    """Return a library's error message without its prefix."""
    words = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(words).removeprefix("Error : ").rstrip(": .")


class Reader:
    """An open audio file. Call `blocks` once; afterwards `fault` says whether the file was complete."""

    info: AudioInfo
    channel: int | None = None  # the one to read; None averages all
    position: int = 0  # samples before this one were read or skipped
    read_error: str | None = None  # why decoding stopped before the end
    slack_s: float = 0.0

    def blocks(self, first: int) -> Iterator[Samples]:
        """Yield mono blocks from sample `first` on, none if that is past the end; stop where decoding fails."""
        raise NotImplementedError

    def checked_info(self) -> AudioInfo:
        """Return the contents of the file, after a look at its end where only decoding tells whether it is there."""
        return self.info

    def _mono(self, channels: Samples) -> Samples:
        """Make one channel of the file's: (channels, samples) -> (samples,)."""
        if self.channel is None:
            return _mean(channels)
        return np.ascontiguousarray(channels[self.channel])

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError

    def fault(self) -> str | None:
        """Return a message about what is missing from a file that ended at `position`, or None."""
        expected = self.info.num_samples
        if self.info.verdict == "cut":
            return self.info.reason
        if expected is not None and self.position >= expected and not self.slack_s:
            return None  # complete; the decoder failed on a tag after a FLAC stream, or the like
        if self.read_error:
            return self.read_error
        if expected is not None and self.position < expected - self.slack_s * self.info.sample_rate_hz:
            return f"it states {expected:,} samples, {self.position:,} were decoded"
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


def _open_soundfile(source: AudioSource, path: Path, contents: Contents) -> Reader:
    """Open a file with libsndfile, as it is or in the parts that were found in it."""
    if len(contents.parts) > 1:
        return _JoinedReader(source, path, contents)
    return _SoundfileReader(source, path, contents)


class _SoundfileReader(Reader):
    def __init__(self, source: AudioSource, path: Path, contents: Contents) -> None:
        self._source = source
        self._part = part = contents.parts[0] if contents.parts else Part(())
        opened: PiecesFile | io.BytesIO | None = None
        if part.pieces:
            opened = PiecesFile(source, part.pieces)
        elif isinstance(source, AudioBytes):
            opened = io.BytesIO(source.data)
        self._opened = opened
        try:
            self._file = file = _OneWaySoundFile(
                soundfile_path(path) if opened is None else opened, **_raw_options(part.raw)
            )
        except BaseException:
            self._close_opened()
            raise
        # libsndfile reports 2^63 - 1 samples for a FLAC stream of unknown length.
        num_samples = part.num_samples or (file.frames if file.frames < 1 << 60 else None)
        claimed = contents.claimed_samples
        if contents.verdict == "cut":
            if (
                num_samples and claimed is None and contents.fraction and file.format != "MP3"
            ):  # MP3: the header's count
                claimed = round(num_samples / contents.fraction)
            num_samples = claimed or num_samples
        rate_hz = file.samplerate
        self.info = AudioInfo(
            path,
            rate_hz,
            file.channels,
            num_samples,
            None if num_samples is None else num_samples / rate_hz,
            part.container or file.format,
            file.subtype,
            "soundfile",
            contents.verdict,
            contents.reason,
            None if claimed is None else claimed / rate_hz,
        )
        self.slack_s = 0.0 if file.subtype.startswith(_EXACT_CODECS) else _CODEC_SLACK_S

    def checked_info(self) -> AudioInfo:
        info = self.info
        if info.codec != "FLAC" or info.verdict == "cut" or not info.num_samples:
            return info
        for _ in self.blocks(info.num_samples - 1):
            pass
        reason = self.fault()
        return replace(info, verdict="cut", reason=reason) if reason else info

    def _close_opened(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def close(self) -> None:
        self._file.close()
        self._close_opened()

    def _seek(self, first: int) -> int:
        """Seek to sample `first`, or as far before it as the codec needs, and return the position."""
        codec, rate_hz = self.info.codec, self.info.sample_rate_hz
        first = min(first, self._file.frames)
        if first < rate_hz * _SEEK_FROM_S.get(codec, 0.0):
            return 0
        if codec == "VORBIS":
            bounds = self._part.pieces[0] if self._part.pieces else (0, None)
            first = min(first, seekable_before(self._source, *bounds))
        if codec in ("OPUS", "VORBIS", "MPEG_LAYER_III"):
            first = max(0, first - round(_PREROLL_S * rate_hz))
        if first:
            self._file.seek(first)
        return first

    def blocks(self, first: int) -> Iterator[Samples]:
        try:
            self.position = self._seek(first)
        except soundfile.SoundFileError as error:
            self.read_error = f"libsndfile: {_cause(error)}"
            return
        size = max(1024, _BLOCK_VALUES // self.info.channels)
        while self.read_error is None:
            buffer = np.full((size, self.info.channels), np.nan, np.float32)
            try:
                block = self._file.read(out=buffer)
            except soundfile.SoundFileError as error:
                # The buffer holds the samples decoded before the damage, then NaN.
                block = buffer[: int(np.argmax(np.isnan(buffer[:, 0])))] if np.isnan(buffer[-1, 0]) else buffer
                if self.info.num_samples is not None:  # otherwise libsndfile reports the end of the file as an error
                    self.read_error = f"it cannot be decoded any further; libsndfile: {_cause(error)}"
                else:
                    self.read_error = ""
            if len(block) == 0:
                return
            drop = max(0, first - self.position)
            self.position += len(block)
            if drop < len(block):
                yield self._mono(block[drop:].T)


class _JoinedReader(Reader):
    """Recordings that were joined to one file, one after the other."""

    def __init__(self, source: AudioSource, path: Path, contents: Contents) -> None:
        self._parts: list[_SoundfileReader] = []
        try:
            for part in contents.parts:
                self._parts.append(_SoundfileReader(source, path, Contents(parts=(part,))))
        except BaseException:
            self.close()
            raise
        infos = [part.info for part in self._parts]
        first, lengths = infos[0], [info.num_samples for info in infos]
        num_samples = None if None in lengths else sum(length or 0 for length in lengths)
        verdict, reason = contents.verdict, contents.reason
        if changed := [info.sample_rate_hz for info in infos if info.sample_rate_hz != first.sample_rate_hz]:
            verdict, reason = (
                "cut",
                f"its sampling rate changes from {first.sample_rate_hz} to {changed[0]} Hz: split it",
            )
        self.slack_s = sum(part.slack_s for part in self._parts)
        self.info = replace(
            first,
            channels=max(info.channels for info in infos),
            num_samples=num_samples,
            duration_s=None if num_samples is None else num_samples / first.sample_rate_hz,
            verdict=verdict,
            reason=reason,
            claimed_s=first.duration_s if verdict == "wrong header" else None,
        )

    def checked_info(self) -> AudioInfo:
        for number, part in enumerate(self._parts, 1):
            checked = part.checked_info()
            if checked.verdict == "cut":
                return replace(self.info, verdict="cut", reason=f"recording {number} in it: {checked.reason}")
        return self.info

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def blocks(self, first: int) -> Iterator[Samples]:
        start = 0
        for number, part in enumerate(self._parts, 1):
            if part.info.sample_rate_hz != self.info.sample_rate_hz:
                return
            length = part.info.num_samples
            if length is not None and first >= start + length:
                start = self.position = start + length
                continue
            part.channel = self.channel
            if self.channel is not None and self.channel >= part.info.channels:
                self.read_error = f"recording {number} of {len(self._parts)} in it has no channel {self.channel}"
                return
            for block in part.blocks(max(0, first - start)):
                self.position = start + part.position
                yield block
            start = self.position = start + part.position
            if fault := part.fault():
                self.read_error = f"recording {number} of {len(self._parts)} in it: {fault}"
                return


def _raw_options(raw: Raw | None) -> dict[str, Any]:
    """Return what libsndfile has to be told to read samples without a header."""
    if raw is None:
        return {}
    return {
        "format": "RAW",
        "subtype": raw.subtype,
        "samplerate": raw.sample_rate_hz,
        "channels": raw.channels,
        "endian": raw.endian,
    }


class _PyavReader(Reader):
    def __init__(self, source: AudioSource, path: Path, contents: Contents) -> None:
        import av

        self._contents = contents
        self.slack_s = 5 * _CODEC_SLACK_S  # Matroska may count the last frame of FLAC as full
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
        verdict, reason = self._contents.verdict, self._contents.reason
        return AudioInfo(path, rate_hz, channels, num_samples, duration_s, name, codec, "pyav", verdict, reason)

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
                self.read_error = f"its sampling rate changes at {self.position / rate_hz:.2f} s"
                return
            if self.channel is not None and self.channel >= frame.layout.nb_channels:
                self.read_error = f"its channels change at {self.position / rate_hz:.2f} s"
                return
            drop = max(0, first - self.position)
            self.position += frame.samples
            if drop < frame.samples:
                yield self._mono(_frame_channels(frame))[drop:]

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
                    self.read_error = f"a packet cannot be decoded; FFmpeg: {_cause(error)}"
                    return
                yield from decoded
        except Exception as caught:
            error = error or caught
        if error and not self._contents.is_parsed:
            self.read_error = f"it cannot be decoded any further; FFmpeg: {_cause(error)}"


def _clock_to_s(text: str) -> float | None:
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _frame_channels(frame: Any) -> Samples:
    """Return a decoded frame as float32 (channels, samples)."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float32) / 2.0 ** (8 * values.itemsize - 1)
    scaled: Samples = values.astype(np.float32, copy=False)
    return scaled


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
