"""Debian packages as files: which are in a folder, what is in one, and how more are fetched.

    found = find_debs(Path("debs"), ["gcin-voice", "chuck-data"])
    for path, content in read_deb(found["gcin-voice"].file, wanted=lambda path: path.endswith(".ogg")): ...

Nothing is installed, no maintainer script is run, no root is needed. A `.deb` is an `ar` archive (deb(5)) of a tar with
what is known of the package (`control`) and one with its files; both are read as streams, in Python, so that this also
works where there is no dpkg, and a package of a gigabyte costs no disk.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ssamba.errors import DataError

_ERRORS = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError)
_MAGIC = b"!<arch>\n"
_IN_MEMORY_BYTES = 1 << 26


@dataclass(frozen=True)
class Deb:
    """A package that is there as a file."""

    name: str
    version: str
    file: Path


def find_debs(folder: Path, names: Iterable[str]) -> dict[str, Deb]:
    """Those of the packages `names` that lie in a folder as `NAME_VERSION_ARCHITECTURE.deb`.

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
        version = rest.rpartition("_")[0].replace("%3a", ":")  # as apt writes the colon
        if name in found:
            raise DataError(f"{folder} holds {name} twice, {found[name].file.name} and {file.name}: keep one of them")
        found[name] = Deb(name, version, file)
    return found


def fetch_deb(name: str, folder: Path) -> str | None:
    """Download a package from the system's own repositories to a folder; what went wrong, or None.

    The download is whole or not there: it is written to a folder of its own, then renamed.
    """
    if shutil.which("apt-get") is None:
        return f"{name}: cannot be fetched, there is no apt-get here. Put its .deb into {folder}"
    place = folder / f".{name}.part"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        done = subprocess.run(
            ["apt-get", "download", "-q", name],
            cwd=place,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
        )
        files = list(place.glob("*.deb"))
        if done.returncode or len(files) != 1:
            said = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            reason = said[0] if said else f"exit code {done.returncode}"
            return f"{name}: apt-get download failed ({reason}). Try `apt-get update`, or put its .deb into {folder}"
        files[0].replace(folder / files[0].name)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return None


def read_deb(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """The paths (`usr/share/...`) and contents of those regular files of a package that are wanted, in its order.

    A content can be read, and searched, until the next one is asked for.

    Raises:
        DataError: it is no package, or is damaged.
    """
    try:
        with file.open("rb") as opened, _data_tar(file, opened) as tar:
            for member in tar:
                path = member.name.removeprefix("./").lstrip("/")
                if member.isfile() and wanted(path):
                    packed = tar.extractfile(member)
                    assert packed is not None, "a regular file has a content"
                    # Copied here, so that damage shows here.
                    with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as content:
                        shutil.copyfileobj(packed, content)
                        content.seek(0)
                        yield path, content
    except DataError:
        raise
    except _ERRORS as error:
        raise DataError(f"{file}: the package is damaged or cut off ({error}). Fetch it again") from None


@contextmanager
def _data_tar(file: Path, opened: IO[bytes]) -> Iterator[tarfile.TarFile]:
    if opened.read(len(_MAGIC)) != _MAGIC:
        raise DataError(f"{file}: is no Debian package (expected an ar archive). Fetch it again")
    while len(header := opened.read(60)) == 60:
        name, size = header[:16].decode("ascii").rstrip(" /"), int(header[48:58])
        if name.startswith("data.tar"):
            member: Any = _Part(opened, size)
            if name.endswith(".zst"):
                with zstd_stream(file, member) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
                    yield tar
            else:
                with tarfile.open(fileobj=member, mode="r|*") as tar:
                    yield tar
            while member.read(1 << 20):  # a cut that is behind the last file shows, too
                pass
            return
        opened.seek(size + size % 2, io.SEEK_CUR)
    raise DataError(f"{file}: the package is cut off: its files (data.tar) are missing. Fetch it again")


class _Part(io.RawIOBase):
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
    """What a Zstandard stream (packages of Ubuntu, some resources of Qt) holds, by the module or the program of that name.

    Raises:
        DataError: neither is there.
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
