"""Jobs over many recordings that resume where they stopped: what `embed_files` and `predict_files` share.

A job compares the files that were named with those that its output holds, works on the ones that are new or have
changed, and knows afterwards which were skipped and which rows are to go.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import ClassVar, TypeVar

from ssamba.audio.band import above_band_text, collect_above_band
from ssamba.audio.decode import collect_remarks, telling_blocks
from ssamba.audio.files import (
    FoundAudio,
    Remark,
    Skipped,
    find_audio,
    listed_in,
    read_remarks,
    write_remarks,
    write_skipped,
)
from ssamba.errors import Interrupted, LockLostError, SkippedFilesError
from ssamba.files import RealPaths, path_text, table_path
from ssamba.library.engines import Engine
from ssamba.library.remote import Recording, RemoteFile, find_remote
from ssamba.library.storage import local_copy, without_urls
from ssamba.library.tables import FileRecord, StoreError
from ssamba.progress import OnProgress, ProgressReporter, counted, format_duration

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_ABSENT = 0, 0
"""Size and time of a file that is not there."""


@dataclass(kw_only=True)
class JobReport:
    """Result of a call. As text, a summary."""

    verb: ClassVar[str]
    """What is done to files, such as `embedded`."""
    step: ClassVar[str]
    """Name of that in reports of progress, such as `embedding`."""
    front_end_from: ClassVar[str]
    """What chooses the front end of the model."""

    output: Path | str | None
    """The file that was written, or the URL."""
    done: int = 0
    """Files that this call worked on, new and changed ones."""
    changed: int = 0
    """Those of them that took the place of an earlier version in the output."""
    unchanged: int = 0
    """Files that were in the output already."""
    kept: int = 0
    """Files in the output that were not named this time."""
    pruned: int = 0
    """Files that `prune` removed from the output."""
    skipped: list[Skipped] = field(default_factory=list)
    """Files that could not be used, with the reasons, as in `skipped_file`."""
    remarks: list[Remark] = field(default_factory=list)
    """What is wrong with files that were used all the same, as in `remarks_file`."""
    front_end: str = ""
    """What the model hears with (`FrontEndConfig.name`)."""
    rows: int = 0
    """Rows of the output; 0 if it is not complete."""
    audio_s: float = 0.0
    """Audio that this call worked on."""
    started_s: float = field(default_factory=time.monotonic, repr=False)
    """Start of the call on the monotonic clock."""
    seconds: float = 0.0
    """Time that the call took."""
    finished: bool = True
    """False if `progress` stopped the job: what is done is kept, and repeating the call resumes."""

    @property
    def skipped_file(self) -> Path | str | None:
        """The list of skipped files, if there are any."""
        return self._beside("skipped.csv")

    @property
    def remarks_file(self) -> Path | str | None:
        """The list of remarks, if there are any."""
        return self._beside("remarks.csv")

    def _beside(self, suffix: str) -> Path | str | None:
        name = f"{self.output}.{suffix}"
        return None if self.output is None else Path(name) if isinstance(self.output, Path) else name

    def __str__(self) -> str:
        if not self.finished:
            return f"stopped: {counted(self.done, 'file')} {self.verb}; repeat the command to resume"
        there = f", {self.unchanged} already there" if self.unchanged else ""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        if self.done:
            changed = f" ({self.changed} of them changed)" if self.changed else ""
            speed = self.audio_s / max(self.seconds, 1e-9)
            # The noun stays plural: scripts match this line.
            done = f"{self.done} files {self.verb}{changed}{there}{skipped}: "
            done += f"{format_duration(self.audio_s)} of audio in {self.seconds:.1f} s ({speed:.0f}x real time), "
            done += f"front end {self.front_end}, "
        else:
            nothing = "no new files" if self.pruned else "nothing to do"
            done = f"{nothing}: {counted(self.unchanged, 'file')} already there{skipped}, "
        lines = [f"{done}{counted(self.rows, 'row')}" + (f" in {self.output}" if self.output else "")]
        if self.pruned:
            lines.append(f"removed the rows of {counted(self.pruned, 'file')} not named this time")
        if self.kept:
            lines.append(f"kept the rows of {counted(self.kept, 'file')} not named this time (--prune removes them)")
        return "\n".join(lines)


class _ExpectedAudio:
    """Estimates how much audio files hold from those that are read: a second of one format has about equal bytes."""

    def __init__(self, file_bytes: Mapping[Recording, int]) -> None:
        self._file_bytes = file_bytes
        self._unread: Counter[str] = Counter()  # bytes by format
        self._read: Counter[str] = Counter()
        self._read_s: dict[str, float] = {}
        for path, size in file_bytes.items():
            self._unread[_format(path)] += size

    def read(self, path: Recording, duration_s: float) -> None:
        """Take the length of a file for the estimate; 0 for one that is left out."""
        name, size = _format(path), self._file_bytes[path]
        self._unread[name] -= size
        if duration_s:
            self._read[name] += size
            self._read_s[name] = self._read_s.get(name, 0.0) + duration_s

    @property
    def unread_s(self) -> float | None:
        """Audio of the files that are not read yet; None before one is."""
        if not self._read.total():
            return None
        of_all = sum(self._read_s.values()) / self._read.total()
        seconds_per_byte = {name: self._read_s[name] / size for name, size in self._read.items() if size}
        return sum(size * seconds_per_byte.get(name, of_all) for name, size in self._unread.items())


def _format(path: Recording) -> str:
    """Return the suffix of a recording's name."""
    return PurePath(str(path)).suffix.lower()


