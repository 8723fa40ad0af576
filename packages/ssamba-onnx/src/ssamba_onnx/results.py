"""Results: what is known of a recording.

Shapes: D channels, K time steps, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Embedding:
    """A recording's embedding, float32."""

    clip: Array
    """The mean over the recording, (D,)."""
    parts: Array
    """`clip`, then the means of three equal thirds of the sounding region, (4 * D,): knows what came first."""
    frames: Array | None
    """One vector for each time step, (K, D); None after `embed(..., frames=False)`, like `times_s`."""
    times_s: Array | None
    """Center of each time step, in seconds from the start of the recording, (K,)."""
    duration_s: float
    """Length of the recording."""

    def __repr__(self) -> str:
        frames = "" if self.frames is None else f", frames {self.frames.shape}"
        return f"Embedding({self.duration_s:.2f} s, clip {self.clip.shape}{frames})"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Class probabilities of a recording, or of a segment of it."""

    start_s: float
    """Start of the segment, in seconds from the start of the recording; 0 for a whole recording."""
    end_s: float
    """End of the segment; for a whole recording, its length."""
    labels: tuple[str, ...]
    """Names of the classes, C of them; numbers if the model has no names."""
    probabilities: Array
    """Probability of each class, (C,), float32: their sum is 1 if the classes exclude each other."""

    def best(self, count: int = 1) -> list[tuple[str, float]]:
        """Return the `count` most probable labels with their probabilities; 0 returns all."""
        order = np.argsort(-self.probabilities, kind="stable")[: count or None]
        return [(self.labels[i], float(self.probabilities[i])) for i in order.tolist()]

    def __repr__(self) -> str:
        best = ", ".join(f"{label} {probability:.3f}" for label, probability in self.best(3))
        return f"Prediction({self.start_s:g} to {self.end_s:.2f} s: {best}{', ...' if len(self.labels) > 3 else ''})"
