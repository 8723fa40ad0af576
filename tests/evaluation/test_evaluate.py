"""From a suite's folder to a scorecard, and the linear probe against scikit-learn by hand."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from ssamba.cli import app
from ssamba.embedder import Embedder
from ssamba.errors import ConfigError, Interrupted, OtherSettingsError
from ssamba.evaluation import (
    EncoderModel,
    EvaluateOptions,
    Evaluation,
    FunctionModel,
    LogMelStatistics,
    VectorOptions,
    WaveformParts,
    evaluate,
    evaluate_model,
)
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.run import random_model
from ssamba.evaluation.suite import read_suite
from ssamba.probes import SETTINGS
from ssamba.similarity import SIMILARITIES
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
    card = evaluate_model(model, tasks, workers=2)
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

    outer = evaluate_model(FunctionModel("spectrum", embed), tasks)
    inner = evaluate_model(FunctionModel("spectrum", embed), tasks, EvaluateOptions(inner=True))
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
    already = evaluate_model(LogMelStatistics(), read_suite(suite), cache=tmp_path / "cache").repeated
    card = evaluate_model(LogMelStatistics(), tasks, cache=tmp_path / "cache")
    assert card.repeated["kinds"] == already.get("kinds", 0) + 1
    assert card.repeated.get("drum8") == already.get("drum8")
    assert evaluate_model(LogMelStatistics(), tasks, cache=tmp_path / "cache").as_json()["repeated"] == card.repeated


def test_all_layers_have_rows_and_the_best_is_chosen_on_validation(make_encoder, suite, tmp_path):
    model = EncoderModel(Embedder(make_encoder(), device="cpu"), VectorOptions(layers="all", poolings=("mean", "cls")))
    tasks, steps = read_suite(suite), []
    card = evaluate_model(model, tasks, cache=tmp_path, progress=lambda state: steps.append(state.step.split(": ")[1]))
    assert [row.view for row in card.rows] == [
        *(f"{layer}.{pooling}" for pooling in ("mean", "cls") for layer in (0, 1, 2, "final")),
        "best",
    ]
    assert list(dict.fromkeys(steps)) == ["decoding", "embedding", "ranking", "probing"]
    for task, views in card.best().chosen.items():
        for number, view in enumerate(views):
            validation = {row.view: card.results[row.view][task][number].validation for row in card.rows}
            assert validation[view] == max(validation.values())
    content = json.loads(json.dumps(card.as_json()))
    assert content["rows"][0]["scores"] == card.rows[0].scores
    assert content["model_digest"] == model.digest()
    assert content["weights_digest"] == model.identity.weights_digest
    steps.clear()
    again = evaluate_model(model, tasks, cache=tmp_path, progress=lambda state: steps.append(state.step.split(": ")[1]))
    assert [row.scores for row in again.rows] == [row.scores for row in card.rows]
    assert set(steps) == {"ranking", "probing"}


def test_a_mixture_of_layers_is_learned_for_each_pooling(make_encoder, suite):
    model = EncoderModel(Embedder(make_encoder(), device="cpu"), VectorOptions(layers="all", poolings=("mean", "cls")))
    options = EvaluateOptions(weighted=True, probe="knn")
    card = evaluate_model(model, read_suite(suite, ["kinds"]), options)
    assert [row.view for row in card.rows[-3:]] == ["weighted.mean", "weighted.cls", "best"]
    (weights,) = card.row("weighted.cls").weights["kinds"]
    assert len(weights) == 4
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    assert not card.row("0.mean").weights
    assert all(view.startswith(("0", "1", "2", "final")) for view in card.best().chosen["kinds"])


def test_retrieval_ranks_the_clips_of_other_groups(suite):
    tasks = read_suite(suite)
    spectrum = FunctionModel("spectrum", lambda waves: np.stack([np.abs(np.fft.rfft(wave, 32)) for wave in waves]))
    model = WaveformParts(spectrum, ("clip", "parts"))
    evaluation = Evaluation((evaluate_model(model, tasks),))
    for task in tasks:
        views = model.vectors(read_waves(task).select(np.arange(len(task.clips)), 0.9))
        for row in evaluation.card.rows[:-1]:
            similarity = cosine_similarity(StandardScaler().fit_transform(views[row.view].astype(float)))
            found, nearest = [], []
            for query in range(len(task.clips)):
                others = (task.groups != task.groups[query]) & (np.arange(len(task.clips)) != query)
                if (relevant := task.labels[others] == task.labels[query]).any():
                    found.append(average_precision_score(relevant, similarity[query, others]))
                    nearest.append(relevant[np.argsort(-similarity[query, others])[:10]].mean())
            scores, intervals = row.retrieval["standardized"].scores, row.retrieval["standardized"].intervals
            assert scores["mAP"][task.name] == pytest.approx(np.mean(found), abs=1e-5)
            assert intervals["mAP"][task.name].low < scores["mAP"][task.name] < intervals["mAP"][task.name].high
            assert scores["precision_at_10"][task.name] == pytest.approx(np.mean(nearest), abs=1e-6)
    assert not evaluation.card.best().retrieval
    text = str(evaluation)
    assert "retrieval among other groups, half-whitened cosine: mAP, and mean precision at 10" in text
    assert re.search(r"layer.pooling +raw +centered +standardized +whitened +whitened +pca", text)
    rows = json.loads(json.dumps(evaluation.as_json()))["rows"]
    assert set(rows[0]["retrieval"]) == set(SIMILARITIES)
    assert rows[1]["retrieval"]["pca"]["scores"]["mAP"].keys() == {"drum8", "kinds"}


def test_the_command_prints_a_table_and_writes_json(suite, tmp_path, ssamba_pth):
    def run(*arguments):
        command = [sys.executable, "-m", "ssamba", "evaluate", *map(str, arguments), "--cache", str(tmp_path / "cache")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    card = tmp_path / "card.json"
    done = run(suite, "-c", ssamba_pth, "--layers", "all", "-o", card, "--task", "kinds", "--details", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "best" in done.stdout
    assert (tmp_path / "kinds.classes.csv").exists()
    assert set(json.loads(card.read_text())["tasks"]) == {"kinds"}
    assert run(suite, "-c", ssamba_pth, "--layers", "all", "-o", card, "--task", "kinds").returncode == 0
    refused = run(suite, "-c", "random", "--task", "kinds", "-o", card)
    assert refused.returncode == 1
    assert "holds a scorecard of other settings: models was " in refused.stderr.replace("\n", " ")
    done = run(
        suite, "-c", "random", "-c", "logmel", "-c", "ssamba2-tiny", "--task", "kinds", "-o", tmp_path / "all.json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "all.json").read_text())
    assert [one["model"] for one in found] == ["random tiny", "log-mel statistics", "ssamba2-tiny-1"]
    assert len({one["model_digest"] for one in found}) == 3
    rows = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert all(one["model"] in rows for one in found)


def test_several_models_give_one_evaluation(suite, tmp_path, make_encoder):
    models = [LogMelStatistics(), Embedder(make_encoder(), device="cpu", name="small")]
    seen = []
    result = evaluate(
        suite, models, task="kinds", cache=False, output=tmp_path / "cards.json", details=tmp_path / "classes",
        progress=lambda state: seen.append(state.step),
    )  # fmt: skip
    assert [card.model for card in result.cards] == ["log-mel statistics", "small"]
    assert evaluate(suite, models[0], task=["kinds"], cache=False).card.rows == result.card.rows
    assert [path.name for path in sorted((tmp_path / "classes").iterdir())] == ["1-log-mel-statistics", "2-small"]
    assert "small, kinds: embedding" in seen
    assert len(json.loads((tmp_path / "cards.json").read_text())) == 2
    assert str(result).count("95 %") == 4  # of the scores and of retrieval
    with pytest.raises(Interrupted, match="finished embeddings are in the cache: repeat the command to resume"):
        evaluate(suite, models, cache=tmp_path / "cache", progress=lambda state: "small" not in state.step)
    seen.clear()
    evaluate(suite, models, cache=tmp_path / "cache", progress=lambda state: seen.append(state.step))
    assert "log-mel statistics, kinds: embedding" not in seen


def test_every_model_is_scored_with_the_readouts_that_are_asked_for(suite, tmp_path, make_encoder):
    embedder = Embedder(make_encoder(), device="cpu", name="small")
    models = ["logmel", embedder, FunctionModel("peak", lambda waves: [[np.abs(wave).max()] for wave in waves])]
    options = {"task": "kinds", "cache": tmp_path / "cache", "probe": "knn", "output": tmp_path / "cards.json"}
    result = evaluate(suite, models, readout=("clip", "parts"), **options)
    for card in result.cards:
        assert [row.view for row in card.rows] == ["final.mean", "final.mean.parts", "best"]
        assert card.as_json()["readouts"] == ["clip", "parts"]
    with pytest.raises(OtherSettingsError, match=r"readouts was \['clip', 'parts'\], is \['parts'\]"):
        evaluate(suite, models, readout="parts", **options)
    parts = evaluate(suite, models, readout="parts", overwrite=True, **options)
    clip = evaluate(suite, models, overwrite=True, **options)
    for both, one, other in zip(result.cards, clip.cards, parts.cards, strict=True):
        assert [row.scores for row in both.rows[:2]] == [one.best().scores, other.best().scores]
    layers = evaluate(suite, embedder, task="kinds", layers="all", probe="knn", readout="parts", cache=False)
    assert [row.view for row in layers.card.rows][-3:] == ["2.mean.parts", "final.mean.parts", "best"]
    with pytest.raises(ConfigError, match="made with the readouts"):
        evaluate(suite, EncoderModel(embedder), readout="parts", cache=False)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_evaluation_exits_130_and_the_cache_is_kept(suite, tmp_path, how):
    process = subprocess.Popen(
        [sys.executable, "-m", "ssamba", "evaluate", str(suite), "--cache", str(tmp_path / "cache")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A script's background job, as the tests may be, ignores SIGINT, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(how)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "repeat the command to resume" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("folder", "model", "options", "code", "message"),
    [
        ("nowhere", "logmel", {}, 1, "nowhere is not a folder: expected TASK.csv files"),
        ("empty", "logmel", {}, 1, "holds no TASK.csv"),
        (None, "logmel", {"task": "birds"}, 1, "has no task 'birds': it has drum8, kinds"),
        (None, "no/model", {}, 1, "no such file or folder"),
        (None, "logmell", {}, 1, "no model of that name"),
        (None, "logmel", {"layers": "all"}, 2, "'logmel' has no layers, tokens or padding"),
        (None, "logmel", {"layers": "most"}, 2, "layers: Input should be 'final' or 'all'"),
        (None, "logmel", {"pooling": "max"}, 2, "poolings"),
        (None, "logmel", {"readout": "thirds"}, 2, "readouts"),
        (None, "random", {"pooling": "cls", "readout": "parts"}, 2, "has no thirds, which the readout 'parts' needs"),
        (None, "logmel", {"probe": "forest"}, 2, "probe"),
        (None, "random", {"weighted": True}, 2, "weighted learns a mixture of the layers: it needs layers 'all'"),
        (None, "logmel", {"level": -1.0}, 2, "level"),
        (None, "logmel", {"figure": "card.bird"}, 2, "figure must end in .png, .pdf, .svg"),
        (None, "logmel", {"workers": 0}, 2, "workers is a number of threads, at least 1"),
        (None, "random", {"device": "toaster"}, 2, "device must be 'cpu', 'cuda'"),
        (None, "logmel", {"output": "other.json"}, 1, "holds no scorecard: choose another output, or --overwrite"),
    ],
)
def test_wrong_uses_end_in_one_message(suite, tmp_path, monkeypatch, folder, model, options, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text("{}")
    flags = [[f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in options.items()]
    arguments = [str(folder or suite), "-c", model, *(text for flag in flags for text in flag), "--no-cache"]
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    assert done.exit_code == code, done.output
    assert message in done.stderr.replace("\n", " ")
    assert done.stderr.count("error:") == 1
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        evaluate(folder or suite, model, cache=False, **options)
    assert message in str(caught.value)


def test_the_random_baseline_needs_no_weights(monkeypatch):
    monkeypatch.setattr("ssamba.evaluation.run.has_default_weights", lambda: False)
    random, again = random_model(device="cpu"), random_model(device="cpu", patch_stride=10)
    assert random.dim == 192
    assert again.encoder.config.rows == 12
    assert (random.encoder.cls_token == again.encoder.cls_token).all()
