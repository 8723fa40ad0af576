"""Objectives and augmentations: what each of them must offer, and how those that do not come with ssamba are found.

They are given to `ssamba.pretrain(objectives=[...], augmentations=[...])`, or named in a recipe and found by the entry
points `ssamba.objectives` and `ssamba.augmentations` of installed packages:

    [own_objectives.vicreg]            # recipe                  [project.entry-points."ssamba.objectives"]
    weight = 1.0                       # keyword arguments       vicreg = "my_package:VicReg"    # pyproject.toml

`docs/own-objective.md` has a whole example.

Shapes: `views` of all clips, T frames, M mel bins, L patch tokens, D channels.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ssamba.config import BaseEncoderConfig, FrontEndConfig, HeadConfig
from ssamba.errors import ConfigError, TrainingError
from ssamba.model.pretraining import PretrainingModel, PretrainingOutput
from ssamba.training.pretraining.recipe import OBJECTIVE_NAMES, PretrainRecipe
from ssamba.training.run_io import LOG_COLUMNS

RESERVED_NAMES = LOG_COLUMNS | {"loss", "accuracy", "corpora", "data"}
"""Names in logs and states that no objective and no figure may have."""
_HEAD_NAMES = (*OBJECTIVE_NAMES, "seen_units", "hidden_units", "latent")
P = TypeVar("P", bound="_Extension")


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
    keys: tuple[tuple[str, ...], ...] = ()
    """Names of the clips in each view; several if short clips are joined."""
    other_voice: Tensor | None = None
    """True for views with another voice than the clip, or of another clip with its labels (views,), bool; None: no
    such view."""
    mixed: Tensor | None = None
    """Rows from the first view of a clip to that of the clip mixed into this view (views,), 0 if none is; None: all
    0."""
    labels: Tensor | None = None
    """A number below 2^24 that views of clips with the same labels share (views,), int64, 0 without labels; None: the
    recipe makes nothing of labels."""


@dataclass(frozen=True)
class ObjectiveStep:
    """What an objective computes its loss from."""

    inputs: Inputs
    """The views, as the model heard them and before augmentation."""
    outputs: PretrainingOutput
    """What the model made of them."""
    second: PretrainingOutput
    """Of the second pass with other masks, if the recipe has two passes (as the original); otherwise the same."""
    training: bool
    """False in validation: there is one view of each clip, without augmentation."""
    encoder: BaseEncoderConfig
    """The encoder's configuration."""
    front_end: FrontEndConfig
    """How features are computed."""

    def head(self, name: str) -> Tensor:
        """Return the output of a head as float32.

        Raises:
            ConfigError: the model has no such head.
        """
        if name not in self.outputs.heads:
            raise ConfigError(
                f"the model has no head {name!r}, only {', '.join(self.outputs.heads)}: return it from `heads` of the "
                "objective"
            )
        return self.outputs.heads[name].float()


class ObjectiveLoss(NamedTuple):
    """Loss of one objective at one step."""

    value: Tensor
    """Mean over this rank's clips, a scalar with its graph; it is logged under the objective's name."""
    figures: Mapping[str, Tensor | float] = {}
    """Other means over the clips, such as an accuracy, to log under these names: scalars."""


