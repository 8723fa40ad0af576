"""Rounds of a fine-tuning: which clips train, which validate, which test; nothing that is tested is ever trained on.

    splits train, valid, test     one round; validation clips are held out of train where there is no valid
    splits fold1, fold2, ...      a round for each fold: it tests, the others train, and some of them validate
    no split                      one round; test clips are held out first, then validation clips

What is held out follows whole groups (and files, and recordings that are there under several names), every class as evenly
as these allow, and is the same every time.

Shapes: N clips, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ssamba.errors import DataError

Ints: TypeAlias = "npt.NDArray[np.int64]"
_NAMES = ("train", "valid", "test")
_EXAMPLES = 5
_FEWEST_GROUPS = 3


@dataclass(frozen=True)
class Round:
    """One training and its scoring; indices of clips, ascending."""

    name: str
    """`all`, or the fold that tests."""
    train: Ints
    valid: Ints
    test: Ints


def make_rounds(
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
) -> tuple[list[Round], list[str]]:
    """The rounds, and what should be said about them.

    Args:
        splits: of each clip (N); all None where there are none.
        groups: what must not be divided (N), None where nothing is said.
        files: where each clip's audio is (N); parts of a file stay together, too.
        targets: which labels each clip has (N, C).
        valid_share: share of the training clips to hold out where there is no `valid`.
        test_share: share of the clips to hold out where there is no split at all.
        validate: whether validation clips are wanted where there is no `valid`.
        classes: their names, for the notes.
        copies: of each clip, a name that it shares with clips that are the very same recording (N), or None.

    Raises:
        DataError: the splits make no sense, or nothing is left to train on.
    """
    names = np.array([split or "" for split in splits])
    of_group = _together(groups, files, copies or [None] * len(names))
    notes: list[str] = []
    everything = np.arange(len(names))
    known = sorted(set(names.tolist()) - {""})

    def part(clips: Ints, share: float, what: str) -> Ints:
        held = hold_out(clips, of_group, targets, share) if share else clips[:0]
        if share and not len(held):
            notes.append(f"no clip could be held out for {what}: every class has too few groups of clips")
        elif share:
            absent = np.flatnonzero((targets[clips] > 0).any(0) & ~(targets[held] > 0).any(0))
            some = ", ".join(str(classes[c]) if classes else str(c) for c in absent[:_EXAMPLES])
            few = f", but for {len(absent)} with too few groups of clips ({some})" if len(absent) else ""
            notes.append(f"{len(held)} of {len(clips)} clips were held out for {what}, by groups, classes evenly{few}")
        return held

    if "" in names and known:
        count = int((names == "").sum())
        raise DataError(f"{count} of {len(names)} clips have no split, the others {', '.join(known)}: give each one")
    if not known:
        test = part(everything, test_share, "testing")
        rounds = [("all", np.setdiff1d(everything, test), everything[:0], test)]
    elif set(known) <= set(_NAMES):
        sides = [np.flatnonzero(names == name) for name in _NAMES]
        rounds = [("all", sides[0], sides[1], sides[2])]
        if not len(rounds[0][3]):
            notes.append("there is no test split: nothing is tested")
    elif set(known) & set(_NAMES) or len(known) < 2:
        raise DataError(f"the splits are {', '.join(known)}: expected train, valid and test, or two or more folds")
    else:
        if not all(any(map(str.isdigit, name)) for name in known):  # dev and eval, say
            notes.append(f"the splits {', '.join(_in_order(known))} were taken for folds: each tests once")
        rounds = [(k, np.flatnonzero(names != k), everything[:0], np.flatnonzero(names == k)) for k in _in_order(known)]
    finished = []
    for name, train, valid, test in rounds:
        if not len(valid) and validate:
            valid = part(train, valid_share, "validation")
            train = np.setdiff1d(train, valid)
        if not len(train):
            raise DataError("nothing is left to train on: there is no clip of the split `train`")
        finished.append(Round(name, train, valid, test))
    notes += _copied(finished, copies, files)
    return finished, list(dict.fromkeys(notes))


def check_leaks(rounds: Sequence[Round], groups: Sequence[str | None], files: Sequence[str]) -> None:
    """Whether what trains and validates is apart from what tests (and training from validation).

    Args:
        rounds: the rounds.
        groups: of each clip (N), None where it has none.
        files: where each clip's audio is (N).

    Raises:
        DataError: a group or a file is on both sides; some are named.
    """
    for what, names in (("group", groups), ("file", files)):
        for part in rounds:
            train, valid, test = ({names[i] for i in side} - {None} for side in (part.train, part.valid, part.test))
            for first, second, both in (
                ("train", "test", train & test),
                ("valid", "test", valid & test),
                ("train", "valid", train & valid),
            ):
                if both:
                    some = sorted(str(name) for name in both)
                    more = f" and {len(some) - _EXAMPLES} more" if len(some) > _EXAMPLES else ""
                    raise DataError(
                        f"{len(both)} {what}s are in {first} and in {second}, so that scores would be flattered: "
                        f"{', '.join(some[:_EXAMPLES])}{more}. Move each to one split"
                    )


def _copied(rounds: Sequence[Round], copies: Sequence[str | None], files: Sequence[str]) -> list[str]:
    """What to say of test clips that are the very recording of a clip that trains or validates."""
    pairs: dict[str, str] = {}
    for part in rounds if copies else ():
        known = {copies[i]: files[i] for side in (part.train, part.valid) for i in side}
        pairs |= {files[i]: known[copies[i]] for i in part.test if copies[i] is not None and copies[i] in known}
    if not pairs:
        return []
    some = ", ".join(f"{Path(test).name} is {Path(other).name}" for test, other in list(pairs.items())[:_EXAMPLES])
    return [
        f"{len(pairs)} test clips are recordings that train or validate under another name ({some}): scores flatter"
    ]


def hold_out(clips: Ints, of_group: Ints, targets: npt.NDArray[Any], share: float) -> Ints:
    """Whole groups of `clips` that hold about `share` of each class, and never all of one.

    Groups are taken in an order that is shuffled alike every time, each if it brings the classes' counts nearer to
    what is wanted; then one more for each class of three groups or more that has none, unless that makes more than half
    of the clips.
    """
    groups, of_clip = np.unique(of_group[clips], return_inverse=True)
    counts = np.zeros((len(groups), targets.shape[1] + 1))
    own = np.column_stack([targets[clips] > 0, np.ones(len(clips))])  # the last column counts clips
    np.add.at(counts, of_clip, own)
    total = counts.sum(0)
    scale = 1 / np.maximum(total, 1)
    held = np.zeros_like(total)
    chosen = np.zeros(len(groups), bool)
    order = np.random.default_rng(0).permutation(len(groups))

    def away(counted: npt.NDArray[np.float64]) -> float:
        return float(np.square((counted - share * total) * scale).sum())

    def empties(group: int) -> bool:
        return bool(((held + counts[group])[:-1] >= total[:-1])[counts[group][:-1] > 0].any())

    for group in order:
        if away(held + counts[group]) < away(held) and not empties(group):
            held, chosen[group] = held + counts[group], True
    groups_of = (counts[:, :-1] > 0).sum(0)
    for c in np.argsort(groups_of, kind="stable"):
        if groups_of[c] < _FEWEST_GROUPS or held[c]:
            continue
        able = [g for g in order if counts[g][c] and not empties(g) and held[-1] + counts[g][-1] <= total[-1] / 2]
        if able:
            group = min(able, key=lambda g: away(held + counts[g]))
            held, chosen[group] = held + counts[group], True
    return np.sort(clips[chosen[of_clip]])


def _together(groups: Sequence[str | None], files: Sequence[str], copies: Sequence[str | None]) -> Ints:
    """A number for each clip (N), the same for clips that a group, a file or a copy joins, directly or through others."""
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


def _in_order(folds: Sequence[str]) -> list[str]:
    """fold2 before fold10."""
    return sorted(folds, key=lambda name: (len(name), name))
