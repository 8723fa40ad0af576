"""The package ssamba-onnx: the embeddings and predictions of ssamba, without PyTorch."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import soundfile
import torch
from tests.conftest import ROOT, small_encoder

from ssamba.audio.decode import decode
from ssamba.config import ClassifierConfig
from ssamba.embedder import Embedder
from ssamba.integrations.onnx import check, export_onnx
from ssamba.model import Classifier
from ssamba_onnx import AudioError, OnnxEmbedder

pytestmark = pytest.mark.usefixtures("one_thread")
SRC = ROOT / "packages" / "ssamba-onnx" / "src"
LABELS = ("crow", "drum", "choir")


def exported(folder, monkeypatch=None, head=None, **encoder):
    """Return a small model of ssamba, and the same of ssamba_onnx."""
    model = Embedder(small_encoder(num_frames=256, **encoder), device="cpu", name="small")
    if head is not None:
        torch.manual_seed(3)
        classifier = Classifier(model.encoder.config, ClassifierConfig(num_classes=3, labels=LABELS, **head)).eval()
        classifier.encoder = model.encoder
        with torch.no_grad():
            classifier.linear.weight.mul_(10)
        model.classifier = classifier
    if monkeypatch is not None:
        monkeypatch.setattr(check, "check_files", lambda *_: [])
        monkeypatch.setattr("ssamba.integrations.onnx.export.check_files", lambda *_: [])
    export_onnx(model, folder, inputs="waveform")
    return model, OnnxEmbedder(folder, threads=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def night(medley):
    """9 s with a digital silence of 2 s, short sounds in it."""
    wave = medley[: 9 * 16_000 + 77].copy()
    wave[4 * 16_000 : 6 * 16_000] = 0
    wave[5 * 16_000 : 5 * 16_000 + 2000] = medley[:2000]
    return wave


def assert_same(got, wanted):
    for name in ("clip", "parts", "frames"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), atol=3e-4, err_msg=name)
    np.testing.assert_allclose(got.clip, wanted.clip, atol=1e-4)
    np.testing.assert_allclose(got.times_s, wanted.times_s, atol=1e-6)
    assert got.duration_s == wanted.duration_s


def test_embed_gives_what_ssamba_gives(models, clips, night):
    model, onnx = models
    sources = [clips[0], str(clips[4]), night, clips[8].read_bytes(), night[:1600]]
    for got, wanted in zip(onnx.embed(sources), model.embed(sources), strict=True):
        assert_same(got, wanted)
    with clips[0].open("rb") as file:
        assert_same(onnx.embed(file), model.embed(clips[0]))
    assert_same(onnx.embed(night, overlap=0.8), model.embed(night, overlap=0.8))
    assert_same(onnx.embed(night, context="full"), model.embed(night, context="full"))
    stereo = np.stack((night, night[::-1]))[:, : 4 * 16_000]
    pcm = (stereo * 32767).astype(np.int16)
    assert_same(onnx.embed(pcm, 22_050, channels=1), model.embed(pcm, 22_050, channels=1))
    assert_same(onnx.embed(stereo.T, channels="mean"), model.embed(stereo.T, channels="mean"))
    assert len(onnx.embed(stereo, batch=True)) == 2
    assert onnx.embed(night, frames=False).frames is None
    assert np.array_equal(pickle.loads(pickle.dumps(onnx)).embed(clips[8]).clip, onnx.embed(clips[8]).clip)


@pytest.mark.parametrize("extra", [-700, -1, 0, 1, 159, 160, 2559, 2560, 20_000])
def test_windows_end_where_the_recording_ends(models, night, extra):
    model, onnx = models
    wave = night[: 255 * 160 + 400 + extra]
    assert_same(onnx.embed(wave), model.embed(wave))


HEADS = {
    "clips": {"clip_lengths_s": (0.4, 0.9, 1.4), "temperature": 1.5, "background": "crow"},
    "unknown-lengths": {"activation": "sigmoid"},
    "prefix": {"pooling": "cls", "padding": "official"},
    "seconds": {"label_frames": 100},
    "segments": {"label_frames": 100, "token_segments": 8},
}
ASKED = [
    {},
    {"per": "clip"},
    {"per": "second"},
    {"per": "window"},
    {"window_s": 0.5, "hop_s": 0.2, "merge": "max", "per": "second"},
    {"window_s": 3.0, "merge": "max"},
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore:.*was trained on")
@pytest.mark.filterwarnings("ignore:.*probabilities may be wrong")
def test_predict_gives_what_ssamba_gives(head, tmp_path, clips, night, monkeypatch):
    model, onnx = exported(tmp_path, monkeypatch, HEADS[head])
    sources = [night, clips[8], np.zeros(30_000, np.float32)]
    answered = 0
    for options in ASKED:
        try:
            wanted = model.predict(sources, **options)
        except ValueError:
            with pytest.raises(ValueError, match=r"was trained on the seconds|reads its prefix token"):
                onnx.predict(sources, **options)
            continue
        for own, theirs in zip(onnx.predict(sources, **options), wanted, strict=True):
            assert [(one.start_s, one.end_s, one.labels) for one in own] == [
                (one.start_s, one.end_s, one.labels) for one in theirs
            ]
            for one, other in zip(own, theirs, strict=True):
                np.testing.assert_allclose(one.probabilities, other.probabilities, atol=3e-4)
            answered += 1
    assert answered >= 6


def test_errors_say_what_to_do(models, tmp_path, clips, night):
    _, onnx = models
    cut = tmp_path / "cut.flac"
    cut.write_bytes(clips[4].read_bytes()[:60_000])
    soundfile.write(tmp_path / "cut.wav", night, 16_000)
    soundfile.write(tmp_path / "cut.mp3", night, 16_000)
    for name in ("cut.wav", "cut.mp3"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20_000])
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "empty.wav").touch()
    for source, message in (
        (tmp_path / "nowhere.wav", "no such file"),
        (tmp_path / "text.wav", "libsndfile cannot read it"),
        (tmp_path / "empty.wav", "libsndfile cannot read it"),
        (cut, "truncated or damaged|cannot read it"),
        (tmp_path / "cut.mp3", r"truncated or damaged, 6\.\d\d of 9\.00 s can be read"),
        (tmp_path / "cut.wav", r"truncated, 19,956 of the 288,\d+ bytes in its header are there"),
        (tmp_path, "is a folder: give its recordings"),
        (night[:100], "6.2 ms long, shorter than one frame of 25 ms"),
        (np.full(16_000, np.nan, np.float32), "NaN or infinity"),
        (np.zeros((2, 16_000), np.float32), "several channels"),
        (np.zeros(16_000, np.int64), "a waveform is float"),
        (7, "expected a recording or a list"),
        ({"array": night}, "expected a recording or a list"),
    ):
        with pytest.raises(ValueError, match=message):
            onnx.embed(source)
    with pytest.raises(AudioError, match=r"recording 1 \(from 0\): .*no such file"):
        onnx.embed([clips[0], "nowhere.wav"])
    found = dict(onnx.embed_stream([("bad", cut), ("good", clips[0]), ("short", night[:9])]))
    assert [isinstance(one, ValueError) for one in found.values()] == [True, False, True]
    for channels in ("left", True, 2.0):
        with pytest.raises(AudioError, match="channels is 'mean' or the number of a channel"):
            onnx.embed(clips[0], channels=channels)
    assert onnx.embed(night[:8000], np.int64(8000)).duration_s == 1
    with pytest.raises(ValueError, match="threads is a whole number from 1 on, got '2'"):
        OnnxEmbedder(onnx._model.file, threads="2")
    with pytest.raises(ValueError, match="small has no classifier"):
        onnx.predict(clips[0])


def test_wrong_files_are_named(tmp_path, models):
    with pytest.raises(ValueError, match="no such file"):
        OnnxEmbedder(tmp_path)
    (tmp_path / "waveform.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="is damaged or no ONNX file"):
        OnnxEmbedder(tmp_path)
    export_onnx(models[0], tmp_path / "features", inputs="features")
    with pytest.raises(ValueError, match=r"expected a waveform.onnx of `ssamba export`"):
        OnnxEmbedder(tmp_path / "features" / "features.onnx")


def test_it_runs_where_there_is_no_torch(models, clips):
    wave = decode(clips[0])[:16_000]
    audio = io.BytesIO()
    soundfile.write(audio, wave, 16_000, format="WAV", subtype="FLOAT")
    code = f"""
    import sys
    sys.modules["torch"] = sys.modules["ssamba"] = sys.modules["onnx"] = None
    sys.path.insert(0, {str(SRC)!r})
    from ssamba_onnx import OnnxEmbedder
    model = OnnxEmbedder({str(models[1]._model.file)!r})
    print(model.embed(sys.stdin.buffer).clip.sum())
    print(*{{name.partition(".")[0] for name in sys.modules if sys.modules[name]}} & {{"scipy", "pydantic", "pandas"}})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], input=audio.getvalue(), capture_output=True, check=True
    )
    total, others = done.stdout.decode().splitlines()
    assert float(total) == pytest.approx(float(models[0].embed(wave).clip.sum()), abs=1e-3)
    assert not others
