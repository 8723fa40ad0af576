"""Initialize the classifier by logistic regression on the pretrained encoder, before fine-tuning changes the encoder.

The gradients of a randomly initialized classifier distort pretrained features in the first steps; fitting it first
avoids this ("LP-FT": Kumar et al., 2022, arXiv:2202.10054). The regression (one per class with a binary loss) reads the
standardized vectors of whole training clips, and the validation clips choose the strength of its L2 penalty.

Shapes: N clips or seconds, D channels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssamba.model.heads import Classifier
from ssamba.probes import minimize
from ssamba.splits import Ints
from ssamba.training.finetuning.task import FinetuneTask, Predictions

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the L2 penalty, for a loss that is a mean over rows
_DEFAULT_STRENGTH = 1e-2  # without validation clips


def fit_initial_head(task: FinetuneTask, device: torch.device) -> float | None:
    """Fit the head of the task's model, in place.

    Args:
        task: model, data and loss.
        device: device for the encoder.

    Returns:
        The chosen strength of the penalty; None if no training clip can be read, and the head is unchanged.
    """
    model = task.model.to(device)
    training = _vectors(task, model, task.fold.train)
    validation = _vectors(task, model, task.fold.valid) if len(task.fold.valid) else None
    if not len(training.logits):
        return None
    x, targets = torch.from_numpy(training.logits).double(), torch.from_numpy(training.targets).double()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    standard = (x - mean) / deviation
    if validation is not None and not len(validation.logits):
        validation = None
    best: tuple[float, float, Tensor, Tensor] | None = None  # validation metric, strength, weight, bias
    for strength in _STRENGTHS if validation else (_DEFAULT_STRENGTH,):
        weight, bias = _fit(standard, targets, strength, task.loss)
        weight = weight / deviation
        bias = bias - weight @ mean
        score = _score(task, validation, weight, bias) if validation else 0.0
        if best is None or score >= best[0]:  # of equal scores, the stronger penalty
            best = (score, strength, weight, bias)
    assert best is not None
    _, strength, weight, bias = best
    with torch.no_grad():
        model.linear.weight.copy_(weight)
        model.linear.bias.copy_(bias)
    return strength


def _vectors(task: FinetuneTask, model: Classifier, clips: Ints) -> Predictions:
    """Return the inputs of the classifier's linear layer for whole clips, as `logits` (N, D)."""
    width = model.linear.in_features
    config = model.config.with_changes(num_classes=width, labels=None, background=None)
    reader = Classifier(model.encoder.config, config).to(model.linear.weight.device)
    reader.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("linear.")}, strict=False)
    with torch.no_grad():
        torch.nn.init.eye_(reader.linear.weight)
        torch.nn.init.zeros_(reader.linear.bias)
    return task.predict(reader.eval(), clips)


def _fit(
    x: Tensor, targets: Tensor, strength: float, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return weight (C, D) and bias (C,) that minimize mean loss + strength / 2 * |weight|^2 on x (N, D)."""
    weight = torch.zeros(targets.shape[1], x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=x.dtype, requires_grad=True)

    def objective() -> Tensor:
        return loss(x @ weight.T + bias, targets) + strength / 2 * weight.square().sum()

    minimize(objective, [weight, bias])
    return weight, bias


def _score(task: FinetuneTask, predictions: Predictions, weight: Tensor, bias: Tensor) -> float:
    """Return the recipe's validation metric, negated if smaller is better."""
    logits = (torch.from_numpy(predictions.logits).double() @ weight.T + bias).float().numpy()
    name, direction = task.best_metric
    value = task.metrics(predictions._replace(logits=logits))[name]
    return value if direction == "max" else -value
