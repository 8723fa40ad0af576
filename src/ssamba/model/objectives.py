"""Pretraining objectives: losses over masked patches and over whole clips, and targets for the clip vector.

`info_nce` and `reconstruction_error` are the original's (SSAMBA, section 3.3; SSAST, section 2.3, equations 1 and 2).
`clip_contrast` is the normalized temperature-scaled cross entropy of SimCLR (Chen et al., 2020, arXiv:2002.05709,
equation 1) over two views of each clip, as in COLA (Saeed et al., 2021, arXiv:2010.10915).

These are the functions; `training/pretraining/objectives.py` makes objectives of a training run of them.

Shapes: B clips, T frames, M mel bins, `masked` patches of the clip with most of them, V values of a patch, U units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_DYNAMIC_RANGE = 9.2  # 40 dB of power, in natural logarithm
_CEPSTRA = 40
_LAGS = (4, 8, 16, 32)  # frames


class Contrast(NamedTuple):
    """Loss and accuracy of a discriminative objective."""

    loss: Tensor
    accuracy: Tensor


def info_nce(predictions: Tensor, targets: Tensor, valid: Tensor | None = None) -> Contrast:
    """Compute the InfoNCE loss: match each prediction to its own patch among the clip's masked patches.

    The score of target i and prediction j is their dot product; the loss is the negative log-softmax over predictions
    at i = j. As in the original, a match is correct if, over the targets, the softmax is largest at i = j.

    Args:
        predictions: (B, masked, V).
        targets: true values of the patches (B, masked, V).
        valid: which entries belong to the clip (B, masked), bool; None if all do. The others are neither targets nor
            negatives.

    Returns:
        The loss in nats and the share of correct matches: means over a clip's valid patches, then over clips.
    """
    scores = targets @ predictions.transpose(1, 2)
    if not scores.shape[1]:  # nothing is masked
        return Contrast(predictions.sum(), predictions.new_zeros(()))
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None], -torch.inf)
    log_probability = F.log_softmax(scores, dim=2)
    matched = log_probability if valid is None else log_probability.masked_fill(~valid[..., None], -torch.inf)
    correct = matched.argmax(dim=1) == torch.arange(scores.shape[1], device=scores.device)
    return Contrast(
        -_mean(log_probability.diagonal(dim1=1, dim2=2), valid),
        _mean(correct.float(), valid),
    )


def reconstruction_error(predictions: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Compute the mean squared error over masked patches (B, masked, V); `valid` and the means as in `info_nce`."""
    if valid is None:
        return F.mse_loss(predictions, targets)
    return _mean((predictions - targets).square().mean(-1), valid)


def clip_contrast(
    views: Tensor,
    positive: Tensor,
    temperature: float,
    left_out: Tensor | None = None,
    negatives: Tensor | None = None,
) -> Contrast:
    """Compute the contrastive loss of each view and its positives, such as the other view of its clip, among all views.

    With several positives it is their mean (Khosla et al., 2020, arXiv:2004.11362, equation 2); a view without any is a
    negative of the others alone.

    Args:
        views: projections (views, clip_dim).
        positive: row of each view's only positive (views,), or which are positives (views, views), bool.
        temperature: divisor of the cosine similarities.
        left_out: which are neither positives nor negatives (views, views), bool, besides a view itself.
        negatives: more negatives (count, clip_dim), normalized.

    Returns:
        The mean loss in nats, and the share of views whose nearest neighbor is a positive.
    """
    views = F.normalize(views, dim=1)
    absent = torch.eye(len(views), dtype=torch.bool, device=views.device)
    absent = absent if left_out is None else absent | left_out
    scores = (views @ views.T / temperature).masked_fill(absent, -torch.inf)
    if negatives is not None:
        scores = torch.cat((scores, views @ negatives.T.to(views) / temperature), dim=1)
    if positive.ndim == 1:
        return Contrast(F.cross_entropy(scores, positive), (scores.argmax(1) == positive).float().mean())
    positive = F.pad(positive & ~absent, (0, scores.shape[1] - len(views)))
    anchors = positive.any(1)
    log_probability = F.log_softmax(scores, dim=1).masked_fill(~positive, 0)
    loss = -log_probability.sum(1) / positive.sum(1).clamp(min=1)
    correct = positive.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    count = anchors.sum().clamp(min=1)
    return Contrast(loss[anchors].sum() / count, correct[anchors].float().sum() / count)


