"""A manifest: which recordings, or parts of them, make a corpus, with labels, split and group of each.

    clips, skipped = scan_folder("recordings/", workers=4)
    write_manifest(clips, "recordings/manifest.parquet")
    manifest = read_manifest("recordings/manifest.parquet")

| column | meaning | in CSV |
|---|---|---|
| `path` | the recording; relative ones start at the manifest's folder | needed |
| `start_s` (`start`) | where the clip begins in it, seconds | empty: 0 |
| `duration_s` (`duration`) | how long the clip is, seconds | empty: to the end |
| `labels` (`label`) | names of its classes | separated by `;` |
| `split` | `train`, `valid`, `test`, `fold1`, ... | empty: none |
| `group` | what must not be divided between splits: a speaker, a recording, a site | empty: none |

Formats: `.csv`, `.jsonl`, `.parquet` (the `store` extra) and the original's `.json` (`formats.py` reads and writes them).
No torch here: the workers that read headers are light processes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

import numpy as np

from ssamba.audio.decode import AudioBytes, probe, stream
from ssamba.audio.files import Skipped, find_audio, path_text
from ssamba.data.formats import FORMATS, Row, read_rows, write_rows
from ssamba.errors import DataError, WorkerDiedError
from ssamba.worker_pool import map_in_processes

H = TypeVar("H", bound=Hashable)


class TextColumn(Sequence[str]):
    """An immutable sequence of strings (also of such that UTF-8 cannot hold, as file names may be)."""

    def __init__(self, values: Iterable[str]):
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a column of {len(self)}")
        index %= len(self)
        return self.raw(index).decode("utf-8", "surrogateescape")

    def raw(self, index: int) -> bytes:
        """The string's bytes."""
        return self._bytes[self._ends[index] : self._ends[index + 1]].tobytes()


class CategoryColumn(Sequence[H], Generic[H]):
    """An immutable sequence of values few of which are different."""

    def __init__(self, values: Iterable[H]):
        numbers: dict[H, int] = {}
        self.codes: np.ndarray[Any, np.dtype[np.int32]] = np.fromiter(
            (numbers.setdefault(value, len(numbers)) for value in values), np.int32
        )
        """Which of `values` each is (n,)."""
        self.values: tuple[H, ...] = tuple(numbers)
        """The different ones, in order of appearance."""

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> H: ...
    @overload
    def __getitem__(self, index: slice) -> list[H]: ...
    def __getitem__(self, index: int | slice) -> H | list[H]:
        if isinstance(index, slice):
            return [self.values[code] for code in self.codes[index]]
        value: H = self.values[int(self.codes[index])]
        return value

    def is_value(self, value: H) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Where the column holds `value` (n,)."""
        if value not in self.values:
            return np.zeros(len(self), dtype=bool)
        return np.asarray(self.codes == self.values.index(value))


_EXAMPLES = 5  # named in a message; the others are counted


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or a part of one.

    Raises:
        DataError: a start before 0, or a duration that is not positive.
    """

    path: Path
    start_s: float = 0.0
    duration_s: float | None = None
    """None: to the end of the recording."""
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise DataError(f"{self.path}: start_s must be a finite number of seconds, at least 0; got {self.start_s}")
        if self.duration_s is not None and not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise DataError(f"{self.path}: duration_s must be finite and above 0; got {self.duration_s}")


