"""After the test: calibrate, publish what was tested, refit on all clips, and keep what is needed.

The refit trains the classifier that users get on all labeled clips, those of validation and test included, for as many
steps a clip as the chosen epochs were, with the schedule shortened to that. Nothing is selected or tested: the scores,
the temperature and the thresholds stay those of the classifiers that were tested.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.checkpoint import load_checkpoint, save_checkpoint
from ssamba.checkpoint.files import read_json, write_json
from ssamba.checkpoint.names import MODEL_FOLDER, ROUNDS_FOLDER, STATES_FOLDER
from ssamba.config import settings_differences
from ssamba.errors import OtherSettingsError
from ssamba.metrics.bootstrap import Interval
from ssamba.metrics.calibration import ClassThreshold
from ssamba.model.heads import Classifier
from ssamba.splits import Fold
from ssamba.training.distributed import World
from ssamba.training.finetuning.job import FinetuneJob, InitialModel, settings_of
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.report import (
    RESULTS_FILE,
    Calibration,
    FinetuneReport,
    FoldResult,
    FoldTest,
    Refit,
    fold_folder,
    write_report,
    write_tables,
)
from ssamba.training.finetuning.scenes import Scene, event_thresholds
from ssamba.training.finetuning.task import FinetuneTask, Predictions
from ssamba.training.run_io import REPORT_FILE, TrainingReport
from ssamba.training.settings import FREE_ON_RESUME
from ssamba.training.state import (
    BEST_FOLDER,
    REFIT_FOLDER,
    check_run,
    check_settings,
    replace_folder,
    with_new_settings,
)

_LENGTH = {f"run.{name}" for name in ("steps", "epochs", "max_minutes", "patience")}
_FINISH = {"task.finish.refit", "task.finish.precision"}


def calibrate(answers: Sequence[Predictions], scenes: Sequence[Scene], task: FinetuneTask) -> Calibration | None:
    """Return temperature and thresholds from answers for held-out clips, and from scenes of them; None without any."""
    if not sum(len(one.logits) for one in answers):
        return None
    logits, targets = (np.concatenate([getattr(one, name) for one in answers]) for name in ("logits", "targets"))
    found = Calibration.fit(logits, targets, task.recipe.finish.precision, binary_loss=task.binary)
    if not scenes:
        return found
    thresholds = event_thresholds(
        scenes,
        task.data.classes,
        task.data.background,
        found.temperature,
        found.wanted_precision,
        independent=task.binary,
    )
    return replace(found, thresholds=tuple(thresholds), scenes=len(scenes))


def planned_refit(job: FinetuneJob, folds: Sequence[Fold], results: Sequence[FoldResult]) -> Refit | None:
    """Return what the refit will do; None if the recipe wants none, no clip was held out, or no step was chosen."""
    data, everything = job.data, np.arange(len(job.data.corpus))
    if not job.recipe.finish.refit or all(len(fold.train) == len(everything) for fold in folds):
        return None
    labeled = int((~data.is_background(everything)).sum())
    trained = [int((~data.is_background(fold.train)).sum()) for fold in folds]
    per_clip = float(np.mean([result.step / max(1, count) for result, count in zip(results, trained, strict=True)]))
    steps, epochs = round(per_clip * labeled), float(np.mean([result.epoch for result in results]))
    return Refit(labeled, round(np.mean(trained)), steps, round(epochs, 1)) if steps else None


def refit(job: FinetuneJob, plan: Refit, world: World) -> TrainingReport:
    """Train on all clips, or resume that; a refit of another length or other settings is started anew."""
    everything = np.arange(len(job.data.corpus))
    length = {"run.steps": plan.steps, "run.epochs": None, "run.max_minutes": None, "run.patience": None}
    recipe = job.recipe.with_values({**length, "run.validate_first": False})
    task = replace(job, recipe=recipe).task(Fold(everything, everything[:0], name=REFIT_FOLDER))
    folder, more = job.output / REFIT_FOLDER, {"refit_steps": plan.steps}
    if world.is_main:
        settings = settings_of(recipe, job.initial)
        try:
            check_run(folder, {**settings, "task": {**settings["task"], **more}}, recipe.task_defaults())
        except OtherSettingsError:
            shutil.rmtree(folder)
    world.broadcast(None)  # wait for the main process
    return job.train(task, folder, world, f"refit on all {plan.clips} clips", more)


def publish(
    report: FinetuneReport, job: FinetuneJob, tested: Sequence[FoldTest], states: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the classifier, the results, the tables and the plots.

    Args:
        report: of the run; where its refit is not done, the classifier is one that was tested.
        job: of the run.
        tested: tests of the folds that have test clips.
        states: `state_dict` of each fold's task, by which a finished run recognizes its recordings.
    """
    out, multi = job.output, job.data.multi
    sign = -1 if report.metric == "loss" else 1
    validated = [fold for fold in report.folds if fold.valid is not None]
    best = max(validated, key=lambda fold: sign * (fold.valid or 0.0)) if validated else report.folds[0]
    refitted = job.output / REFIT_FOLDER / MODEL_FOLDER if report.refit and report.refit.done else None
    write_classifier(out / MODEL_FOLDER, refitted or best.model, report)
    if len(report.folds) > 1:
        if refitted is None:
            report = replace(report, notes=(*report.notes, f"model/ is the classifier of fold {best.name}"))
        for fold, scores in zip((fold for fold in report.folds if fold.scores), tested, strict=True):
            accuracy, balanced = (fold.scores.get(name, math.nan) for name in ("accuracy", "balanced_accuracy"))
            title = f"{fold.name}, accuracy {accuracy:.3f} ({balanced:.3f} balanced)"
            write_tables(fold_folder(out, fold.name), scores, report.classes, multi=multi, title=title)
    finished = report.refit is None or report.refit.done
    run = {"settings": settings_of(job.recipe, job.initial), "data": dict(states)} if finished else None
    write_report(report, out, tested, job.recipe, job.initial.base, multi=multi, run=run)


