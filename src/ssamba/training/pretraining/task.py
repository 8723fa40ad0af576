"""Pretraining on unlabeled recordings: from batches of waveforms to the objectives (SSAMBA, section 3.3, and ours).

    waveforms -> log-mel features -> one or two views -> augmented -> normalized -> masked -> model -> losses

All of it runs batched on the training device. The randomness of a clip follows from the clip's own seed.

Shapes: B clips, T frames, M mel bins, L patch tokens; `views` of all clips, `values` of a target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.audio.augmentation import Crop, apply_crop, augment, change_speed, draw_crop
from ssamba.audio.fbank import fbank, frame_lengths, normalize
from ssamba.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssamba.config import Config, FrontEndConfig, ModelConfig, ModelIdentity
from ssamba.data.loader import WaveBatch
from ssamba.errors import ConfigError
from ssamba.model.encoder import PatchTokens
from ssamba.model.masking import draw_mask
from ssamba.model.objectives import (
    clip_contrast,
    info_nce,
    log_mel_statistics,
    log_mel_texture,
    profile_bands,
    reconstruction_error,
    remove_channel,
    temporal_profile,
    texture_values,
    unit_cross_entropy,
)
from ssamba.model.patches import column_counts, order_tokens
from ssamba.model.pretraining import PretrainingModel, PretrainingOutput
from ssamba.training.pretraining.data import Corpora
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.pretraining.targets import RunningScale, SoundUnits, gather_views, scale_gradient_to_rank
from ssamba.training.task import StepContext, StepOutcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNIT_EPOCHS = 3  # read at most to fit sound units


@torch.no_grad()
def load_initial_weights(model: PretrainingModel, start: Checkpoint, front_end: FrontEndConfig) -> tuple[str, ...]:
    """Copy the weights of a checkpoint into a model: the encoder, and other parameters of the same name and shape.

    Args:
        model: filled in place.
        start: the checkpoint to start from.
        front_end: that of the run, which must be the checkpoint's.

    Returns:
        Names of the parameters that stay random, since the checkpoint has none that fit.

    Raises:
        ConfigError: the checkpoint has another encoder or front end.
    """
    _check_equal("encoder", start.config.encoder, model.encoder.config, start.report.name)
    _check_equal("front end", start.front_end, front_end, start.report.name)
    tensors = start.model.state_dict()
    random = []
    for name, value in model.state_dict().items():
        if name in tensors and tensors[name].shape == value.shape:
            value.copy_(tensors[name])
        else:
            random.append(name)
    return tuple(random)


def _check_equal(part: str, theirs: Config, ours: Config, source: str) -> None:
    """Raise a ConfigError that names every difference between two configurations."""
    if type(theirs) is not type(ours):
        raise ConfigError(
            f"model.start: the {part} of {source} is a {type(theirs).__name__}, not a {type(ours).__name__}"
        )
    own = ours.model_dump()
    other = [f"{key} {value!r} (here {own[key]!r})" for key, value in theirs.model_dump().items() if value != own[key]]
    if other:
        raise ConfigError(f"model.start: {source} has another {part}: {', '.join(other)}. Set them to the same values")


class Inputs(NamedTuple):
    """Inputs of the model for a batch: the first views of all clips, then their second views."""

    features: Tensor
    """Normalized (views, T, M)."""
    lengths: Tensor
    """Valid frames (views,), rounded up to whole patches."""
    frames: Tensor
    """Frames of the recording itself (views,)."""
    seeds: Tensor
    """Seed of each view (views,)."""
    clean: Tensor
    """Normalized features before augmentation (views, T, M)."""


class PretrainingTask:
    """The task of the training loop: a pretraining model on the corpora of a recipe."""

    best_metric: tuple[str, Literal["min", "max"]]

    def __init__(self, recipe: PretrainRecipe, corpora: Corpora, start: Checkpoint | None = None):
        """Build the model, seeded by the recipe.

        Args:
            recipe: all settings.
            corpora: the recordings.
            start: the checkpoint to start from, if it is loaded already; None loads that of the recipe, if it has one.

        Raises:
            CheckpointError: the model to start from is unknown or damaged.
            ConfigError: it has another encoder or front end than the recipe.
        """
        torch.manual_seed(recipe.run.seed)
        self.recipe = recipe
        self.corpora = corpora
        self.model = PretrainingModel(recipe.model.config(), recipe.pretraining())
        self.mask_ratio = recipe.mask_ratio
        self.base: ModelIdentity | None = None
        if recipe.model.start is not None:
            start = start or load_checkpoint(recipe.model.start)
            load_initial_weights(self.model, start, recipe.front_end)
            self.base = start.identity
        self.teacher = (
            copy.deepcopy(self.model.encoder).requires_grad_(False).eval() if recipe.objectives.teacher else None
        )
        bins = recipe.front_end.num_mel_bins
        self.scales = {
            "statistics": RunningScale(3 * bins),
            "profile": RunningScale(recipe.objectives.profile_segments * profile_bands(bins)),
            "texture": RunningScale(texture_values(bins)),
        }
        self.units = self._fit_units() if recipe.objectives.units else None
        self.best_metric = ("loss", "min") if recipe.best == "loss" else ("accuracy", "max")
        self.unreported = corpora.skipped  # reported with the first step

    def batches(self, epoch: int, start: int, rank: int, world_size: int) -> Iterator[WaveBatch]:
        """Return this rank's parts of the batches of an epoch."""
        return self.corpora.batches(epoch, start, rank, world_size)

    def batches_in_epoch(self, epoch: int) -> int:
        """Return the number of global batches of an epoch."""
        return self.corpora.batches_in_epoch(epoch)

    def step_loss(self, model: nn.Module, batch: WaveBatch, context: StepContext) -> StepOutcome:
        """Return the weighted sum of the objectives on this rank's part of a batch."""
        batch, too_short = self._without_short_clips(batch)
        skipped, self.unreported = (*self.unreported, *batch.skipped, *too_short), ()
        if not len(batch):
            self._join_collectives(context.device)
            return StepOutcome(None, 0.0, skipped=skipped)
        inputs = self.inputs(batch, context.device, training=True)
        with context.autocast():
            loss, metrics = self.losses(model, inputs, training=True)
        return StepOutcome(
            loss,
            float(len(batch)),
            metrics,
            clips=len(batch.keys),
            audio_s=batch.num_samples / self.recipe.front_end.sample_rate_hz,
            keys=[key for keys in batch.keys for key in keys],
            skipped=skipped,
        )

    def _without_short_clips(self, batch: WaveBatch) -> tuple[WaveBatch, tuple[tuple[str, str], ...]]:
        """Return the clips of at least one frame, and key and reason of the others."""
        front_end = self.recipe.front_end
        short = batch.samples < front_end.frame_samples
        if not short.any():
            return batch, ()
        reason = f"shorter than one frame of {front_end.frame_ms:g} ms"
        skipped = tuple((key, reason) for i in short.nonzero()[:, 0].tolist() for key in batch.keys[i])
        return batch.chosen((~short).nonzero()[:, 0].tolist()), skipped

    def _join_collectives(self, device: torch.device) -> None:
        """Take part in the collectives of `losses`, in their order, without a clip."""
        weights = self.recipe.objectives
        for name, scale in self.scales.items():
            if getattr(weights, name):
                scale.standardize(torch.zeros(0, len(scale.mean), device=device), training=True)
        if weights.clip:
            gather_views(torch.zeros(0, weights.clip_dim, device=device))

    def inputs(self, batch: WaveBatch, device: torch.device, *, training: bool) -> Inputs:
        """Compute the features of a batch: augmented views while training, otherwise the whole crop as it is."""
        recipe, front_end = self.recipe, self.recipe.front_end
        encoder = recipe.model.config()
        patch = encoder.patch_size[1]
        waves, samples, seeds = (x.to(device, non_blocking=True) for x in (batch.waves, batch.samples, batch.seeds))
        features = fbank(waves, samples, config=front_end)
        frames = frame_lengths(samples, front_end)
        if training and recipe.views.count == 2:
            longest = max(patch, int(recipe.views.longest_s * 1000 / front_end.shift_ms) // patch * patch)
            share, whole = recipe.views.shortest_share, int(recipe.views.whole_s * 1000 / front_end.shift_ms)
            crops = [
                draw_crop(frames, seeds, f"view{i}", longest=longest, shortest_share=share, step=patch, whole=whole)
                for i in range(2)
            ]
        else:
            crops = [Crop(torch.zeros_like(frames), frames)]
        multiple = patch * max(1, -(-int(max(int(crop.lengths.max()) for crop in crops)) // patch))
        features = torch.cat([apply_crop(features, crop, fill=0.0, multiple=multiple) for crop in crops])
        lengths = torch.cat([crop.lengths for crop in crops])
        seeds = torch.cat([seeds + i for i in range(len(crops))])
        if training and recipe.augmentation.speed:
            features, lengths = change_speed(features, seeds, recipe.augmentation.speed, lengths, encoder.num_frames)
            features = F.pad(features, (0, 0, 0, -features.shape[1] % patch))
        clean = normalize(features, front_end)
        if training:
            features = augment(features, seeds, recipe.augmentation, lengths, front_end)
        features = normalize(features, front_end)
        # The last patch of a clip is padded with log-mel 0 and counts as valid, as in `Embedder`.
        return Inputs(features, -(-lengths // patch) * patch, lengths, seeds, clean)

    def losses(
        self, model: nn.Module, inputs: Inputs, *, training: bool, ratio: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of all objectives, and all objectives and accuracies by name.

        Args:
            model: `self.model`, perhaps wrapped by DDP.
            inputs: as from `inputs`.
            training: also compute the clip objective, and update running statistics.
            ratio: share of the patches to mask; None means the recipe's.
        """
        weights = self.recipe.objectives
        out = self.predict(model, inputs, "mask", ratio)
        metrics: dict[str, Tensor] = {}
        valid, values = out.masked.valid, out.values
        metrics["discriminative"], metrics["accuracy"] = info_nce(out.discriminative.float(), values, valid)
        second = self.predict(model, inputs, "mask2", ratio) if weights.passes == 2 else out
        metrics["generative"] = reconstruction_error(second.generative.float(), second.values, second.masked.valid)
        total = weights.discriminative * metrics["discriminative"] + weights.generative * metrics["generative"]
        for name, prediction in (("statistics", out.statistics), ("profile", out.profile), ("texture", out.texture)):
            if prediction is not None:
                target = self.scales[name].standardize(self._clip_target(name, inputs), training)
                metrics[name] = F.mse_loss(prediction.float(), target)
                total = total + getattr(weights, name) * metrics[name]
        if out.units is not None:
            units = self.unit_targets(inputs)
            seen = unit_cross_entropy(
                out.units.visible.float(), out.units.visible_patches.gather(units), out.units.visible_patches.valid
            )
            hidden = unit_cross_entropy(out.units.masked.float(), out.masked.gather(units), valid)
            metrics["units_seen"], metrics["units_seen_accuracy"] = seen
            metrics["units_hidden"], metrics["units_hidden_accuracy"] = hidden
            total = total + weights.units * (seen.loss + hidden.loss) / 2
        if out.latent is not None:
            metrics["teacher"] = reconstruction_error(out.latent.float(), self.teacher_tokens(inputs, out), valid)
            total = total + weights.teacher * metrics["teacher"]
        if out.projection is not None and training:
            views = gather_views(out.projection.float())
            loss, metrics["clip_accuracy"] = clip_contrast(views.projections, views.partner, weights.temperature)
            metrics["clip"] = scale_gradient_to_rank(loss, views.rank_share)
            total = total + weights.clip * metrics["clip"]
        metrics["loss"] = total
        return total, {name: value.detach() for name, value in metrics.items()}

    def _clip_target(self, name: str, inputs: Inputs) -> Tensor:
        """Compute the target that the clip vector predicts by regression (views, values)."""
        objectives = self.recipe.objectives
        if name == "statistics":
            return log_mel_statistics(inputs.features, inputs.lengths)
        if name == "texture":
            return log_mel_texture(inputs.features, inputs.lengths)
        if objectives.profile_target == "clean":
            levels = remove_channel(inputs.clean * (2 * self.recipe.front_end.std), inputs.frames)
            return temporal_profile(levels, inputs.frames, objectives.profile_segments)
        return temporal_profile(inputs.features, inputs.lengths, objectives.profile_segments)

    def predict(self, model: nn.Module, inputs: Inputs, stream: str, ratio: float | None = None) -> PretrainingOutput:
        """Mask patches and run the model; `stream` is `mask` or `mask2`, which draws another mask of the same clips."""
        config = self.model.encoder.config
        columns = column_counts(inputs.lengths, config)
        seeds = inputs.seeds if stream == "mask" else inputs.seeds ^ 0x5DEECE66D
        mask = draw_mask(
            seeds,
            config,
            columns,
            config.columns(inputs.features.shape[1]),
            ratio=ratio or self.mask_ratio,
            style=self.recipe.masking.style,
        )
        out: PretrainingOutput = model(inputs.features, mask, inputs.lengths)
        return out

    @torch.no_grad()
    def unit_targets(self, inputs: Inputs) -> Tensor:
        """Return the sound unit of every patch (views, L): that of its column; arbitrary beyond a clip's end."""
        assert self.units is not None
        config = self.model.encoder.config
        units = self.units.units(inputs.clean, inputs.frames)[:, : config.columns(inputs.features.shape[1])]
        grid = units[:, None, :, None].expand(-1, config.rows, -1, -1)
        return order_tokens(grid, config, column_counts(inputs.lengths, config))[..., 0]

    def _fit_units(self) -> SoundUnits:
        """Fit sound units to the first training batches, the same on every rank."""
        config, front_end = self.recipe.model.config(), self.recipe.front_end
        units = SoundUnits(self.recipe.objectives.unit_count, config.patch_size[1], 2 * front_end.std)

        def clean() -> Iterator[tuple[Tensor, Tensor]]:
            for epoch in range(_UNIT_EPOCHS):
                for found in self.corpora.batches(epoch, 0, 0, 1):
                    batch, _ = self._without_short_clips(found)
                    if len(batch):
                        inputs = self.inputs(batch, torch.device("cpu"), training=False)
                        yield inputs.clean, inputs.frames

        units.fit(clean(), self.recipe.run.seed)
        return units

    @torch.no_grad()
    def teacher_tokens(self, inputs: Inputs, out: PretrainingOutput) -> Tensor:
        """Return the teacher's tokens at the masked patches, each normalized over its channels (as in data2vec)."""
        assert self.teacher is not None
        self.teacher.to(inputs.features.device)
        patches: PatchTokens = self.teacher.embed_patches(inputs.features, inputs.lengths)
        tokens = self.teacher.encode(patches)[:, self.teacher.num_prefix_tokens :].float()
        return out.masked.gather(F.layer_norm(tokens, tokens.shape[-1:]))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Update the momentum teacher."""
        if self.teacher is None:
            return
        keep = 1 - (1 - self.recipe.objectives.teacher_decay) / max(1.0, step / 100) ** 0.5
        for slow, fast in zip(self.teacher.parameters(), self.model.encoder.parameters(), strict=True):
            slow.to(fast.device).lerp_(fast, 1 - keep) if slow.device == fast.device else slow.copy_(fast)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return losses and accuracies on held-out clips at every mask count, with the same masks at every call."""
        sums: dict[str, float] = {}
        clips = 0
        device = next(model.parameters()).device
        for found in self.corpora.validation():
            batch, _ = self._without_short_clips(found)
            if not len(batch):
                continue
            inputs = self.inputs(batch, device, training=False)
            clips += len(batch)
            for count in self.recipe.validation_counts:
                _, metrics = self.losses(model, inputs, training=False, ratio=count / 512)
                for name, value in metrics.items():
                    key = f"{name}@{count}"
                    sums[key] = sums.get(key, 0.0) + float(value) * len(batch)
        result = {name: value / clips for name, value in sums.items()}
        best = self.best_metric[0]
        result[best] = math.nan
        if clips:
            nearest = min(self.recipe.validation_counts, key=lambda count: abs(count / 512 - self.mask_ratio))
            result[best] = result[f"{best}@{nearest}"]
        self.unreported += self.corpora.unreadable_held_out
        self.corpora.unreadable_held_out = ()
        return result

    @torch.no_grad()
    def pictures(self, model: nn.Module, step: int) -> Mapping[str, Figure]:
        """Plot reconstructions of up to three held-out clips, from the batch with the longest ones."""
        from ssamba.training.pretraining.reconstruct import plot_reconstructions, reconstruct

        assert isinstance(model, PretrainingModel)
        device = next(model.parameters()).device
        batches = [self._without_short_clips(batch)[0] for batch in self.corpora.validation()]
        batch = max(batches, key=lambda batch: batch.waves.shape[1] if len(batch) else 0, default=None)
        if batch is None or not len(batch):
            return {}
        inputs = self.inputs(batch, device, training=False)
        clips = []
        for i in range(min(3, len(inputs.lengths))):
            features = inputs.features[i, : int(inputs.lengths[i])]
            seed = int(inputs.seeds[i])
            clips.append(reconstruct(model, features, seed, self.mask_ratio, self.recipe.masking.style))
        return {
            "reconstruction": plot_reconstructions(clips, [keys[0] for keys in batch.keys[:3]], self.recipe.front_end)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs besides the model."""
        state: dict[str, Any] = {
            "corpora": self.corpora.plan.fingerprint(),
            "data": self.corpora.summary(),
            **{name: scale.state_dict() for name, scale in self.scales.items()},
        }
        if self.units is not None:
            state["units"] = self.units.state_dict()
        if self.teacher is not None:
            state["teacher"] = self.teacher.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            DataError: the corpora are not those of the saved run.
        """
        self.corpora.check_same(state["corpora"], state.get("data", ()))
        for name, scale in self.scales.items():
            scale.load_state_dict(state[name])
        if self.units is not None:
            self.units.load_state_dict(state["units"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model with its heads as a checkpoint folder."""
        assert isinstance(model, PretrainingModel)
        config = ModelConfig(
            kind="pretraining", encoder=model.encoder.config, pretraining=model.pretraining, base=self.base
        )
        save_checkpoint(folder, model, config, self.recipe.front_end)
