"""One model on one suite: vectors, probes, and a scorecard that says everything it depends on.

    tasks = read_suite("suite/")
    card = evaluate(EncoderModel(load_model("checkpoint/")), tasks)
    print(card.best().mean, card.best().scores)

Tasks of one label for each clip are scored by accuracy, others by what they name (`Task.figures`); `Scorecard.tasks` says
which under `metric`.

With `inner=True` no test clip is read: for choosing between recipes, layers and poolings. The row "best" chooses a
view for each round by the score on its validation part, so that no test clip chooses it either. The rows
"weighted" learn a mixture of all layers (`weighting.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache as remembered
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ssamba.config import Config
from ssamba.evaluation.caching import Array
from ssamba.evaluation.details import accuracy_intervals
from ssamba.evaluation.judging import check_weighted, clip_runs, moment_runs, single_runs
from ssamba.evaluation.probe import RoundResult, accuracy_of, run_side_by_side
from ssamba.evaluation.suite import Waves, read_waves, recording_digests
from ssamba.evaluation.task import Task
from ssamba.evaluation.vectors import ClipModel, pooling_of, task_timestamps, task_vectors, view_name
from ssamba.evaluation.weighting import weighted_probe
from ssamba.metrics.classification import Interval, finite_or_none

BEST = "best"
WEIGHTED = "weighted"


class EvaluateOptions(Config):
    """How a model is scored; the defaults are the open suite's protocol."""

    inner: bool = False
    """Score inside the training part of each task's first round, by cross-validation over groups: no test clip is
    read. For choosing between recipes."""
    probe: Literal["linear", "knn", "mlp"] = "linear"
    """Logistic regression, nearest neighbors, or a perceptron with one hidden layer."""
    weighted: bool = False
    """Also learn a mixture of all layers, with a linear classifier on it, for each pooling of several layers."""
    level: float | None = Field(0.9, gt=0)
    """Peak that each clip is scaled to before it is embedded, as for the published rows; None leaves it."""


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is."""

    step: str
    """`decoding`, `embedding` or `probing`."""
    task: str
    """The task in work."""
    done: int
    """Clips, or rounds."""
    total: int
    """Of how many."""


@dataclass(frozen=True)
class Row:
    """The scores of one view of the model."""

    view: str
    """`LAYER.POOLING`; `weighted.POOLING`; or `best`: for each round the layer with the best validation score."""
    scores: dict[str, float]
    """By task: accuracy, or what the task is scored by."""
    intervals: dict[str, Interval]
    """By task, and under `mean`: 95 % bootstrap intervals over test clips."""
    chosen: dict[str, list[str]] = field(default_factory=dict)
    """For `best`: the view of each round, by task."""
    weights: dict[str, list[list[float]]] = field(default_factory=dict)
    """For `weighted`: of each layer in each round, by task."""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    """By task, of those that are not scored by accuracy alone: every figure, the mean over rounds."""

    @property
    def mean(self) -> float:
        """Over the tasks."""
        return float(np.mean(list(self.scores.values())))


@dataclass(frozen=True)
class Scorecard:
    """What an evaluation found."""

    model: str
    """Name of the model."""
    model_digest: str
    """Digest of the model."""
    options: EvaluateOptions
    """How it was scored."""
    tasks: dict[str, dict[str, Any]]
    """By task: its digest, clips and classes, and what its score is (`metric`)."""
    rows: list[Row]
    """One for each view, weighted ones after, and last `best` when there are several layers or poolings."""
    seconds: float
    """Time it took."""
    repeated: dict[str, int] = field(default_factory=dict)
    """By task, where there are some: clips tested although the same samples, under another name, were trained on."""
    results: dict[str, dict[str, list[RoundResult]]] = field(repr=False, default_factory=dict)
    """By row and task: what the probe said in each round."""

    def row(self, view: str) -> Row:
        """The row of a view.

        Raises:
            KeyError: there is none.
        """
        return {row.view: row for row in self.rows}[view]

    def best(self) -> Row:
        """The row `best`, or the only one."""
        return self.rows[-1]

    def as_json(self) -> dict[str, Any]:
        """Everything but the single predictions, ready for `json.dump`."""
        return {
            "model": self.model,
            "model_digest": self.model_digest,
            "options": self.options.model_dump(),
            "tasks": self.tasks,
            "repeated": self.repeated,
            "rows": [_for_json({**asdict(row), "mean": row.mean}) for row in self.rows],
            "seconds": round(self.seconds, 1),
        }


def _for_json(value: Any) -> Any:
    """The same, with None in place of infinities (d' of a perfect ranking), which JSON does not have."""
    if isinstance(value, dict):
        return {key: _for_json(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(own) for own in value]
    return finite_or_none(value) if isinstance(value, float) else value


def evaluate(
    model: ClipModel,
    tasks: Sequence[Task],
    options: EvaluateOptions | None = None,
    *,
    cache: Path | None = None,
    workers: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> Scorecard:
    """Score a model on tasks.

    Args:
        model: `EncoderModel`, `LogMelStatistics`, `FunctionModel` or alike.
        tasks: from `read_suite`.
        options: how.
        cache: folder that keeps decoded clips and vectors (`cache_folder()`); None keeps nothing.
        workers: threads for the probes.
        on_progress: hears how far it is.

    Raises:
        AudioDecodeError: a clip cannot be read.
        SuiteError: a clip is missing, or a model or option cannot do a task; the message says which.
        MissingExtraError: scikit-learn is not installed.
    """
    options, started_s = options or EvaluateOptions(), time.monotonic()
    if options.weighted:
        check_weighted(tasks)
    both = [_evaluate_task(model, task, options, cache, workers, on_progress) for task in tasks]
    found = [own for own, _ in both]
    views = list(found[0]) if found else []
    results = {view: {task.name: own[view] for task, own in zip(tasks, found, strict=True)} for view in views}
    layers = {view: own for view, own in results.items() if not view.startswith(WEIGHTED)}
    rows = [_row(view, own) for view, own in results.items()]
    if len(layers) > 1:
        results[BEST], chosen = _best(layers)
        rows.append(_row(BEST, results[BEST], chosen))
    return Scorecard(
        model=model.name,
        model_digest=model.digest(),
        options=options,
        tasks={task.name: task.facts for task in tasks},
        rows=rows,
        seconds=time.monotonic() - started_s,
        repeated={task.name: count for task, (_, count) in zip(tasks, both, strict=True) if count},
        results=results,
    )


def _evaluate_task(
    model: ClipModel,
    task: Task,
    options: EvaluateOptions,
    cache: Path | None,
    workers: int,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[dict[str, list[RoundResult]], int]:
    """By view, the rounds; and how many clips are tested that were trained on under another name."""

    def report(step: str, total: int) -> Callable[[int], None]:
        return lambda done: on_progress(Progress(step, task.name, done, total)) if on_progress else None

    rounds = task.inner_folds() if options.inner else task.folds()
    used = np.unique(np.concatenate([np.concatenate((r.train_and_valid, r.test)) for r in rounds]))

    @remembered
    def waves() -> Waves:
        return read_waves(task, model.sample_rate_hz, cache, report("decoding", len(task.clips)))

    embedded = report("embedding", len(used))
    if task.kind in ("second", "event"):
        moments = task_timestamps(model, task, used, options.level, waves, cache, embedded)
        names, runs = list(moments.views), moment_runs(task, moments, used, rounds, options.probe)
    else:
        views = task_vectors(model, task, used, options.level, waves, cache, embedded)
        names, runs = list(views), clip_runs(task, views, used, rounds, options.probe)
        if options.weighted:
            mixtures = _stacks(views)
            names += mixtures
            runs += single_runs(task, mixtures, used, rounds, weighted_probe)
    answers = iter(run_side_by_side(runs, workers, report("probing", len(runs))))
    repeated = 0
    if not options.inner:
        recordings = recording_digests(task, waves, cache)
        repeated = sum(int(np.isin(recordings[r.test], recordings[r.train_and_valid]).sum()) for r in rounds)
    return {view: [next(answers) for _ in rounds] for view in names}, repeated


def _stacks(views: dict[str, Array]) -> dict[str, Array]:
    """All layers of each pooling, (V, N, D), where there are several."""
    poolings = dict.fromkeys(pooling_of(view) for view in views)
    stacks = {
        view_name(WEIGHTED, pooling): [vectors for view, vectors in views.items() if pooling_of(view) == pooling]
        for pooling in poolings
    }
    return {view: np.stack(layers) for view, layers in stacks.items() if len(layers) > 1}


def _row(view: str, results: dict[str, list[RoundResult]], chosen: dict[str, list[str]] | None = None) -> Row:
    return Row(
        view=view,
        scores={task: accuracy_of(rounds) for task, rounds in results.items()},
        intervals=accuracy_intervals(results),
        chosen=chosen or {},
        weights={
            task: [[round(float(w), 4) for w in r.weights] for r in rounds if r.weights is not None]
            for task, rounds in results.items()
            if any(r.weights is not None for r in rounds)
        },
        figures={task: found for task, rounds in results.items() if set(found := _figures(rounds)) != {"accuracy"}},
    )


def _figures(rounds: list[RoundResult]) -> dict[str, float]:
    """The mean over rounds of each figure, over those where it exists."""
    values = [result.figures for result in rounds]
    names = dict.fromkeys(name for found in values for name in found)
    return {name: float(np.mean([found[name] for found in values if name in found])) for name in names}


def _best(layers: dict[str, dict[str, list[RoundResult]]]) -> tuple[dict[str, list[RoundResult]], dict[str, list[str]]]:
    """For each task and round the view with the best validation score (the last of equals), and its name."""
    views = list(layers)
    taken: dict[str, list[RoundResult]] = {}
    chosen: dict[str, list[str]] = {}
    for task in layers[views[0]]:
        taken[task], chosen[task] = [], []
        for in_views in zip(*(layers[view][task] for view in views), strict=True):
            validation = [result.validation for result in in_views]
            best = len(views) - 1 - int(np.argmax(validation[::-1]))
            taken[task].append(in_views[best])
            chosen[task].append(views[best])
    return taken, chosen
