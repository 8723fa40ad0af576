"""A suite of labelled tasks on disk, and the rounds in which each is scored.

A suite is a folder with `TASK.csv` (columns clip, label, split, group) and the recordings beside it, in `TASK.tar` or
unpacked, for each task. `clip` is a path inside the archive (or from the folder on), `group` is what must not be torn
apart when a part is held out (a voice, a game, a drum kit).

Rounds: splits `train` and `test` are one round; tasks in `SWAPPED` (the two sides are two recording sources) are also
scored the other way round. Any other split names are folds: each is scored once, after training on the others.
Inner rounds never touch a test clip: they divide the training part of the first round by its groups.

Shapes: N clips, S samples.
"""

from __future__ import annotations

import csv
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from ssamba.audio.decode import decode
from ssamba.errors import SuiteError
from ssamba.evaluation.caching import Array, cached_arrays, digest_of_files

SUITE_VARIABLE = "SSAMBA_SUITE"
OPEN_SUITE = ("sfx14", "kws35", "instr_family", "speaker", "zh_final", "drum8")
"""The tasks of the open suite, in the order of its tables."""
SWAPPED = frozenset({"instr_family", "zh_final"})
"""Tasks that are scored in both directions."""
INNER_FOLDS = 3
_COLUMNS = ("clip", "label", "split", "group")


@dataclass(frozen=True)
class Round:
    """One training and one scoring: indices of clips."""

    train: Array
    """(clips to train on,), ascending."""
    test: Array
    """(clips to score,), ascending."""


@dataclass(frozen=True)
class Task:
    """A labelled task. The arrays are (N,), of strings."""

    name: str
    """What it is called: the stem of its table."""
    table: Path
    """The table it was read from."""
    audio: Path
    """A tar archive, or the folder from which `clips` are paths."""
    clips: Array
    """Paths of the recordings."""
    labels: Array
    """What they hold."""
    splits: Array
    """`train`, `test` or the name of a fold."""
    groups: Array
    """What they belong to."""

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the table and the recordings."""
        if self.audio.is_file():
            return digest_of_files(self.table, self.audio)
        return digest_of_files(self.table, *(self.audio / clip for clip in self.clips))

    @property
    def num_classes(self) -> int:
        """Different labels."""
        return len(np.unique(self.labels))

    def rounds(self) -> list[Round]:
        """The rounds in which the task is scored."""
        train = self.splits == "train"
        if "test" in self.splits:
            ways = [(train, ~train), (~train, train)] if self.name in SWAPPED else [(train, ~train)]
        else:
            ways = [(self.splits != fold, self.splits == fold) for fold in np.unique(self.splits)]
        return [Round(np.flatnonzero(a), np.flatnonzero(b)) for a, b in ways]

    def inner_rounds(self) -> list[Round]:
        """The training part of the first round, divided by its groups into at most three folds, each scored once.

        Where there is only one group its clips are divided, every class evenly. No test clip is in any of them.
        """
        inside = self.rounds()[0].train
        groups = np.unique(self.groups[inside], return_inverse=True)[1]
        if groups.max() > 0:
            fold = _balanced_folds(groups, min(INNER_FOLDS, groups.max() + 1))
        else:
            fold = _even_folds(self.labels[inside])
        return [Round(inside[fold != k], inside[fold == k]) for k in range(fold.max() + 1)]


def read_suite(folder: str | Path, names: Sequence[str] | None = None) -> list[Task]:
    """The tasks of a suite, those of the open suite first and in its order, others by name.

    Args:
        folder: holds TASK.csv and the recordings.
        names: tasks wanted; None is all.

    Raises:
        SuiteError: there is no such folder or task, or a table cannot be used; the message says why.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise SuiteError(f"{folder} is not a folder: expected TASK.csv files with TASK.tar beside each")
    found = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if not found:
        raise SuiteError(f"{folder} holds no TASK.csv: expected tables with the columns {', '.join(_COLUMNS)}")
    unknown = [name for name in names or () if name not in found]
    if unknown:
        raise SuiteError(f"{folder} has no task {unknown[0]!r}: it has {', '.join(found)}")
    order = {name: rank for rank, name in enumerate(OPEN_SUITE)}
    wanted = sorted(set(names) if names else found, key=lambda name: (order.get(name, len(order)), name))
    return [_read_task(found[name]) for name in wanted]


