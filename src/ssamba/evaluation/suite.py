"""A suite of labeled tasks on disk, and their clips.

A suite is a folder with `TASK.csv` (columns clip, label, split, group) and the recordings beside it, in `TASK.tar` or
unpacked, for each task. `clip` is a path inside the archive (or from the folder on), `group` is what must not be torn
apart (a voice, a game, a drum kit); it may be empty.

A group on both sides of a split is refused: a score on such a test would not be one. `task.py` says in which rounds a
task is scored. Folders of the HEAR benchmark (`hear.py`) are suites, too.

Shapes: N clips, S samples.
"""

from __future__ import annotations

import csv
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from ssamba.audio.decode import decode
from ssamba.data.formats import LABEL_SEPARATOR
from ssamba.errors import SuiteError
from ssamba.evaluation.caching import Array, cached_arrays
from ssamba.evaluation.hear import find_hear, read_hear_task, unscored
from ssamba.evaluation.task import Task
from ssamba.events import Event
from ssamba.hashing import hash_bytes
from ssamba.splits import groups_in_several_splits

SUITE_VARIABLE = "SSAMBA_SUITE"
OPEN_SUITE = ("sfx14", "kws35", "instr_family", "speaker", "zh_final", "drum8")
"""The tasks of the open suite, in the order of its tables."""
_COLUMNS = ("clip", "label", "split", "group")


