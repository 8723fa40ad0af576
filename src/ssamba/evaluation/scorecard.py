"""Score one model on one suite: embed the clips, run the probes, and collect a scorecard.

    tasks = read_suite("suite/")
    card = evaluate_model(EncoderModel(load_model("checkpoint/")), tasks)
    print(card.best().mean, card.best().scores)

A task's score is its first metric (`Task.metrics`; accuracy for one label a clip), which `Scorecard.tasks` names.

With `inner=True` no test clip is read: for choosing between recipes, layers and poolings. The row "best" takes for each
fold the view with the best score on its validation clips, so that no test clip chooses it either. The rows "weighted"
learn a mixture of all layers (`probes.LayerMixture`).

Each view of clips also has its retrieval (`retrieval.py`), which trains nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache as memoized
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ssamba.config import Config
from ssamba.errors import Interrupted, SuiteError
from ssamba.evaluation.clips import Waves, is_all_silent, read_waves, recording_digests
from ssamba.evaluation.probing import ProbeResult, clip_jobs, layer_jobs, run_jobs, timestamp_jobs
from ssamba.evaluation.retrieval import PRECISION_AT_10, Rankings, Retrieval, ranking_jobs, retrieval_of
from ssamba.evaluation.task import Task
from ssamba.evaluation.vectors import (
    FINAL,
    ClipModel,
    EncoderModel,
    TimestampEmbeddings,
    readout_of,
    suffix_of,
    task_vectors,
    view_name,
)
from ssamba.metrics.bootstrap import Interval, interval_of
from ssamba.metrics.classification import Array, finite_or_none
from ssamba.probes import ProbeKind
from ssamba.progress import OnProgress, ProgressReporter
from ssamba.similarity import SIMILARITIES, SIMILARITY
from ssamba.text import format_table

BEST = "best"
WEIGHTED = "weighted"
_BOOTSTRAP_SAMPLES = 2000


class EvaluateOptions(Config):
    """Options of an evaluation; the defaults are the open suite's protocol."""

    inner: bool = False
    """Score inside the training part of each task's first fold, by cross-validation over groups: no test clip is
    read. For choosing between recipes."""
    probe: ProbeKind = "linear"
    """Logistic regression, nearest neighbors, or a perceptron with one hidden layer."""
    setting: float | None = None
    """Setting of the probes (C, neighbors, weight decay); None: validation chooses it."""
    weighted: bool = False
    """Also learn a mixture of all layers with a linear classifier on it, for each pooling."""
    level: float | None = Field(0.9, gt=0)
    """Peak that each clip is scaled to before it is embedded, as for published results; None leaves it as it is."""


@dataclass(frozen=True)
class Row:
    """Scores of one view of the model."""

    view: str
    """`LAYER.POOLING`, with the readout `parts` `LAYER.POOLING.parts`; `weighted` in place of a layer; or `best`: in
    each fold the view with the best validation score."""
    scores: dict[str, float]
    """The metric of each task, the mean over its folds."""
    intervals: dict[str, Interval]
    """95 % bootstrap intervals over test clips, by task and of the mean (`mean`)."""
    chosen: dict[str, list[str]] = field(default_factory=dict)
    """For `best`: the view of each fold, by task."""
    weights: dict[str, list[list[float]]] = field(default_factory=dict)
    """For `weighted`: the weight of each layer in each fold, by task."""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    """All metrics of tasks that have more than accuracy, by task and name: means over folds."""
    retrieval: dict[str, Retrieval] = field(default_factory=dict)
    """Retrieval by each similarity; empty for `weighted` and `best`, and where no task has one."""

    @property
    def mean(self) -> float:
        """Mean score of the tasks."""
        return float(np.mean(list(self.scores.values())))


