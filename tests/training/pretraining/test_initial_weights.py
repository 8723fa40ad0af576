"""Pretraining that starts from the weights of a checkpoint."""

import pytest
import torch

from ssamba.checkpoint import load_checkpoint, save_checkpoint
from ssamba.config import FrontEndConfig, ModelConfig, PretrainingConfig
from ssamba.errors import ConfigError
from ssamba.model import PretrainingModel, encoder_config
from ssamba.training.pretraining.task import load_initial_weights

FRONT_END = FrontEndConfig()


def model(pretraining, **overrides):
    config = encoder_config("tiny", "ssamba2", **{"embed_dim": 24, "depth": 2, **overrides})
    return PretrainingModel(config, PretrainingConfig.parse(pretraining, "test"))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    started = model({"units": 5, "statistics": True})
    config = ModelConfig(kind="pretraining", encoder=started.encoder.config, pretraining=started.pretraining)
    save_checkpoint(tmp_path / "model", started, config, FRONT_END)
    return started, load_checkpoint(tmp_path / "model")


def test_encoder_and_matching_heads_are_copied_and_the_others_are_named(saved):
    theirs, source = saved
    ours = model({"units": 7, "statistics": True, "profile": 2})
    fresh = load_initial_weights(ours, source, FRONT_END)
    assert {name.split(".")[0] for name in fresh} == {"seen_units_head", "hidden_units_head", "profile_head"}
    expected = theirs.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in ours.state_dict().items() if k not in fresh)


def test_another_encoder_or_front_end_is_refused_with_what_differs(saved):
    with pytest.raises(ConfigError, match=r"another encoder: depth 2 \(here 4\)"):
        load_initial_weights(model({}, depth=4), saved[1], FRONT_END)
    with pytest.raises(ConfigError, match=r"another front end: low_hz"):
        load_initial_weights(model({}), saved[1], FrontEndConfig(low_hz=50.0))
    transformer = PretrainingModel(encoder_config("tiny", "ssast", depth=1))
    with pytest.raises(ConfigError, match="EncoderConfig, not a SSASTConfig"):
        load_initial_weights(transformer, saved[1], FRONT_END)
