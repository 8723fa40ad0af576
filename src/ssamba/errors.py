"""The errors that users meet. Each message says what was expected, what came, and what to do."""

from __future__ import annotations


class SsambaError(Exception):
    """Base of every error that ssamba raises on purpose."""


class AudioDecodeError(SsambaError, ValueError):
    """An audio file could not be turned into samples; the message names file, cause and remedy."""


class CheckpointError(SsambaError, ValueError):
    """A checkpoint is missing, damaged, of another model, or does not fit."""


class ConfigError(SsambaError, ValueError):
    """A configuration holds an unknown key or a value outside its range."""


class DataError(SsambaError, ValueError):
    """A manifest, a folder of shards or a data set is missing, damaged, or contradicts itself."""


class DatasetStructureError(DataError):
    """A folder does not hold the public data set that it was said to hold; the message shows what is expected."""


class WorkerDiedError(SsambaError, RuntimeError):
    """A worker process ended without a word on a piece of work, as it does when a codec crashes."""


class SuiteError(SsambaError, ValueError):
    """A suite of labeled tasks is missing, or its tables do not fit; the message names the file."""


class BackendUnavailableError(SsambaError, RuntimeError):
    """A kernel backend was named explicitly, and cannot run here; the message says why."""


class MissingExtraError(SsambaError, ImportError):
    """A feature needs an optional dependency; the message gives the command that installs it."""


class TrainingError(SsambaError, RuntimeError):
    """A training run cannot start, go on, or save."""


class TrainingDivergedError(TrainingError):
    """Too many steps in a row had a loss or gradient that is not finite; the message says where and what is saved."""


class AudioTruncatedWarning(UserWarning):
    """The tail of an audio file is missing, and `strict=False` asked to go on with what is there."""
