"""A labeled task and the rounds in which it is scored.

Rounds: splits `train` and `test` are one round; tasks in `SWAPPED` (the two sides are two recording sources) are also
scored the other way round. Any other split names are folds: each is scored once, after training on the others.
Inner rounds never touch a test clip: they divide the training part of the first round by its groups.

Kinds: `single`, one label for each clip, scored by accuracy; `multi`, any number of labels for each; `second`, any number
for each second of a recording; `event`, what is heard from when to when. `figures` says what the others are scored by.

Shapes: N clips, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssamba.errors import SuiteError
from ssamba.evaluation.caching import Array
from ssamba.events import Event, Smoothing
from ssamba.hashing import digest_of_files

SWAPPED = frozenset({"instr_family", "zh_final"})
"""Tasks that are scored in both directions."""
INNER_FOLDS = 3


@dataclass(frozen=True)
class Round:
    """One training and one scoring: indices of clips."""

    train: Array
    """(clips to train on,), ascending."""
    test: Array
    """(clips to score,), ascending."""
    valid: Array | None = None
    """Those of `train` that choose a probe's settings, where the task names them; None leaves it to the probe."""


@dataclass(frozen=True)
class Task:
    """A labeled task. The arrays are (N,), of strings."""

    name: str
    """What it is called: the stem of its table."""
    table: Path
    """The table it was read from."""
    audio: Path
    """A tar archive, or the folder from which `clips` are paths."""
    clips: Array
    """Paths of the recordings."""
    labels: Array
    """What they hold."""
    splits: Array
    """`train`, `test` or the name of a fold."""
    groups: Array
    """What they belong to."""
    kind: Literal["single", "multi", "second", "event"] = "single"
    """What a label is of, and how many there may be."""
    figures: tuple[str, ...] = ("accuracy",)
    """What it is scored by: the first is its score."""
    classes: tuple[str, ...] = ()
    """Not `single`: the classes, in the order of columns."""
    targets: Array | None = None
    """`multi`: (N, C), 0 or 1."""
    events: tuple[tuple[Event, ...], ...] = ()
    """`second` and `event`: what is heard in each recording; of a second, an empty label says that nothing is."""
    smoothings: tuple[Smoothing, ...] = ()
    """`event`: ways of smoothing among which the validation part chooses."""
    valid: Array | None = None
    """(N,) bool: training clips that choose a probe's settings, where the task names them."""
    beside: tuple[Path, ...] = ()
    """Further files that say what the recordings hold."""

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the table, what stands beside it, and the recordings.

        Raises:
            SuiteError: a recording is missing.
        """
        if self.audio.is_file():
            return digest_of_files(self.table, *self.beside, self.audio)
        for clip in self.clips:
            if not (self.audio / clip).is_file():
                raise SuiteError(f"{self.table} names {clip}, but neither {self.name}.tar nor that file is beside it")
        return digest_of_files(self.table, *self.beside, *(self.audio / clip for clip in self.clips))

    @property
    def facts(self) -> dict[str, Any]:
        """What a scorecard says of it: its digest, clips and classes, and what its score is."""
        return {
            "digest": self.digest,
            "clips": len(self.clips),
            "classes": self.num_classes,
            "metric": self.metric,
        }

    @property
    def num_classes(self) -> int:
        """Different labels."""
        return len(self.classes) or len(np.unique(self.labels))

    @property
    def metric(self) -> str:
        """What its score is."""
        return self.figures[0]

    def rounds(self) -> list[Round]:
        """The rounds in which the task is scored."""
        train = self.splits == "train"
        if "test" in self.splits:
            ways = [(train, ~train), (~train, train)] if self.name in SWAPPED else [(train, ~train)]
        else:
            ways = [(self.splits != fold, self.splits == fold) for fold in np.unique(self.splits)]
        return [Round(np.flatnonzero(a), np.flatnonzero(b), self._valid(a)) for a, b in ways]

    def _valid(self, train: Array) -> Array | None:
        if self.valid is None or not (self.valid & train).any():
            return None
        return np.flatnonzero(self.valid & train)

    def inner_rounds(self) -> list[Round]:
        """The training part of the first round, divided by its groups into at most three folds, each scored once.

        Where there is only one group its clips are divided, every class evenly. No test clip is in any of them.
        """
        inside = self.rounds()[0].train
        groups = np.unique(self.groups[inside], return_inverse=True)[1]
        if groups.max() > 0:
            fold = _balanced_folds(groups, min(INNER_FOLDS, groups.max() + 1))
        else:
            fold = _even_folds(self.labels[inside])
        return [Round(inside[fold != k], inside[fold == k]) for k in range(fold.max() + 1)]


def _balanced_folds(groups: Array, folds: int) -> Array:
    """A fold for each clip: whole groups, the largest first, each to the fold that holds the fewest clips."""
    sizes = np.bincount(groups)
    of_group, load = np.zeros(len(sizes), dtype=int), np.zeros(folds, dtype=int)
    for group in np.argsort(-sizes, kind="stable"):
        of_group[group] = load.argmin()
        load[of_group[group]] += sizes[group]
    return of_group[groups]


def _even_folds(labels: Array) -> Array:
    """A fold for each clip, the clips of every class dealt out in turn."""
    fold = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        fold[own] = np.arange(len(own)) % INNER_FOLDS
    return fold
