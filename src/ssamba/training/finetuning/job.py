"""What all rounds of a fine-tuning share: recipe, recordings, initial model; and the training of one round."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.config import BaseEncoderConfig, FrontEndConfig, ModelIdentity
from ssamba.locks import OutputLock
from ssamba.progress import OnProgress
from ssamba.splits import Fold
from ssamba.training.distributed import World
from ssamba.training.finetuning.data import LabeledData
from ssamba.training.finetuning.head_init import fit_initial_head
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.task import FinetuneTask
from ssamba.training.loop import train
from ssamba.training.run_io import StepProgress, TrainingProgress, TrainingReport
from ssamba.training.settings import saved_settings
from ssamba.training.state import has_state, start_settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialModel:
    """The model that every round starts from."""

    encoder: BaseEncoderConfig
    front_end: FrontEndConfig
    weights: Mapping[str, Tensor] | None
    """Weights of the encoder; None leaves them random."""
    base: ModelIdentity | None
    """The model that the weights come from."""


@dataclass(frozen=True)
class FinetuneJob:
    """A fine-tuning whose recordings are open."""

    recipe: FinetuneRecipe
    data: LabeledData
    initial: InitialModel
    output: Path
    device: str | torch.device | None
    lock: OutputLock | None
    progress: OnProgress | None

    def task(self, fold: Fold) -> FinetuneTask:
        """Return the task of a fold."""
        own = self.initial
        return FinetuneTask(self.recipe, self.data, fold, own.encoder, own.front_end, own.weights, own.base)

    def train(
        self, task: FinetuneTask, folder: Path, world: World, name: str, more: Mapping[str, Any] | None = None
    ) -> TrainingReport:
        """Train a task's model, or resume the run in `folder`.

        Args:
            task: as from `task`, perhaps with another recipe.
            folder: of the run.
            world: the processes.
            name: of this round, for the display of progress.
            more: settings of the round besides the recipe, which are saved and compared when resuming.
        """
        recipe = task.recipe
        if recipe.start.fitted_head and self.initial.weights is not None and not has_state(folder):
            _log.debug("logistic regression on %d clips gives the classifier to start from", len(task.fold.train))
            fit_initial_head(task, world.device)
        progress = self.progress

        def on_step(state: TrainingProgress) -> bool | None:
            return None if progress is None else progress(StepProgress.of(state, name))

        return train(
            task,
            recipe.optimizer,
            recipe.schedule,
            recipe.run,
            folder,
            recipe={**task_settings(recipe, self.initial), **(more or {})},
            task_defaults=recipe.task_defaults(),
            device=self.device,
            lock=self.lock,
            on_progress=on_step,
        )


def task_settings(recipe: FinetuneRecipe, initial: InitialModel) -> dict[str, Any]:
    """Return what a run depends on besides its optimizer, schedule and length, as plain values."""
    digests = {"encoder": initial.encoder.digest(), "front_end": initial.front_end.digest()}
    return {**recipe.task_settings(), **digests, **start_settings(initial.base)}


def settings_of(recipe: FinetuneRecipe, initial: InitialModel) -> dict[str, Any]:
    """Return the settings of a run as they are saved and compared."""
    return saved_settings(recipe.optimizer, recipe.schedule, recipe.run, task_settings(recipe, initial))
