"""One model on one suite: vectors, probes, and a scorecard that says everything it depends on.

    tasks = read_suite("suite/")
    card = evaluate(EncoderModel(load_model("checkpoint/")), tasks)
    print(card.best().mean, card.best().scores)

With `inner=True` no test clip is read: for choosing between recipes, layers and poolings. The row "best" chooses a
view for each round by the accuracy on its validation part, so that no test clip chooses it either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache as remembered
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ssamba.config import Config
from ssamba.evaluation.caching import Array
from ssamba.evaluation.probe import ProbeJob, RoundResult, accuracy_of, run_jobs
from ssamba.evaluation.suite import Task, Waves, read_waves
from ssamba.evaluation.vectors import ClipModel, task_vectors

BEST = "best"


class EvaluateOptions(Config):
    """How a model is scored; the defaults are the open suite's protocol."""

    inner: bool = False
    """Score inside the training part of each task's first round, by cross-validation over groups: no test clip is
    read. For choosing between recipes."""
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
    """`LAYER.POOLING`, or `best`: for each round the view with the best validation accuracy."""
    scores: dict[str, float]
    """Accuracy by task."""
    chosen: dict[str, list[str]] = field(default_factory=dict)
    """For `best`: the view of each round, by task."""

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
    """By task: its digest, clips and classes."""
    rows: list[Row]
    """One for each view, and `best` when there are several."""
    seconds: float
    """Time it took."""
    results: dict[str, dict[str, list[RoundResult]]] = field(repr=False, default_factory=dict)
    """By task and view: what the probe said in each round."""

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
            "rows": [{**asdict(row), "mean": row.mean} for row in self.rows],
            "seconds": round(self.seconds, 1),
        }


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
        SuiteError: a clip is missing.
        MissingExtraError: scikit-learn is not installed.
    """
    options, started_s = options or EvaluateOptions(), time.monotonic()
    results: dict[str, dict[str, list[RoundResult]]] = {}
    for task in tasks:
        results[task.name] = _evaluate_task(model, task, options, cache, workers, on_progress)
    views = list(results[tasks[0].name]) if tasks else []
    rows = [Row(view, {task: accuracy_of(found[view]) for task, found in results.items()}) for view in views]
    if len(views) > 1:
        rows.append(_best(results))
    return Scorecard(
        model=model.name,
        model_digest=model.digest(),
        options=options,
        tasks={t.name: {"digest": t.digest, "clips": len(t.clips), "classes": t.num_classes} for t in tasks},
        rows=rows,
        seconds=time.monotonic() - started_s,
        results=results,
    )


def _evaluate_task(
    model: ClipModel,
    task: Task,
    options: EvaluateOptions,
    cache: Path | None,
    workers: int,
    on_progress: Callable[[Progress], None] | None,
) -> dict[str, list[RoundResult]]:
    def report(step: str, total: int) -> Callable[[int], None]:
        return lambda done: on_progress(Progress(step, task.name, done, total)) if on_progress else None

    rounds = task.inner_rounds() if options.inner else task.rounds()
    used = np.unique(np.concatenate([np.concatenate((r.train, r.test)) for r in rounds]))

    @remembered
    def waves() -> Waves:
        return read_waves(task, model.sample_rate_hz, cache, report("decoding", len(task.clips)))

    views = task_vectors(model, task, used, options.level, waves, cache, report("embedding", len(used)))
    jobs = []
    for vectors in views.values():
        spread: Array = np.zeros((len(task.clips), vectors.shape[1]), dtype=vectors.dtype)
        spread[used] = vectors
        jobs += [ProbeJob(spread, task.labels, task.groups, part) for part in rounds]
    found = run_jobs(jobs, workers=workers, on_progress=report("probing", len(jobs)))
    return {view: found[k * len(rounds) : (k + 1) * len(rounds)] for k, view in enumerate(views)}


def _best(results: dict[str, dict[str, list[RoundResult]]]) -> Row:
    """The row that takes, in each round, the view with the best validation accuracy (the deepest of equals)."""
    scores, chosen = {}, {}
    for task, found in results.items():
        views, taken, picked = list(found), [], []
        for in_views in zip(*found.values(), strict=True):
            validation = [result.validation for result in in_views]
            best = len(views) - 1 - int(np.argmax(validation[::-1]))
            picked.append(views[best])
            taken.append(in_views[best])
        scores[task], chosen[task] = accuracy_of(taken), picked
    return Row(BEST, scores, chosen)
