"""The metrics against scikit-learn, ties and absent classes included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn import metrics as theirs

from ssamba.metrics import classification as ours
from ssamba.metrics.bootstrap import bootstrap_values, interval_of


@st.composite
def multilabel(draw):
    """Scores on a coarse grid, so that ties are common; some classes without a positive, or without a negative."""
    clips, classes = draw(st.integers(2, 40)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from((2, 5, 1000)))
    scores = generator.integers(0, levels, (clips, classes)) / levels
    targets = (generator.random((clips, classes)) < generator.choice((0.0, 0.1, 0.5, 1.0), classes)).astype(int)
    return scores, targets


@settings(deadline=None, max_examples=60)
@given(multilabel())
def test_multilabel_metrics_agree_with_scikit_learn(case):
    scores, targets = case
    positive, negative = targets.any(0), ~targets.all(0)
    precision = ours.average_precision(scores, targets)
    area = ours.area_under_curve(scores, targets)
    np.testing.assert_array_equal(np.isnan(precision), ~positive)
    np.testing.assert_array_equal(np.isnan(area), ~(positive & negative))
    if positive.any():
        expected = theirs.average_precision_score(targets[:, positive], scores[:, positive], average="macro")
        assert ours.mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-6)
        expected = theirs.f1_score(
            targets, scores >= 0.5, average="macro", labels=np.flatnonzero(positive), zero_division=0
        )
        if targets.shape[1] > 1:
            assert ours.segment_f1(scores, targets, macro=True) == pytest.approx(expected, abs=1e-6)
    else:
        with pytest.raises(ValueError, match="positive clip"):
            ours.mean_average_precision(scores, targets)
    both = positive & negative
    if both.any():
        expected = theirs.roc_auc_score(targets[:, both], scores[:, both], average="macro")
        assert ours.mean_area_under_curve(scores, targets) == pytest.approx(expected, abs=1e-6)
        if 0 < expected < 1:
            assert ours.d_prime(scores, targets) == pytest.approx(2**0.5 * norm.ppf(expected), abs=1e-6)
    expected = theirs.f1_score(targets.ravel(), (scores >= 0.5).ravel(), zero_division=0)
    assert ours.segment_f1(scores, targets) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 6), st.sampled_from((2, 1000)))
def test_single_label_metrics_agree_with_scikit_learn(seed, clips, classes, levels):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, (clips, classes)) / levels
    targets = generator.integers(0, classes - 1, clips)  # the last class is absent
    guesses = scores.argmax(1)
    assert ours.accuracy(scores, targets) == pytest.approx(theirs.accuracy_score(targets, guesses), abs=1e-6)
    expected = theirs.recall_score(targets, guesses, average="macro", labels=np.unique(targets), zero_division=0)
    assert ours.balanced_accuracy(scores, targets) == pytest.approx(expected, abs=1e-6)
    assert ours.balanced_accuracy(scores, np.eye(classes)[targets]) == ours.balanced_accuracy(scores, targets)
    assert np.isnan(ours.recalls(scores, targets)[-1])
    expected = theirs.f1_score(targets, guesses, average="macro", labels=np.unique(targets), zero_division=0)
    assert ours.macro_f1(scores, targets) == pytest.approx(expected, abs=1e-6)
    counts = ours.confusion_counts(targets, guesses, classes)
    np.testing.assert_array_equal(counts, theirs.confusion_matrix(targets, guesses, labels=range(classes)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from((2, 5, 1000)))
def test_equal_error_rate_is_where_the_roc_curve_crosses(seed, trials, levels):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, trials) / levels
    targets = generator.integers(0, 2, trials)
    targets[:2] = 0, 1
    alarmed, hit, _ = theirs.roc_curve(targets, scores, drop_intermediate=False)
    # Along the curve, by its length in alarms plus hits, which never stands still.
    along = alarmed + hit
    at = brentq(lambda x: np.interp(x, along, alarmed) + np.interp(x, along, hit) - 1, 0, 2, xtol=1e-14)
    assert ours.equal_error_rate(scores, targets) == pytest.approx(np.interp(at, along, alarmed), abs=1e-6)


def test_the_mean_equal_error_rate_is_that_of_each_class_against_all_others():
    generator = np.random.default_rng(0)
    scores, targets = generator.random((40, 4)), np.eye(5, dtype=int)[generator.integers(0, 3, 40)][:, :4]
    own = [ours.equal_error_rate(scores[:, c], targets[:, c]) for c in range(3)]
    assert ours.mean_equal_error_rate(scores, targets) == pytest.approx(np.mean(own))
    two = np.stack([scores[:, 0], 1 - scores[:, 0]], 1)
    once = ours.equal_error_rate(two[:, 0], targets[:, 0])
    assert ours.mean_equal_error_rate(two, np.stack([targets[:, 0], 1 - targets[:, 0]], 1)) == pytest.approx(once)


def test_the_segment_error_rate_counts_by_hand():
    truly = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])
    guessed = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1], [0, 1, 1]])
    # A substitution; a deletion; two insertions; one insertion: of four active classes.
    assert ours.segment_error_rate(guessed, truly) == pytest.approx((1 + 1 + 2 + 1) / 4)
    assert ours.segment_error_rate(truly, truly) == 0
    assert ours.segment_error_rate(np.zeros_like(truly), truly) == 1
    assert ours.segment_error_rate(guessed / 10, truly, threshold=0.1) == ours.segment_error_rate(guessed, truly)


def test_perfect_and_inverted_scores():
    targets = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    assert ours.mean_average_precision(targets, targets) == 1
    assert ours.d_prime(targets, targets) == np.inf
    assert ours.d_prime(1 - targets, targets) == -np.inf
    assert ours.equal_error_rate(targets[:, 0], targets[:, 0]) == 0
    assert ours.equal_error_rate(1 - targets[:, 0], targets[:, 0]) == 1
    assert ours.segment_f1(targets, targets) == 1


@pytest.mark.parametrize(
    ("metric", "scores", "targets", "message"),
    [
        (ours.mean_average_precision, np.zeros((3, 2)), np.zeros((3, 3)), "one shape"),
        (ours.mean_average_precision, np.full((3, 2), np.nan), np.zeros((3, 2)), "NaN"),
        (ours.mean_average_precision, np.zeros((3, 2)), np.full((3, 2), 2), "0 or 1"),
        (ours.mean_area_under_curve, np.zeros((3, 2)), np.ones((3, 2)), "a negative clip"),
        (ours.accuracy, np.zeros((3, 2)), np.ones((3, 2)), "exactly one class"),
        (ours.accuracy, np.zeros((3, 2)), np.array([0, 1, 2]), "from 0 to 1"),
        (ours.accuracy, np.zeros((0, 2)), np.zeros(0, dtype=int), "expected scores"),
        (ours.accuracy, np.full((3, 2), -np.inf), np.array([0, 1, 1]), "infinity"),
        (ours.accuracy, np.zeros((3, 2)), np.array([0.0, 1.0, 1.0]), "class indices"),
        (ours.macro_f1, np.full((3, 2), np.nan), np.array([0, 1, 1]), "NaN"),
        (ours.area_under_curve, np.full((3, 2), np.inf), np.zeros((3, 2)), "infinity"),
        (ours.equal_error_rate, np.zeros(3), np.zeros(3), "all targets are equal"),
        (ours.equal_error_rate, np.zeros((3, 1)), np.zeros(3), "one shape"),
        (ours.equal_error_rate, np.full(3, np.inf), np.array([0, 1, 1]), "infinity"),
        (ours.mean_equal_error_rate, np.zeros((3, 2)), np.zeros((3, 2)), "a positive and a negative"),
        (ours.segment_error_rate, np.zeros((3, 2)), np.zeros((3, 2)), "active classes"),
        (ours.segment_f1, np.zeros(3), np.zeros(3), "one shape"),
    ],
)
def test_what_does_not_fit_is_refused(metric, scores, targets, message):
    with pytest.raises(ValueError, match=message):
        metric(scores, targets)


def test_bootstrap_interval_covers_as_often_as_it_says():
    """Accuracy of 200 clips that are right with probability 0.7, over 200 such experiments."""
    generator = np.random.default_rng(0)
    targets = np.zeros(200, dtype=int)
    covered = 0
    for seed in range(200):
        scores = np.stack([generator.random(200) < 0.7, np.full(200, 0.5)], axis=1)
        low, high = interval_of(bootstrap_values(ours.accuracy, scores, targets, samples=100, seed=seed))
        assert low <= ours.accuracy(scores, targets) <= high
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_draws_again_where_the_metric_does_not_exist():
    scores, targets = np.linspace(0, 1, 6)[:, None], np.array([[0], [0], [0], [0], [1], [1]])
    interval = interval_of(bootstrap_values(ours.mean_average_precision, scores, targets, samples=50))
    assert interval.high == 1
    with pytest.raises(ValueError, match="positive clip"):
        interval_of(bootstrap_values(ours.mean_average_precision, scores, np.zeros_like(targets), samples=50))


def test_bootstrap_draws_whole_recordings_where_segments_belong_to_them():
    """Copies of a clip that count as one unit say nothing new: the interval stays as wide as without them."""
    generator = np.random.default_rng(0)
    scores, targets = np.stack([generator.random(60) < 0.7, np.full(60, 0.5)], axis=1), np.zeros(60, dtype=int)
    once = interval_of(bootstrap_values(ours.accuracy, scores, targets, samples=400))
    many, units = np.repeat(scores, 10, axis=0), np.repeat(np.arange(60), 10)
    same = interval_of(bootstrap_values(ours.accuracy, many, np.repeat(targets, 10), samples=400, units=units))
    assert same == pytest.approx(once)
    apart = interval_of(bootstrap_values(ours.accuracy, many, np.repeat(targets, 10), samples=400))
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


@settings(deadline=None, max_examples=40)
@given(multilabel(), st.integers(0, 2**32 - 1))
def test_bootstrap_by_rank_is_that_by_sorting_again(case, seed):
    """Metrics of the order of clips go another way than a function that the bootstrap does not know."""
    scores, targets = case
    for metric in (ours.mean_average_precision, ours.mean_area_under_curve, ours.mean_equal_error_rate, ours.d_prime):
        try:
            plain = bootstrap_values(lambda s, t, m=metric: m(s, t), scores, targets, samples=5, seed=seed)
        except ValueError:
            continue
        ranked = bootstrap_values(metric, scores, targets, samples=5, seed=seed)
        # The last bit of an area is much of d' where it is near infinity.
        np.testing.assert_allclose(ranked, plain, atol=1e-9, rtol=0.05 if metric is ours.d_prime else 0)
