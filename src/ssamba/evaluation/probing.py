"""Probes: train a classifier on the vectors of a task's training clips and score it on the test clips, fold by fold.

One fold: hold out a fifth of the training groups (of the training clips if there are fewer than five groups; or the
validation clips that the task names); choose C (or another setting in `probes.SETTINGS`) by the task's metric on them;
fit again on all training clips; predict the test clips. No test clip chooses anything. The linear probe is the one that
published tables use.

Several labels: a label is predicted if its probability is at least a half. Events: the classifier scores the time steps
of a recording, and runs of steps above a half are events, smoothed in the way that is best on the validation clips
(Turian et al., 2022, appendix B; `ssamba.events`). A probe trains on at most 100,000 time steps, evenly spaced.

Shapes: N clips of a task, n of them used; K rows (clips, seconds, time steps), D dimensions, C classes, V layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from ssamba.errors import SuiteError
from ssamba.evaluation.task import Task
from ssamba.evaluation.vectors import TimestampEmbeddings
from ssamba.events import EVENT_METRICS, Event, Smoothing, event_counts, find_events, second_targets, timestamp_targets
from ssamba.metrics import classification as metrics
from ssamba.metrics.bootstrap import affordable_samples, bootstrap_values
from ssamba.metrics.classification import Array
from ssamba.probes import (
    SETTINGS,
    LayerMixture,
    ProbeKind,
    Scorer,
    finite,
    fit_one_label,
    fit_several_labels,
    has_both_values,
    require_sklearn,
    single_threaded,
)
from ssamba.splits import Fold, validation_mask

_MAX_TIME_STEPS = 100_000  # training rows of a probe of events

LABEL_METRICS: Mapping[str, Callable[[Array, Array], float]] = {
    "mAP": metrics.mean_average_precision,
    "mAUC": metrics.mean_area_under_curve,
    "d_prime": metrics.d_prime,
    "segment_f1": lambda scores, targets: metrics.segment_f1(scores, targets, threshold=0.0),
    "error_rate": lambda scores, targets: metrics.segment_error_rate(scores, targets, threshold=0.0),
}
"""Metrics of tasks with several labels, each a function of a probe's scores and targets (K, C)."""


@dataclass(frozen=True)
class ProbeResult:
    """Predictions of a probe on one fold."""

    test: Array
    """Indices of the scored clips, (n,)."""
    predicted: Array
    """Predicted label of each, (n,)."""
    correct: Array
    """Whether it is correct, (n,) bool."""
    validation: float
    """The task's metric on the validation clips, with the chosen setting."""
    setting: float
    """The chosen setting: C, the number of neighbors, or the weight decay."""
    weights: Array | None = None
    """Learned weights of the layers, (V,)."""

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name, the task's own first."""
        return {"accuracy": float(self.correct.mean())}

    @property
    def score(self) -> float:
        """The task's metric."""
        return next(iter(self.metrics.values()))

    def samples(self, count: int, generator: np.random.Generator) -> Array:
        """Return the score on bootstrap samples of the clips, (count,).

        The number of correct clips among n drawn with replacement is binomial, so no clip needs to be drawn.
        """
        drawn: Array = generator.binomial(len(self.test), self.score, count) / len(self.test)
        return drawn


@dataclass(frozen=True)
class LabelsResult(ProbeResult):
    """Predictions of several labels; `predicted` is (n, C), `correct` where all labels of a clip are."""

    scores: Array = field(kw_only=True)
    """(n, C), at least 0 for predicted labels."""
    targets: Array = field(kw_only=True)
    """(n, C), 0 or 1."""
    values: Mapping[str, float] = field(kw_only=True)
    """Metrics by name, the task's own first."""

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name, the task's own first."""
        return dict(self.values)

    def samples(self, count: int, generator: np.random.Generator) -> Array:
        """Return the score on bootstrap samples of clips, (count,); repeated if fewer are affordable."""
        drawn = bootstrap_values(
            LABEL_METRICS[next(iter(self.values))],
            self.scores,
            self.targets,
            samples=affordable_samples(self.scores.size, count),
            units=self.test,
        )
        return np.resize(drawn, count)


