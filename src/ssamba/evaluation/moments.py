"""Vectors of the moments of recordings, what is true at each, and their means over seconds.

Shapes: N recordings, K moments of all of them, one recording after the other, D dimensions, C classes, S seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ssamba.evaluation.caching import Array
from ssamba.events import Event

_COUNTS, _TIMES = "counts", "times_s"


@dataclass(frozen=True)
class Moments:
    """Vectors of moments."""

    views: Mapping[str, Array]
    """By layer and pooling, (K, D) float32."""
    counts: Array
    """Moments of each recording, (N,)."""
    times_s: Array
    """Their times from the start of the recording, (K,), ascending in each."""

    @cached_property
    def recordings(self) -> Array:
        """The recording of each moment, (K,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def arrays(self) -> dict[str, Array]:
        """Everything, to be kept in a file."""
        return {**self.views, _COUNTS: self.counts, _TIMES: self.times_s}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Moments:
        """What `arrays` gave."""
        views = {name: array for name, array in arrays.items() if name not in (_COUNTS, _TIMES)}
        return cls(views, arrays[_COUNTS], arrays[_TIMES])

    def of(self, recording: int) -> slice:
        """Where the moments of a recording are."""
        end = int(self.counts[: recording + 1].sum())
        return slice(end - int(self.counts[recording]), end)

    def by_second(self) -> Moments:
        """The mean vector of each second that holds a moment, with the second's start as its time."""
        counts, times, rows = [], [], []
        for recording in range(len(self.counts)):
            own = self.of(recording)
            seconds, members = np.unique(np.floor(self.times_s[own]), return_inverse=True)
            counts.append(len(seconds))
            times.append(seconds)
            rows.append(members + sum(counts[:-1]))
        place, total = np.concatenate(rows), sum(counts)
        size = np.bincount(place, minlength=total)[:, None]
        views = {}
        for name, vectors in self.views.items():
            sums = np.zeros((total, vectors.shape[1]))
            np.add.at(sums, place, vectors)
            views[name] = (sums / size).astype(np.float32)
        return Moments(views, np.array(counts), np.concatenate(times))


def second_targets(events: Sequence[Event], seconds: Array, labels: Sequence[str]) -> Array:
    """What is true of seconds that start at `seconds` (S,), (S, C): 0 or 1, NaN where nothing is known.

    The labels are those of the stretches that cover more than half of the second, as in fine-tuning; an empty label
    says that nothing is heard, and a second that no stretch covers is not known.
    """
    targets = np.full((len(seconds), len(labels)), np.nan)
    place = {label: k for k, label in enumerate(labels)}
    for event in events:
        covered = np.minimum(event.end_s, seconds + 1) - np.maximum(event.start_s, seconds) > 0.5
        known = targets[covered]
        targets[covered] = np.where(np.isnan(known), 0.0, known)
        if event.label:
            targets[covered, place[event.label]] = 1.0
    return targets
