"""The pretraining objectives: the original's two, and one of ours over whole clips.

Patches: SSAMBA, section 3.3; SSAST, section 2.3, equations 1 and 2. Clips: the normalized temperature-scaled cross
entropy of SimCLR (Chen et al., 2020, arXiv:2002.05709, equation 1) over two views of each clip, as COLA (Saeed et al.,
2021, arXiv:2010.10915) and its successors use it for audio.

Shapes: B batch, K hidden patches of the clip with most of them, V values of a patch, C channels of a projection.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_RANGE = 9.2  # 40 dB of power, in natural logarithm
_CEPSTRA = 40
_LAGS = (4, 8, 16, 32)  # frames


class Contrast(NamedTuple):
    """A discriminative objective's loss and how often the right partner was picked."""

    loss: Tensor
    accuracy: Tensor


def info_nce(predictions: Tensor, targets: Tensor, valid: Tensor | None = None) -> Contrast:
    """Match each prediction to its own patch among the clip's masked patches.

    The score of target i with prediction j is their dot product; the loss is the negative log-softmax over predictions
    at i = j. As in the original, a match counts as right where, over the targets, the softmax is largest at i = j.

    Args:
        predictions: (B, K, V).
        targets: the patches' true values (B, K, V).
        valid: which of the K are the clip's own, (B, K) bool; None when all are. The others are neither targets nor
            negatives.

    Returns:
        The loss in nats and the share of right matches: means over a clip's valid patches, then over clips.
    """
    scores = targets @ predictions.transpose(1, 2)
    if not scores.shape[1]:  # nothing is hidden
        return Contrast(predictions.sum(), predictions.new_zeros(()))
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None], -torch.inf)
    log_probability = F.log_softmax(scores, dim=2)
    matched = log_probability if valid is None else log_probability.masked_fill(~valid[..., None], -torch.inf)
    right = matched.argmax(dim=1) == torch.arange(scores.shape[1], device=scores.device)
    return Contrast(
        -_mean(log_probability.diagonal(dim1=1, dim2=2), valid),
        _mean(right.float(), valid),
    )


