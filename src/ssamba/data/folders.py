"""Labels and splits of recordings, read from the names of their folders."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from ssamba.audio.files import FoundAudio
from ssamba.errors import ConfigError, DataError
from ssamba.files import path_text
from ssamba.progress import counted
from ssamba.splits import are_dates, are_numbers

LabelsFrom: TypeAlias = Literal["folder"] | int
"""Where labels come from: `folder`, the level of folders that is the classes'; or the number of that level, from 1."""

_EXAMPLES = 3
_SPLITS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_FOLD = re.compile(r"fold[-_ ]?\d+", re.IGNORECASE)
_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Label and split of a recording, read from the names of its folders."""

    label: str | None
    """None if the recording is outside every class's folder."""
    split: str | None = None

    def __str__(self) -> str:
        return f"label {self.label}" + (f", split {self.split}" if self.split else "")


def read_places(files: Sequence[Path], labels: LabelsFrom = "folder") -> list[Place]:
    """Return the label and split of each file from the names of its folders, as it was found: links are not resolved.

    Levels of folders count from 1, below the folder that all files share. A level of splits (train, valid, test, or
    fold1, fold2, ...) is set aside; of the others, one is the classes':

    - if only one level has a folder for every file (`CLASS/a.wav`, `train/CLASS/a.wav`), that one;
    - else the only one whose names repeat across most of the folders above it (`SITE/DATE/CLASS/a.wav`; if there are
      several, the only one whose names are not dates or numbers), with a warning that says so.

    Files that are all in one folder have its name as their label.

    Args:
        files: as found.
        labels: `folder`, or the number of the level.

    Raises:
        ConfigError: there are several levels, and which one is the classes' is not clear, or the number is none of
            theirs; the message lists the levels with examples.
        DataError: links put a file (of what `find_audio` returned) into the folders of two classes or splits.
    """
    folders = [_folder(file) for file in files]
    renamed = list(files.renamed_files()) if isinstance(files, FoundAudio) else []
    every = [*folders, *(_folder(other) for _, other in renamed)]
    if len(set(every)) <= 1 and labels == "folder":
        return [Place(_label(folder.name)) for folder in folders]
    common = os.path.commonpath(every)
    levels = _Levels([folder.relative_to(common).parts for folder in every], Path(common))
    number = levels.choose() if labels == "folder" else levels.checked(labels)

    def place(folder: Path) -> Place:
        parts, split = folder.relative_to(common).parts, None
        if levels.split is not None and len(parts) > levels.split:
            split = _SPLITS.get(parts[levels.split].lower(), parts[levels.split])
        return Place(_label(parts[number]) if len(parts) > number else None, split)

    for file, other in renamed:
        own, another = place(_folder(file)), place(_folder(other))
        if None not in (own.label, another.label) and own != another:
            raise DataError(
                f"{file} ({own}) and {other} ({another}) are one file, through a link: remove one of them, so that it "
                "has one label and is in one split"
            )
    return [place(folder) for folder in folders]


class _Levels:
    """The levels of nested folders, numbered from 0."""

    def __init__(self, folders: Sequence[tuple[str, ...]], common: Path):
        """Take the names of the folders that each file is in, below the folder that all share."""
        self.common = common
        self.folders = set(folders)
        self.depth = max(map(len, folders))
        self.names = [sorted({parts[k] for parts in folders if len(parts) > k}) for k in range(self.depth)]
        self.split = next((k for k, names in enumerate(self.names) if _are_splits(names)), None)
        """The level of splits, if there is one."""
        others = [k for k in range(self.depth) if k != self.split]
        inside = [parts for parts in folders if others and len(parts) > others[0]]
        complete = [k for k in others if all(len(parts) > k for parts in inside)]
        self.complete = [k for k in complete if len(self.names[k]) > 1] or complete[:1]
        """Levels that have several names, and a folder for each file that is below any of them."""

    def choose(self) -> int:
        """Return the level of the classes."""
        if len(self.complete) < 2:
            return self.complete[0] if self.complete else self.depth
        found = [k for k in self.complete if self._repeats(k)]
        if len(found) > 1:
            found = [k for k in found if not are_dates(self.names[k]) and not are_numbers(self.names[k])]
        if len(found) != 1:
            raise ConfigError(
                f"{self.common}: its folders are nested, and which level names the classes is not clear:\n"
                f"{self._listed()}\nGive it: --labels-from LEVEL (from Python labels_from=LEVEL)"
            )
        _log.warning(
            "%s: labels are the names of level %d of its nested folders (--labels-from LEVEL takes another):\n%s",
            *(self.common, found[0] + 1, self._listed()),
        )
        return found[0]

    def checked(self, number: Any) -> int:
        """Return the level that a user numbered from 1."""
        if type(number) is not int or not 1 <= number <= self.depth or number - 1 == self.split:
            levels = f"the levels are\n{self._listed()}" if self.depth else "all recordings are in this folder itself"
            raise ConfigError(f"{self.common}: level {number!r} (labels-from) has no classes; {levels}")
        return number - 1

    def _repeats(self, k: int) -> bool:
        """Return whether the name of a folder of this level is, on average, in most of the folders above the level."""
        pairs = {(parts[:k], parts[k]) for parts in self.folders if len(parts) > k}
        above = len({parent for parent, _ in pairs})
        counts = Counter(name for _, name in pairs)
        return above > 1 and sum(count * count for count in counts.values()) > len(pairs) * above / 2

    def _listed(self) -> str:
        lines = []
        for k, names in enumerate(self.names):
            kind = ", the splits" if k == self.split else ""
            more = ", ..." if len(names) > _EXAMPLES else ""
            examples = ", ".join(map(path_text, names[:_EXAMPLES]))
            lines.append(f"  level {k + 1}: {examples}{more} ({counted(len(names), 'name')}{kind})")
        return "\n".join(lines)


def _are_splits(names: Sequence[str]) -> bool:
    lower = {name.lower() for name in names}
    has_splits = lower <= _SPLITS.keys() and "train" in {_SPLITS[name] for name in lower}
    return has_splits or all(_FOLD.fullmatch(name) for name in lower)


def _folder(file: Path) -> Path:
    return Path(os.path.abspath(file)).parent  # noqa: PTH100 - without `..`, and without resolving links


def _label(folder: str) -> str:
    """Return the name of a folder as a label: text, with composed accents, as people type it (macOS divides them)."""
    return unicodedata.normalize("NFC", path_text(folder))
