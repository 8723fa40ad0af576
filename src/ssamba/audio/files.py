"""Find audio files, access their bytes, and record the files that were skipped."""

from __future__ import annotations

import csv
import fnmatch
import glob
import io
import mmap
import os
import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias, TypeVar

from ssamba.errors import AudioDecodeError, ConfigError
from ssamba.files import SCHEME, RealPaths, table_path, user_path, utf8_text, write_csv
from ssamba.files import path_text as path_text

_SUFFIXES = """
.wav .wave .rf64 .bwf .w64 .flac .mp3 .mp2 .ogg .oga .opus .aif .aiff .aifc .au .snd .caf
.m4a .m4b .mp4 .aac .webm .mkv .mka .wma .3gp .amr .mov
"""
AUDIO_SUFFIXES = frozenset(_SUFFIXES.split())
_MAX_REASONS = 3


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
    match = re.match(rf"({SCHEME}):/+(.*)", str(path), re.DOTALL)  # a path has lost one of the two slashes
    if match is None:
        return
    scheme, rest = match.groups()
    if scheme.lower() == "file":
        raise AudioDecodeError(f"{scheme}:///{rest}: is a URL, where a path is expected. Give /{rest}")
    raise AudioDecodeError(
        f"{scheme}://{rest}: is a URL, and nothing is read over the network. Download it, and give the path of the file"
    )


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why, as text that every format can hold."""

    path: str
    """The file, as `ssamba.files.path_text` writes it."""
    reason: str
    """The reason, which names the file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", utf8_text(self.path))
        object.__setattr__(self, "reason", utf8_text(self.reason))

    @classmethod
    def because(cls, path: str | os.PathLike[str], error: Exception | str) -> Skipped:
        """Return the entry of a file that an error prevents from being used; the reason begins with the file's name."""
        reason = str(error)
        # An error about samples that were decoded elsewhere does not know the file.
        # A path has lost one of a URL's slashes.
        names_it = reason.replace("://", ":/", 1).startswith(str(path)) or reason.startswith(str(path))
        return cls(path_text(path), reason if names_it else f"{path}: {reason}")


@dataclass(frozen=True)
class Remark:
    """What is wrong with a file that is used all the same."""

    path: str
    verdict: str
    """`wrong header`: all of it is read; `cut`: what comes before the damage is; `above band`: much of its sound lies
    where the model hears nothing."""
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", utf8_text(self.path))
        object.__setattr__(self, "reason", utf8_text(self.reason))


_Entry = TypeVar("_Entry", Skipped, Remark)


def write_remarks(report: Path, remarks: Iterable[Remark]) -> tuple[Remark, ...]:
    """Write remarks, each once, to a CSV file (path, verdict, reason), and return them; no file if there are none."""
    unique = tuple(dict.fromkeys(remarks))
    if unique:
        write_csv(report, ("path", "verdict", "reason"), map(astuple, unique))
    else:
        report.unlink(missing_ok=True)
    return unique


def read_remarks(report: Path) -> list[Remark]:
    """Read what `write_remarks` wrote; nothing if there is no such file."""
    if not report.is_file():
        return []
    with report.open(newline="", encoding="utf-8-sig") as file:
        return [Remark(**row) for row in csv.DictReader(file)]


def write_skipped(report: Path, skipped: Sequence[Skipped]) -> None:
    """Write the skipped files to a CSV file (path, reason); remove the file if nothing was skipped."""
    if not skipped:
        report.unlink(missing_ok=True)
        return
    write_csv(report, ("path", "reason"), ((entry.path, entry.reason) for entry in skipped))


def listed_in(report: Path | str, entries: Iterable[_Entry]) -> list[_Entry]:
    """Return skipped files or remarks with their paths as `report` lists them (`ssamba.files.table_path`)."""
    return [replace(entry, path=table_path(entry.path, report)) for entry in entries]


class FoundAudio(list[Path]):
    """Audio files as they were found, in order, each once.

    A file that has several names through links is listed under the first of them: in a folder that is searched, the one
    that is no link.

    Attributes:
        skipped: folders and links that could not be followed, with the reasons.
        other_names: pairs of the name of a file or folder, and another one under which it was found again.
    """

    def __init__(self, files: Iterable[Path] = ()):
        super().__init__(files)
        self.skipped: list[Skipped] = []
        self.other_names: list[tuple[Path, Path]] = []

    def renamed_files(self) -> Iterator[tuple[Path, Path]]:
        """Yield the listed name of each file that has several, and another one; those in linked folders, too."""
        names = sorted(map(os.fspath, self))
        for first, other in self.other_names:
            below = os.path.join(first, "")
            at = bisect_left(names, os.fspath(first))
            if at < len(names) and names[at] == os.fspath(first):
                yield first, other
            at = bisect_left(names, below)
            while at < len(names) and names[at].startswith(below):
                yield Path(names[at]), other / names[at][len(below) :]
                at += 1


