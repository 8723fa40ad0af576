"""Compare two models on a task by the same probes and the same test clips: what the second brings over the first.

    print(compare_models(read_task("labeled.csv"), "ssamba2-tiny", "runs/mine"))

The interval of the difference is a paired bootstrap: both models are scored on the same drawn clips, so what makes a
clip hard for both does not widen it. And in each fold both have the same probe, with the setting that validation finds
best for both together: where each has its own choice, a setting that flips by chance moves a score by several points.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.errors import SuiteError
from ssamba.evaluation.probing import ProbeResult
from ssamba.evaluation.run import Model, load_clip_model
from ssamba.evaluation.scorecard import EvaluateOptions, Scorecard, evaluate_model
from ssamba.evaluation.suite import read_suite
from ssamba.evaluation.task import Task
from ssamba.evaluation.vectors import VectorOptions
from ssamba.files import cache_folder, user_path
from ssamba.metrics.bootstrap import Interval, bootstrap_means, interval_of
from ssamba.metrics.classification import Array
from ssamba.progress import OnProgress, counted

_SAMPLES = 2000
_FEWEST = 6


@dataclass(frozen=True)
class Comparison:
    """Scores of two models on one task. As text, a line for each and their difference."""

    task: str
    """Name of the task."""
    metric: str
    """The task's metric."""
    clips: int
    """Scored test clips, over all folds."""
    changed: int
    """Test clips that one of the models has right and the other has not; of tasks with another metric, all of them."""
    models: tuple[str, str]
    """Names of the models."""
    scores: tuple[float, float]
    """Score of each, the mean over folds."""
    difference: float
    """The second score less the first."""
    settings: tuple[float, ...]
    """Setting of both probes in each fold (C of the logistic regression)."""
    interval: Interval
    """95 % interval of the difference: how much the choice of test clips matters, not that of training clips."""
    notes: tuple[str, ...] = ()
    """Problems with labels or recordings that make the scores mean less than they seem to."""

    @property
    def verdict(self) -> str:
        """Whether the second model is better: unknown if fewer than six clips changed, since even if all of them
        changed for the better, that would be chance once in 32 times or more (sign test, one side)."""
        if self.clips < _FEWEST:
            return f"too few test clips to tell, at least {_FEWEST}"
        if self.changed >= _FEWEST and self.interval.low > 0:
            return "better"
        if self.changed >= _FEWEST and self.interval.high < 0:
            return "worse"
        return "no difference that these clips can show"

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "interval": list(self.interval), "verdict": self.verdict}

    def __str__(self) -> str:
        (first, second), (low, high) = self.scores, self.interval
        return (
            f"{self.task}, {self.metric} of a linear probe on {counted(self.clips, 'test clip')}: {second:.3f} with "
            f"{self.models[1]}, {first:.3f} with {self.models[0]}; difference {self.difference:+.3f} (95 % {low:+.3f} "
            f"to {high:+.3f}): {self.verdict}" + "".join(f"\nnote: {note}" for note in self.notes)
        )


def read_task(table: str | Path, encoding: str | None = None) -> Task:
    """Read one TASK.csv (clip, label, split, group) with its recordings beside it.

    Raises:
        SuiteError: there is no such table, or it cannot be used.
    """
    path = user_path(table)
    if path.suffix.lower() != ".csv" or not path.is_file():
        raise SuiteError(f"{path}: expected a table TASK.csv with the columns clip, label, split, group")
    return read_suite(path, encoding=encoding)[0]


def check_task(
    task: Task, model: Model | None, *, device: str | None = None, progress: OnProgress | None = None
) -> None:
    """Find out if a task's recordings can be read and embedded. The vectors are cached for `compare_models`.

    Args:
        task: from `read_task` or `read_suite`.
        model: the first of the models that will be compared.
        device: where to run.
        progress: as for `evaluate`.

    Raises:
        As `evaluate`.
    """
    clip_model = load_clip_model(model, VectorOptions.parse({"readouts": ["clip"]}, "check_task"), device)
    evaluate_model(clip_model, [task], cache=cache_folder(), workers=os.cpu_count() or 1, progress=progress)


