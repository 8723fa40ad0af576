"""Read what the headers of files made of chunks state about their samples: WAV, RF64, BW64, W64, AIFF, CAF, AU.

A size that leads to no chunk is not believed: the next chunk is searched by its name. Odd sizes without the pad byte
that the formats ask for are followed, too. `extent.py` decides where the samples end.

Offsets and sizes are in bytes. A file may begin anywhere (`start`), after another one that it was joined to, and
extends to `limit` at most. Names follow the formats' own: Multimedia Programming Interface 1.0 (RIFF), EBU Tech 3306
(RF64), AIFF-C (Apple, 1991), Core Audio Format, Sony Wave64.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ssamba.audio.contents import Raw
from ssamba.audio.files import Bytes

SEARCH_BYTES = 1 << 24
"""How far a chunk is searched where a size leads nowhere, and how long the chunks after the samples may be."""
PLACEHOLDERS = frozenset(
    (0, 0x7FFF0000, 0x7FFFF000, 0x7FFFFFDB, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFE, 0xFFFFFFFF, 2**64 - 1)
)
"""Sizes that writers leave which cannot seek back to fill them in."""
_INTEGERS = {1: "PCM_S8", 2: "PCM_16", 3: "PCM_24", 4: "PCM_32"}
_WAVE_CODECS = {
    (1, 1): "PCM_U8", (1, 2): "PCM_16", (1, 3): "PCM_24", (1, 4): "PCM_32",
    (3, 4): "FLOAT", (3, 8): "DOUBLE", (6, 1): "ALAW", (7, 1): "ULAW",
}  # fmt: skip
"""libsndfile's names of codings by format tag and bytes per sample."""
_NAME = re.compile(rb"[A-Za-z0-9 _()+.-]{4}")


@dataclass(frozen=True)
class Chunks:
    """How a format writes the head of a chunk."""

    size_format: str
    samples: bytes
    """Name of the chunk of samples."""
    names: re.Pattern[bytes]
    """Names of chunks that are known, to find one where a size leads nowhere."""
    alignment: int = 2
    name_bytes: int = 4
    counts_head: bool = False
    """Whether a size includes the head."""

    @property
    def head_bytes(self) -> int:
        """Length of the head."""
        return self.name_bytes + struct.calcsize(self.size_format)

    def read(self, data: Bytes, at: int) -> tuple[bytes, int]:
        """Return name and size of the chunk at `at`; the size may be negative, or anything."""
        (size,) = struct.unpack_from(self.size_format, data, at + self.name_bytes)
        return data[at : at + 4], size - (self.head_bytes if self.counts_head else 0)

    def is_plausible(self, data: Bytes, at: int, limit: int) -> bool:
        """Return whether the head of a chunk stands at `at`."""
        if at + self.head_bytes > limit:
            return False
        name, size = self.read(data, at)
        if self.name_bytes == 16 and data[at + 10 : at + 16] != b"\x00\xc0\x4f\x8e\xdb\x8a":
            return False
        if self.names.match(data, at, limit):
            return True
        return 0 <= size <= limit - at - self.head_bytes + self.alignment and _NAME.fullmatch(name) is not None

    def ends(self, body: int, size: int) -> Iterator[int]:
        """Yield where the next chunk may stand: after the pad bytes, or without those that a size needs."""
        if size >= 0:
            yield body + size + -size % self.alignment
            if size % self.alignment:
                yield body + size

    def search(self, data: Bytes, at: int, limit: int) -> int:
        """Return where the next chunk with a known name stands, or `limit`."""
        stop = min(limit, at + SEARCH_BYTES)
        while found := self.names.search(data, at, stop):
            if self.is_plausible(data, found.start(), limit):
                return found.start()
            at = found.start() + 1
        return limit


