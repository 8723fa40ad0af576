"""Task folders of the HEAR benchmark (Turian et al., 2022, arXiv:2203.03022; hearbenchmark.com/hear-tasks.html) as published.

    esc50-v2.0.0-full/
        task_metadata.json      embedding_type, prediction_type, split_mode, splits
        labelvocabulary.csv     idx, label: the classes of several labels and of events
        fold00.json ...         recording -> labels or events; or train.json, valid.json, test.json
        48000/fold00/*.wav      of several rates the highest is read

Recordings have labels (`{"a.wav": ["drum"]}`) or events, in milliseconds (`{"a.wav": [{"label": "drum", "start": 0.0,
"end": 250.0}]}`). What is scored, by this project's probes:

    scene, multiclass    accuracy
    scene, multilabel    mAP, mAUC ("aucroc") and d'; the one that `evaluation` names first is the score
    event, multilabel    those figures of `evaluation` that `events.py` knows: probes on moments, whose smoothing is chosen
                         from `evaluation_params` (`event_postprocessing_grid`) or HEAR's own

Others are left out by name. `valid` trains with `train`, after its clips have chosen the settings; folds are each tested
after training on all others, of which a probe takes its own validation part. HEAR's own kit trains perceptrons,
validates on a fold and does not refit, so figures are near to those of its leaderboard and not the same. HEAR names no
groups: each recording is one.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.data.formats import LABEL_SEPARATOR
from ssamba.errors import SuiteError
from ssamba.evaluation.task import Task
from ssamba.events import EVENT_METRICS, Event, Smoothing

METADATA = "task_metadata.json"
VOCABULARY = "labelvocabulary.csv"
HEAR_GRID = {"median_filter_ms": [250.0], "min_duration": [125.0, 250.0]}
"""Ways of smoothing that HEAR's kit tries where a task names none."""
_DEPTH = 3  # the archives unpack to hear-2021.0.6/tasks/TASK
_PARTS = ("train", "valid", "test")


def find_hear(folder: Path) -> dict[str, Path]:
    """The task folders that are `folder` or lie at most three levels below it, by name."""
    found = [path.parent for depth in range(_DEPTH + 1) for path in folder.glob("*/" * depth + METADATA)]
    return {path.resolve().name: path for path in sorted(found)}


def unscored(folder: Path) -> str | None:
    """Why a task cannot be scored; None where it can.

    Raises:
        SuiteError: its description is damaged.
    """
    metadata = _read(folder / METADATA)
    kind = metadata.get("embedding_type"), metadata.get("prediction_type")
    if kind == ("event", "multilabel"):
        if _event_figures(metadata):
            return None
        named, known = ", ".join(_names(metadata)) or "nothing", ", ".join(_event_scores())
        return f"its evaluation names {named}; events are scored by {known}"
    if kind in (("scene", "multiclass"), ("scene", "multilabel")):
        return None
    return (
        f"it is a task of embedding_type {kind[0]!r} and prediction_type {kind[1]!r}; 'scene' with 'multiclass' or "
        "'multilabel' and 'event' with 'multilabel' are scored"
    )


