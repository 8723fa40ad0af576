"""The learning rate over a run, as a multiple of the full one.

    factor(step) = warm-up(step) * level * shape(share of the run that has gone)

`level` is the state: a plateau or an epoch shrinks it. With `warmup_every` the warm-up is the original's, which writes
the level itself every so many steps, over whatever a plateau or an epoch had made of it until then:

    level = step / warmup_steps    for step = 0, every, 2 every, ..., warmup_steps

so that its first `every` steps have a rate of zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ssamba.training.settings import ScheduleSettings


class Schedule:
    """Asked once before each step, told each validation."""

    def __init__(self, settings: ScheduleSettings, better: Literal["min", "max"] = "max"):
        self.settings = settings
        self.better = better
        self.level = 1.0
        self._epoch = 0
        self.stale = 0
        """Validations since the best one."""
        self._top: float | None = None
        self._best: float | None = None
        self._worse = 0

    def factor(self, step: int, epoch: int, total_steps: int | None, share: float = 0.0) -> float:
        """The multiple for a step.

        Args:
            step: steps done.
            epoch: epochs done.
            total_steps: of the run, None if only a time budget ends it.
            share: of the time budget that has gone, 0 if there is none.
        """
        settings = self.settings
        self._enter(epoch)
        if settings.warmup_every and step <= settings.warmup_steps and step % settings.warmup_every == 0:
            self.level = step / settings.warmup_steps if settings.warmup_steps else 1.0
        warmup = 1.0
        if not settings.warmup_every and step < settings.warmup_steps:
            warmup = (step + 1) / settings.warmup_steps
        if total_steps is not None:
            after_warmup = max(1, total_steps - settings.warmup_steps)
            share = max(share, (step - settings.warmup_steps) / after_warmup)
        return warmup * self.level * self._shape(min(1.0, max(0.0, share)))

    def validated(self, value: float, step: int | None = None) -> None:
        """Take a validation's best metric into account (torch's ReduceLROnPlateau with a relative threshold).

        After so many steps: patience begins when the warm-up is over, since rates near zero say nothing of the run. A
        validation without a value (there are no such clips) judges nothing and tries nobody's patience.
        """
        if value != value:
            return
        settings = self.settings
        is_warm = step is None or step >= settings.warmup_steps
        is_top = self._top is None or (value > self._top if self.better == "max" else value < self._top)
        self._top, self.stale = (value, 0) if is_top else (self._top, self.stale + is_warm)
        if settings.kind != "plateau":
            return
        threshold = settings.plateau_threshold
        improved = self._best is None or (
            value > self._best * (1 + threshold) if self.better == "max" else value < self._best * (1 - threshold)
        )
        if improved:
            self._best, self._worse = value, 0
            return
        self._worse += 1
        if self._worse > settings.plateau_patience:
            self.level = max(self.level * settings.plateau_factor, min(self.level, settings.floor))
            self._worse = 0

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {
            "level": self.level,
            "epoch": self._epoch,
            "best": self._best,
            "worse": self._worse,
            "top": self._top,
            "stale": self.stale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.level, self._epoch = state["level"], state["epoch"]
        self._best, self._worse = state["best"], state["worse"]
        self._top, self.stale = state["top"], state["stale"]

    def _enter(self, epoch: int) -> None:
        settings = self.settings
        while self._epoch < epoch:
            self._epoch += 1
            since = self._epoch - settings.decay_start
            if settings.kind == "epochs" and since >= 0 and since % settings.decay_every == 0:
                self.level *= settings.decay_factor

    def _shape(self, share: float) -> float:
        floor = self.settings.floor
        if self.settings.kind == "cosine":
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
        if self.settings.kind == "wsd":
            return floor + (1 - floor) * min(1.0, (1 - share) / self.settings.decay_share)
        return 1.0
