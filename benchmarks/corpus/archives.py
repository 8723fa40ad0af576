"""Read the speech of two adventure games from their archives.

    for name, mp3 in queen_sounds(data): ...                 # Flight of the Amazon Queen: queen.1c
    for number, samples in sky_sounds(index, data): ...      # Beneath a Steel Sky: sky.dnr, sky.dsk

`queen.1c` (rebuilt by ScummVM's tools): the number of files as 16 bits, big-endian, at byte 13; then 21 bytes for each:
name (12), bundle (1), offset and size (32 bits, big-endian). Files named `.SB` are MP3.

`sky.dnr`: the number of files (32 bits, little-endian); then 8 bytes for each: its number (16 bits), its offset in
`sky.dsk` (24 bits, the highest of which says that the others count 16 bytes) and its size (24 bits; bit 22: no header
is kept, bit 23: not compressed). Files from 50,000 to 59,999 with a header are sounds, all others of that range are
pictures: 22 bytes of header, then 8-bit unsigned samples at 11,025 Hz, compressed as RNC ProPack, method 1 (`unpack`).
ScummVM (engines/queen/resource.cpp, engines/sky/disk.cpp, common/rnc_deco.cpp) documents all three.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ssamba.errors import DataError

SKY_RATE_HZ = 11_025
_QUEEN_TABLE, _QUEEN_ROW = 13, struct.Struct(">12sBII")
_SKY_ROW = struct.Struct("<HHBHB")
_SKY_HEADER = 22
_SKY_SOUNDS = range(50_000, 60_000)
_RNC_HEADER = struct.Struct(">4sIIHHBB")
_SHORTEST_MATCH = 2


def queen_sounds(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the MP3 file of each sound in `queen.1c`.

    Raises:
        DataError: the file is none, or it is cut off.
    """
    if data[:4] != b"QTBL":
        raise DataError("queen.1c: not an archive of the game (expected 'QTBL'). Fetch its package again")
    try:
        (count,) = struct.unpack_from(">H", data, _QUEEN_TABLE)
        rows = [_QUEEN_ROW.unpack_from(data, _QUEEN_TABLE + 2 + k * _QUEEN_ROW.size) for k in range(count)]
    except struct.error:
        raise DataError("queen.1c: its table is cut off. Fetch its package again") from None
    for name, _, offset, size in rows:
        text = name.rstrip(b"\0 ").decode("latin-1")
        if text.endswith(".SB"):
            if offset + size > len(data):
                raise DataError(f"queen.1c: {text} is cut off. Fetch its package again")
            yield text, data[offset : offset + size]


def sky_sounds(index: bytes, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the samples (8 bits, unsigned, 11,025 Hz) of each sound in `sky.dsk`, by `sky.dnr`.

    Raises:
        DataError: a file is damaged or cut off.
    """
    try:
        (count,) = struct.unpack_from("<I", index)
        rows = [_SKY_ROW.unpack_from(index, 4 + k * _SKY_ROW.size) for k in range(count)]
    except struct.error:
        raise DataError("sky.dnr: is cut off. Fetch its package again") from None
    for number, offset_low, offset_high, size_low, size_high in rows:
        has_no_header, is_plain = size_high & 0x40, size_high & 0x80
        if number not in _SKY_SOUNDS or has_no_header or is_plain:
            continue
        offset = (offset_high & 0x7F) << 16 | offset_low
        start = offset * 16 if offset_high & 0x80 else offset
        size = (size_high & 0x3F) << 16 | size_low
        try:
            yield number, unpack(data[start + _SKY_HEADER : start + size])
        except DataError as error:
            raise DataError(f"sky.dsk: file {number}: {error}. Fetch its package again") from None


def unpack(packed: bytes) -> bytes:
    """Decompress RNC ProPack, method 1.

    After a header (signature, sizes, checksums, overlap, number of blocks) come bits, in 16-bit words, little-endian,
    lowest bit first, and between the words runs of literal bytes. Each block has three Huffman codes (lengths of
    literal runs, distances and lengths of matches), a 16-bit count, and so many pairs of literals and match; the last
    pair has no match.

    Raises:
        DataError: the data is not in that format, or it is damaged.
    """
    try:
        signature, size, packed_size, _, _, _, blocks = _RNC_HEADER.unpack_from(packed)
        if signature != b"RNC\1":
            raise DataError("is not compressed with RNC ProPack, method 1")
        if len(packed) < _RNC_HEADER.size + packed_size:
            raise DataError("is cut off")
        bits, out = _Bits(packed[: _RNC_HEADER.size + packed_size]), bytearray()
        bits.take(2)  # locks and keys of the format, not used here
        for _ in range(blocks):
            _unpack_block(bits, out)
    except (struct.error, IndexError) as error:
        raise DataError(f"is damaged ({error})") from None
    if len(out) != size:
        raise DataError(f"is damaged: it has {len(out)} bytes, expected {size}")
    return bytes(out)


def _unpack_block(bits: _Bits, out: bytearray) -> None:
    runs, distances, lengths = _Code(bits), _Code(bits), _Code(bits)
    for left in range(bits.take(16) - 1, -1, -1):
        if run := runs.read(bits):
            out += bits.literals(run)
        if left:
            distance, length = distances.read(bits) + 1, lengths.read(bits) + _SHORTEST_MATCH
            if distance > len(out):
                raise DataError("is damaged: a match starts before the data")
            source = bytes(out[-distance:][:length])
            out += (source * (length // distance + 1))[:length]  # a match may overlap what it writes


class _Bits:
    """Bits of little-endian words with literal bytes in between. 16 to 31 bits are held, one whole word among them."""

    def __init__(self, data: bytes) -> None:
        self.data = data + bytes(4)  # the word after the last one is read, too
        self.at = _RNC_HEADER.size
        """Place of the word that was read last."""
        self.held = self._word()
        self.count = 16

    def _word(self) -> int:
        return self.data[self.at] | self.data[self.at + 1] << 8

    def take(self, count: int) -> int:
        """Take up to 16 bits."""
        taken = self.held & ((1 << count) - 1)
        self.held >>= count
        self.count -= count
        if self.count < 16:
            self.at += 2
            self.held |= self._word() << self.count
            self.count += 16
        return taken

    def literals(self, count: int) -> bytes:
        """Take bytes that stand where the last word was read; that word comes after them."""
        taken = self.data[self.at : self.at + count]
        self.at += count
        self.count -= 16
        self.held = self.held & ((1 << self.count) - 1) | self._word() << self.count
        self.count += 16
        return taken


class _Code:
    """A Huffman code. Its symbols 0 and 1 are values, symbol s stands for a set bit followed by s - 1 further bits."""

    def __init__(self, bits: _Bits) -> None:
        lengths = [bits.take(4) for _ in range(bits.take(5))]
        self.symbols: list[tuple[int, int, int, int]] = []
        """(mask, bits, length, symbol), the shortest first."""
        code = 0
        for length in range(1, 16):
            for symbol, of in enumerate(lengths):
                if of == length:
                    reversed_code = int(f"{code:0{length}b}"[::-1], 2)
                    self.symbols.append(((1 << length) - 1, reversed_code, length, symbol))
                    code += 1
            code <<= 1

    def read(self, bits: _Bits) -> int:
        for mask, code, length, symbol in self.symbols:
            if bits.held & mask == code:
                bits.take(length)
                return symbol if symbol < 2 else 1 << (symbol - 1) | bits.take(symbol - 1)
        raise DataError("is damaged: no code of its table fits")
