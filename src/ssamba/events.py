"""Sound events: find them in scores of windows or time steps, match them with true events, and score the result.

The metrics are those of sed_eval (Mesaros et al., 2016, doi:10.3390/app6060162), micro-averaged as in HEAR:

    event_onset_200ms_fms                F1; a true event is found if one with its label starts within 0.2 s of it
    event_onset_50ms_fms                 the same within 50 ms
    event_onset_offset_50ms_20perc_fms   and if that one also ends within 50 ms, or 20 % of the true event's length
    segment_1s_er                        error rate of 1 s segments: (substitutions + deletions + insertions) / active

A predicted event is paired with at most one true event (maximum matching of a bipartite graph). The counts behind each
metric add up over recordings, so each recording is counted once, and a bootstrap sample of recordings is a sum.

Shapes: K time steps of a recording, S seconds, C classes, N recordings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssamba.errors import MissingExtraError
from ssamba.metrics.classification import Array

_END_TOLERANCE_MS = 0.0001  # an event's end still belongs to it
_ROUNDING_S = 1e-9  # tolerances hold for times whose difference is not exact in binary


class Event(NamedTuple):
    """A label and the time it is heard; an empty label marks silence."""

    label: str
    start_s: float
    end_s: float
    probability: float = 1.0
    """Of predicted events."""


class Smoothing(NamedTuple):
    """How scores of time steps become events."""

    median_filter_ms: float
    """Length of a median filter over each class's scores."""
    min_duration_ms: float
    """Shorter events are dropped; measured from the first time step to the last."""


@dataclass(frozen=True)
class EventMetric:
    """A metric of predicted events: counts of one recording, and the metric of their sums."""

    counts: Callable[[Sequence[Event], Sequence[Event]], Array]
    """(true events, predicted events) of one recording -> counts that add up over recordings."""
    score: Callable[[Array], Array]
    """Sums of counts, (..., counts) -> values (...)."""
    higher_is_better: bool
    """False for error rates."""


def event_metric(name: str, true: Sequence[Sequence[Event]], predicted: Sequence[Sequence[Event]]) -> float:
    """Return a metric over recordings.

    Args:
        name: one of `EVENT_METRICS`.
        true: true events of each recording (N).
        predicted: predicted events of each (N).

    Raises:
        ValueError: the name is unknown, the lists differ in length, or an error rate has no true event.
    """
    if name not in EVENT_METRICS:
        raise ValueError(f"no metric of events is called {name!r}: expected one of {', '.join(EVENT_METRICS)}")
    value = float(EVENT_METRICS[name].score(event_counts(name, true, predicted).sum(0)))
    if math.isnan(value):
        raise ValueError(f"{name} needs true events: there is none")
    return value


def event_counts(name: str, true: Sequence[Sequence[Event]], predicted: Sequence[Sequence[Event]]) -> Array:
    """Return the counts of a metric in each recording, (N, counts); arguments as `event_metric`."""
    if len(true) != len(predicted) or not true:
        raise ValueError(
            f"expected true and predicted events of the same recordings, got {len(true)}, {len(predicted)}"
        )
    return np.array([EVENT_METRICS[name].counts(a, b) for a, b in zip(true, predicted, strict=True)])


def count_matches(
    true: Sequence[Event], predicted: Sequence[Event], tolerance_s: float, share_of_length: float | None = None
) -> int:
    """Return the largest number of true events that can be paired with different predicted events of their label.

    Args:
        true: true events.
        predicted: predicted events.
        tolerance_s: largest distance of the starts.
        share_of_length: largest distance of the ends, as a share of the true event's length (at least `tolerance_s`);
            None ignores the ends.
    """

    def near(a: Array, b: Array) -> Array:
        found: Array = np.abs(a[:, None, 0] - b[None, :, 0]) <= tolerance_s + _ROUNDING_S
        if share_of_length is not None:
            allowed = np.maximum(tolerance_s, share_of_length * (a[:, 1] - a[:, 0]))
            found &= np.abs(a[:, None, 1] - b[None, :, 1]) <= allowed[:, None] + _ROUNDING_S
        return found

    return _count_pairs(true, predicted, near)


def count_overlaps(true: Sequence[Event], predicted: Sequence[Event], share: float = 0.5) -> int:
    """Return the largest number of true events that can be paired with different predicted events of their label.

    Two events are a pair if they have at least `share` of the shorter one's length in common: what a biologist who
    checks a list of detections counts, whose ends are as coarse as the windows.
    """

    def overlap(a: Array, b: Array) -> Array:
        common = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
        shorter = np.minimum((a[:, 1] - a[:, 0])[:, None], (b[:, 1] - b[:, 0])[None, :])
        found: Array = (common > 0) & (common >= share * shorter - _ROUNDING_S)
        return found

    return _count_pairs(true, predicted, overlap)


