"""What a classifier's answers are worth: figures of merit, and a picture of what is taken for what.

Shapes: N answers (of clips, or of seconds), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ssamba.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array: TypeAlias = "npt.NDArray[Any]"


def figures_of_merit(logits: Array, targets: Array, *, multi: bool, binary_loss: bool) -> dict[str, float]:
    """Loss, and accuracy, balanced accuracy (the mean recall of the classes) or mean average precision.

    Args:
        logits: (N, C).
        targets: (N, C), 0 or 1.
        multi: whether an answer may have any number of labels.
        binary_loss: whether the loss is binary for each class.
    """
    outputs, truth = torch.from_numpy(logits), torch.from_numpy(targets)
    loss = F.binary_cross_entropy_with_logits(outputs, truth) if binary_loss else F.cross_entropy(outputs, truth)
    figures = {"loss": float(loss)}
    if multi:
        figures["mAP"] = mean_average_precision(logits, targets)
        return figures
    matrix = confusion(logits, targets)
    figures["accuracy"] = float(np.trace(matrix) / matrix.sum())
    there = matrix.sum(1) > 0
    figures["balanced_accuracy"] = float((np.diag(matrix)[there] / matrix.sum(1)[there]).mean())
    return figures


def mean_average_precision(scores: Array, targets: Array) -> float:
    """The mean over the classes that are there of their average precision, from scores and targets (N, C).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import average_precision_score
    except ModuleNotFoundError:
        raise MissingExtraError('mean average precision needs scikit-learn: pip install "ssamba[eval]"') from None
    there = targets.any(0)
    if not there.any():
        return float("nan")
    return float(average_precision_score(targets[:, there], scores[:, there], average="macro"))


def confusion(logits: Array, targets: Array) -> npt.NDArray[np.int64]:
    """How often a clip of each class (rows) is taken for each (columns), (C, C)."""
    classes = logits.shape[1]
    pairs = targets.argmax(1) * classes + logits.argmax(1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def confusion_figure(matrix: Array, classes: Sequence[str], title: str) -> Figure:
    """A confusion matrix (C, C) as a picture, each row as shares of its class.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError('pictures need matplotlib: pip install "ssamba[figures]"') from None
    count = len(classes)
    side = max(4.0, min(30.0, 1.8 + 0.28 * count))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axis.imshow(shares, vmin=0, vmax=1, cmap="magma_r")
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the class")
    axis.set_xticks(range(count), classes, rotation=90, fontsize=8)
    axis.set_yticks(range(count), classes, fontsize=8)
    axis.set_xlabel("taken for")
    axis.set_ylabel("is")
    axis.set_title(title, fontsize=9)
    if count <= 20:
        for row in range(count):
            for column in range(count):
                if matrix[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axis.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7, color=colour)
    return figure
