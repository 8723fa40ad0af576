"""Read task folders of the HEAR benchmark (Turian et al., 2022, arXiv:2203.03022; hearbenchmark.com/hear-tasks.html).

    esc50-v2.0.0-full/
        task_metadata.json      embedding_type, prediction_type, split_mode, splits
        labelvocabulary.csv     idx, label: the classes of several labels and of events
        fold00.json ...         recording -> labels or events; or train.json, valid.json, test.json
        48000/fold00/*.wav      the highest of several sample rates is read

Recordings have labels (`{"a.wav": ["drum"]}`) or events, in milliseconds (`{"a.wav": [{"label": "drum", "start": 0.0,
"end": 250.0}]}`). Metrics, by this project's probes:

    scene, multiclass    accuracy
    scene, multilabel    mAP, mAUC ("aucroc") and d'; the one that `evaluation` names first is the score
    event, multilabel    the metrics of `evaluation` that `ssamba.events` knows: probes of time steps, with a smoothing
                         chosen from `evaluation_params` (`event_postprocessing_grid`) or HEAR's own

Other tasks cannot be scored. `valid` chooses the settings and then trains with `train`; each fold is tested after
training on all others, of which the probe holds out its own validation part. HEAR's own kit trains perceptrons,
validates on a fold and does not refit, so results are close to those of its leaderboard but not equal. HEAR names no
groups: each recording is one.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssamba.data.formats import LABEL_SEPARATOR
from ssamba.errors import SuiteError
from ssamba.evaluation.task import Task
from ssamba.events import EVENT_METRICS, Event, Smoothing
from ssamba.files import folder_name
from ssamba.text_files import read_csv, read_text

METADATA = "task_metadata.json"
VOCABULARY = "labelvocabulary.csv"
HEAR_GRID = {"median_filter_ms": [250.0], "min_duration": [125.0, 250.0]}
"""Smoothings that HEAR's kit tries if a task names none."""
_MAX_DEPTH = 3  # the archives unpack to hear-2021.0.6/tasks/TASK
_SPLITS = ("train", "valid", "test")
_SCORE_METRICS = [name for name, metric in EVENT_METRICS.items() if metric.higher_is_better]
_LABEL_METRICS = {"mAP": "mAP", "aucroc": "mAUC", "d_prime": "d_prime"}  # HEAR's name -> ours


class _Recording(NamedTuple):
    file: Path
    """The JSON file that describes it; its stem is the split."""
    name: str
    truth: Any


def find_hear(folder: Path) -> dict[str, Path]:
    """Return the task folders at most three levels below `folder`, or `folder` itself, by name."""
    found = [path.parent for depth in range(_MAX_DEPTH + 1) for path in folder.glob("*/" * depth + METADATA)]
    return {folder_name(path): path for path in sorted(found)}


def unscored(folder: Path) -> str | None:
    """Return the reason why a task cannot be scored, or None.

    Raises:
        SuiteError: its description is damaged.
    """
    metadata = _read(folder / METADATA)
    kind = metadata.get("embedding_type"), metadata.get("prediction_type")
    if kind == ("event", "multilabel"):
        if _event_metrics(metadata):
            return None
        named, known = ", ".join(_metric_names(metadata)) or "nothing", ", ".join(_SCORE_METRICS)
        return f"its evaluation names {named}; events are scored by {known}"
    if kind in (("scene", "multiclass"), ("scene", "multilabel")):
        return None
    return (
        f"it is a task of embedding_type {kind[0]!r} and prediction_type {kind[1]!r}; 'scene' with 'multiclass' or "
        "'multilabel' and 'event' with 'multilabel' are scored"
    )


