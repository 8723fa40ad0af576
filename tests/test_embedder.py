"""The Embedder: any source, any length, batches, windows, options, and its messages."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import soundfile as sf
import torch

import ssamba
from ssamba.audio.decode import decode
from ssamba.audio.fbank import fbank, log_mel
from ssamba.embedder import Embedder, EmbedOptions, random_model
from ssamba.errors import AudioDecodeError
from ssamba.inference import group_by_length


def assert_same(one, other, atol=1e-5):
    for name in ("clip", "frames", "times_s"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=atol, rtol=0)


def test_a_recording_gives_clip_frames_and_times(embedder, clips):
    for path in clips:
        e = embedder.embed(path)
        duration_s = sf.info(path).duration
        assert e.duration_s == pytest.approx(duration_s, abs=1e-3)
        assert e.clip.shape == (embedder.dim,)
        assert e.frames.shape == (len(e.times_s), embedder.dim)
        assert (e.times_s.diff() > 0).all()
        assert 0 < e.times_s[0] <= e.times_s[-1] < e.duration_s
        torch.testing.assert_close(e.clip, e.frames.mean(0))


def test_files_arrays_and_tensors_agree(embedder, clips):
    samples, rate = sf.read(clips[8], dtype="float32")
    from_file = embedder.embed(str(clips[8]))
    assert_same(embedder.embed(samples, rate), from_file)
    assert_same(embedder.embed(torch.from_numpy(samples), rate), from_file)
    assert_same(embedder.embed(samples.astype(np.float64), rate), from_file)
    pcm = (samples * 32768).round().clip(-32768, 32767).astype(np.int16)
    assert_same(embedder.embed(pcm, rate), from_file, atol=1e-3)
    at_model_rate = decode(clips[8])
    assert_same(embedder.embed(at_model_rate), from_file)
    assert_same(embedder.embed(at_model_rate, 16_000), from_file)


def test_batches_and_lists_give_what_single_recordings_give(embedder, clips, medley):
    sources = [*clips, medley[:4800], medley[: 16000 * 10], medley[-7000:], medley]
    together = embedder.embed(sources)
    for one, source in zip(together, sources, strict=True):
        assert_same(one, embedder.embed(source))
    batch = torch.from_numpy(medley[:32000]).reshape(2, -1)
    for one, row in zip(embedder.embed(batch, batch=True), batch, strict=True):
        assert_same(one, embedder.embed(row))
    assert embedder.embed([]) == []


def test_ssast_embeds_what_ssamba_does(ssast_pth, clips, medley):
    model = ssamba.load_model(ssast_pth, device="cpu")
    sources = [*clips[:3], medley[:4800], medley[: 16000 * 4]]
    for one, source in zip(model.embed(sources), sources, strict=True):
        assert_same(one, model.embed(source))
    features = model.features(medley[:16000])[None, :96]
    with torch.no_grad():
        tokens = model.encoder(features)[0, 2:]  # [CLS] and the distillation token do not count
    torch.testing.assert_close(model.embed(medley[: 95 * 160 + 400]).clip, tokens.mean(0), atol=1e-5, rtol=0)
    whole = model.embed(medley, context="full", layer=1)
    assert torch.isfinite(whole.frames).all()
    other = ssamba.load_model(ssast_pth, device="cpu", patch_stride=10)
    assert other.digest() != model.digest() == ssamba.load_model(ssast_pth, device="cpu").digest()


def test_a_short_recording_is_the_mean_over_its_patch_tokens(embedder, medley):
    samples = torch.from_numpy(medley[: 16000 * 3])
    features = fbank(samples)
    filled = torch.nn.functional.pad(features, (0, 0, 0, -len(features) % 16))
    config = embedder.front_end
    with torch.no_grad():
        tokens = embedder.encoder(((filled - config.mean) / (2 * config.std))[None])[0, 1:]
    e = embedder.embed(samples)
    torch.testing.assert_close(e.clip, tokens.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(e.frames, tokens.reshape(8, -1, embedder.dim).mean(0), atol=1e-5, rtol=0)


def test_windows_are_merged_as_the_contract_says(embedder, medley):
    """An independent windowing: 64 columns, half overlapping, the last at the end, triangular weights."""
    features = log_mel(torch.from_numpy(medley))
    columns = -(-len(features) // 16)
    silent = -embedder.front_end.mean / (2 * embedder.front_end.std)
    features = torch.nn.functional.pad(features, (0, 0, 0, columns * 16 - len(features)), value=silent)
    starts = [s for s in range(0, columns, 32) if s + 64 <= columns]
    if starts[-1] + 64 < columns:
        starts.append(columns - 64)
    triangle = torch.tensor([min(i + 1, 64 - i) for i in range(64)], dtype=torch.float32)[:, None]
    total, weight = torch.zeros(columns, embedder.dim), torch.zeros(columns, 1)
    for start in starts:
        with torch.no_grad():
            tokens = embedder.encoder(features[None, start * 16 : (start + 64) * 16])[0, 1:]
        total[start : start + 64] += triangle * tokens.reshape(8, 64, -1).mean(0)
        weight[start : start + 64] += triangle
    e = embedder.embed(medley)
    torch.testing.assert_close(e.frames, total / weight, atol=1e-4, rtol=0)
    assert e.times_s[1] - e.times_s[0] == pytest.approx(0.16)
    assert e.times_s[0] == pytest.approx(0.0875)


def test_long_recordings_do_not_depend_on_how_they_are_read(embedder, medley, tmp_path):
    long = np.tile(medley, 3)  # 84 s: several blocks of features
    sf.write(tmp_path / "long.wav", long, 16_000, subtype="FLOAT")
    assert_same(embedder.embed(tmp_path / "long.wav"), embedder.embed(long))
    direct = log_mel(torch.from_numpy(long))
    torch.testing.assert_close(embedder.features(long), direct, atol=1e-3, rtol=0)


def test_full_context_sees_the_whole_recording(embedder, medley):
    full = embedder.embed(medley, context="full")
    windows = embedder.embed(medley)
    assert full.frames.shape == windows.frames.shape
    assert not torch.allclose(full.frames, windows.frames, atol=1e-3)
    changed = medley.copy()
    changed[-1600:] = 0
    assert not torch.equal(embedder.embed(changed, context="full").frames[0], full.frames[0])
    torch.testing.assert_close(embedder.embed(changed).frames[0], windows.frames[0], atol=1e-5, rtol=0)


def test_layers_and_official_padding(embedder, medley):
    clip = medley[:16000]
    last = embedder.embed(clip)
    hidden = [embedder.embed(clip, layer=layer).clip for layer in range(3)]
    assert len({tuple(h.tolist()) for h in [last.clip, *hidden]}) == 4
    assert torch.equal(embedder.embed(clip, layer=-1).clip, hidden[2])
    official = embedder.embed(clip, padding="official")
    assert official.frames.shape == last.frames.shape
    features = torch.nn.functional.pad(fbank(torch.from_numpy(clip)), (0, 0, 0, 1024 - 98))
    config = embedder.front_end
    with torch.no_grad():
        tokens = embedder.encoder(((features - config.mean) / (2 * config.std))[None])[0, 1:]
    torch.testing.assert_close(official.clip, tokens.mean(0), atol=1e-5, rtol=0)


def test_ragged_batches_waste_little_on_padding(embedder):
    class Item:
        def __init__(self, columns):
            self.columns = columns

    torch.manual_seed(0)
    items = [(None, Item(int(c))) for c in torch.randint(1, 65, (300,))]
    groups = list(group_by_length(items, 1.1))
    assert sorted(id(i) for g in groups for i in g) == sorted(map(id, items))
    computed = sum(len(g) * g[0][1].columns for g in groups)
    assert computed <= 1.1 * sum(i.columns for _, i in items)
    assert len(groups) < 30


def test_a_stream_goes_on_past_broken_recordings(embedder, clips, tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    items = {"a": clips[0], "b": tmp_path / "text.wav", "c": np.zeros(100, np.float32), "d": clips[1]}
    results = dict(embedder.embed_stream(items.items()))
    assert isinstance(results["b"], AudioDecodeError)
    assert isinstance(results["c"], ValueError)
    assert_same(results["a"], embedder.embed(clips[0]))
    assert_same(results["d"], embedder.embed(clips[1]))


def test_the_weights_that_ship_know_a_recording_from_another(clips):
    model = ssamba.load_model(device="cpu")
    assert model.report is not None
    recordings = [torch.from_numpy(decode(path)) for path in clips[:8]]
    halves = [half for x in recordings for half in (x[: len(x) // 2], x[len(x) // 2 :])]
    vectors = torch.nn.functional.normalize(torch.stack([e.clip for e in model.embed(halves)]), dim=1)
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    nearest = (vectors @ vectors.T - 2 * torch.eye(16)).argmax(1)
    right = sum(int(nearest[i]) == i ^ 1 for i in range(16))
    assert right >= 10, f"{right} of 16 halves are nearest to their other half (chance: 1)"


def test_load_model_reads_checkpoints(ssamba_pth, medley):
    model = ssamba.load_model(ssamba_pth, device="cpu")
    assert model.report is not None
    assert model.classifier is None
    assert model.embed(medley[:16000]).clip.shape == (32,)
    with pytest.raises(ValueError, match="no classifier"):
        model.predict(medley)


def test_the_random_baseline_needs_no_weights(monkeypatch):
    monkeypatch.setattr("ssamba.embedder.has_default_weights", lambda: False)
    random, again = random_model(device="cpu"), random_model(device="cpu", patch_stride=10)
    assert random.dim == 192
    assert again.encoder.config.rows == 12
    assert torch.equal(random.encoder.cls_token, again.encoder.cls_token)


def test_a_classifier_gives_logits_for_any_length(tmp_path, medley):
    from ssamba.checkpoint import save_checkpoint
    from ssamba.config import ClassifierConfig
    from ssamba.model import Classifier, encoder_config

    torch.manual_seed(0)
    model = Classifier(encoder_config("tiny", embed_dim=32, depth=2), ClassifierConfig(num_classes=3)).eval()
    save_checkpoint(tmp_path / "c", model)
    loaded = ssamba.load_model(tmp_path / "c", device="cpu")
    short = medley[: 16000 * 2 - 320]
    with torch.no_grad():
        features = loaded.features(short)
        features = torch.nn.functional.pad(
            features, (0, 0, 0, -len(features) % 16), value=loaded.front_end.silent_feature
        )
        expected = model(features[None])[0]
    results = dict(loaded.logits_stream({"short": short, "long": medley}.items()))
    torch.testing.assert_close(results["short"], expected)
    assert results["long"].shape == (3,)
    (prediction,) = loaded.predict(short)
    torch.testing.assert_close(prediction.probabilities, expected.softmax(0))
    assert (prediction.start_s, prediction.end_s, prediction.labels) == (0, 1.98, ("0", "1", "2"))


def test_the_digest_changes_with_everything_that_changes_embeddings(embedder, make_encoder):
    base = embedder.digest()
    assert base == Embedder(make_encoder(), device="cpu").digest()
    assert base != embedder.digest(EmbedOptions(layer=1))
    assert base != Embedder(make_encoder(final_norms=1), device="cpu").digest()
    other = make_encoder()
    with torch.no_grad():
        other.cls_token += 1
    assert base != Embedder(other, device="cpu").digest()


def test_models_at_other_rates(make_encoder, clips):
    front_end = ssamba.FrontEndConfig(sample_rate_hz=48_000, num_mel_bins=64, low_hz=500, frame_ms=20, shift_ms=5)
    model = Embedder(make_encoder(num_mel_bins=64), front_end, device="cpu")
    e = model.embed(clips[0])
    assert e.times_s[1] - e.times_s[0] == pytest.approx(0.08)
    with pytest.raises(ValueError, match="64 mel bins"):
        Embedder(make_encoder(), front_end)


def test_import_is_light():
    import subprocess
    import sys

    code = (
        "import sys, ssamba, ssamba.audio.decode; "
        "print([m for m in ('torch', 'matplotlib', 'pyarrow', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = (
        "import sys, ssamba; ssamba.load_model; "
        "print([m for m in ('matplotlib', 'pyarrow', 'av', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_of_the_package_raise_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'embed_everything'"):
        ssamba.embed_everything  # noqa: B018
    assert set(ssamba.__all__) <= set(dir(ssamba))
    with warnings.catch_warnings():
        for name in ssamba.__all__:
            getattr(ssamba, name)
