"""Saved states of a run: each is written completely or not at all; the latest few and the best are kept.

    OUT/checkpoints/step-00001000/state.pt     everything resuming needs; `_Trainer._state` (loop.py) lists it
                                  meta.json    step, recipe, validation, and the size of every file
                                  model/       the model to release, in the format of ssamba.checkpoint

A state is written under a temporary name, flushed to disk and renamed; only then are older ones removed, so a full disk
costs that state but no earlier one. Reading accepts a folder whose files have the sizes listed in meta.json and whose
tensors can be loaded; otherwise the state before it is used.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from ssamba.checkpoint.files import CONFIG_FILE
from ssamba.checkpoint.names import MODEL_FOLDER, ROUNDS_FOLDER, STATES_FOLDER
from ssamba.config import RENAMED_KEYS, ModelIdentity, settings_differences
from ssamba.errors import CheckpointError, ModelMismatchError, OtherSettingsError, TrainingError
from ssamba.files import check_before_replacing, move_aside, output_folder
from ssamba.training.settings import (
    FREE_ON_RESUME,
    OptimizerSettings,
    RunSettings,
    ScheduleSettings,
    fill_in_defaults,
    saved_settings,
)

BEST_FOLDER = "best"
"""Folder of a run with the model that had the best validation."""
REFIT_FOLDER = "refit"
"""Folder of a fine-tuning run with the training on all clips."""
STARTED_FROM = "started_from"
"""Setting of a task: the digest of the weights that it started from."""
EARLIER_LOGS = "log-*.jsonl"
"""Logs of sessions that ended before there was a state."""
STATE_FILE = "state.pt"
META_FILE = "meta.json"
_OTHERWISE = "--overwrite to start anew, or choose another output"
_RUN_ENTRIES = (
    *("log.jsonl", "skipped.csv", "report.json", "results.json", "classes.csv", "confusion.png", "pictures"),
    *("tensorboard", "wandb", BEST_FOLDER, MODEL_FOLDER, REFIT_FOLDER, ROUNDS_FOLDER, STATES_FOLDER),
)
_UNFINISHED = ".unfinished-"
_REPLACED = ".replaced"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedState:
    """A complete state on disk."""

    folder: Path
    step: int
    meta: Mapping[str, Any]

    def load(self) -> dict[str, Any]:
        """Return the content of the state file, with tensors on the CPU and today's spelling of keys.

        Raises:
            CheckpointError: it cannot be read.
        """
        path = self.folder / STATE_FILE
        errors = (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError, zipfile.BadZipFile)
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except errors as error:
            # What torch says of a file that is no pickle takes a screen, and asks to load it without checks.
            reason = "not a file of PyTorch" if isinstance(error, pickle.UnpicklingError) else error
            raise CheckpointError(f"{path} is damaged ({reason})") from None
        _rename_keys(content)
        return content


class StateFolder:
    """The folder with the saved states of a run."""

    def __init__(self, folder: Path, keep_last: int):
        self.folder = folder
        self.keep_last = keep_last
        self.damaged: list[str] = []
        """Errors of the states that `newest` could not load."""

    def complete(self) -> list[SavedState]:
        """Return all complete states, oldest first."""
        found = [state for folder in self.folder.glob("step-*") if (state := _read(folder)) is not None]
        return sorted(found, key=lambda state: (state.step, state.folder.suffix != _REPLACED))

    def path(self, step: int) -> Path:
        """Return the folder that the state of a step has or would have."""
        return self.folder / f"step-{step:08d}"

    def newest(
        self, settings: Mapping[str, Any], task_defaults: Mapping[str, Any] | None = None
    ) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest state that can be loaded, with its folder; None if there are no states.

        Args:
            settings: those of the run; see `check_settings`.
            task_defaults: see `check_settings`.

        Raises:
            OtherSettingsError: it was saved with other settings.
            ModelMismatchError: its run started from another model.
            CheckpointError: there are states, and none can be loaded.
        """
        states = self.complete()
        for saved in reversed(states):
            check_settings(saved.meta.get("recipe", {}), settings, self.folder.parent, task_defaults)
            try:
                return saved.folder, saved.load()
            except CheckpointError as error:
                self.damaged.append(str(error))
        if self.damaged or next(self.folder.glob("step-*"), None) is not None:
            problem = "; ".join(self.damaged) or f"no saved state in {self.folder} is complete"
            raise CheckpointError(f"{problem}: restore one, or --overwrite to start anew")
        return None

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        meta: Mapping[str, Any],
        write_model: Callable[[Path], object],
        *,
        best_step: int | None = None,
        prune: bool = True,
    ) -> Path:
        """Write a state, then remove older ones except for the latest and the best.

        Args:
            step: steps done.
            state: tensors and plain values.
            meta: plain values, with the recipe under `recipe`.
            write_model: writes the model to release into a folder.
            best_step: step of the state with the best validation.
            prune: whether to remove older ones.

        Returns:
            The folder of the state.

        Raises:
            OSError: the disk is full or broken; earlier states are unchanged.
        """
        final = self.path(step)
        unfinished = self.folder / f"{_UNFINISHED}{final.name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            (unfinished / MODEL_FOLDER).mkdir(parents=True)
            write_state(unfinished / STATE_FILE, state)
            try:
                write_model(unfinished / MODEL_FOLDER)
            except SafetensorError as error:
                raise OSError(f"{unfinished / MODEL_FOLDER}: {error}") from None
            files = [file for file in sorted(unfinished.rglob("*")) if file.is_file()]
            sizes = {file.relative_to(unfinished).as_posix(): file.stat().st_size for file in files}
            text = json.dumps({**meta, "step": step, "files": sizes}, indent=2)
            (unfinished / META_FILE).write_text(text + "\n", encoding="utf-8")
            _flush_to_disk(unfinished)
            check_before_replacing()
            replaced = final.with_suffix(_REPLACED)  # still a complete state until the new one has its name
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                final.rename(replaced)
            unfinished.rename(final)
            _flush_folder(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if prune:
            for old in self.complete()[: -self.keep_last]:
                if old.step != best_step:
                    shutil.rmtree(old.folder, ignore_errors=True)
        return final

    def clean(self) -> None:
        """Remove folders that a killed run left unfinished."""
        for folder in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.folder.glob(f"*{_REPLACED}"):
            if _read(folder.with_suffix("")) is not None:
                shutil.rmtree(folder, ignore_errors=True)


def has_state(run: Path) -> bool:
    """Return whether a run's folder holds a complete state to resume from."""
    return bool(StateFolder(run / STATES_FOLDER, 1).complete())


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder under a temporary name, flush it to disk, and put it in the place of `folder`.

    Raises:
        OSError: it cannot be written; the previous content of `folder` is unchanged.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        _flush_to_disk(unfinished)
        check_before_replacing()
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values as a PyTorch file.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        recorder = _ErrorRecorder(file)
        try:
            torch.save(dict(state), recorder)  # type: ignore[arg-type]  # it only calls write and flush
        except RuntimeError:
            # torch's writer hides why a write failed.
            if recorder.error is None:
                raise
            raise recorder.error from None


def on_cpu(value: Any) -> Any:
    """Copy a state with its tensors on the CPU."""
    if isinstance(value, Mapping):
        return {key: on_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(inner) for inner in value)
    return value.detach().cpu() if isinstance(value, Tensor) else value


def check_plain(value: Any, name: str) -> None:
    """Refuse values that `torch.load(weights_only=True)` could not load.

    Raises:
        TrainingError: `value` holds an object other than a tensor, number, string, None, or a list, tuple or dict of
            these.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_plain(inner, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            check_plain(inner, f"{name}[{index}]")
    elif value is not None and type(value) not in (bool, int, float, str, bytes) and not isinstance(value, Tensor):
        raise TrainingError(
            f"{name} is a {type(value).__name__}: a state may hold tensors, numbers, strings, None, and lists and "
            "dicts of these, because only these can be loaded without running code"
        )


def check_run(run: Path, settings: Mapping[str, Any], task_defaults: Mapping[str, Any] | None = None) -> None:
    """Refuse other settings than those of the run in a folder, if there is one; see `check_settings`."""
    states = StateFolder(run / STATES_FOLDER, 1).complete()
    if states:
        check_settings(states[-1].meta.get("recipe", {}), settings, run, task_defaults)


def check_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], run: Path, task_defaults: Mapping[str, Any] | None = None
) -> None:
    """Refuse to resume with other settings, except for those in `FREE_ON_RESUME`.

    Args:
        before: settings of the run; those that did not exist yet count as their defaults, or as None.
        now: wanted settings.
        run: folder of the run.
        task_defaults: defaults of the task's settings.

    Raises:
        OtherSettingsError: names every key that differs, with both values.
        ModelMismatchError: the run started from another model.
    """
    old, new = before.get("task") or {}, now.get("task") or {}
    if old.get(STARTED_FROM) != new.get(STARTED_FROM):
        raise ModelMismatchError(
            f"{run} holds a run that started from {_start_text(old)}, not from {_start_text(new)}: start from the "
            f"same model to resume, {_OTHERWISE}"
        )
    changed = settings_differences(with_new_settings(before, now, task_defaults), now, FREE_ON_RESUME)
    if changed:
        named = "; ".join(text.removeprefix("task.") for text in changed)
        raise OtherSettingsError(
            f"{run} holds a run with other settings: {named}. Use the same settings to resume, {_OTHERWISE}"
        )


def with_new_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], task_defaults: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return settings of an earlier run with those of `now` that did not exist yet, at their defaults."""
    defaults = saved_settings(OptimizerSettings(), ScheduleSettings(), RunSettings(steps=1), task_defaults or {})
    return fill_in_defaults(before, now, defaults)


def run_folder(typed: str | Path) -> Path:
    """Return the folder of a run that a user typed.

    Raises:
        ConfigError: it is not a path, or it is a file, or lies below one.
        CheckpointError: it holds a checkpoint: `load_model(folder)` would never find the run's model.
    """
    folder = output_folder(typed)
    if (folder / CONFIG_FILE).exists():
        raise CheckpointError(f"{folder} holds a checkpoint ({CONFIG_FILE}): choose another output for the run")
    return folder


def check_output(out: Path, *, other_kind: Literal["rounds", "checkpoints"] | None = None) -> None:
    """Refuse a folder that a run would spoil.

    Args:
        out: folder of the run.
        other_kind: folder that only a run of another command has.

    Raises:
        CheckpointError: it holds a run of another command, or a model without states to resume from.
    """
    if other_kind is not None and (out / other_kind).is_dir():
        kind = "fine-tuning" if other_kind == "rounds" else "pretraining"
        raise CheckpointError(f"{out} holds a {kind} run: choose another output, or --overwrite to start anew")
    has_model = any((out / name).is_dir() for name in (MODEL_FOLDER, BEST_FOLDER))
    if has_model and not (out / "rounds").is_dir() and not has_state(out):
        raise CheckpointError(
            f"{out} contains a trained model but no saved state to resume from: choose another output, or --overwrite "
            "to start anew"
        )


def move_run_aside(out: Path) -> Path | None:
    """Move everything that a run wrote to a new folder beside it, the saved states last; return that folder."""
    check_before_replacing()
    earlier_logs = (path.name for path in sorted(out.glob(EARLIER_LOGS)))
    moved_to = move_aside(out, (*earlier_logs, *_RUN_ENTRIES)) if out.is_dir() else None
    if moved_to is not None:
        _log.info("the earlier run was moved to %s", moved_to)
    return moved_to


def start_settings(start: ModelIdentity | None) -> dict[str, str | None]:
    """Return the settings of a task that say what it started from; None means random weights.

    They are saved with the run. Resuming compares the digest alone, since a path may be written in many ways.
    """
    name, digest = (None, None) if start is None else (start.name, start.weights_digest)
    return {"started_from": digest, "started_from_name": name}


def _start_text(settings: Mapping[str, Any]) -> str:
    """Return what a run started from, for messages."""
    digest, name = settings.get(STARTED_FROM), settings.get(f"{STARTED_FROM}_name")
    if digest is None:
        return "random weights"
    return str(ModelIdentity(name=name or "a model without a recorded name", weights_digest=digest))


class _ErrorRecorder:
    """A file that remembers the error of a failed write."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _read(folder: Path) -> SavedState | None:
    """Return the state in a folder; None if it is incomplete."""
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        _rename_keys(meta)
        complete = all((folder / name).stat().st_size == size for name, size in meta["files"].items())
        return SavedState(folder, int(meta["step"]), meta) if complete else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _rename_keys(values: dict[Any, Any]) -> None:
    """Replace old spellings of keys (`RENAMED_KEYS`) in nested dicts, in place."""
    for key in RENAMED_KEYS.keys() & values.keys():
        values[RENAMED_KEYS[key]] = values.pop(key)
    for inner in values.values():
        if isinstance(inner, dict):
            _rename_keys(inner)


def _flush_to_disk(folder: Path) -> None:
    """Flush everything in a folder from the system's memory to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _flush_folder(path)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
