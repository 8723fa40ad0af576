"""Read a suite of labeled tasks from a folder.

    TASK.csv       columns clip, label, split, group; one for each task
    TASK.tar       the recordings, unless they lie unpacked in the folder
    suite.json     optional: {"tasks": {"TASK": {"both_directions": true}, ...}}, the order of the tasks, and which are
                   scored in both directions

`clip` is a path inside the archive (or relative to the folder). `group` names what must not be divided between splits
(a voice, a game, a drum kit) and may be empty or missing. A group in several splits is an error, since it would inflate
scores. Manifests (`ssamba.data.manifest`), whose columns are `path` and `labels`, are tables of tasks, too.
Columns are separated by commas, semicolons or tabs (`ssamba.text_files`).
Folders of the HEAR benchmark (`hear.py`) are suites, too.

Shapes: N clips.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ssamba.config import Config
from ssamba.data.formats import LABEL_SEPARATOR
from ssamba.errors import DataError, SuiteError
from ssamba.evaluation.hear import find_hear, read_hear_task, unscored
from ssamba.evaluation.task import Task
from ssamba.events import Event
from ssamba.files import RealPaths, user_path
from ssamba.splits import groups_in_several_splits
from ssamba.text_files import CsvTable, ListedPaths, read_csv, read_text

METADATA_FILE = "suite.json"
_COLUMNS = ("clip", "label", "split", "group")
_IN_MANIFESTS = {"path": "clip", "labels": "label"}
_TIMES = ("start_s", "start", "duration_s", "duration")

Row: TypeAlias = "tuple[int, dict[str, str]]"
"""A row of a table: its line, and its values by column."""


class TaskMetadata(Config):
    """Facts about a task that its table does not say."""

    both_directions: bool = False
    """Also train on `test` and score `train`; the task's score is the mean of both."""


class SuiteMetadata(Config):
    """Content of `suite.json`."""

    tasks: dict[str, TaskMetadata]
    """By name, in the order of the suite's results."""


def open_suite_metadata() -> SuiteMetadata:
    """Return the metadata of the open suite (`benchmarks/open_suite` builds it)."""
    content = json.loads(files("ssamba.evaluation").joinpath("open_suite.json").read_text(encoding="utf-8"))
    return SuiteMetadata(tasks=content["tasks"])


def read_metadata(folder: Path) -> SuiteMetadata:
    """Return the metadata of a suite; folders without `suite.json` have that of the open suite.

    Raises:
        ConfigError: a key or a value does not fit.
        SuiteError: the file is not JSON.
    """
    path = folder / METADATA_FILE
    if not path.is_file():
        return open_suite_metadata()
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise SuiteError(f'{path} is not JSON ({error}): expected {{"tasks": {{"TASK": {{}}, ...}}}}') from None
    return SuiteMetadata.parse(content, str(path))


