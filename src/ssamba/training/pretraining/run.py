"""Pretrain an encoder on unlabeled recordings: what the command `ssamba pretrain` calls.

report = pretrain("recordings/", "runs/mine", minutes=60)

OUTPUT/model          the trained model: `ssamba embed -c OUTPUT`, `ssamba.load_model("OUTPUT")`
OUTPUT/checkpoints    saved states, from which repeating the call resumes
OUTPUT/log.jsonl      losses, rates and validations; `skipped.csv`, `pictures/`, `report.json` beside it
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ssamba.checkpoint import load_checkpoint
from ssamba.checkpoint.files import write_json
from ssamba.embedder import Embedder
from ssamba.errors import ConfigError, Interrupted
from ssamba.evaluation.compare import Comparison, check_task, compare_models, read_task
from ssamba.probes import require_sklearn
from ssamba.progress import OnProgress, checked_progress
from ssamba.training.batches import report_decoded
from ssamba.training.distributed import is_main_process, lock_run
from ssamba.training.loop import train
from ssamba.training.pretraining.data import open_corpora
from ssamba.training.pretraining.extensions import (
    FeatureAugmentation,
    Objective,
    given_extensions,
    load_extensions,
)
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.pretraining.task import PretrainingTask
from ssamba.training.recipes import Changes, parse_changes
from ssamba.training.run_io import REPORT_FILE, StepProgress, TrainingReport
from ssamba.training.settings import saved_settings
from ssamba.training.state import BEST_FOLDER, check_output, check_run, replace_folder, run_folder, start_settings

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PretrainReport(TrainingReport):
    """Result of a pretraining run. As text, a summary."""

    comparison: Comparison | None = None
    """With `evaluate`: the trained model compared with the one that it started from."""

    def __str__(self) -> str:
        compared = "" if self.comparison is None else f"\n{self.comparison}"
        return f"{super().__str__()}{compared}"

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return super().as_json() | {"comparison": None if self.comparison is None else self.comparison.as_json()}


def pretrain(
    data: Any,
    output: str | Path,
    checkpoint: str | Path | None = None,
    *,
    recipe: PretrainRecipe | str | Path | None = None,
    set: Changes | None = None,
    objectives: Sequence[Objective] = (),
    augmentations: Sequence[FeatureAugmentation] = (),
    size: str | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    front_end: str | None = None,
    encoding: str | None = None,
    tensorboard: bool = False,
    evaluate: str | Path | None = None,
    overwrite: bool = False,
    take_over: bool = False,
    progress: OnProgress | None = None,
) -> PretrainReport:
    """Pretrain an encoder on unlabeled recordings, or resume the run in `output`.

    Repeating the call resumes an interrupted run; with more minutes or epochs it also extends a finished one.

    Args:
        data: a folder of audio, a manifest, a folder of shards, `hf:OWNER/NAME`, a corpus or data set; or a list of
            these.
        output: folder of the run; see the docstring of this module.
        checkpoint: model to start from, by name or path as for `ssamba.load_model`; its encoder and front end take the
            place of the recipe's. None means the recipe's `model.start`, or random weights.
        recipe: a `PretrainRecipe`, the path of a TOML file, or the name of a shipped one: laptop, one-gpu, many-nodes,
            official; or adapt, which goes on from `checkpoint`. None gives the defaults.
        set: settings of the recipe to change: `{"masking.ratio": 0.75}`, or `["masking.ratio=0.75"]`.
        objectives: objectives of your own, added to the recipe's (docs/own-objective.md).
        augmentations: augmentations of features of your own, applied after the recipe's.
        size: width of the encoder: tiny, small or base.
        minutes: time budget; with `epochs` the run ends at whichever comes first. Either replaces the recipe's length.
        epochs: passes over the data.
        seed: seed of everything random.
        batch_size: crops in a batch, over all processes.
        device: cpu, cuda, cuda:1, ...; None means a GPU if there is one.
        front_end: frequencies that the model hears, `48khz` or `x10` (`FrontEndConfig.named`), in place of the recipe's
            or the checkpoint's.
        encoding: of manifests in CSV and JSON, such as `cp1252`; None is UTF-8.
        tensorboard: write curves and pictures for TensorBoard to `output`.
        evaluate: a TASK.csv of labeled recordings (docs/evaluation.md): when the run is finished, the report compares
            the model with the one that it started from (log-mel statistics, if from random weights) by linear probes.
        overwrite: start anew; what an earlier run wrote is moved to a folder beside `output`.
        take_over: take `output` away from another process that is writing to it.
        progress: called while recordings are read and after each step, with a `StepProgress`; returning False stops
            after the step, and the state is saved.

    Returns:
        The report; its `stopped` is `finished`, or `stopped` if `progress` stopped the run.

    Raises:
        ConfigError: the recipe does not exist, a setting is unknown or does not fit, an argument is of a wrong kind,
            arguments contradict each other, or `output` is a file.
        OtherSettingsError: the run in `output` has other settings; every difference is named.
        ModelMismatchError: it started from another model.
        DataError: a source holds no audio, or the recordings are not those of the run in `output`.
        SuiteError: the table to evaluate on cannot be used.
        MissingExtraError: scikit-learn, which `evaluate` needs, or TensorBoard, if requested, is not installed.
        CheckpointError: the model to start from is unknown or damaged; or `output` holds something else than a
            pretraining run, such as a checkpoint.
        TrainingError: the run diverged or could not be saved, or there is no such device.
        OutputInUseError: another process is writing to `output`.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    output = run_folder(output)
    checked_progress(progress)
    own = given_extensions(objectives, augmentations)
    settings = PretrainRecipe.from_arguments(
        recipe,
        {**own.changes(), **parse_changes(set)},
        seed=seed,
        batch_size=batch_size,
        minutes=minutes,
        epochs=epochs,
        size=("model.size", size),
        tensorboard=("run.tensorboard", tensorboard or None),
    )
    if front_end is not None:
        settings = settings.with_changes(front_end=settings.front_end.named(front_end).model_dump())
    start = None
    if checkpoint is not None or settings.model.start is not None:
        start = load_checkpoint(checkpoint if checkpoint is not None else settings.model.start)
    if start is not None and front_end is not None:
        start = replace(start, front_end=start.front_end.named(front_end))
    given = {*parse_changes(set), *(() if size is None else ("model.size",))}
    if settings.adapt is not None:
        if start is None:
            raise ConfigError(
                "a recipe with [adapt] goes on from a model: name it by -c (checkpoint=), as ssamba2-tiny"
            )
        if settings.adapt.original_objectives:
            settings = settings.with_original_objectives(start.config, given)
    if checkpoint is not None and start is not None:
        settings = settings.starting_from(str(checkpoint), start.config.encoder, start.front_end, given)
    own = load_extensions(settings, own)
    settings = settings.with_values(own.changes())
    labeled = None
    before: Embedder | str = "logmel"
    if evaluate is not None:
        require_sklearn()
        if start is not None:
            before = Embedder(start, device=device)
        labeled = read_task(evaluate, encoding)
    task_settings = {**settings.task_settings(), **start_settings(None if start is None else start.identity)}
    defaults = settings.task_defaults()
    with lock_run(output, take_over) as lock:
        if not overwrite:  # before recordings are read
            check_output(output, other_kind="rounds")
            check_run(
                output, saved_settings(settings.optimizer, settings.schedule, settings.run, task_settings), defaults
            )
        if labeled is not None and is_main_process():  # what is wrong with labels shows before the training
            check_task(labeled, before, device=device, progress=progress)
        corpora = open_corpora(data, settings, report_decoded(progress), encoding)
        notes = corpora.notes() if is_main_process() else []
        for note in notes:
            _log.warning(note)
        task = PretrainingTask(settings, corpora, start, own)
        trained = train(
            task,
            settings.optimizer,
            settings.schedule,
            settings.run,
            output,
            overwrite=overwrite,
            recipe=task_settings,
            device=device,
            lock=lock,
            notes=notes,
            task_defaults=defaults,
            on_progress=None if progress is None else lambda state: progress(StepProgress.of(state, "pretraining")),
        )
        report = PretrainReport(**{one.name: getattr(trained, one.name) for one in fields(trained)})
        if report.model is not None and is_main_process():
            if settings.adapt is not None:
                report = _keep_best(report, output, settings)
            if labeled is not None:
                compared = compare_models(labeled, before, report.model, device=device, progress=progress)
                report = replace(report, comparison=compared)
            write_json(output / REPORT_FILE, report.as_json())
    if report.stopped.startswith("SIG"):
        again = "the command without --overwrite" if overwrite else "the command"
        raise Interrupted(
            f"the state of step {report.step} is saved in {report.last_state}: repeat {again} to resume", report
        )
    return report


def _keep_best(report: PretrainReport, output: Path, settings: PretrainRecipe) -> PretrainReport:
    """Make the model of the best validation that of the run, and say if it is the encoder that the run started from."""
    if report.best is None or report.model is None:
        note = "no recording was held out, so that the model is the last one: more recordings, or data.valid_share"
        return replace(report, notes=(*report.notes, note))
    replace_folder(report.model, partial(shutil.copytree, output / BEST_FOLDER, dirs_exist_ok=True))
    note = (
        f"the model is that of step {report.best[0]}, which had the best held-out {settings.best}: {report.best[1]:.4f}"
    )
    if report.best[0] <= (settings.optimizer.frozen_steps or 0):
        note = "training the encoder did not lower the held-out loss: the model has the encoder that it started from"
    return replace(report, notes=(*report.notes, note))
