"""Second views that differ from the first by more than a crop and augmentation: another voice, another clip in them.

Shapes: n clips, 2 n views (the first views of all clips, then their second views), T frames, M mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssamba import randomness
from ssamba.audio.augmentation import change_voice
from ssamba.config import FrontEndConfig
from ssamba.data.takes import label_hashes
from ssamba.training.pretraining.recipe import MixedView, OtherVoice

_DB = math.log(10) / 10


def change_voices(
    features: Tensor, seeds: Tensor, settings: OtherVoice, front_end: FrontEndConfig
) -> tuple[Tensor, Tensor | None]:
    """Change the voice of the second view of some clips.

    Args:
        features: log-mel values before normalization (2 n, T, M).
        seeds: seed of each view (2 n,), int64.
        settings: how often, and how much.
        front_end: frequencies of the mel bins.

    Returns:
        The features, and which views have another voice (2 n,), bool; None if the settings ask for none.
    """
    if not settings.share:
        return features, None
    first, second = features.chunk(2)
    chosen = randomness.uniform(seeds, "view.other_voice", 1)[:, 0] < settings.share
    chosen[: len(first)] = False
    own = chosen[len(first) :]
    changed = change_voice(second, seeds[len(first) :], settings.formants, settings.pitch, front_end)
    return torch.cat((first, torch.where(own[:, None, None], changed, second))), chosen


def label_numbers(labels: Sequence[Sequence[str]]) -> Tensor:
    """Return a number for the labels of each clip (n,), int64, below 2^24, which float32 holds; 0 without labels."""
    numbers = torch.from_numpy(label_hashes(labels).astype(np.int64)) % (2**24 - 1) + 1
    return torch.where(torch.tensor([bool(own) for own in labels], dtype=torch.bool), numbers, 0)


def mix_views(features: Tensor, seeds: Tensor, lengths: Tensor, settings: MixedView) -> tuple[Tensor, Tensor | None]:
    """Add the second view of another clip of the batch, in power, to the second view of some clips.

    Which clip it is depends on the view's seed and on the clips of this rank's batch. If it is shorter, the end of the
    view has nothing of it.

    Args:
        features: log-mel values before normalization, natural logarithm of power (2 n, T, M).
        seeds: seed of each view (2 n,), int64.
        lengths: valid frames of each view (2 n,).
        settings: how often, and how loud.

    Returns:
        The features, and `Inputs.mixed` (2 n,); None if the settings ask for none.
    """
    count = len(features) // 2
    if not settings.share:
        return features, None
    second = features[count:]
    chosen, which, level = randomness.uniform(seeds[count:], "view.mixed", 3).unbind(1)
    step = 1 + (which * (count - 1)).long()  # 1 .. n - 1: never the clip itself, unless it is alone
    own = torch.arange(count, device=features.device)
    other = torch.where(chosen < settings.share, (own + step) % count, own)
    low, high = settings.below_db
    valid = (torch.arange(second.shape[1], device=features.device) < lengths[count:, None])[..., None]
    heard = torch.where(valid, second, -torch.inf)
    power = torch.logsumexp(heard.flatten(1), dim=1) - lengths[count:].clamp(min=1).log()
    change = power - power[other] - (low + level * (high - low)) * _DB
    mixture = torch.logaddexp(second, heard[other] + change[:, None, None])
    mixture = torch.where(valid & (other != own)[:, None, None], mixture, second)
    return torch.cat((features[:count], mixture)), torch.cat((torch.zeros_like(own), other - own))
