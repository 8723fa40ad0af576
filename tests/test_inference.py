"""Windows: what they cover, however the frames arrive, and how they merge."""

from __future__ import annotations

import pickle
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssamba.config import ClassifierConfig, EncoderConfig, FrontEndConfig
from ssamba.inference import (
    EmbeddingAccumulator,
    FrameMerger,
    GrowingRows,
    RunningMean,
    SegmentLogitsAccumulator,
    SpanMeans,
    Window,
    WindowCutter,
)
from ssamba.model.heads import Classifier, span_weights


def cut(config, features, block, **options):
    cutter = WindowCutter(config, 9.0, **options)
    windows = [w for start in range(0, len(features), block) for w in cutter.push(features[start : start + block])]
    return [*windows, *cutter.finish()], cutter.num_columns


@settings(deadline=None)
@given(
    frames=st.integers(1, 700),
    block=st.integers(1, 300),
    stride=st.sampled_from([4, 10, 16]),
    window=st.sampled_from([16, 64, 100]),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.999]),
)
def test_windows_cover_the_recording_and_hold_its_frames(frames, block, stride, window, overlap):
    config = EncoderConfig(num_mel_bins=16, num_frames=window, patch_stride=(16, stride), position_grid=(1, 4))
    features = torch.arange(frames, dtype=torch.float32)[:, None].expand(-1, 16)
    windows, columns = cut(config, features, block, overlap=overlap)
    size = config.columns(window)
    covered = set()
    for one in windows:
        assert one.columns == min(size, columns)
        assert one.features.shape[0] == config.frames_spanned(one.columns)
        first = one.first_column * stride
        own = one.features[:, 0]
        real = min(frames, first + len(own)) - first
        assert torch.equal(own[:real], torch.arange(first, first + real, dtype=torch.float32))
        assert (own[real:] == 9.0).all()
        covered |= set(range(one.first_column, one.first_column + one.columns))
    assert covered == set(range(columns))
    assert windows[-1].first_column + windows[-1].columns == columns
    starts = [one.first_column for one in windows]
    assert starts == sorted(set(starts))
    hop = max(1, int(size * (1 - Fraction(str(overlap)))))
    assert starts[:-1] == list(range(0, hop * len(starts[:-1]), hop))


def test_long_recordings_keep_only_the_last_windows_frames():
    config = EncoderConfig(num_frames=64)
    cutter = WindowCutter(config, 0.0)
    for _ in range(200):
        cutter.push(torch.zeros(50, 128))
        assert cutter._buffered < 2 * 64 + 50


def test_full_context_is_one_window():
    config = EncoderConfig(num_frames=64)
    windows, columns = cut(config, torch.zeros(1000, 128), 100, whole=True)
    assert [(w.first_column, w.columns) for w in windows] == [(0, columns)]


@pytest.mark.parametrize("frames", [5, 40, 64])
def test_official_padding_fills_short_recordings_to_the_window(frames):
    config = EncoderConfig(num_frames=64)
    (window,), _ = cut(config, torch.zeros(frames, 128), 100, pad_to_window=True)
    assert window.features.shape[0] == 64
    assert (window.features[frames:] == 9.0).all()


def test_overlapping_frames_are_averaged_with_triangular_weights():
    merger = FrameMerger()
    before = merger.add(0, torch.full((4, 1), 1.0))
    first = merger.add(2, torch.full((4, 1), 10.0))
    assert (before.shape, first.shape) == ((0, 1), (2, 1))
    # weights of a window of four: 1 2 2 1
    expected = [1.0, 1.0, (2 * 1 + 1 * 10) / 3, (1 * 1 + 2 * 10) / 3, 10.0, 10.0]
    torch.testing.assert_close(torch.cat((first, merger.finish()))[:, 0], torch.tensor(expected))


@settings(deadline=None)
@given(columns=st.integers(4, 40), hop=st.integers(1, 4))
def test_time_steps_are_handed_on_once_and_in_order_as_soon_as_they_are_final(columns, hop):
    values = torch.arange(columns, dtype=torch.float32)[:, None]
    starts = sorted({*range(0, columns - 3, hop), columns - 4})
    merger, pieces = FrameMerger(), []
    for start in starts:
        pieces.append(merger.add(start, values[start : start + 4]))
        assert sum(map(len, pieces)) == start
    torch.testing.assert_close(torch.cat((*pieces, merger.finish())), values)


@settings(deadline=None)
@given(
    columns=st.integers(1, 90),
    pieces=st.lists(st.integers(0, 20), max_size=6),
    span=st.sampled_from([16, 25, 50, 100]),
    geometry=st.sampled_from([(16, 16), (16, 10), (4, 4), (4, 60), (16, 40)]),
)
def test_means_over_spans_do_not_depend_on_how_time_steps_arrive(columns, pieces, span, geometry):
    size, stride = geometry
    config = EncoderConfig(num_mel_bins=16, num_frames=400, patch_size=(16, size), patch_stride=(16, stride))
    steps = torch.randn(columns, 3, generator=torch.Generator().manual_seed(columns))
    means = SpanMeans(config, span)
    cuts = [0, *sorted(min(sum(pieces[: i + 1]), columns) for i in range(len(pieces))), columns]
    found = [means.add(steps[start:stop]) for start, stop in pairwise(cuts)]
    whole = span_weights(range(columns), config, span) @ steps
    torch.testing.assert_close(torch.cat((*found, means.finish())), whole)


def test_running_means_and_growing_rows_are_those_of_all_rows():
    rows = torch.randn(1000, 3)
    mean, kept = RunningMean(), GrowingRows()
    for start in range(0, 1000, 7):
        mean.add_rows(rows[start : start + 7])
        kept.append(rows[start : start + 7])
    torch.testing.assert_close(mean.mean(), rows.double().mean(0).float(), rtol=1e-6, atol=1e-8)
    assert torch.equal(kept.tensor(), rows)


def test_accumulators_hold_about_a_window_however_long_the_recording_is():
    config = EncoderConfig(num_mel_bins=16, num_frames=64, embed_dim=8, depth=2, position_grid=(1, 4))
    classifier = Classifier(config, ClassifierConfig(num_classes=2)).eval()
    vector = EmbeddingAccumulator(config, FrontEndConfig(num_mel_bins=16), frames=False)
    seconds = SegmentLogitsAccumulator(classifier, FrontEndConfig(num_mel_bins=16))
    columns = config.columns(64)
    tokens, thirds = torch.randn(config.num_prefix_tokens + config.rows * columns, 8), torch.ones(3, columns) / columns
    sizes = []
    for start in range(0, 800, columns // 2):
        for accumulator in (vector, seconds):
            accumulator.add(Window(torch.zeros(64, 16), start, columns, 64), tokens, thirds)
        sizes.append(len(pickle.dumps((vector, seconds.merger, seconds.spans))))
    assert max(sizes) < max(sizes[:20]) + 100
    assert len(torch.cat(seconds.logits)) == (start - 1) * config.patch_stride[1] // 100
