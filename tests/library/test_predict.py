"""Predicted labels of collections: rows, resuming, refusals."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from tests.conftest import invoke

import ssamba
from ssamba.annotations import Annotation, read_annotations
from ssamba.checkpoint import load_checkpoint, save_checkpoint
from ssamba.errors import ConfigError, ModelMismatchError, OtherSettingsError, OutputInUseError, SkippedFilesError
from ssamba.events import merge_windows
from ssamba.library.predict import predict_files
from ssamba.library.tables import StoreError


@pytest.fixture(scope="module")
def model(classifier_folder):
    return ssamba.load_model(classifier_folder, device="cpu")


def rows_of(path):
    if path.suffix == ".json":
        return [
            (row["path"], label, pytest.approx(probability, abs=1e-4))
            for row in json.loads(path.read_text())
            for label, probability in row["labels"].items()
        ]
    with path.open(newline="") as file:
        return [(row["path"], row["label"], float(row["probability"])) for row in csv.DictReader(file)]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_rows_are_the_models_own_predictions(tmp_path, clips, model, suffix):
    report = predict_files(clips[:3], model, tmp_path / f"p{suffix}", top=2)
    assert (report.done, report.rows, report.skipped) == (3, 3, [])
    expected = [
        (str(clip), label, pytest.approx(probability, abs=1e-4))
        for clip in clips[:3]
        for label, probability in model.predict(clip)[0].best(2)
    ]
    assert rows_of(tmp_path / f"p{suffix}") == expected
    assert [segment.end_s for segment in report.segments] == [
        pytest.approx(soundfile.info(clip).duration, abs=1e-4) for clip in clips[:3]
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"p{suffix}", f"p{suffix}.run.jsonl"]


def test_recordings_may_lie_at_urls_and_the_output_may_not(tmp_path, clips, model):
    storage = fsspec.filesystem("memory")
    storage.put_file(os.fspath(clips[0]), "/labels/a.flac")
    report = predict_files("memory://labels/", model, tmp_path / "p.csv", top=1, workers=0)
    (label,) = (one.labels for one in report.segments)
    assert rows_of(tmp_path / "p.csv") == [("memory:///labels/a.flac", name, value) for name, value in label.items()]
    assert label == {name: pytest.approx(value, abs=1e-4) for name, value in model.predict(clips[0])[0].best(1)}
    assert predict_files("memory://labels/", model, tmp_path / "p.csv", top=1).unchanged == 1
    with pytest.raises(ConfigError, match="is a URL, and this output is written to a disk"):
        predict_files("memory://labels/", model, "memory://labels/p.csv")
    storage.rm("/labels", recursive=True)


def test_seconds_have_rows_of_their_own(tmp_path, clips, model):
    report = predict_files(clips[0], model, per="second")
    length_s = soundfile.info(clips[0]).duration
    assert len(report.segments) == report.rows == int(length_s) + 1
    assert [segment.start_s for segment in report.segments] == list(range(report.rows))
    assert report.segments[-1].end_s == pytest.approx(length_s, abs=1e-3)
    assert report.skipped_file is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_new_and_changed_files_are_added_and_others_kept_until_pruned(tmp_path, clips, model, suffix):
    names = [Path(shutil.copy(clip, tmp_path)) for clip in clips[:4]]
    output = tmp_path / f"p{suffix}"
    predict_files(names[:3], model, output)
    before = output.stat().st_mtime_ns
    again = predict_files(names[:3], model, output)
    assert str(again) == f"nothing to do: 3 files already there, 3 rows in {output}"
    assert output.stat().st_mtime_ns == before
    shutil.copy(clips[6], names[2])
    report = predict_files(names[1:], model, output)
    assert (report.done, report.changed, report.unchanged, report.kept, report.rows) == (2, 1, 1, 1, 4)
    fresh = tmp_path / f"fresh{suffix}"
    predict_files([*names[1:], names[0]], model, fresh)
    assert output.read_text() == fresh.read_text()
    report = predict_files(names[1], model, output, prune=True)
    assert (report.done, report.pruned, report.rows) == (0, 3, 1)
    assert {row[0] for row in rows_of(output)} == {str(names[1])}


def test_an_interrupted_job_goes_on_and_gives_the_same(tmp_path, clips, model, monkeypatch):
    monkeypatch.setattr("ssamba.inference.engine.CPU_TOKENS_PER_BATCH", 200)
    output = tmp_path / "p.csv"
    stopped = predict_files(clips, model, output, progress=lambda state: state.done < 3)
    assert not stopped.finished
    assert 3 <= stopped.done < len(clips)
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv.partial"]
    with (tmp_path / "p.csv.partial").open("a") as file:
        file.write('{"path": "cut')  # as a killed process leaves it
    with pytest.raises(OtherSettingsError, match=r"p\.csv\.partial is of an interrupted run .*: top was 3, is 1"):
        predict_files(clips, model, output, top=1)
    report = predict_files(clips, model, output)
    assert (report.unchanged, report.done) == (stopped.done, len(clips) - stopped.done)
    predict_files(clips, model, tmp_path / "fresh.csv")
    assert output.read_text() == (tmp_path / "fresh.csv").read_text()
    assert not (tmp_path / "p.csv.partial").exists()


def test_overwriting_keeps_the_old_output_until_the_new_one_is_complete(tmp_path, clips, model, monkeypatch):
    monkeypatch.setattr("ssamba.inference.engine.CPU_TOKENS_PER_BATCH", 200)
    output = tmp_path / "p.csv"
    predict_files(clips[:2], model, output)
    before = output.read_text()
    assert not predict_files(clips[1:], model, output, top=1, overwrite=True, progress=lambda state: False).finished
    assert output.read_text() == before
    report = predict_files(clips[1:], model, output, top=1)
    assert (report.kept, report.rows) == (0, len(clips) - 1)
    assert report.unchanged >= 1


def test_other_settings_and_foreign_files_are_refused(tmp_path, clips, model, make_encoder):
    output = tmp_path / "p.csv"
    predict_files(clips[:2], model, output)
    with pytest.raises(OtherSettingsError, match=r"was made .*: per was 'clip', is 'second'; top was 3, is 1\."):
        predict_files(clips[:2], model, output, top=1, per="second")
    with pytest.raises(OtherSettingsError, match=r"was made .*: precision was 'fp32', is 'bf16'\."):
        predict_files(clips[:2], model, output, precision="bf16")
    assert predict_files(clips[:2], model, output, precision="auto", batch_tokens=1).unchanged == 2
    other = ssamba.load_model(model.name, device="cpu")
    other.encoder.cls_token.data += 1
    with pytest.raises(ModelMismatchError, match=r"the model was .*, is "):
        predict_files(clips[:2], other, output)
    with output.open("a") as file:
        file.write("mine.wav,0,1,owl,1.0\n")
    with pytest.raises(StoreError, match="was changed after it was written"):
        predict_files(clips[:3], model, output)
    (tmp_path / "p.csv.run.jsonl").unlink()
    with pytest.raises(StoreError, match=r"exists, and p\.csv\.run\.jsonl, which would say how it was made, does not"):
        predict_files(clips[:3], model, output)
    assert "mine.wav" in output.read_text()
    assert predict_files(clips[:3], model, output, overwrite=True).rows == 3
    output.unlink()
    assert predict_files(clips[:1], model, output, top=1).rows == 1  # the user removed it: a new one


def test_wrong_calls_are_refused_before_anything_is_written(tmp_path, clips, model, ssamba_pth):
    for arguments, message in (
        ((clips[0], ssamba_pth, tmp_path / "p.csv"), "has no classifier"),
        ((clips[0], model, tmp_path / "p.txt"), r"ends in \.csv, \.json or \.parquet"),
        ((tmp_path / "*.wav", model, tmp_path / "p.csv"), "matches no file"),
        ((tmp_path / "absent.wav", model), r"no file could be classified: .*absent\.wav"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_files(*arguments)
    for options, message in (
        ({"top": -1}, "top is the number of labels"),
        ({"channels": "left"}, "channels must be"),
        ({"damaged": "mend"}, "damaged must be"),
        ({"precision": "fp16"}, "precision: Input should be 'fp32', 'bf16' or 'auto'"),
        ({"batch_tokens": 0}, "batch_tokens must be a whole number"),
        ({"device": "cpu"}, "this model is already loaded"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_files(clips[0], model, tmp_path / "p.csv", **options)
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused_and_strict_raises_when_all_is_written(tmp_path, clips, model):
    def predict_again(state):
        with pytest.raises(OutputInUseError, match="is being written by"):
            predict_files(clips[0], model, tmp_path / "p.csv", overwrite=True)

    (tmp_path / "a.wav").touch()
    with pytest.raises(SkippedFilesError, match=r"skipped 1 file$") as skipped:
        predict_files([clips[0], tmp_path / "a.wav"], model, tmp_path / "p.csv", strict=True, progress=predict_again)
    assert skipped.value.report.rows == 1
    assert len(rows_of(tmp_path / "p.csv")) == 3
    assert "a.wav" in (tmp_path / "p.csv.skipped.csv").read_text()


@pytest.fixture(scope="module")
def birds(classifier_folder, tmp_path_factory):
    """The classifier as a run that knows lengths, thresholds and a background writes it."""
    loaded = load_checkpoint(classifier_folder)
    config = {"clip_lengths_s": (0.5, 1.0, 2.0), "thresholds": (0.01, 0.9, 0.0), "background": "choir"}
    loaded.model.config = loaded.config.classifier.with_changes(**config)
    return save_checkpoint(tmp_path_factory.mktemp("birds") / "birds", loaded.model)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_events_are_merged_windows_and_go_on_where_they_stopped(tmp_path, clips, birds, suffix):
    output = tmp_path / f"events{suffix}"
    report = predict_files(clips[:2], birds, output, events=True)
    model = ssamba.load_model(birds, device="cpu")
    expected = []
    for clip in clips[:2]:
        windows = model.predict(clip, per="window", hop_s=0.25)
        table = np.stack([one.probabilities.numpy() for one in windows])
        times = (np.array([getattr(one, name) for one in windows]) for name in ("start_s", "end_s"))
        events = merge_windows(table, *times, model.predictor.labels, (0.01, 0.9, 0.0), background="choir")
        expected += [Annotation(str(clip), *(round(s, 6) for s in one[1:3]), one.label) for one in events]
    assert expected  # of the crow alone
    assert [replace(one, probability=None, front_end=None) for one in report.events] == expected
    assert read_annotations(output) == report.events
    assert predict_files(clips[:2], birds, output, events=True).done == 0
    with pytest.raises(OtherSettingsError, match=r"gap_s was 0\.0, is 1\.0"):
        predict_files(clips[:2], birds, output, events=True, gap_s=1.0)
    none = predict_files(clips[:2], birds, events=True, threshold=1.0, min_length_s=0.5)
    assert (none.events, none.done, none.rows) == ([], 2, 0)


def test_each_recording_gets_a_selection_table_or_a_label_track(tmp_path, clips, birds):
    report = predict_files(clips[:2], birds, tmp_path / "raven", events=True, style="raven")
    names = {"events.csv", "events.csv.run.jsonl", *(f"{clip.name}.selections.txt" for clip in clips[:2])}
    assert {path.name for path in (tmp_path / "raven").iterdir()} == names
    assert [(one.path, one.label, one.probability) for one in read_annotations(tmp_path / "raven")] == [
        (one.path, one.label, one.probability) for one in report.events
    ]
    done = invoke("predict", clips[0], "-c", birds, "--events", "-o", tmp_path / "a", "--format", "audacity")
    assert done.exit_code == 0, done.output
    tracks = read_annotations(tmp_path / "a", recording=clips[0])
    assert tracks == [
        replace(one, probability=None, front_end=None) for one in report.events if one.path == str(clips[0])
    ]


def test_events_are_printed(clips, birds):
    done = invoke("predict", clips[0], "-c", birds, "--events", "--format", "csv", "--window", "1", "--hop", "0.5")
    lines = done.stdout.splitlines()
    assert lines[0] == "path,start_s,end_s,label,probability,front_end"
    assert lines[1].startswith(f"{clips[0]},0,")
    assert ",crow," in lines[1]
    for arguments, message in (
        (("--gap", "1"), "--min-length, --gap and style (--format) are for events: add --events"),
        (("--format", "raven"), "raven is for events: add --events and --output FOLDER"),
        (("--events", "--per", "second"), "events come from windows: omit per and merge"),
        (("--events", "-o", "x.csv", "--format", "raven"), "has a file for each recording"),
        (("--hop", "0"), "predict: --hop: "),
    ):
        done = invoke("predict", clips[0], "-c", birds, *arguments)
        assert (done.exit_code, message in done.output) == (2, True), done.output


def test_lengths_that_were_not_trained_are_said_once_a_job(clips, birds, caplog):
    predict_files(clips[4:6], birds)
    assert [one.message for one in caplog.records if "trained on" in one.message] == [
        f"2 of 2 recordings are longer than what {birds} was trained on, clips of 0.5 to 2 s: answered by the mean of "
        "windows of 1 s. Answers per second, and events, say where"
    ]


@pytest.mark.parametrize("events", [False, True])
def test_tables_state_the_front_end_and_paths_from_their_folder(tmp_path, clips, birds, monkeypatch, events):
    (tmp_path / "nights").mkdir()
    shutil.copy(clips[0], tmp_path / "nights" / "a.flac")
    (tmp_path / "nights" / "empty.wav").touch()
    monkeypatch.chdir(tmp_path)
    for output, listed in (("p.csv", "nights/a.flac"), ("out/p.csv", str(tmp_path / "nights/a.flac"))):
        report = predict_files("nights", birds, output, events=events)
        with Path(output).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {(row["path"], row["front_end"]) for row in rows} == {(listed, "16khz")}
        found = report.events if events else report.segments
        assert {Path(one.path).resolve() for one in found} == {tmp_path / "nights/a.flac"}
        none = predict_files("nights", birds, f"{output}.none.csv", events=True, threshold=1.0)
        assert (none.rows, Path(f"{output}.none.csv").read_text().strip()) == (0, ",".join(rows[0]))
        skipped = Path(f"{output}.skipped.csv").read_text().splitlines()[1]
        assert skipped.startswith(listed.replace("a.flac", "empty.wav"))
        assert str(report).endswith(f"x real time), front end 16khz, 1 row in {output}")


def test_a_long_recording_reports_progress_while_it_is_read(tmp_path, medley, model, monkeypatch):
    monkeypatch.setattr("ssamba.audio.decode.LONG_S", 1.0)
    soundfile.write(tmp_path / "long.wav", np.tile(medley, 3)[: 65 * 16_000], 16_000)
    states = []
    predict_files(tmp_path / "long.wav", model, progress=states.append)
    assert [(state.done, round(state.audio_s)) for state in states] == [(0, 30), (0, 60), (0, 65), (1, 65)]
