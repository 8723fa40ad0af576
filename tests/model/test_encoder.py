"""The SSAMBA encoder: equal to the official model; padding, layers, variants and compilation."""

from __future__ import annotations

import pytest
import torch

from ssamba.checkpoint import load_checkpoint, load_encoder
from ssamba.checkpoint.official import our_name
from ssamba.config import ClassifierConfig
from ssamba.errors import ConfigError
from ssamba.model import Classifier, PretrainingModel, create_encoder, encoder_config, info_nce, reconstruction_error

EXPECTED = "ssamba_official_dim32_depth4/expected.safetensors"
SETTINGS = {"same": None, "overlap10": 10, "longer": None, "shorter": None}


@pytest.mark.parametrize(("name", "stride"), SETTINGS.items())
def test_tokens_and_positions_match_the_official_model(golden, ssamba_pth, name, stride):
    expected = golden(EXPECTED)
    encoder = load_encoder(ssamba_pth, patch_stride=stride)
    features = expected[f"{name}.input"]
    with torch.no_grad():
        tokens = encoder(features)
        positions = encoder.positions(None, encoder.config.columns(features.shape[1]))
    torch.testing.assert_close(tokens, expected[f"{name}.tokens"], atol=1e-4, rtol=0)
    torch.testing.assert_close(positions, expected[f"{name}.pos_embed"][:, 1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(("name", "stride"), SETTINGS.items())
def test_logits_match_the_official_classifier(golden, ssamba_pth, name, stride, pooling):
    expected = golden(EXPECTED)
    encoder = load_encoder(ssamba_pth, patch_stride=stride)
    classifier = Classifier(encoder.config, ClassifierConfig(num_classes=5, pooling=pooling)).eval()
    classifier.encoder.load_state_dict(encoder.state_dict())
    for part in ("norm", "linear"):
        head = {key: expected[f"{name}.head.{part}.{key}"] for key in ("weight", "bias")}
        getattr(classifier, part).load_state_dict(head)
    with torch.no_grad():
        logits = classifier(expected[f"{name}.input"])
    theirs = expected[f"{name}.logits_{'avgtok' if pooling == 'mean' else 'cls'}"]
    torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("objective", ["mpc", "mpg"])
def test_losses_accuracy_and_gradients_match_the_official_model(golden, ssamba_pth, objective):
    expected = golden(EXPECTED)
    model = load_checkpoint(ssamba_pth).model
    assert isinstance(model, PretrainingModel)
    mask = torch.zeros(2, 64, dtype=torch.bool).scatter(1, expected["mask_index"], True)
    out = model(expected["input"], mask)
    if objective == "mpc":
        loss, accuracy = info_nce(out.discriminative, out.values, out.masked.valid)
        torch.testing.assert_close(loss, expected["pretrain_infonce"][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(accuracy, expected["pretrain_accuracy"][0], atol=1e-5, rtol=0)
    else:
        loss = reconstruction_error(out.generative, out.values, out.masked.valid)
        torch.testing.assert_close(loss, expected["pretrain_mse"][0], atol=1e-5, rtol=0)
    loss.backward()
    parameters = dict(model.named_parameters())
    compared = 0
    for name, theirs in expected.items():
        if name.startswith(f"grad.{objective}."):
            ours = parameters[our_name(name.removeprefix(f"grad.{objective}."))].grad
            difference = (ours - theirs.reshape(ours.shape)).abs().max() / theirs.abs().max()
            assert difference <= 1e-4, (name, difference)
            compared += 1
    assert compared >= 10


@pytest.mark.parametrize(("size", "millions"), [("tiny", 7.29), ("small", 26.2), ("base", 99.0)])
def test_sizes_have_the_released_number_of_parameters(size, millions):
    with torch.device("meta"):
        model = PretrainingModel(encoder_config(size))
    width = model.encoder.config.embed_dim
    vision_head = 1000 * width + 1000
    input_size = 2
    total = sum(p.numel() for p in model.parameters()) + vision_head + input_size
    assert float(f"{total / 1e6:.3g}") == millions


@pytest.mark.parametrize("order", ["frequency_major", "time_major"])
@pytest.mark.parametrize("stride", [(16, 16), (10, 10), (16, 8)])
def test_padded_batch_equals_single_clips(make_encoder, order, stride):
    encoder = make_encoder(patch_order=order, patch_stride=stride, position_grid=(8, 64))
    torch.manual_seed(0)
    clips = [torch.randn(1, frames, 128) for frames in (16, 47, 200, 319)]
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    padded = torch.full((4, 320, 128), float("nan"))
    for row, clip in zip(padded, clips, strict=True):
        row[: clip.shape[1]] = clip[0]
    for layer in (None, 0, 1):
        with torch.no_grad():
            batched = encoder(padded, lengths, layer=layer)
            for row, clip in zip(batched, clips, strict=True):
                alone = encoder(clip, layer=layer)[0]
                torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=0)
                assert (row[len(alone) :] == 0).all()


def test_padding_gets_no_gradient(make_encoder):
    encoder = make_encoder()
    padded = torch.randn(2, 64, 128)
    padded[1, 32:] = float("nan")
    encoder(padded, torch.tensor([64, 32])).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_hidden_states_are_consistent_with_the_output(make_encoder):
    encoder = make_encoder()
    features = torch.randn(1, 64, 128)
    with torch.no_grad():
        last = encoder(features, layer=2)
        torch.testing.assert_close(encoder.norm(encoder.norm(last)), encoder(features))
        assert torch.equal(encoder(features, layer=-1), last)
        assert torch.equal(encoder(features, layer=-3), encoder(features, layer=0))
        first = encoder(features, layer=0)[:, 1:]
        patches = encoder.embed_patches(features)
        torch.testing.assert_close(first, patches.tokens + encoder.positions(None, patches.longest))
    for layer in (3, -4):
        with pytest.raises(ValueError, match="between 0"):
            encoder(features, layer=layer)


@pytest.mark.parametrize("layout", ["paired", "sequential"])
def test_hidden_states_of_one_pass_equal_single_layers(make_encoder, layout):
    encoder = make_encoder(block_layout=layout, pair_residual="mean")
    features, lengths = torch.randn(2, 64, 128), torch.tensor([64, 32])
    with torch.no_grad():
        states = encoder.hidden_states(encoder.embed_patches(features, lengths))
        layers = [*range(encoder.config.num_layers + 1), None]
        for state, layer in zip(states, layers, strict=True):
            assert torch.equal(state, encoder(features, lengths, layer=layer))


def test_second_block_of_a_pair_equals_the_original_with_flips(make_encoder):
    mixer = make_encoder().blocks[1].mixer
    x = torch.randn(2, 9, 32)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, reversed_time=True), mixer(x.flip(1)).flip(1))


@pytest.mark.parametrize(
    "overrides",
    [
        {"variant": "ssamba2"},
        {"block_layout": "sequential", "depth": 3},
        {"pair_residual": "mean"},
        {"final_norms": 1},
        {"state_size": 4, "expand": 1, "conv_kernel": 3, "delta_rank": 5},
        {"num_mel_bins": 64, "patch_size": (64, 2), "patch_stride": (64, 2)},
    ],
)
def test_every_flag_builds_a_model_that_runs_and_learns(make_encoder, overrides):
    encoder = make_encoder(**overrides)
    features = torch.randn(2, 50, encoder.config.num_mel_bins)
    tokens = encoder(features)
    assert tokens.shape == (2, 1 + encoder.config.rows * encoder.config.columns(50), 32)
    tokens.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_drop_path_acts_in_training_only(make_encoder):
    encoder = make_encoder(drop_path=0.5)
    features = torch.randn(4, 64, 128)
    with torch.no_grad():
        calm = encoder(features)
        assert torch.equal(calm, encoder(features))
        encoder.train()
        assert not torch.equal(calm, encoder(features))
    assert [round(block.drop_path.rate, 3) for block in encoder.blocks] == [0.0, 0.0, 0.167, 0.333]


def test_compiles_without_graph_breaks(make_encoder):
    encoder = make_encoder()
    features = torch.randn(2, 64, 128)
    lengths = torch.tensor([64, 40])
    with torch.no_grad():
        compiled = torch.compile(encoder, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(features, lengths), encoder(features, lengths))


@pytest.mark.parametrize(
    ("features", "lengths", "message"),
    [
        (torch.zeros(128, 128), None, "128 mel bins"),
        (torch.zeros(1, 128, 64), None, "128 mel bins"),
        (torch.zeros(1, 15, 128), None, "shorter than one patch"),
        (torch.zeros(2, 32, 128), torch.tensor([32, 15]), "shorter than one patch"),
        (torch.zeros(2, 32, 128), torch.tensor([32, 33]), "33"),
        (torch.zeros(2, 32, 128), torch.tensor([32]), "2 integers"),
        (torch.zeros(1, 32, 128, dtype=torch.int64), None, "floating point"),
    ],
)
def test_invalid_inputs_raise_with_the_expected_shape(make_encoder, features, lengths, message):
    with pytest.raises(ValueError, match=message):
        make_encoder()(features, lengths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "huge"}, "unknown size 'huge'"),
        ({"size": "tiny", "variant": "best"}, "unknown variant"),
        ({"size": "tiny", "patch_strides": 10}, "did you mean 'patch_stride'"),
        ({"size": "tiny", "depth": 3}, "even depth"),
    ],
)
def test_invalid_configurations_raise_with_the_key(arguments, message):
    with pytest.raises(ConfigError, match=message):
        create_encoder(**arguments)
