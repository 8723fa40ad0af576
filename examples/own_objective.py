"""Pretrain with an objective of your own: VICReg in place of the contrastive loss between two views of a clip.

    python examples/own_objective.py                # recordings in demo/audio, two epochs, into build/vicreg
    python examples/own_objective.py sounds/

After Bardes et al., 2022, arXiv:2105.04906. Shapes: B clips, D channels of the projection.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F

import ssamba
from ssamba.config import BaseEncoderConfig

DEMO_AUDIO = Path(__file__).resolve().parent.parent / "demo" / "audio"


class VicReg(ssamba.Objective):
    """The two views of a clip agree, every channel varies over clips, and channels do not vary together."""

    name = "vicreg"

    def __init__(self, weight: float = 1.0, dim: int = 128, variance: float = 1.0, covariance: float = 0.04):
        super().__init__(weight)
        self.dim, self.variance, self.covariance = dim, variance, covariance

    def heads(self, encoder: BaseEncoderConfig) -> Sequence[ssamba.HeadConfig]:
        """Ask for a projection of the clip vector: two linear layers."""
        return [ssamba.HeadConfig(name="vicreg", reads="clip", outputs=self.dim, hidden=2 * encoder.embed_dim)]

    def loss(self, step: ssamba.ObjectiveStep) -> ssamba.ObjectiveLoss | None:
        """Return the loss of a batch; validation has one view of each clip and leaves it out."""
        if not step.training:
            return None
        views = step.head("vicreg").chunk(2)  # (B, D) each: the first views of all clips, then their second views
        spread = sum((1 - (view.var(0) + 1e-4).sqrt()).relu().mean() for view in views) / 2
        shared = sum(view.T.cov().fill_diagonal_(0).square().sum() for view in views) / self.dim
        loss = F.mse_loss(views[0], views[1]) + self.variance * spread + self.covariance * shared
        return ssamba.ObjectiveLoss(loss, {"vicreg_deviation": views[0].std(0).mean()})


def main(folders: Sequence[str | Path]) -> None:
    """Pretrain on folders of recordings with the laptop's recipe, which makes two views of each clip."""
    changes = {"objectives.clip": 0.0, "data.batch_s": 60.0}  # batches small enough for a few recordings
    print(ssamba.pretrain(folders, "build/vicreg", recipe="laptop", objectives=[VicReg()], set=changes, epochs=2))


if __name__ == "__main__":
    main(sys.argv[1:] or [DEMO_AUDIO])
