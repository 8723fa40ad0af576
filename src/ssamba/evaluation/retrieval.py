"""Retrieval on a task: rank the clips of other groups by the similarity of their vectors, without training anything.

All clips of the task (with `inner`, of the training part of its first fold) are searched. All are queries, or 10,000 of
them, evenly spaced. The statistics of a similarity (`ssamba.similarity`) are those of the vectors that are searched,
whatever their split: they need no labels, and a user who searches a collection has the same.

Tasks of seconds and of events have no vector of a clip, and no retrieval.

Shapes: n clips of a task that are used, D dimensions, S similarities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ssamba.evaluation.task import Task
from ssamba.metrics.bootstrap import Interval, bootstrap_means, interval_of
from ssamba.metrics.classification import Array
from ssamba.metrics.retrieval import RetrievalScores, retrieval_scores
from ssamba.similarity import SIMILARITIES, CollectionStatistics, SimilarityKind

MAX_QUERIES = 10_000
MEAN_AVERAGE_PRECISION, PRECISION_AT_10 = "mAP", "precision_at_10"
_BOOTSTRAP_SAMPLES = 2000

Rankings = Mapping[SimilarityKind, RetrievalScores]
"""Scores of the queries of one view of a task, by similarity."""


@dataclass(frozen=True)
class Retrieval:
    """Retrieval of one view of a model by one similarity."""

    scores: dict[str, dict[str, float]]
    """`mAP` and `precision_at_10`: means over queries, by task. A task in which no clip has another one of its label in
    another group is left out."""
    intervals: dict[str, dict[str, Interval]]
    """95 % bootstrap intervals over queries of both, by task and of the mean (`mean`)."""

    def mean(self, metric: str = MEAN_AVERAGE_PRECISION) -> float:
        """Return the mean of a metric over tasks."""
        return float(np.mean(list(self.scores[metric].values())))


def ranking_jobs(task: Task, views: Mapping[str, Array], used: Array) -> list[Callable[[], Rankings]]:
    """Return for each view a function that ranks its clips.

    Args:
        task: its clips have one or several labels.
        views: vectors (n, D) by view.
        used: indices of the clips of the vectors, (n,).
    """
    return [partial(rank, vectors, _labels(task)[used], task.groups[used]) for vectors in views.values()]


def rank(vectors: Array, labels: Array, groups: Array) -> Rankings:
    """Rank clips by every similarity; arguments as for `retrieval_scores`, vectors as they come."""
    collection = CollectionStatistics(vectors)
    return {
        kind: retrieval_scores(collection.space(kind)(vectors), labels, groups, max_queries=MAX_QUERIES)
        for kind in SIMILARITIES
    }


def retrieval_of(tasks: Mapping[str, Rankings]) -> dict[str, Retrieval]:
    """Return the retrieval of a view by each similarity, from its rankings by task; empty if no task has a match."""
    metrics = {MEAN_AVERAGE_PRECISION: "average_precision", PRECISION_AT_10: "precision_at_10"}
    scored = {task: own for task, own in tasks.items() if len(next(iter(own.values())).queries)}
    if not scored:
        return {}
    columns = [(kind, metric) for kind in SIMILARITIES for metric in metrics]
    samples: dict[str, Array] = {}
    means: dict[str, Array] = {}
    for number, (task, own) in enumerate(scored.items()):
        values = np.stack([getattr(own[kind], metrics[metric]) for kind, metric in columns], axis=1)
        means[task] = values.mean(0)
        samples[task] = bootstrap_means(values, samples=_BOOTSTRAP_SAMPLES, seed=number)
    samples["mean"] = np.mean(list(samples.values()), axis=0)

    def of(kind: SimilarityKind) -> Retrieval:
        at = {metric: columns.index((kind, metric)) for metric in metrics}
        scores = {metric: {task: float(own[k]) for task, own in means.items()} for metric, k in at.items()}
        intervals = {
            metric: {task: interval_of(own[:, k]) for task, own in samples.items()} for metric, k in at.items()
        }
        return Retrieval(scores, intervals)

    return {kind: of(kind) for kind in SIMILARITIES}


def _labels(task: Task) -> Array:
    """Return the label of each clip, (N,), or of tasks with several labels (N, C)."""
    return task.labels if task.targets is None else task.targets
