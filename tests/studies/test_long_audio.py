"""Windows against full context on joined recordings: what is measured, where a pass stops, and the command."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ssamba.cli import app
from ssamba.errors import ConfigError, DataError, OtherSettingsError
from ssamba.studies import long_audio
from ssamba.studies.long_audio import (
    LongOptions,
    agreement,
    headlines,
    markdown,
    measure_long,
    read_long,
    save_long,
)


@pytest.fixture
def no_children(monkeypatch, tmp_path):
    """Fake children: full context runs out of memory from 20 s on; else 10 frames a second, slightly shifted."""

    def child(code, arguments, limit_s):
        path, context, vectors, *_ = json.loads(arguments[0])
        import soundfile

        duration_s = soundfile.info(path).duration
        if context == "full" and duration_s > 20:
            raise MemoryError("out of memory")
        frames = np.random.default_rng(0).standard_normal((round(10 * duration_s), 4)).astype(np.float32)
        np.save(vectors, frames + 0.1 * (context == "full"))
        facts = {"duration_s": duration_s, "seconds": duration_s / 50, "frames": len(frames)}
        return {**facts, "peak_bytes": 10**6, "process_bytes": None}

    monkeypatch.setattr(long_audio, "in_child", child)


def test_joined_recordings_are_measured_and_a_pass_without_memory_is_reported(no_children, clips, tmp_path):
    seen = []
    study = measure_long(
        clips, LongOptions(minutes=(0.5, 0.2), device="cpu"), on_progress=lambda p, _: seen.append((p.done, p.total))
    )
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(p.recording, p.context, p.stopped) for p in study.passes] == [
        ("0.2 min joined", "windows", None),
        ("0.2 min joined", "full", None),
        ("0.5 min joined", "windows", None),
        ("0.5 min joined", "full", "out of memory"),
    ]
    (only,) = study.agreements
    assert only.recording == "0.2 min joined"
    assert 0.9 < only.low < only.median < 1
    assert only.centered_low == pytest.approx(1, abs=1e-5)
    text = markdown(study)
    assert "0.5 min joined, full: out of memory" in text
    assert any("out of memory" in line for line in headlines(study))
    pytest.importorskip("matplotlib")
    files = save_long(study, tmp_path / "l")
    assert [f.name for f in files] == ["long.json", "long.md", "long.png"]
    assert len(json.loads(files[0].read_text())["passes"]) == 4


@settings(deadline=None, max_examples=20)
@given(steps=st.integers(1, 700), shift=st.floats(-5, 5), scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_agreement_is_whole_for_scaled_copies_and_centered_agreement_ignores_what_all_steps_share(
    steps, shift, scale, seed
):
    frames = np.random.default_rng(seed).standard_normal((steps, 6))
    same = agreement("x", 10.0, frames, scale * frames)
    assert (same.median, same.low) == (pytest.approx(1), pytest.approx(1))
    moved = agreement("x", 10.0, frames, frames + shift)
    if steps > 1:
        assert moved.centered_low == pytest.approx(1)
    assert moved.times_s == sorted(moved.times_s)
    assert 0 <= moved.times_s[0] <= moved.times_s[-1] <= 10


def test_a_child_embeds_a_file_as_it_is_and_reports_its_cost(clips, monkeypatch):
    monkeypatch.setattr(long_audio, "CONTEXTS", ("full",))  # a process takes seconds to start: one is enough
    (done,) = measure_long(clips[:1], LongOptions(device="cpu")).passes
    assert (done.context, done.stopped, done.frames) == ("full", None, 39)
    assert done.duration_s == pytest.approx(1.57, abs=0.01)
    assert 0 < done.seconds < 60
    if sys.platform == "linux" and done.peak_bytes is not None:
        assert done.process_bytes > max(50 * 2**20, done.peak_bytes)


def test_missing_and_unreadable_files_are_reported(no_children, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file"):
        measure_long([tmp_path / "x.wav"], LongOptions(device="cpu"))
    with pytest.raises(ConfigError, match="different lengths"):
        LongOptions.parse({"minutes": (1, 1)}, "test")
    monkeypatch.setattr(long_audio, "in_child", lambda *_: {"stopped": "x.wav: is text"})
    (tmp_path / "x.wav").write_text("text")
    command = ["bench", "long", str(tmp_path / "x.wav"), "--device", "cpu", "-o", str(tmp_path / "l")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "is text" in done.output


def test_a_pass_past_its_budget_is_reported(clips, monkeypatch):
    def slow(*_):
        raise TimeoutError("slow")

    monkeypatch.setattr(long_audio, "in_child", slow)
    study = measure_long(clips[:1], LongOptions(device="cpu", budget_s=5))
    assert {p.stopped for p in study.passes} == {"longer than the budget of 5 s"}
    assert study.agreements == []


def test_an_interrupted_study_is_resumed_a_finished_one_printed_and_other_settings_refused(
    no_children, clips, tmp_path, monkeypatch
):
    calls = []
    whole = long_audio.embed_in_child

    def interrupted(*arguments):
        if len(calls) == 3:  # the second recording has one context of two
            raise KeyboardInterrupt
        calls.append(arguments[0])
        return whole(*arguments)

    base = ["bench", "long", *map(str, clips), "--device", "cpu", "-o", str(tmp_path / "l")]
    command = [*base, "--minutes", "0.1,0.2"]
    monkeypatch.setattr(long_audio, "embed_in_child", interrupted)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130
    assert "repeat the command to resume" in done.output
    calls.clear()
    monkeypatch.setattr(long_audio, "embed_in_child", lambda *a: calls.append(a[0]) or whole(*a))
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert calls == ["0.2 min joined"] * 2
    study = read_long(tmp_path / "l")
    assert [p.recording for p in study.passes] == ["0.1 min joined"] * 2 + calls
    assert [a.recording for a in study.agreements] == ["0.1 min joined", "0.2 min joined"]
    assert (tmp_path / "l" / "long.png").exists()

    calls.clear()
    again = CliRunner().invoke(app, command)
    assert (again.exit_code, calls) == (0, [])
    assert again.output == done.output
    other = CliRunner().invoke(app, [*base, "--minutes", "0.1", "--seed", "1"])
    assert other.exit_code == 1
    text = " ".join(other.output.split())
    assert "minutes was [0.1, 0.2], is [0.1]; seed was 0, is 1" in text
    assert "--overwrite" in text
    (tmp_path / "l" / "long.json").write_text("{}")
    assert "is not a study of long recordings" in " ".join(CliRunner().invoke(app, command).output.split())


def test_a_study_of_other_recordings_is_not_resumed(no_children, clips):
    study = measure_long(clips[:2], LongOptions(device="cpu"))
    with pytest.raises(OtherSettingsError, match=f"{clips[1].name} .* is not given now; .*{clips[2].name} .* is new"):
        measure_long([clips[0], clips[2]], LongOptions(device="cpu"), before=study)
    with pytest.raises(OtherSettingsError, match="another order"):
        measure_long(clips[1::-1], LongOptions(device="cpu"), before=study)
