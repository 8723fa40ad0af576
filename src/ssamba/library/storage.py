"""Storage that has a URL (`s3://`, `gs://`, `az://`, `sftp://`...), through fsspec.

Place.of("s3://bucket/table")                        # a file system, and the path in it
with local_copy("s3://bucket/x.csv") as path: ...    # changed as a file of this machine
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ssamba.errors import ConfigError, DataError, MissingExtraError, SsambaError
from ssamba.files import SCHEME

Names: TypeAlias = "str | Path | Iterable[str | Path]"
_URL = re.compile(rf"({SCHEME}):/+(.+)", re.DOTALL)
_NOT_STORAGE = ("file", "local", "http", "https", "hf")


def url_of(name: object) -> str | None:
    """Return the URL that a name is, without slashes at its end; None if it is a local path.

    A `Path` has lost one of two slashes.
    """
    match = _URL.fullmatch(str(name))
    if match is None or match[1].lower() in _NOT_STORAGE or Path(str(name)).exists():
        return None
    from fsspec import available_protocols

    return f"{match[1].lower()}://{match[2].rstrip('/')}" if match[1].lower() in available_protocols() else None


def without_urls(names: Names) -> tuple[Names, list[str]]:
    """Return the local ones of some names, as they are if all of them are, and the URLs among them."""
    if not isinstance(names, str | os.PathLike) and isinstance(names, Iterable):
        names = list(names)
    listed = names if isinstance(names, list) else [names]
    found = [(one, url_of(one)) for one in listed]
    urls = [url for _, url in found if url is not None]
    return (names if not urls else [one for one, url in found if url is None]), urls


class Place(NamedTuple):
    """A file system with a path in it."""

    fs: Any
    path: str

    @classmethod
    def of(cls, url: str) -> Place:
        """Return where a URL leads.

        Raises:
            MissingExtraError: the package for this kind of storage is not installed.
        """
        from fsspec.core import url_to_fs

        try:
            return cls(*url_to_fs(url.rstrip("/"), use_listings_cache=False))
        except ImportError as error:
            raise MissingExtraError(f"{url}: needs another package ({error}): pip install it") from None
        except ValueError as error:
            raise ConfigError(f"{url}: {error}") from None

    def below(self, name: str) -> Place:
        """Return the place of a file in this folder."""
        return Place(self.fs, f"{self.path}/{name}")


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn what a storage service answers into a DataError that names the URL."""
    try:
        yield
    except (ImportError, SsambaError):
        raise
    except Exception as error:  # each service has errors of its own
        raise DataError(f"{url}: cannot be read ({one_line(error)}). Check the URL and the credentials") from error


def one_line(error: Exception) -> str:
    """Return kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def modified_ns(info: dict[str, Any]) -> int:
    """Return when a file was changed last, as its file system tells in whatever form; 0 if it does not."""
    names = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")
    when = next((info[name] for name in names if info.get(name) is not None), 0)
    if isinstance(when, str):
        when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    return round((when.timestamp() if isinstance(when, datetime) else float(when)) * 1e9)


@contextmanager
def local_copy(name: Path | str) -> Iterator[Path]:
    """Give access to a small file: a path as it is, or a copy of what is at a URL; a changed copy goes back there."""
    if isinstance(name, Path):
        yield name
        return
    fs, place = Place.of(name)
    with tempfile.TemporaryDirectory(prefix="ssamba-") as folder:
        path = Path(folder) / place.rpartition("/")[2]
        with suppress(FileNotFoundError):
            fs.get_file(place, str(path))
        before = path.read_bytes() if path.exists() else None
        yield path
        after = path.read_bytes() if path.exists() else None
        if after is not None and after != before:
            fs.pipe_file(place, after)
        elif after is None and before is not None:
            fs.rm_file(place)
