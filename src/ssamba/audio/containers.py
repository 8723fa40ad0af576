"""Identify audio container formats and detect truncated files, from headers and frame chains, without decoding.

Decoders shorten a truncated WAV, MP3 or Ogg file silently. Every container states in some way how much it should hold:

- WAV/RF64/BW64, AIFF, AU, W64, CAF: the size of the chunk of samples, compared with the size of the file (sizes that
  streaming writers never filled in, 0 or all ones, state nothing);
- Ogg: the last page is complete and has the end-of-stream flag (RFC 3533, section 6);
- MP3: every frame header gives the frame's length; Xing/Info and VBRI headers also give the number of frames;
- ADTS (raw AAC): frame lengths; MP4: the top-level boxes; Matroska/WebM: the size of the segment.

`identify` names the format of a file, audio or not, for messages. Nothing here raises on damaged content: a header that
cannot be parsed states nothing. Sizes and offsets are in bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ssamba.audio.files import AudioSource, Bytes, memory_map


@dataclass(frozen=True)
class Kind:
    """Format of a file, from its first bytes."""

    name: str
    """Name with an article: `a PNG image`."""
    is_audio: bool
    """Whether a decoder should try it (containers that may hold audio count)."""
    needs_codecs: bool = False
    """Whether FFmpeg reads it and libsndfile does not."""


@dataclass(frozen=True)
class Integrity:
    """Whether the end of a file is missing, according to its container."""

    fault: str | None = None
    """Message that says what is missing; None if the file is complete, or its format does not tell."""
    is_whole: bool = False
    """Whether the container was parsed to its end and is complete."""
    fraction: float | None = None
    """Share of the stated samples that the file holds, if known to be below 1."""
    patches: dict[int, bytes] = field(default_factory=dict)
    """Header bytes by offset to replace for libsndfile: a size field that was never filled in, a `BW64` tag."""


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
    start = _skip_id3v2(head)
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


def inspect(source: AudioSource) -> Integrity:
    """Compare the size that the container of `source` states with what the file holds."""
    with memory_map(source) as data:
        try:
            return _inspect(data) if len(data) >= 12 else Integrity()
        except (struct.error, IndexError):
            return Integrity()  # a truncated or nonsensical header, which the decoder reports


def _inspect(data: Bytes) -> Integrity:
    head = data[:16]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return _wav(data)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        (size,) = struct.unpack_from("<I", data, 4)
        whole = size in (0, 0xFFFFFFFF) or size <= len(data) - 8
        return Integrity(None if whole else f"its header claims {size:,} bytes, the file holds {len(data) - 8:,}")
    if head[:4] == b"FORM" and head[8:11] == b"AIF":
        return _aiff(data)
    if head[:4] in (b".snd", b"dns."):
        start, claimed = struct.unpack_from(">II" if head[:4] == b".snd" else "<II", data, 4)
        return _samples(data, start, claimed)
    if head[:4] == b"riff":
        return _w64(data)
    if head[:4] == b"caff":
        return _caf(data)
    if head[:4] == b"OggS":
        return _ogg(data)
    if head[4:8] in (b"ftyp", b"moov", b"mdat"):
        return _mp4(data)
    if head[:4] == b"\x1aE\xdf\xa3":
        return _matroska(data)
    if head[:1] == b"G" and len(data) >= 376 and data[188] == 0x47:  # an MPEG transport stream, in packets
        return Integrity(f"its last packet is cut ({len(data) % 188} of 188 bytes)" if len(data) % 188 else None)
    start = 0
    while (after := start + _skip_id3v2(data[start : start + 10])) > start:
        start = after
    if _adts_length(data, start):
        return _adts(data, start)
    if _mp3_frame(data, start):
        return _mp3(data, start)
    return Integrity()


def _samples(
    data: Bytes, start: int, claimed: int, frame_bytes: int = 2, patches: dict[int, bytes] | None = None
) -> Integrity:
    """Compare the stated size with the file, for samples from offset `start`; less than a frame may be missing."""
    present = max(0, len(data) - start)
    # Writers that cannot seek back leave 0, all ones, or a number just below 2 or 4 GiB.
    never_filled_in = claimed in (0, 2**64 - 1) or claimed >> 16 in (0x7FFF, 0xFFFF)
    if claimed - present < max(2, frame_bytes) or never_filled_in:
        return Integrity(patches=patches or {})
    fault = f"its header claims {claimed:,} bytes of samples, the file holds {present:,}"
    return Integrity(fault, fraction=present / claimed, patches=patches or {})


def _wav(data: Bytes) -> Integrity:
    order = ">" if data[:4] == b"RIFX" else "<"
    patches = {0: b"RF64"} if data[:4] == b"BW64" else {}  # the same layout; libsndfile knows the name RF64 only
    long_size, frame_bytes = None, 2
    at = 12
    while at + 8 <= len(data):
        (size,) = struct.unpack_from(order + "I", data, at + 4)
        if data[at : at + 4] == b"ds64":
            (long_size,) = struct.unpack_from("<Q", data, at + 16)
        if data[at : at + 4] == b"fmt ":
            channels, block_bytes, bits = struct.unpack_from(order + "2xH8xHH", data, at + 8)
            frame_bytes = block_bytes if 8 * block_bytes == channels * bits else 2  # not a block of ADPCM
        if data[at : at + 4] == b"data":
            start = at + 8
            if size == 0 and start < len(data) and not _chunk_follows(data, start, order):
                patches[at + 4] = struct.pack(order + "I", min(len(data) - start, 0xFFFFFFFF))
            if size == 0xFFFFFFFF and long_size is not None:
                size = long_size
            return _samples(data, start, size, frame_bytes, patches)
        at += 8 + size + size % 2
    return Integrity(patches=patches)


def _chunk_follows(data: Bytes, at: int, order: str) -> bool:
    """Return whether a plausible chunk begins at `at`; if so, a chunk of size 0 before it is empty, not unsized."""
    if at + 8 > len(data):
        return True  # a few stray bytes
    (size,) = struct.unpack_from(order + "I", data, at + 4)
    return re.fullmatch(rb"[A-Za-z0-9 _]{4}", data[at : at + 4]) is not None and at + 8 + int(size) <= len(data)


def _aiff(data: Bytes) -> Integrity:
    at = 12
    while at + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, at + 4)
        if data[at : at + 4] == b"SSND":
            # The chunk has two 32-bit words before the samples.
            return _samples(data, at + 16, size - 8 if 8 <= size < 0xFFFFFFFF else size)
        at += 8 + size + size % 2
    return Integrity()


def _w64(data: Bytes) -> Integrity:
    at = 40
    while at + 24 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at + 16)  # counts the chunk's own 24 bytes
        if data[at : at + 4] == b"data":
            return _samples(data, at + 24, size - 24 if size > 24 else 0)
        if size < 24:
            break
        at += size + -size % 8
    return Integrity()


def _caf(data: Bytes) -> Integrity:
    at = 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">Q", data, at + 4)
        if data[at : at + 4] == b"data":  # four bytes of edit count come before the samples
            return _samples(data, at + 16, size - 4 if 4 <= size < 2**63 else 0)
        at += 12 + size
    return Integrity()


def _ogg_pages_backwards(data: Bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (offset, flags, granule position) of the pages, last page first."""
    at = len(data)
    while (at := data.rfind(b"OggS\0", 0, at)) >= 0:
        if at + 27 <= len(data):
            flags, granule = struct.unpack_from("<Bq", data, at + 5)
            yield at, flags, granule
        else:
            yield at, 0, -1


