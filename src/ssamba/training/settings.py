"""Settings of a training run: the optimizer, the learning rate schedule, and the run itself.

The defaults are the modern recipe. `OFFICIAL_OPTIMIZER` and `OFFICIAL_SCHEDULE` are the original's pretraining (its
released code: AdamW, a warm-up in jumps of 50 steps, halving on a plateau). A step is one update of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ssamba.config import Config


class OptimizerSettings(Config):
    """How gradients change the weights."""

    name: Literal["adamw", "adam"] = "adamw"
    """`adamw` decouples weight decay; `adam` adds it to the gradient, as the original's fine-tuning does."""
    learning_rate: float = Field(5e-4, gt=0)
    """Full learning rate; the schedule multiplies it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running averages of gradients and of their squares."""
    eps: float = Field(1e-8, gt=0)
    """Term added to the root of the averaged square."""
    weight_decay: float = Field(0.05, ge=0)
    """Weight decay."""
    decay_groups: bool = True
    """Decay only weight matrices: no norms, biases, A_log, D, tokens or positions. The original decays everything."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest Euclidean norm of the gradient; larger ones are scaled down to it. None does not clip."""
    head_multiplier: float = Field(1.0, gt=0)
    """Learning rate outside the encoder, as a multiple of the encoder's."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate of each encoder layer, as a multiple of the one above it (BEiT, 2021, arXiv:2106.08254)."""
    frozen_steps: int | None = Field(None, gt=0)
    """Steps at the start in which the encoder stays as it is and only what is outside it learns; None means none."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerSettings:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self


class ScheduleSettings(Config):
    """The learning rate over the run, as a multiple of the full one: a warm-up times a shape."""

    kind: Literal["cosine", "plateau", "epochs", "constant", "wsd"] = "cosine"
    """`cosine` falls to the floor; `plateau` lowers the rate when validation stops improving; `epochs` lowers it every
    few epochs; `constant`; `wsd` (warm-up, stable, decay) falls linearly to the floor at the end of the run."""
    warmup_steps: int = Field(1000, ge=0)
    """Steps of linear growth from zero."""
    warmup_every: int | None = Field(None, gt=0)
    """Steps between two increases of the warm-up; None increases at every step. A number starts at a rate of zero and
    overwrites what plateaus and epochs did during the warm-up: 50 is the original's warm-up."""
    floor: float = Field(0.0, ge=0, le=1)
    """Final value of cosine and wsd, lowest value of plateau."""
    decay_share: float = Field(0.2, gt=0, le=1)
    """wsd: share of the run that the decay takes."""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    """plateau: factor of each decrease."""
    plateau_patience: int = Field(2, ge=0)
    """plateau: validations without improvement before a decrease."""
    plateau_threshold: float = Field(1e-4, ge=0)
    """plateau: smallest relative change that counts as improvement."""
    decay_start: int = Field(10, gt=0)
    """epochs: epochs at the full rate."""
    decay_every: int = Field(5, gt=0)
    """epochs: epochs between two decreases."""
    decay_factor: float = Field(0.5, gt=0, le=1)
    """epochs: factor of each decrease."""