def find_audio(paths: str | Path | Iterable[str | Path]) -> FoundAudio:
    """Return the audio files that files, folders and patterns (or one of them) stand for, in order, each once.

    A file counts whatever its name. A folder stands for all files below it with the suffix of an audio format, sorted,
    without hidden ones. Links to files and folders are followed, but not those to a folder that holds the link. `~` at
    the beginning is a home, if there is one of this name.

    A pattern (`*`, `?`, `[...]`, `**`) stands for what it matches. A part of it that exists as it stands, such as a
    folder `site [1]`, is no pattern, and brackets that match nothing stand for themselves.

    Paths that do not exist are returned, too, so that they are reported like any other unreadable file; so are folders
    that are named like an audio file and contain none.

    Raises:
        ValueError: a pattern matches nothing, or a folder holds no audio file.
        ConfigError: something is not a path.
    """
    search = _Search()
    for entry in _checked_paths(paths):
        if not os.fspath(entry):
            raise ConfigError("expected a file, a folder or a pattern, got an empty name")
        path, skipped_before = user_path(entry), len(search.found.skipped)
        if os.path.lexists(path) or not glob.has_magic(os.fspath(path)):
            if not search.add(path):
                reasons = "; ".join(one.reason for one in search.found.skipped[skipped_before:][:_MAX_REASONS])
                suffixes = f"known suffixes: {' '.join(sorted(AUDIO_SUFFIXES))}"
                raise ValueError(f"{path}: no audio file in this folder ({reasons or suffixes})")
            continue
        matches = _expand(path)
        if not matches:
            refuse_url(path)
            raise ValueError(f"{path}: the pattern matches no file")
        contains_audio = [search.add(match) for match in matches]
        if not any(contains_audio):
            raise ValueError(f"{path}: the pattern matches folders without audio files")
    return search.finish()


def _checked_paths(paths: str | Path | Iterable[str | Path]) -> list[str | Path]:
    """Return one or several paths as a list; raise a ConfigError if they are anything else."""
    entries = (
        [paths] if isinstance(paths, str | os.PathLike) else list(paths) if isinstance(paths, Iterable) else [paths]
    )
    for entry in entries:
        if not isinstance(entry, str | os.PathLike):
            raise ConfigError(
                f"expected the path of a recording, a folder or a pattern, or a list of these, got "
                f"{type(entry).__name__} (waveforms in memory: Embedder.embed and Embedder.predict take them)"
            )
    return entries


def _expand(pattern: Path) -> list[Path]:
    """Return what matches a pattern, sorted. A part that exists as it stands is taken as it is."""
    bases = [Path(pattern.anchor)]
    parts = pattern.parts[1:] if pattern.anchor else pattern.parts
    for number, part in enumerate(parts, 1):
        folders = [base for base in bases if os.path.isdir(base)]
        literal = [folder / part for folder in folders if os.path.lexists(folder / part)]
        if literal or not glob.has_magic(part):
            bases = literal
        elif part == "**" and number == len(parts):
            bases = folders
        elif part == "**":
            below = _Search()
            for folder in folders:
                below.add(folder)
            bases = list(map(Path, below.folders.values()))
        else:
            # Brackets that match nothing as a set of characters may be part of a name: `[-37.5 141.3] *.wav`.
            bases = _matches(folders, part) or _matches(folders, part.replace("[", "[[]"))
    return sorted(bases)


def _matches(folders: Sequence[Path], pattern: str) -> list[Path]:
    """Return the entries of folders that match a pattern, without hidden ones unless it asks for them."""
    found: list[Path] = []
    for folder in folders:
        with suppress(OSError):
            names = fnmatch.filter(os.listdir(folder), pattern)
            found += [folder / name for name in names if pattern.startswith(".") or not name.startswith(".")]
    return found


@dataclass(frozen=True)
class _Link:
    """A link that was found."""

    path: str
    """Its name."""
    came_through: tuple[str, ...]
    """Real paths of the folder that holds it, and of those that held the links which led there."""