def read_hear_task(folder: Path) -> Task:
    """A task, its recordings where they are.

    Raises:
        SuiteError: a file is missing or does not fit; the message says which.
    """
    metadata = _read(folder / METADATA)
    rates = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    if not rates:
        raise SuiteError(f"{folder} holds no audio: expected a folder named by its rate, as 48000/")
    several = metadata.get("prediction_type") == "multilabel"
    of_part = {part: _read(folder / f"{part}.json") for part in _parts(folder)}
    _check_copies(folder / str(rates[-1]), of_part)
    rows = [(part, name, truth) for part, recordings in of_part.items() for name, truth in recordings.items()]
    clips = np.array([f"{rates[-1]}/{part}/{name}" for part, name, _ in rows], dtype=str)
    splits = np.array(["train" if part == "valid" else part for part, _, _ in rows], dtype=str)
    valid = np.array([part == "valid" for part, _, _ in rows])
    beside = [folder / f"{part}.json" for part in of_part]
    beside += [path for path in [folder / VOCABULARY] if path.is_file()]
    task = Task(
        folder.resolve().name, folder / METADATA, folder, clips, clips, splits, clips, valid=valid, beside=tuple(beside)
    )
    if not several:
        labels = [_label(folder / f"{part}.json", name, truth) for part, name, truth in rows]
        task = replace(task, labels=np.array(labels, dtype=str))
    elif metadata.get("embedding_type") == "event":
        task = _with_events(task, folder, metadata, rows)
    else:
        task = _with_labels(task, folder, metadata, rows)
    count, fewest = (len(task.classes), 1) if several else (task.num_classes, 2)
    if count < fewest:
        raise SuiteError(f"{folder} has {count} label(s) in {len(rows)} recordings: expected at least {fewest}")
    return task


Rows = Sequence[tuple[str, str, Any]]
"""Split, recording, and what is true of it."""


def _with_labels(task: Task, folder: Path, metadata: Mapping[str, Any], rows: Rows) -> Task:
    """The task with any number of labels for each recording."""
    named = {"mAP": "mAP", "aucroc": "mAUC", "d_prime": "d_prime"}
    wanted = [named[name] for name in _names(metadata) if name in named]
    own = [_labels(folder / f"{part}.json", name, truth) for part, name, truth in rows]
    classes = _classes(folder, [label for labels in own for label in labels])
    place = {label: k for k, label in enumerate(classes)}
    targets = np.zeros((len(rows), len(classes)), np.int64)
    for row, labels in zip(targets, own, strict=True):
        row[[place[label] for label in labels]] = 1
    return replace(
        task,
        labels=np.array([LABEL_SEPARATOR.join(sorted(labels)) for labels in own], dtype=str),
        kind="multi",
        metrics=tuple(dict.fromkeys([*wanted[:1], *named.values()])),
        classes=classes,
        targets=targets,
    )


def _with_events(task: Task, folder: Path, metadata: Mapping[str, Any], rows: Rows) -> Task:
    """The task with what is heard in each recording."""
    events = tuple(_events(folder / f"{part}.json", name, truth) for part, name, truth in rows)
    classes = _classes(folder, [event.label for own in events for event in own])
    return replace(
        task,
        labels=np.array([LABEL_SEPARATOR.join(sorted({event.label for event in own})) for own in events], dtype=str),
        kind="event",
        metrics=_event_figures(metadata),
        classes=classes,
        events=events,
        smoothings=_smoothings(folder, metadata),
    )


def _names(metadata: Mapping[str, Any]) -> list[str]:
    found = metadata.get("evaluation")
    return [str(name) for name in found] if isinstance(found, list) else []


def _event_scores() -> list[str]:
    """Figures that may be a score: those of which more is better."""
    return [name for name, figure in EVENT_METRICS.items() if figure.higher_is_better]


