"""Confidence intervals, class scores, confusions and pictures of an evaluation."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ssamba.evaluation import EvaluateOptions, LogMelStatistics, evaluate_model
from ssamba.evaluation.probing import ProbeResult
from ssamba.evaluation.report import confusion, plot_scorecard, reference_rows, scores_of_one_label, write_details
from ssamba.evaluation.scorecard import score_intervals
from ssamba.evaluation.suite import open_suite_metadata, read_suite
from ssamba.metrics.bootstrap import bootstrap_values, interval_of
from ssamba.metrics.classification import accuracy


@pytest.fixture(scope="module")
def card(suite):
    return evaluate_model(LogMelStatistics(), read_suite(suite), EvaluateOptions(probe="knn"))


def result(labels, test, predicted):
    return ProbeResult(test, predicted, predicted == labels[test], 0.0, 0.0)


def test_classes_and_confusions_agree_with_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.choice(list("abcd"), 60)
    labels[labels == "d"] = "a"
    labels[0] = "d"  # never scored
    parts = np.split(generator.permutation(np.arange(1, 60)), [20])
    results = [result(labels, test, generator.choice(list("abcd"), len(test))) for test in parts]
    truly = labels[np.concatenate(parts)]
    guessed = np.concatenate([r.predicted for r in results])
    names, counts = confusion(labels, results)
    np.testing.assert_array_equal(counts, confusion_matrix(truly, guessed, labels=names))
    precision, recall, f1, clips = precision_recall_fscore_support(truly, guessed, labels=names, zero_division=np.nan)
    rows = scores_of_one_label(labels, results)
    assert rows[-1].label == "d"
    assert math.isnan(rows[-1].recall)
    assert [row.recall for row in rows[:-1]] == sorted(row.recall for row in rows[:-1])
    for row in rows[:-1]:
        k = list(names).index(row.label)
        assert (row.precision, row.recall, row.f1, row.clips) == pytest.approx(
            (precision[k], recall[k], f1[k], clips[k])
        )


def test_intervals_are_the_bootstraps():
    generator = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 150)
    predicted = np.where(generator.random(300) < 0.8, labels, "c")
    found = score_intervals({"task": [result(labels, np.arange(300), predicted)]})
    scores = np.stack([predicted == labels, np.full(300, 0.5)], axis=1)
    drawn = interval_of(bootstrap_values(accuracy, scores, np.zeros(300, dtype=int), samples=2000))
    np.testing.assert_allclose(found["task"], drawn, atol=0.012)
    assert found["mean"] == pytest.approx(found["task"], abs=0.01)


def test_details_and_pictures_are_written(card, suite, tmp_path):
    write_details(card, read_suite(suite), tmp_path)
    with (tmp_path / "kinds.classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["clips"]) for row in rows) == 10
    assert {row["label"] for row in rows} == {"ambi", "guit", "loop", "tabla", "vinyl"}
    for name in ("kinds.confusion.png", "drum8.confusion.png"):
        assert (tmp_path / name).stat().st_size > 5000
    picture = plot_scorecard(card, tmp_path / "card.png", reference_rows())
    assert picture.stat().st_size > 5000
    assert plot_scorecard(card, tmp_path / "alone.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_reference_rows_cover_the_open_suite():
    rows, tasks = reference_rows(), list(open_suite_metadata().tasks)
    assert rows[0].name == "log-mel statistics"
    assert rows[0].mean(tasks) == pytest.approx(0.394, abs=5e-4)
    for row in rows:
        assert set(row.scores) == set(tasks)
        assert all(0 < score < 1 for score in row.scores.values())
