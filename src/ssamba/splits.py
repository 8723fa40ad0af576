"""Folds, splits and held-out parts: which clips train, which validate and which test, with groups kept together.

    splits train, valid, test     one fold; validation clips are held out of train if there is no valid
    splits fold1, fold2, ...      one fold for each name: it tests, the others train, and some of those validate
    no split                      one fold; test clips are held out first, then validation clips

Groups are clips that must not be divided (one speaker, one recording). Every choice is the same each time it is made.

Shapes: N clips, C classes, n clips of a subset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ssamba.errors import DataError

Ints: TypeAlias = "npt.NDArray[np.int64]"
_SPLIT_NAMES = ("train", "valid", "test")
_MAX_EXAMPLES = 5  # names listed in a message
_MIN_GROUPS = 3  # a class with fewer groups need not be in the held-out part
_FEW_CLIPS = 5
_DATE = re.compile(
    r"((19|20)\d\d([-_. ]?)(0?[1-9]|1[0-2])\3(0?[1-9]|[12]\d|3[01])|(0?[1-9]|[12]\d|3[01])([-_. ])(0?[1-9]|1[0-2])\7"
    r"(19|20)?\d\d)([-_ T]?\d\d[-_.: ]?\d\d([-_.: ]?\d\d)?)?"
)
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_MIN_VALIDATION_GROUPS = 5  # with fewer, validation clips are drawn one by one


@dataclass(frozen=True)
class Fold:
    """Indices of the clips that train, validate and test a model, each ascending; no clip is in two of them."""

    train: Ints
    test: Ints
    valid: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Clips that choose settings; may be empty."""
    name: str = "all"
    """`all`, or the name of the fold that tests."""

    @property
    def train_and_valid(self) -> Ints:
        """All clips that are not tested, ascending."""
        return np.union1d(self.train, self.valid) if len(self.valid) else self.train


def make_folds(
    splits: Sequence[str | None],
    groups: Sequence[str | None],
    files: Sequence[str],
    targets: npt.NDArray[np.float32],
    *,
    valid_share: float,
    test_share: float,
    validate: bool,
    classes: Sequence[str] = (),
    copies: Sequence[str | None] = (),
) -> tuple[list[Fold], list[str]]:
    """Return the folds of a data set, and notes for the user.

    Args:
        splits: split of each clip (N); all None if the data set has none.
        groups: group of each clip (N), or None.
        files: audio file of each clip (N); clips of one file stay together, too.
        targets: labels of each clip (N, C).
        valid_share: share of the training clips to hold out if there is no split `valid`.
        test_share: share of the clips to hold out if there are no splits.
        validate: whether to hold out validation clips if there is no split `valid`.
        classes: names of the classes (C), for the notes.
        copies: a name shared by clips whose recordings are identical (N), or None.

    Raises:
        DataError: the splits contradict each other, or no training clip is left.
    """
    names = np.array([split or "" for split in splits])
    group_ids = _joined_groups(groups, files, copies or [None] * len(names))
    notes: list[str] = []
    everything = np.arange(len(names))
    known = sorted(set(names.tolist()) - {""})

    def held_out(clips: Ints, share: float, purpose: str) -> Ints:
        held = hold_out(clips, group_ids, targets, share) if share else clips[:0]
        if share and not len(held):
            notes.append(f"no clip could be held out for {purpose}: every class has too few groups of clips")
        elif share:
            absent = np.flatnonzero((targets[clips] > 0).any(0) & ~(targets[held] > 0).any(0))
            some = ", ".join(str(classes[c]) if classes else str(c) for c in absent[:_MAX_EXAMPLES])
            few = f", but for {len(absent)} with too few groups of clips ({some})" if len(absent) else ""
            notes.append(
                f"{len(held)} of {len(clips)} clips were held out for {purpose}, by groups, classes evenly{few}"
            )
        return held

    if "" in names and known:
        count = int((names == "").sum())
        raise DataError(f"{count} of {len(names)} clips have no split, the others {', '.join(known)}: give each one")
    if not known:
        test = held_out(everything, test_share, "testing")
        folds = [Fold(np.setdiff1d(everything, test), test)]
    elif set(known) <= set(_SPLIT_NAMES):
        folds = given_folds(splits)
        if not len(folds[0].test):
            notes.append("there is no test split: nothing is tested")
    elif set(known) & set(_SPLIT_NAMES) or len(known) < 2:
        raise DataError(f"the splits are {', '.join(known)}: expected train, valid and test, or two or more folds")
    else:
        if not all(any(map(str.isdigit, name)) for name in known):  # for example dev and eval
            notes.append(f"the splits {', '.join(known)} were treated as folds: each is the test set once")
        folds = given_folds(splits)
    finished = []
    for fold in folds:
        train, valid = fold.train, fold.valid
        if not len(valid) and validate:
            valid = held_out(train, valid_share, "validation")
            train = np.setdiff1d(train, valid)
        if not len(train):
            raise DataError("nothing is left to train on: there is no clip of the split `train`")
        finished.append(Fold(train, fold.test, valid, fold.name))
    notes += _copies_note(finished, copies, files)
    return finished, list(dict.fromkeys(notes))


