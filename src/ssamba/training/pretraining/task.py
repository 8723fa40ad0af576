"""Pretraining on unlabeled recordings: from batches of waveforms to the objectives.

    waveforms -> log-mel features -> one or two views -> augmented -> normalized -> masked -> model -> losses

All of it runs batched on the training device. The randomness of a clip follows from the clip's own seed.

Shapes: B clips, T frames, M mel bins, L patch tokens; `views` of all clips, `values` of a target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.audio.augmentation import Crop, apply_crop, augment, change_speed, draw_crop
from ssamba.audio.fbank import fbank, frame_lengths, normalize
from ssamba.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssamba.config import Config, FrontEndConfig, ModelConfig, ModelIdentity
from ssamba.data.loader import WaveBatch
from ssamba.errors import ConfigError, TrainingError
from ssamba.model.masking import draw_mask
from ssamba.model.patches import column_counts
from ssamba.model.pretraining import PretrainingModel, PretrainingOutput
from ssamba.training.pretraining.data import Corpora
from ssamba.training.pretraining.extensions import (
    RESERVED_NAMES,
    Extensions,
    Inputs,
    ObjectiveStep,
    augmented,
    load_extensions,
    objective_loss,
)
from ssamba.training.pretraining.objectives import build_objectives
from ssamba.training.pretraining.recipe import OBJECTIVE_NAMES, PretrainRecipe
from ssamba.training.pretraining.views import change_voices, label_numbers, mix_views
from ssamba.training.task import StepContext, StepOutcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PREPARE_EPOCHS = 3  # that objectives may read to get ready


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


class PretrainingTask:
    """The task of the training loop: a pretraining model on the corpora of a recipe."""

    best_metric: tuple[str, Literal["min", "max"]]

    def __init__(
        self,
        recipe: PretrainRecipe,
        corpora: Corpora,
        start: Checkpoint | None = None,
        extensions: Extensions | None = None,
    ):
        """Build the model, seeded by the recipe.

        Args:
            recipe: all settings.
            corpora: the recordings.
            start: the checkpoint to start from, if it is loaded already; None loads that of the recipe, if it has one.
            extensions: objectives and augmentations that the recipe names, as from `load_extensions`; None finds them.

        Raises:
            CheckpointError: the model to start from is unknown or damaged.
            ConfigError: it has another encoder or front end than the recipe, or the recipe names unknown objectives.
        """
        extensions = extensions or load_extensions(recipe)
        self.objectives = build_objectives(recipe, extensions)
        torch.manual_seed(recipe.run.seed)
        self.recipe = recipe
        self.corpora = corpora
        encoder = recipe.model.config()
        built_in = [head for one in self.objectives if one.name in OBJECTIVE_NAMES for head in one.heads(encoder)]
        heads = recipe.pretraining().with_changes(heads=(*built_in, *extensions.heads(encoder)))
        self.model = PretrainingModel(encoder, heads)
        self.mask_ratio = recipe.mask_ratio
        self.base: ModelIdentity | None = None
        if recipe.model.start is not None:
            start = start or load_checkpoint(recipe.model.start)
            load_initial_weights(self.model, start, recipe.front_end)
            self.base = start.identity
        self.augmentations = extensions.augmentations
        for objective in self.objectives:
            objective.prepare(self.model, recipe, self._unchanged_clips)
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
            for objective in self.objectives:
                objective.join(context.device)
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

    def inputs(self, batch: WaveBatch, device: torch.device, *, training: bool) -> Inputs:
        """Compute the features of a batch: augmented views while training, otherwise the whole crop as it is."""
        recipe, front_end = self.recipe, self.recipe.front_end
        encoder = recipe.model.config()
        patch = encoder.patch_size[1]
        batch = batch.to(device)
        heard = [(fbank(batch.waves, batch.samples, config=front_end), frame_lengths(batch.samples, front_end))]
        seeds = batch.seeds
        if training and recipe.views.count == 2:
            if batch.other_waves is None or batch.other_samples is None:
                heard *= 2
            else:
                other = fbank(batch.other_waves, batch.other_samples, config=front_end)
                heard.append((other, frame_lengths(batch.other_samples, front_end)))
            longest = max(patch, int(recipe.views.longest_s * 1000 / front_end.shift_ms) // patch * patch)
            share, whole = recipe.views.shortest_share, int(recipe.views.whole_s * 1000 / front_end.shift_ms)
            crops = [
                draw_crop(frames, seeds, f"view{i}", longest=longest, shortest_share=share, step=patch, whole=whole)
                for i, (_, frames) in enumerate(heard)
            ]
        else:
            crops = [Crop(torch.zeros_like(heard[0][1]), heard[0][1])]
        multiple = patch * max(1, -(-int(max(int(crop.lengths.max()) for crop in crops)) // patch))
        views = [
            apply_crop(features, crop, fill=0.0, multiple=multiple)
            for (features, _), crop in zip(heard, crops, strict=True)
        ]
        features = torch.cat(views)
        lengths = torch.cat([crop.lengths for crop in crops])
        seeds = torch.cat([seeds + i for i in range(len(crops))])
        if training and recipe.augmentation.speed:
            features, lengths = change_speed(features, seeds, recipe.augmentation.speed, lengths, encoder.num_frames)
            features = F.pad(features, (0, 0, 0, -features.shape[1] % patch))
        clean = normalize(features, front_end)
        other_voice = mixed = None
        if training and len(crops) == 2:
            features, other_voice = change_voices(features, seeds, recipe.views.other_voice, front_end)
            if batch.has_other is not None:
                other_take = torch.cat((torch.zeros_like(batch.has_other), batch.has_other))
                other_voice = other_take if other_voice is None else other_voice | other_take
            features, mixed = mix_views(features, seeds, lengths, recipe.views.mixed)
        if training:
            features = augment(features, seeds, recipe.augmentation, lengths, front_end)
            for augmentation in self.augmentations:
                features = augmented(features, augmentation, seeds, lengths)
        features = normalize(features, front_end)
        # The last patch of a clip is padded with log-mel 0 and counts as valid, as in `Embedder`.
        keys = batch.keys * len(crops)
        lengths, frames = -(-lengths // patch) * patch, lengths
        labels = None
        if training and recipe.views.same_label_share:
            labels = label_numbers(batch.labels).to(device).repeat(len(crops))
        return Inputs(features, lengths, frames, seeds, clean, keys, other_voice, mixed, labels)

    def losses(
        self, model: nn.Module, inputs: Inputs, *, training: bool, ratio: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of all objectives, and all objectives and their figures by name.

        The sum is `loss` among them, unless all objectives of weight above 0 leave themselves out of a validation.

        Args:
            model: `self.model`, perhaps wrapped by DDP.
            inputs: as from `inputs`.
            training: also compute the clip objective, and update running statistics.
            ratio: share of the patches to mask; None means the recipe's.

        Raises:
            TrainingError: two objectives give a figure the same name, or one that the log has already; or a loss is
                not a scalar.
        """
        out = self.predict(model, inputs, "mask", ratio)
        second = self.predict(model, inputs, "mask2", ratio) if self.recipe.objectives.passes == 2 else out
        step = ObjectiveStep(inputs, out, second, training, self.model.encoder.config, self.recipe.front_end)
        total: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        has_weight = False
        for objective in self.objectives:
            found = objective_loss(objective, step)
            if found is None:
                continue
            new = {objective.name: found.value} | {name: torch.as_tensor(one) for name, one in found.figures.items()}
            if twice := [*new.keys() & {*metrics, *(RESERVED_NAMES - {"accuracy"})}]:
                raise TrainingError(f"two figures are named {twice[0]!r}: the second is of {type(objective).__name__}")
            metrics |= new
            has_weight |= objective.weight > 0
            value = objective.weight * found.value
            total = value if total is None else total + value
        assert total is not None
        if training or has_weight:
            metrics["loss"] = total
        return total, {name: value.detach() for name, value in metrics.items()}

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

    def _unchanged_clips(self) -> Iterator[Inputs]:
        """Yield training clips without augmentation, the same on every rank."""
        for epoch in range(_PREPARE_EPOCHS):
            for found in self.corpora.batches(epoch, 0, 0, 1):
                batch, _ = self._without_short_clips(found)
                if len(batch):
                    yield self.inputs(batch, torch.device("cpu"), training=False)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Tell the objectives."""
        for objective in self.objectives:
            objective.after_step(self.model, step)

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
            result[best] = result.get(f"{best}@{nearest}", math.nan)
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
        states = {objective.name: objective.state_dict() for objective in self.objectives}
        return {
            "corpora": self.corpora.fingerprint(),
            "data": self.corpora.summary(),
            **{name: state for name, state in states.items() if state},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            DataError: the corpora are not those of the saved run.
        """
        self.corpora.check_same(state["corpora"], state.get("data", ()))
        for objective in self.objectives:
            if objective.name in state:
                objective.load_state_dict(state[objective.name])

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model with its heads as a checkpoint folder."""
        assert isinstance(model, PretrainingModel)
        config = ModelConfig(
            kind="pretraining",
            encoder=model.encoder.config,
            pretraining=model.pretraining,
            base=self.base,
            recipe=self.recipe.recorded(),
        )
        save_checkpoint(folder, model, config, self.recipe.front_end)
