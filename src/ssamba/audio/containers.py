"""Identify the format of an audio file, and find what it holds, whatever its headers claim.

Decoders trust headers: they silently shorten a truncated WAV, MP3 or Ogg file, stop at a size field that was never
updated, and read only the first of several concatenated streams. `inspect` finds what a file really holds:

- WAV, RF64, BW64, W64, AIFF, CAF, AU: where the samples end (`chunks.py`, `extent.py`);
- FLAC: the number of the last frame (`flac.py`); Ogg: pages, checksums and chained streams (`ogg.py`);
- MP3 and ADTS (raw AAC): the frames (`mpeg.py`); MP4: the top-level boxes; Matroska/WebM: the size of the segment.

`identify` names the format of a file, audio or not, for messages. Nothing here raises on damaged content: a header that
cannot be parsed states nothing. Sizes and offsets are in bytes.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

from ssamba.audio.contents import Contents
from ssamba.audio.extent import inspect_chunks
from ssamba.audio.files import Bytes
from ssamba.audio.flac import inspect_flac
from ssamba.audio.mpeg import adts_frame, inspect_adts, inspect_mp3, mp3_frame, skip_id3v2
from ssamba.audio.ogg import inspect_ogg


@dataclass(frozen=True)
class Kind:
    """Format of a file, from its first bytes."""

    name: str
    """Name with an article: `a PNG image`."""
    is_audio: bool
    """Whether a decoder should try it (containers that may hold audio count)."""
    needs_codecs: bool = False
    """Whether FFmpeg reads it and libsndfile does not."""


_AUDIO = [  # pattern at the start, name, needs_codecs
    (rb"(RIFF|RIFX|RF64|BW64)....WAVE", "a WAV file", False),
    (rb"fLaC", "a FLAC file", False),
    (rb"OggS", "an Ogg file", False),
    (rb"FORM....AIF[FC]", "an AIFF file", False),
    (rb"\.snd|dns\.", "an AU file", False),
    (rb"caff", "a CAF file", False),
    (rb"riff\x2e\x91\xcf\x11", "a W64 file", False),
    (rb"....ftyp|....moov|....mdat", "an MP4/M4A file", True),
    (rb"\x1aE\xdf\xa3", "a Matroska/WebM file", True),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media (WMA) file", True),
    (rb"NIST_1A", "a NIST SPHERE file", False),
    (rb"Creative Voice File", "a Creative Voice file", False),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "a raw AAC (ADTS) file", True),
    (rb"\xff[\xe2-\xef\xf2-\xf7\xfa-\xff]", "an MP3 file", False),
    (rb"\x0bw", "an AC-3 file", True),
    (rb"RIFF....AVI ", "an AVI video", True),
    (rb"FLV\x01", "a Flash video", True),
    (rb"MAC ", "a Monkey's Audio file", True),
    (rb"wvpk", "a WavPack file", True),
    (rb"TTA[12]", "a True Audio file", True),
    (rb"#!AMR", "an AMR file", True),
    (rb"\.RMF", "a RealMedia file", True),
]
_OTHER = [
    (rb"\x89PNG\r\n", "a PNG image"),
    (rb"\xff\xd8\xff", "a JPEG image"),
    (rb"GIF8[79]a", "a GIF image"),
    (rb"BM....\0\0\0\0", "a BMP image"),
    (rb"II\*\0|MM\0\*", "a TIFF image"),
    (rb"RIFF....WEBP", "a WebP image"),
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"BZh[1-9]", "a bzip2 archive"),
    (rb"\xfd7zXZ\0", "an xz archive"),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (rb"Rar!\x1a", "a RAR archive"),
    (rb".{257}ustar", "a tar archive"),
    (rb"%PDF-", "a PDF document"),
    (rb"\x89HDF\r\n", "an HDF5 file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"PAR1", "a Parquet table"),
    (rb"SQLite format 3\0", "an SQLite database"),
    (rb"\x7fELF|MZ", "a program"),
    (rb"MThd", "a MIDI score, which holds notes and no sound"),
    (rb"version https://git-lfs", "a Git LFS pointer in place of the recording: run `git lfs pull`"),
    (rb"(?i)\s*(<!doctype html|<html)", "an HTML page, so probably the answer to a failed download"),
]


def identify(head: bytes) -> Kind:
    """Identify the format of a file from its first bytes (4 KiB are enough)."""
    if not head.strip(b"\0"):
        return Kind("filled with zero bytes from the start", is_audio=False)
    for pattern, name in _OTHER:
        if re.match(pattern, head, re.DOTALL):
            return Kind(name, is_audio=False)
    start = skip_id3v2(head)
    for pattern, name, needs_codecs in _AUDIO:
        if re.match(pattern, head[start:], re.DOTALL):
            return Kind(name, is_audio=True, needs_codecs=needs_codecs)
    if start:
        return Kind("an MP3 file (it begins with an ID3 tag)", is_audio=True)
    if _is_text(head):
        return Kind("text", is_audio=False)
    return Kind("of no format that could be recognized", is_audio=True)


def _is_text(head: bytes) -> bool:
    try:
        # A multi-byte character may be cut at the end of the excerpt.
        text = head.decode("utf-8", errors="strict" if len(head) < 4096 else "ignore")
    except UnicodeDecodeError:
        return False
    lost = len(head) - len(text.encode())
    return lost <= 3 and all(c.isprintable() or c in "\t\r\n\f\ufeff" for c in text)


def inspect(data: Bytes) -> Contents:
    """Find what the bytes of a file hold: one stream of samples, or several, and whether that is all."""
    try:
        return _inspect(data) if len(data) >= 12 else Contents()
    except (struct.error, IndexError):
        return Contents()  # a truncated or nonsensical header, which the decoder reports


def _inspect(data: Bytes) -> Contents:
    start = 0
    while after := skip_id3v2(data[start : start + 10]):
        start += after
    head = data[start : start + 16]
    if _chunked(head) or head[:4] == b"fLaC":
        return _streams(data, start)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        (size,) = struct.unpack_from("<I", data, 4)
        if size in (0, 0xFFFFFFFF) or size <= len(data) - 8:
            return Contents()
        return Contents("cut", f"its header claims {size:,} bytes, the file holds {len(data) - 8:,}")
    if head[:4] == b"OggS":
        return inspect_ogg(data, start)
    if head[4:8] in (b"ftyp", b"moov", b"mdat"):
        return _mp4(data)
    if head[:4] == b"\x1aE\xdf\xa3":
        return _matroska(data)
    if head[:1] == b"G" and len(data) >= 376 and data[188] == 0x47:  # an MPEG transport stream, in packets
        rest = len(data) % 188
        return Contents("cut", f"its last packet is cut ({rest} of 188 bytes)") if rest else Contents()
    if adts_frame(data, start):
        return inspect_adts(data, start)
    if start or data[:3] == b"ID3" or mp3_frame(data, start):
        return inspect_mp3(data, 0, start) or Contents()
    return Contents()


def _chunked(head: bytes) -> bool:
    """Return whether a file begins like one made of chunks (`extent.py`)."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return head[8:12] == b"WAVE"
    return (head[:4] == b"FORM" and head[8:11] == b"AIF") or head[:4] in (b".snd", b"dns.", b"riff", b"caff")


