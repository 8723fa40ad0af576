"""Figures of events against cases worked out by hand, brute force, and mir_eval where it is installed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from ssamba.events import (
    EVENT_METRICS,
    Event,
    Smoothing,
    count_matches,
    count_overlaps,
    event_counts,
    event_metric,
    find_events,
    merge_windows,
    segment_activity,
    timestamp_targets,
)
from ssamba.metrics.classification import segment_error_rate

ONSET = "event_onset_200ms_fms"


def test_onsets_count_once_each_and_by_label():
    truly = [Event("dog", 1.0, 2.0), Event("dog", 1.3, 3.0), Event("cat", 5.0, 6.0), Event("cat", 8.0, 9.0)]
    found = [Event("dog", 1.15, 1.2), Event("cat", 5.2, 5.3), Event("dog", 8.0, 9.0), Event("cat", 8.21, 9.0)]
    # One dog is near both true dogs; the cat is 0.2 s late, which still counts; a dog is no cat; 0.21 s is too late.
    assert count_matches(truly, found, 0.2) == 2
    assert event_metric(ONSET, [truly], [found]) == pytest.approx(2 * 2 / (4 + 4))
    # Two found ones that share a neighbor: the greedy choice of the first would lose one.
    assert (
        count_matches([Event("a", 1.0, 2.0), Event("a", 1.1, 2.0)], [Event("a", 1.15, 2.0), Event("a", 0.85, 2.0)], 0.2)
        == 2
    )
    assert event_metric(ONSET, [truly, []], [[], [Event("cow", 0.0, 1.0)]]) == 0
    assert event_metric(ONSET, [truly], [truly]) == 1


def test_offsets_count_by_the_tolerance_or_a_share_of_the_length():
    name = "event_onset_offset_50ms_20perc_fms"
    note = Event("60", 1.0, 2.0)
    assert event_metric(name, [[note]], [[Event("60", 1.04, 2.19)]]) == 1  # 20 % of a second
    assert event_metric(name, [[note]], [[Event("60", 1.04, 2.21)]]) == 0
    short = Event("60", 1.0, 1.1)
    assert event_metric(name, [[short]], [[Event("60", 1.0, 1.15)]]) == 1  # at least 50 ms
    assert event_metric(name, [[short]], [[Event("60", 1.0, 1.16)]]) == 0
    assert event_metric("event_onset_50ms_fms", [[short]], [[Event("60", 1.05, 9.0)]]) == 1


def test_the_segment_error_rate_of_events_by_hand():
    """Active: a in segments 0, 1 and 2, b in 1. Found: a in 0, b in 1 and 2, c in 3."""
    truly = [Event("a", 0.5, 2.5), Event("b", 1.0, 2.0)]
    found = [Event("a", 0.0, 1.0), Event("b", 1.2, 2.2), Event("c", 3.0, 3.5)]
    # 0: right; 1: a deleted; 2: a taken for b, one substitution; 3: c inserted: 3 errors of 4.
    assert event_metric("segment_1s_er", [truly], [found]) == pytest.approx(3 / 4)
    assert event_metric("segment_1s_er", [truly, []], [truly, [Event("c", 0.0, 1.5)]]) == pytest.approx(2 / 4)
    activity = segment_activity(truly, ["a", "b"])
    np.testing.assert_array_equal(activity, [[1, 0], [1, 1], [1, 0]])
    labels = ["a", "b", "c"]
    both = [
        np.pad(segment_activity(e, labels), ((0, 4 - len(segment_activity(e, labels))), (0, 0))) for e in (truly, found)
    ]
    assert segment_error_rate(both[1], both[0]) == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="needs true events"):
        event_metric("segment_1s_er", [[]], [found])
    with pytest.raises(ValueError, match="same recordings"):
        event_metric(ONSET, [truly], [])
    with pytest.raises(ValueError, match="expected one of event_onset_200ms_fms"):
        event_metric("event_onset", [truly], [found])


@st.composite
def events(draw, most=6):
    """Events on a grid of 50 ms, so that distances fall on the tolerance."""
    found = draw(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 10)), max_size=most))
    return [Event(label, start / 20, (start + length) / 20) for label, start, length in found]


def near(a, b, share):
    allowed = max(0.2, (share or 0) * (a.end_s - a.start_s)) + 1e-9
    return (
        a.label == b.label
        and abs(a.start_s - b.start_s) <= 0.2 + 1e-9
        and (share is None or abs(a.end_s - b.end_s) <= allowed)
    )


@settings(deadline=None, max_examples=80)
@given(events(), events(), st.sampled_from([None, 0.2]))
def test_the_matching_is_the_largest(truly, found, share):
    few, many = sorted((truly, found), key=len)
    flip = few is not truly
    best = max(
        sum(near(*((b, a) if flip else (a, b)), share) for a, b in zip(few, order, strict=True))
        for order in itertools.permutations(many, len(few))
    )
    assert count_matches(truly, found, 0.2, share) == best


@settings(deadline=None, max_examples=80)
@given(events(12), events(12), st.sampled_from([None, 0.2]))
def test_the_matching_is_mir_evals(truly, found, share):
    transcription = pytest.importorskip("mir_eval.transcription")
    pitch = {"a": 100.0, "b": 1000.0}
    arrays = [
        (np.array([e[1:3] for e in own]).reshape(-1, 2), np.array([pitch[e.label] for e in own]))
        for own in (truly, found)
    ]
    pairs = transcription.match_notes(
        *arrays[0], *arrays[1], onset_tolerance=0.2, offset_ratio=share, offset_min_tolerance=0.2
    )
    assert count_matches(truly, found, 0.2, share) == len(pairs)


def test_counts_of_recordings_add_up():
    generator = np.random.default_rng(0)
    draw = lambda: [  # noqa: E731
        Event(str(generator.integers(3)), start, start + 0.5) for start in np.sort(generator.uniform(0, 9, 8))
    ]
    truly, found = [draw() for _ in range(5)], [draw() for _ in range(5)]
    for name, figure in EVENT_METRICS.items():
        counts = event_counts(name, truly, found)
        assert float(figure.score(counts.sum(0))) == pytest.approx(event_metric(name, truly, found))
        alone = [event_metric(name, [a], [b]) for a, b in zip(truly, found, strict=True)]
        np.testing.assert_allclose(figure.score(counts), alone)


def test_moments_belong_to_the_events_they_lie_in():
    times_s = np.array([0.0, 0.5, 1.0, 1.5])
    heard = [Event("a", 0.5, 1.0), Event("b", 0.9, 1.1), Event("a", 1.5, 2.0)]
    np.testing.assert_array_equal(timestamp_targets(heard, times_s, ["a", "b"]), [[0, 0], [1, 0], [1, 1], [1, 0]])
    assert timestamp_targets([], times_s, ["a"]).sum() == 0


def test_runs_of_moments_are_events():
    times_s = 0.05 + 0.1 * np.arange(12)
    scores = np.full((12, 2), -1.0)
    scores[[1, 2, 3, 5, 9], 0] = 1.0
    scores[8:, 1] = 1.0
    plain = find_events(scores, times_s, ["a", "b"], Smoothing(0, 0), 0.0)
    assert [(e.label, round(e.start_s, 2), round(e.end_s, 2)) for e in plain] == [
        ("a", 0.15, 0.35), ("a", 0.55, 0.55), ("b", 0.85, 1.15), ("a", 0.95, 0.95),
    ]  # fmt: skip
    longer = find_events(scores, times_s, ["a", "b"], Smoothing(0, 200), 0.0)
    assert [(e.label, round(e.start_s, 2)) for e in longer] == [("a", 0.15), ("b", 0.85)]
    smooth = find_events(scores, times_s, ["a", "b"], Smoothing(300, 0), 0.0)
    expected = median_filter(scores, size=(3, 1)) > 0
    assert [(e.label, round(e.start_s, 2), round(e.end_s, 2)) for e in smooth] == [("a", 0.15, 0.45), ("b", 0.85, 1.15)]
    np.testing.assert_array_equal(np.flatnonzero(expected[:, 0]), [1, 2, 3, 4])
    assert find_events(scores[:1] + 2, times_s[:1], ["a", "b"], Smoothing(300, 0), 0.0) == [
        Event("a", 0.05, 0.05),
        Event("b", 0.05, 0.05),
    ]


def test_windows_merge_to_events_over_the_time_that_they_answer_for():
    starts = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 4.5])  # of 2 s every second; the last one ends with the recording
    owl = [0.1, 0.8, 0.9, 0.1, 0.7, 0.2]
    table = np.array([[p, 0.9, 1 - p] for p in owl])
    labels = ("owl", "night", "fox")
    settings = {"labels": labels, "thresholds": (0.7, 0.5, 0.85), "background": "night"}
    found = merge_windows(table, starts, starts + 2, **settings)
    assert found == [
        Event("fox", 0.0, 1.5, 0.9),  # the first window answers from the start on
        Event("owl", 1.5, 3.5, 0.9),
        Event("fox", 3.5, 4.5, 0.9),
        Event("owl", 4.5, 5.25, 0.7),
    ]
    joined = merge_windows(table, starts, starts + 2, **settings, gap_s=1.0)
    assert [one for one in joined if one.label == "owl"] == [Event("owl", 1.5, 5.25, 0.9)]
    assert len(merge_windows(table, starts, starts + 2, **settings, min_length_s=1.5)) == 2
    assert merge_windows(table[:0], starts[:0], starts[:0], labels, 0.5) == []
    with pytest.raises(ValueError, match=r"of 6 windows and 2 labels, got \(6, 3\)"):
        merge_windows(table, starts, starts + 2, labels[:2], 0.5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@settings(deadline=None)
def test_merged_windows_cover_exactly_the_active_time(active):
    starts = np.arange(len(active), dtype=float)
    found = merge_windows(np.array(active, float), starts, starts + 1, ("a", "b"), 0.5)
    for column, label in enumerate("ab"):
        covered = [any(e.label == label and e.start_s <= s < e.end_s for e in found) for s in starts]
        assert covered == [one[column] for one in active]


def test_overlaps_count_each_event_once():
    truly = [Event("owl", 1.0, 2.0), Event("owl", 3.0, 4.0), Event("fox", 3.0, 4.0)]
    found = [Event("owl", 0.0, 1.4), Event("owl", 3.4, 9.0), Event("fox", 0.0, 10.0)]
    assert count_overlaps(truly, found) == 2  # .4 s of the first one is too little; the others are half or inside
    assert count_overlaps(truly, found, 0.3) == 3
    assert count_overlaps(truly, [Event("owl", 0.0, 10.0)]) == 1
    assert count_overlaps(truly, []) == 0