@dataclass(frozen=True)
class Scorecard:
    """Result of an evaluation."""

    model: str
    """Name of the model, with its version."""
    model_digest: str
    """Digest of everything that its vectors depend on: weights, configuration, options."""
    options: EvaluateOptions
    """How the model was scored."""
    tasks: dict[str, dict[str, Any]]
    """Digest, number of clips and classes, and metric (`metric`) of each task."""
    rows: list[Row]
    """One for each view, then weighted ones, and last `best` if there are several layers, poolings or readouts."""
    seconds: float
    """Duration."""
    repeated: dict[str, int] = field(default_factory=dict)
    """Number of test clips whose samples, under another name, are also trained on, by task; only tasks with any."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Problems with labels or recordings that make a score mean less than it seems to, by task; only tasks with any."""
    weights_digest: str | None = None
    """Digest of the encoder's weights, as in `ModelIdentity`; None for a model without an encoder of ours."""
    file_sha256: str | None = None
    """Checksum of the file that was downloaded, as in `ModelIdentity`."""
    results: dict[str, dict[str, list[ProbeResult]]] = field(repr=False, default_factory=dict)
    """Result of each fold, by row and task."""

    def row(self, view: str) -> Row:
        """Return the row of a view; KeyError if there is none."""
        return {row.view: row for row in self.rows}[view]

    @property
    def readouts(self) -> list[str]:
        """The readouts of the rows."""
        return list(dict.fromkeys(readout_of(row.view) for row in self.rows if row.view != BEST))

    def best(self) -> Row:
        """Return the row `best`, or the only one."""
        return self.rows[-1]

    def as_json(self) -> dict[str, Any]:
        """Return everything except the predictions, ready for `json.dump`."""
        return {
            "model": self.model,
            "model_digest": self.model_digest,
            "weights_digest": self.weights_digest,
            "file_sha256": self.file_sha256,
            "options": self.options.model_dump(),
            "readouts": self.readouts,
            "tasks": self.tasks,
            "repeated": self.repeated,
            "notes": self.notes,
            "rows": [_for_json({**asdict(row), "mean": row.mean}) for row in self.rows],
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        return str(Evaluation((self,)))


@dataclass(frozen=True)
class Evaluation:
    """Scorecards of one or several models on one suite; as text, a table."""

    cards: tuple[Scorecard, ...]
    """One for each model."""

    @property
    def card(self) -> Scorecard:
        """The scorecard of the first, or only, model."""
        return self.cards[0]

    def as_json(self) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the scorecard as plain values; a list if there are several."""
        values = [card.as_json() for card in self.cards]
        return values if len(values) > 1 else values[0]

    def __str__(self) -> str:
        """Return all rows of a single scorecard, the best row of each of several.

        Metrics of tasks with more than one follow in lines.
        """
        first, several = self.card, len(self.cards) > 1
        metrics = {name: task.get("metric", "accuracy") for name, task in first.tasks.items()}
        is_plain = set(metrics.values()) == {"accuracy"}
        inside = "inside the training parts" if first.options.inner else "test accuracy" if is_plain else "test score"
        names = (*first.tasks, "mean")
        rows: list[list[str]] = []
        for card in self.cards:
            for row in [card.best()] if several else card.rows:
                scores = [*(f"{row.scores[name]:.3f}" for name in card.tasks), f"{row.mean:.3f}"]
                rows.append([card.model if several else row.view, *scores])
            interval = card.best().intervals
            rows.append(["95 %", *(f"{interval[name].low:.3f}-{interval[name].high:.3f}" for name in names)])
        columns = [name if is_plain or name not in metrics else f"{name} {metrics[name]}" for name in names]
        lines = [
            f"{'' if several else f'{first.model}: '}{inside}, {first.options.probe} probe",
            format_table(["model" if several else "layer.pooling", *columns], rows),
        ]
        for card in self.cards:
            own = f"{card.model}, " if several else ""
            for name, values in card.best().figures.items():
                text = ", ".join(f"{metric.replace('_', ' ')} {value:.3f}" for metric, value in values.items())
                lines.append(f"{own}{name}: {text}")
        lines += self._retrieval_lines()
        lines += [f"{name}: {note}" for name, notes in first.notes.items() for note in notes]
        return "\n".join(lines)

    def _retrieval_lines(self) -> list[str]:
        """Return tables of retrieval by the default similarity, and by all; of several models the final views alone."""
        several = len(self.cards) > 1
        found = [(card, row) for card in self.cards for row in card.rows if row.retrieval]
        if several:
            found = [(card, row) for card, row in found if row.view.startswith(FINAL)]
        if not found:
            return []
        names = [name for name in self.card.tasks if name in found[0][1].retrieval[SIMILARITY].scores["mAP"]]
        rows, others = [], []
        for card, row in found:
            own, many = row.retrieval[SIMILARITY], len(card.rows) > 1
            title = (f"{card.model}, {row.view}" if many else card.model) if several else row.view
            values = [*(own.scores["mAP"][name] for name in names), own.mean(), own.mean(PRECISION_AT_10)]
            rows.append([title, *(f"{value:.3f}" for value in values)])
            others.append([title, *(f"{row.retrieval[kind].mean():.3f}" for kind in SIMILARITIES)])
            if several or len(found) == 1:
                intervals = [*(own.intervals["mAP"][name] for name in (*names, "mean"))]
                intervals.append(own.intervals[PRECISION_AT_10]["mean"])
                rows.append(["95 %", *(f"{interval.low:.3f}-{interval.high:.3f}" for interval in intervals)])
        first = "model" if several else "layer.pooling"
        return [
            f"retrieval among other groups, {SIMILARITY.replace('_', '-')} cosine: mAP, and mean precision at 10",
            format_table([first, *names, "mean", "P@10"], rows),
            "mean mAP of retrieval by similarity",
            format_table([first, *SIMILARITIES], others),
        ]


def _for_json(value: Any) -> Any:
    """Replace infinities (d' of a perfect ranking), which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _for_json(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(own) for own in value]
    return finite_or_none(value) if isinstance(value, float) else value


def evaluate_model(
    model: ClipModel,
    tasks: Sequence[Task],
    options: EvaluateOptions | None = None,
    *,
    cache: Path | None = None,
    workers: int = 1,
    progress: OnProgress | None = None,
) -> Scorecard:
    """Score a model on tasks.

    Args:
        model: `EncoderModel`, `LogMelStatistics`, `FunctionModel`, `WaveformParts` or another `ClipModel`.
        tasks: from `read_suite`.
        options: None means the open suite's protocol.
        cache: folder for decoded clips and vectors (`cache_folder()`); None caches nothing.
        workers: threads for the probes.
        progress: called after each clip, view and fold; returning False raises Interrupted.

    Raises:
        AudioDecodeError: a clip cannot be read.
        SuiteError: a clip is missing, or a model or option cannot do a task; the message says which.
        MissingExtraError: scikit-learn is not installed.
    """
    options, started_s = options or EvaluateOptions(), time.monotonic()
    several = [task.name for task in tasks if task.kind != "single"]
    if options.weighted and several:
        raise SuiteError(
            f"a learned mixture of layers (`weighted`) is made for tasks of one label for each clip, and "
            f"{', '.join(several)} may have several: leave the mixture or these tasks out"
        )
    found, repeated = {}, {}
    rankings: dict[str, dict[str, Rankings]] = {}
    for task in tasks:
        found[task.name], rankings[task.name], count = _evaluate_task(model, task, options, cache, workers, progress)
        if count:
            repeated[task.name] = count
    views = list(next(iter(found.values()), {}))
    results = {view: {task: own[view] for task, own in found.items()} for view in views}
    layers = {view: own for view, own in results.items() if not view.startswith(WEIGHTED)}
    rows = [
        _row(view, own, rankings={task: ranked[view] for task, ranked in rankings.items() if view in ranked})
        for view, own in results.items()
    ]
    if len(layers) > 1:
        results[BEST], chosen = _best(layers)
        rows.append(_row(BEST, results[BEST], chosen))
    identity = model.identity if isinstance(model, EncoderModel) else None
    return Scorecard(
        model=model.name,
        model_digest=model.digest(),
        options=options,
        tasks={task.name: task.facts for task in tasks},
        rows=rows,
        seconds=time.monotonic() - started_s,
        repeated=repeated,
        notes={task.name: notes for task in tasks if (notes := problems(task, inner=options.inner))},
        weights_digest=None if identity is None else identity.weights_digest,
        file_sha256=None if identity is None else identity.file_sha256,
        results=results,
    )


def problems(task: Task, *, inner: bool = False) -> list[str]:
    """Return a line for each problem with the labels or recordings of a task (see `Task.label_notes`)."""
    notes = task.label_notes(inner=inner)
    if is_all_silent(task):
        notes.append(f"all {len(task.clips)} recordings are silent: every score is chance")
    return notes


def _evaluate_task(
    model: ClipModel,
    task: Task,
    options: EvaluateOptions,
    cache: Path | None,
    workers: int,
    progress: OnProgress | None,
) -> tuple[dict[str, list[ProbeResult]], dict[str, Rankings], int]:
    """Return the results of the folds and the rankings by view, and the number of test clips also trained on."""

    def report(step: str, total: int, unit: str = "clips") -> Callable[[int], None]:
        reporter = ProgressReporter(progress, f"{model.name}, {task.name}: {step}", total, unit)

        def update(done: int) -> None:
            if not reporter.update(done):
                raise Interrupted(f"stopped in {task.name}")

        return update

    settings = None if options.setting is None else (options.setting,)
    folds = task.inner_folds() if options.inner else task.folds()
    used = np.unique(np.concatenate([np.concatenate((fold.train_and_valid, fold.test)) for fold in folds]))

    @memoized
    def waves() -> Waves:
        return read_waves(task, model.sample_rate_hz, cache, report("decoding", len(task.clips)))

    views = task_vectors(model, task, used, options.level, waves, cache, report("embedding", len(used)))
    ranked: dict[str, Rankings] = {}
    if task.kind in ("second", "event"):
        embeddings = TimestampEmbeddings.from_arrays(views)
        names, jobs = list(embeddings.views), timestamp_jobs(task, embeddings, used, folds, options.probe, settings)
    else:
        names, jobs = list(views), clip_jobs(task, views, used, folds, options.probe, settings)
        rankings = run_jobs(ranking_jobs(task, views, used), workers, report("ranking", len(views), "views"))
        ranked = dict(zip(views, rankings, strict=True))
        if options.weighted:
            stacks = _layer_stacks(views)
            names += stacks
            jobs += layer_jobs(task, stacks, used, folds)
    results = iter(run_jobs(jobs, workers, report("probing", len(jobs), "folds")))
    repeated = 0
    if not options.inner:
        recordings = recording_digests(task, waves, cache)
        repeated = sum(int(np.isin(recordings[f.test], recordings[f.train_and_valid]).sum()) for f in folds)
    return {view: [next(results) for _ in folds] for view in names}, ranked, repeated


def _layer_stacks(views: Mapping[str, Array]) -> dict[str, Array]:
    """Return all layers of each pooling and readout that has several, (V, n, dims)."""
    stacks = {
        view_name(WEIGHTED, suffix): [vectors for view, vectors in views.items() if suffix_of(view) == suffix]
        for suffix in dict.fromkeys(suffix_of(view) for view in views)
    }
    return {view: np.stack(layers) for view, layers in stacks.items() if len(layers) > 1}


def score_intervals(
    tasks: Mapping[str, Sequence[ProbeResult]], *, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Return bootstrap confidence intervals of each task's score, and of their mean under the name `mean`.

    Test clips are drawn with replacement within each fold, and the trained probes stay as they are: the interval says
    how much the choice of test clips matters, not that of training clips or sources.
    """
    generator = np.random.default_rng(seed)
    samples = {
        task: np.mean([result.samples(_BOOTSTRAP_SAMPLES, generator) for result in results], axis=0)
        for task, results in tasks.items()
    }
    samples["mean"] = np.mean(list(samples.values()), axis=0)
    return {task: interval_of(values, confidence) for task, values in samples.items()}


def _row(
    view: str,
    results: Mapping[str, Sequence[ProbeResult]],
    chosen: dict[str, list[str]] | None = None,
    rankings: Mapping[str, Rankings] | None = None,
) -> Row:
    metrics = {task: _mean_metrics(folds) for task, folds in results.items()}
    weights = {task: [fold.weights for fold in folds if fold.weights is not None] for task, folds in results.items()}
    return Row(
        view=view,
        scores={task: float(np.mean([fold.score for fold in folds])) for task, folds in results.items()},
        intervals=score_intervals(results),
        chosen=chosen or {},
        weights={task: [[round(float(w), 4) for w in fold] for fold in own] for task, own in weights.items() if own},
        figures={task: own for task, own in metrics.items() if set(own) != {"accuracy"}},
        retrieval=retrieval_of(rankings or {}),
    )


def _mean_metrics(results: Sequence[ProbeResult]) -> dict[str, float]:
    """Return the mean of each metric over the folds where it exists."""
    values = [result.metrics for result in results]
    names = dict.fromkeys(name for found in values for name in found)
    return {name: float(np.mean([found[name] for found in values if name in found])) for name in names}


def _best(
    layers: Mapping[str, Mapping[str, list[ProbeResult]]],
) -> tuple[dict[str, list[ProbeResult]], dict[str, list[str]]]:
    """Return, for each task and fold, the result and the name of the view with the best validation score.

    Of equals the last view is taken.
    """
    views = list(layers)
    taken: dict[str, list[ProbeResult]] = {}
    chosen: dict[str, list[str]] = {}
    for task in layers[views[0]]:
        taken[task], chosen[task] = [], []
        for fold in zip(*(layers[view][task] for view in views), strict=True):
            validation = [result.validation for result in fold]
            best = len(views) - 1 - int(np.argmax(validation[::-1]))
            taken[task].append(fold[best])
            chosen[task].append(views[best])
    return taken, chosen
