"""Mean and standard deviation of a corpus' log-mel values, for `FrontEndConfig.mean` and `.std`.

They are taken over what a model is shown in an epoch: of each clip at most 10.24 s, at random places, whole frames only.
Sums are float64, and batches are put together as Chan, Golub and LeVeque (1979) do, so that nothing is lost to rounding.

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
    """What was found; while it is being found, the same object is handed to `on_progress` after each batch."""

    mean: float = 0.0
    """Of log-mel values before normalization."""
    std: float = 0.0
    hours: float = 0.0
    """Of audio that was looked at."""
    clips: int = 0
    total_hours: float = 0.0
    """That are to be looked at."""
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
    """Mean and standard deviation of the log-mel values of `corpus`.

    Args:
        corpus: open at the front end's rate.
        front_end: how they are computed; its own mean and std are not used. None is the official one.
        limit_hours: stop after so much audio, of clips in a random order; None takes a crop of every clip.
        seed: of the order and the crops.
        workers: processes that decode.
        on_progress: called after each batch.

    Raises:
        DataError: another rate, or no clip of a frame's length can be read.
    """
    front_end = front_end or FrontEndConfig()
    if corpus.sample_rate_hz != front_end.sample_rate_hz:
        raise DataError(
            f"{corpus.name}: is read at {corpus.sample_rate_hz} Hz, the front end wants {front_end.sample_rate_hz} Hz: "
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
            whole = torch.arange(features.shape[1]) < frames[:, None]
            values = features[whole].double()
            more, its_mean = values.numel(), float(values.mean())
            shift = its_mean - mean
            squares += float((values - its_mean).square().sum()) + shift * shift * count * more / (count + more)
            mean += shift * more / (count + more)
            count += more
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
