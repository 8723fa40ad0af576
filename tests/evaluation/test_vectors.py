"""One vector a clip: equal to what the embedder gives, for each layer, from one pass."""

from __future__ import annotations

import numpy as np
import pytest

from ssamba.audio.decode import decode
from ssamba.embedder import Embedder
from ssamba.evaluation import LogMelStatistics
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.suite import read_suite
from ssamba.evaluation.vectors import EncoderModel, FunctionModel, VectorOptions, task_vectors
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
