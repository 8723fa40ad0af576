"""The objectives that come with ssamba: InfoNCE and reconstruction (SSAMBA, section 3.3), and ours.

`build_objectives` makes them from a recipe. Their losses and targets are functions of `model/objectives.py`; their
heads are fields of `PretrainingConfig` (`model/pretraining.py` `built_in_heads`).

Shapes: `views` of all clips, L patch tokens, V values of a target.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.config import BaseEncoderConfig, FrontEndConfig, HeadConfig
from ssamba.model.encoder import PatchEncoder
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
from ssamba.model.pretraining import PretrainingModel
from ssamba.training.pretraining.extensions import Extensions, Inputs, Objective, ObjectiveLoss, ObjectiveStep
from ssamba.training.pretraining.part_objectives import (
    PartsContrast,
    VoiceContrast,
    have_same_labels,
    means_of_thirds,
    thirds_of_tokens,
)
from ssamba.training.pretraining.recipe import ObjectiveSettings, PretrainRecipe
from ssamba.training.pretraining.targets import (
    HiddenUnits,
    RunningScale,
    SoundUnits,
    gather_views,
    scale_gradient_to_rank,
)

_BATCHES_OF_TARGETS = 30  # from which an adaptation standardizes targets


class Discriminative(Objective):
    """InfoNCE between the masked patches of a clip."""

    name = "discriminative"

    def loss(self, step: ObjectiveStep) -> ObjectiveLoss:
        """Match the head's predictions to the patches."""
        out = step.outputs
        loss, accuracy = info_nce(step.head("discriminative"), out.values, out.masked.valid)
        return ObjectiveLoss(loss, {"accuracy": accuracy})


class Generative(Objective):
    """Mean squared error of the masked patches."""

    name = "generative"

    def loss(self, step: ObjectiveStep) -> Tensor:
        """Compare the head's predictions with the patches; in the original's two passes, those of the second."""
        out = step.second
        return reconstruction_error(out.generative.float(), out.values, out.masked.valid)