class Manifest(Sequence[Clip]):
    """Clips in the order of their file, and where they came from."""

    def __init__(self, clips: Iterable[Clip], source: Path | None = None, notes: tuple[str, ...] = ()):
        clips = list(clips)
        self.source = source
        """The file it was read from, if any."""
        self.notes = notes
        """What a reader should know: columns that were ignored."""
        self._paths = TextColumn(os.fspath(clip.path) for clip in clips)
        self._starts_s = np.array([clip.start_s for clip in clips], np.float64)
        self._durations_s = np.array([clip.duration_s or math.nan for clip in clips], np.float64)
        self._labels = CategoryColumn(clip.labels for clip in clips)
        self._splits = CategoryColumn(clip.split for clip in clips)
        self._groups = CategoryColumn(clip.group for clip in clips)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> list[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
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
        """Sum of the durations; None when some are not known."""
        total = float(self._durations_s.sum()) / 3600
        return None if math.isnan(total) else total

    def in_split(self, split: str | None) -> Manifest:
        """The clips of one split; all of them for None.

        Raises:
            DataError: there is no such split.
        """
        if split is None:
            return self
        if split not in self.splits:
            known = ", ".join(self.splits) or "none: the manifest has no split column"
            raise DataError(f"{self._name}: no clip is of split {split!r} (there are: {known})")
        return Manifest((self[int(i)] for i in np.flatnonzero(self._splits.is_value(split))), self.source, self.notes)

    def check(self) -> None:
        """Look for clips that are listed twice and for groups that are divided between splits.

        Raises:
            DataError: there are such; the message names some of both.
        """
        problems = [*self._duplicates(), *self._divided_groups()]
        if problems:
            raise DataError(f"{self._name}: " + "; ".join(problems))

    def check_duplicates(self) -> None:
        """Look for clips that are listed twice.

        Raises:
            DataError: there are such; the message names some.
        """
        if problems := self._duplicates():
            raise DataError(f"{self._name}: {problems[0]}")

    def divided_groups(self) -> dict[str, tuple[str, ...]]:
        """The groups that are in more than one split, and the names of their splits."""
        splits: dict[str, set[str]] = {}
        for group, split in zip(self._groups, self._splits, strict=True):
            if group is not None and split is not None:
                splits.setdefault(group, set()).add(split)
        return {group: tuple(sorted(names)) for group, names in splits.items() if len(names) > 1}

    @property
    def _name(self) -> str:
        return str(self.source or "the manifest")

    def _duplicates(self) -> list[str]:
        seen: dict[tuple[str, float, float], int] = {}
        twice: list[str] = []
        for i, path in enumerate(self._paths):
            # A whole recording (no duration) is not its own part, so NaN stands for itself here.
            key = (path, float(self._starts_s[i]), float(np.nan_to_num(self._durations_s[i], nan=-1.0)))
            if (first := seen.setdefault(key, i)) != i:
                twice.append(f"{path} (clips {first + 1} and {i + 1})")
        if not twice:
            return []
        return [f"{len(twice)} clips are listed twice: {_some(twice)}. Remove one of each"]

    def _divided_groups(self) -> list[str]:
        divided = [f"{group} ({', '.join(names)})" for group, names in self.divided_groups().items()]
        if not divided:
            return []
        return [
            f"{len(divided)} groups are in more than one split, so that a test would not be one: {_some(divided)}. "
            "Move each to one split, or leave the group column out where it does not matter"
        ]


def _some(entries: Sequence[str]) -> str:
    more = f" and {len(entries) - _EXAMPLES} more" if len(entries) > _EXAMPLES else ""
    return ", ".join(entries[:_EXAMPLES]) + more


def read_manifest(path: str | Path, *, check: bool = True) -> Manifest:
    """Read a manifest of any of the formats (see the head of this file).

    Columns that are not known are ignored, and named in `Manifest.notes`. In the original's JSON, labels are
    separated by commas, as AudioSet's are.

    Args:
        path: a `.csv`, `.jsonl`, `.parquet` or `.json` file.
        check: refuse clips that are listed twice, and groups that are divided between splits.

    Raises:
        DataError: no such file, no `path` column, a value that does not fit (with its line), or what `check` finds.
        MissingExtraError: Parquet without pyarrow.
    """
    path = Path(path).expanduser()
    rows, ignored = read_rows(path)
    folder = path.parent
    clips = []
    for row in rows:
        try:
            # An absolute path stands as it is.
            clips.append(Clip(folder / row.path, row.start_s, row.duration_s, row.labels, row.split, row.group))
        except DataError as error:
            raise DataError(f"{path}, {row.where}: {error}") from None
    if not clips:
        raise DataError(f"{path}: lists no recording. Make one with `ssamba manifest FOLDER -o {path.name}`")
    notes = (f"columns ignored: {', '.join(ignored)}",) if ignored else ()
    manifest = Manifest(clips, path, notes)
    if check:
        manifest.check()
    return manifest


def write_manifest(clips: Iterable[Clip], path: str | Path) -> None:
    """Write a manifest, whole or not at all; paths inside its folder become relative to it, so both can be moved.

    Args:
        clips: what to list.
        path: `.csv`, `.jsonl` or `.parquet`.

    Raises:
        DataError: another suffix, or a value that the format cannot hold.
        MissingExtraError: Parquet without pyarrow.
    """
    path = Path(path).expanduser()
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: expected a file name that ends in {', '.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.absolute()
    rows = (
        Row(relative_path(clip.path, folder), clip.start_s, clip.duration_s, clip.labels, clip.split, clip.group)
        for clip in clips
    )
    write_rows(path, rows)


def relative_path(path: Path, folder: Path) -> str:
    """A path as a manifest in `folder` (absolute) writes it: below the folder, else whole."""
    path = Path(os.path.normpath(path.expanduser().absolute()))
    return os.fspath(path.relative_to(folder)) if path.is_relative_to(folder) else os.fspath(path)


@dataclass
class ScanProgress:
    """How far a scan is; the same object is handed to `on_progress` after each file."""

    total: int
    done: int = 0
    skipped: int = 0
    audio_s: float = 0.0


def scan_folder(
    source: str | Path | Iterable[str | Path],
    workers: int = 0,
    on_progress: Callable[[ScanProgress], None] | None = None,
    *,
    labels: Literal["folder"] | None = None,
) -> tuple[list[Clip], list[Skipped]]:
    """List every recording below a folder (or of a list of files, folders and patterns), with its duration.

    Only headers are read, but for the few formats that do not state a duration.

    Args:
        source: where to look, as `ssamba.audio.files.find_audio` takes it.
        workers: processes that read headers; 0 reads in this one.
        on_progress: called after each file.
        labels: `folder` takes labels, and splits where there are any, from the folders that files are in (`folders.py`);
            a file that is in no class's folder is skipped.

    Returns:
        The clips in order of their paths, and what cannot be read, with the reason: neither is the other's end.

    Raises:
        ValueError: there is no audio file.
    """
    files = find_audio([source] if isinstance(source, str | Path) else source)
    progress = ScanProgress(len(files))
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    places = iter(read_places(files) if labels == "folder" else [])
    for path, found in map_in_processes(header_duration_s, files, workers, ahead=256):
        place = next(places, None)
        if isinstance(found, float) and place is not None and place.label is None:
            skipped.append(Skipped(path_text(path), "is in no class's folder: move it into one, or make a manifest"))
            progress.skipped += 1
        elif isinstance(found, float):
            own = () if place is None or place.label is None else (place.label,)
            clips.append(Clip(path, 0.0, found, own, None if place is None else place.split))
            progress.audio_s += found
        else:
            skipped.append(Skipped(path_text(path), _reason(path, found)))
            progress.skipped += 1
        progress.done += 1
        if on_progress is not None:
            on_progress(progress)
    return clips, skipped


def with_durations(manifest: Manifest, workers: int = 0) -> tuple[Manifest, list[Skipped]]:
    """The manifest with the durations that it lacks, from the recordings' headers, and the clips that have none."""
    unknown = dict.fromkeys(clip.path for clip in manifest if clip.duration_s is None)
    if not unknown:
        return manifest, []
    found = dict(map_in_processes(header_duration_s, unknown, workers, ahead=256))
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    for clip in manifest:
        if clip.duration_s is not None:
            clips.append(clip)
            continue
        length = found[clip.path]
        if not isinstance(length, float):
            skipped.append(Skipped(path_text(clip.path), _reason(clip.path, length)))
        elif length <= clip.start_s:
            reason = f"{clip.path}: start_s={clip.start_s:g} lies past the end of the recording ({length:.3f} s)"
            skipped.append(Skipped(path_text(clip.path), reason))
        else:
            duration_s = length - clip.start_s
            clips.append(Clip(clip.path, clip.start_s, duration_s, clip.labels, clip.split, clip.group))
    return Manifest(clips, manifest.source, manifest.notes), skipped


def header_duration_s(path: Path | AudioBytes) -> float | Exception:
    """The length of a recording (or of its bytes in memory) in seconds, or why it cannot be used."""
    try:
        info = probe(path)
        if info.fault:
            return DataError(f"{path}: truncated or damaged ({info.fault}). Get a whole copy, or leave it out")
        if info.duration_s is not None:
            return info.duration_s if info.duration_s > 0 else DataError(f"{path}: holds no audio. Leave it out")
        block_rate_hz = info.sample_rate_hz
        return sum(map(len, stream(path, sample_rate_hz=block_rate_hz))) / block_rate_hz
    except (ValueError, OSError) as error:
        return error
    except Exception as error:  # whatever a damaged file provokes, it must not cost the other files
        return DataError(f"{path}: cannot be read ({type(error).__name__}: {error}). Re-encode or leave it out")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, WorkerDiedError):
        return f"{path}: the decoder crashed on this file, so it is damaged: re-encode or leave it out"
    return str(error)


_SPLITS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_FOLD = re.compile(r"fold[-_ ]?\d+", re.IGNORECASE)


class Place(NamedTuple):
    """What the folders that a recording lies in say of it."""

    label: str | None
    """None where it lies in no class's folder."""
    split: str | None = None


def read_places(files: Sequence[Path]) -> list[Place]:
    """What the folders of each of the files say; files that all lie in one folder have its name for a label."""
    folders = [file.absolute().parent for file in files]
    if len(set(folders)) <= 1:
        return [Place(folder.name) for folder in folders]
    common = os.path.commonpath(folders)
    below = [folder.relative_to(common).parts for folder in folders]
    first = {parts[0].lower() for parts in below if parts}
    if first <= _SPLITS.keys() and "train" in {_SPLITS[name] for name in first}:
        return [_place(parts[1:], _SPLITS[parts[0].lower()] if parts else None) for parts in below]
    if all(_FOLD.fullmatch(name) for name in first):
        return [_place(parts[1:], parts[0] if parts else None) for parts in below]
    return [_place(parts) for parts in below]


def _place(parts: Sequence[str], split: str | None = None) -> Place:
    return Place(parts[0] if parts else None, split)