def log_mel_statistics(features: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Compute summary statistics of each clip over time, a target for the clip vector.

    PASE predicts similar summaries (Pascual et al., 2019, arXiv:1904.03416).

    Args:
        features: log-mel values, normalized or not (B, T, M).
        lengths: valid frames of each clip (B,), None if all are.

    Returns:
        (B, 3 M): mean, standard deviation, and root mean square of the difference of neighboring frames.
    """
    frames = torch.arange(features.shape[1], device=features.device)
    count = torch.full_like(features[:, 0, :1], features.shape[1]) if lengths is None else lengths[:, None].to(features)
    valid = (frames < count)[..., None]
    mean = torch.where(valid, features, 0).sum(1) / count
    spread = torch.where(valid, (features - mean[:, None]).square(), 0).sum(1) / count
    change = torch.where(valid[:, 1:], features.diff(dim=1).square(), 0).sum(1) / (count - 1).clamp(min=1)
    return torch.cat((mean, spread.sqrt(), change.sqrt()), dim=1)


def profile_bands(bins: int) -> int:
    """Return the number of frequency bands of `temporal_profile` for `bins` mel bins: four bins each."""
    return -(-bins // 4)


def temporal_profile(features: Tensor, lengths: Tensor | None, segments: int) -> Tensor:
    """Compute the mean spectrum of each segment of a clip, a target for the clip vector.

    Args:
        features: log-mel values, normalized or not (B, T, M).
        lengths: valid frames of each clip (B,), None if all are.
        segments: number of equal parts of a clip; frames on a border count fractionally.

    Returns:
        (B, segments * bands): the mean of each segment in each band, segments outermost.
    """
    frames = torch.arange(features.shape[1], device=features.device)
    count = torch.full_like(features[:, 0, 0], features.shape[1]) if lengths is None else lengths.to(features)
    borders = count[:, None] * torch.arange(segments + 1, device=features.device) / segments
    overlap = torch.minimum(borders[:, 1:, None], frames + 1) - torch.maximum(borders[:, :-1, None], frames)
    valid = (frames < count[:, None])[..., None]
    bands = F.avg_pool1d(torch.where(valid, features, 0), 4, ceil_mode=True)
    means = overlap.clamp(min=0) @ bands / (count / segments)[:, None, None]
    return means.flatten(1)


def remove_channel(levels: Tensor, lengths: Tensor) -> Tensor:
    """Remove loudness, coloration and noise of the recording: limit the range to 40 dB, subtract the mean spectrum.

    Args:
        levels: log-mel values, or bands of them, in natural logarithm of power (B, T, bands).
        lengths: valid frames of each clip (B,).

    Returns:
        (B, T, bands): values clamped to 40 dB below the clip's loudest, minus the clip's mean over time; arbitrary in
        padding.
    """
    valid = (torch.arange(levels.shape[1], device=levels.device) < lengths[:, None])[..., None]
    loudest = torch.where(valid, levels, -torch.inf).amax((1, 2), keepdim=True)
    levels = torch.maximum(levels, loudest - _DYNAMIC_RANGE)
    return levels - torch.where(valid, levels, 0).sum(1, keepdim=True) / lengths[:, None, None]


def texture_values(bins: int) -> int:
    """Return the number of values that `log_mel_texture` returns for `bins` mel bins."""
    return 2 * min(_CEPSTRA, bins) + (bins - 1) + len(_LAGS) * -(-bins // 8)


def log_mel_texture(features: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Compute how a clip's spectra vary over time and along frequency, a target for the clip vector.

    Args:
        features: log-mel values, normalized or not (B, T, M).
        lengths: valid frames of each clip (B,), None if all are.

    Returns:
        (B, `texture_values(M)`): the standard deviation over time of each of 40 cepstra, and the root mean square of
        its change from frame to frame; the root mean square of the difference of neighboring bins; and that of the
        change over 4, 8, 16 and 32 frames in bands of 8 bins (0 if the clip is no longer than that).
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


def unit_cross_entropy(logits: Tensor, units: Tensor, valid: Tensor) -> Contrast:
    """Compute the cross entropy of the unit of each token (HuBERT: Hsu et al., 2021, arXiv:2106.07447, equation 1).

    Args:
        logits: (B, tokens, U).
        units: the correct units (B, tokens), int64.
        valid: which tokens belong to the clip (B, tokens), bool.

    Returns:
        The loss in nats and the accuracy; means as in `info_nce`.
    """
    loss = F.cross_entropy(logits.flatten(0, 1), units.flatten(), reduction="none").view_as(units)
    return Contrast(_mean(loss, valid), _mean((logits.argmax(-1) == units).float(), valid))


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Average (B, masked) over each clip's valid entries (0 if there are none), then over clips."""
    if valid is None:
        return x.mean()
    return (torch.where(valid, x, 0).sum(1) / valid.sum(1).clamp(min=1)).mean()
