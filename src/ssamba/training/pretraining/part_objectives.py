"""Contrasts between thirds of a clip's sounding region, as the readout `parts` has them: of parts, and of voices.

Their heads are linear and read visible tokens, so that the mean of a head's outputs over the tokens of a third is the
head's output for the mean of these tokens.

Shapes: `views` of all clips (2 n: first views, then second views), A views on all ranks, L patch tokens, K columns, C
channels of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssamba.config import BaseEncoderConfig, HeadConfig
from ssamba.model.objectives import clip_contrast
from ssamba.model.patches import column_counts, order_tokens
from ssamba.model.readouts import step_levels, third_weights
from ssamba.training.pretraining.extensions import Objective, ObjectiveLoss, ObjectiveStep
from ssamba.training.pretraining.targets import gather_views, scale_gradient_to_rank


def thirds_of_tokens(step: ObjectiveStep) -> Tensor:
    """Return the weight of each patch token in each third of the sounding region (views, 3, L); zero in padding.

    The region is that of the clip before augmentation. A row sums to the rows of the patch grid.
    """
    inputs, config = step.inputs, step.encoder
    columns = column_counts(inputs.lengths, config)
    levels = step_levels(inputs.clean, config, step.front_end, inputs.frames)
    weights = third_weights(levels, columns)[:, :, None].expand(-1, -1, config.rows, -1)
    ordered = order_tokens(weights.permute(0, 2, 3, 1), config, columns).transpose(1, 2)
    position = torch.arange(ordered.shape[2], device=ordered.device)
    return torch.where((position < (columns * config.rows)[:, None])[:, None], ordered, 0)


def means_of_thirds(step: ObjectiveStep, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Average a head's outputs at visible tokens over each third.

    Args:
        step: the step, for the tokens and where they are.
        outputs: (views, visible, C).

    Returns:
        The means (views, 3, C), 0 where no token of a third is visible; and which have one (views, 3), bool.
    """
    visible = step.outputs.visible
    weights = thirds_of_tokens(step)
    weights = torch.stack([visible.gather(third) for third in weights.unbind(1)], dim=1)
    weights = torch.where(visible.valid[:, None], weights, 0)
    total = weights.sum(2, keepdim=True)
    return weights @ outputs / total.clamp(min=1e-6), total[..., 0] > 1e-6


class _ContrastOfThirds(Objective):
    """What the objectives share that contrast thirds: a linear projection, and the exchange between ranks."""

    def __init__(self, weight: float, temperature: float, dim: int):
        super().__init__(weight)
        self.temperature, self.dim = temperature, dim

    def heads(self, encoder: BaseEncoderConfig) -> Sequence[HeadConfig]:
        """Return the projection."""
        return [HeadConfig(name=self.name, reads="visible", outputs=self.dim)]

    def loss(self, step: ObjectiveStep) -> ObjectiveLoss | None:
        """Contrast the thirds; validation has one view of each clip and leaves it out."""
        if not step.training:
            return None
        means, there = means_of_thirds(step, step.head(self.name))
        other = step.inputs.other_voice
        other = torch.zeros(len(means), dtype=torch.bool, device=means.device) if other is None else other
        labels = step.inputs.labels
        labels = torch.zeros(len(means), dtype=torch.int64, device=means.device) if labels is None else labels
        marks = torch.stack((other.long(), labels), dim=1).float()
        views = gather_views(torch.cat((means.flatten(1), marks, there.float()), dim=1))
        thirds, flags = views.projections[:, :-5].reshape(-1, self.dim), views.projections[:, -3:] > 0
        other, labels = views.projections[:, -5:-3].long().unbind(1)
        positive, left_out = self.pairs(views.partner, other > 0, have_same_labels(labels))
        absent = ~flags.flatten()
        left_out = left_out | absent[:, None] | absent
        loss, accuracy = clip_contrast(thirds, positive, self.temperature, left_out)
        return ObjectiveLoss(scale_gradient_to_rank(loss, views.rank_share), {f"{self.name}_accuracy": accuracy})

    def pairs(self, partner: Tensor, other_voice: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
        """Return which thirds are positives of each third, and which are left out, (3 A, 3 A) bool.

        Args:
            partner: row of the other view of the same clip (A,).
            other_voice: which views have another voice than the clip (A,), bool.
            alike: which views are of clips with the same labels (A, A), bool.
        """
        raise NotImplementedError

    def join(self, device: torch.device) -> None:
        """Join the gathering of views."""
        gather_views(torch.zeros(0, 3 * self.dim + 5, device=device))


class PartsContrast(_ContrastOfThirds):
    """Contrast between the same third of two views of a clip (or of clips with its labels); others are negatives."""

    name = "parts"

    def pairs(self, partner: Tensor, other_voice: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same thirds of the other view and of those that are alike, and nothing to leave out."""
        row, third = _rows_and_thirds(partner)
        positive = ((partner[row][:, None] == row) | alike[row][:, row]) & (third[:, None] == third)
        return positive, torch.zeros_like(positive)


class VoiceContrast(_ContrastOfThirds):
    """Contrast between the first and the last third of a clip: other words, the same voice.

    The pair is of two views, whose level and color differ, unless one of them has another voice: then it is of one
    view, and the other view's thirds are negatives.
    """

    name = "voice"

    def pairs(self, partner: Tensor, other_voice: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
        """Return the other end with the same voice; all else with that voice, and middle thirds, are left out."""
        row, third = _rows_and_thirds(partner)
        own, across = row[:, None] == row, partner[row][:, None] == row
        changed = (other_voice | other_voice[partner])[row][:, None]
        same_voice = torch.where(changed, own, own | across)
        positive = torch.where(changed, own, across) & (third[:, None] + third == 2) & (third != 1)
        middle = (third == 1)[:, None] | (third == 1)
        return positive, (same_voice & ~positive) | middle


def have_same_labels(labels: Tensor) -> Tensor:
    """Return which views have the same labels (A, A), bool, of their numbers (A,), which are 0 without labels."""
    return (labels[:, None] == labels) & (labels != 0)


def _rows_and_thirds(partner: Tensor) -> tuple[Tensor, Tensor]:
    """Return the view and the number of the third of each of 3 A thirds."""
    return torch.arange(3 * len(partner), device=partner.device).div(3, rounding_mode="floor"), (
        torch.arange(3, device=partner.device).repeat(len(partner))
    )
