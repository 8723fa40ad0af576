"""Scenes of held-out clips and held-out background, read as `predict --events` reads a night: thresholds for events.

A threshold that suits clips does not suit nights: a call is read in several windows, whole and in part, and most
windows hold none. So each scene is some seconds of held-out background with one held-out clip in it, which is found or
not; what else is found is a false alarm. The precision is thus that of nights with a call every ten seconds or so.

Shapes: K windows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ssamba.data.corpus import Samples
from ssamba.data.mixing import rms
from ssamba.embedder import Embedder
from ssamba.embedding import PredictOptions
from ssamba.events import Event, count_overlaps, merge_windows
from ssamba.metrics.calibration import Array, ClassThreshold, calibrated
from ssamba.model.heads import Classifier
from ssamba.splits import Ints
from ssamba.training.finetuning.task import FinetuneTask

LEVELS_DB = (0.0, -6.0)
"""Levels of the clips over the background under them, by root mean square."""
_EMPTY_S = 8.0
"""Background beside the clip in a scene."""
_MOST_CLIPS = 60
_GRID = np.round(np.arange(0.05, 0.96, 0.025), 3)
"""Thresholds to choose from."""


class Scene(NamedTuple):
    """Answers for the windows of a scene."""

    logits: Array
    """(K, C)."""
    starts_s: Array
    """(K,)."""
    ends_s: Array
    """(K,)."""
    is_silent: Array
    """Whether windows answer for digital silence, (K,) bool."""
    event: Event


def read_scenes(task: FinetuneTask, model: Classifier, clips: Ints) -> list[Scene]:
    """Return scenes of held-out clips, the same ones each time; none without a background among them.

    Args:
        task: of the fold.
        model: the classifier.
        clips: held-out clips, background and others (n,).
    """
    data, corpus = task.data, task.data.corpus
    is_background = data.is_background(clips)
    labeled, background = clips[~is_background], clips[is_background]
    if data.multi or task.recipe.labels.unit != "clip" or not (len(labeled) and len(background)):
        return []
    random = np.random.default_rng(0)
    labeled = random.permutation(labeled)[:_MOST_CLIPS]
    events: dict[int, Event] = {}

    def scenes() -> Iterator[tuple[int, tuple[Samples]]]:
        for i in map(int, labeled):
            label = data.classes[int(data.targets_of(i)[0].argmax())]
            for level_db in LEVELS_DB:
                under = int(random.choice(background))
                place, position = random.random(2)
                try:
                    clip = corpus.read(i)
                    samples = data.background_around(under, len(clip) / corpus.sample_rate_hz + _EMPTY_S, position)
                except (ValueError, OSError):
                    continue
                key = len(events)
                samples, start = lay(clip, samples, level_db, place)
                start_s = start / corpus.sample_rate_hz
                events[key] = Event(label, start_s, start_s + len(clip) / corpus.sample_rate_hz)
                yield key, (samples,)

    embedder = Embedder(task.as_checkpoint(model), device=next(model.parameters()).device)
    embedder.follows_load = False  # a resumed run has the same bits
    options = PredictOptions()
    lengths = embedder.predictor.lengths(options, events=True)
    assert lengths is not None
    found = dict(embedder.predictor.windows(scenes(), lengths, options))
    return [
        Scene(one.values, one.starts_s, one.ends_s, one.is_silent, events[key])
        for key, one in sorted(found.items())
        if not isinstance(one, Exception)
    ]


def lay(clip: Samples, background: Samples, level_db: float, place: float) -> tuple[Samples, int]:
    """Lay a clip into a background, which is mirrored if it is shorter; return the mixture and the clip's first sample.

    Args:
        clip: (samples,).
        background: (samples,).
        level_db: level of the clip over that of the background under it.
        place: of the clip, as a fraction of the possible range.
    """
    missing = len(clip) - len(background)
    mixed: Samples = np.pad(background, (0, missing), "symmetric") if missing > 0 else background.copy()
    start = round((len(mixed) - len(clip)) * place)
    under = mixed[start : start + len(clip)]
    level, clip_level = rms(under), rms(clip)
    gain = 10 ** (level_db / 20) * level / clip_level if level and clip_level else 1.0
    under += np.float32(gain) * clip
    return mixed, start


def event_thresholds(
    scenes: Sequence[Scene],
    labels: Sequence[str],
    background: str | None,
    temperature: float,
    precision: float,
    *,
    independent: bool,
) -> list[ClassThreshold]:
    """Return the lowest threshold of each class at which the share of right events is high enough.

    With few clips of a class that share is uncertain, so the events of an average class are added to its own. Where the
    precision is not reached, or only at the cost of most calls, the threshold with the highest F0.5 is taken, which
    counts precision twice as much as recall.

    Args:
        scenes: of all folds.
        labels: names of the classes (C).
        background: the class that makes no events.
        temperature: divides the logits.
        precision: wanted share of right events.
        independent: whether labels are independent (sigmoid) or exclude each other (softmax).
    """
    found, right = _count(scenes, labels, background, temperature, independent)
    calls = np.array([sum(one.event.label == label for one in scenes) for label in labels])
    classes = max(1, int((calls > 0).sum()))
    chosen = []
    for own_found, own_right, own_calls in zip(found, right, calls, strict=True):
        smooth_found, smooth_right = own_found + found.sum(0) / classes, own_right + right.sum(0) / classes
        share, heard = smooth_right / np.maximum(smooth_found, 1e-9), smooth_right / (own_calls + calls.sum() / classes)
        enough = np.flatnonzero(share >= precision)
        balanced = int((1.25 * share * heard / np.maximum(0.25 * share + heard, 1e-9)).argmax())  # F0.5
        k = min(int(enough[0]), balanced) if len(enough) else balanced
        own_precision = own_right[k] / own_found[k] if own_found[k] else math.nan
        recall = own_right[k] / own_calls if own_calls else math.nan
        chosen.append(ClassThreshold(float(_GRID[k]), float(own_precision), float(recall), int(own_calls)))
    return chosen


def _count(
    scenes: Sequence[Scene], labels: Sequence[str], background: str | None, temperature: float, independent: bool
) -> tuple[Array, Array]:
    """Return how many events are found for each class and threshold, and how many of them are right, (C, grid)."""
    found, right = np.zeros((2, len(labels), len(_GRID)), np.int64)
    for scene in scenes:
        table = calibrated(scene.logits, temperature, independent=independent)
        table[scene.is_silent] = 0.0
        call = labels.index(scene.event.label)
        for k, threshold in enumerate(_GRID):
            events = merge_windows(table, scene.starts_s, scene.ends_s, labels, float(threshold), background=background)
            for event in events:
                found[labels.index(event.label), k] += 1
            right[call, k] += count_overlaps([scene.event], events)
    return found, right