def _count_pairs(true: Sequence[Event], predicted: Sequence[Event], fit: Callable[[Array, Array], Array]) -> int:
    """Return the size of a maximum matching; `fit` returns which times (a, 2) and (b, 2) may be pairs, (a, b) bool."""
    if not true or not predicted:
        return 0
    try:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching
    except ImportError:
        raise MissingExtraError(_MISSING_SCIPY) from None
    total = 0
    for label in {event.label for event in true} & {event.label for event in predicted}:
        a, b = (np.array([e[1:3] for e in events if e.label == label]) for events in (true, predicted))
        total += int((maximum_bipartite_matching(csr_array(fit(a, b)), perm_type="column") >= 0).sum())
    return total


def segment_activity(events: Sequence[Event], labels: Sequence[str], length_s: float = 1.0) -> Array:
    """Return which labels are active in each segment, (segments, C) bool: those of events that overlap it."""
    count = max((math.ceil(event.end_s / length_s) for event in events), default=0)
    active = np.zeros((count, len(labels)), bool)
    column = {label: k for k, label in enumerate(labels)}
    for event in events:
        active[math.floor(event.start_s / length_s) : math.ceil(event.end_s / length_s), column[event.label]] = True
    return active


def timestamp_targets(events: Sequence[Event], times_s: Array, labels: Sequence[str]) -> Array:
    """Return the labels at times (K,): (K, C) with 0 or 1; an event includes its start and its end."""
    targets = np.zeros((len(times_s), len(labels)), np.int64)
    column = {label: k for k, label in enumerate(labels)}
    for event in events:
        inside = (times_s >= event.start_s) & (times_s < event.end_s + _END_TOLERANCE_MS / 1000)
        targets[inside, column[event.label]] = 1
    return targets


def second_targets(events: Sequence[Event], seconds: Array, labels: Sequence[str]) -> Array:
    """Return the labels of seconds that start at `seconds` (S,): (S, C) with 0, 1, or NaN for unknown.

    As in fine-tuning, a label holds for a second if its event covers more than half of it; an event without a label
    marks silence, and a second that no event covers is unknown.
    """
    targets = np.full((len(seconds), len(labels)), np.nan)
    column = {label: k for k, label in enumerate(labels)}
    for event in events:
        covered = np.minimum(event.end_s, seconds + 1) - np.maximum(event.start_s, seconds) > 0.5
        known = targets[covered]
        targets[covered] = np.where(np.isnan(known), 0.0, known)
        if event.label:
            targets[covered, column[event.label]] = 1.0
    return targets


def find_events(
    scores: Array, times_s: Array, labels: Sequence[str], smoothing: Smoothing, threshold: float
) -> list[Event]:
    """Return the events in scores of time steps, found as HEAR's kit does.

    After a median filter, each run of time steps above the threshold is an event, from the time of its first step to
    that of its last.

    Args:
        scores: (K, C).
        times_s: (K,), ascending.
        labels: names of the classes (C).
        smoothing: median filter and shortest event.
        threshold: a label is active above this score.
    """
    if smoothing.median_filter_ms and len(times_s) > 1:
        width = round(smoothing.median_filter_ms / (1000 * float(np.mean(np.diff(times_s)))))
        if width > 1:
            try:
                from scipy.ndimage import median_filter
            except ImportError:
                raise MissingExtraError(_MISSING_SCIPY) from None
            scores = median_filter(scores, size=(width, 1))
    events = []
    for column, label in enumerate(labels):
        for first, last in _runs(scores[:, column] > threshold):
            start_s, end_s = float(times_s[first]), float(times_s[last])
            if 1000 * (end_s - start_s) >= smoothing.min_duration_ms - _END_TOLERANCE_MS:
                events.append(Event(label, start_s, end_s))
    return sorted(events, key=lambda event: event[1:])


def window_edges(starts_s: Array, ends_s: Array) -> Array:
    """Return what each of K overlapping windows answers for: the time nearer to its center than to any other's.

    Args:
        starts_s: starts of the windows (K,), ascending.
        ends_s: their ends (K,).

    Returns:
        (K + 1,): window k answers from edge k to edge k + 1; the first one from its start, the last one to its end.
    """
    centers = (np.asarray(starts_s, np.float64) + ends_s) / 2
    return np.concatenate((starts_s[:1], (centers[1:] + centers[:-1]) / 2, ends_s[-1:])).astype(np.float64)


