"""What depends on the order of clips alone: sorted once, and then asked again for any weights of the clips.

A bootstrap sample is a weight for each clip, how often it was drawn: a thousand samples need no more sorting than one.
Clips of equal scores share one threshold, as in scikit-learn.

Shapes: N clips, C classes; inside, classes come first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 20  # numbers that are worked on at once


class Ranking:
    """The clips of each class by falling score."""

    def __init__(self, scores: Array, targets: Array):
        """Args: finite scores and targets 0 or 1, (N, C) both."""
        count, self.classes = scores.shape
        step = max(1, _BLOCK // max(1, count))
        blocks = [slice(start, start + step) for start in range(0, self.classes, step)]
        self._blocks = [_Block(scores[:, own].T, targets[:, own].T > 0) for own in blocks]

    def average_precision(self, weights: Array | None = None) -> Array:
        """Of each class, (C,), clips counting by weights (N,), or once; NaN without a positive clip."""
        return np.concatenate([block.average_precision(weights) for block in self._blocks])

    def area(self, weights: Array | None = None) -> Array:
        """Under the ROC curve of each class, (C,); NaN without a positive or a negative clip."""
        return np.concatenate([block.area(weights) for block in self._blocks])

    def equal_error(self, weights: Array | None = None) -> Array:
        """Where misses equal false alarms on the ROC curve of each class, (C,); NaN as `area`."""
        return np.concatenate([block.equal_error(weights) for block in self._blocks])


class _Block:
    """Some classes; the arrays are (c, N), by falling score in each row."""

    def __init__(self, scores: Array, positive: Array):
        self.order = np.argsort(-scores, axis=1, kind="stable")
        ranked = np.take_along_axis(scores, self.order, axis=1)
        self.positive = np.take_along_axis(positive, self.order, axis=1)
        place = np.arange(scores.shape[1])
        changes = ranked[:, 1:] != ranked[:, :-1]
        starts = np.pad(changes, ((0, 0), (1, 0)), constant_values=True)
        ends = np.pad(changes, ((0, 0), (0, 1)), constant_values=True)
        # The first and the last clip that share each clip's threshold.
        self.first = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
        self.last = np.minimum.accumulate(np.where(ends, place, len(place))[:, ::-1], axis=1)[:, ::-1]
        self.tied = not changes.all()

    def _counts(self, weights: Array | None) -> tuple[Array, Array, Array]:
        """Weights of the clips, and of the positive and the negative ones down to each clip's threshold."""
        own = np.ones(self.order.shape) if weights is None else weights[self.order].astype(np.float64)
        hits = np.cumsum(own * self.positive, axis=1)
        alarms = np.cumsum(own * ~self.positive, axis=1)
        if self.tied:
            hits, alarms = (np.take_along_axis(sums, self.last, axis=1) for sums in (hits, alarms))
        return own, hits, alarms

    def average_precision(self, weights: Array | None) -> Array:
        own, hits, alarms = self._counts(weights)
        precision = hits / np.maximum(hits + alarms, 1e-300)  # 0 of 0 clips, where none counts yet
        gained = (own * self.positive * precision).sum(1)
        return np.where(hits[:, -1] > 0, gained / np.maximum(hits[:, -1], 1e-300), np.nan)

    def area(self, weights: Array | None) -> Array:
        own, hits, alarms = self._counts(weights)
        pairs = hits[:, -1] * alarms[:, -1]
        outranked = (own * ~self.positive * (self._before(hits) + hits)).sum(1) / 2
        return np.where(pairs > 0, outranked / np.maximum(pairs, 1e-300), np.nan)

    def equal_error(self, weights: Array | None) -> Array:
        _, hits, alarms = self._counts(weights)
        exist = (hits[:, -1] > 0) & (alarms[:, -1] > 0)
        found = hits / np.maximum(hits[:, -1:], 1e-300)
        alarmed = alarms / np.maximum(alarms[:, -1:], 1e-300)
        # `alarmed - missed` never falls, from -1 to 1: it is zero on one segment of the curve.
        gap = alarmed + found - 1
        after = np.argmax(gap >= 0, axis=1)[:, None]
        start = np.take_along_axis(self.first, after, axis=1)

        def around(values: Array, none: float) -> tuple[Array, Array]:
            before = np.where(start > 0, np.take_along_axis(values, np.maximum(start - 1, 0), axis=1), none)
            return before[:, 0], np.take_along_axis(values, after, axis=1)[:, 0]

        (low_gap, high_gap), (low, high) = around(gap, -1.0), around(alarmed, 0.0)
        share = -low_gap / np.where(exist, high_gap - low_gap, 1.0)
        return np.where(exist, low + share * (high - low), np.nan)

    def _before(self, sums: Array) -> Array:
        """The sums down to the threshold before each clip's."""
        shifted = np.pad(sums, ((0, 0), (1, 0)))
        return np.take_along_axis(shifted, self.first, axis=1) if self.tied else shifted[:, :-1]