def check_leaks(folds: Sequence[Fold], groups: Sequence[str | None], files: Sequence[str]) -> None:
    """Check that no group and no file is in two parts (train, valid, test) of a fold.

    Args:
        folds: the folds.
        groups: group of each clip (N), or None.
        files: audio file of each clip (N).

    Raises:
        DataError: a group or a file is in two parts; the message names some.
    """
    for what, names in (("group", groups), ("file", files)):
        for fold in folds:
            train, valid, test = ({names[i] for i in part} - {None} for part in (fold.train, fold.valid, fold.test))
            for first, second, both in (
                ("train", "test", train & test),
                ("valid", "test", valid & test),
                ("train", "valid", train & valid),
            ):
                if both:
                    some = sorted(str(name) for name in both)
                    more = f" and {len(some) - _MAX_EXAMPLES} more" if len(some) > _MAX_EXAMPLES else ""
                    raise DataError(
                        f"{len(both)} {what}s are in {first} and in {second}, which inflates scores: "
                        f"{', '.join(some[:_MAX_EXAMPLES])}{more}. Move each to one split"
                    )


def given_folds(splits: Sequence[str | None]) -> list[Fold]:
    """Return the folds that names of splits state (N): train, valid and test, or each name in turn; none without."""
    names = np.array([split or "" for split in splits])
    known = sorted(set(names.tolist()) - {""})
    if not known or "" in names:
        return []
    if set(known) <= set(_SPLIT_NAMES):
        train, valid, test = (np.flatnonzero(names == name) for name in _SPLIT_NAMES)
        return [Fold(train, test, valid)]
    known.sort(key=lambda name: (len(name), name))  # fold2 before fold10
    return [Fold(np.flatnonzero(names != name), np.flatnonzero(names == name), name=name) for name in known]


def class_notes(
    classes: Sequence[str], targets: npt.NDArray[Any], folds: Sequence[Fold], *, refit: bool = False
) -> list[str]:
    """Return a line for each reason why some classes cannot be scored or learned, at most one of a kind.

    Args:
        classes: names of the classes (C).
        targets: labels of each clip of the data set (N, C), above 0 for a label.
        folds: the folds.
        refit: whether the scored model is trained on the validation clips, too.
    """
    has = np.asarray(targets) > 0
    untrained: list[str] = []
    for c, name in enumerate(classes):
        where = []
        for fold in folds:
            tested = int(has[fold.test, c].sum())
            if tested and not has[fold.train_and_valid if refit else fold.train, c].any():
                clips = f"{tested} test clip{'s' if tested > 1 else ''}"
                where.append(f"{clips} of {fold.name}" if len(folds) > 1 and fold.name != "all" else clips)
        if where:
            untrained.append(f"{name} ({', '.join(where)})")
    single = [str(name) for name, count in zip(classes, has.sum(0), strict=True) if count == 1]
    single = [name for name in single if not any(entry.startswith(f"{name} (") for entry in untrained)]
    notes = []
    if untrained:
        notes.append(
            f"{_counted(untrained)} tested but not in the training part, so that no model can get "
            f"{'their' if len(untrained) > 1 else 'its'} clips right: {first_of(untrained)}"
        )
    if single:
        notes.append(
            f"{_counted(single)} in a single clip, which is either trained on or tested, never both: {first_of(single)}"
        )
    return notes


