"""Answers of a classifier: for recordings, seconds and windows, by the rules of `ssamba`.

Shapes: K windows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from ssamba_onnx.results import Array, Prediction
from ssamba_onnx.windows import SILENT_PEAK, Lengths, window_edges

Per: TypeAlias = "Literal['clip', 'second', 'window'] | None"
Merge: TypeAlias = Literal["mean", "max"]

LENGTH_TOLERANCE = 1.5
"""Lengths up to this factor beyond the quantiles of the training clips' are within them."""


@dataclass
class Peaks:
    """Counts the samples of a recording, and notes the highest of each second."""

    rate_hz: int
    num_samples: int = 0
    peaks: list[float] = field(default_factory=list)

    def add(self, block: Array) -> Array:
        """Note a block of samples, and return it."""
        place = 0
        while place < len(block):
            second, inside = divmod(self.num_samples, self.rate_hz)
            part = block[place : place + self.rate_hz - inside]
            self.peaks += [0.0] * (second + 1 - len(self.peaks))
            self.peaks[second] = max(self.peaks[second], float(np.abs(part).max()))
            place += len(part)
            self.num_samples += len(part)
        return block


class Answers:
    """Turns the logits of a classifier into predictions, by its configuration."""

    def __init__(self, config: dict[str, Any], labels: Sequence[str], window_s: float, name: str):
        """Start; `window_s` is the model's longest window."""
        self.config, self.labels, self.window_s, self.name = config, tuple(labels), window_s, name

    def lengths(self, per: Per, window_s: float | None, hop_s: float | None, merge: Merge) -> Lengths | None:
        """Return how recordings are cut; None: in the windows of pretraining, whose answers are averaged.

        Raises:
            ValueError: an argument is wrong, or does not fit how the model was trained.
        """
        for key, value, choices in (
            ("per", per, (None, "clip", "second", "window")),
            ("merge", merge, ("mean", "max")),
        ):
            if value not in choices:
                raise ValueError(f"{key} is one of {', '.join(map(repr, choices))}, got {value!r}")
        asked = window_s is not None or hop_s is not None or merge == "max" or per == "window"
        if self.config["label_frames"] is not None:
            if asked:
                raise ValueError(
                    f"{self.name} was trained on the seconds of recordings: omit window_s, hop_s and merge"
                )
            return None
        trained = self.config["clip_lengths_s"]
        if not asked and trained is None:
            if per == "second" and self.config["pooling"] != "mean":
                raise ValueError(f"{self.name} reads its prefix token: ask for whole clips, or give window_s")
            return None
        length_s = window_s or min(trained[1] if trained else self.window_s, self.window_s)
        distance_s = length_s / 2 if hop_s is None else hop_s
        if not (0 < length_s < math.inf and 0 < distance_s <= length_s):
            raise ValueError(
                f"window_s is above 0, and hop_s above 0 and at most that; got {length_s} and {distance_s}"
            )
        is_clip = per in (None, "clip") and window_s is None
        whole_s = trained[2] * LENGTH_TOLERANCE if trained and is_clip else 0.0
        return Lengths(length_s, distance_s, max(length_s, whole_s), trained[0] if trained else length_s)

    def probabilities(self, logits: Array) -> Array:
        """Return the probabilities (..., C) of logits, calibrated if a temperature was measured."""
        scaled: Array = logits / np.float32(self.config["temperature"] or 1.0)
        if self.config["activation"] == "sigmoid":
            return np.asarray(0.5 * (1 + np.tanh(0.5 * scaled)))
        powers = np.exp(scaled - scaled.max(-1, keepdims=True))
        return np.asarray(powers / powers.sum(-1, keepdims=True))

    @property
    def nothing(self) -> Array:
        """Probabilities where nothing is heard (C,): the background, none of the labels, or all of them alike."""
        count, background = len(self.labels), self.config["background"]
        if background is not None:
            return np.array([label == background for label in self.labels], np.float32)
        return np.full(count, 1 / count if self.config["activation"] == "softmax" else 0.0, np.float32)

    def of_segments(self, logits: Array, segment_s: float, duration_s: float) -> list[Prediction]:
        """Return a prediction for each segment of logits (segments, C), the last one ends with the recording."""
        starts_s = [k * segment_s for k in range(len(logits))]
        return [
            Prediction(start_s, min(start_s + segment_s, duration_s), self.labels, row)
            for start_s, row in zip(starts_s, self.probabilities(logits), strict=True)
        ]

    def of_windows(
        self, starts_s: Array, ends_s: Array, logits: Array, is_silent: Array, peaks: Peaks, per: str, merge: Merge
    ) -> list[Prediction]:
        """Return the predictions for windows, seconds or the recording, from the logits of windows (K, C).

        A second is answered by the windows that answer for a part of it, the recording by all that are not silent; the
        mean counts each by the time it answers for.
        """
        rows = np.where(is_silent[:, None], self.nothing, self.probabilities(logits))
        edges_s, duration_s = window_edges(starts_s, ends_s), float(ends_s[-1])
        if per == "window":
            times = zip(starts_s.tolist(), ends_s.tolist(), rows, strict=True)
            return [self._prediction(start_s, end_s, row) for start_s, end_s, row in times]
        if per == "clip":
            heard = ~is_silent if not is_silent.all() else np.ones(len(rows), bool)
            row = rows[heard].max(0) if merge == "max" else np.average(rows[heard], 0, np.diff(edges_s)[heard])
            return [self._prediction(0.0, duration_s, row)]
        found = []
        for second, peak in enumerate(peaks.peaks):
            end_s = min(second + 1.0, duration_s)
            first = max(0, int(np.searchsorted(edges_s, second, "right")) - 1)
            last = max(first + 1, int(np.searchsorted(edges_s, end_s, "left")))
            own, bounds_s = rows[first:last], edges_s[first : last + 1]
            common_s = np.minimum(bounds_s[1:], end_s) - np.maximum(bounds_s[:-1], second)
            if peak <= SILENT_PEAK:
                row = self.nothing
            elif merge == "max":
                most = common_s >= 0.5 * np.minimum(np.diff(bounds_s), end_s - second) - 1e-9
                row = own[most].max(0) if most.any() else own[common_s.argmax()]
            else:
                row = np.average(own, 0, np.maximum(common_s, 1e-9))
            found.append(self._prediction(float(second), end_s, row))
        return found

    def _prediction(self, start_s: float, end_s: float, row: Array) -> Prediction:
        return Prediction(start_s, end_s, self.labels, row.astype(np.float32))