def read_suite(
    folder: str | Path, names: Sequence[str] | None = None, on_left_out: Callable[[str, str], None] | None = None
) -> list[Task]:
    """The tasks of a suite, those of the open suite first and in its order, others by name.

    Args:
        folder: holds TASK.csv and the recordings; or is a task of HEAR, or holds some.
        names: tasks wanted; None is all.
        on_left_out: hears of each task of HEAR that cannot be scored: its name, and why. One in `names` is an error.

    Raises:
        SuiteError: there is no such folder or task, or a table cannot be used; the message says why.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise SuiteError(
            f"{folder} is not a folder: expected TASK.csv files with TASK.tar beside each, or tasks of HEAR"
        )
    hear = find_hear(folder)
    # A task of HEAR holds a table, too: that of its labels.
    found = hear or {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if not found:
        raise SuiteError(
            f"{folder} holds no TASK.csv: expected tables with the columns {', '.join(_COLUMNS)}, or tasks of HEAR with "
            "their task_metadata.json"
        )
    unknown = [name for name in names or () if name not in found]
    if unknown:
        raise SuiteError(f"{folder} has no task {unknown[0]!r}: it has {', '.join(found)}")
    order = {name: rank for rank, name in enumerate(OPEN_SUITE)}
    wanted = sorted(set(names) if names else found, key=lambda name: (order.get(name, len(order)), name))
    if not hear:
        return [_read_task(found[name]) for name in wanted]
    reasons = {name: reason for name in wanted if (reason := unscored(found[name]))}
    if reasons and (names or len(reasons) == len(wanted)):
        name, reason = next(iter(reasons.items()))
        raise SuiteError(f"{found[name]} cannot be scored: {reason}")
    for name, reason in reasons.items():
        if on_left_out is not None:
            on_left_out(name, reason)
    return [read_hear_task(found[name]) for name in wanted if name not in reasons]


def _read_task(table: Path) -> Task:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise SuiteError(f"{table} has no column {missing[0]!r}: expected {', '.join(_COLUMNS)}")
            rows = list(reader)
            short = [k for k, row in enumerate(rows, 2) if None in row.values() or None in row]
            if short:
                raise SuiteError(
                    f"{table}, row {short[0]}: has another number of values than the first row has columns"
                )
    except (UnicodeDecodeError, csv.Error) as error:
        raise SuiteError(f"{table} is no table ({error}): expected CSV in UTF-8, {', '.join(_COLUMNS)}") from None
    archive = table.with_suffix(".tar")
    audio = archive if archive.exists() else table.parent
    task = _labeled(table, audio, rows)
    count, fewest = (task.num_classes, 2) if task.kind == "single" else (len(task.classes), 1)
    if count < fewest:
        raise SuiteError(f"{table} has {count} label(s) in {len(rows)} rows: expected at least {fewest}")
    names = set(task.splits)
    if ("test" in names and names != {"train", "test"}) or len(names) < 2:
        raise SuiteError(
            f"{table} has the splits {', '.join(sorted(names))}: expected train and test, or at least two folds"
        )
    _check_groups(task)
    return _with_groups_apart(task)


def _labeled(table: Path, audio: Path, rows: Sequence[dict[str, str]]) -> Task:
    """The rows of a table as a task: of clips with one label, with several, or of stretches."""
    stretches = [name for name in ("start_s", "start", "duration_s", "duration") if rows and name in rows[0]]
    if stretches:
        return _stretches(table, audio, rows)
    clips, labels, splits, groups = (np.array([row[name] for row in rows], dtype=str) for name in _COLUMNS)
    if len(np.unique(clips)) < len(clips):
        raise SuiteError(f"{table} names a clip twice: give each clip one row")
    several = [split_labels(label) for label in labels]
    if all(len(own) == 1 for own in several):
        return Task(table.stem, table, audio, clips, labels, splits, groups)
    classes = tuple(sorted({label for own in several for label in own}))
    targets = np.array([[label in own for label in classes] for own in several], dtype=np.int64)
    return Task(
        table.stem, table, audio, clips, labels, splits, groups,
        kind="multi", figures=("mAP", "mAUC", "d_prime"), classes=classes, targets=targets,
    )  # fmt: skip


def _stretches(table: Path, audio: Path, rows: Sequence[dict[str, str]]) -> Task:
    """A task of seconds, from rows that are stretches of recordings."""

    def seconds(row: dict[str, str], name: str, empty: float) -> float:
        text = row.get(f"{name}_s") or row.get(name) or ""
        try:
            value = float(text) if text else empty
        except ValueError:
            value = float("nan")
        if not value >= 0:
            raise SuiteError(f"{table}: {row['clip']} has {name} {text!r}: expected seconds, at least 0, or nothing")
        return value

    events: dict[str, list[Event]] = {}
    sides: dict[str, tuple[str, str]] = {}
    for row in rows:
        clip, side = row["clip"], (row["split"], row["group"])
        if sides.setdefault(clip, side) != side:
            raise SuiteError(
                f"{table}: the stretches of {clip} are in several splits or groups: put a recording in one"
            )
        start_s = seconds(row, "start", 0.0)
        end_s = start_s + seconds(row, "duration", float("inf"))
        labels = split_labels(row["label"]) or ("",)
        events.setdefault(clip, []).extend(Event(label, start_s, end_s) for label in labels)
    own = [tuple(events[clip]) for clip in sides]
    return Task(
        table.stem,
        table,
        audio,
        np.array(list(sides), dtype=str),
        np.array([LABEL_SEPARATOR.join(sorted({event.label for event in found} - {""})) for found in own], dtype=str),
        np.array([split for split, _ in sides.values()], dtype=str),
        np.array([group for _, group in sides.values()], dtype=str),
        kind="second",
        figures=("segment_f1", "error_rate", "mAP"),
        classes=tuple(sorted({event.label for found in own for event in found} - {""})),
        events=tuple(own),
    )


def split_labels(text: str) -> tuple[str, ...]:
    """The labels of a cell, as manifests write them: with `;` between them."""
    return tuple(dict.fromkeys(part for label in text.split(LABEL_SEPARATOR) if (part := label.strip())))


def _check_groups(task: Task) -> None:
    """Refuse a group that is in several splits; clips without one stand for themselves."""
    found = groups_in_several_splits(task.groups, task.splits)
    torn = [f"{name} ({', '.join(splits)})" for name, splits in found.items()]
    if torn:
        raise SuiteError(
            f"{task.table}: {len(torn)} groups are in more than one split, so that scores would be flattered: "
            f"{', '.join(torn[:5])}. Move each to one split, or leave its group empty where it does not matter"
        )


def _with_groups_apart(task: Task) -> Task:
    """The task with a group of its own for each clip that has none, where others have one (as validation takes groups)."""
    alone = task.groups == ""
    if not alone.any() or alone.all():
        return task
    return replace(task, groups=np.where(alone, np.char.add("clip ", task.clips), task.groups))


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

    def digests(self) -> Array:
        """A number for each clip, (N,) int64, the same for clips with the same samples at the same peak."""
        return np.array([_digest(self._samples[a:b]) for a, b in zip(self._starts, self._ends, strict=True)], np.int64)

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
        scaled: Array = samples * np.float32((peak if self.level is None or peak == 0 else self.level) / 32767)
        return scaled


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


def recording_digests(task: Task, waves: Callable[[], Waves], cache: Path | None = None) -> Array:
    """A number for each clip of a task, (N,) int64, that tells recordings apart whatever they are called.

    Args:
        task: the task.
        waves: gives its decoded clips, when they are needed.
        cache: folder; None keeps nothing.
    """
    path = cache / "waves" / f"{task.name}-{task.digest}-digests.safetensors" if cache else None
    return cached_arrays(path, lambda: {"digests": waves().digests()})["digests"]


def _digest(samples: Array) -> int:
    return int.from_bytes(hash_bytes(samples.tobytes()), "little", signed=True)


def _files(task: Task) -> Iterator[Path]:
    """The clips as files, in the order of the table; those of an archive for as long as they are looked at."""
    if not task.audio.is_file():
        for clip in task.clips:
            if not (task.audio / clip).is_file():
                raise SuiteError(f"{task.table} names {clip}, but neither {task.name}.tar nor that file is beside it")
            yield task.audio / clip
        return
    try:
        opened = tarfile.open(task.audio)  # noqa: SIM115 - the next statement closes it
    except tarfile.TarError:
        raise SuiteError(f"{task.audio} is damaged or no tar: pack it again, or unpack it beside the table") from None
    with opened as archive, tempfile.TemporaryDirectory(prefix="ssamba-") as folder:
        members = {member.name: member for member in archive if member.isfile()}
        for clip in task.clips:
            if clip not in members:
                raise SuiteError(f"{task.table} names {clip}, which is not in {task.audio.name}")
            content: Any = archive.extractfile(members[clip])
            target = Path(folder) / f"clip{Path(clip).suffix}"
            target.write_bytes(content.read())
            yield target
