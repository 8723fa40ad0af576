"""Vectors of moments: the embedder's own frames, their means over seconds, and what is true of them."""

from __future__ import annotations

import numpy as np
import pytest

from ssamba.audio.decode import decode
from ssamba.embedder import Embedder
from ssamba.errors import SuiteError
from ssamba.evaluation import EncoderModel, FunctionModel, LogMelStatistics, TimestampEmbeddings, VectorOptions
from ssamba.events import Event, second_targets


@pytest.mark.parametrize("padding", ["patch", "official"])
def test_moments_are_the_embedders_frames(make_encoder, clips, padding):
    embedder = Embedder(make_encoder(num_frames=64), device="cpu")
    waves = [decode(clips[0]), decode(clips[6])[:7000], decode(clips[0])[:800]]
    options = VectorOptions(layers="all", poolings=("mean", "rows"), padding=padding)
    moments = EncoderModel(embedder, options).timestamp_embeddings(waves)
    assert list(moments.views)[:4] == ["0.mean", "1.mean", "2.mean", "final.mean"]
    for layer in (0, None):
        expected = embedder.embed(waves, layer=layer, padding=padding)
        assert list(moments.counts) == [len(one.frames) for one in expected]
        for k, one in enumerate(expected):
            own = moments.rows_of(k)
            np.testing.assert_allclose(
                moments.views[f"{layer if layer == 0 else 'final'}.mean"][own], one.frames, atol=1e-5
            )
            np.testing.assert_allclose(moments.times_s[own], one.times_s, atol=1e-6)
            np.testing.assert_array_equal(moments.recordings[own], k)
    assert moments.views["final.rows"].shape == (sum(moments.counts), 8 * 32)
    kept = TimestampEmbeddings.from_arrays(moments.to_arrays())
    assert list(kept.views) == list(moments.views)
    with pytest.raises(SuiteError, match="'cls' stands for whole recordings"):
        EncoderModel(embedder, VectorOptions(poolings=("mean", "cls"))).timestamp_embeddings(waves)


def test_log_mel_moments_follow_the_sound(clips):
    wave = np.concatenate((np.zeros(16_000, np.float32), decode(clips[6])[:8000]))
    moments = LogMelStatistics().timestamp_embeddings([wave, wave[:300]])
    assert list(moments.counts) == [31, 1]
    np.testing.assert_allclose(moments.times_s[:3], [0.02, 0.07, 0.12])
    assert moments.times_s[31] <= 300 / 16_000
    loudness = moments.views["final.mean"][:31, :64].mean(1)
    assert loudness[moments.times_s[:31] < 0.85].max() < loudness[moments.times_s[:31] > 1.15].min()


def test_seconds_are_means_of_their_moments():
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    times_s = np.array([0.1, 0.6, 2.2, 0.5, 1.2, 1.9], np.float32)
    seconds = TimestampEmbeddings({"final.mean": vectors}, np.array([3, 3]), times_s).mean_by_second()
    assert list(seconds.counts) == [2, 2]
    assert list(seconds.times_s) == [0, 2, 0, 1]
    np.testing.assert_allclose(seconds.views["final.mean"], [[1, 2], [4, 5], [6, 7], [9, 10]])


def test_seconds_have_the_labels_that_cover_more_than_half_of_them():
    rows = [Event("a", 0.0, 1.6), Event("b", 1.4, 2.5), Event("", 3.0, 4.0), Event("a", 5.0, np.inf)]
    found = second_targets(rows, np.arange(7.0), ["a", "b"])
    nothing = [np.nan, np.nan]
    np.testing.assert_array_equal(found, [[1, 0], [1, 1], nothing, [0, 0], nothing, [1, 0], [1, 0]])


def test_functions_may_give_moments_and_are_checked():
    waves = [np.zeros(100, np.float32), np.zeros(50, np.float32)]
    clip = lambda waves: np.zeros((len(waves), 2))  # noqa: E731
    good = FunctionModel(
        "m", clip, embed_timestamps=lambda waves: [(np.ones((len(w) // 25, 3)), np.arange(len(w) // 25)) for w in waves]
    )
    assert good.timestamp_embeddings(waves).views["final.mean"].shape == (6, 3)
    with pytest.raises(SuiteError, match="no timestamp embeddings: give FunctionModel `embed_timestamps`"):
        FunctionModel("m", clip).timestamp_embeddings(waves)
    bad = FunctionModel("m", clip, embed_timestamps=lambda waves: [(np.ones((4, 3)), np.arange(3))] * 2)
    with pytest.raises(ValueError, match="must give"):
        bad.timestamp_embeddings(waves)