class RunSettings(Config):
    """Length, precision, checkpoints and logs. At least one of steps, epochs and max_minutes is needed; the run ends
    when the first of them is reached."""

    steps: int | None = Field(None, gt=0)
    """Steps of the whole run."""
    epochs: int | None = Field(None, gt=0)
    """Passes over the data."""
    max_minutes: float | None = Field(None, gt=0)
    """Time budget in minutes, over all sessions of the run; schedules then follow its used share."""
    seed: int = Field(0, ge=0)
    """Seed of everything random; a step's randomness follows from it and the step's number."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """`bf16` is autocast: weights and optimizer stay float32. `auto` is bf16 on devices that compute it natively."""
    accumulate: int = Field(1, gt=0)
    """Batches whose gradients are accumulated for one step."""
    compile: bool = False
    """Compile the model by torch.compile."""
    ema_decay: float | None = Field(0.999, gt=0, lt=1)
    """Decay of the exponential moving average of the weights, which is validated and released; None disables it. Step t
    uses at most (1 + t) / (10 + t)."""
    average_epochs: tuple[int, int] | None = None
    """First and last epoch, counted from 1, after which the weights enter a plain mean, which is then released."""
    checkpoint_every_minutes: float | None = Field(1.0, gt=0)
    """Minutes between two saved states, and so the most that a killed run loses; the first state is saved after ten
    seconds. Where saving takes more than a twentieth of that time, states are saved as much less often. A new best
    validation and the end of the run are saved, too. None never saves by time."""
    checkpoint_every_steps: int | None = Field(None, gt=0)
    """Steps after which a state is saved, besides those saved by time."""
    keep_last: int = Field(2, gt=0)
    """Number of latest saved states to keep, besides the one with the best validation."""
    validate_every: int | Literal["epoch"] | None = None
    """Steps between two validations, or "epoch"; None validates only at the end."""
    validate_first: bool = False
    """Also validate before the first step: the initial weights may turn out to be the best."""
    patience: int | None = Field(None, gt=0)
    """Validations in a row without a new best one, not counting those of the warm-up, after which the run ends; None
    never ends it early."""
    log_every: int = Field(10, gt=0)
    """Steps between two lines of the log."""
    picture_every: int | None = Field(None, gt=0)
    """Steps between two sets of pictures; the first come with the first validation. None draws none."""
    tensorboard: bool = False
    """Write curves and pictures for TensorBoard."""
    wandb: str | None = None
    """Project at Weights & Biases that curves are sent to; None sends nothing."""
    bad_steps_limit: int = Field(10, gt=0)
    """Steps in a row with a non-finite loss or gradient after which the run stops; fewer are skipped."""
    find_unused_parameters: bool = False
    """DDP's option: allow parameters that take no part in a step (slower)."""

    @model_validator(mode="after")
    def _check(self) -> RunSettings:
        if self.steps is None and self.epochs is None and self.max_minutes is None:
            raise ValueError("a run needs a length: set steps, epochs or max_minutes")
        if isinstance(self.validate_every, int) and self.validate_every < 1:
            raise ValueError(f"validate_every must be at least 1, got {self.validate_every}")
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts validations: set validate_every")
        if self.average_epochs is not None and not 1 <= self.average_epochs[0] <= self.average_epochs[1]:
            raise ValueError(f"average_epochs must be (first, last) counted from 1, got {self.average_epochs}")
        return self


OFFICIAL_OPTIMIZER = OptimizerSettings(
    learning_rate=1e-4, betas=(0.95, 0.999), weight_decay=5e-8, decay_groups=False, clip_norm=None
)
"""The original's pretraining. Its fine-tuning uses `adam` with weight_decay 5e-7 and a learning rate for each task."""

OFFICIAL_SCHEDULE = ScheduleSettings(
    kind="plateau", warmup_steps=1000, warmup_every=50, plateau_factor=0.5, plateau_patience=2
)
"""The original's pretraining, which validates every 4,000 steps."""

_FREE_RUN_SETTINGS = (
    "steps",
    "epochs",
    "max_minutes",
    "patience",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "keep_last",
    "log_every",
    "picture_every",
    "tensorboard",
    "wandb",
    "bad_steps_limit",
)
_NAMES_OF_START = ("task.model.start", "task.start.checkpoint", "task.started_from_name")
_AFTER_TRAINING = ("task.finish.precision", "task.finish.refit")
FREE_ON_RESUME = frozenset(
    {"task.data.workers", *_AFTER_TRAINING, *_NAMES_OF_START, *(f"run.{name}" for name in _FREE_RUN_SETTINGS)}
)
"""Settings that may change when a run is resumed: its length, what is written when, the number of decoders, how the
initial model is named (its digest may not change), and what happens after a fine-tuning."""


def fill_in_defaults(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings of an earlier run with those that are new since then, and in `now`, at their defaults."""
    filled = dict(before)
    for key, value in now.items():
        default = defaults.get(key)
        if key not in before:
            filled |= {key: default} if key in defaults else {}
        elif isinstance(value, Mapping) and isinstance(before[key], Mapping):
            filled[key] = fill_in_defaults(before[key], value, default if isinstance(default, Mapping) else {})
    return filled


def saved_settings(
    optimizer: OptimizerSettings, schedule: ScheduleSettings, run: RunSettings, task: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a run as they are saved with its states and compared when it resumes."""
    return {
        "optimizer": optimizer.model_dump(mode="json"),
        "schedule": schedule.model_dump(mode="json"),
        "run": run.model_dump(mode="json"),
        "task": json.loads(json.dumps(dict(task))),
    }
