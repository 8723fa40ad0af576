"""Similarities of vectors against scikit-learn's scaler, shrinkage and principal components."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from ssamba import similarity
from ssamba.similarity import PCA_DIMENSIONS, SIMILARITIES, fit_similarity, similarities


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 80)) @ rng.normal(size=(80, 80)) * rng.uniform(0.1, 9, 80) + rng.normal(size=80) * 5


def expected(kind, x):
    if kind == "raw":
        return cosine_similarity(x)
    if kind == "centered":
        return cosine_similarity(x - x.mean(0))
    z = StandardScaler().fit_transform(x)
    if kind == "standardized":
        return cosine_similarity(z)
    if kind == "pca":
        return cosine_similarity(PCA(PCA_DIMENSIONS, whiten=True).fit_transform(z))
    inverse = np.linalg.inv(ledoit_wolf(z, assume_centered=True)[0])  # the cosine in Mahalanobis' metric
    products = z @ (sqrtm(inverse) if kind == "half_whitened" else inverse) @ z.T
    return products / np.sqrt(np.outer(products.diagonal(), products.diagonal()))


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_every_kind_is_the_cosine_it_names_in_chunks_too(kind, vectors, monkeypatch):
    monkeypatch.setattr(similarity, "_ROWS_AT_ONCE", 70)
    np.testing.assert_allclose(similarities(vectors, kind), expected(kind, vectors), atol=2e-5)


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_new_vectors_are_compared_by_the_statistics_of_the_collection(kind, vectors):
    space = fit_similarity(vectors, kind)
    np.testing.assert_array_equal(space(vectors[:7]), space(vectors)[:7])
    with pytest.raises(ValueError, match="80 dimensions, these vectors 79"):
        space(vectors[:, 1:])


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_constant_dimensions_few_vectors_and_broken_numbers_do_no_harm(kind, vectors):
    x = vectors.astype(np.float32)
    x[:, 3], x[0, 5], x[1, 6] = 1e4, np.nan, np.inf
    for few in (x[2:], x[2:12], x[2:4], x[2:3], x[:0:-1]):
        found = fit_similarity(few, kind)(few)
        assert np.isfinite(found).all()
    same = np.ones((5, 4))
    assert np.isfinite(similarities(same, kind)).all()


def test_what_cannot_be_compared_is_refused(vectors):
    with pytest.raises(ValueError, match="unknown similarity 'cosine': expected raw, centered"):
        fit_similarity(vectors, "cosine")
    with pytest.raises(ValueError, match="at least one"):
        fit_similarity(vectors[:0])
    with pytest.raises(ValueError, match=r"got shape \(80,\)"):
        fit_similarity(vectors[0])
