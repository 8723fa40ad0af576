"""SSAST in place of SSAMBA: fine-tuning, prediction, pretraining, reconstruction and probes."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ssamba import load_model
from ssamba.audio.decode import decode
from ssamba.checkpoint import load_checkpoint, load_encoder, save_checkpoint
from ssamba.cli import app
from ssamba.config import ClassifierConfig
from ssamba.errors import ConfigError
from ssamba.evaluation.vectors import EncoderModel, VectorOptions
from ssamba.model import create_encoder
from ssamba.model.heads import Classifier
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.run import finetune

SMALL = {
    "clips": {"batch_size": 4, "workers": 0, "frames": 96},
    "run": {"epochs": 1, "validate_every": "epoch", "ema_decay": None, "keep_last": 1},
}


def run_cli(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module", params=["ssast", "ssast_frame"])
def start(request, tmp_path_factory):
    torch.manual_seed(0)
    heads = {} if request.param == "ssast" else {"num_frames": 256}
    encoder = create_encoder("tiny", request.param, embed_dim=24, depth=2, **heads)
    return save_checkpoint(tmp_path_factory.mktemp(request.param), encoder)


def test_a_fine_tuned_ssast_predicts_labels(start, classes, tmp_path):
    recipe = FinetuneRecipe.parse({**SMALL, "start": {"fitted_head": True, "pooling": "cls"}}, "test")
    report = finetune(classes, tmp_path / "run", start, recipe=recipe)
    assert report.stopped == "finished"
    model = load_checkpoint(tmp_path / "run" / "model").model
    assert model.encoder.config.family.startswith("ssast")
    text = run_cli(
        "predict", classes / "drum" / "1.wav", "--checkpoint", tmp_path / "run", "--output", tmp_path / "p.csv"
    )
    assert text is not None
    assert "drum" in (tmp_path / "p.csv").read_text()


def test_a_pretrained_ssast_reconstructs_masked_patches(start, classes, tmp_path):
    config = load_encoder(start).config
    (tmp_path / "r.toml").write_text(
        f'[model]\nvariant = "{"ssast" if config.rows > 1 else "ssast_frame"}"\n'
        "encoder = { embed_dim = 24, depth = 2 }\n[data]\ncrop_s = 1.0\nbatch_s = 4.0\nworkers = 0\n"
        "[run]\nsteps = 1\nvalidate_every = 1\n"
    )
    run_cli("pretrain", classes, "--recipe", tmp_path / "r.toml", "-o", tmp_path / "run")
    picture = tmp_path / "x.png"
    run_cli("reconstruct", classes / "drum" / "7.wav", "--checkpoint", tmp_path / "run" / "model", "-o", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_probe_with_cls_pooling_has_the_inputs_of_a_classifier(start, clips):
    model = load_model(start)
    torch.manual_seed(0)
    head = Classifier(model.encoder.config, ClassifierConfig(num_classes=2, pooling="cls")).eval()
    head.encoder.load_state_dict(model.encoder.state_dict())
    wave = decode(clips[0])[:15_600]  # 96 frames: whole patches
    features = model.features(wave)[None]
    lengths = torch.tensor([features.shape[1]])
    (vector,) = EncoderModel(model, VectorOptions(poolings=("cls",))).vectors([wave])["final.cls"]
    with torch.no_grad():
        tokens = head.encoder(features, lengths)
        np.testing.assert_allclose(vector, head.pool(tokens, lengths)[0], atol=1e-4)
    assert head.encoder.num_prefix_tokens == 2
    assert np.abs(vector - tokens[0, 0].numpy()).max() > 1e-3


def test_a_stride_that_skips_frames_is_refused(start):
    if load_encoder(start).config.patch_size == (128, 2):
        with pytest.raises(ConfigError, match=r"leaves gaps between patches of 128 mel bins x 2 frames"):
            load_encoder(start, patch_stride=10)
    else:
        assert load_encoder(start, patch_stride=10).config.patch_stride == (10, 10)
