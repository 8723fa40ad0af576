"""Probes where several labels may hold: of clips, of seconds, and of the events in a recording.

They go as those of one label do (`probe.py`): standardize on the training part, choose a setting by what the task is
scored by on clips that are held out of it, refit, score the test. The linear probe is one logistic regression for each
class against all others (scikit-learn's, lbfgs, 500 iterations, one C for all); nearest neighbors give the share of
neighbors that have a label; the perceptron has a sigmoid for each class. A label is given where its probability is at
least a half. A class that the training part lacks, or that all of it has, is never, or always, given.

Events: the probe scores the moments of a recording, and runs of moments above one half are events, smoothed in the way
that is best on the validation part (HEAR's: Turian et al., 2022, appendix B; `events.py`). Of more than 100,000 moments
every second, third, ... trains: neighbors in time say the same, and hours of piano are 88 classes.

Shapes: K rows (clips, seconds, moments), D dimensions, C classes, N clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssamba.errors import SuiteError
from ssamba.evaluation.caching import Array
from ssamba.evaluation.probe import (
    ALPHA_GRID,
    C_GRID,
    EPOCHS,
    HIDDEN,
    ITERATIONS,
    K_GRID,
    RoundResult,
    fit_and_choose,
    require_sklearn,
)
from ssamba.events import EVENT_FIGURES, Event, Smoothing, event_counts, find_events
from ssamba.metrics import classification as metrics
from ssamba.splits import Fold

_CERTAIN = 40.0  # score of a class that the training part lacks, or that all of it has: finite, and beyond all others
_MOST_MOMENTS = 100_000  # that a probe of events is fitted on
_BUDGET = 200_000_000  # scores that are ranked for one interval
_FEWEST_SAMPLES = 100

Scorer = Callable[[Array], Array]
"""Rows (K, D) -> scores (K, C), at least 0 where a label is given."""

LABEL_FIGURES: Mapping[str, Callable[[Array, Array], float]] = {
    "mAP": metrics.mean_average_precision,
    "mAUC": metrics.mean_area_under_curve,
    "d_prime": metrics.d_prime,
    "segment_f1": lambda scores, targets: metrics.segment_f1(scores, targets, threshold=0.0),
    "error_rate": lambda scores, targets: metrics.segment_error_rate(scores, targets, threshold=0.0),
}
"""What tasks of several labels are scored by, each a function of a probe's scores and targets (K, C)."""


@dataclass(frozen=True)
class LabelProbe:
    """A kind of probe."""

    fit: Callable[[Array, Array, Any], Scorer]
    """Standardized rows (K, D), targets (K, C) with both values in each column, and a setting -> how rows are scored."""
    settings: Sequence[float]
    """What is chosen from; the first of equals is taken."""


@dataclass(frozen=True)
class LabelsResult(RoundResult):
    """What a probe of several labels said in one round; `predicted` is (n, C), `correct` where all labels are right."""

    scores: Array = field(kw_only=True)
    """(n, C), at least 0 where a label is given."""
    targets: Array = field(kw_only=True)
    """(n, C), 0 or 1."""
    values: Mapping[str, float] = field(kw_only=True)
    """By figure; the task's score first."""

    @property
    def score(self) -> float:
        """What the task is scored by."""
        return next(iter(self.values.values()))

    @property
    def figures(self) -> dict[str, float]:
        """The score and others beside it."""
        return dict(self.values)

    def samples(self, count: int, generator: np.random.Generator) -> Array:
        """The score on bootstrap samples of clips; fewer different ones where ranking is dear."""
        fewer = int(np.clip(_BUDGET / self.scores.size, _FEWEST_SAMPLES, count))
        metric = LABEL_FIGURES[next(iter(self.values))]
        return np.resize(
            metrics.bootstrap_values(metric, self.scores, self.targets, samples=fewer, units=self.test), count
        )


