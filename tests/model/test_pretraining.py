import pytest
import torch

from ssamba.config import PretrainingConfig
from ssamba.errors import ConfigError
from ssamba.model import PretrainingModel, encoder_config
from ssamba.model.masking import draw_mask
from ssamba.model.pretraining import patch_subset

SMALL = {
    "embed_dim": 32,
    "depth": 2,
    "num_mel_bins": 32,
    "num_frames": 128,
    "patch_size": (16, 8),
    "patch_stride": (16, 8),
}


def model_and_batch(pretraining, **overrides):
    torch.manual_seed(0)
    config = encoder_config("tiny", "ssamba2", **{**SMALL, **overrides})
    model = PretrainingModel(config, PretrainingConfig.parse(pretraining, "test")).eval()
    features = torch.randn(3, 128, 32)
    lengths = torch.tensor([128, 40, 64])
    mask = draw_mask(torch.tensor([5, 6, 7]), config, lengths // 8, 16, ratio=0.6)
    return model, features, lengths, mask


OURS = {"encode": "visible", "decoder_depth": 1, "clip_dim": 8, "teacher": True, "statistics": True}
OWN = [
    {"name": "own", "reads": "visible", "outputs": 3, "hidden": 6},
    {"name": "other", "reads": "clip", "outputs": 3},
]
BOTH = pytest.mark.parametrize(
    "pretraining", [{"units": 5, "heads": OWN}, {**OURS, "profile": 3, "texture": True, "units": 5}]
)


@BOTH
@pytest.mark.parametrize("patch_order", ["time_major", "frequency_major"])
def test_batch_equals_single_clips_and_ignores_padding(pretraining, patch_order):
    model, features, lengths, mask = model_and_batch(pretraining, patch_order=patch_order)
    step = torch.arange(128)
    features[step.expand(3, -1) >= lengths[:, None]] = torch.nan
    with torch.no_grad():
        together = model(features, mask, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = model(features[i : i + 1, :length], mask[i : i + 1, : length // 8 * 2])
            count = int(together.masked.valid[i].sum())
            assert count == round(0.6 * (length // 8 * 2))
            seen = alone.visible_tokens.shape[1]
            assert together.visible.valid[i].sum() == seen == length // 8 * 2 - count
            for name in ("tokens", "values", "clip"):
                theirs = getattr(together, name)[i]
                theirs = theirs if name == "clip" else theirs[:count]
                torch.testing.assert_close(theirs, getattr(alone, name)[0], atol=1e-5, rtol=1e-5)
            for head in model.heads:
                theirs = together.heads[head.name][i]
                theirs = theirs if head.reads == "clip" else theirs[: count if head.reads == "masked" else seen]
                torch.testing.assert_close(theirs, alone.heads[head.name][0], atol=1e-5, rtol=1e-5)


@BOTH
def test_masked_values_do_not_influence_predictions(pretraining):
    model, features, lengths, mask = model_and_batch(pretraining)
    hidden = mask.view(3, 16, 2)  # time-major: column, row
    changed = features.view(3, 16, 8, 2, 16) + 3.0 * hidden[:, :, None, :, None]
    with torch.no_grad():
        before, after = (model(x.reshape(3, 128, 32), mask, lengths) for x in (features, changed))
    valid = before.masked.valid
    torch.testing.assert_close(before.generative[valid], after.generative[valid])
    torch.testing.assert_close(before.heads["hidden_units"][valid], after.heads["hidden_units"][valid])
    assert not torch.allclose(before.values[valid], after.values[valid])


def test_targets_can_be_normalized_patch_by_patch():
    model, features, lengths, mask = model_and_batch({"normalize_targets": True})
    out = model(features, mask, lengths)
    values = out.values[out.masked.valid]
    torch.testing.assert_close(values.mean(-1), torch.zeros(len(values)), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.var(-1), torch.ones(len(values)), atol=1e-3, rtol=0)


@BOTH
def test_every_parameter_gets_a_gradient(pretraining):
    model, features, lengths, mask = model_and_batch(pretraining)
    out = model(features, mask, lengths)
    sum(x.square().mean() for x in out.heads.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_patch_subset_is_in_ascending_order():
    mask = torch.tensor([[True, False, True, False], [False, False, False, True]])
    indices, valid = patch_subset(mask)
    assert indices[0].tolist() == [0, 2]
    assert indices[1, 0] == 3
    assert valid.tolist() == [[True, True], [True, False]]


def test_invalid_mask_or_configuration_raises():
    model, features, lengths, mask = model_and_batch({})
    with pytest.raises(ValueError, match=r"mask must be \(3, 32\) bool"):
        model(features, mask[:, :5], lengths)
    with pytest.raises(ConfigError, match="contradict"):
        PretrainingConfig.parse({"encode": "visible"}, "test")
    with pytest.raises(ConfigError, match="two heads have the same name: own, own"):
        PretrainingConfig.parse({"heads": [OWN[0], OWN[0]]}, "test")