def write_classifier(folder: Path, source: Path, report: FinetuneReport) -> None:
    """Copy a classifier, with temperature and thresholds in its configuration."""
    loaded = load_checkpoint(source)
    assert isinstance(loaded.model, Classifier)
    head, found = loaded.model.config, report.calibration
    if found is not None:
        head = head.with_changes(
            temperature=found.temperature,
            thresholds=tuple(round(one.threshold, 4) for one in found.thresholds),
            wanted_precision=found.wanted_precision,
        )
    origin = str(report.refit) if report.refit and report.refit.done else None
    config = loaded.config.with_changes(classifier=head.model_dump(), origin=origin)
    replace_folder(folder, lambda target: save_checkpoint(target, loaded.model, config, loaded.front_end))


def read_finished(output: Path, recipe: FinetuneRecipe, initial: InitialModel) -> dict[str, Any] | None:
    """Return the results of the finished run in a folder; None if there is none, or it had another length.

    Raises:
        OtherSettingsError: it has other settings.
        ModelMismatchError: it started from another model.
    """
    if not (output / RESULTS_FILE).is_file():
        return None
    content = read_json(output / RESULTS_FILE)
    before = (content.get("run") or {}).get("settings")
    if before is None or not (output / MODEL_FOLDER).is_dir():
        return None
    now = settings_of(recipe, initial)
    before = with_new_settings(before, now, recipe.task_defaults())
    check_settings(before, now, output)
    return None if settings_differences(before, now, FREE_ON_RESUME - _LENGTH - _FINISH) else content


def finished_report(content: Mapping[str, Any], job: FinetuneJob, folds: Sequence[Fold]) -> FinetuneReport:
    """Return the report of a finished run from what `read_finished` found.

    Raises:
        DataError: the recordings, their labels or their splits are not those of the run.
    """
    for fold in folds:
        job.task(fold).load_state_dict(content["run"]["data"].get(fold.name, {}))
    results = [
        FoldResult(
            **{
                **one,
                "model": job.output / one["model"],
                "scores": {name: _number(value) for name, value in one["scores"].items()},
                "intervals": {name: _interval(bounds) for name, bounds in one["intervals"].items()},
                "skipped": tuple((key, reason) for key, reason in one["skipped"]),
            }
        )
        for one in content["rounds"]
    ]
    found = content["calibration"]
    calibration = found and Calibration(
        **{
            **found,
            "thresholds": tuple(
                ClassThreshold(one["threshold"], _number(one["precision"]), _number(one["recall"]), one["positives"])
                for one in found["thresholds"].values()
            ),
        }
    )
    return FinetuneReport(
        "finished",
        content["metric"],
        tuple(content["classes"]),
        tuple(results),
        tuple(content["notes"]),
        job.output / MODEL_FOLDER,
        {name: _interval(one["interval"]) for name, one in content["scores"].items() if one["interval"]},
        was_finished=True,
        calibration=calibration,
        refit=content["refit"] and Refit(**content["refit"]),
    )


def remove_states(output: Path) -> None:
    """Remove what only an unfinished run needs: saved states, and the models that are not those of the results."""
    for folder in (output / REFIT_FOLDER, *sorted((output / ROUNDS_FOLDER).glob("*/"))):
        for name in (STATES_FOLDER, BEST_FOLDER, MODEL_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
        if (folder / REPORT_FILE).is_file():
            write_json(folder / REPORT_FILE, {**read_json(folder / REPORT_FILE), "last_state": None, "model": None})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _interval(bounds: Sequence[float | None]) -> Interval:
    low, high = map(_number, bounds)
    return Interval(low, high)