_RIFF_NAMES = re.compile(
    rb"data|fmt |LIST|fact|bext|JUNK|junk|PAD |iXML|id3 |ID3 |cue |smpl|inst|PEAK|FLLR|guan|wamd|minf|elm1|regn|umid|"
    rb"DGDA|_PMX|axml|chna|cart|levl|afsp|DISP|ds64|r64m|acid|MD5 |strc|SAUR|mext|qlty|plst|afan"
)
_AIFF_NAMES = re.compile(
    rb"SSND|COMM|FVER|MARK|INST|MIDI|AESD|APPL|COMT|NAME|AUTH|\(c\) |ANNO|ID3 |CHAN|PEAK|basc|trns"
)
_CAF_NAMES = re.compile(rb"data|desc|free|pakt|info|chan|strg|mark|regn|uuid|peak|midi|kuki|ovvw|umid|edct|inst")
_W64_NAMES = re.compile(rb"(?:data|fmt |fact|levl|junk|bext)\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a")
_RIFF = Chunks("<I", b"data", _RIFF_NAMES)
_RIFX = Chunks(">I", b"data", _RIFF_NAMES)
_AIFF = Chunks(">I", b"SSND", _AIFF_NAMES)
_CAF = Chunks(">q", b"data", _CAF_NAMES, alignment=1)
_W64 = Chunks("<Q", b"data", _W64_NAMES, alignment=8, name_bytes=16, counts_head=True)


@dataclass
class ChunkedFile:
    """What the headers of a file state about its samples."""

    start: int
    limit: int
    samples_at: int
    claimed: int | None
    """Size of the samples in their own chunk's field; None means not stated."""
    frame_bytes: int
    """Size of a sample of all channels, or 2 if samples are coded in blocks."""
    chunks: Chunks | None
    container: str
    raw: Raw | None
    head: bytes
    """What stands before the samples, with all sizes right for `claimed` bytes; for coded samples."""
    size_at: int = 0
    """Where in `head` the size of the samples stands."""
    size_format: str = "<I"
    size_offset: int = 0
    """The size field minus the size of the samples."""
    counts: list[int] = field(default_factory=list)
    """Sizes of the samples by other fields, which must agree."""
    hints: list[int] = field(default_factory=list)
    """Sizes of the samples by other fields that are often wrong."""
    total_end: int | None = None
    """End of the file by its outermost header; None means not stated."""
    is_regular: bool = True
    """Whether every size up to the samples leads to the next chunk."""

    @property
    def present(self) -> int:
        """Bytes from the first sample to the end of the file."""
        return max(0, self.limit - self.samples_at)


def read_headers(data: Bytes, start: int, limit: int) -> ChunkedFile | None:
    """Read the headers of the file at `start`; None if they are beyond repair."""
    head = data[start : start + 12]
    if head[8:12] == b"WAVE":
        return _wav(data, start, limit)
    if head[:4] == b"FORM":
        return _aiff(data, start, limit)
    if head[:4] == b"riff":
        return _w64(data, start, limit)
    if head[:4] == b"caff":
        return _caf(data, start, limit)
    return _au(data, start, limit)


def _walk(data: Bytes, at: int, limit: int, chunks: Chunks) -> tuple[dict[bytes, tuple[int, int]], bool] | None:
    """Return body and size of each chunk up to the samples, and whether every size was right; None without samples."""
    for use_sizes in (True, False):  # a size may lead past the samples
        found: dict[bytes, tuple[int, int]] = {}
        position, is_regular = at, use_sizes
        while position + chunks.head_bytes <= limit:
            name, size = chunks.read(data, position)
            body = position + chunks.head_bytes
            found.setdefault(name, (body, size))
            if name == chunks.samples:
                return found, is_regular
            ends = chunks.ends(body, size) if use_sizes else ()
            after = next((end for end in ends if chunks.is_plausible(data, end, limit)), None)
            is_regular = is_regular and after == body + size + -size % chunks.alignment
            position = chunks.search(data, body, limit) if after is None else after
    return None


