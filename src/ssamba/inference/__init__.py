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
from ssamba.inference.windows import ClipBatch, Window, WindowCutter, clip_batch

__all__ = [
    "CPU_TOKENS_PER_BATCH",
    "Accumulator",
    "ClipBatch",
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
    "clip_batch",
    "group_by_length",
]
