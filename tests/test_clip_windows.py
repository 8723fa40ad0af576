"""Windows of a chosen length: how they are cut, that each is answered as a clip is, and what is said about lengths."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ssamba
from ssamba.audio.decode import decode
from ssamba.checkpoint import load_checkpoint
from ssamba.embedder import Embedder
from ssamba.embedding import PredictOptions
from ssamba.errors import AudioDecodeError, ConfigError
from ssamba.inference.clip_windows import WindowLengths, Windows, cut, without_silence

RATE_HZ = 16_000


def model_with(classifier_folder, **changes):
    """The small classifier with another configuration of its head."""
    loaded = load_checkpoint(classifier_folder)
    loaded.model.config = loaded.config.classifier.with_changes(**changes)
    return Embedder(loaded, device="cpu", name="birds")


@pytest.fixture(scope="module")
def model(classifier_folder):
    return model_with(classifier_folder, clip_lengths_s=(0.5, 1.0, 2.0))


@pytest.fixture(scope="module")
def wave(medley):
    """6 s of real recordings, without digital silence."""
    return medley[2 * RATE_HZ : 8 * RATE_HZ]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 30))
def test_windows_cover_a_recording_whatever_its_blocks(blocks, window, hop, whole):
    hop = min(hop, window)
    samples = np.arange(sum(blocks), dtype=np.float32)
    found = list(cut(iter(np.split(samples, np.cumsum(blocks)[:-1])), window, hop, whole))
    assert [is_last for *_, is_last in found] == [False] * (len(found) - 1) + [True]
    assert all(np.array_equal(piece, samples[start : start + len(piece)]) for start, piece, _ in found)
    starts = [start for start, *_ in found]
    if len(samples) <= max(whole, window):
        assert [(start, len(piece)) for start, piece, _ in found] == [(0, len(samples))]
    else:
        regular = list(range(0, len(samples) - window + 1, hop))
        assert starts == regular + [len(samples) - window] * (regular[-1] + window < len(samples))
        assert {len(piece) for _, piece, _ in found} == {window}


def test_a_window_is_answered_as_the_clip_alone(model, wave):
    windows = model.predict(wave, per="window", hop_s=0.75)
    assert [one.start_s for one in windows[:3]] == [0, 0.75, 1.5]
    assert {round(one.end_s - one.start_s, 6) for one in windows} == {1.0}
    assert windows[-1].end_s == pytest.approx(len(wave) / RATE_HZ)
    for one in (windows[0], windows[3], windows[-1]):
        alone = wave[round(one.start_s * RATE_HZ) : round(one.end_s * RATE_HZ)]
        torch.testing.assert_close(one.probabilities, model.predict(alone)[0].probabilities, atol=1e-5, rtol=0)


def test_seconds_and_clips_are_means_or_maxima_of_what_windows_answer_for(model, wave):
    wave = wave[: 4 * RATE_HZ]  # windows of 1 s every half second: second 2 is answered by those from 1.5, 2 and 2.5 s
    windows = torch.stack([one.probabilities for one in model.predict(wave, per="window")])
    mean, highest = (model.predict(wave, per="second", merge=merge)[2].probabilities for merge in ("mean", "max"))
    torch.testing.assert_close(mean, 0.25 * windows[3] + 0.5 * windows[4] + 0.25 * windows[5])
    torch.testing.assert_close(highest, windows[3:6].amax(0))
    with pytest.warns(
        UserWarning, match=r"1 of 1 recording is longer than .* clips of 0\.5 to 2 s: answered by the mean"
    ):
        (clip,) = model.predict(wave)
    torch.testing.assert_close(clip.probabilities, (windows.sum(0) + 0.5 * (windows[0] + windows[-1])) / 8)
    with pytest.warns(UserWarning, match="answered by the maximum"):
        (clip,) = model.predict(wave, merge="max")
    torch.testing.assert_close(clip.probabilities, windows.amax(0))


def test_recordings_within_the_trained_lengths_are_answered_whole(model, classifier_folder, clips):
    plain = ssamba.load_model(classifier_folder, device="cpu")
    for path in clips[4:7:2]:  # 4.3 and 1.8 s
        whole = plain.predict(path)[0]
        within = whole.end_s < 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if not within else "error")
            (found,) = model.predict(path)
        assert torch.allclose(found.probabilities, whole.probabilities) == within


def test_digital_silence_is_answered_with_nothing(classifier_folder, wave):
    joined = np.concatenate((wave[:RATE_HZ], np.zeros(4 * RATE_HZ, np.float32), wave[:RATE_HZ]))
    for changes, nothing in (
        ({}, [1 / 3] * 3),
        ({"activation": "sigmoid"}, [0.0] * 3),
        ({"background": "choir"}, [0.0, 0.0, 1.0]),
    ):
        model = model_with(classifier_folder, clip_lengths_s=(0.5, 1.0, 2.0), **changes)
        seconds = model.predict(joined, per="second")
        for second in seconds[1:5]:
            torch.testing.assert_close(second.probabilities, torch.tensor(nothing))
        assert not torch.allclose(seconds[0].probabilities, torch.tensor(nothing))


def test_temperatures_divide_logits(classifier_folder, clips):
    plain, warm = (model_with(classifier_folder, temperature=one) for one in (None, 2.0))
    logits = dict(plain.logits_stream([("a", clips[0])]))["a"]
    torch.testing.assert_close(warm.predict(clips[0])[0].probabilities, (logits / 2).softmax(-1))


def test_models_trained_on_seconds_keep_their_way(classifier_folder, wave):
    model = model_with(classifier_folder, label_frames=100)
    assert len(model.predict(wave)) == 6
    for options in ({"window_s": 1.0}, {"hop_s": 1.0}, {"merge": "max"}, {"per": "window"}):
        with pytest.raises(ConfigError, match="birds was trained on the seconds of recordings"):
            model.predict(wave, **options)


def test_models_that_do_not_know_lengths_read_their_longest_windows(classifier_folder, medley):
    model = model_with(classifier_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        windows = model.predict(medley[: 16 * RATE_HZ], per="window")
        assert len(model.predict(medley[: 16 * RATE_HZ])) == 1
    assert (windows[0].end_s, windows[1].start_s) == (pytest.approx(10.24), pytest.approx(5.12))


def test_wrong_lengths_are_refused_and_foreign_ones_are_said(model, wave, clips):
    with pytest.raises(ConfigError, match=r"a hop of 2 s leaves gaps between windows of 1 s"):
        model.predict(wave, hop_s=2.0)
    with pytest.raises(ConfigError, match="window_s"):
        model.predict(wave, window_s=0.0)
    with pytest.warns(UserWarning, match=r"windows of 5 s, but birds was trained on clips of 0\.5 to 2 s: prob"):
        model.predict(wave, window_s=5.0, per="window")
    with pytest.warns(UserWarning, match=r"1 of 2 recordings is shorter than what birds was trained on"):
        model.predict([clips[13], clips[11]])  # 0.27 s


def test_a_broken_recording_costs_no_other_one(model, wave, clips):
    items = [("a", wave), ("b", "absent.wav"), ("c", clips[0])]
    found = dict(model.predict_stream(items, options=PredictOptions(per="window")))
    assert isinstance(found["b"], AudioDecodeError)
    assert (len(found["a"]), len(found["c"])) == (11, 3)


def test_probes_hear_in_long_recordings_what_they_were_taught_by_clips(clips):
    """Each recording is a class; joined with silence between, the answer at each one's middle is that of it alone."""
    model = ssamba.load_model(device="cpu")
    waves = {path.stem: decode(path)[: round(1.2 * RATE_HZ)] for path in clips[:12:2]}
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    probe.fit([model.embed(wave).clip.numpy() for wave in waves.values()], list(waves))
    pauses_s = [0.37 * number for number in range(len(waves))]
    parts = [(np.zeros(round(s * RATE_HZ), np.float32), wave) for s, wave in zip(pauses_s, waves.values(), strict=True)]
    windows = model.embed_windows(np.concatenate(sum(parts, ())), window_s=1.2, hop_s=0.4, shortest_s=0.4)
    answers = probe.classes_[probe.predict_proba(windows.values).argmax(1)]
    stops_s = np.cumsum([(len(pause) + len(wave)) / RATE_HZ for pause, wave in parts])
    middles_s = stops_s - [len(wave) / RATE_HZ / 2 for wave in waves.values()]
    assert answers[np.searchsorted(windows.edges_s, middles_s) - 1].tolist() == list(waves)
    found = windows.probe_events(probe, 0.4)
    assert {one.label for one in found} == set(waves)
    silent = windows.is_silent.nonzero()[0]
    assert len(silent) >= 10
    assert not any(one.start_s < windows.edges_s[k] + 0.01 < one.end_s for one in found for k in silent)