def _wav(data: Bytes, start: int, limit: int) -> ChunkedFile | None:
    order = ">" if data[start : start + 4] == b"RIFX" else "<"
    chunks = _RIFX if order == ">" else _RIFF
    walked = _walk(data, start + 12, limit, chunks)
    if walked is None or b"fmt " not in walked[0]:
        return None
    found, is_regular = walked
    (body, size), (at, claimed) = found[b"fmt "], found[b"data"]
    tag, channels, rate_hz, bytes_per_s, block_bytes, bits = struct.unpack_from(order + "HHIIHH", data, body)
    is_extensible = tag == 0xFFFE
    if is_extensible:
        (tag,) = struct.unpack_from(order + "H", data, body + 24)
    width = (bits + 7) // 8
    if channels and block_bytes % channels == 0 and bytes_per_s == rate_hz * block_bytes:
        width = block_bytes // channels  # 20 bits in 3 bytes, 24 in 4
    raw = _raw(_WAVE_CODECS.get((tag, width)), rate_hz, channels, order)
    frame_bytes = channels * width if raw else 2
    is_usual = size >= (40 if is_extensible else 16) and (raw is None or block_bytes == frame_bytes)
    total: int | None = struct.unpack_from(order + "I", data, start + 4)[0]
    is_bw64 = data[start : start + 4] == b"BW64"
    is_64_bit = is_bw64 or data[start : start + 4] == b"RF64"
    counts: list[int] = []
    hints: list[int] = []
    if is_64_bit and b"ds64" in found:
        total, long_size, count = struct.unpack_from("<QQQ", data, found[b"ds64"][0])
        (counts if claimed == 0xFFFFFFFF else hints).append(long_size)
        claimed = long_size if claimed == 0xFFFFFFFF else claimed
        hints.append(count * frame_bytes)
    if b"fact" in found and raw:
        hints.append(struct.unpack_from(order + "I", data, found[b"fact"][0])[0] * frame_bytes)
    # For samples that are coded in blocks: a plain header, without the chunks whose sizes may be wrong.
    coding = data[body : body + (size if is_regular and 16 <= size <= 1024 else 16)]
    head = struct.pack(order + "4s4sI", b"WAVE", b"fmt ", len(coding)) + coding + b"data\0\0\0\0"
    head = data[start : start + 1].replace(b"B", b"R") + b"IF" + (b"X" if order == ">" else b"F") + bytes(4) + head
    return ChunkedFile(
        start=start,
        limit=limit,
        samples_at=at,
        claimed=claimed,
        frame_bytes=frame_bytes,
        chunks=chunks,
        container="RF64" if is_64_bit else "WAVEX" if is_extensible else "WAV",
        raw=raw,
        head=head,
        size_at=len(head) - 4,
        size_format=order + "I",
        counts=counts,
        hints=hints,
        total_end=_total(start + 8, total),
        # libsndfile does not know the name BW64.
        is_regular=is_regular and is_usual and not is_bw64,
    )


def _aiff(data: Bytes, start: int, limit: int) -> ChunkedFile | None:
    walked = _walk(data, start + 12, limit, _AIFF)
    if walked is None or b"COMM" not in walked[0]:
        return None
    found, is_regular = walked
    (body, _), (at, size) = found[b"COMM"], found[b"SSND"]
    channels, count, bits, exponent, mantissa = struct.unpack_from(">HIHHQ", data, body)
    coding = data[body + 18 : body + 22] if data[start + 8 : start + 12] == b"AIFC" else b"NONE"
    rate_hz = round(mantissa * 2.0 ** (exponent - 16383 - 63)) if exponent < 16383 + 63 else 0
    width = (bits + 7) // 8
    codecs = {
        b"NONE": _INTEGERS, b"twos": _INTEGERS, b"sowt": _INTEGERS, b"raw ": {1: "PCM_U8"},
        b"fl32": {4: "FLOAT"}, b"FL32": {4: "FLOAT"}, b"fl64": {8: "DOUBLE"}, b"FL64": {8: "DOUBLE"},
    }  # fmt: skip
    codec = codecs.get(coding, {}).get(width)
    if coding.lower() in (b"ulaw", b"alaw"):
        codec, width = coding.decode().upper(), 1
    raw = _raw(codec, rate_hz, channels, "<" if coding == b"sowt" else ">")
    frame_bytes = channels * width if raw else 2
    offset, _ = struct.unpack_from(">II", data, at)
    if offset and not (raw and size - 8 - offset == count * frame_bytes):
        is_regular = is_regular and not raw  # the offset is wrong: samples begin after it
        offset = 0
    at += 8 + offset
    (total,) = struct.unpack_from(">I", data, start + 4)
    return ChunkedFile(
        start=start,
        limit=limit,
        samples_at=at,
        claimed=size - 8 - offset if 8 + offset <= size < 0xFFFFFFFF else None,
        frame_bytes=frame_bytes,
        chunks=_AIFF,
        container="AIFF",
        raw=raw,
        head=data[start:at],
        size_at=at - start - 12 - offset,
        size_format=">I",
        size_offset=8 + offset,
        counts=[count * frame_bytes] if raw else [],
        total_end=_total(start + 8, total),
        is_regular=is_regular,
    )


