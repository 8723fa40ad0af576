"""What audio is read from: a file, or the bytes of one that are in memory already (a member of a tar shard)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Bytes: TypeAlias = "bytes | mmap.mmap"


@dataclass(frozen=True)
class AudioBytes:
    """A whole audio file in memory, and the name by which messages call it."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


AudioSource: TypeAlias = "Path | AudioBytes"


@contextmanager
def mapped(source: AudioSource) -> Iterator[Bytes]:
    """All bytes of a source; a file is mapped, not read."""
    if isinstance(source, AudioBytes):
        yield source.data
    elif source.stat().st_size == 0:
        yield b""  # which cannot be mapped
    else:
        with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