def read_hear_task(folder: Path) -> Task:
    """Read a task; its recordings stay where they are.

    Raises:
        SuiteError: a file is missing or invalid; the message says which.
    """
    metadata = _read(folder / METADATA)
    rates_hz = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    if not rates_hz:
        raise SuiteError(f"{folder} holds no audio: expected a folder named by its rate, as 48000/")
    files = [folder / f"{name}.json" for name in _split_names(folder, metadata)]
    recordings = [_Recording(file, name, truth) for file in files for name, truth in _read(file).items()]
    _check_copies(folder / str(rates_hz[-1]), recordings)
    clips = np.array([f"{rates_hz[-1]}/{r.file.stem}/{r.name}" for r in recordings], dtype=str)
    splits = np.array([r.file.stem for r in recordings], dtype=str)
    valid = splits == "valid"
    vocabulary = [path for path in [folder / VOCABULARY] if path.is_file()]
    task = Task(
        folder_name(folder), folder / METADATA, folder, clips, clips, np.where(valid, "train", splits), clips,
        valid=valid, beside=(*files, *vocabulary),
    )  # fmt: skip
    several = metadata.get("prediction_type") == "multilabel"
    if not several:
        task = replace(task, labels=np.array([_label(r) for r in recordings], dtype=str))
    elif metadata.get("embedding_type") == "event":
        task = _with_events(task, folder, metadata, recordings)
    else:
        task = _with_labels(task, folder, metadata, recordings)
    count, fewest = (len(task.classes), 1) if several else (task.num_classes, 2)
    if count < fewest:
        raise SuiteError(f"{folder} has {count} label(s) in {len(recordings)} recordings: expected at least {fewest}")
    return task


def _with_labels(task: Task, folder: Path, metadata: Mapping[str, Any], recordings: Sequence[_Recording]) -> Task:
    """Return the task with any number of labels for each recording."""
    known = [_LABEL_METRICS[name] for name in _metric_names(metadata) if name in _LABEL_METRICS]
    of_recording = [_labels(r) for r in recordings]
    classes = _classes(folder, itertools.chain(*of_recording))
    return replace(
        task,
        labels=_joined(of_recording),
        kind="multi",
        metrics=tuple(dict.fromkeys([*known[:1], *_LABEL_METRICS.values()])),
        classes=classes,
        targets=np.array([[name in labels for name in classes] for labels in of_recording], dtype=np.int64),
    )


def _with_events(task: Task, folder: Path, metadata: Mapping[str, Any], recordings: Sequence[_Recording]) -> Task:
    """Return the task with the events of each recording."""
    events = tuple(_events(r) for r in recordings)
    return replace(
        task,
        labels=_joined({event.label for event in own} for own in events),
        kind="event",
        metrics=_event_metrics(metadata),
        classes=_classes(folder, (event.label for own in events for event in own)),
        events=events,
        smoothings=_smoothings(folder, metadata),
    )


def _joined(of_recording: Iterable[Iterable[str]]) -> np.ndarray[Any, Any]:
    return np.array([LABEL_SEPARATOR.join(sorted(labels)) for labels in of_recording], dtype=str)


def _metric_names(metadata: Mapping[str, Any]) -> list[str]:
    found = metadata.get("evaluation")
    return [str(name) for name in found] if isinstance(found, list) else []


