"""How often to draw each clip, so that rare classes are heard about as often as common ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def balanced_weights(labels: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """A weight for each clip (n,): the sum over its classes of 1 / (clips of that class), scaled to a mean of 1.

    As AST and SSAST draw AudioSet (Gong et al., 2021), whose constants do not change the proportions. A clip without a
    label weighs 0.
    """
    counts = Counter(label for clip in labels for label in set(clip))
    weights = np.array([sum(1.0 / counts[label] for label in set(clip)) for clip in labels], np.float64)
    return weights / weights.mean() if weights.any() else weights
