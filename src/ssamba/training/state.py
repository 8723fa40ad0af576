"""The saved states of a run: written whole or not at all, the last few and the best kept.

    OUT/checkpoints/step-00001000/state.pt     everything that resuming needs, tensors and plain values alone
                                  meta.json    step, recipe, validation, and the size of every file
                                  model/       the model to be released, in the format of ssamba.checkpoint

A state is written under a name that does not count, flushed to the disk, and renamed; only then are older ones removed.
A full disk costs that state, never an earlier one. Reading trusts a folder whose files have the sizes of its meta.json
and whose tensors can be read, and otherwise goes back to the one before.
"""

from __future__ import annotations

import json
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

from ssamba.errors import CheckpointError, ConfigError, TrainingError
from ssamba.training.settings import FREE_ON_RESUME

STATES_FOLDER = "checkpoints"
"""Of a run: its saved states."""
STATE_FILE = "state.pt"
META_FILE = "meta.json"
MODEL_FOLDER = "model"
_UNFINISHED = ".unfinished-"
_REPLACED = ".replaced"


@dataclass(frozen=True)
class SavedState:
    """A complete state, as found on disk."""

    folder: Path
    step: int
    meta: Mapping[str, Any]

    def load(self) -> dict[str, Any]:
        """The state itself, tensors on the CPU.

        Raises:
            CheckpointError: it cannot be read.
        """
        path = self.folder / STATE_FILE
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (
            RuntimeError,
            EOFError,
            ValueError,
            KeyError,
            OSError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ) as error:
            raise CheckpointError(f"{path} is damaged ({error})") from None
        return content


class StateFolder:
    """The folder of a run's states."""

    def __init__(self, folder: Path, keep_last: int):
        self.folder = folder
        self.keep_last = keep_last
        self.damaged: list[str] = []
        """What `newest` passed over."""

    def complete(self) -> list[SavedState]:
        """All complete states, oldest first."""
        found = (_read(folder) for folder in self.folder.glob("step-*"))
        return sorted(
            (state for state in found if state is not None), key=lambda s: (s.step, s.folder.suffix != _REPLACED)
        )

    def path(self, step: int) -> Path:
        """The folder of a step's state, whether there is one or not."""
        return self.folder / f"step-{step:08d}"

    def newest(self, recipe: Mapping[str, Any], resume: bool | Literal["auto"]) -> tuple[Path, dict[str, Any]] | None:
        """The newest state that can be read, and its folder; None if there are none.

        Raises:
            ConfigError: it is of another recipe.
            CheckpointError: none can be read; or resuming was asked for and there is nothing to resume, or the
                other way round.
        """
        states = self.complete()
        if not states and resume is True:
            raise CheckpointError(f"{self.folder} holds no saved state to resume: start without resuming")
        if states and not resume:
            raise CheckpointError(
                f"{self.folder} holds a run already (step {states[-1].step}): resume it, or choose another output folder"
            )
        for saved in reversed(states):
            check_recipe(saved.meta.get("recipe", {}), recipe, saved.folder)
            try:
                return saved.folder, saved.load()
            except CheckpointError as error:
                self.damaged.append(str(error))
        if self.damaged:
            raise CheckpointError("; ".join(self.damaged))
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
        """Write a state, then remove what is neither among the last nor the best.

        Args:
            step: steps done.
            state: tensors and plain values.
            meta: plain values, with the recipe under `recipe`.
            write_model: writes the released model into a folder.
            best_step: the step of the state with the best validation.
            prune: remove older ones.

        Returns:
            Its folder.

        Raises:
            OSError: the disk is full or broken; earlier states are as they were.
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
            sizes = {
                file.relative_to(unfinished).as_posix(): file.stat().st_size
                for file in sorted(unfinished.rglob("*"))
                if file.is_file()
            }
            text = json.dumps({**meta, "step": step, "files": sizes}, indent=2)
            (unfinished / META_FILE).write_text(text + "\n", encoding="utf-8")
            flush_to_disk(unfinished)
            replaced = final.with_suffix(_REPLACED)  # counts until the new one is in its place
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
            self._prune(best_step)
        return final

    def clean(self) -> None:
        """Remove what a killed run was writing."""
        for folder in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.folder.glob(f"*{_REPLACED}"):
            if _read(folder.with_suffix("")) is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _prune(self, best_step: int | None) -> None:
        states = self.complete()
        for state in states[: -self.keep_last]:
            if state.step != best_step:
                shutil.rmtree(state.folder, ignore_errors=True)


def has_state(run: Path) -> bool:
    """Whether a run's folder holds a complete state, from which it would go on."""
    return bool(StateFolder(run / STATES_FOLDER, 1).complete())


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values as a PyTorch file.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        recorder = _ErrorRecorder(file)
        try:
            torch.save(dict(state), recorder)  # type: ignore[arg-type]  # it needs no more than write and flush
        except RuntimeError:
            # torch's writer hides why a write failed.
            if recorder.error is None:
                raise
            raise recorder.error from None


def on_cpu(value: Any) -> Any:
    """A copy of a state with its tensors on the CPU."""
    if isinstance(value, Mapping):
        return {key: on_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(inner) for inner in value)
    return value.detach().cpu() if isinstance(value, Tensor) else value


def check_plain(value: Any, name: str) -> None:
    """Refuse what `torch.load(weights_only=True)` would not give back.

    Raises:
        TrainingError: an object other than a tensor, number, string, None, or a list, tuple or dict of these.
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
            "dicts of these, because that is what can be loaded without running code"
        )


def check_recipe(before: Mapping[str, Any], now: Mapping[str, Any], source: Path) -> None:
    """Refuse to resume with other settings; a run's length and its log may change.

    Raises:
        ConfigError: names every key that differs, with both values.
    """
    old, new = _flat(before), _flat(now)
    changed = [
        f"{key} was {old.get(key, 'absent')!r}, is {new.get(key, 'absent')!r}"
        for key in sorted({*old, *new} - FREE_ON_RESUME)
        if old.get(key, "absent") != new.get(key, "absent")
    ]
    if changed:
        raise ConfigError(
            f"{source} is of a run with other settings: {'; '.join(changed)}. Give the same ones to resume it, or "
            "another output folder to start afresh"
        )


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
    """The state of a folder, None if it is not all there."""
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in meta["files"].items())
        return SavedState(folder, int(meta["step"]), meta) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def flush_to_disk(folder: Path) -> None:
    """Have everything in a folder on the disk, not only in the system's memory."""
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
