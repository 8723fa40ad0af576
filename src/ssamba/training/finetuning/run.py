"""Fine-tune a pretrained encoder on labeled recordings: train and test a classifier on one fold, or on each fold.

    report = finetune("sounds/", "runs/birds", recipe="cpu")

    OUTPUT/model            the classifier: `ssamba predict -c OUTPUT`, `ssamba.load_model("OUTPUT")`
    OUTPUT/results.json     test metrics, with tables and plots beside it: see `ssamba.training.finetuning.report`
    OUTPUT/rounds/NAME      log of the training on each fold, tables, and `chosen/`, the classifier that was tested
    OUTPUT/refit            log of the training on all clips, which OUTPUT/model is from

Each fold has a classifier of its own. Without a refit, OUTPUT/model is the one with the best validation (the first
fold's without one). Saved states are removed when a run has finished.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.checkpoint import Checkpoint, has_default_weights, load_checkpoint
from ssamba.checkpoint.names import MODEL_FOLDER, ROUNDS_FOLDER
from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.data.corpus import is_all_silent
from ssamba.errors import Interrupted
from ssamba.locks import OutputLock
from ssamba.model.heads import Classifier
from ssamba.progress import OnProgress, checked_progress
from ssamba.splits import Fold, check_leaks, class_notes, label_notes, make_folds
from ssamba.text import format_table
from ssamba.training.batches import report_decoded
from ssamba.training.distributed import World, init_distributed, is_restarted, lock_run, training_device
from ssamba.training.finetuning import finish
from ssamba.training.finetuning.data import LabeledData, open_labeled
from ssamba.training.finetuning.job import FinetuneJob, InitialModel, settings_of
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.report import (
    FinetuneReport,
    FoldResult,
    FoldTest,
    comparable_scores,
    fold_folder,
    mean_intervals,
    metrics_of_test,
)
from ssamba.training.finetuning.scenes import Scene, read_scenes
from ssamba.training.finetuning.task import FinetuneTask, Predictions, window_s
from ssamba.training.pretraining.recipe import ModelSettings
from ssamba.training.recipes import Changes, parse_changes
from ssamba.training.run_io import TrainingReport
from ssamba.training.state import (
    BEST_FOLDER,
    check_output,
    check_run,
    move_run_aside,
    replace_folder,
    run_folder,
)

__all__ = ["FinetuneReport", "FoldResult", "finetune"]

CHOSEN_FOLDER = "chosen"
CPU_RECIPE = "cpu"
"""The default without a GPU."""
_LABELS_LISTED = 40

_log = logging.getLogger(__name__)


def finetune(
    data: Any,
    output: str | Path,
    checkpoint: str | Path | None = None,
    *,
    recipe: FinetuneRecipe | str | Path | None = None,
    set: Changes | None = None,
    scratch: bool = False,
    frozen: bool = False,
    minutes: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    front_end: str | None = None,
    encoding: str | None = None,
    background: Any = None,
    labels_from: int | None = None,
    refit: bool | None = None,
    tensorboard: bool = False,
    overwrite: bool = False,
    take_over: bool = False,
    progress: OnProgress | None = None,
) -> FinetuneReport:
    """Fine-tune a pretrained encoder on labeled recordings, and test it; or resume the run in `output`.

    Repeating the call resumes an interrupted run; with more minutes or epochs it also extends a finished one.

    Args:
        data: a folder with one folder per class, a manifest with labels (and splits or folds), a folder of shards,
            `hf:OWNER/NAME`, a corpus or data set; or a list of these.
        output: folder of the results; see the docstring of this module.
        checkpoint: the model to start from, by name or path as for `ssamba.load_model`; None means the recipe's
            `start.checkpoint`, else the default model.
        recipe: a `FinetuneRecipe`, the path of a TOML file, or the name of a shipped one: cpu, cpu-speech, esc50,
            official-esc50, ... None is cpu without a GPU, else the defaults.
        set: settings of the recipe to change: `{"optimizer.learning_rate": 1e-3}`, or
            `["optimizer.learning_rate=1e-3"]`.
        scratch: start from random weights, for comparison.
        frozen: train only the classifier.
        minutes: time budget of each fold; with `epochs` training ends at whichever comes first. Either replaces the
            recipe's length.
        epochs: passes over the data of each fold.
        seed: seed of everything random.
        batch_size: clips of median length in a batch, over all processes.
        device: cpu, cuda, cuda:1, ...; None means a GPU if there is one.
        front_end: frequencies that the model hears, `48khz` or `x10` (`FrontEndConfig.named`), in place of the
            checkpoint's; the classifier keeps it.
        encoding: of manifests in CSV and JSON, such as `cp1252`; None is UTF-8.
        background: recordings without any of the classes (a folder, files or a manifest, or a list of these), such as
            whole nights. Windows of them become clips of the class "background", which means "none of the others",
            and are mixed under the labeled clips. A few calls among them do little harm.
        labels_from: number of the level of nested folders that names the classes, from 1 (of SITE/DATE/CLASS/a.wav it
            is 3); None finds it, or raises an error that lists the levels.
        refit: after the test, train the final classifier on all labeled clips, those of validation and test included,
            for as many epochs as were chosen; scores stay those of the test. None means as the recipe says: True, but
            False in the recipes of public data sets.
        tensorboard: write curves for TensorBoard to `output`.
        overwrite: start anew; what an earlier run wrote is moved to a folder beside `output`.
        take_over: take `output` away from another process that is writing to it.
        progress: called while recordings are read and after each step, with a `StepProgress`; returning False stops
            after the step, and the state is saved.

    Returns:
        The report; its `stopped` is `finished`, or `stopped` if `progress` stopped the run.

    Raises:
        ConfigError: the recipe does not exist, a setting is unknown or does not fit (the checkpoint included), an
            argument is of a wrong kind, arguments contradict each other, or `output` is a file.
        OtherSettingsError: the run in `output` has other settings; every difference is named.
        ModelMismatchError: it started from another model.
        MissingExtraError: TensorBoard is requested and not installed.
        DataError: there are no labels, the splits leak, or the recordings are not those of the run in `output`.
        CheckpointError: the checkpoint cannot be loaded, or `output` contains something other than a fine-tuning run.
        TrainingError: a run diverged or could not be saved, or there is no such device.
        OutputInUseError: another process is writing to `output`.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    output = run_folder(output)
    checked_progress(progress)
    if recipe is None and training_device(device).type == "cpu":
        recipe, set = _recipe_without_gpu(set)
    settings = FinetuneRecipe.from_arguments(
        recipe,
        set,
        seed=seed,
        batch_size=batch_size,
        minutes=minutes,
        epochs=epochs,
        scratch=("start.scratch", scratch or None),
        frozen=("start.frozen", frozen or None),
        tensorboard=("run.tensorboard", tensorboard or None),
        checkpoint=("start.checkpoint", None if checkpoint is None else str(checkpoint)),
        front_end=("start.front_end", front_end),
        refit=("finish.refit", refit),
    )
    with lock_run(output, take_over) as lock:
        return _finetune(
            data, background, labels_from, output, checkpoint, settings, device, encoding, overwrite, progress, lock
        )