class FileJob:
    """The files that one call works on.

    Attributes:
        files: the files that were named, by key (the real path as text).
        todo: those of them that are not in the output as they are.
        before: the files in the output, by key.
        report: counts of the call.
    """

    def __init__(self, recordings: str | Path | Iterable[str | Path], report: JobReport) -> None:
        """Find the files.

        Args:
            recordings: files, folders and patterns, or one of them.
            report: is updated.

        Raises:
            ValueError: a pattern matches nothing, or a folder holds no audio.
        """
        recordings, urls = without_urls(recordings)
        found = FoundAudio() if urls and not recordings else find_audio(recordings)
        if found.other_names:
            first, other = found.other_names[0]
            log.info("%d other names of the same files are left out, as %s (%s)", len(found.other_names), other, first)
        real_path = RealPaths()
        self.files: dict[str, Recording] = {path_text(real_path(path)): path for path in found}
        self.files |= {file.url: file for file in find_remote(urls)}
        self.report = report
        report.skipped = list(found.skipped)
        self.stats = {key: _stat(path) for key, path in self.files.items()}
        self.before: Mapping[str, FileRecord] = {}
        self.todo: dict[Recording, str] = {}
        self._num_skipped = 0
        self._undecodable: set[str] = set()
        self._above_band: list[Remark] = []
        self._step = ProgressReporter(None, report.step)
        self._expected = _ExpectedAudio({})
        self._read_s = self._shown_s = 0.0

    def compare(self, before: Mapping[str, FileRecord]) -> None:
        """Compare the files with those in the output."""
        self.before = before
        self.todo = {
            path: key
            for key, path in self.files.items()
            if key not in before or not before[key].is_unchanged(*self.stats[key])
        }
        self.report.unchanged = len(self.files) - len(self.todo)
        self.report.kept = len(before.keys() - self.files.keys())

    def run(
        self, engine: Engine[Result], add: Callable[[Recording, Result], float], progress: OnProgress | None
    ) -> None:
        """Work on the files that are to do, until that is done or `progress` stops it.

        Args:
            engine: turns recordings into results.
            add: keeps the result of a file, and returns the duration of the recording.
            progress: called after each file, and while a long one is read.
        """
        counts = self.report.unchanged, self.report.kept
        log.debug("%s to do (%d already there, %d of others)", counted(len(self.todo), "file"), *counts)
        self._step = ProgressReporter(progress, self.report.step, len(self.todo))
        self._expected = _ExpectedAudio({path: self.file_bytes(path) for path in self.todo})
        with (
            collect_remarks() as self.report.remarks,
            collect_above_band() as self._above_band,
            telling_blocks(self._read_on),
            self._lists(),
            closing(engine.run(list(self.todo), self)) as results,
        ):
            for path, result in results:
                if isinstance(result, Exception):
                    self.skip(path, result)
                else:
                    duration_s = add(path, result)
                    self.report.done += 1
                    self.report.changed += self.todo[path] in self.before
                    self.report.audio_s += duration_s
                    self._expected.read(path, duration_s)
                    log.debug("%s: %s %s", path, format_duration(duration_s), self.report.verb)
                    self._read_s = self.report.audio_s
                    self._show()

    @contextmanager
    def _lists(self) -> Iterator[None]:
        """Write the lists of skipped files and of remarks, also if the job is interrupted."""
        try:
            yield
        except LockLostError:  # they are another process's now
            raise
        except BaseException:
            self._write_lists()
            raise
        self._write_lists()

    def _write_lists(self) -> None:
        report = self.report
        report.skipped.sort(key=lambda entry: entry.path)
        report.remarks = list(dict.fromkeys((*report.remarks, *self._above_band)))
        if self._above_band:
            listed = "" if report.remarks_file is None else f". All of them are in {report.remarks_file}"
            log.warning(above_band_text(self._above_band, report.front_end_from, report.done, listed))
        if report.skipped_file is not None and report.remarks_file is not None:
            with local_copy(report.skipped_file) as file:
                write_skipped(file, listed_in(report.skipped_file, report.skipped))
            todo = set(self.todo.values())
            kept = {record.path for key, record in self.before.items() if key not in todo}
            with local_copy(report.remarks_file) as file:
                earlier = [one for one in read_remarks(file) if one.path in kept]
                write_remarks(file, [*earlier, *listed_in(report.remarks_file, report.remarks)])

    def skip(self, path: Recording, error: Exception) -> None:
        """Leave a file out, and show that."""
        self._num_skipped += 1
        self._expected.read(path, 0.0)
        self.report.skipped.append(Skipped.because(path, error))
        key = self.todo[path]
        if isinstance(error, ValueError) and self.stats[key] != _ABSENT:
            self._undecodable.add(key)
        self._show()

    def note(self, text: str) -> None:
        """Log a warning about a file that is used all the same."""
        log.warning("%s", text)

    def goes_on(self) -> bool:
        """Return False once `progress` has stopped the job."""
        return self.report.finished

    def file_bytes(self, path: Recording) -> int:
        """Return the size of a file."""
        return self.stats[self.todo[path]][0]

    def _read_on(self, seconds: float) -> None:
        """Report progress within a long file; stopping then ends the job after it."""
        self._read_s += seconds
        self._show()

    def _show(self) -> None:
        num_done = self.report.done + self._num_skipped
        self._shown_s = max(self._shown_s, self.report.audio_s, self._read_s)
        unread_s = self._expected.unread_s
        work = None if unread_s is None else (self._shown_s, max(self._shown_s, self.report.audio_s + unread_s))
        go_on = self._step.update(num_done, audio_s=self._shown_s, skipped=self._num_skipped, work=work)
        self.report.finished = (self.report.finished and go_on) or num_done == len(self.todo)

    def recount(self, records: Mapping[str, FileRecord]) -> None:
        """Count the files that are done by what is kept: an interrupt may come between the two."""
        kept = (key for key in self.todo.values() if key in records and records[key].is_unchanged(*self.stats[key]))
        self.report.done = sum(1 for _ in kept)

    def record(self, path: Recording, duration_s: float, rows: int) -> FileRecord:
        """Return the record of a file; its path is the one that was given first, as the output lists it."""
        key, output = self.todo[path], self.report.output
        if key in self.before:
            name = self.before[key].path
        else:
            name = path_text(path if output is None else table_path(path, output))
        return FileRecord(name, *self.stats[key], duration_s, rows, key)

    def dropped(self, prune: bool) -> set[str]:
        """Return the keys of files that leave the output.

        A file that has changed and cannot be decoded goes, one that is not there any more stays.

        Raises:
            StoreError: nothing is left.
        """
        report = self.report
        dropped = self._undecodable & self.before.keys()
        if prune:
            others = self.before.keys() - self.files.keys()
            report.pruned, report.kept = len(others), 0
            dropped |= others
        if not report.done and not self.before.keys() - dropped:
            first = f": {report.skipped[0].reason}" if report.skipped else ": none was named"
            listed = f". All reasons are in {report.skipped_file}" if report.skipped and report.skipped_file else ""
            raise StoreError(f"no file could be {report.verb}{first}{listed}")
        return dropped

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Context of everything that may be interrupted or run out of disk: says what is kept."""
        kept = " and saved" if self.report.output else ""
        again = "repeat the command to resume" if self.report.output else "run the command again"
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(f"{self._done()}{kept}: {again}", self.report) from None
        except OSError as error:
            remedy = f"{self._done()}{kept}: fix the cause, and {again}"
            raise StoreError(f"{error}. {remedy}") from error
        finally:
            self.report.seconds = time.monotonic() - self.report.started_s

    def _done(self) -> str:
        """Return how many files are done, such as `1 file is embedded`."""
        verb = "is" if self.report.done == 1 else "are"
        return f"{counted(self.report.done, 'file')} {verb} {self.report.verb}"

    def check_strict(self, strict: bool) -> None:
        """Raise a SkippedFilesError if files were skipped and `strict` is set."""
        if strict and self.report.skipped:
            raise SkippedFilesError(f"skipped {counted(len(self.report.skipped), 'file')}", self.report)


def _stat(path: Recording) -> tuple[int, int]:
    if isinstance(path, RemoteFile):
        return path.file_bytes, path.modified_ns
    try:
        stat = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return _ABSENT
    return stat.st_size, stat.st_mtime_ns
