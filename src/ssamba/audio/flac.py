"""Compare the count in the header of a FLAC stream with its frames, without decoding (RFC 9639).

Every frame has a header with a checksum and its number, so the last one tells how many samples the stream holds.
Streams that were joined are found by their STREAMINFO blocks. Where a size in the header is wrong, the decoder gets a
header that was made from the frames.

Offsets and sizes are in bytes.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from ssamba.audio.contents import Contents, Part
from ssamba.audio.files import Bytes

_STREAM = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_MAX_FRAME_BYTES = 1 << 24
_BLOCK_SIZES = {1: 192, **{2 + i: 576 << i for i in range(4)}, **{8 + i: 256 << i for i in range(8)}}
_RATES_HZ = (0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)
_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}


class StreamInfo(NamedTuple):
    """Fields of a STREAMINFO block."""

    min_block: int
    max_block: int
    min_frame_bytes: int
    max_frame_bytes: int
    sample_rate_hz: int
    channels: int
    bits: int
    num_samples: int
    """Samples per channel, 0 if unknown."""
    md5: bytes
    """Digest of the samples, zeros if unknown."""

    @classmethod
    def read(cls, body: bytes) -> StreamInfo:
        """Read a block of 34 bytes."""
        min_block, max_block, frames, fields = struct.unpack(">HH6sQ", body[:18])
        return cls(
            min_block,
            max_block,
            int.from_bytes(frames[:3], "big"),
            int.from_bytes(frames[3:], "big"),
            fields >> 44,
            (fields >> 41 & 7) + 1,
            (fields >> 36 & 31) + 1,
            fields & (1 << 36) - 1,
            body[18:34],
        )

    def header(self) -> bytes:
        """Return the beginning of a file with this block alone."""
        fields = self.sample_rate_hz << 44 | (self.channels - 1) << 41 | (self.bits - 1) << 36 | self.num_samples
        frames = self.min_frame_bytes.to_bytes(3, "big") + self.max_frame_bytes.to_bytes(3, "big")
        return b"fLaC\x80\0\0\x22" + struct.pack(">HH6sQ", self.min_block, self.max_block, frames, fields) + self.md5


class Frame(NamedTuple):
    """What a frame's header states."""

    offset: int
    number: int
    """Number of the frame, or of its first sample if blocks vary in length."""
    block: int
    """Samples per channel."""
    is_variable: bool


def inspect_flac(data: Bytes, start: int, limit: int) -> tuple[Contents, int] | None:
    """Find the frames of the stream at `start`, which extends to `limit` at most.

    Returns:
        Its contents, with one part, and the offset where it ends; None if no frame is found.
    """
    if limit - start < 42:
        return None
    following = _STREAM.search(data, start + 42, limit)
    end = following.start() if following else limit
    info = StreamInfo.read(data[start + 8 : start + 42])
    first, is_regular = _first_frame(data, start, end, info)
    last = first and _last_frame(data, first.offset, end, info)
    if first is None or last is None:
        return None
    block = max(info.max_block, first.block) if last == first else first.block  # a short stream has one short frame
    if not first.is_variable and not info.min_block == info.max_block == block:
        is_regular = False
        info = info._replace(min_block=first.block, max_block=first.block, min_frame_bytes=0, max_frame_bytes=0)
    scale = 1 if first.is_variable else first.block
    count = (last.number - first.number) * scale + last.block
    header = info._replace(num_samples=count).header() if info.num_samples != count or not is_regular else b""
    mended = Part((header, (first.offset, end)), "FLAC", num_samples=count)
    plain = mended if not is_regular else Part(((start, end),))
    if info.num_samples == count:
        return Contents(parts=(plain,)), end
    if info.num_samples == 0:
        return Contents(parts=(mended,)), end
    reason = f"its header claims {info.num_samples:,} samples, its frames hold {count:,}"
    if info.num_samples < count or last.block < first.block:  # a shorter block is the last one that was encoded
        return Contents("wrong header", reason, (mended,), info.num_samples), end
    # A stream that ends with a whole frame may have been cut there: the digest of its samples tells.
    is_complete = _checksum(data[last.offset : _before_tags(data, end)]) == 0
    if not is_complete:
        reason = f"its header claims {info.num_samples:,} samples, its whole frames hold {count - last.block:,}"
    md5 = info.md5 if any(info.md5) and is_complete else b""
    return Contents(
        "cut", reason, (mended if md5 else plain,), info.num_samples, count / info.num_samples, md5=md5
    ), end