def _ogg(data: Bytes) -> Integrity:
    last = next(_ogg_pages_backwards(data), None)
    if last is None:
        return Integrity("no Ogg page in it is whole")
    at, flags, _ = last
    count = data[at + 26] if at + 27 <= len(data) else 256
    table = data[at + 27 : at + 27 + count]
    if len(table) < count or at + 27 + count + sum(table) > len(data):
        return Integrity("its last Ogg page is cut")
    if not flags & 4:
        return Integrity("its last Ogg page lacks the end-of-stream mark")
    return Integrity(is_whole=True)


def ogg_seekable_before(source: AudioSource) -> int:
    """Return the sample position before which libsndfile seeks exactly in Ogg Vorbis, or 0.

    Inside the last page it counts back from the granule position, which the encoder reduced to trim the end, so
    everything read there is shifted by the trimmed length.
    """
    with memory_map(source) as data:
        pages = (granule for _, _, granule in _ogg_pages_backwards(data) if granule != -1)
        next(pages, 0)
        return max(0, next(pages, 0) - 8192)  # a block is at most 8192 samples long


_MP3_KBPS = {  # (is MPEG-1, layer) -> bit rates by index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")
_lengths: dict[bytes, int] = {}  # a file has a handful of distinct headers and 140,000 frames per hour


def _skip_id3v2(head: bytes) -> int:
    """Return the length of the ID3v2 tag at the start of `head`, or 0."""
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:10]) > 127:
        return 0
    body = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + body + (10 if head[5] & 0x10 else 0)


