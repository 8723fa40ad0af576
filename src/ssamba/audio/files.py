"""Audio files: which ones a list of files, folders and patterns stands for, their bytes, and the list of skipped ones."""

from __future__ import annotations

import csv
import glob
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ssamba.files import write_atomically

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


_SUFFIXES = """
.wav .wave .rf64 .bwf .w64 .flac .mp3 .mp2 .ogg .oga .opus .aif .aiff .aifc .au .snd .caf
.m4a .m4b .mp4 .aac .webm .mkv .mka .wma .3gp .amr .mov
"""
AUDIO_SUFFIXES = frozenset(_SUFFIXES.split())


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    path: str
    reason: str


def find_audio(paths: Iterable[str | Path]) -> list[Path]:
    """Files in the order given, each once.

    A file is taken whatever its name; a folder gives all files below it that have the suffix of an audio format,
    sorted, but for hidden ones; a pattern (`*`, `?`, `[...]`, `**`) gives what it matches. What does not exist is
    kept, so that it is reported like any other file that cannot be read, and so is a folder that is named like an
    audio file and holds none.

    Raises:
        ValueError: a pattern matches nothing, or a folder holds no audio file.
    """
    found: dict[Path, None] = {}
    for entry in paths:
        path = Path(entry).expanduser()
        if path.is_dir():
            inside = _in_folder(path)
            if not inside and not _is_audio_name(path.name):
                raise ValueError(
                    f"{path}: no audio file in this folder (known suffixes: {' '.join(sorted(AUDIO_SUFFIXES))})"
                )
            found.update(dict.fromkeys(inside or [path]))
        elif glob.has_magic(str(path)) and not path.exists():
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            if not matches:
                raise ValueError(f"{path}: the pattern matches no file")
            for match in map(Path, matches):
                found.update(dict.fromkeys(_in_folder(match) if match.is_dir() else [match]))
        else:
            found[path] = None
    return list(found)


def _is_audio_name(name: str) -> bool:
    return Path(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith(".")


def _in_folder(folder: Path) -> list[Path]:
    files: list[Path] = []
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(root, name) for name in names if _is_audio_name(name)]
        files += [Path(root, name) for name in folders if _is_audio_name(name) and not _in_folder(Path(root, name))]
    return sorted(files)


def path_text(path: Path) -> str:
    """A path as text that every format can store (undecodable bytes are escaped)."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def write_skipped(report: Path, skipped: Sequence[Skipped]) -> None:
    """List what was left out as CSV (path, reason); no list, and none from before, when nothing was."""
    if not skipped:
        report.unlink(missing_ok=True)
        return

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "reason"])
            writer.writerows((entry.path, entry.reason) for entry in skipped)

    report.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(report, write)
