"""Manifests: which recordings, or parts of recordings, form a corpus, with the labels, split and group of each.

    clips, skipped = scan_folder("recordings/", workers=4)
    write_manifest(clips, "recordings/manifest.parquet")
    manifest = read_manifest("recordings/manifest.parquet")

| column | meaning | in CSV |
|---|---|---|
| `path` (`clip`) | the recording; relative paths start at the manifest's folder | required |
| `start_s` (`start`) | where the clip begins in the recording, seconds | empty: 0 |
| `duration_s` (`duration`) | length of the clip, seconds; or `end_s` (`end`), as in annotations | empty: to the end |
| `labels` (`label`) | names of its classes | separated by `;` |
| `split` | `train`, `valid`, `test`, `fold1`, ... | empty: none |
| `group` | clips of one group must stay in one split: a speaker, a recording, a site | empty: none |

The tables of evaluation suites (`clip`, `label`, `split`, `group`; `ssamba evaluate`) are manifests, too, where their
recordings lie beside them.

Formats: `.csv`, `.jsonl`, `.parquet` (the `store` extra) and the original's `.json` (`formats.py` reads and writes
them). No torch here, so that worker processes that read headers start quickly.
"""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np

from ssamba.audio.decode import Damaged, measure_files
from ssamba.audio.files import FoundAudio, Skipped, find_audio
from ssamba.data.folders import LabelsFrom, Place, read_places
from ssamba.data.formats import FORMATS, read_clips, write_clips
from ssamba.data.formats import Clip as Clip
from ssamba.errors import DataError, Interrupted
from ssamba.files import RealPaths, path_text, user_path
from ssamba.progress import OnProgress, ProgressReporter

T = TypeVar("T", covariant=True)
H = TypeVar("H", bound=Hashable)

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet", ".json")
"""Suffixes of the formats that can be read."""
_NUM_EXAMPLES = 5
"""Offending clips or groups that a message names; it counts the others."""


class LazySequence(Sequence[T]):
    """An immutable sequence whose elements are created on access, by `element(index)` with 0 <= index < len."""

    @abstractmethod
    def element(self, index: int) -> T:
        """Return one element."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        indices = range(len(self))[index]
        return self.element(indices) if isinstance(indices, int) else [self.element(i) for i in indices]


class TextColumn(LazySequence[str]):
    """An immutable sequence of strings, stored as one block of bytes and the offsets into it.

    Two million Python strings would be gigabytes of small objects, copied into each forked worker process as soon as
    their reference counts change. A column is small, quick to pickle, and stays shared.
    """

    def __init__(self, values: Iterable[str]):
        # File names may hold bytes that are not UTF-8.
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def element(self, index: int) -> str:
        """Return one string."""
        return self._bytes[self._ends[index] : self._ends[index + 1]].tobytes().decode("utf-8", "surrogateescape")


class CategoryColumn(LazySequence[H]):
    """An immutable sequence with few distinct values, stored as their numbers."""

    def __init__(self, values: Iterable[H]):
        numbers: dict[H, int] = {}
        self.codes: np.ndarray[Any, np.dtype[np.int32]] = np.fromiter(
            (numbers.setdefault(value, len(numbers)) for value in values), np.int32
        )
        """Index of each element in `values` (n,)."""
        self.values: tuple[H, ...] = tuple(numbers)
        """The distinct values, in order of appearance."""

    def __len__(self) -> int:
        return len(self.codes)

    def element(self, index: int) -> H:
        """Return one value."""
        return self.values[int(self.codes[index])]

    def is_value(self, value: H) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return where the column holds `value` (n,)."""
        if value not in self.values:
            return np.zeros(len(self), dtype=bool)
        return np.asarray(self.codes == self.values.index(value))


