"""Probes of several labels against scikit-learn run by hand, and suites whose clips or seconds have several."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from ssamba.audio.decode import decode
from ssamba.embedder import Embedder
from ssamba.errors import SuiteError
from ssamba.evaluation import (
    EncoderModel,
    EvaluateOptions,
    FunctionModel,
    LogMelStatistics,
    VectorOptions,
    evaluate_model,
)
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.probing import LabelsResult, Rows, probe_rows, run_jobs
from ssamba.evaluation.report import plot_scorecard, write_details
from ssamba.evaluation.suite import read_suite
from ssamba.probes import SETTINGS
from ssamba.splits import Fold, validation_mask

METRICS = ("mAP", "mAUC", "d_prime")


def write_table(path, rows, columns=("clip", "label", "split", "group")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(scope="module")
def rows() -> tuple[Rows, Fold]:
    """150 clips of 10 groups in 8 dimensions; each of three labels is on one side of a plane, with noise."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(150, 8))
    targets = (vectors @ generator.normal(size=(8, 3)) + generator.normal(size=(150, 3)) > [0, 1, 2.5]).astype(float)
    order = generator.permutation(150)
    fold = Fold(np.sort(order[:100]), np.sort(order[100:]))
    return Rows(vectors.astype(np.float32), np.arange(150), targets, (np.arange(150) % 10).astype(str), "task"), fold


def one_vs_rest(c):
    return OneVsRestClassifier(LogisticRegression(C=c, max_iter=500))


def by_neighbors(k):
    return KNeighborsClassifier(k, metric="cosine", algorithm="brute")


def perceptron(alpha):
    return MLPClassifier((256,), alpha=alpha, max_iter=100, random_state=0)


def probabilities(model, x):
    found = model.predict_proba(x)
    return np.stack([one[:, 1] for one in found], 1) if isinstance(found, list) else found