class _Extension(ABC):
    """What objectives and augmentations have in common: a name and settings."""

    name: str
    """Name in recipes, logs and saved states: lower-case letters, digits and underscores."""

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments that make an equal one, as plain values; a run is resumed with equal ones alone.

        Without another definition, these are the public attributes that are numbers, texts, or lists of these.
        """
        return {key: value for key, value in vars(self).items() if not key.startswith("_") and _is_plain(value)}


class Objective(_Extension):
    """A term of the pretraining loss; subclasses define `name` and `loss`, and what else they need.

    One object serves one run. In every training step each rank calls `loss` if it has clips and `join` if not.
    """

    weight: float
    """Factor of the loss in the sum of all objectives."""

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def heads(self, encoder: BaseEncoderConfig) -> Sequence[HeadConfig]:
        """Return the heads to add to the model. Every one must take part in the loss of every training step."""
        return ()

    def prepare(self, model: PretrainingModel, recipe: PretrainRecipe, clips: Callable[[], Iterator[Inputs]]) -> None:
        """Get ready, before the first step and before a saved state is restored.

        Args:
            model: with its initial weights.
            recipe: all settings.
            clips: returns three epochs of training clips on the CPU, without augmentation, the same on every rank.
        """

    @abstractmethod
    def loss(self, step: ObjectiveStep) -> ObjectiveLoss | Tensor | None:
        """Return the loss, with or without figures; None leaves the objective out of a validation."""

    def join(self, device: torch.device) -> None:
        """Take part in the collectives of `loss`, in their order, on a rank without a clip."""

    def after_step(self, model: PretrainingModel, step: int) -> None:
        """React to an update of the weights; `step` is the number of steps done."""

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class FeatureAugmentation(_Extension):
    """A random change of log-mel features, applied after those of the recipe's `augmentation`."""

    @abstractmethod
    def __call__(self, features: Tensor, seeds: Tensor, lengths: Tensor) -> Tensor:
        """Return changed features of the same shape.

        Args:
            features: log-mel values before normalization, natural logarithm of power (views, T, M).
            seeds: seed of each view (views,), int64: draw from it alone, for instance by `ssamba.randomness.uniform`,
                so that a run can be repeated and resumed.
            lengths: valid frames of each view (views,); what is behind them must not change the others.
        """


@dataclass(frozen=True)
class Extensions:
    """Objectives and augmentations of a run that do not come with ssamba."""

    objectives: tuple[Objective, ...] = ()
    augmentations: tuple[FeatureAugmentation, ...] = ()

    def changes(self) -> dict[str, Any]:
        """Return the changes of a recipe that name them with their settings; see `Recipe.with_values`."""
        objectives = {f"own_objectives.{one.name}": one.settings() for one in self.objectives}
        return objectives | {f"own_augmentations.{one.name}": one.settings() for one in self.augmentations}

    def heads(self, encoder: BaseEncoderConfig) -> tuple[HeadConfig, ...]:
        """Return the heads of all objectives.

        Raises:
            ConfigError: two of them have the same name, one has that of a built-in one, or it is no HeadConfig.
        """
        heads: list[HeadConfig] = []
        for objective in self.objectives:
            own = objective.heads(encoder)
            if not isinstance(own, list | tuple) or not all(isinstance(head, HeadConfig) for head in own):
                raise ConfigError(f"heads of {objective.name} returned {own!r}, expected a list of ssamba.HeadConfig")
            heads += own
        names = [head.name for head in heads]
        twice = [name for name in names if name in _HEAD_NAMES or names.count(name) > 1]
        if twice:
            raise ConfigError(f"more than one head is named {twice[0]}: begin the names with that of your objective")
        return tuple(heads)


def objective_loss(objective: Objective, step: ObjectiveStep) -> ObjectiveLoss | None:
    """Return the loss of an objective at a step, checked; None if it takes no part in a validation.

    Raises:
        TrainingError: it is not a scalar tensor, a figure is not a number, or it is None in a training step.
    """
    found = objective.loss(step)
    if found is None and not step.training:
        return None
    loss = found if isinstance(found, ObjectiveLoss) else ObjectiveLoss(found)  # type: ignore[arg-type]
    for name, value in (("", loss.value), *loss.figures.items()):
        if isinstance(value, Tensor) and value.ndim == 0:
            continue
        if name and isinstance(value, int | float):
            continue
        got = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        what = f"figure {name!r}" if name else "loss"
        only = " (None leaves it out of a validation alone)" if found is None else ""
        raise TrainingError(f"the {what} of {objective.name} must be a scalar tensor, got {got}{only}")
    return loss


def augmented(features: Tensor, augmentation: FeatureAugmentation, seeds: Tensor, lengths: Tensor) -> Tensor:
    """Return what an augmentation makes of features (views, T, M), checked.

    Raises:
        TrainingError: it is no tensor of the same shape and dtype.
    """
    found = augmentation(features, seeds, lengths)
    if not isinstance(found, Tensor) or (found.shape, found.dtype) != (features.shape, features.dtype):
        got = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise TrainingError(
            f"the augmentation {augmentation.name} must return features like those it gets, {tuple(features.shape)}, "
            f"{features.dtype}; got {got}"
        )
    return found