def read_suite(
    folder: str | Path,
    names: Sequence[str] | None = None,
    on_left_out: Callable[[str, str], None] | None = None,
    encoding: str | None = None,
) -> list[Task]:
    """Return the tasks of a suite, those that its metadata names first and in that order, others by name.

    Args:
        folder: TASK.csv files and their recordings, or one such file; or a task of HEAR, or a folder of such tasks.
        names: tasks to read; None means all.
        on_left_out: called with the name of each task of HEAR that cannot be scored, and the reason. If the task is in
            `names`, it is an error instead.
        encoding: of the tables, as for `ssamba.text_files.read_text`; None means UTF-8.

    Raises:
        ConfigError: `suite.json` has an unknown key or a wrong value.
        SuiteError: there is no such folder or task, or a table cannot be used; the message says why.
    """
    folder = user_path(folder)
    if folder.suffix == ".csv" and folder.is_file():
        folder, names = folder.parent, [folder.stem]
    if not folder.is_dir():
        raise SuiteError(
            f"{folder} is not a folder: expected TASK.csv files with TASK.tar beside each, one table, or tasks of HEAR"
        )
    hear = find_hear(folder)
    # Tasks of HEAR hold a CSV file, too: their vocabulary.
    found = hear or {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if not found:
        raise SuiteError(
            f"{folder} holds no TASK.csv: expected tables with the columns {', '.join(_COLUMNS)}, or tasks of HEAR "
            "with their task_metadata.json"
        )
    unknown = [name for name in names or () if name not in found]
    if unknown:
        raise SuiteError(f"{folder} has no task {unknown[0]!r}: it has {', '.join(found)}")
    metadata = read_metadata(folder).tasks
    rank = {name: number for number, name in enumerate(metadata)}
    wanted = sorted(set(names) if names else found, key=lambda name: (rank.get(name, len(rank)), name))
    if not hear:
        return [_read_task(found[name], metadata.get(name, TaskMetadata()), encoding) for name in wanted]
    reasons = {name: reason for name in wanted if (reason := unscored(found[name]))}
    if reasons and (names or len(reasons) == len(wanted)):
        name, reason = next(iter(reasons.items()))
        raise SuiteError(f"{found[name]} cannot be scored: {reason}")
    for name, reason in reasons.items():
        if on_left_out is not None:
            on_left_out(name, reason)
    return [read_hear_task(found[name]) for name in wanted if name not in reasons]


def _read_task(table: Path, metadata: TaskMetadata, encoding: str | None) -> Task:
    archive = table.with_suffix(".tar")
    audio = archive if archive.exists() else table.parent
    try:
        found = _with_names_of_suites(read_csv(table, [*_COLUMNS, *_IN_MANIFESTS, *_TIMES], encoding))
        found.require(*_COLUMNS[:3])
        rows = [
            (line, {"group": "", **{name: value if name == "clip" else value.strip() for name, value in row.items()}})
            for line, row in found.rows()
        ]
        has_times = any(name in found.columns for name in _TIMES)
        if audio == table.parent:
            rows = _with_found_clips(table, rows, encoding, allow_twice=has_times)
    except DataError as error:
        raise SuiteError(str(error)) from None
    for name in _TIMES:
        for _, row in rows:
            row[name] = found.decimal_point(row.get(name, ""))
    task = _task_of_seconds(table, audio, rows) if has_times else _task_of_clips(table, audio, rows)
    count, fewest = (task.num_classes, 2) if task.kind == "single" else (len(task.classes), 1)
    if count < fewest:
        raise SuiteError(f"{table} has {count} label(s) in {len(rows)} rows: expected at least {fewest}")
    names, given = set(task.splits), ", ".join(sorted({*task.splits} - {""}))
    if ("test" in names and names != {"train", "test"}) or len(names) < 2:
        raise SuiteError(
            f"{table} has {f'the splits {given}' if given else 'no splits'}: expected train and test in the column "
            "split, or at least two folds"
        )
    divided = groups_in_several_splits(task.groups, task.splits)
    if divided:
        some = [f"{name} ({', '.join(splits)})" for name, splits in list(divided.items())[:5]]
        raise SuiteError(
            f"{table}: {len(divided)} groups are in more than one split, which inflates scores: "
            f"{', '.join(some)}. Move each to one split, or leave its group empty where it does not matter"
        )
    groups, empty = task.groups, task.groups == ""
    if empty.any() and not empty.all():  # validation takes whole groups, so that each clip needs one
        groups = np.where(empty, np.char.add("clip ", task.clips), groups)
    return replace(task, groups=groups, both_directions=metadata.both_directions)


def _with_names_of_suites(table: CsvTable) -> CsvTable:
    """Return a table whose columns have the names of suites where they have those of manifests."""
    used = {manifest: own for manifest, own in _IN_MANIFESTS.items() if own not in table.columns}
    columns, names = (tuple(used.get(name, name) for name in old) for old in (table.columns, table.names))
    return replace(table, columns=columns, names=names)


def _with_found_clips(table: Path, rows: Sequence[Row], encoding: str | None, *, allow_twice: bool) -> list[Row]:
    """Return rows whose clips are paths that exist, each file under one name.

    Raises:
        DataError: a file is listed twice, also through links, unless `allow_twice`; or a path is of another system.
    """
    find, real_path = ListedPaths(table.parent, encoding), RealPaths()
    first: dict[str, tuple[int, dict[str, str]]] = {}
    found: list[Row] = []
    for line, row in rows:
        try:
            path = find(row["clip"])
        except DataError as error:
            raise DataError(f"{table}, line {line}: {error}") from None
        name = os.fspath(path.relative_to(table.parent) if path.is_relative_to(table.parent) else path)
        own = line, {**row, "clip": name}
        before, other = first.setdefault(real_path(path), own)
        if before != line and not allow_twice:
            raise DataError(
                f"{table} names a clip twice: {other['clip']} (line {before}, label {other['label']}, split "
                f"{other['split']}) and {name} (line {line}, label {row['label']}, split {row['split']}) are one file. "
                "Give it one row"
            )
        found.append((line, {**row, "clip": other["clip"]}))
    return found


def _task_of_clips(table: Path, audio: Path, rows: Sequence[Row]) -> Task:
    """Return a task whose rows are clips with one or several labels."""
    clips, labels, splits, groups = (np.array([row[name] for _, row in rows], dtype=str) for name in _COLUMNS)
    if len(np.unique(clips)) < len(clips):
        raise SuiteError(f"{table} names a clip twice: give each clip one row")
    task = Task(table.stem, table, audio, clips, labels, splits, groups)
    several = [split_labels(label) for label in labels]
    if all(len(own) == 1 for own in several):
        return task
    classes = tuple(sorted({label for own in several for label in own}))
    targets = np.array([[label in own for label in classes] for own in several], dtype=np.int64)
    return replace(task, kind="multi", metrics=("mAP", "mAUC", "d_prime"), classes=classes, targets=targets)


def _task_of_seconds(table: Path, audio: Path, rows: Sequence[Row]) -> Task:
    """Return a task of seconds, whose rows are labeled stretches of recordings."""

    def seconds(row: dict[str, str], name: str, default_s: float) -> float:
        text = row[f"{name}_s"] or row[name]
        try:
            value = float(text) if text else default_s
        except ValueError:
            value = float("nan")
        if not value >= 0:
            raise SuiteError(f"{table}: {row['clip']} has {name} {text!r}: expected seconds, at least 0, or nothing")
        return value

    events: dict[str, list[Event]] = {}
    split_and_group: dict[str, tuple[str, str]] = {}
    for _, row in rows:
        clip, own = row["clip"], (row["split"], row["group"])
        if split_and_group.setdefault(clip, own) != own:
            raise SuiteError(
                f"{table}: the stretches of {clip} are in several splits or groups: put a recording in one"
            )
        start_s = seconds(row, "start", 0.0)
        end_s = start_s + seconds(row, "duration", float("inf"))
        labels = split_labels(row["label"]) or ("",)
        events.setdefault(clip, []).extend(Event(label, start_s, end_s) for label in labels)
    of_clip = [sorted({event.label for event in found} - {""}) for found in events.values()]
    return Task(
        table.stem,
        table,
        audio,
        np.array(list(events), dtype=str),
        np.array([LABEL_SEPARATOR.join(labels) for labels in of_clip], dtype=str),
        np.array([split for split, _ in split_and_group.values()], dtype=str),
        np.array([group for _, group in split_and_group.values()], dtype=str),
        kind="second",
        metrics=("segment_f1", "error_rate", "mAP"),
        classes=tuple(sorted({label for labels in of_clip for label in labels})),
        events=tuple(tuple(found) for found in events.values()),
    )


def split_labels(text: str) -> tuple[str, ...]:
    """Return the labels of a cell, which are separated by `;` as in manifests."""
    return tuple(dict.fromkeys(part for label in text.split(LABEL_SEPARATOR) if (part := label.strip())))
