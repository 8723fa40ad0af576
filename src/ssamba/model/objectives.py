"""The two pretraining objectives (SSAMBA, section 3.3; SSAST, section 2.3, equations 1 and 2).

Shapes: B batch, K masked patches of a clip, V values of a patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Contrast(NamedTuple):
    """The discriminative objective's loss and how often the right patch was picked."""

    loss: Tensor
    accuracy: Tensor


def info_nce(predictions: Tensor, targets: Tensor) -> Contrast:
    """Match each prediction to its own patch among the clip's masked patches.

    The score of target i with prediction j is their dot product; the loss is the negative log-softmax over predictions
    at i = j. As in the original, a match counts as right where, over the targets, the softmax is largest at i = j.

    Args:
        predictions: (B, K, V).
        targets: the patches' true values (B, K, V).

    Returns:
        The mean loss in nats, and the share of right matches.
    """
    scores = targets @ predictions.transpose(1, 2)
    log_probability = F.log_softmax(scores, dim=2)
    right = torch.arange(scores.shape[1], device=scores.device)
    loss = -log_probability.diagonal(dim1=1, dim2=2).mean()
    accuracy = (log_probability.argmax(dim=1) == right).float().mean()
    return Contrast(loss, accuracy)


def reconstruction_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over all masked patches; both (B, K, V)."""
    return F.mse_loss(predictions, targets)