def reconstruction_error(predictions: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared error over the masked patches; both (B, K, V), `valid` and the means as in `info_nce`."""
    if valid is None:
        return F.mse_loss(predictions, targets)
    return _mean((predictions - targets).square().mean(-1), valid)


def clip_contrast(views: Tensor, partner: Tensor, temperature: float) -> Contrast:
    """Find each view's partner, the other view of the same clip, among all views.

    Args:
        views: projections (A, C).
        partner: row of each view's partner (A,).
        temperature: divides the cosine similarities.

    Returns:
        The mean loss in nats, and the share of views whose nearest is their partner.
    """
    views = F.normalize(views, dim=1)
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    scores = (views @ views.T / temperature).masked_fill(itself, -torch.inf)
    right = scores.argmax(1) == partner
    return Contrast(F.cross_entropy(scores, partner), right.float().mean())


def log_mel_statistics(features: Tensor, lengths: Tensor | None = None) -> Tensor:
    """What a clip sounds like on the whole, as simple classifiers use it: a target for the clip vector.

    Predicting such summaries is a worker of PASE (Pascual et al., 2019, arXiv:1904.03416).

    Args:
        features: log-mel values, normalized or not (B, T, M).
        lengths: valid frames of each clip (B,), None when all are.

    Returns:
        (B, 3 M): mean over time, standard deviation, and root mean square of the difference of neighboring frames.
    """
    frames = torch.arange(features.shape[1], device=features.device)
    count = torch.full_like(features[:, 0, :1], features.shape[1]) if lengths is None else lengths[:, None].to(features)
    valid = (frames < count)[..., None]
    mean = torch.where(valid, features, 0).sum(1) / count
    spread = torch.where(valid, (features - mean[:, None]).square(), 0).sum(1) / count
    change = torch.where(valid[:, 1:], features.diff(dim=1).square(), 0).sum(1) / (count - 1).clamp(min=1)
    return torch.cat((mean, spread.sqrt(), change.sqrt()), dim=1)


def profile_bands(bins: int) -> int:
    """Frequency bands of `temporal_profile`: four mel bins each."""
    return -(-bins // 4)


def temporal_profile(features: Tensor, lengths: Tensor | None, segments: int) -> Tensor:
    """How a clip sounds in each part of it: what a mean over time forgets, as a target for the clip vector.

    Args:
        features: log-mel values, normalized or not (B, T, M).
        lengths: valid frames of each clip (B,), None when all are.
        segments: parts of equal length that a clip is cut into; frames on a border count by their share.

    Returns:
        (B, segments * bands): the mean of each segment in each band, segment after segment.
    """
    frames = torch.arange(features.shape[1], device=features.device)
    count = torch.full_like(features[:, 0, 0], features.shape[1]) if lengths is None else lengths.to(features)
    borders = count[:, None] * torch.arange(segments + 1, device=features.device) / segments
    overlap = torch.minimum(borders[:, 1:, None], frames + 1) - torch.maximum(borders[:, :-1, None], frames)
    valid = (frames < count[:, None])[..., None]
    bands = F.avg_pool1d(torch.where(valid, features, 0), 4, ceil_mode=True)
    means = overlap.clamp(min=0) @ bands / (count / segments)[:, None, None]
    return means.flatten(1)


def without_channel(levels: Tensor, lengths: Tensor) -> Tensor:
    """What is heard, whatever the loudness, color and noise of the recording: 40 dB of range, less the mean spectrum.

    Args:
        levels: log-mel values or bands of them in natural logarithm of power (B, T, F).
        lengths: valid frames of each clip (B,).

    Returns:
        (B, T, F): values below 40 dB under the clip's loudest raised to that, then less the clip's mean over time;
        arbitrary beyond a clip's end.
    """
    valid = (torch.arange(levels.shape[1], device=levels.device) < lengths[:, None])[..., None]
    loudest = torch.where(valid, levels, -torch.inf).amax((1, 2), keepdim=True)
    levels = torch.maximum(levels, loudest - _RANGE)
    return levels - torch.where(valid, levels, 0).sum(1, keepdim=True) / lengths[:, None, None]


def texture_values(bins: int) -> int:
    """How many numbers `log_mel_texture` gives for so many mel bins."""
    return 2 * min(_CEPSTRA, bins) + (bins - 1) + len(_LAGS) * -(-bins // 8)


def log_mel_texture(features: Tensor, lengths: Tensor | None = None) -> Tensor:
    """How a clip's spectra vary together, over time and along frequency: a target for the clip vector.

    Args:
        features: log-mel values, normalized or not (B, T, M).
        lengths: valid frames of each clip (B,), None when all are.

    Returns:
        (B, `texture_values(M)`): the deviation over time of each of 40 cepstra and the root mean square of its change
        from frame to frame; the root mean square of the difference of neighboring bins; and that of the change over
        4, 8, 16 and 32 frames in bands of 8 bins (0 where the clip is no longer than that).
    """
    bins = features.shape[2]
    frames = torch.arange(features.shape[1], device=features.device)
    count = torch.full_like(features[:, 0, :1], features.shape[1]) if lengths is None else lengths[:, None].to(features)
    features = torch.where((frames < count)[..., None], features, 0)
    order = torch.arange(min(_CEPSTRA, bins), device=features.device)
    middles = torch.arange(bins, device=features.device) + 0.5
    cosines = torch.cos(torch.pi / bins * middles[:, None] * order) * (2 / bins) ** 0.5
    cepstra = features @ cosines.to(features)
    parts = [log_mel_statistics(cepstra, lengths)[:, len(order) :]]
    parts.append((features.diff(dim=2).square().sum(1) / count).sqrt())
    bands = F.avg_pool1d(features, 8, ceil_mode=True)
    for lag in _LAGS:
        change = (bands[:, lag:] - bands[:, :-lag]).square()
        change = torch.where((frames[lag:] < count)[..., None], change, 0).sum(1) / (count - lag).clamp(min=1)
        parts.append(change.sqrt())
    return torch.cat(parts, dim=1)


def unit_cross_entropy(scores: Tensor, units: Tensor, valid: Tensor) -> Contrast:
    """Tell which class of sound each token is (HuBERT: Hsu et al., 2021, arXiv:2106.07447, equation 1).

    Args:
        scores: (B, K, U), logits of the classes.
        units: the right classes (B, K), int64.
        valid: which of the K are the clip's own (B, K), bool.

    Returns:
        The loss in nats and the share of right classes; means as in `info_nce`.
    """
    loss = F.cross_entropy(scores.flatten(0, 1), units.flatten(), reduction="none").view_as(units)
    return Contrast(_mean(loss, valid), _mean((scores.argmax(-1) == units).float(), valid))


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """(B, K): each clip's mean over its valid entries (0 when there are none), then the mean over clips."""
    if valid is None:
        return x.mean()
    return (torch.where(valid, x, 0).sum(1) / valid.sum(1).clamp(min=1)).mean()
