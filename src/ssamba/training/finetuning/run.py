"""Fine-tuning: a pretrained encoder learns the labels of recordings, in one round or one for each fold.

    OUT/model            the classifier: `ssamba predict --checkpoint OUT`, `ssamba.load_model("OUT/model")`
    OUT/results.json     and tables and pictures beside it: see `finetune_report.py`
    OUT/rounds/NAME      each round's run as the loop writes it, and `chosen/`, its classifier

With folds each has its own classifier, and OUT/model is that of the best validation (the first, where there is none).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ssamba.checkpoint import Checkpoint, has_bundled, load_bundled, load_checkpoint
from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.errors import CheckpointError
from ssamba.hashing import digest_of
from ssamba.model.heads import Classifier
from ssamba.splits import Fold, check_leaks, make_folds
from ssamba.training.distributed import World, init_distributed
from ssamba.training.finetuning.data import Labeled, open_labeled
from ssamba.training.finetuning.head_start import start_head
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.report import (
    FinetuneReport,
    RoundResult,
    Verdicts,
    round_folder,
    write_report,
    write_tables,
)
from ssamba.training.finetuning.scores import Measured, comparable_scores, mean_intervals, measure, wanted_metrics
from ssamba.training.finetuning.task import Answers, FinetuneTask, window_s
from ssamba.training.loop import train
from ssamba.training.pretraining.recipe import ModelSettings
from ssamba.training.run_io import TrainingProgress, TrainingReport
from ssamba.training.state import BEST_FOLDER, MODEL_FOLDER, has_state, replace_folder

__all__ = ["FinetuneReport", "RoundResult", "finetune"]

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
    on_decoded: Callable[[str, int, int], None] | None = None,
    on_round: Callable[[str, int, int], None] | None = None,
) -> FinetuneReport:
    """Teach a pretrained encoder the labels of recordings, and test what it learned.

    Args:
        source: a folder with a folder for each class, a manifest with labels (and splits, or folds), or a corpus.
        recipe: everything else; `FinetuneRecipe.read` reads one by name or from a file.
        out: folder of the results, see the head of this file.
        checkpoint: the encoder, as `load_checkpoint` takes it; None is the one that ships with ssamba.
        resume: go on with what is in `out`; "auto" does so if there is something.
        device: where to compute; None is a GPU if there is one.
        on_progress: called after each step.
        on_decoded: called while recordings are decoded into memory: name, clips done, clips in all.
        on_round: called as each round begins: its name, its number from 1, rounds in all.

    Raises:
        DataError: there are no labels, the splits leak, or the recordings are not those of the run to resume.
        CheckpointError: the checkpoint cannot be loaded, or something is in `out` already and `resume` is not set.
        ConfigError: the recipe contradicts the run to resume, or the checkpoint.
        TrainingError: a run diverged or could not be saved.
    """
    out = Path(out)
    start = _start(checkpoint, recipe)
    encoder, front_end = _configs(start, recipe)
    seconds = window_s(encoder.num_frames, front_end)
    data = open_labeled(source, recipe, front_end, seconds, on_decoded)
    rounds, notes = _rounds(data, recipe)
    weights = None if recipe.start.scratch or start is None else start.model.encoder.state_dict()
    settings = recipe.task_settings()
    settings["encoder"], settings["front_end"] = encoder.digest(), front_end.digest()
    settings["started_from"] = digest_of(weights) if weights else "scratch"
    results: list[RoundResult] = []
    answers: list[Verdicts] = []
    measured: list[Measured] = []
    stopped, metric = "finished", ""
    with init_distributed(device) as world:
        for number, part in enumerate(rounds, start=1):
            if on_round is not None and world.is_main:
                on_round(part.name, number, len(rounds))
            task = FinetuneTask(recipe, data, part, encoder, front_end, weights)
            metric = task.best_metric[0]
            folder = round_folder(out, part.name)
            if recipe.start.fitted_head and weights is not None and not has_state(folder):
                start_head(task, world.device)
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
            result, said = _test(task, report, folder, world)
            if said is not None and len(said.logits):
                result, of_round = _measure(result, said, task)
                answers.append(Verdicts(comparable_scores(said.logits, binary_loss=task.binary), said.targets))
                measured.append(of_round)
            results.append(result)
        final = FinetuneReport(
            stopped,
            metric,
            data.classes,
            tuple(results),
            tuple(notes),
            out / MODEL_FOLDER if stopped == "finished" else None,
            mean_intervals(measured),
        )
        final = replace(final, notes=(*notes, *final.partly_scored()))
        if stopped == "finished":
            if world.is_main:
                _publish(final, out, answers, recipe, task)
            world.broadcast(None)  # the others wait
    return final


def _start(checkpoint: str | Path | None, recipe: FinetuneRecipe) -> Checkpoint | None:
    """The checkpoint to start from; None where there is none and none is needed."""
    stride = recipe.start.patch_stride
    if checkpoint is not None:
        return load_checkpoint(checkpoint, stride)
    if has_bundled():
        return load_bundled(stride)
    if recipe.start.scratch:
        return None
    raise CheckpointError(
        "this installation of ssamba came without weights: name a checkpoint to start from (a folder, an official .pth "
        "file, or hf:OWNER/NAME), or start from scratch"
    )


def _configs(start: Checkpoint | None, recipe: FinetuneRecipe) -> tuple[BaseEncoderConfig, FrontEndConfig]:
    """The encoder and front end of a recipe: the checkpoint's, with its changes."""
    encoder: BaseEncoderConfig = ModelSettings().config() if start is None else start.config.encoder
    front_end = FrontEndConfig() if start is None else start.front_end
    if start is None and recipe.start.patch_stride is not None:
        encoder = encoder.with_patch_stride(recipe.start.patch_stride)
    clips = recipe.clips
    frames = clips.frames or encoder.num_frames
    drop_path = 0.0 if recipe.start.frozen else encoder.drop_path
    if recipe.start.drop_path is not None:
        drop_path = recipe.start.drop_path
    # The table of positions stays as it was pretrained, whatever the window.
    encoder = encoder.with_changes(num_frames=frames, position_grid=encoder.grid, drop_path=drop_path)
    changes = {name: value for name, value in (("mean", clips.mean), ("std", clips.std)) if value is not None}
    return encoder, front_end.with_changes(**changes)