@pytest.mark.parametrize(
    ("name", "make"),
    [("linear", one_vs_rest), ("knn", by_neighbors), ("mlp", perceptron)],
)
def test_probes_are_scikit_learns(rows, name, make):
    settings = SETTINGS[name]
    data, fold = rows
    (found,) = run_jobs([lambda: probe_rows(name, data, fold, METRICS)])
    assert isinstance(found, LabelsResult)
    x, y, train = data.vectors.astype(float), data.targets.astype(int), fold.train
    held = validation_mask(data.groups[train])

    def said(setting, fit, clips):
        scaler = StandardScaler().fit(x[fit])
        return probabilities(make(setting).fit(scaler.transform(x[fit]), y[fit]), scaler.transform(x[clips]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of epochs that end before convergence, which is the protocol
        scores = [average_precision_score(y[train[held]], said(s, train[~held], train[held])) for s in settings]
        best = settings[int(np.argmax(scores))]
        expected = said(best, train, fold.test)
    assert found.setting == best
    assert found.validation == pytest.approx(max(scores), abs=1e-6)
    truth = y[fold.test]
    assert found.metrics["mAP"] == found.score == pytest.approx(average_precision_score(truth, expected), abs=1e-6)
    assert found.metrics["mAUC"] == pytest.approx(roc_auc_score(truth, expected), abs=1e-6)
    np.testing.assert_array_equal(found.predicted, expected >= 0.5)
    np.testing.assert_array_equal(found.correct, ((expected >= 0.5) == truth).all(1))
    assert found.score > truth.mean() + 0.2


def test_classes_that_the_training_part_lacks_are_never_given(rows):
    data, fold = rows
    targets = np.column_stack([data.targets, np.zeros(150), np.ones(150)])
    targets[fold.test[:3], 3] = 1
    found = probe_rows("linear", dataclasses.replace(data, targets=targets), fold, METRICS)
    assert not found.predicted[:, 3].any()
    assert found.predicted[:, 4].all()
    alone = probe_rows("linear", data, fold, METRICS)
    np.testing.assert_allclose(found.scores[:, :3], alone.scores)


def test_named_validation_clips_choose(rows):
    data, fold = rows
    named = Fold(fold.train[20:], fold.test, fold.train[:20])
    found = probe_rows("linear", data, named, METRICS)
    x, y = data.vectors.astype(float), data.targets.astype(int)
    fit, choose = fold.train[20:], fold.train[:20]
    scaler = StandardScaler().fit(x[fit])
    model = one_vs_rest(found.setting).fit(scaler.transform(x[fit]), y[fit])
    expected = average_precision_score(y[choose], model.decision_function(scaler.transform(x[choose])))
    assert found.validation == pytest.approx(expected, abs=1e-6)


def test_rows_of_which_nothing_is_known_count_nowhere(rows):
    data, fold = rows
    targets, vectors = data.targets.copy(), data.vectors.copy()
    targets[::5], vectors[::5] = np.nan, 1e9
    found = probe_rows("linear", dataclasses.replace(data, targets=targets, vectors=vectors), fold, METRICS)
    keep = np.flatnonzero(np.arange(150) % 5 > 0)
    kept = Rows(data.vectors[keep], keep, data.targets[keep], data.groups, "task")
    np.testing.assert_array_equal(found.scores, probe_rows("linear", kept, fold, METRICS).scores)


def test_what_cannot_be_probed_is_refused(rows):
    data, fold = rows
    nothing = dataclasses.replace(data, targets=np.zeros((150, 3)))
    with pytest.raises(SuiteError, match="task: 100 training clips are too few"):
        probe_rows("linear", nothing, fold, METRICS)
    targets = data.targets.copy()
    targets[fold.test] = 0
    with pytest.raises(SuiteError, match="task cannot be scored by mAP on these test clips: none of the 3 classes"):
        probe_rows("linear", dataclasses.replace(data, targets=targets), fold, METRICS)


@pytest.fixture(scope="module")
def suite(clips, tmp_path_factory):
    """Pieces of the demo's recordings: `kinds` with one label, `both` with two that are mixed, or none (silence),
    and `seconds`, recordings of four seconds with one of them, both or silence in each."""
    folder = tmp_path_factory.mktemp("several")
    drum, tabla = decode(clips[6]), decode(clips[10])
    generator = np.random.default_rng(0)

    def piece(labels, length=8000):
        wave = 0.002 * generator.normal(size=length)
        for label, source in (("drum", drum), ("tabla", tabla)):
            if label in labels:
                wave += np.roll(np.resize(source, length), generator.integers(length)) * generator.uniform(0.5, 1)
        return wave / 2

    kinds, both, seconds = [], [], []
    for k in range(40):
        labels = [("drum",), ("tabla",), ("drum", "tabla"), ()][k % 4]
        soundfile.write(folder / f"{k}.wav", piece(labels), 16_000)
        split = "test" if k >= 28 else "train"
        both.append((f"{k}.wav", " ; ".join(labels), split, f"g{k // 2}"))
        if len(labels) == 1:
            kinds.append((f"{k}.wav", labels[0], split, ""))
    for k in range(9):
        order = [("drum",), ("tabla",), ("drum", "tabla"), ()]
        order = [order[(j + k) % 4] for j in range(4)]
        name, split = f"long{k}.wav", "test" if k >= 6 else "train"
        soundfile.write(folder / name, np.concatenate([piece(labels, 16_000) for labels in order]), 16_000)
        seconds += [(name, ";".join(order[j]), split, f"r{k}", j, 1) for j in range(4) if (k, j) != (8, 2)]
    write_table(folder / "kinds.csv", kinds)
    write_table(folder / "both.csv", both)
    write_table(folder / "seconds.csv", seconds, ("clip", "label", "split", "group", "start_s", "duration_s"))
    return folder


def test_suites_of_one_and_several_labels_and_of_seconds_are_read(suite):
    both, kinds, seconds = read_suite(suite)
    assert (both.kind, both.classes, both.metric) == ("multi", ("drum", "tabla"), "mAP")
    assert both.targets[:4].tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert (kinds.kind, kinds.metric, kinds.num_classes) == ("single", "accuracy", 2)
    assert (seconds.kind, seconds.classes, seconds.metric) == ("second", ("drum", "tabla"), "segment_f1")
    assert len(seconds.clips) == 9
    assert [event.label for event in seconds.events[0]] == ["drum", "tabla", "drum", "tabla", ""]


def test_a_scorecard_says_what_each_score_is(suite, tmp_path):
    tasks = read_suite(suite)
    card = evaluate_model(LogMelStatistics(), tasks, cache=tmp_path / "cache", workers=2)
    assert {name: task["metric"] for name, task in card.tasks.items()} == {
        "both": "mAP", "kinds": "accuracy", "seconds": "segment_f1",
    }  # fmt: skip
    row = card.best()
    assert set(row.figures) == {"both", "seconds"}
    assert set(row.figures["both"]) == set(METRICS)
    assert set(row.figures["seconds"]) == {"segment_f1", "error_rate", "mAP"}
    assert row.scores["both"] == row.figures["both"]["mAP"]
    assert min(row.scores.values()) > 0.8
    for name, (low, high) in row.intervals.items():
        assert low <= (row.mean if name == "mean" else row.scores[name]) <= high
    (result,) = card.results["final.mean"]["seconds"]
    assert len(result.test) == 11  # three recordings of four seconds, of one of which nothing is known
    expected = f1_score(result.targets, result.predicted, average="micro")
    assert row.scores["seconds"] == pytest.approx(expected, abs=1e-6)
    again = evaluate_model(LogMelStatistics(), tasks, cache=tmp_path / "cache")
    assert again.best().scores == row.scores
    write_details(card, tasks, tmp_path)
    with (tmp_path / "both.classes.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert np.mean([float(one["average_precision"]) for one in found]) == pytest.approx(row.scores["both"], abs=1e-3)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["kinds.confusion.png"]
    assert plot_scorecard(card, tmp_path / "card.png").stat().st_size > 5000
    inner = evaluate_model(LogMelStatistics(), tasks, EvaluateOptions(inner=True))
    assert inner.best().scores != row.scores


def test_the_linear_probe_of_a_suite_is_scikit_learns(suite):
    (task,) = read_suite(suite, ["both"])
    card = evaluate_model(LogMelStatistics(), [task])
    x = LogMelStatistics().vectors(read_waves(task).select(np.arange(40), 0.9))["final.mean"].astype(float)
    (fold,) = task.folds()
    held = validation_mask(task.groups[fold.train])

    def said(c, fit, clips):
        scaler = StandardScaler().fit(x[fit])
        return (
            one_vs_rest(c)
            .fit(scaler.transform(x[fit]), task.targets[fit])
            .decision_function(scaler.transform(x[clips]))
        )

    fit, choose = fold.train[~held], fold.train[held]
    best = max(SETTINGS["linear"], key=lambda c: average_precision_score(task.targets[choose], said(c, fit, choose)))
    expected = average_precision_score(task.targets[fold.test], said(best, fold.train, fold.test))
    assert card.best().scores["both"] == pytest.approx(expected, abs=1e-6)


def test_a_scorecard_in_json_holds_no_infinity(suite):
    tasks = [dataclasses.replace(task, metrics=("d_prime", "mAP")) for task in read_suite(suite, ["both"])]
    truth = FunctionModel("truth", lambda waves: tasks[0].targets.astype(np.float32))
    card = evaluate_model(truth, tasks)
    assert card.best().scores["both"] == np.inf
    text = json.dumps(card.as_json())
    assert "Infinity" not in text
    assert "NaN" not in text
    assert json.loads(text)["rows"][0]["figures"]["both"] == {"d_prime": None, "mAP": 1.0}


@pytest.mark.parametrize("probe", ["knn", "mlp"])
def test_other_probes_do_the_new_kinds(suite, probe):
    card = evaluate_model(LogMelStatistics(), read_suite(suite), EvaluateOptions(probe=probe))
    assert min(card.best().scores.values()) > 0.6


def test_all_layers_of_an_encoder_and_the_best_by_validation(make_encoder, suite):
    model = EncoderModel(Embedder(make_encoder(), device="cpu"), VectorOptions(layers="all"))
    card = evaluate_model(model, read_suite(suite, ["both", "seconds"]))
    assert [row.view for row in card.rows] == ["0.mean", "1.mean", "2.mean", "final.mean", "best"]
    for task, (view,) in card.best().chosen.items():
        validation = {row.view: card.results[row.view][task][0].validation for row in card.rows}
        assert validation[view] == max(validation.values())


def test_what_a_model_or_an_option_cannot_do_is_refused_in_one_message(make_encoder, suite):
    tasks = read_suite(suite)
    encoder = Embedder(make_encoder(), device="cpu")
    with pytest.raises(SuiteError, match=r"learned mixture of layers .* both, seconds may have several"):
        evaluate_model(EncoderModel(encoder, VectorOptions(layers="all")), tasks, EvaluateOptions(weighted=True))
    with pytest.raises(SuiteError, match="'cls' stands for whole recordings"):
        evaluate_model(EncoderModel(encoder, VectorOptions(poolings=("cls",))), tasks)

    class OnlyClips:
        name, sample_rate_hz = "only clips", 16_000

        def digest(self):
            return "0"

        def vectors(self, waves, on_progress=None):
            return {"final.mean": np.zeros((len(waves), 2), np.float32)}

    with pytest.raises(SuiteError, match="only clips has no timestamp embeddings, which seconds needs"):
        evaluate_model(OnlyClips(), read_suite(suite, ["seconds"]))
    with pytest.raises(SuiteError, match="give FunctionModel `embed_timestamps`"):
        evaluate_model(FunctionModel("f", lambda waves: np.zeros((len(waves), 2))), read_suite(suite, ["seconds"]))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("clip,label,split,group\na,,train,1\nb,,test,2\n", "0 label"),
        ("clip,label,split,group\na,x;y,train,1\nb,x,test,1\n", r"1 groups .*inflates scores: 1 \(test, train\)"),
        ("clip,label,split,group,start_s\na,x,train,1,0\na,y,test,1,1\n", "the stretches of a are in several splits"),
        ("clip,label,split,group,start_s\na,x,train,1,0\nb,y,test,1,1\n", "1 groups"),
        ("clip,label,split,group,start_s\na,x,train,1,-1\nb,y,test,2,1\n", "a has start '-1'"),
        ("clip,label,split,group,start,duration\na,x,train,1,0,long\nb,y,test,2,1,1\n", "a has duration 'long'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, table, message):
    (tmp_path / "task.csv").write_text(table)
    with pytest.raises(SuiteError, match=message):
        read_suite(tmp_path)


def test_the_command_names_the_metrics(suite, tmp_path):
    card = tmp_path / "card.json"
    command = [sys.executable, "-m", "ssamba", "evaluate", suite, "-c", "logmel", "--no-cache", "-o", card]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test score" in done.stdout
    assert "mAP" in done.stdout
    assert "d prime" in done.stdout
    found = json.loads(card.read_text())
    assert found["tasks"]["seconds"]["metric"] == "segment_f1"
    assert found["rows"][0]["figures"]["both"]["mAP"] == found["rows"][0]["scores"]["both"]
