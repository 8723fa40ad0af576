"""Measure the mean and standard deviation of a corpus' log-mel values, for `FrontEndConfig.mean` and `.std`.

They are measured over what a model sees in an epoch: at most 10.24 s of each clip, at random positions, whole frames
only. Sums are float64, and batches are combined by the method of Chan, Golub and LeVeque (1979), which avoids rounding
errors.

Shapes: B clips, T frames, M mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ssamba.audio.fbank import fbank, frame_lengths
from ssamba.audio.files import Skipped
from ssamba.config import FrontEndConfig
from ssamba.data.corpus import Corpus
from ssamba.data.loader import WaveLoader
from ssamba.data.plan import Plan, PlanConfig
from ssamba.errors import DataError

_BATCH_SIZE = 16


@dataclass
class CorpusStatistics:
    """The result so far; the same object is passed to `on_progress` after each batch."""

    mean: float = 0.0
    """Mean of the log-mel values before normalization."""
    std: float = 0.0
    """Standard deviation of the log-mel values before normalization."""
    hours: float = 0.0
    """Audio that was measured."""
    clips: int = 0
    total_hours: float = 0.0
    """Audio to measure."""
    skipped: list[Skipped] = field(default_factory=list)
    """Clips that could not be read."""


def corpus_statistics(
    corpus: Corpus,
    front_end: FrontEndConfig | None = None,
    limit_hours: float | None = None,
    seed: int = 0,
    *,
    workers: int = 0,
    on_progress: Callable[[CorpusStatistics], None] | None = None,
) -> CorpusStatistics:
    """Return the mean and standard deviation of the log-mel values of `corpus`.

    Args:
        corpus: opened at the front end's sample rate.
        front_end: how the values are computed; its own mean and std are ignored. None is the official one.
        limit_hours: stop after this much audio, of clips in a random order; None takes a crop of every clip.
        seed: seed of the order and the crops.
        workers: processes that decode.
        on_progress: called after each batch.

    Raises:
        DataError: the sample rates differ, or no clip of at least one frame can be read.
    """
    front_end = front_end or FrontEndConfig()
    if corpus.sample_rate_hz != front_end.sample_rate_hz:
        raise DataError(
            f"{corpus.name}: is read at {corpus.sample_rate_hz} Hz, the front end needs {front_end.sample_rate_hz} Hz: "
            f"open_corpus(..., sample_rate_hz={front_end.sample_rate_hz})"
        )
    rate_hz = front_end.sample_rate_hz
    config = PlanConfig(seed=seed, sample_rate_hz=rate_hz, short_clips="bucket", batch_size=_BATCH_SIZE)
    plan = Plan(config, [corpus])
    epoch = plan.batches(0)
    result = CorpusStatistics(total_hours=min(epoch.hours, limit_hours or math.inf), skipped=list(corpus.skipped))
    count, mean, squares = 0, 0.0, 0.0
    for batch in WaveLoader([corpus], plan, workers=workers, pin_memory=False).run(epoch):
        result.skipped += [Skipped(key, reason) for key, reason in batch.skipped]
        frames = frame_lengths(batch.samples, front_end)
        if int(frames.sum()):
            features = fbank(batch.waves, batch.samples, front_end)
            valid = torch.arange(features.shape[1]) < frames[:, None]
            values = features[valid].double()
            batch_count, batch_mean = values.numel(), float(values.mean())
            delta, total = batch_mean - mean, count + batch_count
            squares += float((values - batch_mean).square().sum()) + delta * delta * count * batch_count / total
            mean += delta * batch_count / total
            count = total
            result.mean, result.std = mean, math.sqrt(squares / count)
        result.hours += batch.num_samples / rate_hz / 3600
        result.clips += len(batch)
        if on_progress is not None:
            on_progress(result)
        if limit_hours is not None and result.hours >= limit_hours:
            break
    if not count:
        reason = f" {result.skipped[-1].reason}" if result.skipped else ""
        raise DataError(f"{corpus.name}: no clip of at least {front_end.frame_ms:g} ms can be read.{reason}")
    return result
