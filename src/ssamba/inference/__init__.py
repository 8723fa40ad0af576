"""Encode windows of many recordings together, and collect the results of each one in constant memory."""

from ssamba.inference.accumulators import (
    Accumulator,
    EmbeddingAccumulator,
    FrameMerger,
    GrowingRows,
    LogitsAccumulator,
    PredictionAccumulator,
    RunningMean,
    SegmentLogitsAccumulator,
    SpanMeans,
    centers_s,
)
from ssamba.inference.engine import CPU_TOKENS_PER_BATCH, InferenceEngine, group_by_length
from ssamba.inference.windows import Window, WindowCutter

__all__ = [
    "CPU_TOKENS_PER_BATCH",
    "Accumulator",
    "EmbeddingAccumulator",
    "FrameMerger",
    "GrowingRows",
    "InferenceEngine",
    "LogitsAccumulator",
    "PredictionAccumulator",
    "RunningMean",
    "SegmentLogitsAccumulator",
    "SpanMeans",
    "Window",
    "WindowCutter",
    "centers_s",
    "group_by_length",
]
