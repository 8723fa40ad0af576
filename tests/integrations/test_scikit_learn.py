"""The transformer of scikit-learn in its own pipelines, searches, tables and pickles, on real recordings."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.conftest import small_encoder

import ssamba
from ssamba.audio.decode import decode
from ssamba.errors import AudioDecodeError, ModelMismatchError
from ssamba.integrations.scikit_learn import AudioEmbedder


@pytest.fixture
def model(tmp_path):
    """The folder of a small model."""
    return str(ssamba.save_checkpoint(tmp_path / "model", small_encoder()))


@pytest.fixture(scope="module")
def pieces(suite):
    """Paths and labels of 27 pieces of recordings."""
    table = pd.read_csv(suite / "kinds.csv")
    return [str(suite / clip) for clip in table["clip"]], table["label"].to_numpy()


def test_vectors_are_those_of_embed_however_recordings_are_given(model, clips):
    paths = clips[:3]
    expected = ssamba.load_model(model, device="cpu").embed(paths)
    one = AudioEmbedder(model, device="cpu")
    vectors = one.fit_transform(paths)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.stack([e.clip for e in expected]), atol=1e-5)
    table = pd.DataFrame({"path": list(map(str, paths)), "site": ["a", "b", "a"]}, index=[7, 8, 9])
    waves = [decode(path) for path in paths]
    wide = np.stack([wave[:8000] for wave in waves])
    for given in (list(map(str, paths)), np.array(list(map(str, paths))), table["path"], table[["path"]], waves):
        np.testing.assert_allclose(one.transform(given), vectors, atol=1e-5)
    np.testing.assert_allclose(one.transform(wide), one.transform(list(wide)), atol=1e-5)
    np.testing.assert_allclose(one.transform([np.stack((wide[0], wide[0]))]), one.transform(wide[:1]), atol=1e-5)
    parts = AudioEmbedder(model, readout="parts", layer=2, device="cpu").transform(paths)
    expected = ssamba.load_model(model, device="cpu").embed(paths, layer=2)
    np.testing.assert_allclose(parts, np.stack([e.parts for e in expected]), atol=1e-5)
    framed = make_column_transformer((one.set_output(transform="pandas"), "path"), ("drop", ["site"]))
    framed = framed.set_output(transform="pandas").fit_transform(table)
    assert list(framed.index) == [7, 8, 9]
    assert framed.columns[-1].endswith("e31")


def test_a_search_over_layers_and_readouts_embeds_each_recording_once_a_layer(model, pieces, tmp_path, monkeypatch):
    paths, labels = pieces
    calls = []
    whole = ssamba.Embedder.embed_stream
    monkeypatch.setattr(ssamba.Embedder, "embed_stream", lambda *a, **k: calls.extend(a[1]) or whole(*a, **k))
    audio = AudioEmbedder(model, device="cpu", memory=str(tmp_path / "vectors"))
    pipeline = make_pipeline(audio, StandardScaler(), LogisticRegression())
    grid = {
        "audioembedder__layer": [1, None],
        "audioembedder__readout": ["clip", "parts"],
        "logisticregression__C": [0.01, 0.1],
    }
    search = GridSearchCV(pipeline, grid, cv=3).fit(paths, labels)
    assert len(calls) == 2 * len(paths)
    assert search.best_score_ > 0.5  # of six kinds
    assert search.predict(paths[:1])[0] == labels[0]
    plain = clone(pipeline).set_params(audioembedder__memory=None)
    scores = [cross_val_score(one, paths, labels, cv=3) for one in (plain, pipeline)]
    np.testing.assert_allclose(*scores)


def test_a_pickle_holds_no_weights_and_knows_which_it_was_fitted_with(model, clips):
    one = AudioEmbedder(model, device="cpu").fit()
    data = pickle.dumps(one)
    assert len(data) < 1000
    back = pickle.loads(data)
    np.testing.assert_array_equal(back.transform(clips[:1]), one.transform(clips[:1]))
    ssamba.save_checkpoint(model, small_encoder(depth=2))
    with pytest.raises(ModelMismatchError, match="fit again"):
        back.transform(clips[:1])
    assert back.fit().transform(clips[:1]).shape == (1, 32)


def test_wrong_parameters_and_recordings_are_named(model, clips, embedder, tmp_path):
    for parameters, message in (
        ({"readout": "cls"}, "'clip' or 'parts'"),
        ({"layer": 7}, "layer"),
        ({"context": "all"}, "context"),
        ({"model": embedder, "device": "cpu"}, "an Embedder has its own"),
    ):
        with pytest.raises(ValueError, match=message):
            AudioEmbedder(**{"model": model, **parameters}).fit()
    one = AudioEmbedder(embedder)
    for recordings, message in (
        ("a.wav", "a list"),
        ({"path": clips}, "got dict"),
        (np.zeros(16_000), r"\(n, S\)"),
        ([clips[0], np.nan], "recording 1 .*got float"),
    ):
        with pytest.raises(ValueError, match=message):
            one.transform(recordings)
    with pytest.raises(AudioDecodeError, match=r"recording 1 .*missing.wav"):
        one.transform([clips[0], "missing.wav"])
    kept = AudioEmbedder(embedder, memory=str(tmp_path))
    kept.transform(clips[:1])
    with pytest.raises(AudioDecodeError, match=r"recording 1 .*missing.wav"):
        kept.transform([clips[0], "missing.wav"])
    assert one.transform([]).shape == (0, 32)