def _event_metrics(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the known metrics of a task, its score first; none if none of them can be a score."""
    known = [name for name in _metric_names(metadata) if name in EVENT_METRICS]
    scores = [name for name in known if name in _SCORE_METRICS]
    return tuple(dict.fromkeys([*scores[:1], *known])) if scores else ()


def _smoothings(folder: Path, metadata: Mapping[str, Any]) -> tuple[Smoothing, ...]:
    grid = (metadata.get("evaluation_params") or {}).get("event_postprocessing_grid") or HEAR_GRID
    try:
        filters_ms = [float(value) for value in grid.get("median_filter_ms", [0.0])]
        durations_ms = [float(value) for value in grid.get("min_duration", [0.0])]
    except (TypeError, ValueError, AttributeError):
        filters_ms, durations_ms = [], []
    if not filters_ms or not durations_ms or min(*filters_ms, *durations_ms) < 0:
        raise SuiteError(
            f"{folder / METADATA}: event_postprocessing_grid must hold lists of milliseconds under "
            f"median_filter_ms and min_duration, got {grid!r}"
        )
    return tuple(Smoothing(*pair) for pair in itertools.product(filters_ms, durations_ms))


def _label(recording: _Recording) -> str:
    labels = recording.truth if isinstance(recording.truth, list) else [recording.truth]
    if len(labels) != 1:
        raise SuiteError(f"{recording.file}: {recording.name} has {len(labels)} labels, expected one (multiclass)")
    return str(labels[0])


def _labels(recording: _Recording) -> list[str]:
    file, name, truth = recording
    if not isinstance(truth, list) or any(isinstance(label, list | dict) for label in truth):
        raise SuiteError(f"{file}: {name} has {truth!r}, expected a list of labels (multilabel)")
    return list(dict.fromkeys(map(str, truth)))


def _events(recording: _Recording) -> tuple[Event, ...]:
    file, name, truth = recording
    try:
        found = [Event(str(e["label"]), float(e["start"]) / 1000, float(e["end"]) / 1000) for e in truth]
    except (TypeError, KeyError, ValueError):
        raise SuiteError(
            f'{file}: {name} has {str(truth)[:80]}, expected events, [{{"label": ..., "start": ms, "end": ms}}, ...]'
        ) from None
    for event in found:
        if not (math.isfinite(event.end_s) and 0 <= event.start_s <= event.end_s):
            raise SuiteError(
                f"{file}: {name} has an event from {1000 * event.start_s:g} to {1000 * event.end_s:g} ms: expected "
                "0 <= start <= end"
            )
    return tuple(found)


def _classes(folder: Path, used: Iterable[str]) -> tuple[str, ...]:
    """Return the vocabulary in its order; without one, the labels in `used`."""
    path, labels = folder / VOCABULARY, set(used)
    if not path.exists():
        return tuple(sorted(labels))
    try:
        table = read_csv(path, ["idx", "label"])
        rows = sorted((int(row["idx"]), row["label"]) for _, row in table.rows())
    except (KeyError, ValueError):
        raise SuiteError(f"{path} is no vocabulary: expected CSV with the columns idx (a number) and label") from None
    classes = tuple(str(label) for _, label in rows)
    unknown = sorted(labels - set(classes))
    if unknown:
        raise SuiteError(f"{path} lacks {unknown[0]!r}, a label of the recordings: unpack the task's archive again")
    return classes


def _check_copies(audio: Path, recordings: Sequence[_Recording]) -> None:
    """Raise if a recording is in several splits with the same name and content."""
    first: dict[str, list[str]] = {}
    for recording in recordings:
        others = first.setdefault(recording.name, [])
        own = audio / recording.file.stem / recording.name
        for other in others:
            path = audio / other / recording.name
            if path.is_file() and own.is_file() and path.read_bytes() == own.read_bytes():
                raise SuiteError(
                    f"{audio.parent}: {recording.name} is in {other} and in {recording.file.stem}, so that scores "
                    "would be flattered: take it out of one"
                )
        others.append(recording.file.stem)


def _split_names(folder: Path, metadata: Mapping[str, Any]) -> list[str]:
    """Return the names of the split files: train, valid (if it exists) and test, or folds."""
    mode = metadata.get("split_mode")
    # Early descriptions have no mode; then the files tell.
    if mode == "trainvaltest" or (mode is None and (folder / "train.json").exists()):
        return [name for name in _SPLITS if name != "valid" or (folder / "valid.json").exists()]
    folds = [str(name) for name in metadata.get("splits") or sorted(path.stem for path in folder.glob("fold*.json"))]
    if len(folds) < 2:
        raise SuiteError(
            f"{folder} has split_mode {mode!r} and {len(folds)} folds: expected fold00.json, fold01.json, ..."
        )
    return folds


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise SuiteError(f"{path} is missing: unpack the task's archive again") from None
    except ValueError as error:
        raise SuiteError(f"{path} is not JSON ({error}): unpack the task's archive again") from None
    if not isinstance(content, dict):
        raise SuiteError(f"{path} holds no JSON object: unpack the task's archive again")
    return content
