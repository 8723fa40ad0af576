"""Sound events: where they are, how they are found in scores of moments, and what finding them is worth.

The figures are those of sed_eval (Mesaros et al., 2016, doi:10.3390/app6060162), micro-averaged, as HEAR takes them:

    event_onset_200ms_fms                F1; an event is found when one of its label begins within 0.2 s of it
    event_onset_50ms_fms                 the same within 50 ms
    event_onset_offset_50ms_20perc_fms   and when it also ends within 50 ms, or 20 % of the true event's length
    segment_1s_er                        error rate of segments of 1 s: (substitutions + deletions + insertions) / active

No found event counts for two true ones: pairs are a maximum matching of a bipartite graph. All of them add up over
recordings, so a recording's counts are taken once, and a bootstrap sample of recordings is a sum.

Shapes: K moments of a recording, C classes, N recordings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssamba.errors import MissingExtraError
from ssamba.metrics.ranking import Array

_GRACE_MS = 0.0001  # an event's end still belongs to it
_SLACK_S = 1e-9  # a tolerance holds for times whose difference is not exact in binary


class Event(NamedTuple):
    """A label, from when to when."""

    label: str
    start_s: float
    end_s: float


class Smoothing(NamedTuple):
    """How scores of moments become events."""

    median_filter_ms: float
    """Length of a median filter over each class's scores."""
    min_duration_ms: float
    """Shorter events are dropped; from the first moment's time to the last's."""


@dataclass(frozen=True)
class EventFigure:
    """A figure of found events: counts of a recording, and what their sums are worth."""

    counts: Callable[[Sequence[Event], Sequence[Event]], Array]
    """(true events, found events) of one recording -> counts that add up."""
    score: Callable[[Array], Array]
    """Sums of counts, (..., counts) -> figures (...)."""
    more_is_better: bool
    """False for error rates."""


def event_figure(name: str, truly: Sequence[Sequence[Event]], found: Sequence[Sequence[Event]]) -> float:
    """A figure over recordings.

    Args:
        name: one of `EVENT_FIGURES`.
        truly: the events of each recording.
        found: those that were found in each.

    Raises:
        ValueError: the name is unknown, the lists are not of the same recordings, or an error rate has no true event.
    """
    if name not in EVENT_FIGURES:
        raise ValueError(f"no figure of events is called {name!r}: expected one of {', '.join(EVENT_FIGURES)}")
    figure = EVENT_FIGURES[name]
    value = float(figure.score(event_counts(name, truly, found).sum(0)))
    if math.isnan(value):
        raise ValueError(f"{name} needs true events: there is none")
    return value


def event_counts(name: str, truly: Sequence[Sequence[Event]], found: Sequence[Sequence[Event]]) -> Array:
    """The counts of a figure in each recording, (N, counts); arguments as `event_figure`."""
    if len(truly) != len(found) or not truly:
        raise ValueError(f"expected true and found events of the same recordings, got {len(truly)} and {len(found)}")
    return np.array([EVENT_FIGURES[name].counts(a, b) for a, b in zip(truly, found, strict=True)])


def matched(
    truly: Sequence[Event], found: Sequence[Event], tolerance_s: float, share_of_length: float | None = None
) -> int:
    """The most true events that can each be paired with a found one of its own.

    Args:
        truly: true events.
        found: found events.
        tolerance_s: how far apart their beginnings may be.
        share_of_length: how far apart their ends may be, as a share of the true event's length (at least the
            tolerance); None leaves ends alone.
    """
    if not truly or not found:
        return 0
    matching = _scipy_matching()
    total = 0
    for label in {event.label for event in truly} & {event.label for event in found}:
        a, b = (np.array([e[1:] for e in events if e.label == label]) for events in (truly, found))
        near = np.abs(a[:, None, 0] - b[None, :, 0]) <= tolerance_s + _SLACK_S
        if share_of_length is not None:
            allowed = np.maximum(tolerance_s, share_of_length * (a[:, 1] - a[:, 0]))
            near &= np.abs(a[:, None, 1] - b[None, :, 1]) <= allowed[:, None] + _SLACK_S
        total += matching(near)
    return total


