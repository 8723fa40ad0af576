"""Classifiers on fixed vectors: standardized logistic regression, nearest neighbors and a perceptron.

Each is fitted to vectors with one label per row (`fit_one_label`) or any number of labels (`fit_several_labels`) by
scikit-learn, after every dimension was standardized on the training rows. `fit_layer_mixture` learns a weighted sum of
layers together with a logistic regression (SUPERB: Yang et al., Interspeech 2021, section 3.2), by torch's L-BFGS.

Shapes: n rows, D dimensions, C classes, V layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.errors import MissingExtraError

Array = np.ndarray[Any, Any]
ProbeKind = Literal["linear", "knn", "mlp"]
Scorer = Callable[[Array], Array]
"""Vectors (n, D) -> scores (n, C), at least 0 for labels that are predicted."""

SETTINGS: Mapping[str, Sequence[float]] = {
    "linear": (0.001, 0.01, 0.1, 1.0),
    "knn": (1, 3, 5, 10, 20),
    "mlp": (1e-4, 1e-2, 1.0),
}
"""Settings to choose from: inverse regularization C, number of neighbors, weight decay; the first of equals wins."""
MAX_ITERATIONS = 500
HIDDEN_UNITS = 256
EPOCHS = 100
_CERTAIN = 40.0  # score of a class that all training rows have; larger than any other score, and finite


def classifier(kind: ProbeKind, setting: float, num_rows: int) -> Any:
    """Return an unfitted scikit-learn classifier, for `num_rows` training rows.

    "linear" is logistic regression (lbfgs, 500 iterations), "knn" nearest neighbors by cosine, "mlp" a perceptron with
    one hidden layer of 256 units (Adam, 100 epochs, fixed seed).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier

    if kind == "linear":
        return LogisticRegression(C=setting, max_iter=MAX_ITERATIONS)
    if kind == "knn":
        # The cosine needs `brute`, which gives the same neighbors on every machine.
        return KNeighborsClassifier(min(int(setting), num_rows), metric="cosine", algorithm="brute")
    return MLPClassifier((HIDDEN_UNITS,), alpha=setting, max_iter=EPOCHS, random_state=0)


def fit_one_label(kind: ProbeKind, x: Array, labels: Array, setting: float) -> Any:
    """Fit a classifier to vectors (n, D) with labels (n,); return the scikit-learn pipeline with its scaler."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), classifier(kind, setting, len(x))).fit(x, labels)


def fit_several_labels(kind: ProbeKind, x: Array, targets: Array, setting: float) -> Scorer:
    """Fit a classifier to vectors (n, D) with targets (n, C) of 0 or 1; return its scoring function.

    "linear" is one logistic regression for each class, "knn" scores by the share of neighbors with the label, "mlp" has
    a sigmoid for each class. A class absent from all training rows is never predicted; one present in all always is.
    """
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(finite(x))
    standardized, varies = scaler.transform(finite(x)), has_both_values(targets)
    y, default = targets[:, varies], np.where(targets[0] > 0, _CERTAIN, -_CERTAIN)
    if kind == "linear":
        models = [classifier(kind, setting, len(x)).fit(standardized, own) for own in y.T]

        def varying_scores(rows: Array) -> Array:
            return np.stack([model.decision_function(rows) for model in models], axis=1)

    elif kind == "knn":
        nearest = KNeighborsRegressor(min(int(setting), len(x)), metric="cosine", algorithm="brute")
        nearest.fit(standardized, y.astype(np.float64))

        def varying_scores(rows: Array) -> Array:
            return np.asarray(nearest.predict(rows)).reshape(len(rows), -1) - 0.5

    else:
        network = classifier(kind, setting, len(x)).fit(standardized, y if y.shape[1] > 1 else y[:, 0])

        def varying_scores(rows: Array) -> Array:
            return np.asarray(network.predict_proba(rows))[:, -y.shape[1] :] - 0.5

    def scores(vectors: Array) -> Array:
        found = default * np.ones((len(vectors), 1))
        found[:, varies] = varying_scores(scaler.transform(finite(vectors)))
        return found

    return scores


def has_both_values(targets: Array) -> Array:
    """Return which columns of targets (n, C) hold 0 and 1, (C,) bool."""
    both: Array = np.logical_and(targets.max(0) > 0, targets.min(0) < 1)
    return both


def finite(vectors: Array) -> Array:
    """Return vectors as float64, NaN as 0 and infinities as the largest float."""
    return np.nan_to_num(np.asarray(vectors, dtype=np.float64))


class LayerMixture:
    """Logistic regression on a learned mixture of layers: z = sum over v of softmax(a)_v x_v, logits = z W + b.

    Each layer is standardized on the training rows first, so that its weight says how much the layer contributes. The
    objective is scikit-learn's, mean cross entropy + |W|^2 / (2 c n), minimized over a, W and b from zero.
    """

    def __init__(self, x: Tensor, targets: Tensor, num_classes: int, c: float):
        """Fit to layers (V, n, D) float32 and class indices (n,), with inverse regularization `c`."""
        self.mean = x.mean(1, keepdim=True)
        deviation = x.std(1, keepdim=True, unbiased=False)
        self.scale = torch.where(deviation > 0, deviation, 1.0)
        # Classes without a training row must not be predicted: they stay out of the softmax.
        self.absent = torch.bincount(targets, minlength=num_classes) == 0
        self.mixing = torch.zeros(x.shape[0], requires_grad=True)
        self.matrix = torch.zeros(x.shape[2], num_classes, requires_grad=True)
        self.bias = torch.zeros(num_classes, requires_grad=True)
        standardized = (x - self.mean) / self.scale

        def objective() -> Tensor:
            loss = F.cross_entropy(self._logits(standardized), targets)
            return loss + self.matrix.square().sum() / (2 * c * x.shape[1])

        minimize(objective, [self.mixing, self.matrix, self.bias])

    def predict(self, x: Tensor) -> Tensor:
        """Return class indices (n,) of layers (V, n, D)."""
        return self._logits((x - self.mean) / self.scale).argmax(1)

    @property
    def weights(self) -> Array:
        """Weight of each layer, (V,), adding up to 1."""
        weights: Array = self.mixing.softmax(0).numpy()
        return weights

    def _logits(self, standardized: Tensor) -> Tensor:
        mixed = torch.einsum("v,vnd->nd", self.mixing.softmax(0), standardized)
        return (mixed @ self.matrix + self.bias).masked_fill(self.absent, -torch.inf)


def minimize(objective: Callable[[], Tensor], parameters: Sequence[Tensor], iterations: int = 200) -> None:
    """Minimize a function of parameters by L-BFGS, in place; afterwards they need no gradients."""
    optimizer = torch.optim.LBFGS(list(parameters), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    for parameter in parameters:
        parameter.requires_grad_(False)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run numerical libraries on one thread, so that fits side by side do not depend on each other."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    # The iteration limit is part of the protocol. Filters are global: they are set once, outside the threads.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def require_sklearn() -> None:
    """Raise MissingExtraError if scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise MissingExtraError('probes need scikit-learn: pip install "ssamba[eval]"') from None
