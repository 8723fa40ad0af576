"""Recordings in storage that has a URL, copied to the machine that works on them.

    find_remote(["s3://bucket/recordings/"])             # all audio files below it, with sizes and times

Copies lie in a temporary folder, some ahead of the work, and are removed after it: so hours of audio are streamed in
constant memory like files of this machine.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from ssamba.audio.band import collect_above_band
from ssamba.audio.decode import collect_remarks, pass_on
from ssamba.audio.files import AUDIO_SUFFIXES, Remark
from ssamba.errors import AudioDecodeError, ConfigError, DataError, MissingExtraError
from ssamba.library.storage import Place, modified_ns, one_line, reading
from ssamba.library.tables import UNKNOWN

Result = TypeVar("Result")

_AHEAD, _DOWNLOADS, _ATTEMPTS = 32, 8, 3
_LOOKUPS = 32


@dataclass(frozen=True)
class RemoteFile:
    """A recording in remote storage."""

    url: str
    file_bytes: int
    modified_ns: int

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url


Recording: TypeAlias = "Path | RemoteFile"


class Job(Protocol):
    """What an engine asks of the job that it works for."""

    def skip(self, path: Recording, error: Exception) -> None:
        """Note at once that a file cannot be decoded."""

    def note(self, text: str) -> None:
        """Tell the user something about a file that is used all the same."""

    def goes_on(self) -> bool:
        """Return whether further files are to be read."""

    def file_bytes(self, path: Recording) -> int:
        """Return the size of a file."""


def file_error(error: Exception, text: str) -> Exception:
    """Return an error about a file with another text, of the kind that jobs tell apart: of its content, or of access.

    Its text alone makes it, so that it can be pickled.
    """
    return AudioDecodeError(text) if isinstance(error, ValueError) else OSError(text)


def find_remote(urls: Sequence[str]) -> list[RemoteFile]:
    """Return the recordings that URLs stand for: files, all audio files below folders, and what matches patterns.

    What has the name of a recording and is not there is one, too: to copy it is an error of that file.

    Raises:
        DataError: a folder or a pattern has none, or cannot be listed.
        MissingExtraError: as `Place.of`.
    """
    with ThreadPoolExecutor(_LOOKUPS) as pool:
        return [file for files in pool.map(_find, urls) for file in files]


def _find(url: str) -> list[RemoteFile]:
    fs, path = Place.of(url)
    is_pattern = any(sign in path for sign in "*?[")
    with reading(url):
        with suppress(FileNotFoundError):
            info = fs.info(path)
            if info["type"] == "file":
                return [_remote_file(fs, info)]
        found = fs.glob(path, detail=True) if is_pattern else fs.find(path, detail=True)
    files = [_remote_file(fs, found[name]) for name in sorted(found) if _is_audio(found[name])]
    if not files and not is_pattern and Path(path).suffix.lower() in AUDIO_SUFFIXES:
        return [RemoteFile(fs.unstrip_protocol(path), UNKNOWN, 0)]
    if not files:
        raise DataError(f"{url}: no audio file there. Expected a file, a folder or a pattern")
    return files


def _is_audio(info: dict[str, Any]) -> bool:
    name = info["name"].rpartition("/")[2]
    return info["type"] == "file" and not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES


def _remote_file(fs: Any, info: dict[str, Any]) -> RemoteFile:
    size = info.get("size")
    return RemoteFile(fs.unstrip_protocol(info["name"]), UNKNOWN if size is None else int(size), modified_ns(info))


class _Copies:
    """Copies of recordings, numbered, in a temporary folder; tells a job about the recordings that they are of."""

    def __init__(self, files: Sequence[RemoteFile], folder: str, job: Job) -> None:
        self._files, self._folder, self._job = files, Path(folder), job
        self._name = re.compile(re.escape(f"{self._folder}/") + r"(\d+)_\.?\w*")

    def paths(self, pool: ThreadPoolExecutor) -> Iterator[Path]:
        """Yield the copies, some of which are made ahead."""
        paths = [self._folder / f"{number}_{Path(file.url).suffix}" for number, file in enumerate(self._files)]
        source = iter(zip(paths, self._files, strict=True))
        waiting: deque[tuple[Path, Future[None]]] = deque()
        while True:
            for path, file in islice(source, _AHEAD - len(waiting)):
                waiting.append((path, pool.submit(_copy, file, path)))
            if not waiting:
                return
            path, copied = waiting.popleft()
            try:
                copied.result()
            except (MissingExtraError, ConfigError):
                raise
            except FileNotFoundError:
                self._job.skip(self.of(path), OSError(f"{self.of(path)}: no such file. Check the URL"))
            except Exception as error:  # each service has errors of its own, and they must not cost the other files
                self._job.skip(self.of(path), OSError(f"{self.of(path)}: cannot be copied ({one_line(error)})"))
            else:
                yield path

    def of(self, path: Path) -> RemoteFile:
        """Return the recording that a copy is of."""
        return self._files[int(path.name.partition("_")[0])]

    def text(self, text: str) -> str:
        """Return a text with the names of recordings in place of their copies'."""
        return self._name.sub(lambda match: self._files[int(match[1])].url, text)

    def error(self, error: Exception) -> Exception:
        """Return an error about a copy as one about its recording."""
        return file_error(error, self.text(str(error)))

    def remark(self, found: Remark) -> Remark:
        """Return a remark about a copy as one about its recording."""
        return Remark(self.text(found.path), found.verdict, self.text(found.reason))

    def skip(self, path: Recording, error: Exception) -> None:
        """As `Job.skip`."""
        assert isinstance(path, Path)
        self._job.skip(self.of(path), self.error(error))
        path.unlink(missing_ok=True)

    def note(self, text: str) -> None:
        """As `Job.note`."""
        self._job.note(self.text(text))

    def goes_on(self) -> bool:
        """As `Job.goes_on`."""
        return self._job.goes_on()

    def file_bytes(self, path: Recording) -> int:
        """As `Job.file_bytes`."""
        assert isinstance(path, Path)
        return self.of(path).file_bytes


def _copy(file: RemoteFile, path: Path) -> None:
    fs, source = Place.of(file.url)
    for attempt in range(_ATTEMPTS):
        try:
            fs.get_file(source, str(path))
            return
        except (FileNotFoundError, PermissionError, ImportError):
            raise
        except Exception:  # each service has errors of its own
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(2.0**attempt)


def run_on_copies(
    run: Callable[[Iterable[Path], Job], Iterator[tuple[Path, Result | Exception]]],
    files: Sequence[RemoteFile],
    job: Job,
) -> Generator[tuple[RemoteFile, Result | Exception]]:
    """Copy recordings to this machine, run an engine on the copies, and yield results under the recordings' names.

    Args:
        run: the engine: paths and a job in, files with results or errors out.
        files: the recordings.
        job: is told about recordings that cannot be copied or decoded.
    """
    remarks, above_band = list[Remark](), list[Remark]()
    with tempfile.TemporaryDirectory(prefix="ssamba-") as folder, ThreadPoolExecutor(_DOWNLOADS) as pool:
        copies = _Copies(files, folder, job)
        try:
            with collect_remarks() as remarks, collect_above_band() as above_band:
                for path, result in run(copies.paths(pool), copies):
                    yield copies.of(path), copies.error(result) if isinstance(result, Exception) else result
                    path.unlink(missing_ok=True)
        finally:
            pool.shutdown(cancel_futures=True)
            pass_on(map(copies.remark, remarks), map(copies.remark, above_band))
