"""Nearest neighbors among embeddings, by the library's default similarity (`ssamba.similarity`).

Shapes: N recordings, D channels, k neighbors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ssamba.similarity import SIMILARITY, SimilarityKind, fit_similarity

Array = np.ndarray[Any, Any]
_SIMILARITIES_AT_ONCE = 4_000_000


class Neighbors(NamedTuple):
    """The nearest other recordings of each one, nearest first."""

    indices: Array
    """(N, k)."""
    similarity: Array
    """Similarity, -1 to 1, (N, k) float32."""


def nearest_neighbors(embeddings: Array, count: int = 3, similarity: SimilarityKind = SIMILARITY) -> Neighbors:
    """Find the `count` most similar other recordings of each one; of equals the first ones.

    Memory stays flat: similarities are computed for some recordings at a time.

    Args:
        embeddings: (N, D), of either readout.
        count: k, at most N - 1.
        similarity: one of `ssamba.similarity.SIMILARITIES`.

    Raises:
        ValueError: fewer than two recordings, a count outside 1 to N - 1, or an unknown similarity.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"expected (recordings, channels) with at least two recordings, got {embeddings.shape}")
    if not 1 <= count < len(embeddings):
        raise ValueError(f"count must lie between 1 and {len(embeddings) - 1}, got {count}")
    rows = fit_similarity(embeddings, similarity)(embeddings)
    at_once = max(1, _SIMILARITIES_AT_ONCE // len(rows))
    indices = np.empty((len(rows), count), dtype=np.int64)
    nearest = np.empty((len(rows), count), dtype=np.float32)
    for start in range(0, len(rows), at_once):
        own = np.arange(start, min(start + at_once, len(rows)))
        found = rows[own] @ rows.T
        found[np.arange(len(own)), own] = -np.inf
        indices[own] = np.argsort(-found, axis=1, kind="stable")[:, :count]
        nearest[own] = np.take_along_axis(found, indices[own], axis=1)
    return Neighbors(indices, nearest)
