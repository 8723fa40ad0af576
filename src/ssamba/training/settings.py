"""How a training run is configured: the optimizer, the schedule of its learning rate, the run itself.

The defaults are the modern recipe; `OFFICIAL_OPTIMIZER` and `OFFICIAL_SCHEDULE` are what the original pretrains with
(its released code: AdamW, a warm-up in steps of 50, halving on a plateau). A step is one update of the weights.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ssamba.config import Config


class OptimizerSettings(Config):
    """How gradients change the weights."""

    name: Literal["adamw", "adam"] = "adamw"
    """`adamw` decouples weight decay; `adam` adds it to the gradient, as the original's fine-tuning does."""
    learning_rate: float = Field(5e-4, gt=0)
    """The full learning rate; the schedule multiplies it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running mean of gradients and of their squares."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the mean square."""
    weight_decay: float = Field(0.05, ge=0)
    """Pull toward zero."""
    decay_groups: bool = True
    """Decay only matrices: no norms, biases, A_log, D, tokens or positions. The original decays everything."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Gradients with a larger Euclidean norm are shrunk to it; None leaves them."""
    head_multiplier: float = Field(1.0, gt=0)
    """Learning rate of what stands on the encoder, as a multiple of the encoder's."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate of each encoder layer as a multiple of the layer's above it (BEiT, 2021, arXiv:2106.08254)."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerSettings:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self


class ScheduleSettings(Config):
    """The learning rate over the run, as a multiple of the full one: a warm-up times a shape."""

    kind: Literal["cosine", "plateau", "epochs", "constant", "wsd"] = "cosine"
    """`cosine` to the floor; `plateau` shrinks when validation stops improving; `epochs` shrinks every few epochs;
    `constant`; `wsd`: stable, then a linear decay to the floor at the end of the run."""
    warmup_steps: int = Field(1000, ge=0)
    """Steps of linear growth from zero."""
    warmup_every: int | None = Field(None, gt=0)
    """None grows at every step. A number sets the rate every so many steps only, from zero, and undoes what the shape
    did before: with 50 this is the original's warm-up."""
    floor: float = Field(0.0, ge=0, le=1)
    """What cosine and wsd end at, and plateau stops at."""
    decay_share: float = Field(0.2, gt=0, le=1)
    """wsd: share of the run that the decay takes."""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    """plateau: the multiplier."""
    plateau_patience: int = Field(2, ge=0)
    """plateau: validations without improvement that are let pass."""
    plateau_threshold: float = Field(1e-4, ge=0)
    """plateau: relative change that counts as improvement."""
    decay_start: int = Field(10, gt=0)
    """epochs: epochs at the full rate."""
    decay_every: int = Field(5, gt=0)
    """epochs: epochs between two decays."""
    decay_factor: float = Field(0.5, gt=0, le=1)
    """epochs: the multiplier."""


class RunSettings(Config):
    """How long, how precisely, and what is written when. At least one of steps, epochs and max_minutes is needed; with
    several, whichever comes first ends the run."""

    steps: int | None = Field(None, gt=0)
    """Steps of the whole run."""
    epochs: int | None = Field(None, gt=0)
    """Passes over the data."""
    max_minutes: float | None = Field(None, gt=0)
    """Budget of wall time over all sessions of the run; schedules then follow the share of it that has gone."""
    seed: int = Field(0, ge=0)
    """Everything random in a step follows from it and the step's number."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """`bf16` is autocast: weights and optimizer stay float32. `auto` is bf16 where the device computes it quickly."""
    accumulate: int = Field(1, gt=0)
    """Batches whose gradients make one step."""
    compile: bool = False
    """Run the model through torch.compile."""
    ema_decay: float | None = Field(0.999, gt=0, lt=1)
    """Decay of the running average of the weights, which is what is validated and released; None is off. Step t uses at
    most (1 + t) / (10 + t)."""
    average_epochs: tuple[int, int] | None = None
    """First and last epoch, counted from 1, after which the weights enter a plain mean, which is then released."""
    checkpoint_every_steps: int | None = Field(1000, gt=0)
    """Steps between two saved states; a new best validation and the end save too."""
    checkpoint_every_minutes: float | None = Field(10.0, gt=0)
    """Longest time between two saved states."""
    keep_last: int = Field(2, gt=0)
    """Saved states to keep, besides the one with the best validation."""
    validate_every: int | Literal["epoch"] | None = None
    """Steps between two validations, or "epoch"; None only validates at the end."""
    validate_first: bool = False
    """Also validate before the first step: what a run starts from may be the best that it sees."""
    patience: int | None = Field(None, gt=0)
    """Validations in a row without a new best one, those of the warm-up not counted, after which the run ends; None never
    ends it early."""
    log_every: int = Field(10, gt=0)
    """Steps between two lines of the log."""
    picture_every: int | None = Field(None, gt=0)
    """Steps between two sets of pictures."""
    tensorboard: bool = False
    """Write curves and pictures for TensorBoard."""
    wandb: str | None = None
    """Project at Weights & Biases to send curves to; None sends nothing."""
    bad_steps_limit: int = Field(10, gt=0)
    """Steps in a row with a loss or gradient that is not finite, after which the run stops; single ones are skipped."""
    find_unused_parameters: bool = False
    """Several processes: allow parameters that take no part in a step (slower)."""

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
"""The original's pretraining; its fine-tuning is `adam` with weight_decay 5e-7 and rates of the task."""

OFFICIAL_SCHEDULE = ScheduleSettings(
    kind="plateau", warmup_steps=1000, warmup_every=50, plateau_factor=0.5, plateau_patience=2
)
"""The original's pretraining, which validates every 4,000 steps."""

FREE_ON_RESUME = frozenset({"task.data.workers"}) | frozenset(
    f"run.{name}"
    for name in (
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
)
"""Settings that may change when a run is resumed: its length, what is written when, and how many processes decode."""
