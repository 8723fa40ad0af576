"""What a pretrained model imagines under the mask: as pictures, and as sound.

Shapes: T frames, M mel bins, L patches, K hidden patches, V values of a patch.
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
from ssamba.checkpoint import load_bundled, load_checkpoint
from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.errors import CheckpointError
from ssamba.files import write_atomically
from ssamba.model.masking import draw_mask
from ssamba.model.patches import order_tokens, patch_values, tokens_to_grid
from ssamba.model.pretraining import PretrainingModel
from ssamba.plotting import blank_figure
from ssamba.training.pretraining.recipe import MaskSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LONGEST_S = 10.24


class Reconstruction(NamedTuple):
    """One clip, normalized log-mel, each (T, M); T ends with the last whole patch."""

    original: Tensor
    """What was recorded."""
    masked: Tensor
    """The same with NaN at the hidden patches."""
    filled: Tensor
    """The same with the model's prediction there."""


@torch.no_grad()
def reconstruct(model: PretrainingModel, features: Tensor, seed: int, masking: MaskSettings) -> Reconstruction:
    """Hide some patches of a clip and let the model fill them in.

    A model that was trained on patches normalized one by one predicts their shape; mean and deviation of each hidden
    patch are then taken from the recording, as is usual when masked autoencoders are shown.

    Args:
        model: in evaluation mode.
        features: normalized (T, M), at least one patch long.
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
    if model.pretraining.normalize_targets:
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
    figure = blank_figure(12, 0.8 + 2.2 * len(shown))
    axes = figure.subplots(len(shown), 3, squeeze=False)
    for row, clip, name in zip(axes, shown, names, strict=True):
        low, high = (float(torch.quantile(clip.original.float(), q)) for q in (0.02, 0.995))
        seconds = len(clip.original) * front_end.shift_ms / 1000
        for axis, title, image in zip(row, ("recorded", "what the model sees", "what it imagines"), clip, strict=True):
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
    picture: Path,
    masking: MaskSettings,
    *,
    seed: int = 0,
    start_s: float = 0.0,
    audio: Path | None = None,
) -> float:
    """Draw (and write as sound) what a pretrained model imagines under the mask, for 10.24 s of a recording.

    Args:
        recording: an audio file.
        checkpoint: a pretraining checkpoint, prediction heads included.
        picture: image file to write.
        masking: what is hidden.
        seed: which mask.
        start_s: where in the recording to begin.
        audio: a .wav file to write; the phase is found by Griffin and Lim's iteration.

    Returns:
        The mean squared error over the hidden patches, in normalized log-mel.

    Raises:
        CheckpointError: the checkpoint has no prediction heads.
        AudioDecodeError: the recording cannot be read.
    """
    loaded = load_checkpoint(checkpoint) if checkpoint is not None else load_bundled()
    model, front_end = loaded.model, loaded.front_end
    if not isinstance(model, PretrainingModel):
        raise CheckpointError(
            f"{checkpoint or 'the bundled checkpoint'} is of kind {loaded.config.kind!r}: what is hidden can only be "
            "predicted with the heads of a pretraining checkpoint (runs/NAME/model, or an official pretraining file)"
        )
    rate_hz = front_end.sample_rate_hz
    wave = torch.from_numpy(decode(recording, sample_rate_hz=rate_hz, start_s=start_s, duration_s=_LONGEST_S))
    config = model.encoder.config
    shortest = front_end.frame_samples + (config.patch_size[1] - 1) * front_end.shift_samples
    if len(wave) < shortest:
        raise ValueError(
            f"{recording}: {len(wave) / rate_hz:.3f} s are shorter than one patch: give a longer recording"
        )
    shown = reconstruct(model.eval(), log_mel(wave, config=front_end), seed, masking)
    figure = reconstruction_figure([shown], [recording.stem], front_end)
    write_atomically(picture, lambda path: figure.savefig(path, dpi=120, format=picture.suffix.lstrip(".") or "png"))
    if audio is not None:
        import soundfile

        sound = features_to_waveform(shown.filled, front_end).numpy()
        write_atomically(audio, lambda path: soundfile.write(path, sound, rate_hz, format="WAV"))
    hidden = shown.masked.isnan()
    return float((shown.filled - shown.original)[hidden].square().mean())
