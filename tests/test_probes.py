"""Classifiers on fixed vectors: constant labels, damaged vectors, the minimizer, and identical results in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssamba.probes import SETTINGS, LayerMixture, finite, fit_one_label, fit_several_labels, minimize


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", SETTINGS)
def test_constant_labels_are_always_or_never_predicted(kind):
    x = np.random.default_rng(0).normal(size=(40, 3))
    targets = np.column_stack([x[:, 0] > 0, np.ones(40), np.zeros(40)]).astype(np.int64)
    scores = fit_several_labels(kind, x, targets, SETTINGS[kind][-1])(x)
    assert scores.shape == (40, 3)
    assert ((scores >= 0) == targets)[:, 1:].all()
    assert ((scores >= 0) == targets)[:, 0].mean() > 0.8


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_scale_of_a_dimension_does_not_matter(kind):
    generator = np.random.default_rng(0)
    x, labels = generator.normal(size=(30, 4)), generator.choice(list("abc"), 30)
    scale = np.array([1.0, 8.0, 0.25, 64.0])  # powers of two: standardization is then exact
    first = fit_one_label(kind, x, labels, SETTINGS[kind][0]).predict(x)
    np.testing.assert_array_equal(first, fit_one_label(kind, x * scale, labels, SETTINGS[kind][0]).predict(x * scale))


def test_more_neighbors_than_rows_are_all_rows():
    x, labels = np.eye(3), np.array(["a", "b", "b"])
    assert list(fit_one_label("knn", x, labels, 20).predict(x)) == ["b", "b", "b"]


def test_vectors_become_finite():
    np.testing.assert_array_equal(finite(np.array([np.nan, np.inf, 1.0])), [0.0, np.finfo(np.float64).max, 1.0])


def test_the_minimizer_finds_the_minimum_and_leaves_plain_tensors():
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    minimize(lambda: ((x - target) ** 2 * torch.tensor([1.0, 10.0, 100.0])).sum(), [x])
    torch.testing.assert_close(x, target, atol=1e-5, rtol=0)
    assert not x.requires_grad


def test_the_weights_of_a_mixture_add_up_to_one_and_absent_classes_are_never_predicted():
    layers = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    mixture = LayerMixture(layers, torch.arange(20) % 2, 3, c=1.0)
    assert mixture.weights.sum() == pytest.approx(1, abs=1e-6)
    assert set(mixture.predict(layers).tolist()) <= {0, 1}