def test_windows_have_no_readout_but_those_of_clips(clips):
    model = ssamba.load_model(device="cpu")
    with pytest.raises(ConfigError, match="readout: expected 'clip' or 'parts', got 'part'"):
        model.embed_windows(clips[0], window_s=1.2, readout="part")


def test_silence_at_the_edges_is_left_out_down_to_the_shortest_clip():
    for first, stop, shortest, expected in (
        (4, 8, 4, (4, 8)),
        (4, 8, 1, (4, 8)),
        (4, 8, 6, (3, 9)),
        (0, 2, 6, (0, 6)),
        (9, 10, 6, (4, 10)),
        (4, 8, 20, (0, 10)),
    ):
        samples = np.zeros(10, np.float32)
        samples[[first, stop - 1]] = -0.5
        assert np.array_equal(without_silence(samples + 0, shortest), samples[slice(*expected)])
        assert len(without_silence(0 * samples, shortest)) == 10


def test_lengths_and_windows_are_checked():
    for window_s, hop_s in ((0.0, None), (1.0, -1.0), (float("inf"), None)):
        with pytest.raises(ConfigError, match="seconds above 0"):
            WindowLengths.parse(window_s, hop_s)
    quiet = np.array([False])
    one = Windows(np.array([0.0]), np.array([3.0]), np.zeros((1, 2), np.float32), quiet, quiet)
    assert one.edges_s.tolist() == [0, 3]
