"""What a fine-tuning leaves behind besides its models: how its rounds went, in numbers, tables and pictures.

    OUT/results.json     test scores of each round with 95 % intervals, their mean and deviation, the chosen epoch, the recipe
    OUT/classes.csv      the classes' own scores, over the test answers of all rounds, the worst first
    OUT/confusion.png    what is taken for what, where each answer has one label
    OUT/rounds/NAME/     the same table and picture of each fold

Shapes: N answers, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.checkpoint.files import write_json
from ssamba.errors import MissingExtraError
from ssamba.evaluation.report import plot_confusion, scores_of_several_labels, write_class_scores
from ssamba.library.predict import ROUNDS_FOLDER
from ssamba.metrics.bootstrap import Interval
from ssamba.metrics.classification import confusion_counts, finite_or_none
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.scores import Array, given_labels

RESULTS_FILE = "results.json"
CONFUSION_FILE = "confusion.png"
CLASSES_FILE = "classes.csv"


@dataclass(frozen=True)
class RoundResult:
    """How one round went."""

    name: str
    """`all`, or the fold that was tested."""
    clips: Mapping[str, int]
    """Clips of `train`, `valid` and `test`."""
    step: int
    """Steps done by the model that was chosen."""
    epoch: int
    """Epochs it had seen, the one it was in included."""
    valid: float | None
    """Its validation by the recipe's metric."""
    scores: Mapping[str, float]
    """Its test, empty where nothing is tested."""
    model: Path
    """Its folder."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Test clips that could not be read, and why."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % bootstrap intervals of the scores, over test recordings."""


@dataclass(frozen=True)
class FinetuneReport:
    """How a fine-tuning ended."""

    stopped: str
    """`finished`, or the signal that ended it early; repeat it to go on."""
    metric: str
    """What validation is judged by."""
    classes: tuple[str, ...]
    """The labels."""
    rounds: tuple[RoundResult, ...]
    """Those that are done."""
    notes: tuple[str, ...]
    """What was held out, and what else should be known."""
    model: Path | None
    """Folder of the classifier, once all is done."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % bootstrap intervals of the means over the rounds, over test recordings."""

    def scores(self) -> dict[str, tuple[float, float | None]]:
        """Mean of each test score over the rounds that have it, and their standard deviation where these are several.

        A round may have none: no clip of its test has a label, say, so that there is no average precision.
        """
        names = dict.fromkeys(name for part in self.rounds for name in part.scores)
        values = {
            name: [part.scores[name] for part in self.rounds if not math.isnan(part.scores.get(name, math.nan))]
            for name in names
        }
        return {
            name: (
                float(np.mean(found)) if found else math.nan,
                float(np.std(found, ddof=1)) if len(found) > 1 and np.isfinite(found).all() else None,
            )
            for name, found in values.items()
        }

    def partly_scored(self) -> list[str]:
        """What to say of scores that some of several rounds lack."""
        tested = [part.scores for part in self.rounds if part.scores]
        found = {
            name: sum(not math.isnan(scores.get(name, math.nan)) for scores in tested)
            for name in dict.fromkeys(name for scores in tested for name in scores)
        }
        return [
            f"{name} is of {count} of {len(tested)} rounds: the test clips of the others have no label, or all the same"
            for name, count in found.items()
            if 0 < count < len(tested)
        ]


@dataclass(frozen=True)
class Verdicts:
    """What the models of one or several rounds said of their test clips."""

    scores: Array
    """(N, C), comparable."""
    targets: Array
    """(N, C), 0 or 1."""

    def confusion(self) -> Array:
        """True class down, given class across, (C, C)."""
        return confusion_counts(self.targets.argmax(1), self.scores.argmax(1), self.scores.shape[1])


def write_report(
    report: FinetuneReport, out: Path, answers: Sequence[Verdicts], recipe: FinetuneRecipe, *, multi: bool
) -> None:
    """Write the results, the tables and the pictures of a fine-tuning that is done.

    Args:
        report: how it went.
        out: its folder.
        answers: of each round that tested anything.
        recipe: what it followed.
        multi: whether an answer may have any number of labels.
    """
    notes = list(report.notes)
    whole = None
    if answers:
        whole = Verdicts(*(np.concatenate([getattr(a, name) for a in answers]) for name in ("scores", "targets")))
        mean = report.scores().get("accuracy", (math.nan, None))[0]
        notes += write_tables(out, whole, report.classes, multi=multi, title=f"accuracy {mean:.3f}")
    content = {
        "metric": report.metric,
        "scores": {
            name: {"mean": finite_or_none(mean), "deviation": spread, "interval": bounds(report.intervals.get(name))}
            for name, (mean, spread) in report.scores().items()
        },
        "rounds": [_round_json(part, out) for part in report.rounds],
        "classes": report.classes,
        "confusion": None if multi or whole is None else whole.confusion().tolist(),
        "notes": notes,
        "recipe": json.loads(recipe.model_dump_json()),
    }
    write_json(out / RESULTS_FILE, content)


def write_tables(folder: Path, answers: Verdicts, classes: Sequence[str], *, multi: bool, title: str) -> list[str]:
    """Write `classes.csv`, and `confusion.png` where answers have one label; returns what should be said about it."""
    given = given_labels(answers.scores, multi=multi)
    write_class_scores(scores_of_several_labels(classes, answers.scores, answers.targets, given), folder / CLASSES_FILE)
    if multi:
        return []
    try:
        plot_confusion(
            classes, answers.confusion(), folder / CONFUSION_FILE, f"{len(answers.scores)} test answers, {title}"
        )
    except MissingExtraError as error:
        return [f"{CONFUSION_FILE} was not drawn: {error}"]
    return []


def round_folder(out: Path, name: str) -> Path:
    """Where a round's files are."""
    return out / ROUNDS_FOLDER / name


def _round_json(part: RoundResult, out: Path) -> dict[str, Any]:
    return {
        **asdict(part),
        "scores": {name: finite_or_none(value) for name, value in part.scores.items()},
        "intervals": {name: bounds(interval) for name, interval in part.intervals.items()},
        "model": part.model.relative_to(out).as_posix(),
    }


def bounds(interval: Interval | None) -> list[float | None] | None:
    """An interval for JSON."""
    return None if interval is None else [finite_or_none(interval.low), finite_or_none(interval.high)]
