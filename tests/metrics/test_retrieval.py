"""Retrieval against scikit-learn's average precision, and its bootstrap against drawing by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ssamba.metrics import retrieval
from ssamba.metrics.bootstrap import bootstrap_means
from ssamba.metrics.retrieval import retrieval_scores


def some_clips(count=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (count, 3)).astype(np.float32)  # whole numbers: many equal similarities, and exact ones
    return x, rng.choice(["a", "b", "c"], count), rng.choice(["", "g", "h", "k", "l"], count)


def by_hand(x, shares, groups):
    """Average precision of each query with a relevant clip."""
    found = {}
    for query in range(len(x)):
        others = [k for k in range(len(x)) if k != query and (groups[k] != groups[query] or groups[k] == "")]
        relevant = [shares(query, k) for k in others]
        if any(relevant):
            found[query] = average_precision_score(relevant, x[others] @ x[query])
    return found


@pytest.mark.parametrize("at_once", [1, 200, 4_000_000])
def test_average_precision_is_scikit_learns_whatever_is_computed_at_once(monkeypatch, at_once):
    monkeypatch.setattr(retrieval, "_SIMILARITIES_AT_ONCE", at_once)
    x, labels, groups = some_clips()
    expected = by_hand(x, lambda i, k: labels[i] == labels[k], groups)
    found = retrieval_scores(x, labels, groups)
    assert found.queries.tolist() == list(expected)
    np.testing.assert_allclose(found.average_precision, list(expected.values()), atol=1e-12)


def test_clips_of_several_labels_are_relevant_if_they_share_one():
    x, _, groups = some_clips()
    targets = (np.random.default_rng(1).random((len(x), 5)) < 0.2).astype(int)
    expected = by_hand(x, lambda i, k: (targets[i] & targets[k]).any(), groups)
    found = retrieval_scores(x, targets, groups)
    assert found.queries.tolist() == list(expected)
    assert set(np.flatnonzero(targets.sum(1) == 0)).isdisjoint(found.queries)
    np.testing.assert_allclose(found.average_precision, list(expected.values()), atol=1e-12)


def test_precision_at_10_is_its_expectation_where_clips_are_equally_far():
    x, labels, groups = some_clips()
    found, rng = retrieval_scores(x, labels, groups), np.random.default_rng(2)
    for query, precision in list(zip(found.queries, found.precision_at_10, strict=True))[:5]:
        others = np.array([k for k in range(len(x)) if k != query and (groups[k] != groups[query] or groups[k] == "")])
        drawn = []
        for _ in range(600):
            order = rng.permutation(others)
            nearest = order[np.argsort(-(x[order] @ x[query]), kind="stable")[:10]]
            drawn.append(np.mean(labels[nearest] == labels[query]))
        assert precision == pytest.approx(np.mean(drawn), abs=0.02)
    few = retrieval_scores(np.eye(4)[[0, 0, 0, 1]], np.array([*"aaab"]))
    assert few.precision_at_10.tolist() == pytest.approx([2 / 3] * 3)  # of three candidates


def test_no_clip_searches_itself_or_its_group():
    x = np.ones((4, 2))
    assert not len(retrieval_scores(x, np.array(["a", "b", "c", "d"])).queries)
    assert not len(retrieval_scores(x, np.array(["a"] * 4), np.array(["g"] * 4)).queries)
    assert len(retrieval_scores(x, np.array(["a"] * 4), np.array([""] * 4)).queries) == 4
    assert retrieval_scores(x, np.array(["a"] * 4), max_queries=2).queries.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"shapes \(4, 2\), \(3,\)"):
        retrieval_scores(x, np.array(["a"] * 3))


def test_means_of_bootstrap_samples_are_spread_as_means_are():
    values = np.random.default_rng(0).random((200, 2))
    drawn = bootstrap_means(values, samples=2000)
    np.testing.assert_allclose(drawn.mean(0), values.mean(0), atol=2e-3)
    np.testing.assert_allclose(drawn.std(0), values.std(0) / 200**0.5, rtol=0.06)
    np.testing.assert_array_equal(drawn, bootstrap_means(values, samples=2000))