@dataclass(frozen=True)
class EventsResult(ProbeResult):
    """Predicted events; `predicted` is their number, `correct` whether all events of a recording were found."""

    true: Sequence[Sequence[Event]] = field(kw_only=True)
    """True events of each recording of `test`."""
    found: Sequence[Sequence[Event]] = field(kw_only=True)
    """Predicted events of each."""
    smoothing: Smoothing = field(kw_only=True)
    """Chosen on the validation clips."""
    counts: Mapping[str, Array] = field(kw_only=True)
    """`event_counts` by metric, the task's own first."""

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name, the task's own first; an error rate without true events is left out."""
        values = {name: float(EVENT_METRICS[name].score(counts.sum(0))) for name, counts in self.counts.items()}
        return {name: value for name, value in values.items() if not np.isnan(value)}

    def samples(self, count: int, generator: np.random.Generator) -> Array:
        """Return the score on bootstrap samples of recordings, (count,)."""
        name, counts = next(iter(self.counts.items()))
        drawn = generator.integers(0, len(counts), (count, len(counts)))
        return EVENT_METRICS[name].score(counts[drawn].sum(1))


@dataclass(frozen=True)
class Rows:
    """Labeled vectors of one view of a task."""

    vectors: Array
    """(K, D); NaN counts as 0, infinity as the largest float."""
    clips: Array
    """Index of each row's clip, (K,)."""
    targets: Array
    """(K, C), 0 or 1; rows with NaN are unknown, and neither train nor test."""
    groups: Array
    """Group of each clip, (N,)."""
    name: str
    """The task's name, for messages."""

    def of(self, clips: Array) -> Array:
        """Return the indices of the known rows of clips."""
        return np.flatnonzero(np.isin(self.clips, clips) & ~np.isnan(self.targets).any(1))


