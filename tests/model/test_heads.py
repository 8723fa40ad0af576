"""The classifier with several labels per clip: each label pools the tokens that cover its frames."""

import pytest
import torch
from einops import rearrange

from ssamba.checkpoint import Checkpoint, LoadReport
from ssamba.config import ClassifierConfig, EncoderConfig, ModelConfig
from ssamba.embedder import Embedder
from ssamba.errors import ConfigError
from ssamba.model.create import encoder_config
from ssamba.model.heads import Classifier, span_weights

SMALL = {"embed_dim": 24, "depth": 2}


def classifier(encoder, **fields):
    torch.manual_seed(0)
    return Classifier(encoder, ClassifierConfig(num_classes=3, **fields)).eval()


@pytest.mark.parametrize("stride", [(16, 16), (10, 10), (16, 20)])
def test_columns_are_weighted_by_frames_shared_with_the_label(stride):
    config = EncoderConfig(patch_stride=stride, **SMALL)
    weights = span_weights(range(20), config, 50)
    assert weights.shape[0] == -(-config.frames_spanned(20) // 50)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    for label, row in enumerate(weights):
        covered = [
            len(set(range(k * stride[1], k * stride[1] + 16)) & set(range(50 * label, 50 * label + 50)))
            for k in range(20)
        ]
        if sum(covered):
            torch.testing.assert_close(row, torch.tensor(covered) / sum(covered))


@pytest.mark.parametrize("variant", ["official", "ssamba2"])
def test_labels_pool_the_tokens_of_their_own_second(variant):
    """If each token holds the number of its second, pooling returns the numbers of the seconds."""
    config = encoder_config("tiny", variant, **SMALL)
    model = classifier(config, label_frames=100)
    columns = torch.tensor([config.columns(400), config.columns(272)])
    tokens = torch.zeros(2, 1 + config.rows * int(columns.max()), 24)
    for row, count in zip(tokens, columns.tolist(), strict=True):
        center = (torch.arange(count) * config.patch_stride[1] + config.patch_size[1] / 2) / 100
        grid = center[None, :, None].expand(config.rows, -1, 24)
        pattern = "r k d -> (k r) d" if variant == "ssamba2" else "r k d -> (r k) d"
        row[1 : 1 + config.rows * count] = rearrange(grid, pattern)
    pooled = model.pool_spans(tokens, 400, torch.tensor([400, 272]))
    torch.testing.assert_close(pooled[0, :, 0], torch.tensor([0.5, 1.5, 2.5, 3.5]), atol=0.05, rtol=0)
    torch.testing.assert_close(pooled[1, :2, 0], torch.tensor([0.5, 1.5]), atol=0.05, rtol=0)


def test_token_segments_split_the_whole_sequence_equally():
    config = encoder_config("tiny", **SMALL)
    model = classifier(config, label_frames=100, token_segments=60)
    tokens = torch.randn(2, 3073, 24)
    expected = torch.stack([tokens[:, 51 * i : 51 * (i + 1)].mean(1) for i in range(60)], 1)
    torch.testing.assert_close(model.pool_spans(tokens, 6144), expected)


def test_logits_per_second_equal_the_forward_pass(medley):
    """With one window the embedder returns the logits of the forward pass; with several, one row for each second."""
    config = encoder_config("tiny", "ssamba2", **SMALL, num_frames=1000)
    model = classifier(config, label_frames=100)
    made = Checkpoint(model, ModelConfig(kind="classifier", encoder=config, classifier=model.config),
                      Embedder(model.encoder).front_end, LoadReport("test", "classifier", 0))  # fmt: skip
    embedder = Embedder(made, device="cpu")
    wave = medley[: 5 * 16_000]
    ((_, told),) = embedder.logits_stream([(0, wave)])
    with torch.no_grad():
        features = embedder.features(wave)
        missing = -len(features) % config.patch_size[1]
        silent = torch.full((missing, 128), embedder.front_end.silent_feature)
        direct = model(torch.cat([features, silent])[None])[0]
    torch.testing.assert_close(told, direct[:5], atol=1e-5, rtol=1e-4)
    ((_, told),) = embedder.logits_stream([(0, medley)])
    assert told.shape == (-(-len(medley) // 16_000), 3)
    together = dict(embedder.logits_stream([(0, medley), (1, wave)], per_label=False))
    ((_, alone),) = embedder.logits_stream([(1, wave)], per_label=False)
    torch.testing.assert_close(together[1], alone, atol=1e-5, rtol=1e-4)


def test_contradictory_configurations_raise():
    with pytest.raises(ConfigError, match="set label_frames"):
        ClassifierConfig.parse({"num_classes": 2, "token_segments": 60}, "test")
    with pytest.raises(ConfigError, match="stands for the whole clip"):
        ClassifierConfig.parse({"num_classes": 2, "label_frames": 100, "pooling": "cls"}, "test")
