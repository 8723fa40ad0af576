"""Reconstruct masked patches with a pretrained model: as a spectrogram plot and as sound.

Shapes: T frames, M mel bins, L patches, K masked patches, V values of a patch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor

from ssamba.audio.decode import decode
from ssamba.audio.fbank import features_to_waveform, hertz_ticks, log_mel
from ssamba.checkpoint import load_checkpoint
from ssamba.config import BaseEncoderConfig, Config, FrontEndConfig
from ssamba.errors import CheckpointError, ConfigError, DataError, OtherSettingsError
from ssamba.files import soundfile_path, user_path, write_atomically
from ssamba.hashing import digest_of
from ssamba.model.masking import MaskStyle, draw_mask
from ssamba.model.patches import order_tokens, patch_values, tokens_to_grid
from ssamba.model.pretraining import PretrainingModel
from ssamba.plotting import blank_figure, save_figure, spectrogram, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CROP_S = 10.24
_MARK = "ssamba reconstruct "
"""Precedes the settings in the metadata of a plot."""
_METADATA = {".png": "Description", ".pdf": "Subject", ".svg": "Description"}
"""Formats of plots, and the field of their metadata that holds the settings."""
_REMEDY = "use another output, or --overwrite (overwrite=True) to replace it"


class Reconstruction(NamedTuple):
    """Normalized log-mel spectrograms (T, M) of one clip, cut to whole patches."""

    original: Tensor
    """Features of the recording."""
    masked: Tensor
    """The original with NaN at masked patches."""
    filled: Tensor
    """The original with the model's predictions at masked patches."""