def _recipe_without_gpu(changes: Changes | None) -> tuple[str, dict[str, Any]]:
    """Return the default recipe for CPUs, and the changes with what labels of seconds rule out in it."""
    given = parse_changes(changes)
    ruled_out = {"clips.balanced": False, "clips.mixup.share": 0.0} if given.get("labels.unit") == "second" else {}
    _log.info("no GPU: recipe %s (--recipe takes another)", CPU_RECIPE)
    return CPU_RECIPE, {**ruled_out, **given}


def _finetune(
    data: Any,
    background: Any,
    labels_from: int | None,
    output: Path,
    checkpoint: str | Path | None,
    settings: FinetuneRecipe,
    device: str | None,
    encoding: str | None,
    overwrite: bool,
    progress: OnProgress | None,
    lock: OutputLock | None,
) -> FinetuneReport:
    """Fine-tune in a folder whose lock is held; see `finetune`."""
    if not overwrite:
        check_output(output, other_kind="checkpoints")
    initial = _initial_model(_load_start(checkpoint, settings), settings)
    finished = None
    if not overwrite:  # before recordings are read
        finished = finish.read_finished(output, settings, initial)
        for folder in sorted((output / ROUNDS_FOLDER).glob("*/")):
            check_run(folder, settings_of(settings, initial), settings.task_defaults())
    window = window_s(initial.encoder.num_frames, initial.front_end)
    on_decoded = report_decoded(progress)
    labeled = open_labeled(data, settings, initial.front_end, window, on_decoded, encoding, background, labels_from)
    folds, notes = _make_folds(labeled, settings)
    problems = label_problems(labeled, folds)
    notes += problems
    job = FinetuneJob(settings, labeled, initial, output, device, lock, progress)
    moved_to: Path | None = None
    with init_distributed(device) as world:
        if overwrite and not is_restarted():
            moved_to = world.broadcast(move_run_aside(output) if world.is_main else None)
        if finished is not None:
            report = finish.finished_report(finished, job, folds)
            if world.is_main:
                finish.remove_states(output)
            return report
        if world.is_main:
            _log.info("%s", clip_counts(labeled, folds))
            for problem in problems:
                _log.warning(problem)
        return _train_and_test(job, folds, notes, world, moved_to, overwrite)


