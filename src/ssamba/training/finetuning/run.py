"""Fine-tune a pretrained encoder on labeled recordings: train and test a classifier on one fold, or on each fold.

    OUT/model            the classifier: `ssamba predict --checkpoint OUT`, `ssamba.load_model("OUT")`
    OUT/results.json     test metrics, with tables and plots beside it: see `ssamba.training.finetuning.report`
    OUT/rounds/NAME      the run of each fold as the training loop writes it, and `chosen/`, its classifier

Each fold has a classifier of its own; OUT/model is the one with the best validation (the first fold's without one).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ssamba.checkpoint import Checkpoint, has_default_weights, load_checkpoint
from ssamba.checkpoint.names import MODEL_FOLDER
from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.model.heads import Classifier
from ssamba.splits import Fold, check_leaks, make_folds
from ssamba.training.batches import OnDecoded
from ssamba.training.distributed import World, init_distributed
from ssamba.training.finetuning.data import LabeledData, open_labeled
from ssamba.training.finetuning.head_init import fit_initial_head
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.report import (
    FinetuneReport,
    FoldResult,
    FoldTest,
    comparable_scores,
    fold_folder,
    mean_intervals,
    metrics_of_test,
    write_report,
    write_tables,
)
from ssamba.training.finetuning.task import FinetuneTask, window_s
from ssamba.training.loop import train
from ssamba.training.pretraining.recipe import ModelSettings
from ssamba.training.run_io import TrainingProgress, TrainingReport
from ssamba.training.state import BEST_FOLDER, has_state, replace_folder, start_settings

__all__ = ["FinetuneReport", "FoldResult", "finetune"]

CHOSEN_FOLDER = "chosen"


def finetune(
    source: Any,
    recipe: FinetuneRecipe,
    out: str | Path,
    *,
    checkpoint: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    device: str | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    on_decoded: OnDecoded | None = None,
    on_fold: Callable[[str, int, int], None] | None = None,
) -> FinetuneReport:
    """Fine-tune a pretrained encoder on labeled recordings, and test it.

    Args:
        source: a folder with one folder per class, a manifest with labels (and splits or folds), or a corpus.
        recipe: all settings; `FinetuneRecipe.read` reads one by name or from a file.
        out: folder of the results; see the docstring of this module.
        checkpoint: the model to start from, by name or path as for `load_checkpoint`; None is the recipe's
            `start.checkpoint`, else the default model.
        resume: continue what is in `out`; "auto" does so if there is something.
        device: device to train on; None is a GPU if there is one.
        on_progress: called after each step.
        on_decoded: called while recordings are decoded into memory: name, clips done, clips in total.
        on_fold: called when a fold begins: its name, its number from 1, number of folds.

    Raises:
        DataError: there are no labels, the splits leak, or the recordings are not those of the run to resume.
        CheckpointError: the checkpoint cannot be loaded, or `out` holds a run and `resume` is not set.
        ConfigError: the recipe contradicts the checkpoint, or the run to resume.
        ModelMismatchError: the run to resume started from another model.
        TrainingError: a run diverged or could not be saved.
    """
    out = Path(out)
    start = _load_start(checkpoint, recipe)
    encoder, front_end = _configs(start, recipe)
    data = open_labeled(source, recipe, front_end, window_s(encoder.num_frames, front_end), on_decoded)
    folds, notes = _make_folds(data, recipe)
    trained = None if recipe.start.scratch else start
    weights, base = (trained.model.encoder.state_dict(), trained.identity) if trained else (None, None)
    settings = recipe.task_settings()
    settings["encoder"], settings["front_end"] = encoder.digest(), front_end.digest()
    settings |= start_settings(base)
    results: list[FoldResult] = []
    tested: list[FoldTest] = []
    stopped, metric = "finished", ""
    with init_distributed(device) as world:
        for number, fold in enumerate(folds, start=1):
            if on_fold is not None and world.is_main:
                on_fold(fold.name, number, len(folds))
            task = FinetuneTask(recipe, data, fold, encoder, front_end, weights, base)
            metric = task.best_metric[0]
            folder = fold_folder(out, fold.name)
            if recipe.start.fitted_head and weights is not None and not has_state(folder):
                fit_initial_head(task, world.device)
            report = train(
                task,
                recipe.optimizer,
                recipe.schedule,
                recipe.run,
                folder,
                resume=resume,
                recipe=settings,
                device=device,
                on_progress=on_progress,
            )
            if report.stopped != "finished":
                stopped = report.stopped
                break
            result, test = _test(task, report, folder, world)
            results.append(result)
            if test is not None:
                tested.append(test)
        model = out / MODEL_FOLDER if stopped == "finished" else None
        final = FinetuneReport(
            stopped, metric, data.classes, tuple(results), tuple(notes), model, mean_intervals(tested)
        )
        final = replace(final, notes=(*notes, *final.partly_scored()))
        if stopped == "finished":
            if world.is_main:
                _publish(final, out, tested, recipe, task)
            world.broadcast(None)  # wait for the main process
    return final


def _load_start(checkpoint: str | Path | None, recipe: FinetuneRecipe) -> Checkpoint | None:
    """Return the checkpoint to start from; None if none is named, none ships, and training starts from scratch."""
    checkpoint = recipe.start.checkpoint if checkpoint is None else checkpoint
    if checkpoint is None and recipe.start.scratch and not has_default_weights():
        return None
    return load_checkpoint(checkpoint, recipe.start.patch_stride)


def _configs(start: Checkpoint | None, recipe: FinetuneRecipe) -> tuple[BaseEncoderConfig, FrontEndConfig]:
    """Return the configurations of encoder and front end: the checkpoint's with the recipe's changes."""
    encoder: BaseEncoderConfig = ModelSettings().config() if start is None else start.config.encoder
    front_end = FrontEndConfig() if start is None else start.front_end
    if start is None and recipe.start.patch_stride is not None:
        encoder = encoder.with_patch_stride(recipe.start.patch_stride)
    clips = recipe.clips
    drop_path = 0.0 if recipe.start.frozen else encoder.drop_path
    if recipe.start.drop_path is not None:
        drop_path = recipe.start.drop_path
    # The table of positions stays as pretrained, whatever the window.
    encoder = encoder.with_changes(
        num_frames=clips.frames or encoder.num_frames, position_grid=encoder.grid, drop_path=drop_path
    )
    changes = {name: value for name, value in (("mean", clips.mean), ("std", clips.std)) if value is not None}
    return encoder, front_end.with_changes(**changes)


def _make_folds(data: LabeledData, recipe: FinetuneRecipe) -> tuple[list[Fold], list[str]]:
    """Return the folds, checked for leaks, and notes for the user."""
    folds, notes = make_folds(
        data.splits,
        data.groups,
        data.files,
        data.clip_targets(),
        valid_share=recipe.clips.valid_share,
        test_share=recipe.clips.test_share,
        validate=recipe.choice.state == "best",
        classes=data.classes,
        copies=data.copies,
    )
    check_leaks(folds, data.groups, data.files)
    if data.corpus.skipped:
        notes.append(
            f"{len(data.corpus.skipped)} recordings cannot be used and were left out: "
            f"rounds/{folds[0].name}/skipped.csv"
        )
    return folds, notes


def _test(task: FinetuneTask, report: TrainingReport, folder: Path, world: World) -> tuple[FoldResult, FoldTest | None]:
    """Copy the model that the recipe chooses to `chosen/`, and test it; None if no test clip can be read."""
    fold, test = task.fold, None
    scores: dict[str, float] = {}
    skipped: tuple[tuple[str, str], ...] = ()
    best = report.best if task.recipe.choice.state == "best" and (folder / BEST_FOLDER).is_dir() else None
    best = world.broadcast(best)
    chosen = folder / CHOSEN_FOLDER
    if world.is_main:
        source = folder / (BEST_FOLDER if best else MODEL_FOLDER)
        replace_folder(chosen, lambda target: shutil.copytree(source, target, dirs_exist_ok=True))
    world.broadcast(None)  # wait until the folder is complete
    model = load_checkpoint(chosen).model
    assert isinstance(model, Classifier)
    if len(fold.test):
        predictions = task.predict(model.to(world.device), fold.test)
        skipped = predictions.skipped
        if len(predictions.logits):
            chosen_metrics = metrics_of_test(multi=task.data.multi, by_second=task.recipe.labels.unit == "second")
            comparable = comparable_scores(predictions.logits, binary_loss=task.binary)
            test = FoldTest.measure(comparable, predictions.targets, predictions.recordings, chosen_metrics)
            scores = {**task.metrics(predictions), **test.values}
    step = best[0] if best else report.step
    last = report.validation.get(task.best_metric[0], float("nan"))
    result = FoldResult(
        fold.name,
        {"train": len(fold.train), "valid": len(fold.valid), "test": len(fold.test)},
        step,
        _epoch(task, step),
        best[1] if best else last if last == last else None,
        scores,
        chosen,
        skipped,
        {} if test is None else test.intervals,
    )
    return result, test


def _epoch(task: FinetuneTask, step: int) -> int:
    """Return the epoch, counted from 1, of the last of `step` steps; 0 before the first."""
    epoch, steps = 0, 0
    while steps < step:
        steps += -(-task.batches_in_epoch(epoch) // task.recipe.run.accumulate)
        epoch += 1
    return epoch


def _publish(
    report: FinetuneReport, out: Path, tested: list[FoldTest], recipe: FinetuneRecipe, task: FinetuneTask
) -> None:
    """Write the model, the results, the tables and the plots."""
    sign = 1 if task.best_metric[1] == "max" else -1
    validated = [fold for fold in report.folds if fold.valid is not None]
    best = max(validated, key=lambda fold: sign * (fold.valid or 0.0)) if validated else report.folds[0]
    replace_folder(out / MODEL_FOLDER, lambda target: shutil.copytree(best.model, target, dirs_exist_ok=True))
    multi = task.data.multi
    if len(report.folds) > 1:
        report = replace(report, notes=(*report.notes, f"model/ is the classifier of fold {best.name}"))
        for fold, scores in zip((fold for fold in report.folds if fold.scores), tested, strict=True):
            title = f"{fold.name}, accuracy {fold.scores.get('accuracy', float('nan')):.3f}"
            write_tables(fold_folder(out, fold.name), scores, report.classes, multi=multi, title=title)
    write_report(report, out, tested, recipe, task.base, multi=multi)