def given_extensions(
    objectives: Sequence[Objective] = (), augmentations: Sequence[FeatureAugmentation] = ()
) -> Extensions:
    """Check objectives and augmentations that a caller gives.

    Raises:
        ConfigError: one is of another kind, or its name or weight does not fit.
    """
    for what, items, kind in (
        ("objectives", objectives, Objective),
        ("augmentations", augmentations, FeatureAugmentation),
    ):
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{what}: expected a list of ssamba.{kind.__name__}, got {type(items).__name__}")
        for one in items:
            _check(one, kind, what)
        names = [one.name for one in items]
        if len({*names}) < len(names):
            raise ConfigError(f"{what}: each needs a name of its own, got {', '.join(names)}")
    return Extensions(tuple(objectives), tuple(augmentations))


def load_extensions(recipe: PretrainRecipe, given: Extensions | None = None) -> Extensions:
    """Return the objectives and augmentations that a recipe names: given ones, and others by entry point.

    Raises:
        ConfigError: none has that name, it cannot be imported, or the recipe's settings do not fit it.
    """
    given = given or Extensions()
    return Extensions(
        _load("objectives", recipe.own_objectives, given.objectives, Objective),
        _load("augmentations", recipe.own_augmentations, given.augmentations, FeatureAugmentation),
    )


def _load(what: str, named: Mapping[str, Mapping[str, Any]], given: Sequence[P], kind: type) -> tuple[P, ...]:
    """Return what a section of a recipe names."""
    found: list[P] = []
    by_name = {one.name: one for one in given}
    for name, settings in named.items():
        one = by_name[name] if name in by_name else _from_entry_point(what, name, settings, kind)
        if name in by_name and settings != one.settings():
            raise ConfigError(
                f"own_{what}.{name} is set to {settings}, and {one.settings()} is given: give one of them"
            )
        found.append(one)
    return tuple(found)


def _from_entry_point(what: str, name: str, settings: Mapping[str, Any], kind: type) -> Any:
    group = f"ssamba.{what}"
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        there = f"installed packages have {', '.join(sorted(found))}" if found else "no installed package has any"
        raise ConfigError(
            f"own_{what}.{name}: there is no such entry point in the group {group!r} ({there}). Install the package "
            f"that has it, or give the object from Python: ssamba.pretrain(..., {what}=[...])"
        )
    point = found[name]
    try:
        factory = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"own_{what}.{name}: {point.value} cannot be imported ({error})") from None
    try:
        inspect.signature(factory).bind(**settings)
    except TypeError as error:
        raise ConfigError(f"own_{what}.{name}: {point.value} does not take these settings ({error})") from None
    try:
        made = factory(**settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"own_{what}.{name}: {point.value} does not take these settings ({error})") from error
    _check(made, kind, f"own_{what}.{name}")
    if made.name != name:
        raise ConfigError(f"own_{what}.{name}: {point.value} has the name {made.name!r}: name both alike")
    return made


def _check(one: Any, kind: type, where: str) -> None:
    """Refuse what is not of a kind, or has a name or a weight that does not fit."""
    if not isinstance(one, kind):
        raise ConfigError(f"{where}: expected an object of a subclass of ssamba.{kind.__name__}, got {one!r}")
    name = getattr(one, "name", None)
    if not isinstance(name, str) or not name.isidentifier() or name != name.lower():
        raise ConfigError(
            f"{where}: {type(one).__name__}.name is {name!r}, expected lower-case letters, digits and underscores"
        )
    if isinstance(one, Objective) and name in (*OBJECTIVE_NAMES, *RESERVED_NAMES):
        has = (
            "ssamba has an objective of this name" if name in OBJECTIVE_NAMES else "logs or saved states use this name"
        )
        raise ConfigError(f"{where}: {type(one).__name__}.name is {name!r}, but {has}: choose another")
    if isinstance(one, Objective):
        weight = getattr(one, "weight", None)
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ConfigError(f"{where}: the weight of {name} is {weight!r}, expected a number of at least 0")


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
