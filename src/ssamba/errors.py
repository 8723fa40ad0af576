"""Errors and warnings that users meet; each message says what was expected, what was received, and what to do."""

from __future__ import annotations

from typing import Any


class SsambaError(Exception):
    """Base of all errors that ssamba raises on purpose."""


class AudioDecodeError(SsambaError, ValueError):
    """An audio file cannot be decoded; the message names file, cause and remedy."""


class CheckpointError(SsambaError, ValueError):
    """A checkpoint is missing, damaged or incompatible."""


class ConfigError(SsambaError, ValueError):
    """A configuration holds an unknown key or an invalid value."""


class OtherSettingsError(ConfigError):
    """An output was made with other settings; the message names every difference and the remedy."""


class ModelMismatchError(OtherSettingsError):
    """Something was made with one model and is to be used or continued with another; the message names both."""


class DataError(SsambaError, ValueError):
    """A manifest, a folder of shards or a data set is missing, damaged or inconsistent."""


class DatasetStructureError(DataError):
    """A folder does not hold the expected public data set; the message shows the expected structure."""


class WorkerDiedError(SsambaError, RuntimeError):
    """Worker processes died while they worked on an item; the message says whether it is to blame, and what to do."""


class WorkerStartError(SsambaError, RuntimeError):
    """Worker processes cannot start; the message says why. No item is to blame."""


class OutputInUseError(SsambaError, ValueError):
    """Another process is writing the output; the message says which, since when, and what to do."""


class LockLostError(SsambaError, RuntimeError):
    """Another process has taken over the output that this one was writing; the message says which."""


class SuiteError(SsambaError, ValueError):
    """A suite of labeled tasks is missing or inconsistent; the message names the file."""


class BackendUnavailableError(SsambaError, RuntimeError):
    """A kernel backend was requested explicitly and cannot run here; the message says why."""


class MissingExtraError(SsambaError, ImportError):
    """A feature needs an optional dependency; the message gives the command that installs it."""


class SkippedFilesError(SsambaError):
    """With `strict`, some files were skipped; the output of the others was written, and `report` is the job's."""

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report


class Interrupted(KeyboardInterrupt):
    """A job was interrupted; the message says what is kept and how to resume, and `report` is the job's so far."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class TrainingError(SsambaError, RuntimeError):
    """A training run cannot start, continue or save."""


class TrainingDivergedError(TrainingError):
    """Too many consecutive steps had a non-finite loss or gradient; the message says where, and what was saved."""


class BackendWarning(UserWarning):
    """A backend failed its test of small cases, and a slower one is used; the message says how to report it."""


class AudioWarning(UserWarning):
    """Base of the warnings about audio files that are used although something is wrong with them."""


class AudioHeaderWarning(AudioWarning):
    """The header of an audio file states another length than the recording has, and all of it was read."""


class AudioTruncatedWarning(AudioWarning):
    """A part of an audio file is missing, and `damaged="keep"` asked to continue with the rest."""


class AudioBandWarning(AudioWarning):
    """Most of the sound of recordings lies above the frequencies that a model hears."""
