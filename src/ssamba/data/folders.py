"""What the folders of recordings say: their class, and perhaps their split.

CLASS/.../a.wav             the first folder below what all recordings have in common is the class
train/CLASS/.../a.wav       where the first folders are splits (train, valid, test, or fold1, fold2, ...), the second is
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_SPLITS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_FOLD = re.compile(r"fold[-_ ]?\d+", re.IGNORECASE)


class Place(NamedTuple):
    """What the folders that a recording lies in say of it."""

    label: str | None
    """None where it lies in no class's folder."""
    split: str | None = None


def read_places(files: Sequence[Path]) -> list[Place]:
    """What the folders of each of the files say; files that all lie in one folder have its name for a label."""
    folders = [file.absolute().parent for file in files]
    if len(set(folders)) <= 1:
        return [Place(folder.name) for folder in folders]
    common = os.path.commonpath(folders)
    below = [folder.relative_to(common).parts for folder in folders]
    first = {parts[0].lower() for parts in below if parts}
    if first <= _SPLITS.keys() and "train" in {_SPLITS[name] for name in first}:
        return [_place(parts[1:], _SPLITS[parts[0].lower()] if parts else None) for parts in below]
    if all(_FOLD.fullmatch(name) for name in first):
        return [_place(parts[1:], parts[0] if parts else None) for parts in below]
    return [_place(parts) for parts in below]


def _place(parts: Sequence[str], split: str | None = None) -> Place:
    return Place(parts[0] if parts else None, split)
