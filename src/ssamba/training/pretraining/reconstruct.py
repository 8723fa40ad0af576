"""Reconstruct masked patches with a pretrained model: as a spectrogram plot and as sound.

Shapes: T frames, M mel bins, L patches, K masked patches, V values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ssamba.audio.decode import decode
from ssamba.audio.fbank import features_to_waveform, log_mel
from ssamba.checkpoint import load_checkpoint
from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.errors import CheckpointError
from ssamba.files import write_atomically
from ssamba.model.masking import MaskStyle, draw_mask
from ssamba.model.patches import order_tokens, patch_values, tokens_to_grid
from ssamba.model.pretraining import PretrainingModel
from ssamba.plotting import blank_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CROP_S = 10.24


class Reconstruction(NamedTuple):
    """Normalized log-mel spectrograms (T, M) of one clip, cut to whole patches."""

    original: Tensor
    """Features of the recording."""
    masked: Tensor
    """The original with NaN at masked patches."""
    filled: Tensor
    """The original with the model's predictions at masked patches."""


@torch.no_grad()
def reconstruct(
    model: PretrainingModel, features: Tensor, seed: int, ratio: float, style: MaskStyle | None
) -> Reconstruction:
    """Mask patches of a clip and predict them.

    A model trained on normalized target patches predicts their shape only; mean and standard deviation of each masked
    patch are then taken from the recording, as is usual when masked autoencoders are shown.

    Args:
        model: in evaluation mode.
        features: normalized log-mel (T, M), at least one patch long.
        seed: random seed of the mask.
        ratio: share of the patches to mask.
        style: as for `draw_mask`.
    """
    config = model.encoder.config
    if config.patch_size != config.patch_stride:
        raise ValueError(f"patches overlap (stride {config.patch_stride}): a reconstruction needs patches side by side")
    columns = config.columns(len(features))
    features = features[: columns * config.patch_size[1]]
    seeds = torch.tensor([seed], device=features.device)
    counts = torch.tensor([columns], device=features.device)
    mask = draw_mask(seeds, config, counts, columns, ratio=ratio, style=style)
    out = model(features[None], mask)
    values = order_tokens(patch_values(features[None], config), config)[0]
    positions, predicted = out.masked.indices[0], out.generative[0].to(values.dtype)
    if model.pretraining.normalize_targets:
        targets = values[positions]
        predicted = predicted * (targets.var(-1, keepdim=True) + 1e-4).sqrt() + targets.mean(-1, keepdim=True)
    empty = torch.full_like(predicted, torch.nan)
    masked, filled = (_spectrogram(values.index_copy(0, positions, new), config) for new in (empty, predicted))
    return Reconstruction(features, masked, filled)


def _spectrogram(values: Tensor, config: BaseEncoderConfig) -> Tensor:
    """Arrange patches in token order (L, V) as a spectrogram (T, M)."""
    grid = tokens_to_grid(values, config.rows, len(values) // config.rows, config)
    return rearrange(grid, "r k (m t) -> (k t) (r m)", m=config.patch_size[0])


def plot_reconstructions(clips: Sequence[Reconstruction], names: Sequence[str], front_end: FrontEndConfig) -> Figure:
    """Plot original, masked and filled spectrograms, one clip a row.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = blank_figure(12, 0.8 + 2.2 * len(clips))
    axes = figure.subplots(len(clips), 3, squeeze=False)
    for row, clip, name in zip(axes, clips, names, strict=True):
        low, high = (float(torch.quantile(clip.original.float(), q)) for q in (0.02, 0.995))
        seconds = len(clip.original) * front_end.shift_ms / 1000
        for axis, title, image in zip(row, ("original", "masked", "filled in by the model"), clip, strict=True):
            axis.set_facecolor("0.6")
            axis.imshow(
                image.float().cpu().T.numpy(),
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


def reconstruct_recording(
    recording: Path,
    checkpoint: str | Path | None,
    plot: Path,
    *,
    ratio: float,
    style: MaskStyle | None = None,
    seed: int = 0,
    start_s: float = 0.0,
    audio: Path | None = None,
) -> float:
    """Mask 10.24 s of a recording, predict the masked patches, and write the result as a plot and as sound.

    Args:
        recording: an audio file.
        checkpoint: a pretraining checkpoint with prediction heads; None means the one that ships with ssamba.
        plot: image file to write.
        ratio: share of the patches to mask.
        style: as for `draw_mask`.
        seed: random seed of the mask.
        start_s: start in the recording.
        audio: a .wav file to write; the phase is estimated by Griffin and Lim's iteration.

    Returns:
        The mean squared error over the masked patches, in normalized log-mel.

    Raises:
        CheckpointError: the checkpoint has no prediction heads.
        AudioDecodeError: the recording cannot be read.
    """
    loaded = load_checkpoint(checkpoint)
    model, front_end = loaded.model, loaded.front_end
    if not isinstance(model, PretrainingModel):
        raise CheckpointError(
            f"{loaded.report.name} is of kind {loaded.config.kind!r}, without prediction heads: "
            "expected a pretraining checkpoint (a run of `ssamba pretrain`, or an official pretraining file)"
        )
    rate_hz = front_end.sample_rate_hz
    wave = torch.from_numpy(decode(recording, sample_rate_hz=rate_hz, start_s=start_s, duration_s=_CROP_S))
    patch_frames = model.encoder.config.patch_size[1]
    if len(wave) < front_end.frame_samples + (patch_frames - 1) * front_end.shift_samples:
        raise ValueError(
            f"{recording}: {len(wave) / rate_hz:.3f} s are shorter than one patch: give a longer recording"
        )
    result = reconstruct(model.eval(), log_mel(wave, config=front_end), seed, ratio, style)
    figure = plot_reconstructions([result], [recording.stem], front_end)
    write_atomically(plot, lambda path: figure.savefig(path, dpi=120, format=plot.suffix.lstrip(".") or "png"))
    if audio is not None:
        import soundfile

        sound = features_to_waveform(result.filled, front_end).numpy()
        write_atomically(audio, lambda path: soundfile.write(path, sound, rate_hz, format="WAV"))
    return float((result.filled - result.original)[result.masked.isnan()].square().mean())
