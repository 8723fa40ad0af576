"""How alike recordings are: the cosine of their vectors, after what all vectors of a collection share was taken away.

    space = fit_similarity(collection)                  # the default, SIMILARITY
    space(collection) @ space(queries).T                # similarities, -1 to 1

Kinds of similarity, all of them cosines:

    raw            of the vectors as they are
    centered       after the collection's mean was subtracted
    standardized   and each dimension was divided by its standard deviation
    whitened       and each principal component was, after the components' variances were shrunk towards their mean as
                   Ledoit and Wolf (2004, doi:10.1016/S0047-259X(03)00096-4) estimate to be best
    half_whitened  and each principal component by the square root of that standard deviation: halfway, in logarithms,
                   between `standardized` and `whitened`
    pca            the first `PCA_DIMENSIONS` principal components of the standardized vectors, each divided by its
                   standard deviation, not shrunk

A few directions in which all vectors differ most (level, recording, voice) outweigh all others in a plain cosine.
Whitening gives every direction the same weight, noise included; halfway is the better compromise.

The statistics are those of the collection that is searched, without labels: it is all that a user has, and new
recordings are compared by the statistics of the collection they are compared with.

Shapes: N vectors of the collection, n vectors, D dimensions, K dimensions after the transform.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

Array = np.ndarray[Any, Any]
SimilarityKind = Literal["raw", "centered", "standardized", "half_whitened", "whitened", "pca"]

SIMILARITIES: tuple[SimilarityKind, ...] = get_args(SimilarityKind)
"""All kinds of similarity."""
SIMILARITY: SimilarityKind = "half_whitened"
"""The default: what neighbors are found by, and retrieval is reported with. docs/evaluation.md says how it was
chosen."""
PCA_DIMENSIONS = 64
_ROWS_AT_ONCE = 8192
_LARGEST = float(np.finfo(np.float32).max)
_CONSTANT = 1e-6  # deviation of a dimension, relative to its root mean square, below which it is rounding


@dataclass(frozen=True)
class SimilaritySpace:
    """A transform of vectors to rows of unit length, whose dot products are similarities."""

    kind: SimilarityKind
    """Kind of similarity."""
    mean: Array
    """Subtracted, (D,) float64."""
    scale: Array
    """Multiplied, (D,) float64; 0 for dimensions that are constant in the collection."""
    rotation: Array | None
    """(D, K) float64 for the kinds that use principal components, or None."""

    def __call__(self, vectors: Array) -> Array:
        """Return (n, K) float32 rows of unit length; a vector without any difference from the mean gives zeros.

        NaN counts as 0, infinities as the largest float32.

        Raises:
            ValueError: the vectors have other dimensions than the collection.
        """
        vectors = _matrix(vectors)
        if vectors.shape[1] != len(self.mean):
            raise ValueError(f"the collection has {len(self.mean)} dimensions, these vectors {vectors.shape[1]}")
        width = len(self.mean) if self.rotation is None else self.rotation.shape[1]
        rows = np.empty((len(vectors), width), dtype=np.float32)
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            own = (_finite(vectors[start : start + _ROWS_AT_ONCE]) - self.mean) * self.scale
            own = own if self.rotation is None else own @ self.rotation
            rows[start : start + len(own)] = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
        return rows


class CollectionStatistics:
    """Statistics of the vectors of a collection (N, D), each computed when it is first needed, in chunks of rows."""

    def __init__(self, collection: Array):
        """Args: the vectors.

        Raises:
            ValueError: it is no matrix with at least one row.
        """
        self.collection = _matrix(collection)
        if not len(self.collection):
            raise ValueError("no vectors: a space is fitted to at least one")

    def space(self, kind: SimilarityKind = SIMILARITY) -> SimilaritySpace:
        """Return the space in which vectors like these are compared.

        Raises:
            ValueError: `kind` is unknown.
        """
        dims = self.collection.shape[1]
        if kind == "raw":
            return SimilaritySpace(kind, np.zeros(dims), np.ones(dims), None)
        if kind == "centered":
            return SimilaritySpace(kind, self.mean, np.ones(dims), None)
        if kind == "standardized":
            return SimilaritySpace(kind, self.mean, self.scale, None)
        if kind not in SIMILARITIES:
            raise ValueError(f"unknown similarity {kind!r}: expected {', '.join(SIMILARITIES)}")
        variances, directions, shrinkage = self._components
        if kind == "pca":
            variances, directions = variances[-PCA_DIMENSIONS:], directions[:, -PCA_DIMENSIONS:]
        else:
            variances = (1 - shrinkage) * variances + shrinkage * variances.mean()
        kept = variances > _CONSTANT * max(variances.max(), np.finfo(np.float64).tiny)
        power = -0.25 if kind == "half_whitened" else -0.5
        return SimilaritySpace(kind, self.mean, self.scale, directions[:, kept] * variances[kept] ** power)

    @cached_property
    def mean(self) -> Array:
        """(D,) float64."""
        total: Array = sum((_finite(rows).sum(0) for rows in self._chunks()), np.zeros(self.collection.shape[1]))
        return total / len(self.collection)

    @cached_property
    def scale(self) -> Array:
        """One over the standard deviation of each dimension, (D,) float64; 0 for constant dimensions."""
        squares: Array = sum((np.square(_finite(rows) - self.mean).sum(0) for rows in self._chunks()), 0 * self.mean)
        variance = squares / len(self.collection)
        varies = variance > _CONSTANT**2 * (variance + self.mean**2)
        return np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)

    @cached_property
    def _components(self) -> tuple[Array, Array, float]:
        """Variances (D,) and directions (D, D) of the principal components of the standardized vectors, and the share
        by which Ledoit and Wolf's estimate moves the variances to their mean."""
        count, dims = self.collection.shape
        covariance, fourth_moment = np.zeros((dims, dims)), 0.0
        for rows in self._chunks():
            own = (_finite(rows) - self.mean) * self.scale
            covariance += own.T @ own / count
            fourth_moment += float(np.square(np.square(own).sum(1)).sum()) / count
        squares = float(np.square(covariance).sum())
        distance = (squares - float(np.trace(covariance)) ** 2 / dims) / dims
        noise = max(0.0, (fourth_moment - squares) / count / dims)
        shrinkage = min(1.0, noise / distance) if distance > 0 else 1.0
        variances, directions = np.linalg.eigh(covariance)
        return variances.clip(0), directions, shrinkage

    def _chunks(self) -> Iterator[Array]:
        for start in range(0, len(self.collection), _ROWS_AT_ONCE):
            yield self.collection[start : start + _ROWS_AT_ONCE]


def fit_similarity(collection: Array, kind: SimilarityKind = SIMILARITY) -> SimilaritySpace:
    """Return the space in which vectors like those of a collection (N, D) are compared.

    Args:
        collection: the vectors that are searched; their statistics define the space.
        kind: see above.

    Raises:
        ValueError: `kind` is unknown, or the collection is no matrix with at least one row.
    """
    return CollectionStatistics(collection).space(kind)


def similarities(collection: Array, kind: SimilarityKind = SIMILARITY) -> Array:
    """Return the similarity of all pairs of a collection's vectors, (N, D) -> (N, N) float32."""
    rows = fit_similarity(collection, kind)(collection)
    found: Array = rows @ rows.T
    return found


def _matrix(vectors: Array) -> Array:
    vectors = np.asarray(vectors)
    if vectors.ndim != 2:
        raise ValueError(f"expected vectors (rows, dimensions), got shape {vectors.shape}")
    return vectors


def _finite(vectors: Array) -> Array:
    # Squares of the largest float32 are still far from the largest float64.
    return np.nan_to_num(np.asarray(vectors, dtype=np.float64)).clip(-_LARGEST, _LARGEST)
