"""Comparing two models on one task: paired intervals, and the same probes and clips for both."""

import numpy as np
import pytest

from ssamba.errors import SuiteError
from ssamba.evaluation import FunctionModel, LogMelStatistics
from ssamba.evaluation.compare import compare_models, paired_differences, read_task
from ssamba.evaluation.probing import ProbeResult


def result(correct, test=None):
    correct = np.array(correct, dtype=bool)
    test = np.arange(len(correct)) if test is None else np.array(test)
    return ProbeResult(test, correct.astype(int), correct, 0.5, 0.1)


def test_the_interval_is_that_of_clips_on_which_the_models_differ():
    first, second = np.arange(200) < 100, np.arange(200) < 110  # the second has ten more, and none less
    found = paired_differences(result(first), result(second))
    assert found.mean() == pytest.approx(0.05, abs=0.002)
    assert found.std() == pytest.approx((0.05 * 0.95 / 200) ** 0.5, rel=0.1)  # not that of two independent scores
    assert not paired_differences(result(first), result(first)).any()
    with pytest.raises(SuiteError, match="scored on different clips"):
        paired_differences(result(first), result(second, np.arange(200) + 1))


def test_both_models_have_the_probe_that_is_best_for_both(suite):
    task = read_task(suite / "kinds.csv")
    same = compare_models(task, "logmel", LogMelStatistics(), cache=False)
    assert (same.difference, same.interval) == (0.0, (0.0, 0.0))
    noise = FunctionModel("noise", lambda waves: np.random.default_rng(0).normal(size=(len(waves), 4)))
    worse = compare_models(task, "logmel", noise, cache=False)
    assert worse.scores[1] < worse.scores[0] == pytest.approx(worse.scores[1] - worse.difference)
    assert worse.verdict == "worse"
    assert len(worse.settings) == 1
    assert f"{worse.difference:+.3f} (95 % {worse.interval.low:+.3f} to {worse.interval.high:+.3f})" in str(worse)


def test_a_table_is_named_by_its_path(suite):
    assert read_task(str(suite / "kinds.csv")).name == "kinds"
    with pytest.raises(SuiteError, match=r"expected a table TASK\.csv"):
        read_task(suite)