def _first_frame(data: Bytes, start: int, limit: int, info: StreamInfo) -> tuple[Frame | None, bool]:
    """Return the first frame, and whether the sizes of all metadata blocks lead to it."""
    at, is_last = start + 4, False
    while not is_last and at + 4 <= limit:
        is_last = data[at] >= 128
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    led_to = read_frame(data, at, info) if data[start + 5 : start + 8] == b"\0\0\x22" else None
    if led_to is not None and led_to.number == 0:
        return led_to, True
    # Otherwise the sizes are wrong, even if they lead to a later frame, or this is the end of a longer stream.
    stop = min(limit, start + _MAX_FRAME_BYTES) if led_to is None else led_to.offset
    at = start + 42
    while found := _SYNC.search(data, at, stop):
        frame = read_frame(data, found.start(), info)
        if frame is not None and (led_to is None or frame.number < led_to.number):
            return frame, False
        at = found.start() + 1
    return led_to, led_to is not None


def _last_frame(data: Bytes, first: int, limit: int, info: StreamInfo) -> Frame | None:
    size = 1 << 14
    stop = limit
    while stop > first:
        start = max(first, limit - size)
        tail = data[start : min(limit, stop + 1)]
        at = len(tail)
        while (at := max(tail.rfind(b"\xff\xf8", 0, at), tail.rfind(b"\xff\xf9", 0, at))) >= 0:
            if (frame := read_frame(data, start + at, info)) is not None:
                return frame
            at += 1
        stop, size = start, size * 4
    return None


def read_frame(data: Bytes, at: int, info: StreamInfo) -> Frame | None:
    """Read the header of the frame at `at`, None if there is none that fits the stream."""
    head = data[at : at + 16]
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    block_code, rate_code, channel_code, bits_code = head[2] >> 4, head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
    if block_code == 0 or rate_code == 15 or channel_code > 10 or bits_code == 3:
        return None
    if (channel_code + 1 if channel_code < 8 else 2) != info.channels or _BITS.get(bits_code, info.bits) != info.bits:
        return None
    if 0 < rate_code < 12 and _RATES_HZ[rate_code] != info.sample_rate_hz:
        return None
    length = max(1, 8 - (head[4] ^ 0xFF).bit_length()) if head[4] < 255 else 8
    if length > 7 or 0x80 <= head[4] < 0xC0 or any(byte >> 6 != 2 for byte in head[5 : 4 + length]):
        return None
    number = head[4] & (0x7F >> (length if length > 1 else 0))
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 63
    after = 4 + length
    if block_code in (6, 7):
        block = int.from_bytes(head[after : after + block_code - 5], "big") + 1
        after += block_code - 5
    else:
        block = _BLOCK_SIZES[block_code]
    after += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    crc = 0
    for byte in head[: after + 1]:
        crc = _CRC8[crc ^ byte]
    return Frame(at, number, block, head[1] == 0xF9) if crc == 0 and after < len(head) else None


def _before_tags(data: Bytes, limit: int) -> int:
    """Return the end of the stream before an ID3v1 or APE tag."""
    if data[max(0, limit - 128) : limit][:3] == b"TAG":
        limit -= 128
    tag = data[max(0, limit - 4096) : limit].find(b"APETAGEX")
    return limit if tag < 0 else max(0, limit - 4096) + tag


def _checksum(frame: bytes) -> int:
    """Return the CRC-16 of a frame, which is 0 if the frame ends with its own checksum."""
    crc = 0
    for byte in frame:
        crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
    return crc


def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value << (bits - 8)
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> (bits - 1) else 0)
        table.append(crc & (1 << bits) - 1)
    return tuple(table)


_CRC8 = _crc_table(0x107, 8)
_CRC16 = _crc_table(0x18005, 16)
