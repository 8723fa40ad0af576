"""Nearest neighbors among embeddings.

Shapes: N recordings, D channels, k neighbors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Neighbors(NamedTuple):
    """The nearest other recordings of each one, nearest first."""

    indices: Array
    """(N, k)."""
    similarity: Array
    """Cosine similarity after the collection's mean was subtracted, (N, k)."""


def centered_similarity(embeddings: Array) -> Array:
    """Return the cosine similarity of all pairs of rows after subtracting their mean, (N, D) -> (N, N) float64.

    Without centering, the direction that all embeddings share would hide their differences.
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    centered = embeddings - embeddings.mean(0)
    centered /= np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    similarity: Array = centered @ centered.T
    return similarity


def nearest_neighbors(embeddings: Array, count: int = 3) -> Neighbors:
    """Find the `count` nearest other recordings of each one by centered cosine similarity.

    Args:
        embeddings: (N, D).
        count: k, at most N - 1.

    Raises:
        ValueError: fewer than two recordings, or a count outside 1 to N - 1.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"expected (recordings, channels) with at least two recordings, got {embeddings.shape}")
    if not 1 <= count < len(embeddings):
        raise ValueError(f"count must lie between 1 and {len(embeddings) - 1}, got {count}")
    similarity = centered_similarity(embeddings)
    np.fill_diagonal(similarity, -np.inf)
    indices = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return Neighbors(indices, np.take_along_axis(similarity, indices, axis=1))
