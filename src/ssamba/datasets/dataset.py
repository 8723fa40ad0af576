"""What is known of a public data set, and how one is read: the parts that every dataset is made of.

A dataset knows the folder structure that the data set's authors publish, and their numbers. It lists every clip that
there should be, from their tables where there are some; `prepare.py` then looks which of them are there.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssamba.audio.files import AUDIO_SUFFIXES, Skipped
from ssamba.data.manifest import Clip, ScanProgress
from ssamba.errors import DataError, DatasetStructureError


@dataclass(frozen=True)
class Listing:
    """The clips that a data set should hold."""

    clips: Sequence[Clip]
    """With labels, split and group; durations where a table states them."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their official numbers."""
    codes: tuple[str, ...] = ()
    """What else the data set calls each class (AudioSet's identifiers), or none."""
    missing: Sequence[Skipped] = ()
    """Clips of its tables for which there is not even a file name."""
    notes: Sequence[str] = ()
    """What a user should know."""


OnProgress = Callable[[ScanProgress], None]
Render = Callable[[Sequence[Clip], Path, int, OnProgress | None], tuple[list[Clip], list[Skipped]]]


@dataclass(frozen=True)
class PublicDataset:
    """A public data set."""

    name: str
    """What users call it."""
    title: str
    """What its authors call it, and the task."""
    reference: str
    """Where its structure and numbers are published."""
    structure: str
    """The folders and files that are read, as a tree."""
    list_clips: Callable[[Path], Listing]
    """Lists the clips below a folder; raises DatasetStructureError where the data set is not in it."""
    published: Mapping[str, int] = field(default_factory=dict)
    """Clips of each split."""
    num_classes: int = 0
    """Classes; 0 where it has no labels."""
    class_counts: Mapping[str, int] = field(default_factory=dict)
    """Clips of each class, where they are published."""
    archives: Mapping[str, str] = field(default_factory=dict)
    """Published checksums of the downloads, `md5:...` or `sha256:...`."""
    splits_sharing_groups: frozenset[str] = frozenset()
    """Splits that its authors let share groups."""
    balanced: bool = False
    """Whether it is trained with clips of rare classes drawn more often."""
    render: Render | None = None
    """Makes new recordings of the clips: (clips, folder to write to, processes, progress) -> clips, what failed."""


def find_root(source: Path, *markers: str) -> Path:
    """The folder that holds all of `markers`: `source`, or one in it.

    Raises:
        DatasetStructureError: there is none, or more than one.
    """
    if all((source / marker).exists() for marker in markers):
        return source
    found = [path for path in subfolders(source) if all((path / marker).exists() for marker in markers)]
    if len(found) > 1:
        raise DatasetStructureError(f"several copies are in it ({', '.join(p.name for p in found)}): name one of them")
    if found:
        return found[0]
    absent = [marker for marker in markers if not (source / marker).exists()]
    raise DatasetStructureError(f"there is no {' and no '.join(absent)}")


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, but for hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder that end in `suffix`, sorted, but for hidden ones (some archives hold macOS's `._` files)."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith("."))


def audio_below(folder: Path) -> Iterator[Path]:
    """Every audio file below a folder, but for hidden ones."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES:  # noqa: PTH122 - fast
                yield Path(root, name)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, stripped.

    Raises:
        DataError: it is missing or not text.
    """
    try:
        return [stripped for line in path.read_text(encoding="utf-8").splitlines() if (stripped := line.strip())]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Unpack it again from the data set's archive") from None


def read_table(path: Path, *columns: str) -> list[tuple[str, dict[str, str]]]:
    """(`line 2`, values by column) for each row of a CSV file whose first line names its columns.

    Raises:
        DataError: it is missing, damaged, or lacks one of `columns`.
    """
    rows: list[tuple[str, dict[str, str]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [name for name in columns if name not in (reader.fieldnames or ())]
            if absent:
                names = ", ".join(reader.fieldnames or ()) or "none"
                raise DataError(f"{path}: no column {absent[0]!r} (there are: {names}). Expected {', '.join(columns)}")
            for row in reader:
                where = f"line {reader.line_num}"
                if any(row[name] is None for name in columns) or None in row:
                    raise DataError(f"{path}, {where}: not as many values as columns. The file is cut off or changed")
                rows.append((where, {name: row[name].strip() for name in columns}))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Unpack it again from the data set's archive") from None
    if not rows:
        raise DataError(f"{path}: holds no row. Unpack it again from the data set's archive")
    return rows


def whole_number(path: Path, where: str, name: str, text: str, low: int, high: int) -> int:
    """A number of a table.

    Raises:
        DataError: it is none, or outside [low, high].
    """
    if not text.isdecimal() or not low <= int(text) <= high:
        raise DataError(f"{path}, {where}: {name} must be a number from {low} to {high}, got {text!r}")
    return int(text)


def add_class(classes: dict[int, str], number: int, name: str, where: str) -> None:
    """Note the name of a class.

    Raises:
        DataError: the number has another name already.
    """
    if classes.setdefault(number, name) != name:
        raise DataError(f"{where}: class {number} is {name!r}, and was {classes[number]!r} before")