def _train_and_test(
    job: FinetuneJob, folds: Sequence[Fold], notes: Sequence[str], world: World, moved_to: Path | None, overwrite: bool
) -> FinetuneReport:
    """Train and test on each fold, calibrate, and refit."""
    results: list[FoldResult] = []
    tested: list[FoldTest] = []
    answers: list[Predictions] = []
    scenes: list[Scene] = []
    states: dict[str, dict[str, Any]] = {}
    again = "the command without --overwrite" if overwrite else "the command"
    notes = list(notes)
    final = FinetuneReport("finished", "", job.data.classes, (), tuple(notes), None, moved_to=moved_to)
    for number, fold in enumerate(folds, start=1):
        task = job.task(fold)
        states[fold.name] = task.state_dict()
        folder = fold_folder(job.output, fold.name)
        name = "fine-tuning" if len(folds) == 1 else f"{fold.name} ({number} of {len(folds)})"
        report = job.train(task, folder, world, name)
        final = replace(final, stopped=report.stopped, metric=task.best_metric[0])
        if report.stopped != "finished":
            return _stopped(final, f"the state of step {report.step} of {fold.name} is saved: repeat {again} to resume")
        result, test, held_out, seen = _test(task, report, folder, world, with_validation=len(folds) == 1)
        if report.ended_early:
            where = "" if len(folds) == 1 else f"{fold.name}: "
            notes.append(f"{where}training ended {report.ended_early}; its epoch {result.epoch} is used")
        results.append(result)
        answers += held_out
        scenes += seen
        if test is not None:
            tested.append(test)
        final = replace(final, folds=tuple(results), intervals=mean_intervals(tested))
    calibration = finish.calibrate(answers, scenes, task)
    notes += final.partly_scored()
    notes += calibration.notes(job.data.classes, job.data.background) if calibration else []
    plan = finish.planned_refit(job, folds, results)
    final = replace(final, notes=tuple(notes), calibration=calibration, refit=plan, model=job.output / MODEL_FOLDER)
    if world.is_main:
        finish.publish(final, job, tested, states)
    if plan is not None:
        report = finish.refit(job, plan, world)
        if report.stopped != "finished":
            message = f"{final.model} is the classifier that was tested; repeat {again} to go on with the refit"
            return _stopped(replace(final, stopped=report.stopped), message)
        final = replace(final, refit=replace(plan, done=True))
        if world.is_main:
            finish.publish(final, job, tested, states)
    if world.is_main:
        finish.remove_states(job.output)
    world.broadcast(None)  # wait for the main process
    return final


