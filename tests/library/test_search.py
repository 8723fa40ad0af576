"""Nearest neighbors by the library's similarity."""

from __future__ import annotations

import numpy as np
import pytest

from ssamba.library import search
from ssamba.library.search import nearest_neighbors
from ssamba.similarity import SIMILARITIES, SIMILARITY, similarities


@pytest.mark.parametrize("kind", SIMILARITIES)
@pytest.mark.parametrize("at_once", [1, 65, 4_000_000])
def test_neighbors_are_the_most_similar_others_whatever_is_computed_at_once(monkeypatch, kind, at_once):
    monkeypatch.setattr(search, "_SIMILARITIES_AT_ONCE", at_once)
    x = np.random.default_rng(0).normal(size=(20, 5)) + 10
    expected = similarities(x, kind)
    np.fill_diagonal(expected, -2)
    found = nearest_neighbors(x, 3, kind)
    np.testing.assert_array_equal(found.indices, np.argsort(-expected, axis=1)[:, :3])
    np.testing.assert_allclose(found.similarity, -np.sort(-expected, axis=1)[:, :3], atol=1e-6)


def test_the_default_is_the_librarys():
    x = np.random.default_rng(1).normal(size=(30, 4)) * [1, 1, 1, 50]
    np.testing.assert_array_equal(nearest_neighbors(x).indices, nearest_neighbors(x, 3, SIMILARITY).indices)


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (20, 20), (20, 0)])
def test_too_few_recordings_are_refused(rows, count):
    with pytest.raises(ValueError, match=r"recordings|count"):
        nearest_neighbors(np.ones((rows, 5)), count)
    with pytest.raises(ValueError, match="recordings"):
        nearest_neighbors(np.ones(5))
