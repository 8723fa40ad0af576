"""Metrics of a fine-tuning's test against scikit-learn, with ties of saturated probabilities and absent classes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics as theirs

from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.report import (
    FinetuneReport,
    FoldResult,
    FoldTest,
    comparable_scores,
    mean_intervals,
    metrics_of_test,
    predicted_labels,
    validation_metrics,
    write_report,
)

EMPTY = np.zeros((0, 2))


def softmax(logits):
    powers = np.exp(logits.astype(float) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture
def single():
    """Sixty answers of five classes, one of them never true; logits so large that float32 probabilities are 1."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 60)
    logits = (generator.normal(size=(60, 5)) + 1.5 * np.eye(5)[truth]).astype(np.float32) * 8
    return logits, np.eye(5, dtype=np.float32)[truth], truth


def test_metrics_of_one_label_are_scikit_learns(single):
    logits, targets, truth = single
    found = FoldTest.measure(
        comparable_scores(logits, binary_loss=False),
        targets,
        np.arange(60),
        metrics_of_test(multi=False, by_second=True),
    )
    guessed, there = logits.argmax(1), range(4)
    assert found.values["accuracy"] == theirs.accuracy_score(truth, guessed)
    expected = theirs.recall_score(truth, guessed, average="macro", labels=list(there))
    assert found.values["balanced_accuracy"] == pytest.approx(expected, abs=1e-6)
    expected = theirs.f1_score(truth, guessed, average="macro", labels=list(there))
    assert found.values["macro_f1"] == pytest.approx(expected, abs=1e-6)
    areas = [theirs.roc_auc_score(truth == c, softmax(logits)[:, c]) for c in there]
    assert found.values["mAUC"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert found.values["segment_f1"] == pytest.approx(found.values["accuracy"])
    assert found.values["error_rate"] == pytest.approx(1 - found.values["accuracy"])
    for name, (low, high) in found.intervals.items():
        assert low <= found.values[name] <= high, name
    found_in_training = validation_metrics(logits, targets, multi=False, binary_loss=False)
    assert {name: found_in_training[name] for name in ("accuracy", "balanced_accuracy")} == pytest.approx(
        {name: found.values[name] for name in ("accuracy", "balanced_accuracy")}
    )


def test_metrics_of_several_labels_are_scikit_learns(single):
    logits = single[0]
    targets = (np.random.default_rng(1).random((60, 5)) < [0.5, 0.2, 0.1, 0.3, 0.0]).astype(np.float32)
    scores = comparable_scores(logits, binary_loss=True)
    found = FoldTest.measure(scores, targets, np.arange(60), metrics_of_test(multi=True, by_second=True))
    expected = theirs.average_precision_score(targets[:, :4], logits[:, :4], average="macro")
    assert found.values["mAP"] == pytest.approx(expected, abs=1e-6)
    assert validation_metrics(logits, targets, multi=True, binary_loss=True)["mAP"] == pytest.approx(expected, abs=1e-6)
    expected = theirs.roc_auc_score(targets[:, :4], logits[:, :4], average="macro")
    assert found.values["mAUC"] == pytest.approx(expected, abs=1e-6)
    expected = theirs.f1_score(targets, 1 / (1 + np.exp(-logits)) >= 0.5, average="micro")
    assert found.values["segment_f1"] == pytest.approx(expected, abs=1e-6)
    nothing = FoldTest.measure(
        scores, np.zeros_like(targets), np.arange(60), metrics_of_test(multi=True, by_second=True)
    )
    assert set(nothing.values) == {"segment_f1"}


def test_predicted_labels_are_the_most_probable_or_all_likely_ones():
    scores = np.array([[1.0, 1.0, -1.0], [-2.0, -1.0, -3.0]])
    assert predicted_labels(scores, multi=False).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert predicted_labels(scores, multi=True).tolist() == [[1, 1, 0], [0, 0, 0]]


def test_the_interval_of_a_mean_is_narrower_than_those_of_its_folds():
    generator = np.random.default_rng(0)
    folds = [
        FoldTest(EMPTY, EMPTY, {"accuracy": 0.5}, {"accuracy": generator.normal(0.5, 0.1, 1000)}) for _ in range(4)
    ]
    low, high = mean_intervals(folds)["accuracy"]
    assert high - low == pytest.approx(
        0.5 * (folds[0].intervals["accuracy"].high - folds[0].intervals["accuracy"].low), rel=0.1
    )
    assert mean_intervals([]) == {}


def test_results_hold_no_infinity(tmp_path):
    """d' of a perfect ranking is infinite, which JSON cannot say."""
    scores, targets = np.array([[2.0, -1.0], [-1.0, 2.0]] * 4), np.array([[1, 0], [0, 1]] * 4)
    found = FoldTest.measure(scores, targets, np.arange(8), metrics_of_test(multi=True, by_second=False))
    assert found.values["d_prime"] == math.inf
    part = FoldResult("all", {"test": 8}, 1, 1, None, found.values, tmp_path / "m", (), found.intervals)
    report = FinetuneReport("finished", "mAP", ("a", "b"), (part, part), (), tmp_path, mean_intervals([found, found]))
    assert report.scores()["d_prime"] == (math.inf, None)
    write_report(report, tmp_path, [FoldTest(scores, targets)], FinetuneRecipe(), None, multi=True)
    text = (tmp_path / "results.json").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    assert json.loads(text)["scores"]["d_prime"] == {"mean": None, "deviation": None, "interval": [None, None]}
