"""Learned layer weighting: a linear probe on a weighted sum of all layers, the weights learned with it.

As SUPERB does (Yang et al., Interspeech 2021, section 3.2): z = sum over layers v of softmax(a)_v x_v, and a linear
classifier on z. Each layer is standardized on the training clips first, so that a weight says how much a layer
contributes rather than how large its numbers are. The objective is scikit-learn's logistic regression,

    mean cross entropy + |W|^2 / (2 C n),

minimized over W, b and a together with L-BFGS from zero; C is chosen as for the linear probe.

Shapes: V layers, N clips (n of them for training), D dimensions, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.evaluation.caching import Array
from ssamba.evaluation.probe import C_GRID, RoundResult, fit_and_choose
from ssamba.splits import Fold

_ITERATIONS = 200


def weighted_probe(layers: Array, labels: Array, groups: Array, part: Fold) -> RoundResult:
    """One round of the linear probe on a learned mixture of layers.

    Args:
        layers: (V, N, D).
        labels: (N,).
        groups: (N,).
        part: the round; its indices count in N.
    """
    x = torch.from_numpy(np.nan_to_num(np.asarray(layers, dtype=np.float32)))
    names, y = np.unique(labels, return_inverse=True)
    targets, train = torch.from_numpy(y), part.train_and_valid
    fitting, choosing = fit_and_choose(part, groups)
    scores = []
    for c in C_GRID:
        model = _Mixture(x[:, fitting], targets[fitting], len(names), c)
        scores.append(float((model.guess(x[:, choosing]) == targets[choosing]).double().mean()))
    best = int(np.argmax(scores))
    model = _Mixture(x[:, train], targets[train], len(names), C_GRID[best])
    predicted = names[model.guess(x[:, part.test]).numpy()]
    weights = model.mixing.softmax(0).numpy()
    return RoundResult(part.test, predicted, predicted == labels[part.test], scores[best], C_GRID[best], weights)


class _Mixture:
    """The fitted mixture and classifier."""

    def __init__(self, x: Tensor, targets: Tensor, classes: int, c: float):
        self.mean = x.mean(1, keepdim=True)
        deviation = x.std(1, keepdim=True, unbiased=False)
        self.scale = torch.where(deviation > 0, deviation, 1.0)
        # Classes that the training clips lack must not be guessed, and stay out of the softmax.
        self.absent = torch.bincount(targets, minlength=classes) == 0
        self.mixing = torch.zeros(x.shape[0], requires_grad=True)
        self.matrix = torch.zeros(x.shape[2], classes, requires_grad=True)
        self.bias = torch.zeros(classes, requires_grad=True)
        parameters = [self.mixing, self.matrix, self.bias]
        optimizer = torch.optim.LBFGS(parameters, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")
        standardized = (x - self.mean) / self.scale

        def objective() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(self._logits(standardized), targets)
            loss = loss + self.matrix.square().sum() / (2 * c * x.shape[1])
            torch.autograd.backward(loss)
            return loss

        optimizer.step(objective)  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.requires_grad_(False)

    def guess(self, x: Tensor) -> Tensor:
        """Class indices of clips (V, N, D)."""
        return self._logits((x - self.mean) / self.scale).argmax(1)

    def _logits(self, standardized: Tensor) -> Tensor:
        mixed = torch.einsum("v,vnd->nd", self.mixing.softmax(0), standardized)
        return (mixed @ self.matrix + self.bias).masked_fill(self.absent, -torch.inf)
