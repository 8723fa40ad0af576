"""Targets of the objectives that outlive a batch or span ranks: running standardization, sound units, gathered views.

Sound units are what HuBERT predicts (Hsu et al., 2021, arXiv:2106.07447, section 2): each moment's cluster, among
clusters found by k-means over simple features. Ours come from the clip before augmentation, less its level and its mean
spectrum, so that tokens learn to name a sound whatever its loudness, color and pitch. A moment is a column of patches
with the same length of context on either side. Its features are 32 bands, within 40 dB of the clip's loudest value,
less the clip's mean, averaged over six parts in time; then the 48 first principal components, scaled to variance one.

Shapes: B clips, T frames, M mel bins, K columns of patches, F features of a moment, U units, V values of a target,
n clips on this rank, A views on all ranks, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ssamba.checkpoint import load_checkpoint
from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.errors import ConfigError
from ssamba.model.objectives import remove_channel
from ssamba.model.patches import column_counts
from ssamba.model.readouts import time_steps

_MIN_UPDATE = 0.01  # weight of a batch in the running mean and variance; the first batches weigh more
_BANDS = 32
_PARTS = 6  # averages over time of a moment, two of them in its column
_COMPONENTS = 48
_MAX_MOMENTS = 40_000  # for k-means
_K_MEANS_STEPS = 15


class RunningScale:
    """Running mean and variance of a target over the training batches of all ranks."""

    def __init__(self, values: int):
        self.mean, self.variance = torch.zeros(values), torch.ones(values)
        self.seen = 0

    @torch.no_grad()
    def standardize(self, targets: Tensor, training: bool) -> Tensor:
        """Standardize targets (B, V); while training, update the statistics with the batch first.

        Every rank must call it, with B = 0 if it has no clip. A batch with values that are not finite does not update.
        """
        self.mean, self.variance = self.mean.to(targets), self.variance.to(targets)
        if training:
            sums = torch.stack((targets.sum(0), targets.square().sum(0), torch.ones_like(targets).sum(0)))
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(sums)
            if (sums[2] > 0).all() and sums.isfinite().all():
                mean = sums[0] / sums[2]
                self.seen += 1
                update = max(1 / self.seen, _MIN_UPDATE)
                self.mean.lerp_(mean, update)
                self.variance.lerp_((sums[1] / sums[2] - mean.square()).clamp(min=0), update)
        return (targets - self.mean) / (self.variance + 1e-4).sqrt()

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return {"mean": self.mean, "variance": self.variance, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.mean, self.variance, self.seen = state["mean"], state["variance"], int(state["seen"])


class SoundUnits:
    """Clusters of moments, fitted once when a run starts."""

    def __init__(self, count: int, column_frames: int, log_scale: float):
        """Args: U; frames of a patch; factor that turns normalized features into natural logarithms."""
        self.count, self.column_frames, self.log_scale = count, column_frames, log_scale
        width = _BANDS * _PARTS
        components = min(_COMPONENTS, width)
        self.mean, self.projection = torch.zeros(width), torch.zeros(width, components)
        self.centers = torch.zeros(count, components)

    def moments(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return the features of each column (B, K, F) of normalized log-mel (B, T, M) with valid frames (B,).

        Columns beyond a clip's end are finite.
        """
        frames = torch.arange(features.shape[1], device=features.device)
        valid = (frames < lengths[:, None])[..., None]
        bands = F.adaptive_avg_pool1d(torch.where(valid, features, 0) * self.log_scale, _BANDS)
        bands = remove_channel(bands, lengths)
        # Repeat the first and last valid frame as context beyond the clip.
        last = bands.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, _BANDS))
        bands = torch.where(valid, bands, last)
        side = self.column_frames
        first = bands[:, :1].expand(-1, side, -1)
        padded = torch.cat((first, bands, last.expand(-1, 2 * side, -1)), dim=1)
        windows = padded.unfold(1, 3 * side, side)[:, : -(-features.shape[1] // side)]
        return rearrange(F.adaptive_avg_pool1d(windows.flatten(0, 1), _PARTS), "(b k) f p -> b k (f p)", b=len(bands))

    def units(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return the unit of each column (B, K), int64; arbitrary beyond a clip's end."""
        self.mean, self.projection, self.centers = (x.to(features) for x in (self.mean, self.projection, self.centers))
        return _nearest((self.moments(features, lengths) - self.mean) @ self.projection, self.centers)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], seed: int) -> None:
        """Fit the clusters to batches of features (B, T, M) and lengths (B,), as many as give 40,000 moments."""
        found: list[Tensor] = []
        for features, lengths in batches:
            moments = self.moments(features, lengths)
            columns = torch.arange(moments.shape[1])
            found.append(moments[columns < (-(-lengths // self.column_frames))[:, None]].cpu().float())
            if sum(map(len, found)) >= _MAX_MOMENTS:
                break
        generator = torch.Generator().manual_seed(seed)
        x = torch.cat(found)
        x = x[torch.randperm(len(x), generator=generator)[:_MAX_MOMENTS]]
        self.mean = x.mean(0)
        variances, vectors = torch.linalg.eigh((x - self.mean).T @ (x - self.mean) / len(x))
        largest = torch.arange(len(variances) - 1, len(variances) - 1 - self.projection.shape[1], -1)
        self.projection = vectors[:, largest] / variances[largest].clamp(min=1e-6).sqrt()
        self.centers = _k_means((x - self.mean) @ self.projection, self.count, generator)

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return {"mean": self.mean, "projection": self.projection, "centers": self.centers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.mean, self.projection, self.centers = state["mean"], state["projection"], state["centers"]


class HiddenUnits(SoundUnits):
    """Clusters of a pretrained model's hidden states, for another iteration (HuBERT, section 2.3).

    A moment is a column's hidden state before the final norm, its mean over rows normalized over the channels. The
    model reads the clip before augmentation, whole.
    """

    def __init__(self, count: int, source: str, depth: float, config: BaseEncoderConfig, front_end: FrontEndConfig):
        """Args: U; name or path of the model; its layer, as a share of the depth; encoder and front end of the run.

        Raises:
            CheckpointError: the model is unknown or damaged.
            ConfigError: its patches or its front end differ from those of the run.
        """
        start = load_checkpoint(source)
        self.encoder = start.model.encoder.requires_grad_(False).eval()
        own = self.encoder.config
        self.layer = round(depth * own.num_layers)
        if (own.patch_size, own.patch_stride, start.front_end) != (config.patch_size, config.patch_stride, front_end):
            raise ConfigError(f"objectives.units_from: {source} has other patches or another front end than this run")
        super().__init__(count, config.patch_size[1], 2 * front_end.std)
        self.mean, components = torch.zeros(own.embed_dim), self.projection.shape[1]
        self.projection = torch.zeros(own.embed_dim, components)

    @torch.no_grad()
    def moments(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return the features of each column (B, K, D) of normalized log-mel (B, T, M) with valid frames (B,)."""
        self.encoder.to(features.device)
        lengths = -(-lengths // self.column_frames) * self.column_frames
        tokens = self.encoder(features, lengths, layer=self.layer)
        steps = time_steps(tokens, self.encoder.config, column_counts(lengths, self.encoder.config))
        return F.layer_norm(steps, steps.shape[-1:])


def _k_means(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Run Lloyd's algorithm from `count` of the points; a cluster without points keeps its center."""
    order = torch.randperm(len(x), generator=generator)
    centers = x[order[torch.arange(count) % len(x)]].clone()
    for _ in range(_K_MEANS_STEPS):
        nearest = _nearest(x, centers)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        sums = torch.zeros_like(centers).index_add_(0, nearest, x)
        centers = torch.where(sizes > 0, sums / sizes.clamp(min=1), centers)
    return centers


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest of the centers (U, C) for each x (..., C)."""
    return (centers.square().sum(1) - 2 * x @ centers.T).argmin(-1)


class GatheredViews(NamedTuple):
    """Projections of the views on all ranks, for the clip objective."""

    projections: Tensor
    """(A, C); gradients flow into this rank's rows only."""
    partner: Tensor
    """Row of the other view of the same clip (A,)."""
    rank_share: float
    """Share of the rows that are this rank's."""


def gather_views(projections: Tensor) -> GatheredViews:
    """Gather the views of all ranks; every rank must call it, with no rows if it has no clip.

    Args:
        projections: (2 n, C), the first views of n clips, then their second views; n may differ between ranks.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        parts = [projections]
    else:
        counts = [torch.zeros(1, dtype=torch.int64, device=projections.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([len(projections)], device=projections.device))
        sizes = [int(count) for count in counts]
        own = projections.detach()
        padded = torch.cat((own, own.new_zeros(max(sizes) - len(own), own.shape[1])))
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        parts = [part[:size] for part, size in zip(gathered, sizes, strict=True)]
        parts[dist.get_rank()] = projections
    first, partners = 0, []
    for part in parts:
        partners.append(first + torch.arange(len(part), device=part.device).roll(len(part) // 2))
        first += len(part)
    return GatheredViews(torch.cat(parts), torch.cat(partners), len(projections) / max(1, first))


def scale_gradient_to_rank(loss: Tensor, rank_share: float) -> Tensor:
    """Return a loss over the views of all ranks with its gradient divided by this rank's share.

    The loop averages the losses of ranks, weighted by their terms. This loss has the same value on every rank, but its
    gradient reaches this rank's rows alone and must not be weighted once more.
    """
    return loss.detach() + (loss - loss.detach()) / rank_share