@dataclass(frozen=True)
class EventsResult(RoundResult):
    """What a probe of events said in one round; `predicted` counts events, `correct` where all of a recording's were found."""

    truly: Sequence[Sequence[Event]] = field(kw_only=True)
    """The events of each recording of `test`."""
    found: Sequence[Sequence[Event]] = field(kw_only=True)
    """Those that were found in it."""
    smoothing: Smoothing = field(kw_only=True)
    """How; chosen on the validation part."""
    counts: Mapping[str, Array] = field(kw_only=True)
    """By figure, the task's score first: `event_counts`."""

    @property
    def score(self) -> float:
        """What the task is scored by."""
        return next(iter(self.figures.values()))

    @property
    def figures(self) -> dict[str, float]:
        """The score and others beside it, but for an error rate where there is no event."""
        values = {name: float(EVENT_FIGURES[name].score(counts.sum(0))) for name, counts in self.counts.items()}
        return {name: value for name, value in values.items() if not np.isnan(value)}

    def samples(self, count: int, generator: np.random.Generator) -> Array:
        """The score on bootstrap samples of recordings."""
        name, counts = next(iter(self.counts.items()))
        drawn = generator.integers(0, len(counts), (count, len(counts)))
        return EVENT_FIGURES[name].score(counts[drawn].sum(1))


@dataclass(frozen=True)
class Rows:
    """One view of a task: rows of its clips, one after the other."""

    vectors: Array
    """(K, D); NaN counts as 0, infinity as the largest float."""
    clips: Array
    """The clip of each row, (K,)."""
    targets: Array
    """(K, C), 0 or 1; NaN where nothing is known, and nothing is trained or scored."""
    groups: Array
    """The group of each clip, (N,)."""
    name: str
    """Of the task, for messages."""

    def of(self, clips: Array) -> Array:
        """The known rows of clips."""
        return np.flatnonzero(np.isin(self.clips, clips) & ~np.isnan(self.targets).any(1))


def labels_round(rows: Rows, part: Fold, figures: Sequence[str], probe: LabelProbe) -> LabelsResult:
    """One round on clips or seconds.

    Args:
        rows: what is scored.
        part: training and test clips.
        figures: names in `LABEL_FIGURES`; the first chooses the setting and is the score.
        probe: which.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        SuiteError: there are too few training clips, or the score does not exist on the test.
    """
    fitting, choosing = _divided(rows, part)
    metric = LABEL_FIGURES[figures[0]]
    quality = [
        _value(metric, scorer(rows.vectors[choosing]), rows.targets[choosing])
        for scorer in (_fitted(probe, rows, fitting, setting) for setting in probe.settings)
    ]
    best = int(np.argmax(quality))
    test = rows.of(part.test)
    scores = _fitted(probe, rows, rows.of(part.train_and_valid), probe.settings[best])(rows.vectors[test])
    targets = rows.targets[test].astype(np.int64)
    values: dict[str, float] = {}
    for name in figures:
        try:
            values[name] = LABEL_FIGURES[name](scores, targets)
        except ValueError as error:
            if name == figures[0]:
                raise SuiteError(f"{rows.name} cannot be scored by {name} on these test clips: {error}") from None
    predicted = (scores >= 0).astype(np.int64)
    correct = (predicted == targets).all(1)
    return LabelsResult(
        rows.clips[test], predicted, correct, quality[best], float(probe.settings[best]),
        scores=scores, targets=targets, values=values,
    )  # fmt: skip


