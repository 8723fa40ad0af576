"""Pretraining on unlabeled recordings: from batches of waveforms to the objectives (SSAMBA, section 3.3, and ours).

A batch goes waveforms -> log-mel features -> one or two views, changed at random -> normalized -> masked -> model. All
of it runs batched on the training device, and everything random about a clip follows from the clip's own seed.

Shapes: B clips, S samples, T frames, M mel bins, L patch tokens, K hidden patches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.audio.augmentation import Crop, apply_crop, augment, change_speed, draw_crop
from ssamba.audio.fbank import fbank, frame_lengths, normalize
from ssamba.checkpoint import save_checkpoint
from ssamba.config import ModelConfig
from ssamba.data.loader import WaveBatch
from ssamba.model.encoder import PatchTokens
from ssamba.model.masking import draw_mask
from ssamba.model.objectives import (
    clip_contrast,
    info_nce,
    log_mel_statistics,
    log_mel_texture,
    profile_bands,
    reconstruction_error,
    temporal_profile,
    texture_values,
    unit_cross_entropy,
    without_channel,
)
from ssamba.model.patches import column_counts, order_tokens
from ssamba.model.pretraining import PretrainingModel, PretrainingOutput
from ssamba.training.loop import train
from ssamba.training.pretraining.contrast import as_own_mean, gather_views
from ssamba.training.pretraining.data import Corpora, open_corpora
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.pretraining.running_scale import RunningScale
from ssamba.training.pretraining.start import start_from
from ssamba.training.pretraining.units import SoundUnits
from ssamba.training.run_io import TrainingProgress, TrainingReport
from ssamba.training.task import StepContext, StepOutcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_UNIT_EPOCHS = 3  # that are read at most to find classes of sound in


class Inputs(NamedTuple):
    """What the model reads of a batch: all views, one after the other."""

    features: Tensor
    """Normalized (V, T, M)."""
    lengths: Tensor
    """Valid frames (V,), with those that fill up the last patch."""
    frames: Tensor
    """Valid frames of the recording itself (V,)."""
    seeds: Tensor
    """A seed for each view (V,)."""
    clean: Tensor
    """The features before augmentation (V, T, M), normalized."""


class PretrainingTask:
    """What the loop trains: the pretraining model on the corpora of a recipe."""

    best_metric: tuple[str, Literal["min", "max"]]

    def __init__(self, recipe: PretrainRecipe, corpora: Corpora):
        torch.manual_seed(recipe.run.seed)
        self.recipe = recipe
        self.corpora = corpora
        self.model = PretrainingModel(recipe.model.config(), recipe.pretraining())
        self.mask_ratio = recipe.mask_ratio
        if recipe.model.start is not None:
            start_from(self.model, recipe.model.start, recipe.front_end)
        self.teacher = (
            copy.deepcopy(self.model.encoder).requires_grad_(False).eval() if recipe.objectives.teacher else None
        )
        bins = recipe.front_end.num_mel_bins
        self.statistics = RunningScale(3 * bins)
        self.profile = RunningScale(recipe.objectives.profile_segments * profile_bands(bins))
        self.texture = RunningScale(texture_values(bins))
        self.units = self._find_units() if recipe.objectives.units else None
        self.best_metric = ("loss", "min") if recipe.best == "loss" else ("accuracy", "max")
        # Reported with the first step: what was found broken when the corpora were opened.
        self.unreported = corpora.skipped

    def batches(self, epoch: int, start: int, rank: int, world: int) -> Iterator[WaveBatch]:
        """This process's shares of an epoch's batches."""
        return self.corpora.batches(epoch, start, rank, world)

    def batches_in_epoch(self, epoch: int) -> int:
        """Global batches of an epoch."""
        return self.corpora.batches_in_epoch(epoch)

    def step_loss(self, model: nn.Module, batch: WaveBatch, context: StepContext) -> StepOutcome:
        """The weighted sum of the objectives on a share of a batch."""
        batch, scraps = self._without_scraps(batch)
        skipped, self.unreported = (*self.unreported, *batch.skipped, *scraps), ()
        if not len(batch):
            self._share_nothing(context.device)
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

    def _without_scraps(self, batch: WaveBatch) -> tuple[WaveBatch, tuple[tuple[str, str], ...]]:
        """The sequences that hold a frame, and name and reason of those that do not."""
        front_end = self.recipe.front_end
        short = batch.samples < front_end.frame_samples
        if not short.any():
            return batch, ()
        reason = f"shorter than one frame of {front_end.frame_ms:g} ms"
        names = tuple((key, reason) for i in short.nonzero()[:, 0].tolist() for key in batch.keys[i])
        return batch.chosen((~short).nonzero()[:, 0].tolist()), names

    def _share_nothing(self, device: torch.device) -> None:
        """Take part in what the processes exchange in a step, in the order of `losses`, with no clip."""
        weights = self.recipe.objectives
        parts = (
            (weights.statistics, self.statistics), (weights.profile, self.profile), (weights.texture, self.texture)
        )  # fmt: skip
        for weight, scale in parts:
            if weight:
                scale.scaled(torch.zeros(0, len(scale.mean), device=device), training=True)
        if weights.clip:
            gather_views(torch.zeros(0, weights.clip_dim, device=device))

    def inputs(self, batch: WaveBatch, device: torch.device, *, training: bool) -> Inputs:
        """Features of a batch: views and changes while training, the whole crop unchanged otherwise."""
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
        # The last patch of a clip is filled with frames of log-mel 0 and counts, as when a clip is embedded.
        return Inputs(features, -(-lengths // patch) * patch, lengths, seeds, clean)

    def losses(
        self, model: nn.Module, inputs: Inputs, *, training: bool, ratio: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all objectives, and each of them with the accuracies."""
        weights = self.recipe.objectives
        out = self.predict(model, inputs, "mask", ratio)
        metrics: dict[str, Tensor] = {}
        valid, values = out.hidden.valid, out.values
        metrics["discriminative"], metrics["accuracy"] = info_nce(out.discriminative.float(), values, valid)
        second = self.predict(model, inputs, "mask2", ratio) if weights.passes == 2 else out
        metrics["generative"] = reconstruction_error(second.generative.float(), second.values, second.hidden.valid)
        total = weights.discriminative * metrics["discriminative"] + weights.generative * metrics["generative"]
        if out.statistics is not None:
            target = self.statistics.scaled(log_mel_statistics(inputs.features, inputs.lengths), training)
            metrics["statistics"] = F.mse_loss(out.statistics.float(), target)
            total = total + weights.statistics * metrics["statistics"]
        if out.profile is not None:
            heard = inputs.features
            if weights.profile_target == "clean":
                heard = without_channel(inputs.clean * (2 * self.recipe.front_end.std), inputs.frames)
            lengths = inputs.frames if weights.profile_target == "clean" else inputs.lengths
            course = temporal_profile(heard, lengths, weights.profile_segments)
            metrics["profile"] = F.mse_loss(out.profile.float(), self.profile.scaled(course, training))
            total = total + weights.profile * metrics["profile"]
        if out.texture is not None:
            texture = self.texture.scaled(log_mel_texture(inputs.features, inputs.lengths), training)
            metrics["texture"] = F.mse_loss(out.texture.float(), texture)
            total = total + weights.texture * metrics["texture"]
        if out.units is not None:
            units = self.unit_targets(inputs)
            seen = unit_cross_entropy(out.units.seen.float(), out.units.places.pick(units), out.units.places.valid)
            hidden = unit_cross_entropy(out.units.hidden.float(), out.hidden.pick(units), valid)
            metrics["units_seen"], metrics["units_seen_accuracy"] = seen
            metrics["units_hidden"], metrics["units_hidden_accuracy"] = hidden
            total = total + weights.units * (seen.loss + hidden.loss) / 2
        if out.latent is not None:
            metrics["teacher"] = reconstruction_error(out.latent.float(), self.teacher_tokens(inputs, out), valid)
            total = total + weights.teacher * metrics["teacher"]
        if out.projection is not None and training:
            views = gather_views(out.projection.float())
            loss, metrics["clip_accuracy"] = clip_contrast(views.projections, views.partner, weights.temperature)
            metrics["clip"] = as_own_mean(loss, views.own_share)
            total = total + weights.clip * metrics["clip"]
        metrics["loss"] = total
        return total, {name: value.detach() for name, value in metrics.items()}

    def predict(self, model: nn.Module, inputs: Inputs, stream: str, ratio: float | None = None) -> PretrainingOutput:
        """Mask and run the model."""
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
        """The class of sound of every patch (V, L), the same over a column; arbitrary beyond a clip's end."""
        assert self.units is not None
        config = self.model.encoder.config
        units = self.units.units(inputs.clean, inputs.frames)[:, : config.columns(inputs.features.shape[1])]
        grid = units[:, None, :, None].expand(-1, config.rows, -1, -1)
        return order_tokens(grid, config, column_counts(inputs.lengths, config))[..., 0]

    def _find_units(self) -> SoundUnits:
        """Clusters of the first training batches, the same in every process."""
        config, front_end = self.recipe.model.config(), self.recipe.front_end
        units = SoundUnits(self.recipe.objectives.unit_count, config.patch_size[1], 2 * front_end.std)

        def clean() -> Iterator[tuple[Tensor, Tensor]]:
            for epoch in range(_UNIT_EPOCHS):
                for found in self.corpora.batches(epoch, 0, 0, 1):
                    batch, _ = self._without_scraps(found)
                    if len(batch):
                        inputs = self.inputs(batch, torch.device("cpu"), training=False)
                        yield inputs.clean, inputs.frames

        units.fit(clean(), self.recipe.run.seed)
        return units

    @torch.no_grad()
    def teacher_tokens(self, inputs: Inputs, out: PretrainingOutput) -> Tensor:
        """The teacher's tokens at the hidden patches, each normalized over its channels (data2vec's target)."""
        assert self.teacher is not None
        self.teacher.to(inputs.features.device)
        patches: PatchTokens = self.teacher.embed_patches(inputs.features, inputs.lengths)
        tokens = self.teacher.encode(patches)[:, self.teacher.num_prefix_tokens :].float()
        return out.hidden.take(F.layer_norm(tokens, tokens.shape[-1:]))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Let the teacher follow the student."""
        if self.teacher is None:
            return
        keep = 1 - (1 - self.recipe.objectives.teacher_decay) / max(1.0, step / 100) ** 0.5
        pairs = zip(self.teacher.parameters(), self.model.encoder.parameters(), strict=True)
        for slow, fast in pairs:
            slow.to(fast.device).lerp_(fast, 1 - keep) if slow.device == fast.device else slow.copy_(fast)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Losses and accuracy on held-out clips at every mask count, with masks that never change."""
        sums: dict[str, float] = {}
        clips = 0
        device = next(model.parameters()).device
        for found in self.corpora.validation():
            batch, _ = self._without_scraps(found)
            if not len(batch):
                continue
            inputs = self.inputs(batch, device, training=False)
            clips += len(batch)
            for count in self.recipe.validation_counts:
                _, metrics = self.losses(model, inputs, training=False, ratio=count / 512)
                for name, value in metrics.items():
                    key = f"{name}@{count}"
                    sums[key] = sums.get(key, 0.0) + float(value) * len(batch)
        figures = {name: value / clips for name, value in sums.items()}
        best = self.best_metric[0]
        figures[best] = math.nan
        if clips:
            nearest = min(self.recipe.validation_counts, key=lambda count: abs(count / 512 - self.mask_ratio))
            figures[best] = figures[f"{best}@{nearest}"]
        self.unreported, self.corpora.unreadable_held_out = (
            (*self.unreported, *self.corpora.unreadable_held_out), ()
        )  # fmt: skip
        return figures

    @torch.no_grad()
    def pictures(self, model: nn.Module, step: int) -> Mapping[str, Figure]:
        """Held-out clips, what is hidden of them, and what the model makes of it."""
        from ssamba.training.pretraining.reconstruct import plot_reconstructions, reconstruct

        assert isinstance(model, PretrainingModel)
        device = next(model.parameters()).device
        # The longest clips show most.
        batches = [self._without_scraps(batch)[0] for batch in self.corpora.validation()]
        batch = max(batches, key=lambda batch: batch.waves.shape[1] if len(batch) else 0, default=None)
        if batch is None or not len(batch):
            return {}
        inputs = self.inputs(batch, device, training=False)
        shown = []
        for i in range(min(3, len(inputs.lengths))):
            features = inputs.features[i, : int(inputs.lengths[i])]
            seed = int(inputs.seeds[i])
            shown.append(reconstruct(model, features, seed, self.mask_ratio, self.recipe.masking.style))
        return {
            "reconstruction": plot_reconstructions(shown, [keys[0] for keys in batch.keys[:3]], self.recipe.front_end)
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model."""
        state: dict[str, Any] = {
            "corpora": self.corpora.fingerprint(),
            "statistics": self.statistics.state_dict(),
            "profile": self.profile.state_dict(),
            "texture": self.texture.state_dict(),
        }
        if self.units is not None:
            state["units"] = self.units.state_dict()
        if self.teacher is not None:
            state["teacher"] = self.teacher.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            DataError: the corpora are not those of the saved run.
        """
        self.corpora.check_fingerprint(state["corpora"])
        self.statistics.load_state_dict(state["statistics"])
        self.profile.load_state_dict(state["profile"])
        self.texture.load_state_dict(state["texture"])
        if self.units is not None:
            self.units.load_state_dict(state["units"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the pretraining model, heads and all, as a checkpoint folder."""
        assert isinstance(model, PretrainingModel)
        config = ModelConfig(kind="pretraining", encoder=model.encoder.config, pretraining=model.pretraining)
        save_checkpoint(folder, model, config, self.recipe.front_end)


def pretrain(
    sources: Sequence[Any],
    recipe: PretrainRecipe,
    out: str | Path,
    *,
    resume: bool | Literal["auto"] = False,
    device: str | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    on_decoded: Callable[[str, int, int], None] | None = None,
) -> TrainingReport:
    """Pretrain an encoder on unlabeled recordings.

    Args:
        sources: one or more corpora: folders of audio, manifests, folders of shards, Hugging Face data sets.
        recipe: everything else; `PretrainRecipe.read` reads one by name or from a file.
        out: folder of the run; `out/model` is the result, a checkpoint for `ssamba.load_model`.
        resume: go on with the run in `out`; "auto" does so if there is one.
        device: where to compute; None is a GPU if there is one.
        on_progress: called after each step.
        on_decoded: called while a corpus is decoded into memory: its name, clips done, clips in all.

    Raises:
        DataError: a source holds no audio, or is not that of the run to resume.
        ConfigError: the recipe contradicts the run to resume.
        TrainingError: the run diverged or could not be saved.
    """
    corpora = open_corpora(sources, recipe, on_decoded)
    return train(
        PretrainingTask(recipe, corpora),
        recipe.optimizer,
        recipe.schedule,
        recipe.run,
        out,
        resume=resume,
        recipe=recipe.task_settings(),
        device=device,
        on_progress=on_progress,
    )