def _event_figures(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The known figures of a task, its score first; none where none may be a score."""
    known = [name for name in _names(metadata) if name in EVENT_METRICS]
    scores = [name for name in known if name in _event_scores()]
    return tuple(dict.fromkeys([*scores[:1], *known])) if scores else ()


def _smoothings(folder: Path, metadata: Mapping[str, Any]) -> tuple[Smoothing, ...]:
    grid = (metadata.get("evaluation_params") or {}).get("event_postprocessing_grid") or HEAR_GRID
    try:
        filters = [float(value) for value in grid.get("median_filter_ms", [0.0])]
        durations = [float(value) for value in grid.get("min_duration", [0.0])]
    except (TypeError, ValueError, AttributeError):
        filters, durations = [], []
    if not filters or not durations or min(*filters, *durations) < 0:
        raise SuiteError(
            f"{folder / METADATA}: event_postprocessing_grid must hold lists of milliseconds under median_filter_ms and "
            f"min_duration, got {grid!r}"
        )
    return tuple(Smoothing(*pair) for pair in itertools.product(filters, durations))


def _label(file: Path, name: str, truth: Any) -> str:
    labels = truth if isinstance(truth, list) else [truth]
    if len(labels) != 1:
        raise SuiteError(f"{file}: {name} has {len(labels)} labels, expected one (multiclass)")
    return str(labels[0])


def _labels(file: Path, name: str, truth: Any) -> list[str]:
    if not isinstance(truth, list) or any(isinstance(label, list | dict) for label in truth):
        raise SuiteError(f"{file}: {name} has {truth!r}, expected a list of labels (multilabel)")
    return list(dict.fromkeys(map(str, truth)))


def _events(file: Path, name: str, truth: Any) -> tuple[Event, ...]:
    try:
        found = [Event(str(e["label"]), float(e["start"]) / 1000, float(e["end"]) / 1000) for e in truth]
    except (TypeError, KeyError, ValueError):
        raise SuiteError(
            f'{file}: {name} has {str(truth)[:80]}, expected events, [{{"label": ..., "start": ms, "end": ms}}, ...]'
        ) from None
    for event in found:
        if not (math.isfinite(event.end_s) and 0 <= event.start_s <= event.end_s):
            raise SuiteError(
                f"{file}: {name} has an event from {1000 * event.start_s:g} to {1000 * event.end_s:g} ms: expected 0 <= "
                "start <= end"
            )
    return tuple(found)


def _classes(folder: Path, used: Sequence[str]) -> tuple[str, ...]:
    """The vocabulary, in its order; without one, the labels that are used."""
    path = folder / VOCABULARY
    if not path.exists():
        return tuple(sorted(set(used)))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = sorted((int(row["idx"]), row["label"]) for row in csv.DictReader(file))
    except (KeyError, TypeError, ValueError, csv.Error):
        raise SuiteError(f"{path} is no vocabulary: expected CSV with the columns idx (a number) and label") from None
    classes = tuple(str(label) for _, label in rows)
    unknown = sorted(set(used) - set(classes))
    if unknown:
        raise SuiteError(f"{path} lacks {unknown[0]!r}, a label of the recordings: unpack the task's archive again")
    return classes


def _check_copies(folder: Path, of_part: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a recording that is in several splits: the same name with the same content."""
    for first, second in itertools.combinations(of_part, 2):
        for name in of_part[first].keys() & of_part[second].keys():
            paths = folder / first / name, folder / second / name
            if all(path.is_file() for path in paths) and paths[0].read_bytes() == paths[1].read_bytes():
                raise SuiteError(
                    f"{folder.parent}: {name} is in {first} and in {second}, so that scores would be flattered: take it out "
                    "of one"
                )


def _parts(folder: Path) -> list[str]:
    """Names of the split files: train, valid (if there) and test, or folds."""
    metadata = _read(folder / METADATA)
    mode = metadata.get("split_mode")
    # Early descriptions have no mode; then the files say it.
    if mode == "trainvaltest" or (mode is None and (folder / "train.json").exists()):
        return [part for part in _PARTS if part != "valid" or (folder / "valid.json").exists()]
    folds = [str(name) for name in metadata.get("splits") or sorted(path.stem for path in folder.glob("fold*.json"))]
    if len(folds) < 2:
        raise SuiteError(
            f"{folder} has split_mode {mode!r} and {len(folds)} folds: expected fold00.json, fold01.json, ..."
        )
    return folds


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SuiteError(f"{path} is missing: unpack the task's archive again") from None
    except ValueError as error:
        raise SuiteError(f"{path} is not JSON ({error}): unpack the task's archive again") from None
    if not isinstance(content, dict):
        raise SuiteError(f"{path} holds no JSON object: unpack the task's archive again")
    return content
