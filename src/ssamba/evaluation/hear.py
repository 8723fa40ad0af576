"""Task folders of the HEAR benchmark (Turian et al., 2022, arXiv:2203.03022; hearbenchmark.com/hear-tasks.html) as published.

    esc50-v2.0.0-full/
        task_metadata.json      embedding_type, prediction_type, split_mode, splits
        labelvocabulary.csv     not needed here
        fold00.json ...         recording -> [label]; or train.json, valid.json, test.json
        48000/fold00/*.wav      of several rates the highest is read

What is scored is accuracy, by this project's probes: tasks of whole recordings ("scene") with one label each ("multiclass").
Tasks of events or several labels are left out by name. Folds are each tested after training on all others; `valid` joins
`train`, of which a probe takes its own validation part. HEAR's own kit trains a perceptron and validates on a fold, so
figures are near to those of its leaderboard and not the same. HEAR names no groups: each recording is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.errors import SuiteError
from ssamba.evaluation.task import Task

METADATA = "task_metadata.json"
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
    embedding, prediction = metadata.get("embedding_type"), metadata.get("prediction_type")
    if (embedding, prediction) == ("scene", "multiclass"):
        return None
    return (
        f"it is a task of embedding_type {embedding!r} and prediction_type {prediction!r}; only 'scene' and 'multiclass' "
        "(one label for a whole recording) is scored"
    )


def read_hear_task(folder: Path) -> Task:
    """A task, its recordings where they are.

    Raises:
        SuiteError: a file is missing or does not fit; the message says which.
    """
    rates = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    if not rates:
        raise SuiteError(f"{folder} holds no audio: expected a folder named by its rate, as 48000/")
    rows: list[tuple[str, str, str]] = []
    for part in _parts(folder):
        for name, labels in _read(folder / f"{part}.json").items():
            own = labels if isinstance(labels, list) else [labels]
            if len(own) != 1:
                raise SuiteError(f"{folder / part}.json: {name} has {len(own)} labels, expected one (multiclass)")
            rows.append((f"{rates[-1]}/{part}/{name}", str(own[0]), "train" if part == "valid" else part))
    clips, labels, splits = (np.array([row[k] for row in rows], dtype=str) for k in range(3))
    task = Task(folder.resolve().name, folder / METADATA, folder, clips, labels, splits, clips)
    if task.num_classes < 2:
        raise SuiteError(f"{folder} has {task.num_classes} label(s) in {len(rows)} recordings: expected at least 2")
    return task


def _parts(folder: Path) -> list[str]:
    """Names of the split files: train, valid (if there) and test, or folds."""
    metadata = _read(folder / METADATA)
    if metadata.get("split_mode") == "trainvaltest":
        return [part for part in _PARTS if part != "valid" or (folder / "valid.json").exists()]
    folds = [str(name) for name in metadata.get("splits") or sorted(path.stem for path in folder.glob("fold*.json"))]
    if len(folds) < 2:
        mode = metadata.get("split_mode")
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
