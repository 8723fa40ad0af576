"""HEAR's tasks of several labels and of events, laid out as FSD50K and DCASE 2016 task 2, with real recordings."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ssamba.audio.decode import decode
from ssamba.embedder import Embedder
from ssamba.errors import AudioDecodeError, SuiteError
from ssamba.evaluation import EncoderModel, EvaluateOptions, FunctionModel, LogMelStatistics, evaluate_model, read_suite
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.probing import EventRows, EventsResult
from ssamba.evaluation.report import write_details
from ssamba.events import Event, Smoothing, event_metric, find_events, timestamp_targets
from ssamba.probes import SETTINGS

RATE = 16_000
LABELS = ("drum", "tabla")


def write_task(folder, parts, **metadata):
    """A task's folder: `parts` gives {recording: (truth, samples)} for each split."""
    folder.mkdir(parents=True)
    (folder / "task_metadata.json").write_text(json.dumps({"prediction_type": "multilabel", **metadata}))
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,drum\n1,tabla\n")
    for part, recordings in parts.items():
        (folder / f"{part}.json").write_text(json.dumps({name: truth for name, (truth, _) in recordings.items()}))
        (folder / str(RATE) / part).mkdir(parents=True)
        for name, (_, samples) in recordings.items():
            soundfile.write(folder / str(RATE) / part / name, samples, RATE)


@pytest.fixture(scope="module")
def sounds(clips):
    """A hit of a drum and a stroke on a tabla, 0.3 s each."""
    return {name: decode(clips[k])[: round(0.3 * RATE)] for name, k in (("drum", 6), ("tabla", 10))}


def scene(sounds, generator, length_s=6.0):
    """Sounds at random times over quiet noise, at least half a second apart, and what is heard when, in ms."""
    wave = 0.001 * generator.normal(size=round(length_s * RATE))
    truth = []
    for start_s in np.arange(0.2, length_s - 0.7, 0.9) + generator.uniform(
        0, 0.3, size=len(np.arange(0.2, length_s - 0.7, 0.9))
    ):
        label = LABELS[generator.integers(2)]
        first = round(start_s * RATE)
        wave[first : first + len(sounds[label])] += sounds[label]
        truth.append({"label": label, "start": 1000 * start_s, "end": 1000 * start_s + 300})
    return truth, wave / 2


def scenes(sounds, counts, seed=0):
    generator = np.random.default_rng(seed)
    return {part: {f"{part}_{k}.wav": scene(sounds, generator) for k in range(count)} for part, count in counts.items()}


DCASE = {
    "task_name": "dcase2016_task2",
    "embedding_type": "event",
    "split_mode": "trainvaltest",
    "sample_duration": 6.0,
    "evaluation": ["event_onset_200ms_fms", "segment_1s_er"],
}


