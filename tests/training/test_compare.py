"""Runs side by side: finished, killed and running ones, of pretraining and fine-tuning (several logs)."""

from __future__ import annotations

import csv
import json

import pytest
from tests.conftest import invoke

from ssamba import compare_runs
from ssamba.errors import ConfigError, DataError
from ssamba.locks import lock_output
from ssamba.training import OptimizerSettings


@pytest.fixture(scope="module")
def runs(experiment, tmp_path_factory):
    """Return a folder with a finished run, one that was killed, and a fine-tuning on two folds."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"steps": 4, "validate_every": 2, "recipe": {"masking": {"ratio": 0.75}}}
    experiment.run(experiment.DemoTask(), folder / "first", **options)
    task = experiment.DemoTask()
    task.fail_at = 3
    options["recipe"] = {"masking": {"ratio": 0.5}}
    with pytest.raises(RuntimeError):
        experiment.run(task, folder / "second", optimizer=OptimizerSettings(learning_rate=0.01), **options)
    for name in ("fold0", "fold1"):
        experiment.run(experiment.DemoTask(), folder / "tuned" / "rounds" / name, **options)
    scores = {"accuracy": {"mean": 0.75, "deviation": None, "interval": [0.5, 0.875]}}
    (folder / "tuned" / "results.json").write_text(json.dumps({"scores": scores, "run": {"settings": {}}}))
    return folder


def test_settings_figures_and_curves_stand_side_by_side(runs, experiment, tmp_path):
    comparison = compare_runs([runs / "first", runs / "second"], tmp_path / "out")
    assert comparison.settings == {"optimizer.learning_rate": (0.003, 0.01), "masking.ratio": (0.75, 0.5)}
    first, second = comparison.runs
    assert (first.status, second.status) == ("finished", "interrupted")
    assert (first.figures["steps"], second.figures["steps"]) == (4, 3)
    (curve,) = first.curves["train loss"]
    assert dict(zip(curve.steps, curve.values, strict=True)) == experiment.curve(runs / "first")
    (held_out,) = second.curves["validation accuracy"]
    assert held_out.steps == [2]
    best = json.loads((runs / "first" / "report.json").read_text())["best"]
    assert [first.figures["at step"], first.figures["best validation"]] == best
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["runs"][0]["curves"]["train loss"][0]["values"] == curve.values
    assert (tmp_path / "out" / "compare.png").stat().st_size > 10_000
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        table = {row[0]: row[1:] for row in csv.reader(file)}
    assert table[""] == ["first", "second"]
    assert table["masking.ratio"] == ["0.75", "0.5"]
    assert table["status"] == ["finished", "interrupted"]


def test_names_of_runs_and_lists_are_printed_as_they_are(runs, tmp_path):
    for name, sources in (("r_1", ["birds: 3 clips", "bats: 2 clips"]), ("r_2", ["birds: 3 clips"])):
        (tmp_path / name).mkdir()
        start = {"event": "start", "step": 0, "settings": {}, "data": sources}
        (tmp_path / name / "log.jsonl").write_text(json.dumps(start) + "\n")
    head, _, data, *_ = str(compare_runs([tmp_path / "r_1", tmp_path / "r_2"])).splitlines()
    assert head.split() == ["r_1", "r_2"]
    assert data.startswith("data")
    assert "birds: 3 clips; bats: 2 clips" in data


def test_a_run_that_trains_is_compared_as_far_as_it_is(runs, tmp_path):
    log = (runs / "first" / "log.jsonl").read_text()
    (tmp_path / "now").mkdir()
    (tmp_path / "now" / "log.jsonl").write_text(log[: log.index('{"event": "train", "step": 4') + 30])  # a torn line
    with lock_output(tmp_path / "now", folder=True):
        (run,) = compare_runs(tmp_path / "now").runs
    assert (run.status, run.figures["steps"]) == ("running", 3)
    (tmp_path / "now" / "log.jsonl").write_text(log.splitlines()[0])
    (run,) = compare_runs([tmp_path / "now"], tmp_path / "out").runs
    assert (run.status, run.curves) == ("interrupted", {})


def test_folds_are_averaged_and_test_scores_have_intervals(runs):
    done = invoke("compare", runs / "first", runs / "tuned")
    assert done.exit_code == 0
    text = " ".join(done.stdout.split())
    assert "test accuracy - 0.75 [0.5, 0.875]" in text
    assert "rounds - 2" in text
    assert "steps 4 8" in text
    (tuned,) = compare_runs(runs / "tuned").runs
    assert (tuned.status, len(tuned.curves["train loss"])) == ("finished", 2)
    assert [run.name for run in compare_runs(runs).runs] == sorted(path.name for path in runs.iterdir())


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        compare_runs([tmp_path])
    with pytest.raises(ConfigError, match="got none"):
        compare_runs([])
