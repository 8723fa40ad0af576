"""From the vectors of a task to rounds of probes: what is to be run for each view of it.

Shapes: n clips that are used, of N; K moments; D dimensions; V layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from ssamba.errors import SuiteError
from ssamba.evaluation.caching import Array
from ssamba.evaluation.multilabel import LABEL_PROBES, EventRows, Rows, events_round, labels_round
from ssamba.evaluation.probe import PROBES, Probe, RoundResult
from ssamba.evaluation.task import Task
from ssamba.evaluation.vectors import TimestampEmbeddings, second_targets
from ssamba.events import moment_targets
from ssamba.splits import Fold

Run = Callable[[], RoundResult]


def single_runs(task: Task, views: Mapping[str, Array], used: Array, rounds: Sequence[Fold], probe: Probe) -> list[Run]:
    """A task of one label for each clip.

    Args:
        task: the task.
        views: (n, D) or (V, n, D) each.
        used: the clips that these are of, (n,).
        rounds: what to train on and score.
        probe: one round of a probe.

    Returns:
        For each view each round.
    """
    return [
        partial(probe, everything, task.labels, task.groups, part)
        for everything in (_spread(vectors, used, len(task.clips)) for vectors in views.values())
        for part in rounds
    ]


def clip_runs(task: Task, views: Mapping[str, Array], used: Array, rounds: Sequence[Fold], probe: str) -> list[Run]:
    """The views (n, D) of the clips of a task of one or several labels; `probe` is a name; else as `single_runs`."""
    if task.kind == "single":
        return single_runs(task, views, used, rounds, PROBES[probe])
    assert task.targets is not None
    targets = task.targets[used].astype(np.float64)
    return [
        partial(
            labels_round, Rows(vectors, used, targets, task.groups, task.name), part, task.figures, LABEL_PROBES[probe]
        )
        for vectors in views.values()
        for part in rounds
    ]


def moment_runs(task: Task, moments: TimestampEmbeddings, used: Array, rounds: Sequence[Fold], probe: str) -> list[Run]:
    """The moments of the clips of a task of seconds or events; else as `clip_runs`."""
    if task.kind == "second":
        moments = moments.mean_by_second()
    clips = used[moments.recordings]
    true_at = second_targets if task.kind == "second" else moment_targets
    targets = np.concatenate(
        [
            true_at(task.events[clip], moments.times_s[moments.rows_of(k)], task.classes).astype(np.float64)
            for k, clip in enumerate(used)
        ]
    )
    kind = LABEL_PROBES[probe]
    if task.kind == "second":
        return [
            partial(labels_round, Rows(vectors, clips, targets, task.groups, task.name), part, task.figures, kind)
            for vectors in moments.views.values()
            for part in rounds
        ]
    return [
        partial(events_round, rows, part, task.figures, task.smoothings, kind)
        for rows in (
            EventRows(vectors, clips, targets, task.groups, task.name, moments.times_s, task.classes, task.events)
            for vectors in moments.views.values()
        )
        for part in rounds
    ]


def check_weighted(tasks: Sequence[Task]) -> None:
    """Refuse tasks that the learned mixture of layers cannot do.

    Raises:
        SuiteError: naming them.
    """
    others = [task.name for task in tasks if task.kind != "single"]
    if others:
        raise SuiteError(
            f"a learned mixture of layers (`weighted`) is made for tasks of one label for each clip, and {', '.join(others)} "
            "may have several: leave the mixture or these tasks out"
        )


def _spread(vectors: Array, used: Array, clips: int) -> Array:
    """The vectors (..., n, D) of the clips `used` in place of the whole task's, (..., clips, D); zeros elsewhere."""
    whole: Array = np.zeros((*vectors.shape[:-2], clips, vectors.shape[-1]), dtype=vectors.dtype)
    whole[..., used, :] = vectors
    return whole
