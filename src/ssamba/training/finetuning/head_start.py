"""The classifier that a fine-tuning begins with: fitted to what the encoder says already, before the encoder changes.

A random classifier sends noise through the encoder in the first steps, which bends what pretraining learned; fitting the
classifier first keeps it (Kumar et al., 2022, arXiv:2202.10054, "LP-FT"). Here: regularized logistic regression (one for
each class with a binary loss) on the vectors of whole training clips, standardized, its strength chosen on the
validation clips.

Shapes: n answers (of clips, or of seconds), D channels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssamba.model.heads import Classifier
from ssamba.splits import Ints
from ssamba.training.finetuning.task import Answers, FinetuneTask

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the penalty, for losses that are means over answers
_UNJUDGED = 1e-2  # where no clip validates
_ITERATIONS = 200


def start_head(task: FinetuneTask, device: torch.device) -> float | None:
    """Fit the task's classifier to its encoder as it is.

    Args:
        task: its model's head is overwritten.
        device: where to compute the vectors.

    Returns:
        The strength that was chosen; None if no training clip could be read, and nothing was done.
    """
    model = task.model.to(device)
    training = _vectors(task, model, task.part.train)
    validation = _vectors(task, model, task.part.valid) if len(task.part.valid) else None
    if not len(training.logits):
        return None
    x, targets = torch.from_numpy(training.logits).double(), torch.from_numpy(training.targets).double()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    standard = (x - mean) / deviation
    if validation is not None and not len(validation.logits):
        validation = None
    best: tuple[float, float, Tensor, Tensor] | None = None
    for strength in _STRENGTHS if validation else (_UNJUDGED,):
        weight, bias = _fit(standard, targets, strength, task.loss)
        weight = weight / deviation
        bias = bias - weight @ mean
        merit = _merit(task, validation, weight, bias) if validation else 0.0
        if best is None or merit >= best[0]:  # the strongest of equals
            best = (merit, strength, weight, bias)
    assert best is not None
    _, strength, weight, bias = best
    with torch.no_grad():
        model.linear.weight.copy_(weight)
        model.linear.bias.copy_(bias)
    return strength


def _vectors(task: FinetuneTask, model: Classifier, clips: Ints) -> Answers:
    """What the classifier's last layer reads of whole clips, in place of logits (n, D)."""
    width = model.linear.in_features
    config = model.config.with_changes(num_classes=width, labels=tuple(map(str, range(width))))
    reader = Classifier(model.encoder.config, config).to(model.linear.weight.device)
    reader.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("linear.")}, strict=False)
    with torch.no_grad():
        torch.nn.init.eye_(reader.linear.weight)
        torch.nn.init.zeros_(reader.linear.bias)
    return task.answers(reader.eval(), clips)


def _fit(
    x: Tensor, targets: Tensor, strength: float, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) that minimize the mean loss and strength / 2 times the weight's square."""
    weight = torch.zeros(targets.shape[1], x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss(x @ weight.T + bias, targets) + strength / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _merit(task: FinetuneTask, answers: Answers, weight: Tensor, bias: Tensor) -> float:
    """The figure that the recipe judges by, the more the better."""
    logits = (torch.from_numpy(answers.logits).double() @ weight.T + bias).float().numpy()
    name, way = task.best_metric
    value = task.figures(answers._replace(logits=logits))[name]
    return value if way == "max" else -value
