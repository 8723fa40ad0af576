"""Settings: unknown keys are refused by name, contradictions are explained."""

from __future__ import annotations

import pytest

from ssamba.errors import ConfigError
from ssamba.training import OFFICIAL_OPTIMIZER, OFFICIAL_SCHEDULE, OptimizerSettings, RunSettings, ScheduleSettings


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (OptimizerSettings, {"learning_rat": 1e-3}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        (ScheduleSettings, {"warmup": 3}, "unknown key 'warmup'"),
        (RunSettings, {"steps": 3, "ema": 0.9}, "unknown key 'ema'"),
        (RunSettings, {}, "set steps, epochs or max_minutes"),
        (RunSettings, {"steps": 1, "validate_every": 0}, "validate_every must be at least 1"),
        (RunSettings, {"steps": 1, "average_epochs": (3, 2)}, "average_epochs must be"),
        (OptimizerSettings, {"betas": (0.9, 1.0)}, "betas must lie in"),
    ],
)
def test_wrong_settings_are_refused_by_name(kind, values, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        kind.parse(values, "recipe.toml")


def test_the_official_recipe_is_the_published_one():
    assert (OFFICIAL_OPTIMIZER.name, OFFICIAL_OPTIMIZER.learning_rate) == ("adamw", 1e-4)
    assert (OFFICIAL_OPTIMIZER.betas, OFFICIAL_OPTIMIZER.weight_decay) == ((0.95, 0.999), 5e-8)
    assert not OFFICIAL_OPTIMIZER.decay_groups
    assert OFFICIAL_OPTIMIZER.clip_norm is None
    assert (OFFICIAL_SCHEDULE.kind, OFFICIAL_SCHEDULE.warmup_steps, OFFICIAL_SCHEDULE.warmup_every) == (
        "plateau",
        1000,
        50,
    )
