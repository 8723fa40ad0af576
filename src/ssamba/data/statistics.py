"""Measure the mean and standard deviation of a corpus' log-mel values, for `FrontEndConfig.mean` and `.std`.

They are measured over what a model sees in an epoch: at most 10.24 s of each clip, at random positions, whole frames
only. Sums are float64, and batches are combined by the method of Chan, Golub and LeVeque (1979), which avoids rounding
errors.

Shapes: B clips, T frames, M mel bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ssamba.audio.fbank import fbank, frame_lengths
from ssamba.audio.files import Skipped
from ssamba.config import FrontEndConfig
from ssamba.data.corpus import Corpus, open_corpus
from ssamba.data.joined import join_corpora
from ssamba.data.loader import WaveLoader
from ssamba.data.manifest import as_sources
from ssamba.data.plan import Plan, PlanConfig
from ssamba.errors import ConfigError, DataError, SkippedFilesError
from ssamba.progress import OnProgress, ProgressReporter, format_duration
from ssamba.worker_pool import default_workers

_BATCH_SIZE = 16


@dataclass
class CorpusStatistics:
    """Mean and standard deviation of a corpus, and what they were measured on; as text, a part of a recipe."""

    mean: float = 0.0
    """Mean of the log-mel values before normalization."""
    std: float = 0.0
    """Standard deviation of the log-mel values before normalization."""
    hours: float = 0.0
    """Audio that was measured."""
    clips: int = 0
    """Clips that were measured."""
    total_hours: float = 0.0
    """Audio to measure."""
    corpus_hours: float = 0.0
    """Audio of the corpus."""
    skipped: list[Skipped] = field(default_factory=list)
    """Clips that could not be read."""
    skipped_file: None = None
    """No file: the list is returned only."""

    def __str__(self) -> str:
        measured, all_audio = (format_duration(hours * 3600) for hours in (self.hours, self.corpus_hours))
        return (
            f"# {self.clips} clips, {measured} of {all_audio}, "
            f"{len(self.skipped)} skipped\n[front_end]\nmean = {self.mean:.4f}\nstd = {self.std:.4f}"
        )


def measure_statistics(
    data: Any,
    *,
    split: str | None = None,
    hours: float = 20,
    sample_rate: int = 16_000,
    mel_bins: int = 128,
    low_hz: float = 20.0,
    high_hz: float | None = None,
    seed: int = 0,
    encoding: str | None = None,
    strict: bool = False,
    workers: int | None = None,
    progress: OnProgress | None = None,
) -> CorpusStatistics:
    """Measure the mean and standard deviation of the log-mel values of one or several sources.

    Args:
        data: a folder of audio or of shards, a manifest, hf:OWNER/NAME, a corpus, or a list of these.
        split: only the clips of this split.
        hours: stop after this much audio, of clips in a random order; 0 measures a crop of every clip.
        sample_rate: sample rate of the front end, in Hz.
        mel_bins: mel bins of the front end.
        low_hz: lower edge of the first mel bin.
        high_hz: upper edge of the last mel bin; None means half the sample rate.
        seed: seed of the order and the crops.
        encoding: of manifests in CSV and JSON, such as `cp1252`; None is UTF-8.
        strict: raise an error at the end if any clip was skipped.
        workers: processes that decode; None means the number of cores minus one (at most 8) for more than half an hour.
        progress: called after each batch; returning False stops, and the result is of the clips so far.

    Raises:
        ConfigError: the front end's settings are invalid.
        DataError: a source cannot be opened, or no clip of at least one frame can be read.
        SkippedFilesError: `strict` is set and clips were skipped.
    """
    if not 0 <= hours < math.inf:
        raise ConfigError(f"hours must be a number of hours, 0 for all; got {hours}")
    front_end = FrontEndConfig.parse(
        {"sample_rate_hz": sample_rate, "num_mel_bins": mel_bins, "low_hz": low_hz, "high_hz": high_hz}, "front end"
    )
    corpora = [
        open_corpus(source, sample_rate, split, workers=workers or 0, encoding=encoding) for source in as_sources(data)
    ]
    corpus = join_corpora(corpora)
    # A process takes longer to start than a few clips take to decode.
    is_long = min(corpus.hours, hours or corpus.hours) > 0.5
    workers = (default_workers() if is_long else 0) if workers is None else workers
    result = corpus_statistics(corpus, front_end, hours or None, seed, workers=workers, progress=progress)
    if strict and result.skipped:
        raise SkippedFilesError(f"{len(result.skipped)} clips were skipped, and strict was set", result)
    return result


def corpus_statistics(
    corpus: Corpus,
    front_end: FrontEndConfig | None = None,
    limit_hours: float | None = None,
    seed: int = 0,
    *,
    workers: int = 0,
    progress: OnProgress | None = None,
) -> CorpusStatistics:
    """Return the mean and standard deviation of the log-mel values of `corpus`.

    Args:
        corpus: opened at the front end's sample rate.
        front_end: how the values are computed; its own mean and std are ignored. None means the official one.
        limit_hours: stop after this much audio, of clips in a random order; None takes a crop of every clip.
        seed: seed of the order and the crops.
        workers: processes that decode.
        progress: called after each batch; returning False stops.

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
    total_hours = min(epoch.hours, limit_hours or math.inf)
    result = CorpusStatistics(total_hours=total_hours, corpus_hours=corpus.hours, skipped=list(corpus.skipped))
    reporter = ProgressReporter(progress, "measuring", 100, "%")
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
        goes_on = reporter.update(
            100 * min(1.0, result.hours / total_hours),
            audio_s=result.hours * 3600,
            skipped=len(result.skipped),
            detail=f"mean {result.mean:.3f}, std {result.std:.3f}",
        )
        if not goes_on or (limit_hours is not None and result.hours >= limit_hours):
            break
    if not count:
        reason = f" {result.skipped[-1].reason}" if result.skipped else ""
        raise DataError(f"{corpus.name}: no clip of at least {front_end.frame_ms:g} ms can be read.{reason}")
    return result
