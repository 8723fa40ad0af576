"""Walk the pages of an Ogg file, check them, and divide chained streams, without decoding (RFC 3533, RFC 7845).

Decoders read the first stream of a chain and leave out damaged pages, both silently. Each page has a checksum, a number
and a granule position, the number of samples (at 48 kHz for Opus) up to its end, which is compared with the packets in
the page.

Offsets and sizes are in bytes.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from struct import unpack_from
from typing import NamedTuple

from ssamba.audio.contents import Contents, Part
from ssamba.audio.files import AudioSource, Bytes, memory_map

_CONTINUED, _FIRST, _LAST = 1, 2, 4
_UNFINISHED = "its last Ogg page lacks the end-of-stream mark"
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OPUS_SAMPLES = (*(480, 960, 1920, 2880) * 3, *(480, 960) * 2, *(120, 240, 480, 960) * 4)
"""Samples at 48 kHz of a frame, by the configuration of its packet (RFC 6716, section 3.1)."""


class Page(NamedTuple):
    """A page of an Ogg file."""

    offset: int
    stop: int
    flags: int
    granule: int
    """-1 if no packet ends in the page."""
    stream: int
    number: int
    lacing: bytes
    """Lengths of the segments; each that is below 255 ends a packet."""

    @property
    def body(self) -> int:
        """Offset of the packets."""
        return self.offset + 27 + len(self.lacing)


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
                if fault := _fault(data, streams):
                    return _cut(data, links, fault)
                links.append(page.offset)
                streams = {}
            streams[page.stream] = _Stream(page, data)
            opening = True
            continue
        opening = False
        stream = streams.get(page.stream)
        if stream is None:
            return _cut(data, links, f"its Ogg page at byte {page.offset:,} belongs to no stream")
        if fault := stream.add(page, data):
            return _cut(data, links, fault)
    if fault := _fault(data, streams):
        return _cut(data, links, fault)
    return Contents(parts=_parts(links, at) if len(links) > 1 or start else (), is_parsed=True)


def _cut(data: Bytes, links: list[int], reason: str) -> Contents:
    return Contents("cut", reason, _parts(links, len(data)) if len(links) > 1 else ())


def _parts(links: list[int], stop: int) -> tuple[Part, ...]:
    return tuple(Part((link,)) for link in zip(links, (*links[1:], stop), strict=True))


def _fault(data: Bytes, streams: dict[int, _Stream]) -> str | None:
    """Return what is wrong with streams that have ended."""
    if any(not stream.page.flags & _LAST for stream in streams.values()):
        return _UNFINISHED
    return next((fault for stream in streams.values() if (fault := stream.misstatement(data))), None)


class _Stream:
    """One logical stream, as far as its pages were read."""

    def __init__(self, page: Page, data: Bytes) -> None:
        self.page = page
        self.headers = page  # the last page before those with sound
        head = data[page.body : page.stop]
        self.is_opus = head[:8] == b"OpusHead"
        self.blocks = (1 << (head[28] & 15), 1 << (head[28] >> 4)) if head[:7] == b"\x01vorbis" else None
        self.first: list[Page] = []
        self.last: deque[Page] = deque(maxlen=3)
        self.count = 0

    def add(self, page: Page, data: Bytes) -> str | None:
        """Take the next page; return what is wrong with it."""
        before, self.page = self.page, page
        if not self.count and _is_header(data, page):
            self.headers = page
        else:
            self.count += 1
            if len(self.first) < 2:
                self.first.append(page)
            self.last.append(page)
        # A recording of a broadcast begins with headers of its own.
        if page.number != before.number + 1 and self.count != 1:
            return f"Ogg pages {before.number + 2} to {page.number} are missing"
        if self.count > 1 and page.granule != -1 and page.granule < before.granule:
            return f"its Ogg page {page.number + 1} claims to end at sample {page.granule:,}, before the page before it"
        return None

    def misstatement(self, data: Bytes) -> str | None:
        """Return which of the first and the last pages does not end at the sample that it claims."""
        modes = _vorbis_modes(data[self.headers.body : self.headers.stop][-512:]) if self.blocks else ()
        if not self.is_opus and not modes:
            return None
        sizes = tuple((self.blocks or (0, 0))[mode] for mode in modes)
        runs: list[list[Page]] = [self.first, list(self.last)]
        if self.count <= 5:
            runs = [list(dict.fromkeys([*self.first, *self.last]))]
        for run in runs:
            end: int | None = None
            for page, (samples, longest) in zip(run, _page_samples(data, run, sizes), strict=True):
                if page.granule == -1:
                    if samples:
                        return f"its Ogg page {page.number + 1} does not say where its samples end"
                    continue
                lacking = 0 if end is None else samples - (page.granule - end)
                if page is self.first[0]:
                    lacking = samples - page.granule
                    if lacking < 0 and not page.flags & _LAST:
                        lacking = 0  # a recording of a broadcast begins at any sample
                # Encoders trim the last packet to the length of the recording.
                if lacking and not (page.flags & _LAST and 0 < lacking < 2 * longest):
                    return f"its Ogg page {page.number + 1} claims to end at sample {page.granule:,}, and does not"
                end = page.granule
        return None


def _is_header(data: Bytes, page: Page) -> bool:
    """Return whether a page before the first one with sound holds headers, too."""
    if page.granule > 0:
        return False
    head = data[page.body : min(page.body + 8, page.stop)]
    return bool(page.flags & _CONTINUED) or head == b"OpusTags" or head[1:7] == b"vorbis"


def _page_samples(data: Bytes, pages: Sequence[Page], vorbis_sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the samples of the packets that end in each page, and of the longest of them.

    Args:
        data: the file.
        pages: consecutive pages.
        vorbis_sizes: block size of each mode, empty for Opus.
    """
    begun = b""  # of a packet that continues on the next page
    block = 0
    for page in pages:
        samples = longest = 0
        at, length = page.body, 0
        for segment in page.lacing:
            length += segment
            if segment == 255:
                continue
            head = begun or data[at : at + min(2, length)]
            begun = b""
            at, length = at + length, 0
            if vorbis_sizes:
                before, block = block, _vorbis_block(head, vorbis_sizes) or block
                count = (before + block) // 4 if before else 0
            else:
                count = _opus_samples(head)
            samples, longest = samples + count, max(longest, count)
        if length:
            begun = begun or data[at : at + 2]
        yield samples, longest


