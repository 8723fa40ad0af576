"""A labeled task and the folds in which it is scored.

Splits `train` and `test` are one fold, or two if the task is scored in both directions. Any other split names are
folds: each is scored once, after training on the others. Inner folds divide the training part of the first fold, so
that no test clip is in them.

Kinds: `single`, one label a clip, scored by accuracy; `multi`, any number of labels a clip; `second`, any number for
each second of a recording; `event`, labels with start and end.

Shapes: N clips, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssamba.errors import SuiteError
from ssamba.events import Event, Smoothing
from ssamba.hashing import digest_of_files
from ssamba.metrics.classification import Array
from ssamba.splits import Fold, class_notes, inner_folds

INNER_FOLDS = 3


@dataclass(frozen=True)
class Task:
    """A labeled task. Arrays are (N,) strings unless stated otherwise."""

    name: str
    """The stem of its table, or the name of its folder."""
    table: Path
    """The file it was read from."""
    audio: Path
    """A tar archive, or the folder that `clips` are relative to."""
    clips: Array
    """Paths of the recordings."""
    labels: Array
    """Label of each clip; several are joined."""
    splits: Array
    """`train`, `test` or the name of a fold."""
    groups: Array
    """Group of each clip, which is in one split only; may be empty."""
    kind: Literal["single", "multi", "second", "event"] = "single"
    """What has labels, and how many; see above."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Names of the metrics; the first is the score."""
    classes: tuple[str, ...] = ()
    """The classes (C), in the order of columns; empty for `single`."""
    targets: Array | None = None
    """For `multi`: (N, C), 0 or 1."""
    events: tuple[tuple[Event, ...], ...] = ()
    """For `second` and `event`: labeled times of each recording (N)."""
    smoothings: tuple[Smoothing, ...] = ()
    """For `event`: the smoothings that the validation clips choose from."""
    valid: Array | None = None
    """(N,) bool: training clips that choose a probe's settings, if the task names them."""
    beside: tuple[Path, ...] = ()
    """Further files with labels."""
    both_directions: bool = False
    """Whether to score `train` after training on `test`, too."""

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the table, the files beside it, and the recordings.

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
        """Entry of a scorecard: digest, number of clips and classes, and the metric of the score."""
        return {
            "digest": self.digest,
            "clips": len(self.clips),
            "classes": self.num_classes,
            "metric": self.metric,
        }

    @property
    def num_classes(self) -> int:
        """Number of different labels."""
        return len(self.classes) or len(np.unique(self.labels))

    @property
    def metric(self) -> str:
        """Name of the metric that is the score."""
        return self.metrics[0]

    def label_notes(self, *, inner: bool = False) -> list[str]:
        """Return a line for each problem with labels that makes the score mean less than it seems to.

        Args:
            inner: of the inner folds instead of those in which the task is scored.
        """
        if self.kind == "single":
            of_clip = [{str(label)} for label in self.labels]
        elif self.targets is not None:
            of_clip = [{name for name, has in zip(self.classes, row, strict=True) if has} for row in self.targets]
        else:
            of_clip = [{event.label for event in events} for events in self.events]
        classes = self.classes or tuple(sorted(set.union(set(), *of_clip)))
        targets = np.array([[name in labels for name in classes] for labels in of_clip])
        return class_notes(classes, targets, self.inner_folds() if inner else self.folds(), refit=True)

    def folds(self) -> list[Fold]:
        """Return the folds in which the task is scored."""
        train = self.splits == "train"
        if "test" in self.splits:
            folds = [self._fold(train, ~train)]
            return [*folds, self._fold(~train, train)] if self.both_directions else folds
        return [self._fold(self.splits != name, self.splits == name, str(name)) for name in np.unique(self.splits)]

    def inner_folds(self) -> list[Fold]:
        """Return three folds, or fewer, of the clips that the first fold does not test."""
        clips = self.folds()[0].train_and_valid
        return inner_folds(clips, self.groups[clips], self.labels[clips], INNER_FOLDS)

    def _fold(self, train: Array, test: Array, name: str = "all") -> Fold:
        valid = train & self.valid if self.valid is not None else np.zeros_like(train)
        return Fold(np.flatnonzero(train & ~valid), np.flatnonzero(test), np.flatnonzero(valid), name)
