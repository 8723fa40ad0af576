"""Sounds inside the archives of games: zips under several names (.pk3, .wz, ...), Qt resources (.rcc), OpenTTD's .cat.

    for path, data in inner_sounds("usr/games/x/pak0.pk3", file): ...     # "_inner/pak0/sound/door.wav"

Formats: Qt's rcc writes a tree of nodes, names and contents (qtbase, src/tools/rcc/rcc.cpp: `writeHeader`,
`writeDataInfo`, `writeDataName`), big-endian. A .cat is a table of (offset, size), little-endian, of RIFF files, each
with its name before it (OpenTTD's NewGRF specification, sample catalogs).
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from benchmarks.open_suite.debs import zstd_stream
from ssamba.errors import DataError

INNER = "_inner"
SOUND_SUFFIXES = frozenset([".wav", ".ogg", ".oga", ".opus", ".mp3", ".flac", ".g722", ".gsm", ".aif", ".aiff", ".au"])
"""Names of recordings, in packages and in archives."""
_ZIPS = frozenset([".pk3", ".pk4", ".wz", ".zip", ".dat", ".pak"])
_LARGEST_BYTES = 1 << 28
_ERRORS = (struct.error, zlib.error, zipfile.BadZipFile, IndexError, ValueError, RuntimeError, OSError, EOFError)


def is_sound(path: str) -> bool:
    """Whether a path is named like a recording."""
    return PurePosixPath(path).suffix.lower() in SOUND_SUFFIXES


def is_archive(path: str) -> bool:
    """Whether a path is named like an archive that may hold recordings."""
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    return suffix in _ZIPS or suffix == ".rcc" or (suffix == ".cat" and "opensfx" in name.name)


def inner_sounds(path: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """The recordings of an archive: a path for each, and its bytes. `file` must be able to seek.

    What is named like a zip and is none (.dat, .pak) holds nothing.

    Raises:
        DataError: the archive is damaged.
    """
    name = PurePosixPath(path)
    readers = {".rcc": _rcc, ".cat": _cat}
    try:
        for inner, data in readers.get(name.suffix.lower(), _zip)(path, file):
            parts = [part for part in inner.replace("\\", "/").split("/") if part not in ("", ".")]
            if parts and ".." not in parts and "\0" not in inner:
                yield f"{INNER}/{name.stem}/{'/'.join(parts)}", data
    except DataError:
        raise
    except _ERRORS as error:
        raise DataError(
            f"{path}: the archive is damaged ({type(error).__name__}: {error}). Fetch its package again"
        ) from None


def _zip(path: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    head = file.read(4)
    file.seek(0)
    if head[:2] != b"PK":
        return
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir() and is_sound(member.filename) and member.file_size <= _LARGEST_BYTES:
                yield member.filename, archive.read(member)


def _rcc(path: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    data = file.read()
    if data[:4] != b"qres":
        raise DataError(f"{path}: is no Qt resource (expected 'qres'). Fetch its package again")
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    size = 22 if version >= 2 else 14
    nodes = [(0, "")]
    seen = set()
    while nodes:
        number, folder = nodes.pop()
        if number in seen:
            raise ValueError("its tree goes in a circle")
        seen.add(number)
        at = tree + number * size
        name_at, flags = struct.unpack_from(">IH", data, at)
        name = folder
        if number:
            (length,) = struct.unpack_from(">H", data, names + name_at)
            text = data[names + name_at + 6 : names + name_at + 6 + 2 * length].decode("utf-16-be")
            name = f"{folder}/{text}" if folder else text
        if flags & 2:
            count, first = struct.unpack_from(">2I", data, at + 6)
            if count > len(data) // size:
                raise ValueError("its tree is larger than the file")
            nodes += [(first + k, name) for k in range(count)]
        elif is_sound(name):
            (offset,) = struct.unpack_from(">I", data, at + 10)
            (length,) = struct.unpack_from(">I", data, contents + offset)
            content = data[contents + offset + 4 : contents + offset + 4 + length]
            if len(content) < length:
                raise ValueError(f"{name} is cut off")
            if flags & 1:
                content = zlib.decompress(content[4:])
            elif flags & 4:
                with zstd_stream(path, io.BytesIO(content)) as plain:
                    content = plain.read()
            yield name, content


def _cat(path: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    data = file.read()
    count = (struct.unpack_from("<I", data)[0] & 0x7FFFFFFF) // 8
    for number in range(count):
        offset, _ = struct.unpack_from("<2I", data, 8 * number)
        offset &= 0x7FFFFFFF
        name_size = data[offset]
        name = data[offset + 1 : offset + name_size].decode("latin-1").strip("\0")
        start = data.find(b"RIFF", offset, offset + name_size + 40)
        if start < 0:
            continue
        (size,) = struct.unpack_from("<I", data, start + 4)
        if start + 8 + size > len(data):
            raise ValueError(f"{name} is cut off")
        yield re.sub(r"[^A-Za-z0-9]+", "_", f"{number:02d}_{name}")[:60] + ".wav", data[start : start + 8 + size]