def _rounds(data: Labeled, recipe: FinetuneRecipe) -> tuple[list[Fold], list[str]]:
    rounds, notes = make_folds(
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
    check_leaks(rounds, data.groups, data.files)
    if data.corpus.skipped:
        notes.append(
            f"{len(data.corpus.skipped)} recordings cannot be used and were left out: rounds/{rounds[0].name}/skipped.csv"
        )
    return rounds, notes


def _test(task: FinetuneTask, report: TrainingReport, folder: Path, world: World) -> tuple[RoundResult, Answers | None]:
    """Keep the model that the recipe chooses, and test it."""
    part = task.part
    best = report.best if task.recipe.choice.state == "best" and (folder / BEST_FOLDER).is_dir() else None
    best = world.broadcast(best)
    chosen = folder / CHOSEN_FOLDER
    if world.is_main:
        kept = folder / (BEST_FOLDER if best else MODEL_FOLDER)
        replace_folder(chosen, lambda target: shutil.copytree(kept, target, dirs_exist_ok=True))
    world.broadcast(None)  # the folder is there
    model = load_checkpoint(chosen).model
    assert isinstance(model, Classifier)
    answers = task.answers(model.to(world.device), part.test) if len(part.test) else None
    scores = task.figures(answers) if answers is not None and len(answers.logits) else {}
    step = best[0] if best else report.step
    last = report.validation.get(task.best_metric[0], float("nan"))
    valid = best[1] if best else last if last == last else None
    result = RoundResult(
        part.name,
        {"train": len(part.train), "valid": len(part.valid), "test": len(part.test)},
        step,
        _epoch(task, step),
        valid,
        scores,
        chosen,
        answers.skipped if answers is not None else (),
    )
    return result, answers


def _epoch(task: FinetuneTask, step: int) -> int:
    """Epochs, counted from 1, that so many steps reach into."""
    epoch, steps = 0, 0
    while steps < step:
        steps += -(-task.batches_in_epoch(epoch) // task.recipe.run.accumulate)
        epoch += 1
    return epoch


def _measure(result: RoundResult, said: Answers, task: FinetuneTask) -> tuple[RoundResult, Measured]:
    """The result of a round with all figures of its test, and what their intervals are taken of."""
    wanted = wanted_metrics(multi=task.data.multi, by_second=task.recipe.labels.unit == "second")
    scores = comparable_scores(said.logits, binary_loss=task.binary)
    found = measure(scores, said.targets, said.units, wanted)
    return replace(result, scores={**result.scores, **found.values}, intervals=found.intervals), found


def _publish(
    report: FinetuneReport, out: Path, answers: list[Verdicts], recipe: FinetuneRecipe, task: FinetuneTask
) -> None:
    """Write the model, the results, the tables and the pictures."""
    sign = 1 if task.best_metric[1] == "max" else -1
    judged = [part for part in report.rounds if part.valid is not None]
    best = max(judged, key=lambda part: sign * (part.valid or 0.0)) if judged else report.rounds[0]
    replace_folder(out / MODEL_FOLDER, lambda target: shutil.copytree(best.model, target, dirs_exist_ok=True))
    multi = task.data.multi
    if len(report.rounds) > 1:
        report = replace(report, notes=(*report.notes, f"model/ is the classifier of round {best.name}"))
        tested = [part for part in report.rounds if part.scores]
        for part, said in zip(tested, answers, strict=True):
            title = f"{part.name}, accuracy {part.scores.get('accuracy', float('nan')):.3f}"
            write_tables(round_folder(out, part.name), said, report.classes, multi=multi, title=title)
    write_report(report, out, answers, recipe, multi=multi)
