"""Probes of one label against scikit-learn by hand, and the learned mixture of layers."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssamba.errors import SuiteError
from ssamba.evaluation.probing import probe_labels, probe_layers, run_jobs
from ssamba.probes import SETTINGS
from ssamba.splits import Fold, validation_mask


class Data(NamedTuple):
    """Arguments of a probe."""

    vectors: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    fold: Fold


@pytest.fixture(scope="module")
def data() -> Data:
    """Three classes whose centers lie one deviation apart in 8 dimensions, 150 clips of 10 groups."""
    generator = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 50)
    centers = {label: generator.normal(size=8) for label in "abc"}
    vectors = np.stack([centers[label] for label in labels]) + generator.normal(size=(150, 8))
    order = generator.permutation(150)
    fold = Fold(np.sort(order[:100]), np.sort(order[100:]))
    return Data(vectors.astype(np.float32), labels, (np.arange(150) % 10).astype(str), fold)


def knn(k):
    return KNeighborsClassifier(k, metric="cosine", algorithm="brute")


def mlp(alpha):
    return MLPClassifier((256,), alpha=alpha, max_iter=100, random_state=0)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("kind", "settings", "make"), [("knn", SETTINGS["knn"], knn), ("mlp", SETTINGS["mlp"], mlp)])
def test_probes_are_scikit_learns(data, kind, settings, make):
    (found,) = run_jobs([partial(probe_labels, kind, *data)])
    x, train = data.vectors.astype(float), data.fold.train
    held = validation_mask(data.groups[train])
    scores = []
    for setting in settings:
        model = make_pipeline(StandardScaler(), make(setting)).fit(x[train[~held]], data.labels[train[~held]])
        scores.append(model.score(x[train[held]], data.labels[train[held]]))
    assert found.setting == settings[int(np.argmax(scores))]
    assert found.validation == max(scores)
    model = make_pipeline(StandardScaler(), make(found.setting and type(settings[0])(found.setting)))
    expected = model.fit(x[train], data.labels[train]).predict(x[data.fold.test])
    np.testing.assert_array_equal(found.predicted, expected)
    assert found.score == np.mean(expected == data.labels[data.fold.test])


def test_results_do_not_depend_on_how_many_run_at_once(data):
    jobs, heard = [partial(probe_labels, "linear", *data)] * 4, []
    one = run_jobs(jobs, workers=1)
    two = run_jobs(jobs, workers=2, on_progress=heard.append)
    assert heard == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.predicted, b.predicted)


def test_damaged_vectors_do_not_stop_a_probe(data):
    vectors = data.vectors.copy()
    vectors[:, 0] = np.nan
    kept = np.delete(data.vectors, 0, axis=1)
    damaged = probe_labels("linear", vectors, data.labels, data.groups, data.fold)
    np.testing.assert_array_equal(
        damaged.predicted, probe_labels("linear", kept, data.labels, data.groups, data.fold).predicted
    )


def test_a_single_layer_weighted_is_logistic_regression(data):
    found = probe_layers(data.vectors[None], data.labels, data.groups, data.fold)
    train, test = data.fold.train, data.fold.test
    model = make_pipeline(StandardScaler(), LogisticRegression(C=found.setting, max_iter=500, tol=1e-8))
    model.fit(data.vectors[train].astype(float), data.labels[train])
    np.testing.assert_array_equal(found.predicted, model.predict(data.vectors[test].astype(float)))
    np.testing.assert_array_equal(found.weights, [1.0])


def test_the_weighting_finds_the_layer_that_knows(data):
    noise = np.random.default_rng(1).normal(size=(2, *data.vectors.shape)).astype(np.float32)
    layers = np.stack([noise[0], data.vectors, noise[1]])
    found = probe_layers(layers, data.labels, data.groups, data.fold)
    assert found.weights is not None
    assert found.weights.argmax() == 1
    assert found.weights.sum() == pytest.approx(1, abs=1e-6)
    assert found.score > probe_layers(noise, data.labels, data.groups, data.fold).score + 0.2


def test_classes_without_a_training_clip_are_never_guessed(data):
    train = data.fold.train[data.labels[data.fold.train] != "c"]
    for found in (
        probe_layers(data.vectors[None], data.labels, data.groups, Fold(train, data.fold.test)),
        probe_labels("linear", data.vectors, data.labels, data.groups, Fold(train, data.fold.test)),
    ):
        assert set(found.predicted) == {"a", "b"}


def test_too_few_training_clips_are_refused():
    labels, groups = np.array(["a", "b", "a", "b"]), np.array(["1", "2", "3", "4"])
    fold = Fold(np.array([0, 2]), np.array([1, 3]))
    with pytest.raises(SuiteError, match="2 training clips of 1 labels are too few"):
        probe_labels("linear", np.eye(4), labels, groups, fold)
