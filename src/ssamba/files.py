"""Paths and files: homes, names that are no text, real paths behind links, and writing that leaves no half file.

Names of files are bytes on most systems, and Python shows those that are not UTF-8 as lone surrogates, which no text
file can hold. `path_text` writes such a byte as `\\xe9`, and `path_from_text` returns the name again:

    path_text(Path(os.fsdecode(b"caf\\xe9.wav"))) == r"caf\\xe9.wav"
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ssamba.errors import ConfigError

_IS_WINDOWS = os.name == "nt"
_SURROGATE = re.compile("[\ud800-\udfff]")
SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+"
"""Pattern of a URL's scheme, `s3` or `https`; one letter before a colon is a drive of Windows."""
_ABSOLUTE = re.compile(rf"[\\/]|[A-Za-z]:[\\/]|{SCHEME}://")  # here, on Windows, or a URL
_LITERAL_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")
_ESCAPE = re.compile(r"\\x(5c|[89a-f][0-9a-f])")
_MAX_NAME_BYTES = 200  # of 255 that most file systems allow; the rest is for the additions to a temporary name


def user_path(typed: str | os.PathLike[str]) -> Path:
    """Return the path that a user typed, with `~` or `~name` at its beginning replaced by that home, if it exists.

    Paths that were found in a folder must not be passed: there `~a` is the name of a file.

    Raises:
        ConfigError: it is not a path.
    """
    if not isinstance(typed, str | os.PathLike):
        raise ConfigError(f"expected a path (a string or a Path), got {type(typed).__name__}")
    return Path(os.path.expanduser(typed))  # noqa: PTH111 - Path.expanduser fails if there is no such home


def cache_folder() -> Path:
    """Return `$SSAMBA_CACHE`, or `ssamba` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    own = os.environ.get("SSAMBA_CACHE")
    if own:
        return user_path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssamba"


def output_folder(typed: str | os.PathLike[str]) -> Path:
    """Return the path of a folder to write that a user typed, as `user_path` does.

    Raises:
        ConfigError: it is not a path, or it is a file, or lies below one.
    """
    folder = user_path(typed)
    if next((path for path in (folder, *folder.parents) if path.exists()), folder).is_file():
        raise ConfigError(f"{folder} is a file, or lies below one: expected the name of a folder to write")
    return folder


def folder_name(folder: Path) -> str:
    """Return the last part of a path, links not resolved; for `.` and `..` that of the folder they stand for."""
    return os.path.basename(os.path.abspath(folder))  # noqa: PTH100, PTH119 - Path.resolve would follow links


def utf8_text(text: str) -> str:
    r"""Return text that UTF-8 can hold: bytes of file names that are not UTF-8 become `\xe9`."""
    return text if text.isascii() else _SURROGATE.sub(_escaped, text)


def _escaped(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def soundfile_path(path: Path) -> str | bytes:
    """Return a path as `soundfile` takes it: it refuses text that is not UTF-8, and takes bytes as they are."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def path_text(path: str | os.PathLike[str]) -> str:
    r"""Return a path as text that every format can hold, different for different paths.

    Bytes that are not UTF-8 become `\xe9`; a backslash before what looks like such a byte becomes `\x5c`.
    """
    text = os.fspath(path)
    # On Windows names are text, and backslashes separate folders.
    return utf8_text(text if _IS_WINDOWS else _LITERAL_ESCAPE.sub(r"\\x5c", text))


def path_from_text(text: str) -> str:
    """Return the path that `path_text` wrote."""
    if _IS_WINDOWS or "\\x" not in text:
        return text
    plain = _ESCAPE.sub(lambda m: "\\" if m[1] == "5c" else chr(0xDC00 + int(m[1], 16)), text)
    return os.fsdecode(os.fsencode(plain))


def relative_path(path: Path, folder: Path) -> str:
    """Return a path as a table in `folder` (absolute) holds it: relative if below the folder, else absolute.

    Links are kept as they are; separators are `/` on every system.
    """
    path, folder = _without_dots(path.absolute()), _without_dots(folder)
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _without_dots(path: Path) -> Path:
    """Return an absolute path without `..`; where a link decides what that means, the real path."""
    if ".." not in path.parts:
        return path
    plain = Path(os.path.normpath(path))
    return plain if os.path.realpath(plain) == os.path.realpath(path) else Path(os.path.realpath(path))


