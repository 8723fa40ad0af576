"""The SSAST encoder: equal to the official model and to plain oracles; padding, layers, compilation, precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ssamba.checkpoint import load_checkpoint, load_encoder
from ssamba.config import ClassifierConfig, PretrainingConfig
from ssamba.errors import ConfigError
from ssamba.model import (
    Classifier,
    PretrainingModel,
    SSASTEncoder,
    create_encoder,
    encoder_config,
    info_nce,
    reconstruction_error,
)

EXPECTED = "ssast_official_dim24_depth2/expected.safetensors"
SETTINGS = {"same": None, "overlap10": 10, "longer": None, "shorter": None}
SMALL = {"embed_dim": 24, "depth": 3}


def small(variant="ssast", **overrides):
    torch.manual_seed(0)
    return create_encoder("tiny", variant, **{**SMALL, **overrides}).eval()


@pytest.mark.parametrize("attention", ["fused", "unfused"])
@pytest.mark.parametrize(("name", "stride"), SETTINGS.items())
def test_tokens_and_positions_match_the_official_model(golden, ssast_pth, name, stride, attention):
    expected = golden(EXPECTED)
    loaded = load_encoder(ssast_pth, patch_stride=stride)
    encoder = SSASTEncoder(loaded.config.with_changes(attention=attention)).eval()
    encoder.load_state_dict(loaded.state_dict())
    features = expected[f"{name}.input"]
    with torch.no_grad():
        tokens = encoder(features)
        positions = encoder.positions(None, encoder.config.columns(features.shape[1]))
    torch.testing.assert_close(tokens, expected[f"{name}.tokens"], atol=1e-4, rtol=0)
    torch.testing.assert_close(positions, expected[f"{name}.pos_embed"][:, 2:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(("name", "stride"), SETTINGS.items())
def test_logits_match_the_official_classifier(golden, ssast_pth, name, stride, pooling):
    expected = golden(EXPECTED)
    encoder = load_encoder(ssast_pth, patch_stride=stride)
    classifier = Classifier(encoder.config, ClassifierConfig(num_classes=5, pooling=pooling)).eval()
    classifier.encoder.load_state_dict(encoder.state_dict())
    for part in ("norm", "linear"):
        head = {key: expected[f"{name}.head.{part}.{key}"] for key in ("weight", "bias")}
        getattr(classifier, part).load_state_dict(head)
    with torch.no_grad():
        logits = classifier(expected[f"{name}.input"])
    theirs = expected[f"{name}.logits_{'avgtok' if pooling == 'mean' else 'cls'}"]
    torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=0)


def test_losses_and_accuracy_match_the_official_model(golden, ssast_pth):
    expected = golden(EXPECTED)
    model = load_checkpoint(ssast_pth).model
    assert isinstance(model, PretrainingModel)
    mask = torch.zeros(2, 64, dtype=torch.bool).scatter_(1, expected["mask_index"], True)
    with torch.no_grad():
        out = model(expected["input"], mask)
    contrast = info_nce(out.discriminative, out.values, out.masked.valid)
    error = reconstruction_error(out.generative, out.values, out.masked.valid)
    ours = (contrast.loss, contrast.accuracy, error)
    for value, name in zip(ours, ("infonce", "accuracy", "mse"), strict=True):
        torch.testing.assert_close(value, expected[f"pretrain_{name}"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 6), ("small", 23), ("base", 89)])
def test_sizes_have_the_published_number_of_parameters(size, millions):
    with torch.device("meta"):
        model = PretrainingModel(encoder_config(size, "ssast"))
    vision_heads = 2 * 1000 * (model.encoder.config.embed_dim + 1)
    total = sum(p.numel() for p in model.parameters()) + vision_heads
    assert round(total / 1e6) == millions


@pytest.mark.parametrize("attention", ["fused", "unfused"])
def test_a_block_equals_torchs_own_transformer_layer(attention):
    block = small(attention=attention).blocks[0]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = nn.TransformerEncoderLayer(
        24, 3, 96, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {"in_proj_weight": "attention.qkv.weight", "in_proj_bias": "attention.qkv.bias"}
    names |= {f"out_proj.{what}": f"attention.proj.{what}" for what in ("weight", "bias")}
    names = {f"self_attn.{name}": ours for name, ours in names.items()}
    names |= {f"linear{i + 1}.{what}": f"mlp.{2 * i}.{what}" for i in (0, 1) for what in ("weight", "bias")}
    ours = block.state_dict()
    theirs.load_state_dict({name: ours[names.get(name, name)] for name in theirs.state_dict()})
    x = torch.randn(2, 7, 24)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    torch.testing.assert_close(block(x, None), theirs(x), atol=1e-5, rtol=0)
    padded = block(x, valid[:, None, None])
    torch.testing.assert_close(padded[valid], theirs(x, src_key_padding_mask=~valid)[valid], atol=1e-5, rtol=0)


def test_the_frame_model_projects_pairs_of_frames():
    encoder = small("ssast_frame", num_frames=64)
    features = torch.randn(2, 64, 128)
    assert encoder.config.grid == (1, 32)
    with torch.no_grad():
        entering = encoder(features, layer=0)
    weight = encoder.patch_embed.proj.weight[:, 0]  # (D, 128, 2)
    pairs = features.reshape(2, 32, 2, 128)
    expected = torch.einsum("bktm,dmt->bkd", pairs, weight) + encoder.patch_embed.proj.bias
    expected = expected + encoder.position_embed[:, 2:]
    torch.testing.assert_close(entering[:, 2:], expected, atol=1e-5, rtol=0)
    prefix = torch.cat((encoder.cls_token, encoder.dist_token), dim=1) + encoder.position_embed[:, :2]
    torch.testing.assert_close(entering[:, :2], prefix.expand(2, -1, -1))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("variant", ["ssast", "ssast_frame"])
@pytest.mark.parametrize("distilled", [True, False])
def test_every_released_model_can_be_created(size, variant, distilled):
    encoder = create_encoder(size, variant, depth=1, distillation_token=distilled)
    prefix = 2 if distilled else 1
    assert encoder.num_prefix_tokens == prefix
    assert encoder(torch.randn(1, 32, 128)).shape == (1, prefix + 16, {"tiny": 192, "small": 384, "base": 768}[size])


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        ("ssast", {}),
        ("ssast", {"attention": "unfused"}),
        ("ssast", {"patch_order": "time_major", "patch_stride": (10, 10), "position_grid": (8, 64)}),
        ("ssast", {"distillation_token": False}),
        ("ssast_frame", {"patch_stride": (128, 1)}),
    ],
)
def test_padded_batch_equals_single_clips(variant, overrides):
    encoder = small(variant, **overrides)
    clips = [torch.randn(1, frames, 128) for frames in (16, 47, 200, 319)]
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    padded = torch.full((4, 320, 128), float("nan"))
    for row, clip in zip(padded, clips, strict=True):
        row[: clip.shape[1]] = clip[0]
    for layer in (None, 0, 2):
        with torch.no_grad():
            batched = encoder(padded, lengths, layer=layer)
            for row, clip in zip(batched, clips, strict=True):
                alone = encoder(clip, layer=layer)[0]
                torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=0)
                assert (row[len(alone) :] == 0).all()
    encoder(padded, lengths).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize(("lengths", "masked"), [(None, False), ((64, 70), False), ((64, 40), True)])
def test_batches_without_padding_have_no_attention_mask(monkeypatch, lengths, masked):
    encoder, masks = small(), []
    attend = nn.functional.scaled_dot_product_attention

    def recording(*args, attn_mask=None, **options):
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", recording)
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # refuses to run anything slower
        tokens = encoder(torch.randn(2, 70, 128), None if lengths is None else torch.tensor(lengths))
    assert tokens.shape == (2, 2 + 8 * 4, 24)
    assert [mask is not None for mask in masks] == [masked] * 3


def test_hidden_states_are_consistent_with_the_output():
    encoder = small()
    features = torch.randn(1, 64, 128)
    with torch.no_grad():
        last = encoder(features, layer=3)
        torch.testing.assert_close(encoder.norm(last), encoder(features))
        assert torch.equal(encoder(features, layer=-1), last)
        torch.testing.assert_close(encoder.blocks[0](encoder(features, layer=0), None), encoder(features, layer=1))
    for layer in (4, -5):
        with pytest.raises(ValueError, match="between 0"):
            encoder(features, layer=layer)


def test_drop_path_acts_in_training_only():
    encoder = small(drop_path=0.5)
    features = torch.randn(4, 64, 128)
    with torch.no_grad():
        calm = encoder(features)
        assert torch.equal(calm, encoder(features))
        encoder.train()
        assert not torch.equal(calm, encoder(features))
    assert [block.drop_path.rate for block in encoder.blocks] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize("lengths", [None, torch.tensor([64, 40])])
def test_compiles_and_exports_without_graph_breaks(lengths):
    encoder = small()
    features = torch.randn(2, 64, 128)
    inputs = (features,) if lengths is None else (features, lengths)
    with torch.no_grad():
        expected = encoder(*inputs)
        compiled = torch.compile(encoder, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*inputs), expected)
        dynamic = {1: torch.export.Dim.DYNAMIC}
        shapes = (dynamic,) if lengths is None else (dynamic, None)
        exported = torch.export.export(encoder, inputs, dynamic_shapes=shapes).module()
        torch.testing.assert_close(exported(*inputs), expected)
        longer = (torch.randn(2, 96, 128), *inputs[1:])
        torch.testing.assert_close(exported(*longer), encoder(*longer), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["fused", "unfused"])
def test_half_precision_is_close_to_float32(dtype, attention):
    encoder = small(attention=attention)
    features = torch.randn(2, 64, 128)
    lengths = torch.tensor([64, 40])
    expected = encoder(features, lengths)
    with torch.autocast("cpu", dtype):
        tokens = encoder(features, lengths)
    tokens.float().square().mean().backward()
    # Two roundings of each block's sums on a stream of unit variance, three blocks, and a floor.
    assert (tokens.float() - expected).abs().max() <= 12 * torch.finfo(dtype).eps * expected.abs().max()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("encode", ["all", "visible"])
def test_pretraining_gives_finite_gradients_for_every_encode_setting(encode):
    torch.manual_seed(0)
    pretraining = PretrainingConfig(encode=encode, decoder_depth=2 if encode == "visible" else 0)
    model = PretrainingModel(encoder_config("tiny", "ssast", **SMALL), pretraining)
    features = torch.randn(2, 64, 128)
    mask = torch.zeros(2, 8, 4, dtype=torch.bool)
    mask[:, :, 1:3] = True
    mask = mask.flatten(1)
    out = model(features, mask)
    loss = info_nce(out.discriminative, out.values, out.masked.valid).loss
    loss = loss + 10 * reconstruction_error(out.generative, out.values, out.masked.valid)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    changed = features.clone()
    changed[:, 16:48] += 1.0  # the masked columns
    torch.testing.assert_close(model(changed, mask).tokens, out.tokens)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_head": 3}, "did you mean 'num_heads'"),
        ({"num_heads": 5}, "not a multiple"),
        ({"block_layout": "paired"}, "unknown key 'block_layout'"),
        ({"attention": "flash"}, "'fused' or 'unfused'"),
    ],
)
def test_invalid_configurations_raise_with_the_key(overrides, message):
    with pytest.raises(ConfigError, match=message):
        create_encoder("tiny", "ssast", **overrides)