def compare_models(
    task: Task,
    first: Model | None,
    second: Model | None,
    *,
    readout: str = "clip",
    cache: str | Path | bool | None = None,
    device: str | None = None,
    progress: OnProgress | None = None,
) -> Comparison:
    """Score two models on a task by linear probes, with a paired interval of their difference.

    Args:
        task: from `read_task` or `read_suite`.
        first: as for `evaluate`, such as the model that training started from, or `logmel`.
        second: the model that is compared with it.
        readout: `clip` or `parts`.
        cache: as for `evaluate`.
        device: where to run; None means a GPU if there is one.
        progress: as for `evaluate`.

    Raises:
        As `evaluate`.
    """
    options = VectorOptions.parse({"readouts": [readout]}, "compare_models")
    models = [load_clip_model(one, options, device) for one in (first, second)]
    folder = None if cache is False else cache_folder() if cache in (None, True) else user_path(str(cache))

    cards: list[Scorecard] = []

    def results(setting: float | None) -> list[list[ProbeResult]]:
        """Return the results of each model in each fold."""
        how = EvaluateOptions(setting=setting)
        cards[:] = [
            evaluate_model(model, [task], how, cache=folder, workers=os.cpu_count() or 1, progress=progress)
            for model in models
        ]
        return [card.results[card.best().view][task.name] for card in cards]

    before, after = results(None)
    chosen = {result.setting for result in (*before, *after)}
    if any(one.setting != other.setting for one, other in zip(before, after, strict=True)):
        tried = [results(setting) for setting in sorted(chosen)]
        best = [
            max(tried, key=lambda found: found[0][fold].validation + found[1][fold].validation)
            for fold in range(len(before))
        ]
        before, after = ([found[side][fold] for fold, found in enumerate(best)] for side in (0, 1))
    scores = [float(np.mean([result.score for result in own])) for own in (before, after)]
    differences = [paired_differences(*pair) for pair in zip(before, after, strict=True)]
    return Comparison(
        task=task.name,
        metric=task.metric,
        clips=sum(len(result.test) for result in before),
        changed=sum(map(_changed, before, after)),
        models=(models[0].name, models[1].name),
        scores=(scores[0], scores[1]),
        difference=scores[1] - scores[0],
        settings=tuple(result.setting for result in before),
        interval=interval_of(np.mean(differences, axis=0)),
        notes=_notes(cards[0], task.name),
    )


def _notes(card: Scorecard, task: str) -> tuple[str, ...]:
    """Return what a scorecard says against a task, and that clips are tested which are also trained on."""
    notes = card.notes.get(task, [])
    if repeated := card.repeated.get(task):
        notes = [*notes, f"{counted(repeated, 'test clip')} also trained on under another name, which inflates scores"]
    return tuple(notes)


def _changed(first: ProbeResult, second: ProbeResult) -> int:
    return int((first.correct != second.correct).sum()) if type(first) is ProbeResult else len(first.test)


def paired_differences(first: ProbeResult, second: ProbeResult) -> Array:
    """Return the second score less the first on bootstrap samples of the clips of one fold, (samples,).

    Raises:
        SuiteError: the results are not of the same clips.
    """
    if not np.array_equal(first.test, second.test):
        raise SuiteError("the two models were scored on different clips: compare them on the same task and options")
    if type(first) is ProbeResult:
        correct = np.stack((first.correct, second.correct), axis=1).astype(np.float64)
        means = bootstrap_means(correct, samples=_SAMPLES)
        return means[:, 1] - means[:, 0]
    # Equal generators draw the same clips for both.
    before, after = (result.samples(_SAMPLES, np.random.default_rng(0)) for result in (first, second))
    difference: Array = after - before
    return difference
