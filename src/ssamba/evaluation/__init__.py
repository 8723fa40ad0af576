"""Score embeddings by probes on suites of labeled tasks."""

from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.run import evaluate
from ssamba.evaluation.scorecard import EvaluateOptions, Evaluation, Scorecard, evaluate_model
from ssamba.evaluation.suite import read_suite
from ssamba.evaluation.task import Task
from ssamba.evaluation.vectors import (
    ClipModel,
    EncoderModel,
    FunctionModel,
    LogMelStatistics,
    TimestampEmbeddings,
    VectorOptions,
    WaveformParts,
)
from ssamba.files import cache_folder

__all__ = [
    "ClipModel",
    "EncoderModel",
    "EvaluateOptions",
    "Evaluation",
    "FunctionModel",
    "LogMelStatistics",
    "Scorecard",
    "Task",
    "TimestampEmbeddings",
    "VectorOptions",
    "WaveformParts",
    "cache_folder",
    "evaluate",
    "evaluate_model",
    "read_suite",
    "read_waves",
]
