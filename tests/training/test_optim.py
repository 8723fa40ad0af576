"""The optimizer's parameter groups, and learning rates against the original's loop and torch's own schedulers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from ssamba.config import ClassifierConfig
from ssamba.errors import ConfigError
from ssamba.model.create import encoder_config
from ssamba.model.heads import Classifier
from ssamba.model.pretraining import PretrainingModel
from ssamba.training import OFFICIAL_SCHEDULE, OptimizerSettings, ScheduleSettings
from ssamba.training.optim import Schedule, build_optimizer, parameter_groups, set_learning_rate

CONFIG = encoder_config("tiny", embed_dim=24, depth=4, num_frames=64)


def test_only_matrices_decay():
    groups = parameter_groups(PretrainingModel(CONFIG), OptimizerSettings(weight_decay=0.1))
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    exempt = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    kinds = {name.rpartition(".")[2] for name in exempt}
    assert {"A_log", "D", "bias", "conv_bias", "cls_token", "position_embed", "mask_token"} <= kinds
    assert not {name for name in decayed if "norm" in name or name.endswith("bias")}
    assert {"encoder.blocks.0.mixer.in_proj.weight", "generative_head.0.weight"} <= decayed
    assert {"encoder.norm.weight", "encoder.blocks.3.norm.weight"} <= exempt
    assert decayed | exempt == {name for name, _ in PretrainingModel(CONFIG).named_parameters()}


def test_the_official_settings_decay_everything():
    (group,) = parameter_groups(PretrainingModel(CONFIG), OptimizerSettings(decay_groups=False))
    assert group["weight_decay"] == 0.05


def test_head_and_layers_have_their_own_rates():
    model = Classifier(CONFIG, ClassifierConfig(num_classes=3))
    settings = OptimizerSettings(head_multiplier=3.0, layer_decay=0.5)
    groups = parameter_groups(model, settings)
    multiplier = {name: group["multiplier"] for group in groups for name in group["names"]}
    # Four blocks are layers 1 and 2, positions and patches layer 0, the final norm layer 3.
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


def test_a_frozen_encoder_starts_later_and_is_not_decayed_before():
    model = Classifier(CONFIG, ClassifierConfig(num_classes=3))
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.1, head_multiplier=3.0, frozen_steps=2))
    model.encoder(torch.randn(1, 64, CONFIG.num_mel_bins)).mean().backward()
    before = {name: value.clone() for name, value in model.encoder.named_parameters()}
    for step in range(3):
        set_learning_rate(optimizer, 0.01, step)
        assert {group["lr"] for group in optimizer.param_groups} == ({0.0, 0.03} if step < 2 else {0.01, 0.03})
        optimizer.step()
        moved = any(not torch.equal(value, before[name]) for name, value in model.encoder.named_parameters())
        assert moved == (step == 2)


def test_settings_that_apply_to_no_parameter_are_refused():
    with pytest.raises(ConfigError, match="head_multiplier is 3"):
        build_optimizer(nn.Linear(2, 2), OptimizerSettings(head_multiplier=3))
    with pytest.raises(ConfigError, match="no `blocks`"):
        build_optimizer(nn.Linear(2, 2), OptimizerSettings(layer_decay=0.5))
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerSettings())


def test_adam_adds_decay_to_the_gradient_and_adamw_does_not():
    kinds = {name: type(build_optimizer(nn.Linear(2, 2), OptimizerSettings(name=name))) for name in ("adam", "adamw")}
    assert kinds == {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def rates(schedule: Schedule, steps: int, epoch_of=lambda step: 0):
    return [schedule.factor(step, epoch_of(step), steps) for step in range(steps)]


def test_the_official_warm_up_grows_every_fifty_steps_from_zero():
    found = rates(Schedule(OFFICIAL_SCHEDULE), 1200)
    assert found[:50] == [0.0] * 50
    assert found[50:100] == [0.05] * 50
    assert found[999] == 0.95
    assert found[1000:] == [1.0] * 200


@pytest.mark.parametrize(("steps_per_epoch", "start", "every", "decay"), [(34, 6, 1, 0.85), (833, 3, 2, 0.75)])
def test_official_fine_tuning_rates_are_those_of_its_loop(steps_per_epoch, start, every, decay):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=1.0)
    milestones = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(range(start, 1000, every)), gamma=decay)
    expected = []
    for step in range(steps_per_epoch * 40):
        if step <= 1000 and step % 50 == 0:
            optimizer.param_groups[0]["lr"] = step / 1000
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % steps_per_epoch == 0:
            milestones.step()
    settings = ScheduleSettings(
        kind="epochs", warmup_steps=1000, warmup_every=50, decay_start=start, decay_every=every, decay_factor=decay
    )
    found = rates(Schedule(settings), len(expected), lambda step: step // steps_per_epoch)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("better", ["min", "max"])
def test_the_plateau_is_torchs(better):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(60, generator=generator).cumsum(0).sin().tolist()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, better, factor=0.5, patience=2)
    schedule = Schedule(ScheduleSettings(kind="plateau", warmup_steps=0), better)
    for value in (abs(v) + 0.1 for v in values):
        plateau.step(value)
        schedule.validated(value)
        # torch does not change rates by less than 1e-8.
        if optimizer.param_groups[0]["lr"] > 1e-7:
            assert schedule.factor(0, 0, None) == optimizer.param_groups[0]["lr"]


def test_the_cosine_falls_from_the_full_rate_after_the_warm_up_to_the_floor():
    found = rates(Schedule(ScheduleSettings(warmup_steps=10, floor=0.1)), 110)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == 1.0
    assert found[60] == pytest.approx(0.55)
    assert found[-1] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))
    assert all(a >= b for a, b in pairwise(found[9:]))


def test_wsd_is_constant_and_then_falls():
    found = rates(Schedule(ScheduleSettings(kind="wsd", warmup_steps=0, decay_share=0.25)), 100)
    assert found[:76] == [1.0] * 76
    assert found[88] == pytest.approx(0.48)
    assert found[-1] == pytest.approx(0.04)


def test_the_cosine_follows_a_time_budget():
    schedule = Schedule(ScheduleSettings(warmup_steps=2))
    assert [schedule.factor(100, 0, None, share) for share in (0.0, 0.5, 1.0, 1.3)] == pytest.approx([1, 0.5, 0, 0])
    assert schedule.factor(0, 0, None, 0.0) == 0.5
    # With both, the one that ends first decides.
    assert schedule.factor(12, 0, 102, 0.5) == pytest.approx(0.5)
    assert schedule.factor(102, 0, 102, 0.5) == pytest.approx(0.0)


def test_a_schedule_resumes_from_its_state():
    settings = ScheduleSettings(kind="epochs", warmup_steps=0, decay_start=1, decay_every=1, decay_factor=0.5)
    one, other = Schedule(settings), Schedule(settings)
    rates(one, 30, lambda step: step // 10)
    other.load_state_dict(one.state_dict())
    assert one.factor(30, 3, 60) == other.factor(30, 3, 60) == 0.125


def test_patience_begins_when_the_warm_up_is_over():
    schedule = Schedule(ScheduleSettings(warmup_steps=10))
    stale = []
    for step in (4, 8, 10, 12):
        schedule.validated(0.5, step)
        stale.append(schedule.stale)
    assert stale == [0, 0, 1, 2]


@pytest.mark.parametrize(("error", "kept", "stale"), [(0.0, "yynnynn", 2), (0.1, "yyynyyn", 1)])
def test_the_state_to_keep_is_the_latest_within_the_error_of_the_best(error, kept, stale):
    for mode, sign in (("min", 1), ("max", -1)):
        schedule = Schedule(ScheduleSettings(warmup_steps=0), mode)
        values = (1.0, 0.5, 0.55, 0.7, 0.4, 0.45, 0.55)
        assert "".join("ny"[schedule.validated(sign * value, 1, error)] for value in values) == kept
        assert schedule.stale == stale
    assert not schedule.validated(math.nan, 1, error)
