"""Temperatures against a grid of scikit-learn's log-losses, thresholds against every possible cut."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from ssamba.metrics.calibration import calibrated, choose_thresholds, fit_temperature


@pytest.fixture(scope="module")
def answers():
    """300 answers of three classes, whose logits are three times as far apart as the labels are certain."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(300, 3)) * 2
    drawn = [random.choice(3, p=row) for row in softmax(logits, axis=1)]
    return logits * 3, np.eye(3)[drawn]


@pytest.mark.parametrize("independent", [False, True])
def test_the_temperature_has_the_least_loss(answers, independent):
    logits, targets = answers
    fitted = fit_temperature(logits, targets, independent=independent)

    def loss(temperature):
        scaled = logits / temperature
        if independent:
            likelihood = targets * np.log(expit(scaled)) + (1 - targets) * np.log(expit(-scaled))
        else:
            likelihood = targets * log_softmax(scaled, axis=1)
        return -likelihood.sum() + 2 * np.log(temperature) ** 2

    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 2001))
    assert fitted == pytest.approx(grid[np.argmin([loss(one) for one in grid])], rel=5e-3)
    if not independent:
        assert fitted == pytest.approx(3, rel=0.25)
        assert fit_temperature(logits[:9] * 0 + targets[:9] * 9, targets[:9], independent=False) > 0.05  # all right


def test_calibrated_probabilities_are_scipys(answers):
    logits, _ = answers
    np.testing.assert_allclose(calibrated(logits, 2.0, independent=False), softmax(logits / 2, axis=1), atol=1e-12)
    np.testing.assert_allclose(calibrated(logits, None, independent=True), expit(logits), atol=1e-12)
    assert calibrated(np.array([[-2e3, 2e3]]), 1.0, independent=True).tolist() == [[0.0, 1.0]]


def test_thresholds_reach_the_precision_with_the_highest_recall(answers):
    logits, targets = answers
    probabilities = calibrated(logits, 3.0, independent=False)
    thresholds = choose_thresholds(probabilities, targets, 0.8)
    for chosen, scores, has in zip(thresholds, probabilities.T, targets.T > 0, strict=True):
        above = scores >= chosen.threshold
        assert chosen.precision == pytest.approx(has[above].mean())
        assert chosen.recall == pytest.approx(above[has].mean())
        assert chosen.precision >= 0.8
        others = [cut for cut in np.unique(scores) if cut >= 0.5 and has[scores >= cut].mean() >= 0.8]
        assert chosen.recall == pytest.approx(max((scores >= cut)[has].mean() for cut in others))
        assert chosen.threshold >= 0.5


def test_a_class_without_answers_or_precision_still_has_a_threshold():
    scores = np.array([[0.9, 0.9, 0.1], [0.8, 0.8, 0.2], [0.7, 0.7, 0.3], [0.6, 0.2, 0.4]])
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    first, second, third = choose_thresholds(scores, targets, 0.95)
    assert (first.threshold, first.precision, first.recall) == (pytest.approx(0.75), 1.0, pytest.approx(2 / 3))
    assert (second.precision, second.positives) == (0.5, 1)  # the best there is
    assert third.positives == 0
    assert np.isnan([third.precision, third.recall]).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(answers, classes\), got \(2, 3\) and \(2,\)"):
        fit_temperature(np.zeros((2, 3)), np.zeros(2), independent=False)
