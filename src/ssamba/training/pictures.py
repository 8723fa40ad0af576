"""What a pretrained model imagines under the mask: as pictures, and as sound.

Shapes: T frames, M mel bins, L patches, K hidden patches, V values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.errors import MissingExtraError
from ssamba.model.masking import draw_mask
from ssamba.model.patches import order_tokens, patch_values, tokens_to_grid
from ssamba.model.pretraining import PretrainingModel
from ssamba.training.recipe import MaskSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Reconstruction(NamedTuple):
    """One clip, normalised log-mel, each (T, M); T ends with the last whole patch."""

    original: Tensor
    """What was recorded."""
    masked: Tensor
    """The same with NaN at the hidden patches."""
    filled: Tensor
    """The same with the model's prediction there."""


@torch.no_grad()
def reconstruct(model: PretrainingModel, features: Tensor, seed: int, masking: MaskSettings) -> Reconstruction:
    """Hide some patches of a clip and let the model fill them in.

    A model that was trained on patches normalised one by one predicts their shape; mean and deviation of each hidden
    patch are then taken from the recording, as is usual when masked autoencoders are shown.

    Args:
        model: in evaluation mode.
        features: normalised (T, M), at least one patch long.
        seed: which mask.
        masking: ratio and style.
    """
    config = model.encoder.config
    if config.patch_size != config.patch_stride:
        raise ValueError(f"patches overlap (stride {config.patch_stride}): a reconstruction needs patches side by side")
    columns = config.columns(len(features))
    features = features[: columns * config.patch_size[1]]
    seeds = torch.tensor([seed], device=features.device)
    counts = torch.tensor([columns], device=features.device)
    mask = draw_mask(seeds, config, counts, columns, ratio=masking.ratio, style=masking.style)
    out = model(features[None], mask)
    values = order_tokens(patch_values(features[None], config), config)[0]
    places, predicted = out.hidden.places[0], out.generative[0].to(values.dtype)
    if model.pretraining.normalise_targets:
        hidden = values[places]
        predicted = predicted * (hidden.var(-1, keepdim=True) + 1e-4).sqrt() + hidden.mean(-1, keepdim=True)
    nothing = torch.full_like(predicted, torch.nan)
    masked, filled = (_spectrogram(values.index_copy(0, places, new), config) for new in (nothing, predicted))
    return Reconstruction(features, masked, filled)


def _spectrogram(values: Tensor, config: BaseEncoderConfig) -> Tensor:
    """Patches in token order (L, V) back as a spectrogram (T, M)."""
    grid = tokens_to_grid(values, config.rows, len(values) // config.rows, config)
    return rearrange(grid, "r k (m t) -> (k t) (r m)", m=config.patch_size[0])


def reconstruction_figure(shown: Sequence[Reconstruction], names: Sequence[str], front_end: FrontEndConfig) -> Figure:
    """Original, masked and filled spectrograms of some clips, one clip a row.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError('pictures need matplotlib: pip install "ssamba[figures]"') from None
    figure = Figure(figsize=(12, 0.8 + 2.2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 3, squeeze=False)
    for row, clip, name in zip(axes, shown, names, strict=True):
        low, high = (float(torch.quantile(clip.original.float(), q)) for q in (0.02, 0.995))
        seconds = len(clip.original) * front_end.shift_ms / 1000
        for axis, title, image in zip(row, ("recorded", "what the model sees", "what it imagines"), clip, strict=True):
            axis.set_facecolor("0.6")
            axis.imshow(
                image.float().cpu().T,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                cmap="magma",
                vmin=low,
                vmax=max(high, low + 1e-3),
                extent=(0, seconds, 0, front_end.num_mel_bins),
            )
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("seconds", fontsize=8)
        row[0].set_ylabel(f"{name[-28:]}\nmel bin", fontsize=8)
    return figure