def merge_windows(
    probabilities: Array,
    starts_s: Array,
    ends_s: Array,
    labels: Sequence[str],
    thresholds: float | Sequence[float],
    *,
    min_length_s: float = 0.0,
    gap_s: float = 0.0,
    background: str | None = None,
) -> list[Event]:
    """Merge the answers of windows to events.

    A label is heard where its probability reaches its threshold. Windows in a row are one event, over the time that
    they answer for (`window_edges`); its probability is the highest of them.

    Args:
        probabilities: of each label in each window, (K, C); of a classifier, or of a probe (`predict_proba`).
        starts_s: starts of the windows (K,), ascending.
        ends_s: their ends (K,).
        labels: names of the classes (C).
        thresholds: one for all classes, or one for each (C).
        min_length_s: shorter events are dropped, after merging.
        gap_s: events of one label are joined if not more than this lies between them.
        background: the label that stands for none of the others: it makes no events.

    Returns:
        The events, by their starts.

    Raises:
        ValueError: the shapes do not fit.
    """
    table = np.asarray(probabilities, np.float64)
    limits = np.broadcast_to(np.asarray(thresholds, np.float64), (len(labels),))
    if table.shape != (len(starts_s), len(labels)) or len(starts_s) != len(ends_s):
        raise ValueError(
            f"expected probabilities (windows, labels) of {len(starts_s)} windows and {len(labels)} labels, got "
            f"{table.shape}"
        )
    if not len(table):
        return []
    edges, events = window_edges(starts_s, ends_s), []
    for column, label in enumerate(labels):
        if label == background:
            continue
        merged: list[Event] = []
        for first, last in _runs(table[:, column] >= limits[column]):
            start_s, end_s = float(edges[first]), float(edges[last + 1])
            highest = float(table[first : last + 1, column].max())
            if merged and start_s - merged[-1].end_s <= gap_s + _ROUNDING_S:
                before = merged.pop()
                start_s, highest = before.start_s, max(highest, before.probability)
            merged.append(Event(label, start_s, end_s, highest))
        events += [one for one in merged if one.end_s - one.start_s >= min_length_s - _ROUNDING_S]
    return sorted(events, key=lambda event: event[1:])


def _runs(active: Array) -> list[tuple[int, int]]:
    """Return the first and the last index of each run of True in (K,)."""
    edges = np.diff(np.pad(active.astype(np.int8), 1))
    return list(zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True))


def _f1_counts(
    tolerance_s: float, share_of_length: float | None
) -> Callable[[Sequence[Event], Sequence[Event]], Array]:
    return lambda true, predicted: np.array(
        [count_matches(true, predicted, tolerance_s, share_of_length), len(true), len(predicted)], np.float64
    )


def _f1(sums: Array) -> Array:
    """Return F1 from numbers of matches, true and predicted events; 0 if there are no events."""
    return np.asarray(2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1))


def _segment_counts(true: Sequence[Event], predicted: Sequence[Event]) -> Array:
    labels = sorted({event.label for event in (*true, *predicted)})
    actual, found = segment_activity(true, labels), segment_activity(predicted, labels)
    longest = max(len(actual), len(found))
    actual, found = (np.pad(active, ((0, longest - len(active)), (0, 0))) for active in (actual, found))
    missed, alarmed = (actual & ~found).sum(1), (found & ~actual).sum(1)
    return np.array([np.maximum(missed, alarmed).sum(), actual.sum()], np.float64)


def _error_rate(sums: Array) -> Array:
    """Return the error rate from numbers of errors and active labels; NaN if no label is active."""
    return np.where(sums[..., 1] > 0, sums[..., 0] / np.maximum(sums[..., 1], 1), np.nan)


EVENT_METRICS: Mapping[str, EventMetric] = {
    "event_onset_200ms_fms": EventMetric(_f1_counts(0.2, None), _f1, True),
    "event_onset_50ms_fms": EventMetric(_f1_counts(0.05, None), _f1, True),
    "event_onset_offset_50ms_20perc_fms": EventMetric(_f1_counts(0.05, 0.2), _f1, True),
    "segment_1s_er": EventMetric(_segment_counts, _error_rate, False),
}
"""By the name that HEAR's tasks use."""

_MISSING_SCIPY = 'events need SciPy: pip install "ssamba[eval]"'