def _opus_samples(head: bytes) -> int:
    if not head:
        return 0
    frames = (1, 2, 2, head[1] & 63 if len(head) > 1 else 0)[head[0] & 3]
    return _OPUS_SAMPLES[head[0] >> 3] * frames


def _vorbis_block(head: bytes, sizes: Sequence[int]) -> int:
    """Return the block size of the packet that begins with `head`, 0 if it holds no sound."""
    if not head or head[0] & 1:
        return 0
    mode = head[0] >> 1 & (1 << (len(sizes) - 1).bit_length()) - 1
    return sizes[mode] if mode < len(sizes) else 0


def _vorbis_modes(tail: bytes) -> tuple[int, ...]:
    """Return for each mode whether its blocks are long, from the end of the setup header; empty if that fails.

    The modes are the last fields of the header, so they are read backwards: a framing bit, and for each mode 8 bits of
    mapping, 32 of zeros and the flag; before the first mode stands their number minus one, in 6 bits (Vorbis I, 4.2.4).
    """
    bits = "".join(f"{byte:08b}" for byte in reversed(tail))
    at = bits.find("1") + 1
    flags: list[int] = []
    found: tuple[int, ...] = ()
    while at + 47 <= len(bits) and len(flags) < 64:
        if int(bits[at : at + 8], 2) > 63 or "1" in bits[at + 8 : at + 40]:
            break
        flags.append(int(bits[at + 40]))
        at += 41
        if int(bits[at : at + 6], 2) + 1 == len(flags):
            found = tuple(reversed(flags))
    return found


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
    return Page(at, stop, flags, granule, stream, number, lacing)


def _checksum(page: bytes) -> int:
    """Return Ogg's CRC-32: zlib's, with the order of bits reversed and neither preset nor inverted."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


def _pages_backwards(data: Bytes) -> Iterator[tuple[int, int, int]]:
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
        stop: where it ends; None means the end of the file.
    """
    with memory_map(source) as data:
        if start or stop is not None:
            data = data[start:stop]
        pages = (granule for _, _, granule in _pages_backwards(data) if granule != -1)
        next(pages, 0)
        return max(0, next(pages, 0) - 8192)  # a block is at most 8192 samples long
