"""The other probes against scikit-learn by hand, and the learned weighting of layers."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def job() -> ProbeJob:
    """Three classes whose centers lie one deviation apart in 8 dimensions, 150 clips of 10 groups."""
    generator = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 50)
    centers = {label: generator.normal(size=8) for label in "abc"}
    vectors = np.stack([centers[label] for label in labels]) + generator.normal(size=(150, 8))
    order = generator.permutation(150)
    part = Fold(np.sort(order[:100]), np.sort(order[100:]))
    return ProbeJob(vectors.astype(np.float32), labels, (np.arange(150) % 10).astype(str), part)


def knn(k):
    return KNeighborsClassifier(k, metric="cosine", algorithm="brute")


def mlp(alpha):
    return MLPClassifier((256,), alpha=alpha, max_iter=100, random_state=0)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("probe", "settings", "make"), [(neighbors_probe, K_GRID, knn), (perceptron_probe, ALPHA_GRID, mlp)]
)
def test_probes_are_scikit_learns(job, probe, settings, make):
    (found,) = run_jobs([job], probe)
    x, train = job.vectors.astype(float), job.part.train
    held = validation_mask(job.groups[train])
    scores = []
    for setting in settings:
        model = make_pipeline(StandardScaler(), make(setting)).fit(x[train[~held]], job.labels[train[~held]])
        scores.append(model.score(x[train[held]], job.labels[train[held]]))
    assert found.setting == settings[int(np.argmax(scores))]
    assert found.validation == max(scores)
    model = make_pipeline(StandardScaler(), make(found.setting and type(settings[0])(found.setting)))
    expected = model.fit(x[train], job.labels[train]).predict(x[job.part.test])
    np.testing.assert_array_equal(found.predicted, expected)
    assert found.score == np.mean(expected == job.labels[job.part.test])


def test_results_do_not_depend_on_how_many_run_at_once(job):
    jobs, heard = [job] * 4, []
    one = run_jobs(jobs, linear_probe, workers=1)
    two = run_jobs(jobs, linear_probe, workers=2, on_progress=heard.append)
    assert heard == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.predicted, b.predicted)


def test_damaged_vectors_do_not_stop_a_probe(job):
    vectors = job.vectors.copy()
    vectors[:, 0] = np.nan
    kept = np.delete(job.vectors, 0, axis=1)
    damaged = linear_probe(vectors, job.labels, job.groups, job.part)
    np.testing.assert_array_equal(damaged.predicted, linear_probe(kept, job.labels, job.groups, job.part).predicted)


def test_a_single_layer_weighted_is_logistic_regression(job):
    found = probe_layers(job.vectors[None], job.labels, job.groups, job.part)
    train, test = job.part.train, job.part.test
    model = make_pipeline(StandardScaler(), LogisticRegression(C=found.setting, max_iter=500, tol=1e-8))
    model.fit(job.vectors[train].astype(float), job.labels[train])
    np.testing.assert_array_equal(found.predicted, model.predict(job.vectors[test].astype(float)))
    np.testing.assert_array_equal(found.weights, [1.0])


def test_the_weighting_finds_the_layer_that_knows(job):
    noise = np.random.default_rng(1).normal(size=(2, *job.vectors.shape)).astype(np.float32)
    layers = np.stack([noise[0], job.vectors, noise[1]])
    found = probe_layers(layers, job.labels, job.groups, job.part)
    assert found.weights is not None
    assert found.weights.argmax() == 1
    assert found.weights.sum() == pytest.approx(1, abs=1e-6)
    assert found.score > probe_layers(noise, job.labels, job.groups, job.part).score + 0.2


def test_classes_without_a_training_clip_are_never_guessed(job):
    train = job.part.train[job.labels[job.part.train] != "c"]
    for found in (
        probe_layers(job.vectors[None], job.labels, job.groups, Fold(train, job.part.test)),
        linear_probe(job.vectors, job.labels, job.groups, Fold(train, job.part.test)),
    ):
        assert set(found.predicted) == {"a", "b"}


def test_too_few_training_clips_are_refused():
    labels, groups = np.array(["a", "b", "a", "b"]), np.array(["1", "2", "3", "4"])
    part = Fold(np.array([0, 2]), np.array([1, 3]))
    with pytest.raises(SuiteError, match="2 training clips of 1 labels are too few"):
        linear_probe(np.eye(4), labels, groups, part)