def _read_task(table: Path) -> Task:
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise SuiteError(f"{table} has no column {missing[0]!r}: expected {', '.join(_COLUMNS)}")
        rows = list(reader)
    clips, labels, splits, groups = (np.array([row[name] for row in rows], dtype=str) for name in _COLUMNS)
    archive = table.with_suffix(".tar")
    task = Task(table.stem, table, archive if archive.exists() else table.parent, clips, labels, splits, groups)
    if len(np.unique(clips)) < len(clips):
        raise SuiteError(f"{table} names a clip twice: give each clip one row")
    if task.num_classes < 2:
        raise SuiteError(f"{table} has {task.num_classes} label(s) in {len(rows)} rows: expected at least 2")
    names = set(splits)
    if ("test" in names and names != {"train", "test"}) or len(names) < 2:
        raise SuiteError(
            f"{table} has the splits {', '.join(sorted(names))}: expected train and test, or at least two folds"
        )
    return task


class Waves(Sequence[Array]):
    """Decoded clips, kept as 16-bit samples relative to each clip's peak; items are float32 (S,)."""

    def __init__(
        self,
        samples: Array,
        starts: Array,
        ends: Array,
        peaks: Array,
        sample_rate_hz: int,
        level: float | None = None,
    ):
        """Args: int16 samples of all clips; where each starts and ends; its peak, (N,); the rate; see `chosen`."""
        self._samples, self._starts, self._ends, self._peaks = samples, starts, ends, peaks
        self.sample_rate_hz, self.level = sample_rate_hz, level

    @property
    def lengths(self) -> Array:
        """Samples of each clip, (N,)."""
        lengths: Array = self._ends - self._starts
        return lengths

    def chosen(self, indices: Array, level: float | None) -> Waves:
        """Some of the clips, each scaled so that its largest sample is `level`; None leaves them as they were."""
        starts, ends, peaks = self._starts[indices], self._ends[indices], self._peaks[indices]
        return Waves(self._samples, starts, ends, peaks, self.sample_rate_hz, level)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...

    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        samples: Array = self._samples[self._starts[index] : self._ends[index]].astype(np.float32)
        peak = self._peaks[index]
        # Silence stays silence at any level.
        return samples * np.float32((peak if self.level is None or peak == 0 else self.level) / 32767)


def read_waves(
    task: Task,
    sample_rate_hz: int = 16_000,
    cache: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Waves:
    """Decode the clips of a task, or take them from `cache` (a folder).

    Raises:
        AudioDecodeError: a clip cannot be read.
        SuiteError: a clip is missing.
    """
    path = cache / "waves" / f"{task.name}-{task.digest}-{sample_rate_hz}.safetensors" if cache else None

    def compute() -> dict[str, Array]:
        parts: list[Array] = []
        peaks = np.zeros(len(task.clips), dtype=np.float32)
        for index, file in enumerate(_files(task)):
            samples = decode(file, sample_rate_hz=sample_rate_hz)
            peaks[index] = np.abs(samples).max()
            scale = 32767 / peaks[index] if peaks[index] else 0.0
            parts.append(np.rint(samples * scale).astype(np.int16))
            if on_progress is not None:
                on_progress(index + 1)
        return {"samples": np.concatenate(parts), "ends": np.cumsum([len(part) for part in parts]), "peaks": peaks}

    arrays = cached_arrays(path, compute)
    ends = arrays["ends"]
    return Waves(arrays["samples"], np.concatenate(([0], ends[:-1])), ends, arrays["peaks"], sample_rate_hz)


def _files(task: Task) -> Iterator[Path]:
    """The clips as files, in the order of the table; those of an archive for as long as they are looked at."""
    if not task.audio.is_file():
        for clip in task.clips:
            if not (task.audio / clip).is_file():
                raise SuiteError(f"{task.table} names {clip}, but neither {task.name}.tar nor that file is beside it")
            yield task.audio / clip
        return
    with tarfile.open(task.audio) as archive, tempfile.TemporaryDirectory(prefix="ssamba-") as folder:
        members = {member.name: member for member in archive if member.isfile()}
        for clip in task.clips:
            if clip not in members:
                raise SuiteError(f"{task.table} names {clip}, which is not in {task.audio.name}")
            content: Any = archive.extractfile(members[clip])
            target = Path(folder) / f"clip{Path(clip).suffix}"
            target.write_bytes(content.read())
            yield target


def _balanced_folds(groups: Array, folds: int) -> Array:
    """A fold for each clip: whole groups, the largest first, each to the fold that holds the fewest clips."""
    sizes = np.bincount(groups)
    of_group, load = np.zeros(len(sizes), dtype=int), np.zeros(folds, dtype=int)
    for group in np.argsort(-sizes, kind="stable"):
        of_group[group] = load.argmin()
        load[of_group[group]] += sizes[group]
    return of_group[groups]


def _even_folds(labels: Array) -> Array:
    """A fold for each clip, the clips of every class dealt out in turn."""
    fold = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        fold[own] = np.arange(len(own)) % INNER_FOLDS
    return fold