@pytest.fixture(scope="module")
def events(sounds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hear") / "tasks" / "dcase2016_task2-hear2021-full"
    write_task(folder, scenes(sounds, {"train": 4, "valid": 3, "test": 4}), **DCASE)
    return folder


def test_events_are_read_as_published(events):
    (task,) = read_suite(events.parent)
    assert (task.kind, task.metrics) == ("event", ("event_onset_200ms_fms", "segment_1s_er"))
    assert task.classes == LABELS
    assert task.smoothings == (Smoothing(250.0, 125.0), Smoothing(250.0, 250.0))
    truth = json.loads((events / "train.json").read_text())["train_0.wav"]
    assert task.events[0][0] == Event(truth[0]["label"], truth[0]["start"] / 1000, truth[0]["end"] / 1000)
    (part,) = task.folds()
    assert len(part.train_and_valid) == 7
    assert {str(task.clips[k]).split("/")[1] for k in part.valid} == {"valid"}
    assert {str(task.clips[k]).split("/")[1] for k in part.test} == {"test"}


def test_events_are_found_and_scored(events, tmp_path):
    (task,) = read_suite(events)
    card = evaluate_model(LogMelStatistics(), [task], cache=tmp_path / "cache")
    assert card.tasks[task.name]["metric"] == "event_onset_200ms_fms"
    metrics = card.best().figures[task.name]
    assert metrics["event_onset_200ms_fms"] == card.best().scores[task.name] > 0.8
    assert metrics["segment_1s_er"] < 0.4
    low, high = card.best().intervals[task.name]
    assert low <= metrics["event_onset_200ms_fms"] <= high
    (result,) = card.results["final.mean"][task.name]
    assert isinstance(result, EventsResult)
    assert event_metric("event_onset_200ms_fms", result.true, result.found) == pytest.approx(result.score)
    assert result.smoothing in task.smoothings
    write_details(card, [task], tmp_path)
    with (tmp_path / f"{task.name}.classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["clips"]) for row in rows) == sum(len(own) for own in result.true)
    assert all(float(row["f1"]) > 0.5 for row in rows)


def test_the_probe_of_events_is_scikit_learns(events):
    """Setting and smoothing by the onset metric on `valid`, refit on both, all by hand."""
    (task,) = read_suite(events)
    (found,) = evaluate_model(LogMelStatistics(), [task]).results["final.mean"][task.name]
    steps = LogMelStatistics().timestamp_embeddings(read_waves(task).select(np.arange(len(task.clips)), 0.9))
    part = task.folds()[0]
    x = steps.views["final.mean"].astype(float)
    y = np.concatenate(
        [timestamp_targets(task.events[k], steps.times_s[steps.rows_of(k)], LABELS) for k in range(len(task.clips))]
    )

    def events_of(c, train, clips, smoothing):
        rows = np.concatenate([np.arange(len(x))[steps.rows_of(k)] for k in train])
        scaler = StandardScaler().fit(x[rows])
        models = [LogisticRegression(C=c, max_iter=500).fit(scaler.transform(x[rows]), y[rows, k]) for k in range(2)]

        def said(k):
            return np.stack([m.predict_proba(scaler.transform(x[steps.rows_of(k)]))[:, 1] for m in models], axis=1)

        return [find_events(said(k), steps.times_s[steps.rows_of(k)], LABELS, smoothing, 0.5) for k in clips]

    tried = {
        (c, s): event_metric(task.metric, [task.events[k] for k in part.valid], events_of(c, part.train, part.valid, s))
        for c in SETTINGS["linear"]
        for s in task.smoothings
    }
    best = max(tried, key=lambda pair: tried[pair])
    assert (found.setting, found.smoothing) == best
    assert found.validation == pytest.approx(tried[best])
    expected = event_metric(
        task.metric, [task.events[k] for k in part.test], events_of(best[0], part.train_and_valid, part.test, best[1])
    )
    assert found.score == pytest.approx(expected)


def test_an_encoder_and_other_probes_do_events(events, make_encoder):
    (task,) = read_suite(events)
    encoder = EncoderModel(Embedder(make_encoder(patch_stride=(16, 4)), device="cpu"))
    for model, probe in ((encoder, "linear"), (LogMelStatistics(), "knn"), (LogMelStatistics(), "mlp")):
        card = evaluate_model(model, [task], EvaluateOptions(probe=probe))
        assert 0 < card.best().scores[task.name] <= 1


def test_knowing_the_truth_scores_one(events):
    """A model whose embeddings are the truth itself, every 10 ms, finds every event and nearly every second."""
    (task,) = read_suite(events)

    def steps(waves):
        times_s = np.arange(0.005, 6.0, 0.01)
        return [(timestamp_targets(own, times_s, LABELS), times_s) for own in task.events]

    oracle = FunctionModel("oracle", lambda waves: np.zeros((len(waves), 1)), embed_timestamps=steps)
    card = evaluate_model(oracle, [task])
    assert card.best().scores[task.name] == 1
    # An event ends with its last moment, and may so miss a second that it reaches into for less than 10 ms.
    assert card.best().figures[task.name]["segment_1s_er"] < 0.1


def test_many_time_steps_are_thinned_evenly(events, monkeypatch):
    monkeypatch.setattr("ssamba.evaluation.probing._MAX_TIME_STEPS", 300)
    (task,) = read_suite(events)
    card = evaluate_model(LogMelStatistics(), [task])
    assert card.best().scores[task.name] > 0.6  # 840 time steps train, or every third of them
    rows = EventRows(*[None] * 8)
    np.testing.assert_array_equal(rows.thinned(np.arange(601)), np.arange(0, 601, 3))
    np.testing.assert_array_equal(rows.thinned(np.arange(300)), np.arange(300))


def test_notes_in_folds_with_their_own_smoothing(sounds, tmp_path):
    """As MAESTRO: folds, onsets within 50 ms, one way of smoothing that the task names."""
    folds = ["fold00", "fold01", "fold02"]
    folder = tmp_path / "maestro"
    write_task(
        folder,
        scenes(sounds, dict.fromkeys(folds, 2)),
        embedding_type="event",
        split_mode="new_split_kfold",
        splits=folds,
        evaluation=["event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms"],
        evaluation_params={"event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]}},
    )
    (task,) = read_suite(folder)
    assert task.smoothings == (Smoothing(150.0, 50.0),)
    card = evaluate_model(LogMelStatistics(), [task])
    assert [set(task.splits[r.test]) for r in card.results["final.mean"]["maestro"]] == [{fold} for fold in folds]
    assert set(card.best().figures["maestro"]) == {"event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms"}


@pytest.fixture
def labeled(sounds, tmp_path):
    """As FSD50K: whole recordings with any number of labels."""
    generator = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 16), ("valid", 8), ("test", 12)):
        parts[part] = {}
        for k in range(count):
            own = [["drum"], ["tabla"], ["drum", "tabla"], []][k % 4]
            wave = 0.002 * generator.normal(size=8000) + sum(
                np.roll(np.resize(sounds[label], 8000), generator.integers(8000)) * generator.uniform(0.5, 1)
                for label in own
            )
            parts[part][f"{part}{k}.wav"] = (own, wave / 2)
    folder = tmp_path / "tasks" / "fsd50k-v1.0-full"
    evaluation = ["mAP", "d_prime", "aucroc", "top1_acc"]
    write_task(folder, parts, embedding_type="scene", split_mode="trainvaltest", evaluation=evaluation)
    return folder


def test_several_labels_are_scored_by_map(labeled):
    (task,) = read_suite(labeled)
    assert (task.kind, task.metrics, task.classes) == ("multi", ("mAP", "mAUC", "d_prime"), LABELS)
    assert task.valid.sum() == 8
    card = evaluate_model(LogMelStatistics(), [task])
    assert card.best().scores[task.name] > 0.85
    metadata = json.loads((labeled / "task_metadata.json").read_text())
    (labeled / "task_metadata.json").write_text(json.dumps({**metadata, "evaluation": ["aucroc", "mAP"]}))
    assert read_suite(labeled)[0].metrics == ("mAUC", "mAP", "d_prime")
    (labeled / "labelvocabulary.csv").unlink()
    assert read_suite(labeled)[0].classes == LABELS


def test_events_whose_metrics_are_unknown_are_left_out_with_the_reason(events, labeled):
    other = labeled.parent / "seld"
    write_task(other, {}, **{**DCASE, "evaluation": ["segment_1s_seld", "segment_1s_er"]})
    left_out = []
    tasks = read_suite(labeled.parent, None, lambda *note: left_out.append(note))
    assert [task.name for task in tasks] == ["fsd50k-v1.0-full"]
    assert left_out[0][0] == "seld"
    assert "segment_1s_seld" in left_out[0][1]
    assert "events are scored by event_onset_200ms_fms" in left_out[0][1]


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (
            "test.json",
            lambda c: c.update({"test_0.wav": [{"label": "drum", "start": 5}]}),
            r"test\.json: test_0\.wav has .* expected events",
        ),
        ("test.json", lambda c: c.update({"test_0.wav": ["drum"]}), "expected events"),
        ("test.json", lambda c: c.update({"test_0.wav": [{"label": "drum", "start": 9, "end": 5}]}), "from 9 to 5 ms"),
        ("test.json", lambda c: c.update({"test_0.wav": [{"label": "cow", "start": 1, "end": 5}]}), "lacks 'cow'"),
        (
            "task_metadata.json",
            lambda c: c.update(evaluation_params={"event_postprocessing_grid": {"min_duration": 3}}),
            "lists of milliseconds",
        ),
    ],
)
def test_damaged_events_are_refused_by_file(sounds, tmp_path, file, edit, message):
    folder = tmp_path / "task"
    write_task(folder, scenes(sounds, {"train": 1, "valid": 1, "test": 1}), **DCASE)
    change(folder / file, edit)
    with pytest.raises(SuiteError, match=message):
        read_suite(folder)


