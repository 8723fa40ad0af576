"""Find audio files, access their bytes, and record the files that were skipped."""

from __future__ import annotations

import glob
import io
import mmap
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

from ssamba.errors import AudioDecodeError
from ssamba.files import write_csv

_SUFFIXES = """
.wav .wave .rf64 .bwf .w64 .flac .mp3 .mp2 .ogg .oga .opus .aif .aiff .aifc .au .snd .caf
.m4a .m4b .mp4 .aac .webm .mkv .mka .wma .3gp .amr .mov
"""
AUDIO_SUFFIXES = frozenset(_SUFFIXES.split())


@dataclass(frozen=True)
class AudioBytes:
    """The contents of an audio file in memory (a member of a tar shard), with a name for messages."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


AudioSource: TypeAlias = "Path | AudioBytes"
Bytes: TypeAlias = "bytes | mmap.mmap"


Piece: TypeAlias = "bytes | tuple[int, int]"
"""Bytes as they are, or a range [start, stop) of a file."""


class PiecesFile:
    """A file that is put together from pieces of another one and other bytes, for libsndfile to read."""

    def __init__(self, source: AudioSource, pieces: Sequence[Piece]) -> None:
        self._file = io.BytesIO(source.data) if isinstance(source, AudioBytes) else source.open("rb", buffering=0)
        self._pieces = pieces
        lengths = (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
        self._starts = [0, *accumulate(lengths)]
        self._at = 0

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer, as far as the file goes, and return the number of bytes."""
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target) and self._at < self._starts[-1]:
            number = bisect_right(self._starts, self._at) - 1
            piece, offset = self._pieces[number], self._at - self._starts[number]
            count = min(len(target) - done, self._starts[number + 1] - self._at)
            if isinstance(piece, bytes):
                target[done : done + count] = piece[offset : offset + count]
            else:
                self._file.seek(piece[0] + offset)
                count = self._file.readinto(target[done : done + count])
                if not count:
                    break  # the file has become shorter
            done += count
            self._at += count
        return done

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""
        left = self._starts[-1] - self._at
        buffer = bytearray(left if size < 0 else min(size, left))
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset from the start, the position or the end (`whence` 0, 1, 2), and return the new position."""
        self._at = max(0, offset + (0, self._at, self._starts[-1])[whence])
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def write(self, data: bytes) -> int:
        """Refuse: libsndfile asks for this method."""
        raise OSError("open for reading only")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def memory_map(source: AudioSource) -> Iterator[Bytes]:
    """Give access to all bytes of a source; a file is memory-mapped, not read."""
    if isinstance(source, AudioBytes):
        yield source.data
    elif source.stat().st_size == 0:
        yield b""  # an empty file cannot be mapped
    else:
        with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def refuse_url(path: Path) -> None:
    """Raise AudioDecodeError if `path`, which is no file, is a URL."""
    # A path has lost one of the two slashes. One letter before the colon is a drive of Windows.
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path), re.DOTALL)
    if match is None:
        return
    scheme, rest = match.groups()
    if scheme.lower() == "file":
        raise AudioDecodeError(f"{scheme}:///{rest}: is a URL, where a path is expected. Give /{rest}")
    raise AudioDecodeError(
        f"{scheme}://{rest}: is a URL, and nothing is read over the network. Download it, and give the path of the file"
    )


def find_audio(paths: Iterable[str | Path]) -> list[Path]:
    """Return the audio files that a list of files, folders and patterns stands for, in order, each once.

    A file counts whatever its name. A folder stands for all files below it with the suffix of an audio format, sorted,
    without hidden ones. A pattern (`*`, `?`, `[...]`, `**`) stands for what it matches. Paths that do not exist are
    returned too, so that they are reported like any other unreadable file; so are folders that are named like an audio
    file and contain none.

    Raises:
        ValueError: a pattern matches nothing, or a folder holds no audio file.
    """
    found: dict[Path, None] = {}
    for entry in paths:
        path = Path(entry).expanduser()
        if path.is_dir():
            inside = _in_folder(path)
            if not inside and not _has_audio_name(path.name):
                raise ValueError(
                    f"{path}: no audio file in this folder (known suffixes: {' '.join(sorted(AUDIO_SUFFIXES))})"
                )
            found.update(dict.fromkeys(inside or [path]))
        elif glob.has_magic(str(path)) and not path.exists():
            refuse_url(path)
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            if not matches:
                raise ValueError(f"{path}: the pattern matches no file")
            for match in map(Path, matches):
                found.update(dict.fromkeys(_in_folder(match) if match.is_dir() else [match]))
        else:
            found[path] = None
    return list(found)


def _has_audio_name(name: str) -> bool:
    return Path(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith(".")


def _in_folder(folder: Path) -> list[Path]:
    files: list[Path] = []
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(root, name) for name in names if _has_audio_name(name)]
        files += [Path(root, name) for name in folders if _has_audio_name(name) and not _in_folder(Path(root, name))]
    return sorted(files)


def path_text(path: Path) -> str:
    """Return a path as text that every format can store (undecodable bytes are escaped)."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    path: str
    reason: str


def write_skipped(report: Path, skipped: Sequence[Skipped]) -> None:
    """Write the skipped files to a CSV file (path, reason); remove the file if nothing was skipped."""
    if not skipped:
        report.unlink(missing_ok=True)
        return
    write_csv(report, ("path", "reason"), ((entry.path, entry.reason) for entry in skipped))