class Manifest(LazySequence[Clip]):
    """Clips in the order of their file."""

    def __init__(self, clips: Iterable[Clip], source: Path | None = None, notes: tuple[str, ...] = ()):
        clips = list(clips)
        self.source = source
        """The file the manifest was read from, or the folder that was scanned."""
        self.notes = notes
        """Remarks for users: columns that were ignored."""
        self._paths = TextColumn(os.fspath(clip.path) for clip in clips)
        self._starts_s = np.array([clip.start_s for clip in clips], np.float64)
        self._durations_s = np.array([clip.duration_s or math.nan for clip in clips], np.float64)
        self._labels = CategoryColumn(clip.labels for clip in clips)
        self._splits = CategoryColumn(clip.split for clip in clips)
        self._groups = CategoryColumn(clip.group for clip in clips)

    def __len__(self) -> int:
        return len(self._paths)

    def element(self, index: int) -> Clip:
        """Return one clip."""
        duration_s = float(self._durations_s[index])
        return Clip(
            Path(self._paths[index]),
            float(self._starts_s[index]),
            None if math.isnan(duration_s) else duration_s,
            self._labels[index],
            self._splits[index],
            self._groups[index],
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order of appearance."""
        return tuple(split for split in self._splits.values if split is not None)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, sorted."""
        return tuple(sorted({label for labels in self._labels.values for label in labels}))

    @property
    def hours(self) -> float | None:
        """Sum of the durations; None if some are unknown."""
        total = float(self._durations_s.sum()) / 3600
        return None if math.isnan(total) else total

    def in_split(self, split: str | None) -> Manifest:
        """Return the clips of one split, or all clips for None.

        Raises:
            DataError: there is no such split.
        """
        if split is None:
            return self
        if split not in self.splits:
            known = ", ".join(self.splits) or "none: the manifest has no split column"
            raise DataError(f"{self._name}: no clip is in split {split!r} (there are: {known})")
        return Manifest((self[int(i)] for i in np.flatnonzero(self._splits.is_value(split))), self.source, self.notes)

    def check(self) -> None:
        """Check that no clip is listed twice, and that no group, and no file of several names, is in several splits.

        Raises:
            DataError: the check fails; the message names some of the clips and groups.
        """
        if problems := [*self._duplicates(), *self._divided_files(), *self._divided_groups()]:
            raise DataError(f"{self._name}: " + "; ".join(problems))

    def check_duplicates(self) -> None:
        """Check that no clip is listed twice, also through links.

        Raises:
            DataError: some are; the message names some of them.
        """
        if problems := self._duplicates():
            raise DataError(f"{self._name}: {problems[0]}")

    def divided_groups(self) -> dict[str, tuple[str, ...]]:
        """Return the groups that are in more than one split, each with its splits."""
        splits: dict[str, set[str]] = {}
        for group, split in zip(self._groups, self._splits, strict=True):
            if group is not None and split is not None:
                splits.setdefault(group, set()).add(split)
        return {group: tuple(sorted(names)) for group, names in splits.items() if len(names) > 1}

    @property
    def _name(self) -> str:
        return str(self.source or "the manifest")

    def _duplicates(self) -> list[str]:
        real_path = RealPaths()
        first_index: dict[tuple[str, float, float], int] = {}
        duplicates: list[str] = []
        for i, path in enumerate(self._paths):
            # NaN, the duration of a whole recording, does not equal itself: -1 stands for it.
            key = (real_path(path), float(self._starts_s[i]), float(np.nan_to_num(self._durations_s[i], nan=-1.0)))
            if (first := first_index.setdefault(key, i)) != i:
                names = path if path == self._paths[first] else f"{self._paths[first]} and {path}"
                labels = [", ".join(self._labels[k]) or "none" for k in (first, i)]
                splits = [self._splits[k] or "none" for k in (first, i)]
                conflict = f", labels {labels[0]} and {labels[1]}" if labels[0] != labels[1] else ""
                conflict += f", splits {splits[0]} and {splits[1]}" if splits[0] != splits[1] else ""
                duplicates.append(f"{names} (clips {first + 1} and {i + 1}{conflict})")
        if not duplicates:
            return []
        return [f"{len(duplicates)} clips are listed twice: {_some(duplicates)}. Remove one of each"]

    def _divided_files(self) -> list[str]:
        if len(self.splits) < 2:
            return []
        real_path = RealPaths()
        first_index: dict[str, int] = {}
        divided: dict[str, str] = {}
        for i, (path, split) in enumerate(zip(self._paths, self._splits, strict=True)):
            file = real_path(path)
            first = first_index.setdefault(file, i)
            if split != self._splits[first] and path != self._paths[first]:  # parts of one name are meant to be so
                divided.setdefault(file, f"{self._paths[first]} ({self._splits[first]}) and {path} ({split})")
        if not divided:
            return []
        return [
            f"{len(divided)} recordings are in more than one split, which would leak training data into a test: "
            f"{_some(list(divided.values()))}. Put each recording in one split"
        ]

    def _divided_groups(self) -> list[str]:
        divided = [f"{group} ({', '.join(names)})" for group, names in self.divided_groups().items()]
        if not divided:
            return []
        return [
            f"{len(divided)} groups are in more than one split, which would leak training data into a test: "
            f"{_some(divided)}. Move each to one split, or remove the group column if it does not matter"
        ]


def _some(entries: Sequence[str]) -> str:
    more = f" and {len(entries) - _NUM_EXAMPLES} more" if len(entries) > _NUM_EXAMPLES else ""
    return ", ".join(entries[:_NUM_EXAMPLES]) + more


def as_sources(data: Any) -> list[Any]:
    """Return one source of recordings, or a list or tuple of them, as a list.

    Raises:
        DataError: there is none.
    """
    sources = list(data) if isinstance(data, list | tuple) else [data]
    if not sources or None in [source if isinstance(source, str | None) else "" for source in sources]:
        raise DataError("no data named: expected a folder, a manifest, a folder of shards, hf:OWNER/NAME, or a list")
    return sources


def read_manifest(path: str | Path, *, encoding: str | None = None, check: bool = True) -> Manifest:
    """Read a manifest in any of the formats.

    Columns of CSV are separated by commas, semicolons or tabs. Unknown columns are ignored and named in
    `Manifest.notes`. In the original's JSON, labels are separated by commas, as in AudioSet.

    Args:
        path: a `.csv`, `.jsonl`, `.parquet` or `.json` file.
        encoding: encoding of CSV and JSON, such as `cp1252`; None means UTF-8 (or UTF-16 if the first bytes say so).
        check: refuse clips that are listed twice, groups that are divided between splits, and files that are in several
            splits under several names (links).

    Raises:
        DataError: the file is missing, has no `path` column or no row, a value is invalid or cannot be decoded (the
            message names its line), or `check` fails.
        MissingExtraError: the file is Parquet and pyarrow is not installed.
    """
    path = user_path(path)
    clips, ignored = read_clips(path, encoding)
    if not clips:
        raise DataError(f"{path}: lists no recording. Make one with `ssamba manifest FOLDER -o {path.name}`")
    notes = (f"columns ignored: {', '.join(ignored)}",) if ignored else ()
    manifest = Manifest(clips, path, notes)
    if check:
        manifest.check()
    return manifest


def write_manifest(clips: Iterable[Clip], path: str | Path) -> None:
    """Write a manifest atomically. Paths inside its folder become relative to it, so that both can be moved.

    Args:
        clips: the rows.
        path: `.csv`, `.jsonl` or `.parquet`.

    Raises:
        DataError: the suffix is another one, or the format cannot hold a value.
        MissingExtraError: the file is Parquet and pyarrow is not installed.
    """
    path = user_path(path)
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: expected a file name that ends in {', '.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clips(path, clips)


Lengths: TypeAlias = Iterable[tuple[Path, "float | Exception"]]
"""Recordings in order, each with its length in seconds or the error that prevents it."""


def scan_folder(
    source: str | Path | Iterable[str | Path],
    workers: int = 0,
    progress: OnProgress | None = None,
    *,
    labels: LabelsFrom | None = None,
    damaged: Damaged = "skip",
) -> tuple[list[Clip], list[Skipped]]:
    """List every recording below a folder (or of a list of files, folders and patterns) with its duration.

    Headers are compared with the files, which are decoded only if they are damaged or do not state a duration
    (`ssamba.audio.decode.measure`). Remarks about files that are used although their header is wrong or a part of them
    is missing come as warnings, or are collected (`ssamba.audio.decode.collect_remarks`).

    Args:
        source: where to look, as in `ssamba.audio.files.find_audio`.
        workers: processes that read headers; 0 reads in this process.
        progress: called after each file; returning False stops.
        labels: `folder`, or the number of a level, takes labels, and splits if there are any, from the names of the
            folders (see `ssamba.data.folders.read_places`); a file outside every class's folder is skipped.
        damaged: what to do with files of which a part is missing: `skip` them, or `keep` what comes before it.

    Returns:
        The clips in the order of their paths, and the files that cannot be read, with reasons.

    Raises:
        ValueError: there is no audio file, links put a file into the folders of two classes or splits, or it is not
            clear which level of folders names the classes.
        Interrupted: `progress` returned False.
    """
    files = find_audio(source)
    return list_clips(files, measure_files(files, workers, damaged), progress, labels=labels)


def list_clips(
    files: Sequence[Path],
    lengths: Lengths,
    progress: OnProgress | None = None,
    *,
    labels: LabelsFrom | None = None,
) -> tuple[list[Clip], list[Skipped]]:
    """Return the clips of files whose lengths are known, and the files that cannot be used; see `scan_folder`."""
    reporter, audio_s = ProgressReporter(progress, "reading headers", len(files)), 0.0
    clips: list[Clip] = []
    skipped = list(files.skipped) if isinstance(files, FoundAudio) else []
    places = iter([] if labels is None else read_places(files, labels))
    for done, (path, duration_s) in enumerate(lengths, start=1):
        place = next(places, Place(None))
        if not isinstance(duration_s, float):
            skipped.append(Skipped(path_text(path), str(duration_s)))
        elif labels is not None and place.label is None:
            reason = f"{path}: is outside every class's folder: move it into one, or make a manifest"
            skipped.append(Skipped(path_text(path), reason))
        else:
            clips.append(Clip(path, 0.0, duration_s, () if place.label is None else (place.label,), place.split))
            audio_s += duration_s
        if not reporter.update(done, audio_s=audio_s, skipped=len(skipped)):
            raise Interrupted("stopped while headers were read")
    return clips, skipped


def with_durations(manifest: Manifest, workers: int = 0, damaged: Damaged = "skip") -> tuple[Manifest, list[Skipped]]:
    """Fill in missing durations by measuring the recordings; arguments and remarks as `scan_folder`.

    Returns:
        The manifest with the duration of every clip, and the clips that were left out because they have none.
    """
    unknown = dict.fromkeys(clip.path for clip in manifest if clip.duration_s is None)
    if not unknown:
        return manifest, []
    durations = dict(measure_files(unknown, workers, damaged))
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    for clip in manifest:
        if clip.duration_s is not None:
            clips.append(clip)
            continue
        length_s = durations[clip.path]
        if not isinstance(length_s, float):
            skipped.append(Skipped(path_text(clip.path), str(length_s)))
        elif length_s <= clip.start_s:
            reason = f"{clip.path}: start_s={clip.start_s:g} lies past the end of the recording ({length_s:.3f} s)"
            skipped.append(Skipped(path_text(clip.path), reason))
        else:
            clips.append(replace(clip, duration_s=length_s - clip.start_s))
    return Manifest(clips, manifest.source, manifest.notes), skipped
