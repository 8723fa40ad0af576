"""Score embeddings by probes on suites of labeled tasks."""

from ssamba.evaluation.clips import cache_folder, read_waves
from ssamba.evaluation.evaluate import EvaluateOptions, Progress, Scorecard, evaluate
from ssamba.evaluation.suite import read_suite
from ssamba.evaluation.task import Task
from ssamba.evaluation.vectors import (
    ClipModel,
    EncoderModel,
    FunctionModel,
    LogMelStatistics,
    TimestampEmbeddings,
    VectorOptions,
)

__all__ = [
    "ClipModel",
    "EncoderModel",
    "EvaluateOptions",
    "FunctionModel",
    "LogMelStatistics",
    "Progress",
    "Scorecard",
    "Task",
    "TimestampEmbeddings",
    "VectorOptions",
    "cache_folder",
    "evaluate",
    "read_suite",
    "read_waves",
]
