"""From a suite's folder to a scorecard, and the linear probe against scikit-learn by hand."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssamba.checkpoint import load_checkpoint
from ssamba.embedder import Embedder
from ssamba.evaluation import EncoderModel, EvaluateOptions, FunctionModel, LogMelStatistics, VectorOptions, evaluate
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.suite import read_suite
from ssamba.probes import SETTINGS
from ssamba.splits import validation_mask


def by_hand(vectors, task):
    """The protocol with scikit-learn alone: mean accuracy over folds."""
    scores = []
    for fold in task.folds():
        held = validation_mask(task.groups[fold.train])
        fit, choose = fold.train[~held], fold.train[held]

        def trained(c, clips):
            pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))
            return pipeline.fit(vectors[clips].astype(float), task.labels[clips])

        best = max(
            SETTINGS["linear"], key=lambda c: trained(c, fit).score(vectors[choose].astype(float), task.labels[choose])
        )
        scores.append(trained(best, fold.train).score(vectors[fold.test].astype(float), task.labels[fold.test]))
    return float(np.mean(scores))


def test_the_linear_probe_is_scikit_learns(suite):
    tasks, model = read_suite(suite), LogMelStatistics()
    card = evaluate(model, tasks, workers=2)
    for task in tasks:
        waves = read_waves(task).select(np.arange(len(task.clips)), 0.9)
        assert card.rows[0].scores[task.name] == by_hand(model.vectors(waves)["final.mean"], task)
    assert card.best().mean == pytest.approx(np.mean(list(card.best().scores.values())))
    assert card.best().scores["drum8"] > 0.4  # five kinds, and pieces of the same recordings to learn from


def test_inner_scores_never_see_a_test_clip(suite):
    tasks, seen = read_suite(suite), []

    def embed(waves):
        seen.append(len(waves))
        return np.stack([np.abs(np.fft.rfft(wave, 64)) for wave in waves])

    outer = evaluate(FunctionModel("spectrum", embed), tasks)
    inner = evaluate(FunctionModel("spectrum", embed), tasks, EvaluateOptions(inner=True))
    assert seen == [30, 30, 20, 20]
    assert inner.rows[0].scores != outer.rows[0].scores
    for task in tasks:
        results = inner.results["final.mean"][task.name]
        scored = np.concatenate([result.test for result in results])
        assert sorted(scored) == list(task.folds()[0].train)


def test_a_recording_on_both_sides_under_another_name_is_said(suite, tmp_path):
    folder = tmp_path / "suite"
    shutil.copytree(suite, folder)
    with (folder / "kinds.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    trained = next(row for row in rows if row[2] == "train")
    shutil.copy(folder / trained[0], folder / "kinds" / "again.flac")
    with (folder / "kinds.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["kinds/again.flac", trained[1], "test", "another"])
    tasks = read_suite(folder)
    already = evaluate(LogMelStatistics(), read_suite(suite), cache=tmp_path / "cache").repeated
    card = evaluate(LogMelStatistics(), tasks, cache=tmp_path / "cache")
    assert card.repeated["kinds"] == already.get("kinds", 0) + 1
    assert card.repeated.get("drum8") == already.get("drum8")
    assert evaluate(LogMelStatistics(), tasks, cache=tmp_path / "cache").as_json()["repeated"] == card.repeated


def test_all_layers_have_rows_and_the_best_is_chosen_on_validation(make_encoder, suite, tmp_path):
    model = EncoderModel(Embedder(make_encoder(), device="cpu"), VectorOptions(layers="all", poolings=("mean", "cls")))
    tasks, steps = read_suite(suite), []
    card = evaluate(model, tasks, cache=tmp_path, on_progress=lambda state: steps.append(state.step))
    assert [row.view for row in card.rows] == [
        *(f"{layer}.{pooling}" for pooling in ("mean", "cls") for layer in (0, 1, 2, "final")),
        "best",
    ]
    assert list(dict.fromkeys(steps)) == ["decoding", "embedding", "probing"]
    for task, views in card.best().chosen.items():
        for number, view in enumerate(views):
            validation = {row.view: card.results[row.view][task][number].validation for row in card.rows}
            assert validation[view] == max(validation.values())
    content = json.loads(json.dumps(card.as_json()))
    assert content["rows"][0]["scores"] == card.rows[0].scores
    assert content["model_digest"] == model.digest()
    assert content["weights_digest"] == model.identity.weights_digest
    steps.clear()
    again = evaluate(model, tasks, cache=tmp_path, on_progress=lambda state: steps.append(state.step))
    assert [row.scores for row in again.rows] == [row.scores for row in card.rows]
    assert set(steps) == {"probing"}


def test_a_mixture_of_layers_is_learned_for_each_pooling(make_encoder, suite):
    model = EncoderModel(Embedder(make_encoder(), device="cpu"), VectorOptions(layers="all", poolings=("mean", "cls")))
    options = EvaluateOptions(weighted=True, probe="knn")
    card = evaluate(model, read_suite(suite, ["kinds"]), options)
    assert [row.view for row in card.rows[-3:]] == ["weighted.mean", "weighted.cls", "best"]
    (weights,) = card.row("weighted.cls").weights["kinds"]
    assert len(weights) == 4
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    assert not card.row("0.mean").weights
    assert all(view.startswith(("0", "1", "2", "final")) for view in card.best().chosen["kinds"])


def test_the_command_prints_the_table_and_writes_json(suite, tmp_path, ssamba_pth):
    def run(*arguments):
        command = [sys.executable, "-m", "ssamba", "evaluate", *map(str, arguments), "--cache", str(tmp_path / "cache")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    card = tmp_path / "card.json"
    done = run(
        ssamba_pth, "--suite", suite, "--layers", "all", "--json", card, "--task", "kinds", "--details", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "best" in done.stdout
    assert (tmp_path / "kinds.classes.csv").exists()
    assert set(json.loads(card.read_text())["tasks"]) == {"kinds"}
    random = tmp_path / "random.json"
    done = run("random", "--suite", suite, "--task", "kinds", "--json", random)
    assert done.returncode == 0, done.stderr
    found = json.loads(random.read_text())
    assert found["model"] == "random tiny"
    assert run("ssamba2-tiny", "--suite", suite, "--task", "kinds", "--json", card).returncode == 0
    ours = json.loads(card.read_text())
    assert ours["model"] == "ssamba2-tiny-1"
    assert ours["model_digest"] != found["model_digest"]
    assert ours["weights_digest"] == load_checkpoint("ssamba2-tiny").identity.weights_digest
    assert run("logmel", "--suite", suite, "--figure", tmp_path / "card.bird").returncode == 2
    assert run("logmel", "--suite", suite, "--weighted").returncode == 2  # --layers all is missing
    assert run("logmel", "--suite", suite, "--layers", "all").returncode == 2  # it has none
    assert "--suite-dir" in run("logmel", "--suite", "hear").stderr
    refused = run("logmel", "--suite", tmp_path / "nowhere")
    assert refused.returncode == 1
    assert "not a folder" in refused.stderr
