"""Variables of a TensorFlow checkpoint without TensorFlow.

The index file is a table of sorted keys in LevelDB's format (blocks of entries that share prefixes with the one before,
and a footer that says where the index block is), its values are `BundleEntryProto` messages: where in the data file the
numbers of a variable are. Read here: uncompressed tables, one shard, float32.

Formats: leveldb, doc/table_format.md; TensorFlow, core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.metrics.classification import Array

_FOOTER = 48
_MAGIC = bytes.fromhex("57fb808b247547db")
_FLOAT = 1
_TYPE, _SHAPE, _SHARD, _OFFSET, _SIZE = range(1, 6)


def read_checkpoint(index: Path, data: Path) -> dict[str, Array]:
    """The float32 variables by name.

    Args:
        index: the file `PREFIX.index`.
        data: the file `PREFIX.data-00000-of-00001`.

    Raises:
        ValueError: they are no such checkpoint, or it is compressed or in several shards.
    """
    table, numbers = index.read_bytes(), data.read_bytes()
    if table[-8:] != _MAGIC:
        raise ValueError(f"{index} is no index of a TensorFlow checkpoint")
    handles, place = [], len(table) - _FOOTER
    for _ in range(4):  # offset and size of the meta index, then of the index
        value, place = _varint(table, place)
        handles.append(value)
    variables = {}
    for _, handle in _entries(table, handles[2], handles[3]):
        offset, place = _varint(handle, 0)
        size, _ = _varint(handle, place)
        for name, message in _entries(table, offset, size):
            entry = _fields(message)
            if not name or entry[_TYPE] != [_FLOAT]:
                continue  # the header, or a counter
            if entry.get(_SHARD, [0]) != [0]:
                raise ValueError(f"{index} speaks of several shards: expected one")
            shape = [_fields(axis)[1][0] for axis in _fields(entry[_SHAPE][0]).get(2, [])]
            start = entry.get(_OFFSET, [0])[0]
            content = numbers[start : start + entry[_SIZE][0]]
            variables[name.decode()] = np.frombuffer(content, "<f4").reshape(shape).copy()
    return variables


def _entries(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block."""
    block = table[offset : offset + size]
    if table[offset + size] != 0:
        raise ValueError("the checkpoint's index is compressed: expected a plain one")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


def _fields(message: bytes) -> dict[int, list[Any]]:
    """Fields of a protocol buffer by number: integers, or bytes."""
    fields: dict[int, list[Any]] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 == 0:
            value: Any
            value, place = _varint(message, place)
        elif tag & 7 == 2:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        else:
            length = {1: 8, 5: 4}[tag & 7]
            value, place = int.from_bytes(message[place : place + length], "little"), place + length
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = content[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