@dataclass(frozen=True)
class EventRows(Rows):
    """One view of a task of events: its moments."""

    times_s: Array
    """The time of each moment, (K,)."""
    labels: Sequence[str]
    """The classes (C)."""
    events: Sequence[Sequence[Event]]
    """What is heard in each clip (N)."""

    def thinned(self, rows: Array) -> Array:
        """At most so many of rows as a probe is fitted on, evenly spread."""
        return rows[:: -(-len(rows) // _MOST_MOMENTS)]

    def found(self, scores: Array, rows: Array, clips: Array, smoothing: Smoothing) -> list[list[Event]]:
        """The events of each of `clips` in the scores of `rows`."""
        own = [self.clips[rows] == clip for clip in clips]
        return [find_events(scores[k], self.times_s[rows[k]], self.labels, smoothing, 0.0) for k in own]


def events_round(
    rows: EventRows, part: Fold, figures: Sequence[str], smoothings: Sequence[Smoothing], probe: LabelProbe
) -> EventsResult:
    """One round on events.

    Args:
        rows: what is scored.
        part: training and test clips.
        figures: names in `EVENT_FIGURES`; the first, of which more must be better, chooses and is the score.
        smoothings: among which to choose.
        probe: which.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        SuiteError: there are too few training clips.
    """
    fitting, choosing = _divided(rows, part)
    fitting, training = rows.thinned(fitting), rows.thinned(rows.of(part.train_and_valid))
    clips = np.unique(rows.clips[choosing])
    truly = [rows.events[clip] for clip in clips]
    tried: list[tuple[float, float, Smoothing]] = []
    for setting in probe.settings:
        scores = _fitted(probe, rows, fitting, setting)(rows.vectors[choosing])
        for smoothing in smoothings:
            counts = event_counts(figures[0], truly, rows.found(scores, choosing, clips, smoothing))
            tried.append((float(EVENT_FIGURES[figures[0]].score(counts.sum(0))), setting, smoothing))
    validation, setting, smoothing = max(tried, key=lambda entry: entry[0])  # the first of equals
    test = rows.of(part.test)
    scores = _fitted(probe, rows, training, setting)(rows.vectors[test])
    truly = [rows.events[clip] for clip in part.test]
    found = rows.found(scores, test, part.test, smoothing)
    number = np.array([len(events) for events in found])
    hits = event_counts("event_onset_200ms_fms", truly, found)
    correct = (hits[:, 0] == hits[:, 1]) & (hits[:, 0] == hits[:, 2])
    return EventsResult(
        part.test, number, correct, validation, float(setting),
        truly=truly, found=found, smoothing=smoothing,
        counts={name: event_counts(name, truly, found) for name in figures},
    )  # fmt: skip


def _divided(rows: Rows, part: Fold) -> tuple[Array, Array]:
    """Rows to fit on and rows to choose by, of the training clips."""
    require_sklearn()
    fitting, choosing = (rows.of(clips) for clips in fit_and_choose(part, rows.groups))
    if not len(choosing) or not len(fitting) or not _both(rows.targets[fitting]).any():
        raise SuiteError(
            f"{rows.name}: {len(part.train_and_valid)} training clips are too few for a probe: a fifth of their groups is held out, "
            "and of the rest some must have a label that others lack"
        )
    return fitting, choosing


def _both(targets: Array) -> Array:
    """Classes that some rows have and some lack, (C,) bool."""
    both: Array = np.logical_and(targets.max(0) > 0, targets.min(0) < 1)
    return both


def _value(metric: Callable[[Array, Array], float], scores: Array, targets: Array) -> float:
    """The figure, or what any figure beats where it does not exist (no held-out clip has a label)."""
    try:
        return metric(scores, targets)
    except ValueError:
        return -np.inf


def _fitted(probe: LabelProbe, rows: Rows, own: Array, setting: float) -> Scorer:
    """A probe fitted on some rows, of all classes."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(_clean(rows.vectors[own]))
    targets = rows.targets[own].astype(np.int64)
    both = _both(targets)
    scorer = probe.fit(scaler.transform(_clean(rows.vectors[own])), targets[:, both], setting)

    def scored(vectors: Array) -> Array:
        scores = np.where(targets[0] > 0, _CERTAIN, -_CERTAIN) * np.ones((len(vectors), 1))
        scores[:, both] = scorer(scaler.transform(_clean(vectors)))
        return scores

    return scored


def _clean(vectors: Array) -> Array:
    return np.nan_to_num(np.asarray(vectors, dtype=np.float64))


def _fit_linear(x: Array, y: Array, c: float) -> Scorer:
    from sklearn.linear_model import LogisticRegression

    models = [LogisticRegression(C=c, max_iter=ITERATIONS).fit(x, own) for own in y.T]
    return lambda rows: np.stack([model.decision_function(rows) for model in models], axis=1)


def _fit_neighbors(x: Array, y: Array, k: int) -> Scorer:
    from sklearn.neighbors import KNeighborsRegressor

    nearest = KNeighborsRegressor(min(k, len(x)), metric="cosine", algorithm="brute").fit(x, y.astype(np.float64))
    return lambda rows: np.asarray(nearest.predict(rows)).reshape(len(rows), -1) - 0.5


def _fit_perceptron(x: Array, y: Array, alpha: float) -> Scorer:
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((HIDDEN,), alpha=alpha, max_iter=EPOCHS, random_state=0)
    network.fit(x, y if y.shape[1] > 1 else y[:, 0])
    return lambda rows: np.asarray(network.predict_proba(rows))[:, -y.shape[1] :] - 0.5


LABEL_PROBES: Mapping[str, LabelProbe] = {
    "linear": LabelProbe(_fit_linear, C_GRID),
    "knn": LabelProbe(_fit_neighbors, K_GRID),
    "mlp": LabelProbe(_fit_perceptron, ALPHA_GRID),
}
"""By the name that `EvaluateOptions.probe` gives them."""
