"""Create or update a manifest of recordings; implements `ssamba manifest`.

    report = make_manifest("recordings/", "recordings/manifest.parquet")

While headers are read, the lengths found are kept in `MANIFEST.partial`, so that an interrupted call can resume.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssamba.audio.decode import Damaged, checked_damaged, collect_remarks, measure_files, remark
from ssamba.audio.files import Remark, Skipped, find_audio, listed_in, write_remarks, write_skipped
from ssamba.data.corpus import ManifestCorpus, is_all_silent
from ssamba.data.folders import LabelsFrom, Place, read_places
from ssamba.data.formats import COLUMNS, FORMATS, Clip, check_labels, read_clips, write_clips
from ssamba.data.manifest import (
    MANIFEST_SUFFIXES,
    Lengths,
    Manifest,
    as_sources,
    list_clips,
    read_manifest,
    scan_folder,
)
from ssamba.errors import ConfigError, DataError, Interrupted, LockLostError, SkippedFilesError
from ssamba.files import user_path
from ssamba.locks import OutputLock, lock_output
from ssamba.progress import OnProgress, counted, format_duration
from ssamba.splits import class_notes, given_folds, label_notes
from ssamba.worker_pool import default_workers

_log = logging.getLogger(__name__)

_SAVE_EVERY_S = 2.0


@dataclass(frozen=True)
class ManifestReport:
    """Result of `make_manifest`."""

    output: Path
    """The manifest."""
    recordings: int
    """Rows of the manifest."""
    audio_s: float
    """Seconds of audio that they list, where the duration is known."""
    new: int
    """Rows that were added."""
    changed: int
    """Rows whose duration, labels or split changed."""
    other: int
    """Rows of files that were not named this time, which are kept."""
    dropped: int
    """Rows of such files that `prune` dropped, or of files that can no longer be read."""
    updated: bool
    """Whether the manifest existed before."""
    labels: tuple[str, ...]
    """Names of the classes."""
    skipped: Sequence[Skipped]
    """Files that cannot be used."""
    remarks: Sequence[Remark]
    """Files that are listed although their header is wrong or a part of them is missing."""
    notes: Sequence[str] = ()
    """Problems with labels: classes that only a test part has, or that have one clip; recordings that are silent."""
    elapsed_s: float = 0.0
    """Duration of the call."""
    finished: bool = True
    """False if `progress` stopped the call: the manifest is unchanged, and the lengths found are kept."""

    @property
    def skipped_file(self) -> Path:
        """The table of skipped files."""
        return Path(f"{self.output}.skipped.csv")

    @property
    def remarks_file(self) -> Path:
        """The table of remarks."""
        return Path(f"{self.output}.remarks.csv")

    def __str__(self) -> str:
        if not self.finished:
            return f"stopped; repeat the call to resume: {self.output}"
        counts = {"new": self.new, "changed": self.changed, "dropped": self.dropped}
        changes = [f"{count} {name}" for name, count in counts.items() if count] or ["unchanged"]
        if self.other:
            changes.append(f"{self.other} of files not named this time (--prune drops them)")
        note = f" ({', '.join(changes)})" if self.updated else ""
        classes = f", {counted(len(self.labels), 'label')}" if self.labels else ""
        done = (
            f"{counted(self.recordings, 'recording')}, {format_duration(self.audio_s)}{classes}"
            f"{note}, {len(self.skipped)} skipped, in {self.elapsed_s:.1f} s: {self.output}"
        )
        return "\n".join([done, *(f"note: {line}" for line in self.notes)])


def make_manifest(
    recordings: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    labels: Literal["folder"] | None = None,
    labels_from: int | None = None,
    damaged: Damaged = "skip",
    prune: bool = False,
    overwrite: bool = False,
    take_over: bool = False,
    strict: bool = False,
    workers: int | None = None,
    progress: OnProgress | None = None,
) -> ManifestReport:
    """List recordings and their durations, found by comparing headers and files, as a manifest.

    If the manifest exists, it is brought up to date: new files are added, durations of changed files are corrected, and
    labels, splits and groups stay as they are. Files that cannot be used are listed in `OUTPUT.skipped.csv`, those that
    are listed although their header is wrong or a part of them is missing in `OUTPUT.remarks.csv`.

    Args:
        recordings: files, folders (searched below) and patterns.
        output: the manifest: `.parquet`, `.csv` or `.jsonl`.
        labels: `folder` takes labels, and splits if there are any, from the names of folders, for rows without labels.
        labels_from: number of the level of folders that names the classes, from 1; it need not be given unless several
            levels may.
        damaged: what to do with files of which a part is missing: `skip` them, or `keep` what comes before it.
        prune: drop rows of files that are not among `recordings`.
        overwrite: make the manifest anew, without the rows that an existing one has.
        take_over: take the manifest away from another process that is writing it.
        strict: raise an error at the end if any file was skipped.
        workers: processes that read headers; None means cores minus one (at most 8) if there are many files.
        progress: called after each file; returning False stops, and the next call resumes.

    Raises:
        ConfigError: `output` has another suffix, `labels` is unknown, or it is not clear which level of folders names
            the classes.
        DataError: no recording can be read; the format cannot hold a label; links put a file into the folders of two
            classes; the existing manifest is damaged, or has columns that would be lost.
        OutputInUseError: another process is writing the manifest.
        SkippedFilesError: `strict` is set and files were skipped; the manifest is written.
        Interrupted: Ctrl-C; the lengths found are kept.
        ValueError: a folder holds no audio file, or a pattern matches nothing.
    """
    started_s, output = time.monotonic(), user_path(output)
    check_manifest_name(output)
    if labels not in (None, "folder"):
        raise ConfigError(f"labels is 'folder' or None, got {labels!r}")
    checked_damaged(damaged)
    with lock_output(output, take_over=take_over) as lock:
        report = _make(recordings, output, labels_from or labels, damaged, prune, overwrite, workers, progress, lock)
    report = replace(report, elapsed_s=time.monotonic() - started_s)
    if strict and report.skipped:
        raise SkippedFilesError(f"{len(report.skipped)} files were skipped, and strict was set", report)
    return report


def _make(
    recordings: str | Path | Iterable[str | Path],
    output: Path,
    labels: LabelsFrom | None,
    damaged: Damaged,
    prune: bool,
    overwrite: bool,
    workers: int | None,
    progress: OnProgress | None,
    lock: OutputLock,
) -> ManifestReport:
    """Make a manifest whose lock is held; see `make_manifest`."""
    began_s = time.time()
    old = [] if overwrite or not output.exists() else _read_old(output)
    files = find_audio(recordings)
    notes = []
    if labels is not None:
        places = read_places(files, labels)
        check_labels({place.label for place in places if place.label is not None}, output.suffix)
        notes = _label_notes(places)
        for note in notes:
            _log.warning(note)
    kept = KeptLengths.beside(output, lock)
    processes = header_workers(workers, len(files))
    finished, clips, skipped = True, list[Clip](), list[Skipped]()
    with kept, collect_remarks() as remarks:
        try:
            clips, skipped = list_clips(files, kept.read(files, processes, damaged), progress, labels=labels)
        except Interrupted:
            finished = False
    rows = _merge(old, files, clips, output, prune) if finished else _Rows(old)
    if finished:
        lock.verify()
        write_skipped(Path(f"{output}.skipped.csv"), listed_in(output, skipped))
        write_remarks(Path(f"{output}.remarks.csv"), listed_in(output, remarks))
        if rows.clips and rows.clips != old:
            write_clips(output, rows.clips)
            os.utime(output, (began_s, began_s))  # files that changed after their headers were read are newer
        kept.remove()
        if not rows.clips:
            raise DataError(f"no recording can be read. {skipped[0].reason if skipped else ''}".strip())
        if labels is not None and is_all_silent(ManifestCorpus(Manifest(rows.clips))):
            notes.append(f"all {len(rows.clips)} recordings are silent: no model can learn their labels")
            _log.warning(notes[-1])
    return ManifestReport(
        output=output,
        recordings=len(rows.clips),
        audio_s=sum(clip.duration_s or 0.0 for clip in rows.clips),
        new=rows.new,
        changed=rows.changed,
        other=rows.other,
        dropped=rows.dropped,
        updated=bool(old),
        labels=tuple(sorted({label for clip in rows.clips for label in clip.labels})),
        skipped=skipped,
        remarks=tuple(dict.fromkeys(remarks)),
        notes=notes,
        finished=finished,
    )


def _label_notes(places: Sequence[Place]) -> list[str]:
    """Return a line for each problem with the labels and splits that folders state."""
    labeled = [place for place in places if place.label is not None]
    classes = sorted({str(place.label) for place in labeled})
    numbers = {name: number for number, name in enumerate(classes)}
    targets = np.zeros((len(labeled), len(classes)), bool)
    targets[np.arange(len(labeled)), [numbers[str(place.label)] for place in labeled]] = True
    folds = given_folds([place.split for place in labeled])
    return [*class_notes(classes, targets, folds), *label_notes(classes, targets)]


def list_recordings(
    data: Any,
    workers: int | None = None,
    progress: OnProgress | None = None,
    damaged: Damaged = "skip",
    encoding: str | None = None,
) -> tuple[Manifest, list[Skipped]]:
    """Return the recordings of one or several sources, and those that cannot be read; remarks as `scan_folder`.

    Args:
        data: a manifest (a path or a `Manifest`), a folder of audio, an audio file or a pattern; or a list of these.
        workers: processes that read headers; None as for `make_manifest`.
        progress: called after each file that is read; returning False raises Interrupted.
        damaged: as for `make_manifest`.
        encoding: of manifests in CSV and JSON, such as `cp1252`; None is UTF-8.

    Raises:
        DataError: a source is none of these, or a manifest is damaged.
    """
    manifests: list[Manifest] = []
    skipped: list[Skipped] = []
    for source in as_sources(data):
        if isinstance(source, Manifest):
            manifests.append(source)
            continue
        if not isinstance(source, str | Path) or str(source).startswith("hf:"):
            raise DataError(f"{source}: expected a folder of audio, a manifest or audio files")
        path = user_path(source)
        if path.suffix in MANIFEST_SUFFIXES and not path.is_dir():
            manifests.append(read_manifest(path, encoding=encoding))
            continue
        try:
            files = find_audio([source])
        except ValueError as error:
            raise DataError(str(error)) from None
        clips, unread = scan_folder(files, header_workers(workers, len(files)), progress, damaged=damaged)
        manifests.append(Manifest(clips, path))
        skipped += unread
    if len(manifests) == 1:
        return manifests[0], skipped
    return Manifest(clip for manifest in manifests for clip in manifest), skipped


def check_manifest_name(output: Path) -> None:
    """Check that a manifest can be written to a path.

    Raises:
        ConfigError: its suffix is not that of a format, or it is a folder.
    """
    if output.suffix not in FORMATS:
        raise ConfigError(f"{output}: expected a file name that ends in {', '.join(FORMATS)}")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder: expected the name of a file to write")


def header_workers(workers: int | None, files: int) -> int:
    """Return the number of processes that read headers; None: 0 for up to 200 files, as starting them is slow."""
    return workers if workers is not None else default_workers() if files > 200 else 0


@dataclass
class _Rows:
    """Rows of a manifest, and how they differ from those before."""

    clips: list[Clip]
    new: int = 0
    changed: int = 0
    other: int = 0
    dropped: int = 0


def _read_old(output: Path) -> list[Clip]:
    try:
        clips, ignored = read_clips(output)
    except DataError as error:
        raise DataError(f"{error}. It cannot be updated: --overwrite replaces it") from None
    if ignored:
        raise DataError(
            f"{output} has columns that would be lost ({', '.join(ignored)}; known are {', '.join(COLUMNS)}): choose "
            "another output, or --overwrite"
        )
    return clips


def _merge(
    old: Sequence[Clip],
    files: Sequence[Path],
    found: Sequence[Clip],
    output: Path,
    prune: bool,
) -> _Rows:
    """Return the old rows, updated, followed by rows of new files."""
    written_s = output.stat().st_mtime if old else 0.0
    clip_of = {_key(clip.path): clip for clip in found}
    named = {_key(file) for file in files}
    count: dict[str, int] = {}
    for row in old:
        count[_key(row.path)] = count.get(_key(row.path), 0) + 1
    rows = _Rows([])
    for row in old:
        path = _key(row.path)
        clip = clip_of.get(path)
        if clip is None:
            is_other = path not in named
            if is_other and not prune:
                rows.other += 1
                rows.clips.append(row)
            else:
                rows.dropped += 1
            continue
        updated = row
        if not row.labels and clip.labels:
            updated = replace(updated, labels=clip.labels, split=row.split or clip.split)
        is_whole = row.start_s == 0 and count[path] == 1
        length_s = clip.duration_s or 0.0
        is_stale = row.path.stat().st_mtime > written_s or (row.duration_s or 0.0) > length_s
        if is_whole and (row.duration_s is None or is_stale):
            updated = replace(updated, duration_s=clip.duration_s)
        rows.changed += updated != row
        rows.clips.append(updated)
    added = [clip for clip in found if _key(clip.path) not in count]
    rows.new = len(added)
    rows.clips += added
    return rows


class KeptLengths:
    """Lengths of recordings, kept in a file while a job measures them, so that an interrupted job resumes.

    A line holds a file's path, size and time of change, and its length in seconds. Files that cannot be read, or that
    there is a remark about, are measured again.
    """

    def __init__(self, path: Path, lock: OutputLock):
        self.path, self._lock = path, lock
        self._known: dict[str, tuple[int, int, float]] = {}
        self._unsaved: list[str] = []
        self._saved_s = time.monotonic()
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    file, size, changed_ns, length_s = json.loads(line)
                except ValueError:  # a line that a killed job left incomplete
                    continue
                self._known[file] = (size, changed_ns, length_s)

    @classmethod
    def beside(cls, output: Path, lock: OutputLock) -> KeptLengths:
        """Return those of the job that writes `output`, whose lock it holds."""
        return cls(output.with_name(f"{output.name}.partial"), lock)

    def __enter__(self) -> KeptLengths:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not LockLostError:
            self._save()
        if kind is KeyboardInterrupt:
            raise Interrupted(
                f"the lengths of {len(self._known)} files are kept: repeat the command to resume"
            ) from None

    def read(self, files: Sequence[Path], workers: int, damaged: Damaged = "skip") -> Lengths:
        """Yield each file with its length in seconds, or the error that prevents it, in order."""
        stats = {file: _stat(file) for file in files}
        known = {
            file: self._known[_key(file)][2] for file in files if self._known.get(_key(file), ())[:2] == stats[file]
        }
        measured = measure_files((file for file in files if file not in known), workers, damaged)
        for file in files:
            self._lock.check()
            if file in known:
                yield file, known[file]
                continue
            with collect_remarks() as remarks:
                _, length = next(measured)
            for found in remarks:
                remark(found)
            if isinstance(length, float) and not remarks:
                self._keep(file, stats[file], length)
            yield file, length

    def remove(self) -> None:
        """Remove the file: the job is done."""
        self.path.unlink(missing_ok=True)

    def _keep(self, file: Path, stat: tuple[int, int], length_s: float) -> None:
        name = _key(file)
        self._known[name] = (*stat, length_s)
        self._unsaved.append(json.dumps([name, *stat, length_s]))
        if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        if self._unsaved:
            self._lock.verify()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as target:
                target.writelines(f"{line}\n" for line in self._unsaved)
        self._unsaved, self._saved_s = [], time.monotonic()


def _key(path: Path) -> str:
    """Return the name by which files are compared: the real path."""
    return os.path.normcase(os.path.realpath(path))


def _stat(file: Path) -> tuple[int, int]:
    """Return size in bytes and time of change in ns; -1 if there is no such file."""
    try:
        stat = file.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