def _w64(data: Bytes, start: int, limit: int) -> ChunkedFile | None:
    walked = _walk(data, start + 40, limit, _W64)
    if walked is None or b"fmt " not in walked[0]:
        return None
    found, is_regular = walked
    (body, fmt_size), (at, size) = found[b"fmt "], found[b"data"]
    tag, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", data, body)
    if tag == 0xFFFE:
        (tag,) = struct.unpack_from("<H", data, body + 24)
    width = (bits + 7) // 8
    raw = _raw(_WAVE_CODECS.get((tag, width)), rate_hz, channels, "<")
    frame_bytes = channels * width if raw else 2
    (total,) = struct.unpack_from("<Q", data, start + 16)
    hints = []
    if b"fact" in found and raw:
        hints.append(struct.unpack_from("<Q", data, found[b"fact"][0])[0] * frame_bytes)
    return ChunkedFile(
        start=start,
        limit=limit,
        samples_at=at,
        claimed=size if 0 < size < 2**63 else None,
        frame_bytes=frame_bytes,
        chunks=_W64,
        container="W64",
        raw=raw,
        head=data[start:at],
        size_at=at - start - 8,
        size_format="<Q",
        size_offset=24,
        hints=hints,
        total_end=_total(start, total),
        is_regular=is_regular and fmt_size >= 16,
    )


def _caf(data: Bytes, start: int, limit: int) -> ChunkedFile | None:
    walked = _walk(data, start + 8, limit, _CAF)
    if walked is None or b"desc" not in walked[0]:
        return None
    found, is_regular = walked
    (body, _), (at, size) = found[b"desc"], found[b"data"]
    rate_hz, coding, flags, packet_bytes, _, channels, bits = struct.unpack_from(">d4sIIIII", data, body)
    width = (bits + 7) // 8
    codec = ({4: "FLOAT", 8: "DOUBLE"} if flags & 1 else _INTEGERS).get(width) if coding == b"lpcm" else None
    if coding in (b"ulaw", b"alaw"):
        codec, width = coding.decode().upper(), 1
    raw = _raw(codec, rate_hz if np.isfinite(rate_hz) else 0, channels, "<" if flags & 2 else ">")
    frame_bytes = channels * width if raw else 2
    return ChunkedFile(
        start=start,
        limit=limit,
        samples_at=at + 4,
        claimed=size - 4 if 4 <= size < 2**63 - 1 else None,
        frame_bytes=frame_bytes,
        chunks=_CAF,
        container="CAF",
        raw=raw,
        head=data[start : at + 4],
        size_at=at - start - 8,
        size_format=">q",
        size_offset=4,
        is_regular=is_regular and (raw is None or packet_bytes == frame_bytes),
    )


def _au(data: Bytes, start: int, limit: int) -> ChunkedFile | None:
    order = ">" if data[start : start + 4] == b".snd" else "<"
    offset, claimed, coding, rate_hz, channels = struct.unpack_from(order + "IIIII", data, start + 4)
    codecs = {
        1: ("ULAW", 1), 2: ("PCM_S8", 1), 3: ("PCM_16", 2), 4: ("PCM_24", 3), 5: ("PCM_32", 4),
        6: ("FLOAT", 4), 7: ("DOUBLE", 8), 27: ("ALAW", 1),
    }  # fmt: skip
    codec, width = codecs.get(coding, (None, 0))
    raw = _raw(codec, rate_hz, channels, order)
    is_regular = 24 <= offset <= limit - start
    at = start + (offset if is_regular else 24)
    frame_bytes = channels * width if raw else 2
    return ChunkedFile(
        start=start,
        limit=limit,
        samples_at=at,
        claimed=claimed,
        frame_bytes=frame_bytes,
        chunks=None,
        container="AU",
        raw=raw,
        head=data[start:at],
        size_at=8,
        size_format=order + "I",
        is_regular=is_regular,
    )


def _raw(codec: str | None, rate_hz: float, channels: int, order: str) -> Raw | None:
    """Return the coding of samples, None if they are coded in blocks or the header makes no sense."""
    if codec is None or not (1 <= rate_hz < 1 << 31 and 1 <= channels <= 1024):
        return None
    return Raw(codec, round(rate_hz), channels, "LITTLE" if order == "<" else "BIG")


def _total(at: int, size: int | None) -> int | None:
    return None if size is None or size in PLACEHOLDERS else at + size