def label_notes(classes: Sequence[str], targets: npt.NDArray[Any], background: str | None = None) -> list[str]:
    """Return a line for each reason to doubt that these labels are what the user wants to tell apart.

    Args:
        classes: names of the classes (C).
        targets: labels of each clip of the data set (N, C), above 0 for a label.
        background: the class that means "none of the others", if there is one.
    """
    named = [name for name in classes if name != background]
    counts = dict(zip(classes, (np.asarray(targets) > 0).sum(0).tolist(), strict=True))
    notes = []
    for kind, is_kind in (("dates", are_dates), ("numbers", are_numbers)):
        if is_kind(named):
            notes.append(f"the labels are {kind} ({first_of(named)}): are they what the clips are to be told apart by?")
    clips = sum(counts[name] for name in named)
    if len(named) > max(3, clips / 2):
        notes.append(
            f"{len(named)} labels for {clips} labeled clips ({first_of(named)}): are they the names of files or places?"
        )
    few = [f"{name} ({counts[name]})" for name in named if 1 < counts[name] < _FEW_CLIPS]
    if few:
        notes.append(f"{_counted(few)} in fewer than {_FEW_CLIPS} clips, too few to judge: {first_of(few)}")
    return notes


def are_dates(names: Sequence[str]) -> bool:
    """Return whether most of the names are dates, such as 2024-05-01, 20240501 or 01.05.2024, perhaps with a time."""
    return sum(_DATE.fullmatch(name) is not None for name in names) > len(names) / 2


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether most of the names are numbers."""
    return sum(_NUMBER.fullmatch(name) is not None for name in names) > len(names) / 2


def _counted(classes: Sequence[str]) -> str:
    return "1 class is" if len(classes) == 1 else f"{len(classes)} classes are"


def first_of(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _MAX_EXAMPLES} more" if len(names) > _MAX_EXAMPLES else ""
    return ", ".join(names[:_MAX_EXAMPLES]) + more


def groups_in_several_splits(groups: Iterable[str], splits: Iterable[str]) -> dict[str, list[str]]:
    """Return the splits of each named group that is in more than one; `groups` and `splits` are (N), "" is no group."""
    found: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        found.setdefault(str(group), set()).add(str(split))
    return {group: sorted(own) for group, own in found.items() if group and len(own) > 1}


def validation_mask(groups: npt.NDArray[Any], seed: int = 0) -> npt.NDArray[np.bool_]:
    """Return which training clips choose a probe's setting, (n,): a fifth of the groups (n,).

    With fewer than five groups, a fifth of the clips is drawn.
    """
    generator = np.random.default_rng(seed)
    names = np.unique(groups)
    if len(names) >= _MIN_VALIDATION_GROUPS:
        return np.isin(groups, generator.permutation(names)[: max(1, len(names) // 5)])
    drawn: npt.NDArray[np.bool_] = generator.random(len(groups)) < 0.2
    return drawn


def inner_folds(clips: Ints, groups: npt.NDArray[Any], labels: npt.NDArray[Any], count: int) -> list[Fold]:
    """Divide clips (n,) into at most `count` folds by their groups (n,), or by their labels (n,) if they are one group.

    Whole groups go to the fold with the fewest clips, the largest groups first. (scikit-learn's GroupKFold does the
    same, but orders groups of one size differently.) The clips of a single group are divided evenly by class.
    """
    of_clip = np.unique(groups, return_inverse=True)[1]
    number = np.zeros(len(clips), dtype=int)
    if of_clip.max() > 0:
        sizes = np.bincount(of_clip)
        of_group, load = np.zeros(len(sizes), dtype=int), np.zeros(min(count, len(sizes)), dtype=int)
        for group in np.argsort(-sizes, kind="stable"):
            of_group[group] = load.argmin()
            load[of_group[group]] += sizes[group]
        number = of_group[of_clip]
    else:
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            number[own] = np.arange(len(own)) % count
    return [Fold(clips[number != k], clips[number == k], name=str(k)) for k in range(number.max() + 1)]


def hold_out(clips: Ints, group_ids: Ints, targets: npt.NDArray[Any], share: float) -> Ints:
    """Return whole groups of `clips` (n,) with about `share` of the clips of each class, but never all of a class.

    Groups are visited in a fixed random order; one is taken if it brings the class counts nearer to the wanted ones.
    Then each class with three or more groups and no clip yet gets one group, as long as at most half of the clips are
    held out.

    Args:
        clips: indices of the clips to divide (n,).
        group_ids: group of each clip of the data set (N).
        targets: labels of each clip of the data set (N, C).
        share: wanted share.
    """
    groups, of_clip = np.unique(group_ids[clips], return_inverse=True)
    counts = np.zeros((len(groups), targets.shape[1] + 1))
    np.add.at(counts, of_clip, np.column_stack([targets[clips] > 0, np.ones(len(clips))]))  # last column: clips
    total = counts.sum(0)
    scale = 1 / np.maximum(total, 1)
    held = np.zeros_like(total)
    chosen = np.zeros(len(groups), bool)
    order = np.random.default_rng(0).permutation(len(groups))

    def distance(counted: npt.NDArray[np.float64]) -> float:
        return float(np.square((counted - share * total) * scale).sum())

    def takes_all_of_a_class(group: int) -> bool:
        return bool(((held + counts[group])[:-1] >= total[:-1])[counts[group][:-1] > 0].any())

    for group in order:
        if distance(held + counts[group]) < distance(held) and not takes_all_of_a_class(group):
            held, chosen[group] = held + counts[group], True
    num_groups = (counts[:, :-1] > 0).sum(0)
    for c in np.argsort(num_groups, kind="stable"):
        if num_groups[c] < _MIN_GROUPS or held[c]:
            continue
        candidates = [
            group
            for group in order
            if counts[group][c] and not takes_all_of_a_class(group) and held[-1] + counts[group][-1] <= total[-1] / 2
        ]
        if candidates:
            group = min(candidates, key=lambda g: distance(held + counts[g]))
            held, chosen[group] = held + counts[group], True
    return np.sort(clips[chosen[of_clip]])


def _copies_note(folds: Sequence[Fold], copies: Sequence[str | None], files: Sequence[str]) -> list[str]:
    """Return a note on test clips whose recording is identical to a training or validation clip, if there are any."""
    pairs: dict[str, str] = {}
    for fold in folds if copies else ():
        known = {copies[i]: files[i] for part in (fold.train, fold.valid) for i in part}
        pairs |= {files[i]: known[copies[i]] for i in fold.test if copies[i] is not None and copies[i] in known}
    if not pairs:
        return []
    some = ", ".join(f"{Path(test).name} is {Path(other).name}" for test, other in list(pairs.items())[:_MAX_EXAMPLES])
    return [
        f"{len(pairs)} test clips are copies of training or validation clips ({some}): test scores are too optimistic"
    ]


def _joined_groups(groups: Sequence[str | None], files: Sequence[str], copies: Sequence[str | None]) -> Ints:
    """Return a number for each clip (N), equal for clips joined by a group, file or copy, also through others."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(name: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for kind, names in (("group", groups), ("copy", copies)):
        for name, file in zip(names, files, strict=True):
            if name is not None:
                parent[root((kind, name))] = root(("file", file))
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(root(("file", file)), len(numbers)) for file in files], np.int64)
