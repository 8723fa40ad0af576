"""Embeddings of clips and of time steps equal the embedder's, for each layer, from one pass."""

from __future__ import annotations

import numpy as np
import pytest

from ssamba.audio.decode import decode
from ssamba.embedder import Embedder
from ssamba.errors import ConfigError, SuiteError
from ssamba.evaluation import LogMelStatistics, WaveformParts
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.suite import read_suite
from ssamba.evaluation.vectors import (
    EncoderModel,
    FunctionModel,
    TimestampEmbeddings,
    VectorOptions,
    sounding_thirds,
    task_vectors,
)
from ssamba.events import Event, second_targets
from ssamba.hashing import digest_of_json
from ssamba.model.patches import fill_last_patch


@pytest.fixture(scope="module")
def windowed(make_encoder) -> Embedder:
    """Windows of 0.64 s, so that the demo's recordings need several."""
    return Embedder(make_encoder(num_frames=64), device="cpu")


@pytest.mark.parametrize("padding", ["patch", "official"])
def test_each_layer_is_the_embedders_own(windowed, clips, padding):
    options = VectorOptions(layers="all", poolings=("mean", "cls", "rows"), padding=padding)
    waves = [wave for path in clips[:4] for wave in _cuts(path)]
    views = EncoderModel(windowed, options).vectors(waves)
    assert list(views)[:4] == ["0.mean", "1.mean", "2.mean", "final.mean"]
    for layer in (0, 1, 2, None):
        embedded = windowed.embed(waves, layer=layer, padding=padding)
        name = "final" if layer is None else str(layer)
        expected = np.stack([one.clip for one in embedded])
        np.testing.assert_allclose(views[f"{name}.mean"], expected, atol=1e-5)
        rows = views[f"{name}.rows"].reshape(len(waves), 8, 32)
        np.testing.assert_allclose(rows.mean(1), expected, atol=1e-5)
    final = EncoderModel(windowed, options.with_changes(layers="final")).vectors(waves)
    for name, vectors in final.items():
        np.testing.assert_allclose(views[name], vectors, atol=1e-5)


@pytest.mark.parametrize("padding", ["patch", "official"])
def test_both_readouts_are_the_embedders_own(windowed, clips, padding):
    options = VectorOptions(layers="all", poolings=("mean", "rows"), readouts=("clip", "parts"), padding=padding)
    waves = [wave for path in clips[:4] for wave in _cuts(path)]
    views = EncoderModel(windowed, options).vectors(waves)
    for layer in (1, None):
        embedded = windowed.embed(waves, layer=layer, padding=padding)
        name = "final" if layer is None else str(layer)
        np.testing.assert_allclose(views[f"{name}.mean"], np.stack([one.clip for one in embedded]), atol=1e-5)
        expected = np.stack([one.parts for one in embedded])
        np.testing.assert_allclose(views[f"{name}.mean.parts"], expected, atol=1e-5)
        rows = views[f"{name}.rows.parts"].reshape(len(waves), 4, 8, 32)
        np.testing.assert_allclose(rows.mean(2).reshape(len(waves), -1), expected, atol=1e-5)
    with pytest.raises(SuiteError, match="'parts' is one vector of a recording"):
        EncoderModel(windowed, options).timestamp_embeddings(waves)
    with pytest.raises(ConfigError, match="'cls' stands for whole recordings and has no thirds"):
        options.with_changes(poolings=("mean", "cls"))