def _streams(data: Bytes, start: int) -> Contents:
    """Find the samples of one file, or of several of such files that were joined."""
    found: list[Contents] = []
    at = start
    while at < len(data):
        is_flac = data[at : at + 4] == b"fLaC"
        if not is_flac and not (at == start or _chunked(data[at : at + 16])):
            break
        result = inspect_flac(data, at, len(data)) if is_flac else inspect_chunks(data, at, len(data))
        if result is None:
            if found:
                found.append(Contents("cut", f"the header at byte {at:,} cannot be read"))
            break
        found.append(result[0])
        at = result[1]
    if not found:
        return Contents()
    first = found[0]
    if len(found) == 1:
        is_plain = first.parts[0].pieces == ((0, len(data)),)
        return replace(first, parts=()) if is_plain else first
    parts = tuple(part for contents in found for part in contents.parts)
    for number, contents in enumerate(found, 1):
        if contents.verdict == "cut":
            return Contents("cut", f"recording {number} of {len(found)} in it: {contents.reason}", parts)
    return Contents("wrong header", f"it holds {len(found)} recordings, its first header is of one", parts)


def _mp4(data: Bytes) -> Contents:
    at, seen = 0, set()
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        if size == 0:
            size = len(data) - at
        if size < 8:
            break
        seen.add(name)
        if at + size > len(data) and name in (b"mdat", b"moov", b"moof"):
            return Contents(
                "cut", f"its box {name.decode()!r} claims {size:,} bytes, the file holds {len(data) - at:,} of them"
            )
        at += size
    if not seen & {b"moov", b"moof"}:
        return Contents("cut", "its index (the 'moov' box) is missing")
    return Contents(is_parsed=True)


def _matroska(data: Bytes) -> Contents:
    at = 4
    header_size, at = _vint(data, at)
    at += header_size
    if data[at : at + 4] != b"\x18\x53\x80\x67":
        return Contents()
    width = 9 - data[at + 4].bit_length()
    size, start = _vint(data, at + 4)
    if size == (1 << 7 * width) - 1 or start + size <= len(data):  # all ones: a live stream of unknown size
        return Contents()
    return Contents("cut", f"its segment claims {size:,} bytes, the file holds {len(data) - start:,}")


def _vint(data: Bytes, at: int) -> tuple[int, int]:
    """Return the variable-width EBML number at `at`, and the offset after it (RFC 8794, section 4)."""
    width = 9 - data[at].bit_length()
    if width > 8:
        raise IndexError("not an EBML number")
    value = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
    return value, at + width