@dataclass(frozen=True)
class EventRows(Rows):
    """Time steps of one view of a task of events."""

    times_s: Array
    """Time of each row, (K,)."""
    labels: Sequence[str]
    """The classes (C)."""
    events: Sequence[Sequence[Event]]
    """True events of each clip (N)."""

    def thinned(self, rows: Array) -> Array:
        """Return every k-th of `rows`, so that a probe can be fitted to them."""
        return rows[:: -(-len(rows) // _MAX_TIME_STEPS)]

    def found(self, scores: Array, rows: Array, clips: Array, smoothing: Smoothing) -> list[list[Event]]:
        """Return the events of each of `clips` in the scores (len(rows), C) of `rows`."""
        own = [self.clips[rows] == clip for clip in clips]
        return [find_events(scores[k], self.times_s[rows[k]], self.labels, smoothing, 0.0) for k in own]


def probe_labels(
    kind: ProbeKind,
    vectors: Array,
    labels: Array,
    groups: Array,
    fold: Fold,
    settings: Sequence[float] | None = None,
) -> ProbeResult:
    """Probe a task with one label per clip on one fold.

    Args:
        kind: classifier kind.
        vectors: (N, D) of the task; NaN counts as 0, infinity as the largest float.
        labels: (N,).
        groups: (N,).
        fold: indices in these arrays.
        settings: settings to choose from; None means `SETTINGS`.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        SuiteError: there are too few training clips.
    """
    require_sklearn()
    x, train = finite(vectors), fold.train_and_valid
    fitting, choosing = _fitting_and_choosing(fold, groups)
    if not len(choosing) or len(np.unique(labels[fitting])) < 2:
        raise SuiteError(
            f"{len(train)} training clips of {len(np.unique(labels[train]))} labels are too few for a probe: a fifth "
            "of their groups is held out, and at least two labels must be left"
        )
    settings = settings or SETTINGS[kind]
    scores = [
        fit_one_label(kind, x[fitting], labels[fitting], s).score(x[choosing], labels[choosing]) for s in settings
    ]
    best = int(np.argmax(scores))
    predicted = fit_one_label(kind, x[train], labels[train], settings[best]).predict(x[fold.test])
    correct = predicted == labels[fold.test]
    return ProbeResult(fold.test, predicted, correct, float(scores[best]), float(settings[best]))


def probe_layers(layers: Array, labels: Array, groups: Array, fold: Fold) -> ProbeResult:
    """Probe one label per clip on a learned mixture of layers (V, N, D); see `probe_labels` and `LayerMixture`."""
    x = torch.from_numpy(np.nan_to_num(np.asarray(layers, dtype=np.float32)))
    names, numbers = np.unique(labels, return_inverse=True)
    targets, train = torch.from_numpy(numbers), fold.train_and_valid
    fitting, choosing = _fitting_and_choosing(fold, groups)
    settings, scores = SETTINGS["linear"], []
    for c in settings:
        predicted = LayerMixture(x[:, fitting], targets[fitting], len(names), c).predict(x[:, choosing])
        scores.append(float((predicted == targets[choosing]).double().mean()))
    best = int(np.argmax(scores))
    model = LayerMixture(x[:, train], targets[train], len(names), settings[best])
    guesses = names[model.predict(x[:, fold.test]).numpy()]
    correct = guesses == labels[fold.test]
    return ProbeResult(fold.test, guesses, correct, scores[best], settings[best], model.weights)


def probe_rows(
    kind: ProbeKind, rows: Rows, fold: Fold, metric_names: Sequence[str], settings: Sequence[float] | None = None
) -> LabelsResult:
    """Probe several labels, of clips or seconds, on one fold.

    Args:
        kind: classifier kind.
        rows: the labeled vectors.
        fold: training and test clips.
        metric_names: in `LABEL_METRICS`; the first chooses the setting and is the score.
        settings: settings to choose from; None means `SETTINGS`.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        SuiteError: there are too few training clips, or the metric does not exist on the test clips.
    """
    fitting, choosing = _fitting_and_choosing_rows(rows, fold)

    def validation(setting: float) -> float:
        scores = _fitted(kind, rows, fitting, setting)(rows.vectors[choosing])
        try:
            return LABEL_METRICS[metric_names[0]](scores, rows.targets[choosing])
        except ValueError:  # no validation clip has a label
            return -np.inf

    settings = settings or SETTINGS[kind]
    values = [validation(setting) for setting in settings]
    best = int(np.argmax(values))
    test = rows.of(fold.test)
    scores = _fitted(kind, rows, rows.of(fold.train_and_valid), settings[best])(rows.vectors[test])
    targets = rows.targets[test].astype(np.int64)
    found: dict[str, float] = {}
    for name in metric_names:
        try:
            found[name] = LABEL_METRICS[name](scores, targets)
        except ValueError as error:
            if name == metric_names[0]:
                raise SuiteError(f"{rows.name} cannot be scored by {name} on these test clips: {error}") from None
    predicted = (scores >= 0).astype(np.int64)
    correct = (predicted == targets).all(1)
    return LabelsResult(
        rows.clips[test], predicted, correct, values[best], float(settings[best]),
        scores=scores, targets=targets, values=found,
    )  # fmt: skip


def probe_events(
    kind: ProbeKind,
    rows: EventRows,
    fold: Fold,
    metric_names: Sequence[str],
    smoothings: Sequence[Smoothing],
    settings: Sequence[float] | None = None,
) -> EventsResult:
    """Probe events on one fold.

    Args:
        kind: classifier kind.
        rows: the time steps.
        fold: training and test clips.
        metric_names: in `EVENT_METRICS`; the first, of which higher must be better, chooses and is the score.
        smoothings: to choose from.
        settings: settings to choose from; None means `SETTINGS`.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        SuiteError: there are too few training clips.
    """
    fitting, choosing = _fitting_and_choosing_rows(rows, fold)
    fitting, training = rows.thinned(fitting), rows.thinned(rows.of(fold.train_and_valid))
    clips = np.unique(rows.clips[choosing])
    true = [rows.events[clip] for clip in clips]
    tried: list[tuple[float, float, Smoothing]] = []
    for setting in settings or SETTINGS[kind]:
        scores = _fitted(kind, rows, fitting, setting)(rows.vectors[choosing])
        for smoothing in smoothings:
            counts = event_counts(metric_names[0], true, rows.found(scores, choosing, clips, smoothing))
            tried.append((float(EVENT_METRICS[metric_names[0]].score(counts.sum(0))), setting, smoothing))
    validation, setting, smoothing = max(tried, key=lambda entry: entry[0])  # the first of equals
    test = rows.of(fold.test)
    scores = _fitted(kind, rows, training, setting)(rows.vectors[test])
    true = [rows.events[clip] for clip in fold.test]
    found = rows.found(scores, test, fold.test, smoothing)
    number = np.array([len(events) for events in found])
    hits = event_counts("event_onset_200ms_fms", true, found)
    correct = (hits[:, 0] == hits[:, 1]) & (hits[:, 0] == hits[:, 2])
    return EventsResult(
        fold.test, number, correct, validation, float(setting),
        true=true, found=found, smoothing=smoothing,
        counts={name: event_counts(name, true, found) for name in metric_names},
    )  # fmt: skip


def _fitting_and_choosing(fold: Fold, groups: Array) -> tuple[Array, Array]:
    """Return the clips to fit on and the clips that choose the setting."""
    if len(fold.valid):
        return fold.train, fold.valid
    held = validation_mask(groups[fold.train])
    return fold.train[~held], fold.train[held]


def _fitting_and_choosing_rows(rows: Rows, fold: Fold) -> tuple[Array, Array]:
    """Return the rows to fit on and the rows that choose the setting."""
    require_sklearn()
    fitting, choosing = (rows.of(clips) for clips in _fitting_and_choosing(fold, rows.groups))
    if not len(choosing) or not len(fitting) or not has_both_values(rows.targets[fitting]).any():
        raise SuiteError(
            f"{rows.name}: {len(fold.train_and_valid)} training clips are too few for a probe: a fifth of their groups "
            "is held out, and of the rest some must have a label that others lack"
        )
    return fitting, choosing


def _fitted(kind: ProbeKind, rows: Rows, fitting: Array, setting: float) -> Scorer:
    return fit_several_labels(kind, rows.vectors[fitting], rows.targets[fitting].astype(np.int64), setting)


Result = TypeVar("Result")
Job = Callable[[], ProbeResult]
"""One view of a task on one fold."""


def clip_jobs(
    task: Task,
    views: Mapping[str, Array],
    used: Array,
    folds: Sequence[Fold],
    kind: ProbeKind,
    settings: Sequence[float] | None = None,
) -> list[Job]:
    """Return the jobs of a task of clips, for each view its folds.

    Args:
        task: its clips have one or several labels.
        views: vectors (n, D) by view.
        used: indices of the clips of the vectors, (n,).
        folds: the task's folds.
        kind: classifier kind.
        settings: as for `probe_labels`.
    """
    if task.kind == "single":
        whole = [_of_all_clips(vectors, used, len(task.clips)) for vectors in views.values()]
        return [
            partial(probe_labels, kind, x, task.labels, task.groups, fold, settings) for x in whole for fold in folds
        ]
    assert task.targets is not None
    targets = task.targets[used].astype(np.float64)
    rows = [Rows(vectors, used, targets, task.groups, task.name) for vectors in views.values()]
    return [partial(probe_rows, kind, own, fold, task.metrics, settings) for own in rows for fold in folds]


def layer_jobs(task: Task, stacks: Mapping[str, Array], used: Array, folds: Sequence[Fold]) -> list[Job]:
    """Return the jobs of a learned mixture of layers (V, n, D) by pooling; see `clip_jobs`."""
    whole = [_of_all_clips(layers, used, len(task.clips)) for layers in stacks.values()]
    return [partial(probe_layers, x, task.labels, task.groups, fold) for x in whole for fold in folds]


def timestamp_jobs(
    task: Task,
    embeddings: TimestampEmbeddings,
    used: Array,
    folds: Sequence[Fold],
    kind: ProbeKind,
    settings: Sequence[float] | None = None,
) -> list[Job]:
    """Return the jobs of a task of seconds or events; see `clip_jobs`."""
    if task.kind == "second":
        embeddings = embeddings.mean_by_second()
    targets_at = second_targets if task.kind == "second" else timestamp_targets
    targets = np.concatenate(
        [
            targets_at(task.events[clip], embeddings.times_s[embeddings.rows_of(k)], task.classes).astype(np.float64)
            for k, clip in enumerate(used)
        ]
    )
    common = used[embeddings.recordings], targets, task.groups, task.name
    views = embeddings.views.values()
    if task.kind == "second":
        rows = [Rows(vectors, *common) for vectors in views]
        return [partial(probe_rows, kind, own, fold, task.metrics, settings) for own in rows for fold in folds]
    steps = [EventRows(vectors, *common, embeddings.times_s, task.classes, task.events) for vectors in views]
    return [
        partial(probe_events, kind, own, fold, task.metrics, task.smoothings, settings)
        for own in steps
        for fold in folds
    ]


def run_jobs(
    jobs: Sequence[Callable[[], Result]], workers: int = 1, on_progress: Callable[[int], None] | None = None
) -> list[Result]:
    """Run jobs in `workers` threads, each job on one thread; `on_progress` is called with the number done."""
    require_sklearn()
    from joblib import Parallel, delayed  # type: ignore[import-untyped]  # comes with scikit-learn

    results: list[Result] = []
    with single_threaded():
        pool = Parallel(n_jobs=workers, backend="threading", return_as="generator")
        for result in pool(delayed(job)() for job in jobs):
            results.append(result)
            if on_progress is not None:
                on_progress(len(results))
    return results


def _of_all_clips(vectors: Array, used: Array, num_clips: int) -> Array:
    """Return vectors (..., n, D) of the clips `used` as an array of all clips, (..., N, D), with zeros elsewhere."""
    whole: Array = np.zeros((*vectors.shape[:-2], num_clips, vectors.shape[-1]), dtype=vectors.dtype)
    whole[..., used, :] = vectors
    return whole