def test_missing_and_corrupt_files_are_named(sounds, tmp_path):
    folder = tmp_path / "task"
    write_task(folder, scenes(sounds, {"train": 1, "valid": 1, "test": 1}), **DCASE)
    wave = folder / str(RATE) / "test" / "test_0.wav"
    content = wave.read_bytes()
    wave.write_text("no audio")
    with pytest.raises(AudioDecodeError, match="test_0"):
        evaluate_model(LogMelStatistics(), read_suite(folder))
    wave.unlink()
    with pytest.raises(SuiteError, match=r"names 16000/test/test_0\.wav"):
        evaluate_model(LogMelStatistics(), read_suite(folder))
    wave.write_bytes(content)
    (folder / "labelvocabulary.csv").write_text("number,name\n0,drum\n")
    with pytest.raises(SuiteError, match=r"labelvocabulary\.csv is no vocabulary"):
        read_suite(folder)
    (folder / "valid.json").unlink()
    (folder / "labelvocabulary.csv").unlink()
    change(folder / "task_metadata.json", lambda content: content.pop("split_mode"))  # as early descriptions
    assert read_suite(folder)[0].valid.sum() == 0
    (folder / "test.json").unlink()
    with pytest.raises(SuiteError, match=r"test\.json is missing"):
        read_suite(folder)


def test_a_recording_on_both_sides_is_refused(sounds, tmp_path):
    folder = tmp_path / "task"
    parts = scenes(sounds, {"train": 2, "valid": 1, "test": 1})
    parts["test"]["train_0.wav"] = parts["train"]["train_0.wav"]
    write_task(folder, parts, **DCASE)
    with pytest.raises(SuiteError, match=r"train_0\.wav is in train and in test"):
        read_suite(folder)
    wave = folder / str(RATE) / "test" / "train_0.wav"
    soundfile.write(wave, parts["test"]["test_0.wav"][1], RATE)  # another recording of the same name
    assert len(read_suite(folder)[0].clips) == 5


def test_the_command_scores_a_folder_of_tasks(events, labeled, tmp_path):
    card = tmp_path / "card.json"
    command = [sys.executable, "-m", "ssamba", "evaluate", "-c", "logmel", "--no-cache"]
    options = [events.parent, "-o", card]
    done = subprocess.run([*command, *map(str, options)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "segment 1s er" in done.stdout
    found = json.loads(card.read_text())
    assert found["tasks"]["dcase2016_task2-hear2021-full"]["metric"] == "event_onset_200ms_fms"
