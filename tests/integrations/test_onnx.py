"""Models as ONNX files: the numbers of PyTorch for every structure, ragged batches, heads, refusals."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.conftest import ROOT, invoke, small_encoder

from ssamba.audio.decode import decode
from ssamba.audio.fbank import log_mel
from ssamba.checkpoint import save_checkpoint
from ssamba.config import ClassifierConfig, FrontEndConfig
from ssamba.embedder import Embedder
from ssamba.errors import ConfigError, OtherSettingsError
from ssamba.integrations.onnx import check, export_onnx
from ssamba.integrations.onnx.check import ExportError
from ssamba.integrations.onnx.export import Exporter
from ssamba.integrations.onnx.stages import spectral_filters
from ssamba.model import Classifier

pytestmark = pytest.mark.usefixtures("one_thread")
STRUCTURES = {
    "official": {},
    "sequential": {"block_layout": "sequential", "depth": 3, "conv_kernel": 3, "state_size": 5, "delta_rank": 3},
    "ssamba2": {"variant": "ssamba2", "num_frames": 128},
    "ssast": {"variant": "ssast", "depth": 2, "num_heads": 2},
    "overlapping": {"patch_stride": (10, 10), "position_grid": (8, 64)},
    "whole-frames": {"patch_size": (128, 2), "patch_stride": (128, 2)},
    "one-row-time-major": {"patch_order": "time_major", "patch_size": (128, 5), "patch_stride": (128, 3), "depth": 2},
}


def run(content, clips, names=None):
    """Run a batch of clips that is padded with NaN; return the outputs by name."""
    session = check.session(content)
    names = names or [one.name for one in session.get_outputs()]
    batch = np.full((len(clips), max(map(len, clips)), *clips[0].shape[1:]), np.nan, np.float32)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    inputs = {session.get_inputs()[0].name: batch, "lengths": np.array([len(clip) for clip in clips])}
    return dict(zip(names, session.run(names, inputs), strict=True))


def file_of(model, kind="waveform", dtype="float32", layers=(), padding=None):
    return Exporter(model, dtype, layers, padding).encoder_file(kind)


@pytest.fixture(scope="module")
def waves(clips):
    """Recordings of 0.3 to 2.8 s, one of a single frame, and one longer than the window of some encoders."""
    found = [decode(path) for path in clips[:2]]
    return [*found, found[0][3000:7400], found[1][9000:9400], np.concatenate(found[::-1])]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_gives_what_embed_gives_ragged_and_alone(structure, waves):
    front_end = FrontEndConfig(mean=-5.0, std=4.0)
    model = Embedder(small_encoder(**STRUCTURES[structure]), front_end, device="cpu")
    wanted = model.embed(waves, context="full")
    layer = model.embed(waves[0], context="full", layer=1)
    features = [log_mel(torch.from_numpy(wave), config=front_end).numpy() for wave in waves]
    for kind, given, tolerance in (("waveform", waves, 1e-4), ("features", features, 1e-5)):
        out = run(file_of(model, kind, layers=[1]), given)
        for row, e in enumerate(wanted):
            count = len(e.frames)
            assert out["columns"][row] == count
            np.testing.assert_allclose(out["clip"][row], e.clip, atol=tolerance)
            np.testing.assert_allclose(out["parts"][row], e.parts, atol=2 * tolerance)
            np.testing.assert_allclose(out["frames"][row, :count], e.frames, atol=5 * tolerance)
            assert not out["frames"][row, count:].any()
        encoder, first = model.encoder, len(wanted[0].frames)
        tokens = out["hidden_1"][0, encoder.num_prefix_tokens :][: encoder.config.rows * first]
        np.testing.assert_allclose(tokens.mean(0), layer.clip, atol=tolerance * max(1, float(layer.clip.abs().max())))


HEADS = {
    "mean": {"temperature": 2.0},
    "cls": {"pooling": "cls", "activation": "sigmoid"},
    "official-padding": {"padding": "official"},
    "seconds": {"label_frames": 100},
    "segments": {"label_frames": 100, "token_segments": 10},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("structure", ["official", "ssast"])
def test_logits_are_those_of_predict(head, structure, waves):
    torch.manual_seed(3)
    config = ClassifierConfig(num_classes=3, labels=("crow", "drum", "choir"), **HEADS[head])
    encoder = small_encoder(**STRUCTURES[structure], num_frames=300).config
    classifier = Classifier(encoder, config)
    with torch.no_grad():
        classifier.linear.weight.mul_(20)
    model = Embedder(small_encoder(**STRUCTURES[structure], num_frames=300), device="cpu")
    classifier.encoder = model.encoder
    model.classifier = classifier.eval()
    short = waves[:3]
    out = run(file_of(model), short)
    for row, wave in enumerate(short):
        predictions = model.predict(wave)
        wanted = np.stack([one.probabilities for one in predictions])
        got = out["probabilities"][row].reshape(-1, 3)[: len(wanted)]
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert np.ptp(out["probabilities"]) > 0.1


def test_the_files_of_a_classifier_say_what_they_are(tmp_path, classifier_folder, clips):
    done = invoke("export", classifier_folder, "-o", tmp_path, "--dtype", "float16", "--check", clips[0], "--layers=-1")
    assert done.exit_code == 0
    assert "waveform.onnx clip" in done.output
    assert "waveform.onnx probabilities: difference" in done.output
    assert "head.onnx logits: difference" in done.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "waveform.onnx",
        "features.onnx",
        "head.onnx",
        "export.json",
    }
    session = onnxruntime.InferenceSession(tmp_path / "waveform.onnx")
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["labels"]) == ["crow", "drum", "choir"]
    assert meta["sample_rate_hz"] == "16000"
    assert meta["license"] == "not stated"
    assert json.loads(meta["front_end"])["frame_samples"] == 400
    report = json.loads((tmp_path / "export.json").read_text("utf-8"))
    assert report["weights_digest"] == meta["weights_digest"]
    assert any("hidden_2" in one.name for one in session.get_outputs())
    model = onnx.load(tmp_path / "waveform.onnx")
    assert {one.domain for one in model.opset_import} == {""}
    assert not {node.domain for node in model.graph.node} - {""}
    # The head alone reads vectors.
    head = onnxruntime.InferenceSession(tmp_path / "head.onnx")
    out = session.run(["clip", "logits"], {"waveform": np.ones((1, 16_000), np.float32), "lengths": np.array([16_000])})
    np.testing.assert_allclose(head.run(["logits"], {"vectors": out[0]})[0], out[1], atol=1e-5)
    # Another export is not replaced unless asked.
    with pytest.raises(OtherSettingsError, match="dtype was 'float16', is 'int8'"):
        export_onnx(classifier_folder, tmp_path, dtype="int8", layers=[-1])
    export_onnx(classifier_folder, tmp_path, dtype="int8", inputs="features", overwrite=True)
    assert not (tmp_path / "waveform.onnx").exists()
    assert json.loads((tmp_path / "export.json").read_text("utf-8"))["files"] == ["features.onnx", "head.onnx"]


def test_float16_storage_of_float16_weights_loses_nothing(waves):
    model = Embedder(small_encoder(variant="ssamba2"), device="cpu")
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.copy_(weight.half())
    whole, half, int8 = (
        run(file_of(model, dtype=dtype), waves[:1])["clip"] for dtype in ("float32", "float16", "int8")
    )
    np.testing.assert_allclose(half, whole, atol=2e-6)
    assert 1e-4 < np.abs(int8 - whole).max() < 0.1


@pytest.mark.parametrize(
    "front_end", [FrontEndConfig().named("x10"), FrontEndConfig(sample_rate_hz=22_050, low_hz=200, high_hz=9_000)]
)
def test_other_front_ends_agree_with_float64(front_end, clips):
    wave = decode(clips[0], sample_rate_hz=front_end.sample_rate_hz) + np.float32(0.3)  # an offset is removed
    model = Embedder(small_encoder(depth=2), front_end, device="cpu")
    out = run(file_of(model), [wave], ["features"])["features"][0]
    exact = log_mel(torch.from_numpy(wave).double(), config=front_end).numpy()
    assert out.shape == exact.shape
    assert np.abs(out - exact).max() < 5e-4
    filters, mel = spectral_filters(front_end)
    assert len(filters) == 2 * len(mel)


def test_an_export_that_differs_is_refused(tmp_path, monkeypatch):
    model = Embedder(small_encoder(depth=2), device="cpu", name="small")
    wrong = Embedder(small_encoder(depth=2), device="cpu")
    with torch.no_grad():
        next(wrong.encoder.blocks.parameters()).add_(0.01)
    right = check.expected
    monkeypatch.setattr(check, "expected", lambda embedder, *others: right(wrong, *others))
    with pytest.raises(ExportError, match=r"output clip differs from PyTorch by .* where 1e-05 is allowed"):
        export_onnx(model, tmp_path / "out", inputs="features")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "samples"}, "inputs must be one of both, waveform, features"),
        ({"dtype": "bf16"}, "dtype must be one of float32, float16, int8"),
        ({"padding": "none"}, "padding must be 'patch' or 'official'"),
        ({"layers": [9]}, "layer must lie between 0"),
        ({"check": "nowhere.wav"}, "nowhere.wav"),
    ],
)
def test_wrong_arguments_are_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(Embedder(small_encoder(depth=2), device="cpu"), tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_official_files_can_be_exported(tmp_path, ssamba_pth, ssast_pth):
    for path in (ssamba_pth, ssast_pth):
        report = export_onnx(path, tmp_path / path.parent.name, inputs="features")
        assert [one.path.name for one in report.files] == ["features.onnx"]
    save_checkpoint(tmp_path / "plain", small_encoder(depth=2))
    with pytest.raises(ConfigError, match="front_end is for a model that is loaded here"):
        export_onnx(Embedder(small_encoder(depth=2)), tmp_path / "x", front_end="x10")


def test_the_page_runs(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, path in (("dog", clips[3]), ("crow", clips[8])):
        (tmp_path / f"{name}.flac").write_bytes(path.read_bytes())
    page = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if language == "bash":
            for line in block.splitlines():
                assert invoke(*line.split("#")[0].split()[1:]).exit_code == 0
        else:
            exec(block, names)
    assert names["clip"].shape == (1, 192)
    assert len(names["many"]) == 2


def test_the_command_names_the_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("ssamba.cli.export.find_spec", lambda name: None)
    done = invoke("export", "ssamba2-tiny", "-o", tmp_path / "onnx")
    assert (done.exit_code, done.output.strip()) == (
        1,
        'error: ssamba export needs onnx and onnxruntime: pip install "ssamba[onnx]"',
    )