class Regression(Objective):
    """Squared error of a target of the whole clip, standardized over the run, predicted from the clip vector."""

    def __init__(self, name: str, weight: float, values: int, target: Callable[[Inputs, FrontEndConfig], Tensor]):
        """Args: name of the objective and of its head; its weight; V; computes the targets (views, V)."""
        super().__init__(weight)
        self.name, self._target = name, target
        self.scale = RunningScale(values)

    def prepare(self, model: PretrainingModel, recipe: PretrainRecipe, clips: Callable[[], Iterator[Inputs]]) -> None:
        """When a model is adapted: standardize from the first step on, so that validations compare."""
        if recipe.adapt is not None:
            for inputs in itertools.islice(clips(), _BATCHES_OF_TARGETS):
                self.scale.standardize(self._target(inputs, recipe.front_end), training=True)

    def loss(self, step: ObjectiveStep) -> Tensor:
        """Compare the head's prediction with the standardized target."""
        target = self.scale.standardize(self._target(step.inputs, step.front_end), step.training)
        return F.mse_loss(step.head(self.name), target)

    def join(self, device: torch.device) -> None:
        """Join the sum over ranks."""
        self.scale.standardize(torch.zeros(0, len(self.scale.mean), device=device), training=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean and variance of the target."""
        return self.scale.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.scale.load_state_dict(state)


class Units(Objective):
    """Cross entropy of the sound unit of each visible and of each masked patch (after HuBERT)."""

    name = "units"
    units: SoundUnits

    def __init__(self, weight: float, count: int):
        super().__init__(weight)
        self.count = count

    def prepare(self, model: PretrainingModel, recipe: PretrainRecipe, clips: Callable[[], Iterator[Inputs]]) -> None:
        """Fit the units to the first training clips."""
        config, settings = model.encoder.config, recipe.objectives
        if settings.units_from is None:
            self.units = SoundUnits(self.count, config.patch_size[1], 2 * recipe.front_end.std)
        else:
            self.units = HiddenUnits(self.count, settings.units_from, settings.units_layer, config, recipe.front_end)
        self.units.fit(((inputs.clean, inputs.frames) for inputs in clips()), recipe.run.seed)
        if recipe.model.start is not None:  # the heads name other units: from zero they disturb the encoder least
            for name in ("seen_units", "hidden_units"):
                for parameter in model.get_submodule(f"{name}_head").parameters():
                    nn.init.zeros_(parameter)

    @torch.no_grad()
    def targets(self, step: ObjectiveStep) -> Tensor:
        """Return the unit of every patch (views, L): that of its column; arbitrary beyond a clip's end."""
        inputs, config = step.inputs, step.encoder
        units = self.units.units(inputs.clean, inputs.frames)[:, : config.columns(inputs.features.shape[1])]
        grid = units[:, None, :, None].expand(-1, config.rows, -1, -1)
        return order_tokens(grid, config, column_counts(inputs.lengths, config))[..., 0]

    def loss(self, step: ObjectiveStep) -> ObjectiveLoss:
        """Classify visible patches from the encoder's tokens, and masked ones from those that all patch heads read."""
        units, out = self.targets(step), step.outputs
        seen = unit_cross_entropy(step.head("seen_units"), out.visible.gather(units), out.visible.valid)
        hidden = unit_cross_entropy(step.head("hidden_units"), out.masked.gather(units), out.masked.valid)
        figures = {
            "units_seen": seen.loss,
            "units_seen_accuracy": seen.accuracy,
            "units_hidden": hidden.loss,
            "units_hidden_accuracy": hidden.accuracy,
        }
        return ObjectiveLoss((seen.loss + hidden.loss) / 2, figures)

    def state_dict(self) -> dict[str, Any]:
        """Return the clusters."""
        return self.units.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.units.load_state_dict(state)


class PartUnits(Objective):
    """Cross entropy of the shares of the sound units among the columns of each third, before augmentation."""

    name = "part_units"

    def __init__(self, weight: float, units: Units):
        """Args: the weight; the objective that has the units."""
        super().__init__(weight)
        self._units = units

    def heads(self, encoder: BaseEncoderConfig) -> Sequence[HeadConfig]:
        """Return a classifier of tokens, whose outputs are averaged."""
        return [HeadConfig(name=self.name, reads="visible", outputs=self._units.count)]

    def loss(self, step: ObjectiveStep) -> Tensor:
        """Compare the mean logits of each third with the shares of the units in it, visible or not."""
        logits, there = means_of_thirds(step, step.head(self.name))
        shares = self.shares(step)
        entropy = -(shares * F.log_softmax(logits, dim=-1)).sum(-1)
        return torch.where(there, entropy, 0).sum() / there.sum().clamp(min=1)

    @torch.no_grad()
    def shares(self, step: ObjectiveStep) -> Tensor:
        """Return the share of each unit in each third (views, 3, U)."""
        weights = thirds_of_tokens(step)
        units = self._units.targets(step)[:, None].expand(-1, 3, -1)
        shares = weights.new_zeros(*weights.shape[:2], self._units.count).scatter_add_(2, units, weights)
        return shares / shares.sum(2, keepdim=True).clamp(min=1e-6)


class Teacher(Objective):
    """Squared error of a momentum teacher's tokens at the masked patches (as in data2vec)."""

    name = "teacher"
    encoder: PatchEncoder

    def __init__(self, weight: float, decay: float):
        super().__init__(weight)
        self.decay = decay

    def prepare(self, model: PretrainingModel, recipe: PretrainRecipe, clips: Callable[[], Iterator[Inputs]]) -> None:
        """Start the teacher from the encoder."""
        self.encoder = copy.deepcopy(model.encoder).requires_grad_(False).eval()

    @torch.no_grad()
    def tokens(self, step: ObjectiveStep) -> Tensor:
        """Return the teacher's tokens at the masked patches, each normalized over its channels."""
        inputs = step.inputs
        self.encoder.to(inputs.features.device)
        patches = self.encoder.embed_patches(inputs.features, inputs.lengths)
        tokens = self.encoder.encode(patches)[:, self.encoder.num_prefix_tokens :].float()
        return step.outputs.masked.gather(F.layer_norm(tokens, tokens.shape[-1:]))

    def loss(self, step: ObjectiveStep) -> Tensor:
        """Compare the head's predictions with the teacher's tokens."""
        return reconstruction_error(step.head("latent"), self.tokens(step), step.outputs.masked.valid)

    def after_step(self, model: PretrainingModel, step: int) -> None:
        """Move the teacher towards the encoder."""
        keep = 1 - (1 - self.decay) / max(1.0, step / 100) ** 0.5
        for slow, fast in zip(self.encoder.parameters(), model.encoder.parameters(), strict=True):
            slow.to(fast.device).lerp_(fast, 1 - keep) if slow.device == fast.device else slow.copy_(fast)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's weights."""
        return self.encoder.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.encoder.load_state_dict(state)


class ClipContrast(Objective):
    """Contrastive loss between two views of each clip, over the clips of all ranks.

    A view that another clip is mixed into has the first views of both as positives. With `views.same_label_share` all
    views of clips with the same labels are positives (Khosla et al., 2020, arXiv:2004.11362). A queue of projections of
    earlier steps adds negatives (Wang et al., 2020, arXiv:1912.06798).
    """

    name = "clip"

    def __init__(self, weight: float, temperature: float, dim: int, queue: int = 0):
        super().__init__(weight)
        self.temperature, self.dim = temperature, dim
        self._queue = torch.zeros(queue, dim)
        self._queued = 0  # over the run

    def loss(self, step: ObjectiveStep) -> ObjectiveLoss | None:
        """Contrast the views; validation has one view of each clip and leaves it out."""
        if not step.training:
            return None
        projections, inputs = step.head("clip"), step.inputs
        nothing = torch.zeros(len(projections), dtype=torch.int64, device=projections.device)
        marks = [nothing if mark is None else mark for mark in (inputs.mixed, inputs.labels)]
        views = gather_views(torch.cat((projections, torch.stack(marks, dim=1).to(projections)), dim=1))
        projections, (mixed, labels) = views.projections[:, :-2], views.projections[:, -2:].long().unbind(1)
        positive = views.partner
        if inputs.mixed is not None or inputs.labels is not None:
            positive = positives_of_mixtures(views.partner, mixed) | have_same_labels(labels)
        queue = self._queue[: min(self._queued, len(self._queue))]
        loss, accuracy = clip_contrast(projections, positive, self.temperature, negatives=queue if len(queue) else None)
        self._append(F.normalize(projections.detach(), dim=1))
        return ObjectiveLoss(scale_gradient_to_rank(loss, views.rank_share), {"clip_accuracy": accuracy})

    def _append(self, projections: Tensor) -> None:
        """Put projections in place of the oldest of the queue."""
        if len(self._queue):
            newest = projections[-len(self._queue) :]
            place = (self._queued + torch.arange(len(newest), device=newest.device)) % len(self._queue)
            self._queue = self._queue.to(newest).index_copy(0, place, newest)  # a copy: the loss reads the former one
            self._queued += len(newest)

    def join(self, device: torch.device) -> None:
        """Join the gathering of views."""
        self._append(F.normalize(gather_views(torch.zeros(0, self.dim + 2, device=device)).projections[:, :-2], dim=1))

    def state_dict(self) -> dict[str, Any]:
        """Return the queue."""
        return {"queue": self._queue, "queued": self._queued} if len(self._queue) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        if state:
            self._queue, self._queued = state["queue"], int(state["queued"])


def positives_of_mixtures(partner: Tensor, mixed: Tensor) -> Tensor:
    """Return which views are positives of each view (A, A), bool: the other view, and views of the clips in a mixture.

    Args:
        partner: row of the other view of the same clip (A,).
        mixed: rows from there to the first view of the clip mixed into a view (A,), 0 if none is.
    """
    row = torch.arange(len(partner), device=partner.device)
    positive = partner[:, None] == row
    is_mixture = mixed != 0
    mixture, other = row[is_mixture], (partner + mixed)[is_mixture]
    positive[mixture, other] = positive[other, mixture] = True
    return positive


def build_objectives(recipe: PretrainRecipe, extensions: Extensions) -> list[Objective]:
    """Return the objectives of a run: those of the recipe, then others with a weight above 0.

    InfoNCE and reconstruction are always there, with weight 0 for the log alone: every checkpoint has their heads.
    """
    settings, bins = recipe.objectives, recipe.front_end.num_mel_bins
    profile_values = settings.profile_segments * profile_bands(bins)
    units = Units(settings.units, settings.unit_count)
    found: list[Objective] = [
        Discriminative(settings.discriminative),
        Generative(settings.generative),
        Regression("statistics", settings.statistics, 3 * bins, _statistics),
        Regression("profile", settings.profile, profile_values, _profile(settings)),
        Regression("texture", settings.texture, texture_values(bins), _texture),
        units,
        Teacher(settings.teacher, settings.teacher_decay),
        ClipContrast(settings.clip, settings.temperature, settings.clip_dim, settings.clip_queue),
        PartsContrast(settings.parts, settings.temperature, settings.clip_dim),
        PartUnits(settings.part_units, units),
        VoiceContrast(settings.voice, settings.temperature, settings.clip_dim),
        *extensions.objectives,
    ]
    return found[:2] + [objective for objective in found[2:] if objective.weight]


def _statistics(inputs: Inputs, front_end: FrontEndConfig) -> Tensor:
    return log_mel_statistics(inputs.features, inputs.lengths)


def _texture(inputs: Inputs, front_end: FrontEndConfig) -> Tensor:
    return log_mel_texture(inputs.features, inputs.lengths)


def _profile(settings: ObjectiveSettings) -> Callable[[Inputs, FrontEndConfig], Tensor]:
    """Return the function that computes the spectra of a clip's segments, as heard or clean."""

    def heard(inputs: Inputs, front_end: FrontEndConfig) -> Tensor:
        return temporal_profile(inputs.features, inputs.lengths, settings.profile_segments)

    def clean(inputs: Inputs, front_end: FrontEndConfig) -> Tensor:
        levels = remove_channel(inputs.clean * (2 * front_end.std), inputs.frames)
        return temporal_profile(levels, inputs.frames, settings.profile_segments)

    return clean if settings.profile_target == "clean" else heard
