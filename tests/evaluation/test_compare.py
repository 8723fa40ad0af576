"""Comparing two models on one task: paired intervals, and the same probes and clips for both."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from ssamba.errors import SuiteError
from ssamba.evaluation import FunctionModel, LogMelStatistics
from ssamba.evaluation.compare import Comparison, compare_models, paired_differences, read_task
from ssamba.evaluation.probing import ProbeResult
from ssamba.metrics.bootstrap import Interval


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


def test_what_few_clips_or_wrong_labels_can_show_is_said(suite, tmp_path):
    few = Comparison("t", "accuracy", 5, 5, ("a", "b"), (0.0, 1.0), 1.0, (1.0,), Interval(1.0, 1.0))
    assert few.verdict == "too few test clips to tell, at least 6"
    assert replace(few, clips=100).verdict == "no difference that these clips can show"
    assert replace(few, clips=6, changed=6).verdict == "better"
    table = (suite / "kinds.csv").read_text().splitlines()
    kinds = sorted({row.split(",")[1] for row in table[1:]})
    kept = [row for row in table if not (f",{kinds[0]}," in row and ",train," in row)]
    shutil.copytree(suite, tmp_path / "suite")
    (tmp_path / "suite" / "kinds.csv").write_text("\n".join(kept) + "\n")
    found = compare_models(read_task(tmp_path / "suite" / "kinds.csv"), "logmel", LogMelStatistics(), cache=False)
    assert "not in the training part" in str(found).splitlines()[1]


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
