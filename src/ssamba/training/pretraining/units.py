"""Classes of sound as targets: what each moment of a clip is, among clusters found in the training clips.

HuBERT (Hsu et al., 2021, arXiv:2106.07447, section 2) predicts the cluster of each moment from what is around it, the
clusters being those of k-means over simple features. Ours are taken from the clip as it was before augmentation, less its
level and its mean spectrum, so that a token learns to say the same of a sound whatever its loudness, color and pitch.

A moment is a column of patches with as much on either side of it. Its features: 32 bands, within 40 dB of the clip's
loudest, less the clip's mean, six averages over time; the 48 strongest principal components, of variance one.

Shapes: B clips, T frames, M mel bins, K columns, F features of a moment, U clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ssamba.model.objectives import without_channel

_BANDS = 32
_PARTS = 6  # averages over time in a moment, two of them in its column
_COMPONENTS = 48
_MOMENTS = 40_000  # that clusters are found in
_ROUNDS = 15  # of k-means


class SoundUnits:
    """Clusters of moments, found once at the start of a run and then fixed."""

    def __init__(self, count: int, column_frames: int, log_scale: float):
        """Args: U; frames of a patch; what normalized features are multiplied by to be natural logarithms."""
        self.count, self.column_frames, self.log_scale = count, column_frames, log_scale
        width = _BANDS * _PARTS
        components = min(_COMPONENTS, width)
        self.mean, self.projection = torch.zeros(width), torch.zeros(width, components)
        self.centers = torch.zeros(count, components)

    def moments(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Features of each column: (B, T, M) normalized, valid frames (B,) -> (B, K, F); finite beyond a clip's end."""
        frames = torch.arange(features.shape[1], device=features.device)
        valid = (frames < lengths[:, None])[..., None]
        bands = F.adaptive_avg_pool1d(torch.where(valid, features, 0) * self.log_scale, _BANDS)
        bands = without_channel(bands, lengths)
        # The last valid frame stands for what would follow, the first for what was before.
        last = bands.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, _BANDS))
        bands = torch.where(valid, bands, last)
        side = self.column_frames
        first = bands[:, :1].expand(-1, side, -1)
        around = torch.cat((first, bands, last.expand(-1, 2 * side, -1)), dim=1)
        windows = around.unfold(1, 3 * side, side)[:, : -(-features.shape[1] // side)]
        return rearrange(F.adaptive_avg_pool1d(windows.flatten(0, 1), _PARTS), "(b k) f p -> b k (f p)", b=len(bands))

    def units(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The cluster of each column (B, K), int64; arbitrary beyond a clip's end."""
        self.mean, self.projection, self.centers = (x.to(features) for x in (self.mean, self.projection, self.centers))
        return _nearest((self.moments(features, lengths) - self.mean) @ self.projection, self.centers)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], seed: int) -> None:
        """Find the clusters in batches of features and lengths, read until there are moments enough."""
        found: list[Tensor] = []
        for features, lengths in batches:
            moments = self.moments(features, lengths)
            columns = torch.arange(moments.shape[1])
            found.append(moments[columns < (-(-lengths // self.column_frames))[:, None]].cpu().float())
            if sum(map(len, found)) >= _MOMENTS:
                break
        generator = torch.Generator().manual_seed(seed)
        x = torch.cat(found)
        x = x[torch.randperm(len(x), generator=generator)[:_MOMENTS]]
        self.mean = x.mean(0)
        spread, vectors = torch.linalg.eigh((x - self.mean).T @ (x - self.mean) / len(x))
        strongest = torch.arange(len(spread) - 1, len(spread) - 1 - self.projection.shape[1], -1)
        self.projection = vectors[:, strongest] / spread[strongest].clamp(min=1e-6).sqrt()
        self.centers = _k_means((x - self.mean) @ self.projection, self.count, generator)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {"mean": self.mean, "projection": self.projection, "centers": self.centers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.mean, self.projection, self.centers = state["mean"], state["projection"], state["centers"]


def _k_means(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Lloyd's rounds from `count` of the points; a cluster that loses all its points stays where it is."""
    start = torch.randperm(len(x), generator=generator)
    centers = x[start[torch.arange(count) % len(x)]].clone()
    for _ in range(_ROUNDS):
        nearest = _nearest(x, centers)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        sums = torch.zeros_like(centers).index_add_(0, nearest, x)
        centers = torch.where(sizes > 0, sums / sizes.clamp(min=1), centers)
    return centers


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    """(..., C) and (U, C) -> index of the nearest center (...)."""
    return (centers.square().sum(1) - 2 * x @ centers.T).argmin(-1)