def table_path(path: str | os.PathLike[str], table: Path | str) -> str:
    """Return a path as the file `table` lists it: absolute if it is given so, else as `relative_path`.

    So what is listed is found from the folder of the table, wherever a program that reads it runs (`listed_path`). URLs
    stay as they are, and a table at a URL (a string) lists local files by absolute paths.
    """
    if Path(path).is_absolute() or "://" in os.fspath(path):
        return os.fspath(path)
    return relative_path(Path(path), table.parent.absolute() if isinstance(table, Path) else Path(table))


def listed_path(listed: str, table: Path) -> str:
    """Return a path that the file `table` lists, which starts at the folder of the table, as this process finds it."""
    return listed if _ABSOLUTE.match(listed) else str(table.parent / listed)


class RealPaths:
    """Resolves many paths: absolute, without links. Each folder is listed once, whatever the number of its files."""

    def __init__(self) -> None:
        self._folders: dict[str, tuple[str, dict[str, str]]] = {}

    def __call__(self, path: str | os.PathLike[str]) -> str:
        """Return the real path of a file, or its absolute path as far as it does not exist."""
        # Only what links stand for says where `..` leads.
        absolute = os.path.realpath(path) if ".." in os.fspath(path) else str(Path(path).absolute())
        folder, name = os.path.split(absolute)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder), _linked_names(folder)
        real, linked = self._folders[folder]
        return os.path.normcase(linked.get(name) or os.path.join(real, name))  # noqa: PTH118 - millions of paths


def _linked_names(folder: str) -> dict[str, str]:
    """Return the entries of a folder that are links, with their real paths."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: os.path.realpath(entry.path) for entry in entries if entry.is_symlink()}
    except OSError:
        return {}


_checks: ContextVar[tuple[Callable[[], None], ...]] = ContextVar("checks before files are replaced", default=())


@contextmanager
def checking_before_replacing(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each file that `write_atomically` replaces inside; it raises if that must not happen."""
    before = _checks.set((*_checks.get(), check))
    try:
        yield
    finally:
        _checks.reset(before)


def check_before_replacing() -> None:
    """Call the checks of `checking_before_replacing`; for code that renames, appends or removes by itself."""
    for check in _checks.get():
        check()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename it to `path`.

    Any number of processes and threads may write the same path: each writes a file of its own, and the last stays.
    Inside `lock_output` the lock is verified before the file is renamed.
    """
    temporary = path.with_name(f".{shortened_name(path.name)}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's umask; some writers are stricter
        write(temporary)
        temporary.chmod(mode)
        check_before_replacing()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shortened_name(name: str) -> str:
    """Return a file name, or its digest if the name with additions may be longer than file systems allow."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _MAX_NAME_BYTES else hashlib.sha256(encoded).hexdigest()[:32]


def move_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Move files of a folder to a new folder beside it (`NAME.old`, `NAME.old-2`, ...), in this order.

    Returns:
        The new folder; None if there was nothing to move.
    """
    found = [name for name in names if (folder / name).exists()]
    if not found:
        return None
    number, target = 1, folder.with_name(f"{folder.name}.old")
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.old-{number}")
    target.mkdir()
    for name in found:
        (folder / name).rename(target / name)
    return target


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically; create its folder if necessary. What UTF-8 cannot hold is escaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda target: target.write_text(utf8_text(text), encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda target: target.write_bytes(content))


def json_text(content: Any, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """Return JSON without lone surrogates, which many programs refuse: bytes of file names are escaped."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    if not text.isascii():
        if utf8_text(text) != text:
            content = _utf8_values(content)
        text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    return text


def finite(value: Any) -> Any:
    """Return nested plain values with NaN and infinity, which JSON does not have, replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _utf8_values(value: Any) -> Any:
    if isinstance(value, str):
        return utf8_text(value)
    if isinstance(value, dict):
        return {_utf8_values(key): _utf8_values(inner) for key, inner in value.items()}
    return [_utf8_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file that Excel opens, atomically; create its folder if necessary.

    What UTF-8 cannot hold is escaped.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(utf8_cells(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda target: target.write_bytes(excel_bytes(text.getvalue())))


def excel_bytes(text: str) -> bytes:
    """Return text as UTF-8 that Excel reads: it takes letters beyond ASCII for its own code page without a mark."""
    return utf8_text(text).encode("utf-8" if text.isascii() else "utf-8-sig")


def utf8_cells(row: Iterable[object]) -> list[object]:
    """Return the cells of a row of a table with text that UTF-8 can hold."""
    return [utf8_text(cell) if isinstance(cell, str) else cell for cell in row]