class _Options(Config):
    """The options of `reconstruct_recording` that draw the mask."""

    ratio: float = Field(gt=0, lt=1)
    """Share of the patches to mask."""
    style: MaskStyle | None
    """How masked patches lie."""
    seed: int = Field(ge=0)
    """Random seed of the mask."""
    start: float = Field(ge=0, allow_inf_nan=False)
    """Start in the recording, in seconds."""


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
    """Plot a row for each clip: the original, the visible patches, the predicted ones, and the error of these.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    ticks = hertz_ticks(front_end)
    with styled(names) as show:
        figure = blank_figure(12, 0.9 + 1.9 * len(clips))
        axes = figure.subplots(len(clips), 4, squeeze=False, sharey=True)
        for row, clip, name in zip(axes, clips, names, strict=True):
            original, masked, filled = (image.float().cpu() for image in clip)
            is_masked = masked.isnan()
            predicted = filled.where(is_masked, torch.nan)
            error = filled - original
            low, high = (float(torch.quantile(original, q)) for q in (0.02, 0.995))
            seconds = len(original) * front_end.shift_samples / front_end.sample_rate_hz
            levels = {"vmin": low, "vmax": max(high, low + 1e-3)}
            limit = max(1e-3, float(torch.quantile(error[is_masked].abs(), 0.99)))
            for axis, image in zip(row, (original, masked, predicted), strict=False):
                shown = spectrogram(axis, image.numpy(), seconds, ticks, **levels)
            wrong = error.where(is_masked, torch.nan).numpy()
            difference = spectrogram(row[3], wrong, seconds, ticks, cmap="RdBu_r", vmin=-limit, vmax=limit)
            figure.colorbar(shown, ax=row[2], label="normalized log-mel")
            figure.colorbar(difference, ax=row[3], label="predicted - original")
            row[3].set_title(f"squared error {float(error[is_masked].square().mean()):.3f}", loc="right", fontsize=7)
            row[0].set_ylabel(f"{show(name[-28:])}\nHz")
        titles = ("original", "visible patches", "predicted patches", "their error")
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title)
        for axis in axes.flat:
            axis.label_outer()
        return figure


@dataclass(frozen=True)
class ReconstructionReport:
    """Result of `reconstruct_recording`. As text, a summary."""

    output: Path
    """The plot."""
    audio: Path | None
    """The sound."""
    error: float
    """Mean squared error over the masked patches, in normalized log-mel."""
    is_new: bool
    """False if the files were there already."""

    def __str__(self) -> str:
        there = "" if self.is_new else "nothing to do: "
        sound = "" if self.audio is None else f", as sound in {self.audio}"
        return f"{there}mean squared error of the masked patches {self.error:.4f}, plot in {self.output}{sound}"


def reconstruct_recording(
    recording: str | Path,
    output: str | Path,
    checkpoint: str | Path | None = None,
    *,
    audio: str | Path | None = None,
    ratio: float = 400 / 512,
    style: MaskStyle | None = None,
    seed: int = 0,
    start: float = 0.0,
    overwrite: bool = False,
) -> ReconstructionReport:
    """Mask 10.24 s of a recording, predict the masked patches, and write the result as a plot and as sound.

    The plot holds the settings in its metadata. If it is there with the same ones, nothing is done.

    Args:
        recording: an audio file.
        output: image file to write: .png, .pdf or .svg.
        checkpoint: a pretraining checkpoint with prediction heads; None means the one that ships with ssamba.
        audio: a .wav file to write, too; the phase is estimated by Griffin and Lim's iteration.
        ratio: share of the patches to mask.
        style: as for `draw_mask`.
        seed: random seed of the mask.
        start: start in the recording, in seconds.
        overwrite: replace files that were made otherwise.

    Raises:
        OtherSettingsError: the plot was made with other settings; the message names each difference.
        ConfigError: an option has a wrong type or is out of range, or a file to write has an unknown suffix.
        DataError: a file is there that was not written by this function.
        CheckpointError: the checkpoint has no prediction heads.
        AudioDecodeError: the recording cannot be read.
        ValueError: the recording is too short.
    """
    recording, output = user_path(recording), user_path(output)
    sound_file = None if audio is None else user_path(audio)
    for path, suffixes in ((output, tuple(_METADATA)), (sound_file, (".wav",))):
        if path is not None and (path.suffix not in suffixes or path.is_dir()):
            raise ConfigError(f"{path}: expected a file name that ends in {', '.join(suffixes)}")
    _Options.parse({"ratio": ratio, "style": style, "seed": seed, "start": start}, "reconstruct")
    loaded = load_checkpoint(checkpoint)
    model, front_end = loaded.model, loaded.front_end
    if not isinstance(model, PretrainingModel):
        raise CheckpointError(
            f"{loaded.report.name} is of kind {loaded.config.kind!r}, without prediction heads: "
            "expected a pretraining checkpoint (a run of `ssamba pretrain`, or an official pretraining file)"
        )
    rate_hz = front_end.sample_rate_hz
    wave = torch.from_numpy(decode(recording, sample_rate_hz=rate_hz, start_s=start, duration_s=_CROP_S))
    patch_frames = model.encoder.config.patch_size[1]
    if len(wave) < front_end.frame_samples + (patch_frames - 1) * front_end.shift_samples:
        raise ValueError(
            f"{recording}: {len(wave) / rate_hz:.3f} s are shorter than one patch: give a longer recording"
        )
    settings = {
        "model": loaded.report.name,
        "weights": digest_of(model.state_dict()),
        "samples": digest_of(wave.numpy()),
        **{"ratio": ratio, "style": style, "seed": seed, "start": start},
    }
    if not overwrite:
        error = _error_if_there(output, sound_file, settings)
        if error is not None:
            return ReconstructionReport(output, sound_file, error, is_new=False)
    result = reconstruct(model.eval(), log_mel(wave, config=front_end), seed, ratio, style)
    error = float((result.filled - result.original)[result.masked.isnan()].square().mean())
    if sound_file is not None:
        import soundfile

        sound = features_to_waveform(result.filled, front_end).numpy()
        sound_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(sound_file, lambda path: soundfile.write(soundfile_path(path), sound, rate_hz, format="WAV"))
    figure = plot_reconstructions([result], [recording.stem], front_end)
    save_figure(figure, output, metadata={_METADATA[output.suffix]: _MARK + json.dumps({**settings, "error": error})})
    return ReconstructionReport(output, sound_file, error, is_new=True)


def _error_if_there(output: Path, sound_file: Path | None, settings: Mapping[str, Any]) -> float | None:
    """Return the error that a plot with the same settings records; None if there is no plot, or no sound with it."""
    if not output.exists():
        if sound_file is not None and sound_file.exists():
            raise DataError(f"{sound_file} exists without {output}: {_REMEDY}")
        return None
    found = re.search(re.escape(_MARK).encode() + rb"(\{.*?\})", output.read_bytes())
    if found is None:
        raise DataError(f"{output} exists and was not written by `ssamba reconstruct`: {_REMEDY}")
    before = json.loads(found[1])
    changed = [
        f"the {name} differ" if name in ("weights", "samples") else f"{name} was {before.get(name)!r}, is {value!r}"
        for name, value in settings.items()
        if name != "model" and before.get(name) != value
    ]
    if changed:
        raise OtherSettingsError(f"{output} was made with other settings: {'; '.join(changed)}: {_REMEDY}")
    return None if sound_file is not None and not sound_file.exists() else float(before["error"])
