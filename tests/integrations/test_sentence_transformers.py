"""The module of sentence-transformers: its `encode`, `similarity`, saving and trainer, on real recordings."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tests.conftest import small_encoder

import ssamba
from ssamba.audio.decode import decode
from ssamba.errors import AudioDecodeError
from ssamba.integrations.sentence_transformers import SsambaModule


@pytest.fixture
def model(tmp_path):
    """A model of a small encoder, loaded from the folder that sentence-transformers wrote."""
    embedder = ssamba.Embedder(small_encoder(), device="cpu")
    SentenceTransformer(modules=[SsambaModule(embedder, readout="parts")], device="cpu").save(str(tmp_path / "saved"))
    return SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")


def test_it_encodes_what_embed_embeds_and_its_folder_is_a_checkpoint(model, clips, medley, tmp_path):
    paths = list(map(str, clips[:3]))
    at_48khz = decode(clips[0], sample_rate_hz=48_000)
    embedder = ssamba.load_model(tmp_path / "saved", device="cpu")
    sources = [*paths, decode(clips[3]), medley]
    expected = np.stack([e.parts for e in embedder.embed(sources)])
    vectors = model.encode(sources)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert model.get_embedding_dimension() == 128
    other = model.encode([{"array": at_48khz, "sampling_rate": 48_000}, {"audio": np.stack((medley, medley))}])
    np.testing.assert_allclose(other[0], embedder.embed(at_48khz, 48_000).parts, atol=1e-5)
    np.testing.assert_allclose(other[1], expected[-1], atol=1e-5)
    np.testing.assert_allclose(model.encode(paths[0]), expected[0], atol=1e-5)
    similar = model.similarity(vectors, vectors)
    assert similar.shape == (5, 5)
    np.testing.assert_allclose(similar.diagonal(), 1, atol=1e-5)
    assert model.encode(paths, normalize_embeddings=True, truncate_dim=32).shape == (3, 32)


def test_recordings_of_datasets_are_taken_decoded_or_not(model, clips):
    stereo = torch.from_numpy(decode(clips[0]))[None].expand(2, -1)
    decoder = SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=stereo, sample_rate=16_000))  # torchcodec's
    files = Dataset.from_dict({"audio": [str(clips[0])]}).cast_column("audio", Audio(decode=False))
    forms = [files[0]["audio"], files[0], {"bytes": clips[0].read_bytes(), "path": None}, decoder, {"audio": decoder}]
    np.testing.assert_allclose(model.encode(forms), np.stack([model.encode(str(clips[0]))] * len(forms)), atol=1e-5)
    with pytest.raises(ValueError, match=r"\{'path': path\}, got a dictionary of 'array'"):
        model.encode([{"array": decode(clips[0])}])
    with pytest.raises(ValueError, match="'clip' or 'parts', got 'cls'"):
        SsambaModule(model[0].embedder, readout="cls")


def test_gradients_are_those_of_the_same_vectors_and_long_clips_are_not_trained_on(model, clips, medley):
    features = model.preprocess(list(map(str, clips[:3])))
    trained = model(dict(features))["sentence_embedding"]
    with torch.no_grad():
        plain = model(dict(features))["sentence_embedding"]
    torch.testing.assert_close(trained.detach(), plain, atol=1e-5, rtol=1e-5)
    assert trained.requires_grad
    with pytest.raises(ValueError, match=r"at most 10.24 s, got 28.* s: crop"):
        model(model.preprocess([medley]))


def test_its_trainer_brings_pieces_of_a_recording_together(model, suite, tmp_path):
    anchors = sorted(map(str, (suite / "kinds").glob("*_0.flac")))
    pairs = {"anchor": anchors, "positive": [path.replace("_0.flac", "_2.flac") for path in anchors]}
    loss = MultipleNegativesRankingLoss(model)
    batch = list(map(model.preprocess, pairs.values()))
    before = loss([dict(one) for one in batch], None).item()
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=5, per_device_train_batch_size=8, learning_rate=2e-3, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    SentenceTransformerTrainer(model, arguments, train_dataset=Dataset.from_dict(pairs), loss=loss).train()
    model.eval()
    assert loss([dict(one) for one in batch], None).item() < before


def test_what_is_no_recording_is_named(model, tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(AudioDecodeError, match=r"empty\.wav"):
        model.encode([str(tmp_path / "empty.wav")])
    with pytest.raises(ValueError, match="is not supported"):
        model.encode(["a sentence"])
