"""Learning rates against the original's loop, written out, and torch's own schedulers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from ssamba.training import OFFICIAL_SCHEDULE, ScheduleSettings
from ssamba.training.optim import Schedule


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
        # Torch lets rates below 1e-8 stand.
        if optimizer.param_groups[0]["lr"] > 1e-7:
            assert schedule.factor(0, 0, None) == optimizer.param_groups[0]["lr"]


def test_cosine_starts_full_after_warm_up_and_ends_at_the_floor():
    found = rates(Schedule(ScheduleSettings(warmup_steps=10, floor=0.1)), 110)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == 1.0
    assert found[60] == pytest.approx(0.55)
    assert found[-1] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))
    assert all(a >= b for a, b in pairwise(found[9:]))


def test_wsd_is_flat_then_falls():
    found = rates(Schedule(ScheduleSettings(kind="wsd", warmup_steps=0, decay_share=0.25)), 100)
    assert found[:76] == [1.0] * 76
    assert found[88] == pytest.approx(0.48)
    assert found[-1] == pytest.approx(0.04)


def test_a_time_budget_moves_the_cosine():
    schedule = Schedule(ScheduleSettings(warmup_steps=2))
    assert [schedule.factor(100, 0, None, share) for share in (0.0, 0.5, 1.0, 1.3)] == pytest.approx([1, 0.5, 0, 0])
    assert schedule.factor(0, 0, None, 0.0) == 0.5
    # With both, whichever ends first rules.
    assert schedule.factor(12, 0, 102, 0.5) == pytest.approx(0.5)
    assert schedule.factor(102, 0, 102, 0.5) == pytest.approx(0.0)


def test_a_schedule_goes_on_from_its_state():
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