def test_other_models_get_the_thirds_of_the_waveform(clips):
    sound, zeros = decode(clips[6])[:8000], np.zeros(8000, np.float32)
    waves = [np.concatenate((zeros, sound, zeros)), sound[:500]]
    for wave, tolerance in ((waves[0], 1280), (waves[0] * 0.01, 1280)):
        thirds = sounding_thirds(wave, 16_000)
        assert abs(thirds[0].start - 8000) <= tolerance
        assert abs(thirds[2].stop - 16_000) <= tolerance
        assert thirds[0].stop == thirds[1].start
        assert thirds[1].stop == thirds[2].start
        assert {cut.stop - cut.start for cut in thirds} <= {(thirds[2].stop - thirds[0].start) // 3 + k for k in (0, 1)}
    assert sounding_thirds(waves[1], 16_000) is None
    model = WaveformParts(LogMelStatistics(), ("clip", "parts"))
    views = model.vectors(waves)
    whole = LogMelStatistics().vectors(waves)["final.mean"]
    pieces = LogMelStatistics().vectors([waves[0][cut] for cut in sounding_thirds(waves[0], 16_000)])["final.mean"]
    np.testing.assert_array_equal(views["final.mean"], whole)
    np.testing.assert_allclose(views["final.mean.parts"][0], np.concatenate((whole[:1], pieces)).flatten(), atol=1e-6)
    np.testing.assert_array_equal(views["final.mean.parts"][1], np.tile(whole[1], 4))
    assert model.digest() != LogMelStatistics().digest() != WaveformParts(LogMelStatistics()).digest()


def _cuts(path):
    """A recording, and a part of it, and one shorter than a frame and a half."""
    samples = decode(path)
    return [samples, samples[:5000], samples[:600]] if len(samples) > 5000 else [samples]


def test_the_prefix_token_is_the_encoders(windowed, clips):
    (wave, *_) = [cut for cut in _cuts(clips[0]) if len(cut) == 5000]
    features = windowed.features(wave)
    filled = fill_last_patch(features, windowed.encoder.config, windowed.front_end.silent_feature)
    expected = windowed.encoder(filled[None])[0, 0].detach().numpy()
    found = EncoderModel(windowed, VectorOptions(poolings=("cls",))).vectors([wave])["final.cls"]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_digests_follow_weights_and_options(make_encoder):
    embedder = Embedder(make_encoder(), device="cpu")
    digest = EncoderModel(embedder).digest()
    assert EncoderModel(embedder, VectorOptions(padding="official")).digest() != digest
    assert EncoderModel(embedder, VectorOptions(layers="all")).digest() != digest
    assert EncoderModel(embedder, VectorOptions(readouts=("parts",))).digest() != digest
    assert VectorOptions().digest() == digest_of_json({"layers": "final", "poolings": ["mean"], "padding": "patch"})
    embedder.encoder.cls_token.data += 1
    assert EncoderModel(embedder).digest() != digest


def test_vectors_are_kept_and_told_apart(suite, tmp_path):
    task, calls = read_suite(suite, ["kinds"])[0], []

    def embed(waves):
        calls.append(len(waves))
        return [[np.abs(wave).max(), len(wave)] for wave in waves]

    def waves():
        return read_waves(task)

    model = FunctionModel("peaks", embed)
    everything = np.arange(len(task.clips))
    for indices, level in ((everything, 0.9), (everything, 0.9), (everything, None), (everything[3:5], 0.9)):
        vectors = task_vectors(model, task, indices, level, waves, tmp_path)["final.mean"]
        assert vectors.shape == (len(indices), 2)
        assert (vectors[:, 0] == pytest.approx(0.9)) == (level == 0.9)
    assert calls == [30, 30, 2]
    other = FunctionModel("peaks", embed, version="2")
    task_vectors(other, task, everything, 0.9, waves, tmp_path)
    assert calls == [30, 30, 2, 30]


def test_a_function_must_give_a_row_for_each_clip():
    with pytest.raises(ValueError, match=r"\(2 clips, dims\)"):
        FunctionModel("bad", lambda waves: np.zeros((1, 3))).vectors([np.zeros(9), np.zeros(9)])


def test_log_mel_statistics_say_level_and_change(medley):
    model = LogMelStatistics()
    quiet, loud = model.vectors([0.01 * medley, 0.1 * medley])["final.mean"]
    assert quiet.shape == (192,)
    np.testing.assert_allclose(loud[:64] - quiet[:64], np.log(10), atol=1e-3)  # of magnitudes, not powers
    steady = np.sin(np.arange(16_000) * 2 * np.pi * 1000 / 16_000, dtype=np.float32)
    vector = model.vectors([steady, steady[:200]])["final.mean"]
    assert np.isfinite(vector).all()
    # 1 kHz is 1000 mel of 2840; band m of 64 is centered on the (m + 1)th of 65 equal steps.
    assert (vector[0, :64].argmax() + 1) / 65 * 2840 == pytest.approx(1000, abs=2840 / 65 / 2)


def test_a_clip_below_one_frame_is_filled_up(windowed):
    model = EncoderModel(windowed)
    tone = np.sin(np.arange(300), dtype=np.float32)
    short, filled = model.vectors([tone, np.pad(tone, (0, 100))])["final.mean"]
    np.testing.assert_allclose(short, filled, atol=1e-6)


@pytest.mark.parametrize("padding", ["patch", "official"])
def test_timestamp_embeddings_are_the_embedders_frames(make_encoder, clips, padding):
    embedder = Embedder(make_encoder(num_frames=64), device="cpu")
    waves = [decode(clips[0]), decode(clips[6])[:7000], decode(clips[0])[:800]]
    options = VectorOptions(layers="all", poolings=("mean", "rows"), padding=padding)
    steps = EncoderModel(embedder, options).timestamp_embeddings(waves)
    assert list(steps.views)[:4] == ["0.mean", "1.mean", "2.mean", "final.mean"]
    for layer in (0, None):
        expected = embedder.embed(waves, layer=layer, padding=padding)
        assert list(steps.counts) == [len(one.frames) for one in expected]
        for k, one in enumerate(expected):
            own = steps.rows_of(k)
            np.testing.assert_allclose(
                steps.views[f"{layer if layer == 0 else 'final'}.mean"][own], one.frames, atol=1e-5
            )
            np.testing.assert_allclose(steps.times_s[own], one.times_s, atol=1e-6)
            np.testing.assert_array_equal(steps.recordings[own], k)
    assert steps.views["final.rows"].shape == (sum(steps.counts), 8 * 32)
    kept = TimestampEmbeddings.from_arrays(steps.to_arrays())
    assert list(kept.views) == list(steps.views)
    with pytest.raises(SuiteError, match="'cls' stands for whole recordings"):
        EncoderModel(embedder, VectorOptions(poolings=("mean", "cls"))).timestamp_embeddings(waves)


def test_log_mel_timestamp_embeddings_follow_the_sound(clips):
    wave = np.concatenate((np.zeros(16_000, np.float32), decode(clips[6])[:8000]))
    steps = LogMelStatistics().timestamp_embeddings([wave, wave[:300]])
    assert list(steps.counts) == [31, 1]
    np.testing.assert_allclose(steps.times_s[:3], [0.02, 0.07, 0.12])
    assert steps.times_s[31] <= 300 / 16_000
    loudness = steps.views["final.mean"][:31, :64].mean(1)
    assert loudness[steps.times_s[:31] < 0.85].max() < loudness[steps.times_s[:31] > 1.15].min()


def test_seconds_are_means_of_their_time_steps():
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


def test_functions_may_give_timestamp_embeddings_and_are_checked():
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
