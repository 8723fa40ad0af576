"""Targets brought to mean 0 and variance 1 by what a run has seen of them.

Shapes: B clips, F values of a target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SHARE = 0.01  # of the newest batch in the running mean and variance, more at first


class RunningScale:
    """Running mean and variance over training batches, those of all processes."""

    def __init__(self, values: int):
        self.mean, self.variance = torch.zeros(values), torch.ones(values)
        self.seen = 0

    @torch.no_grad()
    def scaled(self, targets: Tensor, training: bool) -> Tensor:
        """(B, F) -> (B, F), standardized; while training, after the batch has been taken into account.

        In company every process must call it, with no rows if it has none. A batch with values that are not finite is
        not taken into account.
        """
        self.mean, self.variance = self.mean.to(targets), self.variance.to(targets)
        if training:
            sums = torch.stack((targets.sum(0), targets.square().sum(0), torch.ones_like(targets).sum(0)))
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(sums)
            if not (sums[2] > 0).all() or not sums.isfinite().all():
                return (targets - self.mean) / (self.variance + 1e-4).sqrt()
            mean = sums[0] / sums[2]
            self.seen += 1
            share = max(1 / self.seen, _SHARE)
            self.mean.lerp_(mean, share)
            self.variance.lerp_((sums[1] / sums[2] - mean.square()).clamp(min=0), share)
        return (targets - self.mean) / (self.variance + 1e-4).sqrt()

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {"mean": self.mean, "variance": self.variance, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.mean, self.variance, self.seen = state["mean"], state["variance"], int(state["seen"])