def segment_activity(events: Sequence[Event], labels: Sequence[str], length_s: float = 1.0) -> Array:
    """Which labels are active in each segment, (segments, C) bool: those that an event touches."""
    count = max((math.ceil(event.end_s / length_s) for event in events), default=0)
    active = np.zeros((count, len(labels)), bool)
    place = {label: k for k, label in enumerate(labels)}
    for event in events:
        active[math.floor(event.start_s / length_s) : math.ceil(event.end_s / length_s), place[event.label]] = True
    return active


def moment_targets(events: Sequence[Event], times_s: Array, labels: Sequence[str]) -> Array:
    """Which labels hold at each moment, (K, C), 0 or 1: those of the events that it lies in, ends included."""
    targets = np.zeros((len(times_s), len(labels)), np.int64)
    place = {label: k for k, label in enumerate(labels)}
    for event in events:
        inside = (times_s >= event.start_s) & (times_s < event.end_s + _GRACE_MS / 1000)
        targets[inside, place[event.label]] = 1
    return targets


def find_events(
    scores: Array, times_s: Array, labels: Sequence[str], smoothing: Smoothing, threshold: float
) -> list[Event]:
    """Events in scores of moments, as HEAR's kit finds them.

    Scores go through a median filter; runs of moments above the threshold are events, from the first moment's time to
    the last's.

    Args:
        scores: (K, C).
        times_s: (K,), ascending.
        labels: of the classes.
        smoothing: of the scores.
        threshold: a label is there above it.
    """
    if smoothing.median_filter_ms and len(times_s) > 1:
        width = round(smoothing.median_filter_ms / (1000 * float(np.mean(np.diff(times_s)))))
        if width > 1:
            scores = _scipy_median(scores, width)
    edges = np.diff(np.pad((scores > threshold).astype(np.int8), ((1, 1), (0, 0))), axis=0)
    events = []
    for column, label in enumerate(labels):
        starts, ends = np.flatnonzero(edges[:, column] == 1), np.flatnonzero(edges[:, column] == -1) - 1
        for start_s, end_s in zip(times_s[starts], times_s[ends], strict=True):
            if 1000 * (end_s - start_s) >= smoothing.min_duration_ms - _GRACE_MS:
                events.append(Event(label, float(start_s), float(end_s)))
    return sorted(events, key=lambda event: event[1:])


def _f1_counts(
    tolerance_s: float, share_of_length: float | None
) -> Callable[[Sequence[Event], Sequence[Event]], Array]:
    return lambda truly, found: np.array(
        [matched(truly, found, tolerance_s, share_of_length), len(truly), len(found)], np.float64
    )


def _f1(sums: Array) -> Array:
    """From hits, true and found events; 0 where there is neither."""
    return np.asarray(2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1))


def _segment_counts(truly: Sequence[Event], found: Sequence[Event]) -> Array:
    labels = sorted({event.label for event in (*truly, *found)})
    true, said = segment_activity(truly, labels), segment_activity(found, labels)
    longest = max(len(true), len(said))
    true, said = (np.pad(active, ((0, longest - len(active)), (0, 0))) for active in (true, said))
    missed, alarmed = (true & ~said).sum(1), (said & ~true).sum(1)
    return np.array([np.maximum(missed, alarmed).sum(), true.sum()], np.float64)


def _error_rate(sums: Array) -> Array:
    """From errors and active labels; NaN where there are none of these."""
    return np.where(sums[..., 1] > 0, sums[..., 0] / np.maximum(sums[..., 1], 1), np.nan)


EVENT_FIGURES: Mapping[str, EventFigure] = {
    "event_onset_200ms_fms": EventFigure(_f1_counts(0.2, None), _f1, True),
    "event_onset_50ms_fms": EventFigure(_f1_counts(0.05, None), _f1, True),
    "event_onset_offset_50ms_20perc_fms": EventFigure(_f1_counts(0.05, 0.2), _f1, True),
    "segment_1s_er": EventFigure(_segment_counts, _error_rate, False),
}
"""By the name that a HEAR task gives them."""


def _scipy_matching() -> Callable[[Array], int]:
    try:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching
    except ImportError:
        raise MissingExtraError(_MISSING) from None
    return lambda near: int((maximum_bipartite_matching(csr_array(near), perm_type="column") >= 0).sum())


def _scipy_median(scores: Array, width: int) -> Array:
    try:
        from scipy.ndimage import median_filter
    except ImportError:
        raise MissingExtraError(_MISSING) from None
    filtered: Array = median_filter(scores, size=(width, 1))
    return filtered


_MISSING = 'events need SciPy: pip install "ssamba[eval]"'
