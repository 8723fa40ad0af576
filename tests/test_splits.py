"""Folds and held-out parts: whole groups, and every class as evenly as they allow."""

from __future__ import annotations

import numpy as np
import pytest

from ssamba.splits import are_dates, hold_out, label_notes, make_folds, validation_mask


def test_held_out_clips_follow_groups_and_classes():
    targets = np.eye(3, dtype=np.float32)[np.arange(300) % 3]
    groups = [str(i // 5) for i in range(300)]
    rounds, notes = make_folds(
        [None] * 300, groups, [str(i) for i in range(300)], targets, valid_share=0.2, test_share=0.25, validate=True
    )
    (part,) = rounds
    sides = [part.train, part.valid, part.test]
    assert np.array_equal(np.sort(np.concatenate(sides)), np.arange(300))
    seen = [{groups[i] for i in side} for side in sides]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert abs(len(part.test) - 75) <= 10
    assert all(abs(targets[part.test, c].sum() - 25) <= 5 for c in range(3))
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("clips", "share", "held"), [(8, 0.15, 1), (4, 0.15, 1), (3, 0.15, 1), (2, 0.2, 0), (1, 0.2, 0)]
)
def test_small_classes_have_validation_clips(clips, share, held):
    targets = np.repeat(np.eye(5, dtype=np.float32), clips, 0)
    found = hold_out(np.arange(5 * clips), np.arange(5 * clips), targets, share)
    np.testing.assert_array_equal(targets[found].sum(0), [held] * 5)


def test_classes_that_cannot_be_held_out_are_named():
    targets = np.eye(3, dtype=np.float32)[[0] * 20 + [1] * 20 + [2] * 2]
    names = [str(i) for i in range(42)]
    _, notes = make_folds(
        [None] * 42, [None] * 42, names, targets,
        valid_share=0.15, test_share=0.0, validate=True, classes=("wren", "robin", "crake"),
    )  # fmt: skip
    assert notes == [
        "6 of 42 clips were held out for validation, by groups, classes evenly, "
        "but for 1 with too few groups of clips (crake)"
    ]


def test_validation_takes_whole_groups_where_there_are_enough():
    groups = np.repeat(list("abcdefghij"), 3)
    held = validation_mask(groups)
    assert held.sum() == 6
    assert not set(groups[held]) & set(groups[~held])
    assert 0 < validation_mask(np.repeat(["a", "b"], 50)).sum() < 50


def test_suspicious_labels_are_named():
    def notes(classes, counts, **options):
        targets = np.repeat(np.eye(len(classes)), counts, axis=0)
        return label_notes(classes, targets, **options)

    assert notes(["robin", "wren"], [9, 5]) == []
    (note,) = notes(["2024-05-01", "20240502", "03.05.2024", "5_6_2024", "2024-05-01_0430"], [9] * 5)
    assert note.startswith("the labels are dates (2024-05-01, 20240502, ")
    (note,) = notes(["background", "1", "2", "-3.5"], [9] * 4, background="background")
    assert note.startswith("the labels are numbers (1, 2, -3.5)")
    assert notes(["robin", "wren", "dunnock"], [9, 2, 4]) == [
        "2 classes are in fewer than 5 clips, too few to judge: wren (2), dunnock (4)"
    ]
    (note,) = notes([f"take {k}" for k in range(6)], [1] * 6)
    assert note.startswith("6 labels for 6 labeled clips (take 0, take 1, ")
    assert not any(are_dates([name]) for name in ("robin", "2024-15-01", "12", "site 2024"))