def _mp3_frame(data: Bytes, at: int) -> int:
    """Return the length of the MPEG audio frame whose header is at `at`, or 0 if there is no (fixed-rate) header."""
    head = data[at : at + 3]
    length = _lengths.get(head)
    if length is None:
        length = _mp3_length(head)
        if len(_lengths) < 4096:
            _lengths[head] = length
    return length


def _mp3_length(head: bytes) -> int:
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate_index, hz_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or hz_index == 3 or rate_index in (0, 15):
        return 0
    bits_s = 1000 * _MP3_KBPS[version == 3, layer][rate_index]
    hz = _MP3_HZ[version][hz_index]
    if layer == 1:
        return (12 * bits_s // hz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits_s // hz + padding


def _mp3(data: Bytes, start: int) -> Integrity:
    at, count, end = start, 0, len(data)
    stream = data[start + 1] & 0xFE  # version and layer, the same in every frame
    while at + 4 <= end:
        length = _mp3_frame(data, at)
        if not length or data[at + 1] & 0xFE != stream:
            if data[at : at + 11].startswith(_TAGS):
                break
            at = _mp3_resync(data, at, stream)
            if at < 0:
                break
            continue
        if at + length > end:
            return Integrity(
                f"its last MP3 frame is cut ({end - at} of {length} bytes are there)",
                fraction=_mp3_share(data, start, count),
            )
        at += length
        count += 1
    share = _mp3_share(data, start, count)
    if share is None:
        return Integrity(is_whole=True)
    return Integrity(f"its header counts {round(count / share):,} MP3 frames, the file holds {count:,}", fraction=share)


def _mp3_resync(data: Bytes, at: int, stream: int) -> int:
    """Return the next offset after `at` where two frames follow each other, or -1, to skip garbage inside a file."""
    sync = bytes((0xFF, stream)), bytes((0xFF, stream | 1))
    while True:
        found = [i for i in (data.find(s, at + 1) for s in sync) if i >= 0]
        if not found:
            return -1
        at = min(found)
        length = _mp3_frame(data, at)
        if length and _mp3_frame(data, at + length) and data[at + length + 1] & 0xFE == stream:
            return at


def _mp3_share(data: Bytes, start: int, count: int) -> float | None:
    """Return counted frames / frames stated by a Xing/Info/VBRI header; None without a header, or if they agree."""
    first = data[start : start + 200]
    claimed = 0
    if (tag := max(first.find(b"Xing", 0, 44), first.find(b"Info", 0, 44))) >= 0 and first[tag + 7] & 1:
        (claimed,) = struct.unpack_from(">I", first, tag + 8)
    elif first[36:40] == b"VBRI":
        (claimed,) = struct.unpack_from(">I", first, 36 + 14)
    # `count` includes the frame with the header; some encoders count it, others are off by one.
    return count / claimed if claimed > count + 1 else None


def _adts_length(data: Bytes, at: int) -> int:
    head = data[at : at + 7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else 0


def _adts(data: Bytes, start: int) -> Integrity:
    at, end = start, len(data)
    while length := _adts_length(data, at):
        if at + length > end:
            return Integrity(f"its last AAC frame is cut ({end - at} of {length} bytes are there)")
        at += length
    return Integrity(is_whole=True)


def _mp4(data: Bytes) -> Integrity:
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
            return Integrity(
                f"its box {name.decode()!r} claims {size:,} bytes, the file holds {len(data) - at:,} of them"
            )
        at += size
    if not seen & {b"moov", b"moof"}:
        return Integrity("its index (the 'moov' box) is missing")
    return Integrity(is_whole=True)


def _matroska(data: Bytes) -> Integrity:
    at = 4
    header_size, at = _vint(data, at)
    at += header_size
    if data[at : at + 4] != b"\x18\x53\x80\x67":
        return Integrity()
    width = 9 - data[at + 4].bit_length()
    size, start = _vint(data, at + 4)
    if size == (1 << 7 * width) - 1 or start + size <= len(data):  # all ones: a live stream of unknown size
        return Integrity()
    return Integrity(f"its segment claims {size:,} bytes, the file holds {len(data) - start:,}")


def _vint(data: Bytes, at: int) -> tuple[int, int]:
    """Return the variable-width EBML number at `at`, and the offset after it (RFC 8794, section 4)."""
    width = 9 - data[at].bit_length()
    if width > 8:
        raise IndexError("not an EBML number")
    value = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
    return value, at + width
