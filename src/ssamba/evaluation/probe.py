"""Probes: how well a frozen embedding separates labels. The linear probe is the one that tables are made of.

One round: standardize on the training clips; logistic regression (lbfgs, 500 iterations), its inverse regularization C
chosen from `C_GRID` on a fifth of the training groups (of the training clips where there are fewer than five groups), or
on the validation clips that the task names;
refit on all training clips; predict the others. No clip that is scored chooses anything. The protocol is that of the
open suite, to the digit, and the fits are scikit-learn's own.

The other probes go the same way: nearest neighbors by cosine, their number chosen from `K_GRID`; and a perceptron with
one hidden layer of 256 (Adam, 100 epochs), its weight decay chosen from `ALPHA_GRID`.

Shapes: N clips, D dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ssamba.errors import MissingExtraError, SuiteError
from ssamba.evaluation.caching import Array
from ssamba.splits import Fold, validation_mask

C_GRID = (0.001, 0.01, 0.1, 1.0)
K_GRID = (1, 3, 5, 10, 20)
ALPHA_GRID = (1e-4, 1e-2, 1.0)
ITERATIONS = 500
HIDDEN = 256
EPOCHS = 100


@dataclass(frozen=True)
class RoundResult:
    """What a probe said in one round."""

    test: Array
    """Clips that were scored, (n,)."""
    predicted: Array
    """The label given to each, (n,)."""
    correct: Array
    """Whether it is right, (n,) bool."""
    validation: float
    """Accuracy on the validation part, with the setting that was chosen there."""
    setting: float
    """That setting: C, the number of neighbors, or the weight decay."""
    weights: Array | None = None
    """Of the layers, (V,), where they are learned."""

    @property
    def score(self) -> float:
        """Accuracy, or what the task is scored by."""
        return float(self.correct.mean())

    @property
    def figures(self) -> dict[str, float]:
        """The score and others beside it, by name."""
        return {"accuracy": self.score}

    def samples(self, count: int, generator: np.random.Generator) -> Array:
        """The score on bootstrap samples of the clips, (count,).

        Drawing n clips of which a share p is right, with replacement, is drawing from a binomial distribution, so no
        clip is touched.
        """
        drawn: Array = generator.binomial(len(self.test), self.score, count) / len(self.test)
        return drawn


def accuracy_of(results: Sequence[RoundResult]) -> float:
    """The accuracy of a task, or what it is scored by: the mean over its rounds."""
    return float(np.mean([result.score for result in results]))


def fit_and_choose(part: Fold, groups: Array) -> tuple[Array, Array]:
    """Return the clips to fit on and the clips that choose the setting: the fold's validation clips, or `validation_mask`."""
    if len(part.valid):
        return part.train, part.valid
    held = validation_mask(groups[part.train])
    return part.train[~held], part.train[held]


def linear_probe(vectors: Array, labels: Array, groups: Array, part: Fold) -> RoundResult:
    """One round of the linear probe.

    Args:
        vectors: (N, D) of the task; NaN counts as 0, infinity as the largest float.
        labels: (N,).
        groups: (N,).
        part: the round; its indices count in the arrays.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        SuiteError: there are too few training clips.
    """
    return _chosen(_fit_linear, C_GRID, vectors, labels, groups, part)


def neighbors_probe(vectors: Array, labels: Array, groups: Array, part: Fold) -> RoundResult:
    """One round of the nearest-neighbor probe; arguments and errors as `linear_probe`."""
    return _chosen(_fit_neighbors, K_GRID, vectors, labels, groups, part)


def perceptron_probe(vectors: Array, labels: Array, groups: Array, part: Fold) -> RoundResult:
    """One round of the perceptron probe, its weights drawn from a fixed seed; arguments and errors as `linear_probe`."""
    return _chosen(_fit_perceptron, ALPHA_GRID, vectors, labels, groups, part)


Probe = Callable[[Array, Array, Array, Fold], RoundResult]

PROBES: dict[str, Probe] = {"linear": linear_probe, "knn": neighbors_probe, "mlp": perceptron_probe}


def _chosen(
    fit: Callable[[Array, Array, Any], Any],
    settings: Sequence[float],
    vectors: Array,
    labels: Array,
    groups: Array,
    part: Fold,
) -> RoundResult:
    """Choose a setting on the validation part, refit, predict."""
    require_sklearn()
    x, train = np.nan_to_num(np.asarray(vectors, dtype=np.float64)), part.train_and_valid
    fitting, choosing = fit_and_choose(part, groups)
    if not len(choosing) or len(np.unique(labels[fitting])) < 2:
        raise SuiteError(
            f"{len(train)} training clips of {len(np.unique(labels[train]))} labels are too few for a probe: a fifth of their "
            "groups is held out, and at least two labels must be left"
        )
    scores = [fit(x[fitting], labels[fitting], setting).score(x[choosing], labels[choosing]) for setting in settings]
    best = int(np.argmax(scores))  # the first of equals: the strongest regularization
    predicted = fit(x[train], labels[train], settings[best]).predict(x[part.test])
    return RoundResult(part.test, predicted, predicted == labels[part.test], float(scores[best]), float(settings[best]))


def _fit_linear(x: Array, y: Array, c: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=ITERATIONS)).fit(x, y)


def _fit_neighbors(x: Array, y: Array, k: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # `brute` is what the cosine needs, and gives the same neighbors on every machine.
    nearest = KNeighborsClassifier(min(k, len(x)), metric="cosine", algorithm="brute")
    return make_pipeline(StandardScaler(), nearest).fit(x, y)


def _fit_perceptron(x: Array, y: Array, alpha: float) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((HIDDEN,), alpha=alpha, max_iter=EPOCHS, random_state=0)
    return make_pipeline(StandardScaler(), network).fit(x, y)


@dataclass(frozen=True)
class ProbeJob:
    """One round of one view of one task, to be run by `run_jobs`: the arguments of a probe."""

    vectors: Array
    """(N, D), or (V, N, D) for a probe that weights layers."""
    labels: Array
    """(N,)."""
    groups: Array
    """(N,)."""
    part: Fold
    """Training and test clips."""


def run_jobs(
    jobs: Sequence[ProbeJob],
    probe: Probe = linear_probe,
    *,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> list[RoundResult]:
    """Run probes side by side, each on one thread, so that results do not depend on how many run.

    Args:
        jobs: what to run.
        probe: one round of a probe.
        workers: threads.
        on_progress: hears how many jobs are done.
    """
    return run_side_by_side(
        [partial(probe, job.vectors, job.labels, job.groups, job.part) for job in jobs], workers, on_progress
    )


def run_side_by_side(
    rounds: Sequence[Callable[[], RoundResult]], workers: int = 1, on_progress: Callable[[int], None] | None = None
) -> list[RoundResult]:
    """Run rounds of probes, each on one thread; `on_progress` hears how many are done."""
    require_sklearn()
    from joblib import Parallel, delayed  # type: ignore[import-untyped]  # comes with scikit-learn

    results: list[RoundResult] = []
    with _one_thread_each():
        pool = Parallel(n_jobs=workers, backend="threading", return_as="generator")
        for result in pool(delayed(one)() for one in rounds):
            results.append(result)
            if on_progress is not None:
                on_progress(len(results))
    return results


@contextmanager
def _one_thread_each() -> Iterator[None]:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    # The iteration limit is part of the protocol. Filters are global: they are set once, outside the threads.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def require_sklearn() -> None:
    """Raise MissingExtraError where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise MissingExtraError('probes need scikit-learn: pip install "ssamba[eval]"') from None
