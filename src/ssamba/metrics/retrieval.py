"""Retrieval: does a clip find the others with its label among all clips of other groups?

Each clip is a query. The clips of other groups (other voices, games, drum kits), ranked by similarity to it, are
relevant if they share a label with it; clips of its own group, and itself, are in no ranking, and queries without a
relevant clip have no score. Average precision is that of scikit-learn's `average_precision_score`: clips of equal
similarity share a rank. Precision at 10 is the share of relevant clips among the ten nearest; of clips that are equally
far, and of which only some are among the ten, each counts by its chance.

Similarities are computed for some queries at a time, so that memory stays flat for any number of clips.

Shapes: N clips, D dimensions, C classes, Q queries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssamba.metrics.classification import Array

DEPTH = 10
_SIMILARITIES_AT_ONCE = 4_000_000


class RetrievalScores(NamedTuple):
    """Scores of the queries that have a relevant clip."""

    queries: Array
    """Their indices, (Q,)."""
    average_precision: Array
    """(Q,)."""
    precision_at_10: Array
    """Share of relevant clips among the ten nearest, or among all if there are fewer than ten, (Q,)."""


def retrieval_scores(
    vectors: Array, labels: Array, groups: Array | None = None, *, max_queries: int | None = None
) -> RetrievalScores:
    """Rank the clips of other groups for each clip, and score the rankings.

    Args:
        vectors: (N, D), compared by their dot products: rows of unit length give cosines.
        labels: one of each clip, (N,), or several, (N, C) of 0 and 1.
        groups: (N,); clips of one group do not search each other. An empty name is a group of its own, and None gives
            each clip one.
        max_queries: largest number of queries; of more clips, this many are taken, evenly spaced.

    Raises:
        ValueError: shapes do not fit.
    """
    x, count = np.ascontiguousarray(vectors, dtype=np.float32), len(labels)
    if x.ndim != 2 or len(x) != count or labels.ndim not in (1, 2) or (groups is not None and len(groups) != count):
        shapes = ", ".join(str(np.shape(a)) for a in (vectors, labels, groups) if a is not None)
        raise ValueError(f"expected vectors (N, D), labels (N,) or (N, C), and groups (N,), got shapes {shapes}")
    group_numbers = _numbers(groups, count)
    label_numbers = np.unique(labels, return_inverse=True)[1] if labels.ndim == 1 else None
    targets = None if labels.ndim == 1 else np.ascontiguousarray(labels > 0, dtype=np.float32)
    num_queries = count if max_queries is None else min(count, max_queries)
    queries = np.arange(num_queries) * count // max(1, num_queries)
    kept: list[int] = []
    average_precision: list[float] = []
    precision: list[float] = []
    rows_at_once = max(1, _SIMILARITIES_AT_ONCE // max(1, count))
    for start in range(0, num_queries, rows_at_once):
        own = queries[start : start + rows_at_once]
        similarity = x[own] @ x.T
        candidates = group_numbers[own, None] != group_numbers
        if targets is None:
            assert label_numbers is not None
            relevant = candidates & (label_numbers[own, None] == label_numbers)
        else:
            relevant = candidates & (targets[own] @ targets.T > 0)
        similarity[~candidates] = -np.inf
        ranked = np.sort(similarity, axis=1)
        for row, query in enumerate(own):
            if relevant[row].any():
                found = _scores(ranked[row], np.sort(similarity[row, relevant[row]]), int(candidates[row].sum()))
                kept.append(int(query))
                average_precision.append(found[0])
                precision.append(found[1])
    return RetrievalScores(np.array(kept, dtype=np.int64), np.array(average_precision), np.array(precision))


def _scores(ranked: Array, relevant: Array, candidates: int) -> tuple[float, float]:
    """Return average precision and precision at 10 from ascending similarities of all clips and of the relevant."""
    nearer = len(ranked) - np.searchsorted(ranked, relevant, "left")
    nearer_relevant = len(relevant) - np.searchsorted(relevant, relevant, "left")
    depth = min(DEPTH, candidates)
    last = ranked[-depth]
    surely = len(ranked) - int(np.searchsorted(ranked, last, "right"))
    tied = len(ranked) - int(np.searchsorted(ranked, last, "left")) - surely
    surely_relevant = len(relevant) - int(np.searchsorted(relevant, last, "right"))
    tied_relevant = len(relevant) - int(np.searchsorted(relevant, last, "left")) - surely_relevant
    hits = surely_relevant + (depth - surely) * tied_relevant / tied
    return float(np.mean(nearer_relevant / nearer)), hits / depth


def _numbers(groups: Array | None, count: int) -> Array:
    """Return a number for each group, (N,), with another one for each empty name."""
    if groups is None:
        return np.arange(count)
    numbers: Array = np.unique(groups, return_inverse=True)[1]
    alone = np.asarray(groups).astype(str) == ""
    numbers[alone] = numbers.max(initial=0) + 1 + np.arange(int(alone.sum()))
    return numbers
