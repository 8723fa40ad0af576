"""Walk the pages of an Ogg file, check them, and divide chained streams, without decoding (RFC 3533).

Decoders read the first stream of a chain and leave out damaged pages, both silently. Each page has a checksum, a number
and a granule position, the number of samples (at 48 kHz for Opus) up to its end.

Offsets and sizes are in bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from struct import unpack_from
from typing import NamedTuple

from ssamba.audio.contents import Contents, Part
from ssamba.audio.files import AudioSource, Bytes, memory_map

_FIRST, _LAST = 2, 4
_UNFINISHED = "its last Ogg page lacks the end-of-stream mark"
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    """A page of an Ogg file."""

    offset: int
    stop: int
    flags: int
    granule: int
    """-1 if no packet ends in the page."""
    stream: int
    number: int
    packets: int
    """Packets that end in the page."""


class _Stream:
    """Pages of one logical stream, as far as they were read."""

    def __init__(self, page: Page, data: Bytes) -> None:
        self.page = page
        self.pages, self.granule = 1, 0
        self.is_audio, self.packet_samples = _coding(data[page.offset + 27 + data[page.offset + 26] : page.stop])


def inspect_ogg(data: Bytes, start: int = 0) -> Contents:
    """Check the pages of an Ogg file that begins at `start`, and find the chained streams in it."""
    links: list[int] = [start]
    streams: dict[int, _Stream] = {}
    at, opening = start, True
    while at < len(data):
        page = _read_page(data, at)
        if page is None:
            break  # a tag, or the like, after the last page
        if isinstance(page, str):
            return _cut(data, links, page)
        at = page.stop
        if page.flags & _FIRST:
            if not opening:
                if any(not stream.page.flags & _LAST for stream in streams.values()):
                    return _cut(data, links, _UNFINISHED)
                links.append(page.offset)
                streams = {}
            streams[page.stream] = _Stream(page, data)
            opening = True
            continue
        opening = False
        stream = streams.get(page.stream)
        if stream is None:
            return _cut(data, links, f"its Ogg page at byte {page.offset:,} belongs to no stream")
        if fault := _follow(stream, page):
            return _cut(data, links, fault)
    if any(not stream.page.flags & _LAST for stream in streams.values()):
        return _cut(data, links, _UNFINISHED)
    if len(links) == 1 and not start:
        return Contents(is_parsed=True)
    return Contents(parts=_parts(links, at), is_parsed=True)


def _cut(data: Bytes, links: list[int], reason: str) -> Contents:
    return Contents("cut", reason, _parts(links, len(data)) if len(links) > 1 else ())


def _parts(links: list[int], stop: int) -> tuple[Part, ...]:
    return tuple(Part((link,)) for link in zip(links, (*links[1:], stop), strict=True))


def _follow(stream: _Stream, page: Page) -> str | None:
    """Take the next page of a stream; return what is wrong with it."""
    before, stream.page = stream.page, page
    stream.pages += 1
    if page.number != before.number + 1 and stream.pages > 3:  # a recording of a broadcast begins after its headers
        return f"Ogg pages {before.number + 2} to {page.number} are missing"
    if page.granule == -1 or not stream.is_audio:
        return None
    most = page.packets * stream.packet_samples if stream.granule or stream.pages > 3 else None
    rise = page.granule - stream.granule
    stream.granule = page.granule
    if rise < 0 or (most is not None and stream.packet_samples and rise > most):
        return f"its Ogg page {page.number + 1} claims to end at sample {page.granule:,}, and does not"
    return None


def _read_page(data: Bytes, at: int) -> Page | str | None:
    """Read the page at `at`; return what is wrong with it, or None if there are no more pages."""
    if data[at : at + 5] != b"OggS\0":
        after = data.find(b"OggS\0", at)
        return f"bytes {at:,} to {after:,} are no Ogg page" if after >= 0 else None if at else "no Ogg page is whole"
    if at + 27 > len(data):
        return "its last Ogg page is cut"
    flags, granule, stream, number, checksum, segments = unpack_from("<BqIIIB", data, at + 5)
    lacing = data[at + 27 : at + 27 + segments]
    stop = at + 27 + segments + sum(lacing)
    if stop > len(data):
        last = data.find(b"OggS\0", at + 5) < 0
        return "its last Ogg page is cut" if last else f"its Ogg page {number + 1} claims {stop - at:,} bytes"
    page = data[at:stop]
    if _checksum(page[:22] + bytes(4) + page[26:]) != checksum:
        return f"its Ogg page {number + 1} is damaged (its checksum differs)"
    packets = sum(length < 255 for length in lacing)
    return Page(at, stop, flags, granule, stream, number, packets)


def _checksum(page: bytes) -> int:
    """Return Ogg's CRC-32: zlib's, with the order of bits reversed and neither preset nor inverted."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


def _coding(packet: bytes) -> tuple[bool, int]:
    """Return whether the stream with this first packet is audio, and the most samples that a packet of it holds."""
    if packet[:7] == b"\x01vorbis":
        return True, (1 << (packet[28] >> 4)) // 2 if len(packet) > 28 else 0
    if packet[:8] == b"OpusHead":
        return True, 5760
    return packet[:5] == b"\x7fFLAC", 0


def pages_backwards(data: Bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (offset, flags, granule position) of the pages, last page first."""
    at = len(data)
    while (at := data.rfind(b"OggS\0", 0, at)) >= 0:
        if at + 27 <= len(data):
            flags, granule = unpack_from("<Bq", data, at + 5)
            yield at, flags, granule
        else:
            yield at, 0, -1


def seekable_before(source: AudioSource, start: int, stop: int | None) -> int:
    """Return the sample position before which libsndfile seeks exactly in Ogg Vorbis, or 0.

    Inside the last page it counts back from the granule position, which the encoder reduced to trim the end, so
    everything read there is shifted by the trimmed length.

    Args:
        source: the file.
        start: where the stream begins in the file.
        stop: where it ends; None is the end of the file.
    """
    with memory_map(source) as data:
        if start or stop is not None:
            data = data[start:stop]
        pages = (granule for _, _, granule in pages_backwards(data) if granule != -1)
        next(pages, 0)
        return max(0, next(pages, 0) - 8192)  # a block is at most 8192 samples long
