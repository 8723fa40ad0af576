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
from ssamba.splits import Fold, inner_folds

SWAPPED = frozenset({"instr_family", "zh_final"})
"""Tasks that are scored in both directions."""
INNER_FOLDS = 3


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

    def folds(self) -> list[Fold]:
        """Return the folds in which the task is scored."""
        train = self.splits == "train"
        if "test" in self.splits:
            folds = [self._fold(train, ~train)]
            return [*folds, self._fold(~train, train)] if self.name in SWAPPED else folds
        return [self._fold(self.splits != name, self.splits == name, str(name)) for name in np.unique(self.splits)]

    def _fold(self, train: Array, test: Array, name: str = "all") -> Fold:
        valid = train & self.valid if self.valid is not None else np.zeros_like(train)
        return Fold(np.flatnonzero(train & ~valid), np.flatnonzero(test), np.flatnonzero(valid), name)

    def inner_folds(self) -> list[Fold]:
        """Return three folds, or fewer, of the clips that the first fold does not test."""
        clips = self.folds()[0].train_and_valid
        return inner_folds(clips, self.groups[clips], self.labels[clips], INNER_FOLDS)
