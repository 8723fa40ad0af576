"""The needle test: its plan, when a needle counts as found, a run on real recordings, resuming, and its command."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ssamba.audio.decode import decode
from ssamba.cli import app
from ssamba.errors import ConfigError, DataError, OtherSettingsError
from ssamba.studies import needle as module
from ssamba.studies.needle import (
    Matcher,
    NeedleOptions,
    add_needles,
    choose_needles,
    measure_needles,
    plan,
    rank_needle,
    time_steps,
)
from ssamba.studies.needle_report import headlines, markdown, read_needles, save_needles
from ssamba.studies.recordings import LEVEL

RATE_HZ = 16_000
SMALL = {"minutes": (0.1, 0.2), "levels_db": (0.0, -6.0), "needles": 3, "needle_s": 0.5}


def options(**changes):
    return NeedleOptions.parse({**SMALL, **changes}, "test")


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(3200, 8000), min_size=1, max_size=9),
    minutes=st.lists(st.floats(0.09, 3), min_size=1, max_size=3, unique=True),
    levels=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_each_needle_is_placed_once_at_each_level_and_length_and_none_overlap(lengths, minutes, levels, seed):
    chosen = options(minutes=tuple(minutes), levels_db=tuple(-float(i) for i in range(levels)), seed=seed)
    stacks = plan(chosen, lengths, RATE_HZ)
    assert stacks == plan(chosen, lengths, RATE_HZ)
    placed = sorted((s.minutes, p.needle, -p.level_db) for s in stacks for p in s.placements)
    assert placed == sorted((m, n, i) for m in minutes for n in range(len(lengths)) for i in range(levels))
    assert len({(s.minutes, s.number) for s in stacks}) == len(stacks)
    for stack in stacks:
        total = round(60 * stack.minutes * RATE_HZ)
        spans = sorted((p.start, p.start + lengths[p.needle]) for p in stack.placements)
        assert spans[0][0] >= 0
        assert spans[-1][1] <= total
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert len(spans) == 1 or len(spans) * max(lengths) <= 0.1 * total


def test_needles_are_added_at_their_level(clips):
    chosen = options(minutes=(0.1,), levels_db=(-6.0,), needles=2)
    needles, rest, skipped = choose_needles(clips[:3], clips[3:5], chosen, RATE_HZ)
    assert [n.name for n in needles] == [c.stem for c in clips[3:5]]
    assert rest == clips[:3]
    assert not skipped
    assert all(len(n.wave) <= 0.5 * RATE_HZ for n in needles)
    (stack, *_) = plan(chosen, [len(n.wave) for n in needles], RATE_HZ)
    hay = np.zeros(6 * RATE_HZ, np.float32)
    add_needles(hay, stack, needles)
    (placement,) = stack.placements
    wave = hay[placement.start : placement.start + len(needles[placement.needle].wave)]
    assert np.sqrt(np.mean(np.square(wave))) == pytest.approx(LEVEL / 2, rel=0.05)
    assert np.count_nonzero(hay) <= len(wave)


def test_needles_are_taken_from_the_haystack_if_none_are_given(clips, tmp_path):
    needles, rest, _ = choose_needles(clips, [], options(needles=99), RATE_HZ)
    assert len(needles) <= len(clips) // 2
    assert not {n.name for n in needles} & {path.stem for path in rest}
    with pytest.raises(DataError, match="at least two recordings"):
        choose_needles(clips[:1], [], options(), RATE_HZ)
    with pytest.raises(DataError, match="nothing is left"):
        choose_needles(clips[:1], clips[:1], options(), RATE_HZ)
    soundfile.write(tmp_path / "click.wav", np.ones(1000) * 0.1, RATE_HZ)
    _, _, skipped = choose_needles(clips[:1], [tmp_path / "click.wav", clips[1]], options(), RATE_HZ)
    assert "too short" in skipped[0].reason


@settings(deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(5, 200), first=st.integers(0, 150), width=st.integers(1, 20))
def test_ranks_agree_with_counting_places_one_by_one(seed, count, first, width):
    first = min(first, count - 1)
    last = min(first + width, count - 1)
    scores = np.random.default_rng(seed).permutation(count).astype(np.float32)
    at_s = np.arange(count, dtype=np.float64)
    found_s, rank, above, chance = rank_needle(scores, at_s, first, last)
    inside = range(first, last + 1)
    assert found_s == np.argmax(scores)
    assert chance == pytest.approx(len(inside) / count)
    assert above == pytest.approx(
        sum(s > scores[first : last + 1].max() for i, s in enumerate(scores) if i not in inside)
        / max(1, count - len(inside))
    )
    assert (rank == 1) == (found_s in inside)
    better, places = [i for i in np.argsort(-scores) if i not in inside and scores[i] > max(scores[list(inside)])], []
    for i in better:
        if all(abs(i - other) >= last - first for other in places):
            places.append(i)
    assert rank == (len(places) + 1 if len(places) < 5 else None)


@pytest.mark.parametrize("rule", ["frame", "matched"])
def test_a_copy_of_the_query_is_its_nearest_place(rule):
    frames = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    times_s = np.arange(200) * 0.04
    last = 60 if rule == "matched" else 51
    scores, at_s = Matcher(frames, times_s, rule).similarity(frames[50:last])
    assert scores.max() == pytest.approx(1, abs=1e-5)
    assert at_s[np.argmax(scores)] == pytest.approx(times_s[50:last].mean())


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999))
def test_matching_does_not_depend_on_how_channels_are_mixed(seed):
    random = np.random.default_rng(seed)
    frames = random.standard_normal((300, 4))
    mix, shift = np.linalg.qr(random.standard_normal((4, 4)))[0], random.standard_normal(4)
    for rule, change in (("frame", mix), ("matched", mix @ np.diag([0.8, 1, 1, 1.25]))):
        one, other = (
            Matcher(x.astype(np.float32), np.arange(300.0), rule).similarity(x[:5].astype(np.float32))[0]
            for x in (frames, frames @ change + shift)
        )
        np.testing.assert_allclose(one, other, atol=5e-3)


def test_log_mel_steps_lie_on_the_models_grid(embedder, medley):
    frames, times_s = time_steps(embedder, medley[: 4 * RATE_HZ], "log-mel")
    own, own_times_s = time_steps(embedder, medley[: 4 * RATE_HZ], "windows")
    assert frames.shape == (len(times_s), 128)
    assert abs(len(own) - len(frames)) <= 1
    np.testing.assert_allclose(times_s[:20], own_times_s[:20], atol=0.02)


def test_a_study_finds_loud_needles_and_resumes_where_it_was_interrupted(embedder, clips, tmp_path):
    class EnoughError(Exception):
        pass

    def stop(progress, study):
        save_needles(study, tmp_path / "n", picture=False)
        if progress.done > 0:
            raise EnoughError

    whole = measure_needles(embedder, clips, options=options())
    with pytest.raises(EnoughError):
        measure_needles(embedder, clips, options=options(), on_progress=stop)
    half = read_needles(tmp_path / "n")
    assert 0 < len(half.passes) < len(whole.passes)
    assert not half.finished
    assert "not finished" in markdown(half)
    seen = []
    rest = measure_needles(embedder, clips, options=options(), before=half, on_progress=lambda p, _: seen.append(p))
    assert rest.trials == whole.trials
    assert rest.curves == whole.curves
    assert [(p.minutes, p.haystack, p.side) for p in rest.passes] == [
        (p.minutes, p.haystack, p.side) for p in whole.passes
    ]
    assert seen[-1].done == pytest.approx(seen[-1].total)
    assert len(whole.trials) == 3 * 2 * 2 * 3 * 2  # needles, levels, lengths, sides, rules
    easy = [t.rank == 1 for t in whole.trials if t.side == "log-mel" and t.level_db == 0]
    assert np.mean(easy) > 0.5 > np.mean([t.chance for t in whole.trials])
    with pytest.raises(OtherSettingsError, match="seed was 0, is 1"):
        measure_needles(embedder, clips, options=options(seed=1), before=half)

    pytest.importorskip("matplotlib")
    files = save_needles(whole, tmp_path / "n")
    assert [f.name for f in files] == ["needle.json", "needle.md", "needle.png"]
    assert read_needles(tmp_path / "n") == whole
    assert files[2].stat().st_size > 20_000
    assert len(headlines(whole)) == 2 * 3


def test_a_side_without_memory_stops_and_the_others_go_on(embedder, clips, monkeypatch):
    def scarce(model, wave, side):
        if side == "full" and len(wave) > 8 * RATE_HZ:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return time_steps(model, wave, side)

    monkeypatch.setattr(module, "time_steps", scarce)
    study = measure_needles(embedder, clips, options=options())
    assert [(p.minutes, p.side) for p in study.passes if p.stopped] == [(0.2, "full")]
    assert {t.side for t in study.trials if t.minutes == 0.2} == {"windows", "log-mel"}
    assert "0.2 min, full: out of memory" in markdown(study)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": (0.01,)}, "ten needles"),
        ({"minutes": ()}, "at least one"),
        ({"sides": ("all",)}, "'windows', 'full' or 'log-mel'"),
        ({"levels_db": (0.0, 0.0)}, "once"),
        ({"needles": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_options_say_what_was_expected(changes, message):
    with pytest.raises(ConfigError, match=message):
        options(**changes)


def test_the_command_writes_and_resumes_a_study_and_refuses_another(embedder, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("ssamba.embedder.load_model", lambda *_, **__: embedder)
    command = ["bench", "needle", *map(str, clips), "--minutes", "0.1", "--levels", "0", "--count", "2"]
    command += ["--needle-s", "0.5", "--sides", "windows,log-mel", "-o", str(tmp_path / "n")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "0.1 min, windows:" in done.output
    assert (tmp_path / "n" / "needle.png").exists()
    before = json.loads((tmp_path / "n" / "needle.json").read_text())
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert json.loads((tmp_path / "n" / "needle.json").read_text()) == before
    other = CliRunner().invoke(app, [*command, "--seed", "1"])
    assert other.exit_code == 1
    assert "other settings: seed was 0, is 1" in " ".join(other.output.split())
    assert "--overwrite" in other.output
    assert CliRunner().invoke(app, [*command, "--minutes", "x"]).exit_code == 2


def test_an_interrupted_command_says_how_to_resume(embedder, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("ssamba.embedder.load_model", lambda *_, **__: embedder)
    run = module._Search.run

    def interrupted(self, stack, wave, side, **rest):
        if side == "log-mel":
            raise KeyboardInterrupt
        run(self, stack, wave, side, **rest)

    monkeypatch.setattr(module._Search, "run", interrupted)
    command = ["bench", "needle", *map(str, clips), "--minutes", "0.1", "--needle-s", "0.5", "-o", str(tmp_path / "n")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130
    assert "repeat the command to resume" in done.output
    assert {p.side for p in read_needles(tmp_path / "n").passes} == {"windows", "full"}


def test_needles_are_cut_to_the_loudest_segment(clips):
    (needle,), _, _ = choose_needles(clips[:1], [clips[4]], options(needles=1), RATE_HZ)
    assert len(needle.wave) == RATE_HZ // 2
    assert len(decode(clips[4])) > RATE_HZ