def _stopped(report: FinetuneReport, message: str) -> FinetuneReport:
    """Return the report of a run that `progress` stopped; raise Interrupted with it if a signal did."""
    if report.stopped.startswith("SIG"):
        raise Interrupted(message, report)
    return report


def _load_start(checkpoint: str | Path | None, recipe: FinetuneRecipe) -> Checkpoint | None:
    """Return the checkpoint to start from; None if none is named, none ships, and training starts from scratch."""
    checkpoint = recipe.start.checkpoint if checkpoint is None else checkpoint
    if checkpoint is None and recipe.start.scratch and not has_default_weights():
        return None
    return load_checkpoint(checkpoint, recipe.start.patch_stride)


def _initial_model(start: Checkpoint | None, recipe: FinetuneRecipe) -> InitialModel:
    """Return the checkpoint's encoder and front end with the recipe's changes."""
    encoder: BaseEncoderConfig = ModelSettings().config() if start is None else start.config.encoder
    front_end = FrontEndConfig() if start is None else start.front_end
    front_end = front_end.named(recipe.start.front_end) if recipe.start.front_end else front_end
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
    trained = None if recipe.start.scratch else start
    return InitialModel(
        encoder,
        front_end.with_changes(**changes),
        trained.model.encoder.state_dict() if trained else None,
        trained.identity if trained else None,
    )


def label_problems(data: LabeledData, folds: Sequence[Fold]) -> list[str]:
    """Return a line for each problem with labels that makes scores mean less than they seem to."""
    targets = data.clip_targets()
    problems = [*class_notes(data.classes, targets, folds), *label_notes(data.classes, targets, data.background)]
    problems += data.notes
    if is_all_silent(data.corpus):
        problems.append(f"all {len(data.corpus)} recordings are silent: a classifier can learn nothing from them")
    return problems


def clip_counts(data: LabeledData, folds: Sequence[Fold]) -> str:
    """Return a table of the labels with the number of clips that have each, of one fold also in each part."""
    has = data.clip_targets() > 0
    columns = {"clips": has.sum(0)}
    if len(folds) == 1:
        columns |= {name: has[getattr(folds[0], name)].sum(0) for name in ("train", "valid", "test")}
    rows = [[name, *(str(counts[c]) for counts in columns.values())] for c, name in enumerate(data.classes)]
    left_out = [f"... and {len(rows) - _LABELS_LISTED} more labels"] if len(rows) > _LABELS_LISTED else []
    split = f", {len(folds)} folds" if len(folds) > 1 else ""
    table = format_table(["label", *columns], rows[:_LABELS_LISTED])
    return "\n".join([f"{len(rows)} labels, {len(has)} clips{split}:", table, *left_out])


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


def _test(
    task: FinetuneTask, report: TrainingReport, folder: Path, world: World, *, with_validation: bool
) -> tuple[FoldResult, FoldTest | None, list[Predictions], list[Scene]]:
    """Copy the model that the recipe chooses to `chosen/`, and test it.

    Returns:
        The result; the test, None if no test clip can be read; answers for held-out clips, to calibrate with: those of
        the test, and of the validation where that is asked for; and scenes of these clips.
    """
    fold, test, held_out = task.fold, None, list[Predictions]()
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
    model.to(world.device)
    if len(fold.valid) and with_validation:
        held_out += task.held_out(model, fold.valid)
    if len(fold.test):
        predictions, *mixed = task.held_out(model, fold.test)
        held_out += [predictions, *mixed]
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
    clips = np.concatenate((fold.valid, fold.test)) if with_validation else fold.test
    scenes = world.broadcast(read_scenes(task, model, clips) if world.is_main else [])
    return result, test, held_out, scenes


def _epoch(task: FinetuneTask, step: int) -> int:
    """Return the epoch, counted from 1, of the last of `step` steps; 0 before the first."""
    epoch, steps = 0, 0
    while steps < step:
        steps += -(-task.batches_in_epoch(epoch) // task.recipe.run.accumulate)
        epoch += 1
    return epoch
