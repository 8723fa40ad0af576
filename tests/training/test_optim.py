"""Parameter groups: what decays, what learns faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssamba.config import ClassifierConfig
from ssamba.errors import ConfigError
from ssamba.model.create import encoder_config
from ssamba.model.heads import Classifier
from ssamba.model.pretraining import PretrainingModel
from ssamba.training import OptimizerSettings
from ssamba.training.optim import build_optimizer, parameter_groups, set_learning_rate

CONFIG = encoder_config("tiny", embed_dim=24, depth=4, num_frames=64)


def test_only_matrices_decay():
    groups = parameter_groups(PretrainingModel(CONFIG), OptimizerSettings(weight_decay=0.1))
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    spared = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    kinds = {name.rpartition(".")[2] for name in spared}
    assert {"A_log", "D", "bias", "conv_bias", "cls_token", "position_embed", "mask_token"} <= kinds
    assert not {name for name in decayed if "norm" in name or name.endswith("bias")}
    assert {"encoder.blocks.0.mixer.in_proj.weight", "generative_head.0.weight"} <= decayed
    assert {"encoder.norm.weight", "encoder.blocks.3.norm.weight"} <= spared
    assert decayed | spared == {name for name, _ in PretrainingModel(CONFIG).named_parameters()}


def test_the_original_decays_everything():
    (group,) = parameter_groups(PretrainingModel(CONFIG), OptimizerSettings(decay_groups=False))
    assert group["weight_decay"] == 0.05


def test_head_and_layers_have_their_own_rates():
    model = Classifier(CONFIG, ClassifierConfig(num_classes=3))
    settings = OptimizerSettings(head_multiplier=3.0, layer_decay=0.5)
    groups = parameter_groups(model, settings)
    multiplier = {name: group["multiplier"] for group in groups for name in group["names"]}
    # Four blocks are two layers: what enters them is two and one below what stands above.
    assert multiplier["encoder.position_embed"] == 0.125
    assert multiplier["encoder.patch_embed.proj.weight"] == 0.125
    assert multiplier["encoder.blocks.0.mixer.in_proj.weight"] == multiplier["encoder.blocks.1.norm.bias"] == 0.25
    assert multiplier["encoder.blocks.3.mixer.in_proj.weight"] == 0.5
    assert multiplier["encoder.norm.weight"] == 1.0
    assert multiplier["linear.weight"] == multiplier["norm.bias"] == 3.0
    optimizer = build_optimizer(model, settings)
    set_learning_rate(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1 * m for m in multiplier.values()}
    bare = parameter_groups(model.encoder, OptimizerSettings(layer_decay=0.5))
    assert {group["multiplier"] for group in bare} == {0.125, 0.25, 0.5, 1.0}


def test_layers_decay_around_a_frozen_encoder():
    model = Classifier(CONFIG, ClassifierConfig(num_classes=3))
    model.encoder.requires_grad_(False)
    groups = parameter_groups(model, OptimizerSettings(head_multiplier=3.0, layer_decay=0.5))
    assert {name.split(".")[0] for group in groups for name in group["names"]} == {"linear", "norm"}
    assert {group["multiplier"] for group in groups} == {3.0}


def test_settings_that_single_out_nothing_are_refused():
    with pytest.raises(ConfigError, match="head_multiplier is 3"):
        build_optimizer(nn.Linear(2, 2), OptimizerSettings(head_multiplier=3))
    with pytest.raises(ConfigError, match="no `blocks`"):
        build_optimizer(nn.Linear(2, 2), OptimizerSettings(layer_decay=0.5))
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerSettings())


def test_adam_adds_decay_to_the_gradient_and_adamw_does_not():
    kinds = {name: type(build_optimizer(nn.Linear(2, 2), OptimizerSettings(name=name))) for name in ("adam", "adamw")}
    assert kinds == {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