class _Search:
    """Collects audio files. Each real folder is read once, whatever the number of links to it."""

    def __init__(self) -> None:
        self.found = FoundAudio()
        self.folders: dict[str, str] = {}
        """Real paths of the folders that were read, and the names under which they were found."""
        self._files: dict[str, Path] = {}
        self._with_audio: set[str] = set()
        """Real paths of folders that hold audio files, at any depth."""
        self._real_path = RealPaths()
        self._links: deque[_Link] = deque()
        self._loops: dict[str, str] = {}

    def add(self, path: Path) -> bool:
        """Add a file, or the files below a folder, sorted; return False for a folder in which there are none."""
        if not os.path.isdir(path):
            self._add_file(path, self._real_path(path))
            return True
        before, real = len(self.found), self._real_path(path)
        named_like_audio = self._read(os.fspath(path), real, ())
        while self._links:  # after all that is no link, so that a file is listed under its own name
            named_like_audio += self._follow(self._links.popleft())
        without_audio = (Path(name) for name, folder in named_like_audio if folder not in self._with_audio)
        self.found[before:] = sorted([*self.found[before:], *without_audio])
        return len(self.found) > before or real in self._with_audio

    def finish(self) -> FoundAudio:
        """Return the files; links to a folder around them, which was not searched, count as skipped."""
        for link, target in self._loops.items():
            if target not in self.folders:
                reason = f"{link}: is a link to {target}, a folder that holds it: not followed"
                self.found.skipped.append(Skipped(path_text(link), reason))
        return self.found

    def _add_file(self, path: Path, real: str) -> None:
        self._note_audio(os.path.dirname(real))
        first = self._files.setdefault(real, path)
        if first is path:
            self.found.append(path)
        elif first.absolute() != path.absolute():
            self.found.other_names.append((first, path))

    def _note_audio(self, folder: str) -> None:
        while folder not in self._with_audio:
            self._with_audio.add(folder)
            folder = os.path.dirname(folder)

    def _read(self, folder: str, real: str, came_through: tuple[str, ...]) -> list[tuple[str, str]]:
        """Add all files below a folder, collect its links, and return the folders that are named like audio files.

        Args:
            folder: its name.
            real: its real path.
            came_through: as in `_Link`.

        Returns:
            Names and real paths.
        """
        named_like_audio = []
        folders = [(folder, real)]
        while folders:
            folder, real = folders.pop()
            first = self.folders.setdefault(real, folder)
            if first is not folder:
                if os.path.abspath(first) != os.path.abspath(folder):
                    self.found.other_names.append((Path(first), Path(folder)))
                continue
            if _has_audio_name(os.path.basename(folder)):
                named_like_audio.append((folder, real))
            try:
                with os.scandir(folder) as scanned:
                    entries = [entry for entry in scanned if not entry.name.startswith(".")]
            except OSError as error:
                reason = f"{folder}: this folder cannot be read ({error.strerror or error})"
                self.found.skipped.append(Skipped(path_text(folder), reason))
                continue
            for entry in entries:
                if entry.is_symlink():
                    self._links.append(_Link(entry.path, (real, *came_through)))
                elif entry.is_dir():
                    folders.append((entry.path, os.path.join(real, entry.name)))
                elif _has_audio_name(entry.name):
                    self._add_file(Path(entry.path), os.path.join(real, entry.name))
        return named_like_audio

    def _follow(self, link: _Link) -> list[tuple[str, str]]:
        """Add the file, or the files of the folder, that a link leads to; see `_read`."""
        named_like_audio = []
        real = os.path.realpath(link.path)
        if os.path.isdir(real):
            if any(holder == real or holder.startswith(os.path.join(real, "")) for holder in link.came_through):
                self._loops[link.path] = real
                return []
            named_like_audio = self._read(link.path, real, link.came_through)
        elif _has_audio_name(os.path.basename(link.path)):
            self._add_file(Path(link.path), real)
        elif not os.path.exists(link.path):  # perhaps a folder on a disk that is not there
            reason = f"{link.path}: is a link to {os.readlink(link.path)}, which does not exist"
            self.found.skipped.append(Skipped(path_text(link.path), reason))
        if real in self._files or real in self._with_audio:
            for holder in link.came_through:
                self._note_audio(holder)
        return named_like_audio


def _has_audio_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES and not name.startswith(".")
