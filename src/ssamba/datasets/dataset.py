"""The record that describes a public data set, and the helpers that read its files.

To add a data set, write a function that lists its clips from the tables that its authors publish, describe it by a
`PublicDataset` in a file of its own, and add it to `DATASETS` in `prepare.py`, which then checks which clips exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssamba.audio.files import Skipped, find_audio
from ssamba.data.manifest import Clip
from ssamba.errors import DataError, DatasetStructureError
from ssamba.progress import OnProgress
from ssamba.text_files import read_csv, read_text


@dataclass(frozen=True)
class Listing:
    """The clips that a data set should contain."""

    clips: Sequence[Clip]
    """Clips with labels, split and group; durations if a table states them."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their official numbers."""
    codes: tuple[str, ...] = ()
    """Other identifiers of the classes (AudioSet's), or none."""
    missing: Sequence[Skipped] = ()
    """Clips of the tables for which no file name is known."""
    notes: Sequence[str] = ()
    """Remarks for users."""


Render = Callable[[Sequence[Clip], Path, int, OnProgress | None, bool], tuple[list[Clip], list[Skipped]]]


@dataclass(frozen=True)
class PublicDataset:
    """A public data set: how to list its clips, and its published numbers."""

    name: str
    """Name in commands."""
    title: str
    """Name that its authors use, and the task."""
    reference: str
    """Where its structure and numbers are published."""
    structure: str
    """Folders and files that are read, as a tree."""
    list_clips: Callable[[Path], Listing]
    """Lists the clips below a folder; raises DatasetStructureError if the data set is not in it."""
    published: Mapping[str, int] = field(default_factory=dict)
    """Clips in each split."""
    num_classes: int = 0
    """Number of classes; 0 if it has no labels."""
    class_counts: Mapping[str, int] = field(default_factory=dict)
    """Clips in each class, if published."""
    archives: Mapping[str, str] = field(default_factory=dict)
    """Published checksums of the downloads by file name, `md5:...` or `sha256:...`."""
    splits_sharing_groups: frozenset[str] = frozenset()
    """Splits that share groups as published."""
    shared_groups: frozenset[str] = frozenset()
    """Groups that are in several splits as published."""
    balanced: bool = False
    """Whether it is usually trained with rare classes sampled more often."""
    render: Render | None = None
    """Writes new recordings made of the clips, and returns these and the clips that failed; see `render_scenes`."""


def find_root(source: Path, *markers: str) -> Path:
    """Return the folder that contains all of `markers`: `source`, or a folder in it.

    Raises:
        DatasetStructureError: there is none, or more than one.
    """
    if all((source / marker).exists() for marker in markers):
        return source
    found = [path for path in subfolders(source) if all((path / marker).exists() for marker in markers)]
    if len(found) > 1:
        raise DatasetStructureError(
            f"it contains several copies ({', '.join(p.name for p in found)}): name one of them"
        )
    if found:
        return found[0]
    absent = [marker for marker in markers if not (source / marker).exists()]
    raise DatasetStructureError(f"there is no {' and no '.join(absent)}")


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder that end in `suffix`, sorted, without hidden ones (such as `._` files of macOS)."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith("."))


def audio_below(folder: Path) -> list[Path]:
    """Return all audio files below a folder, sorted, without hidden ones; links are followed."""
    try:
        return find_audio([folder])
    except ValueError:  # there is none
        return []


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped, without empty ones.

    Raises:
        DataError: the file is missing or not text.
    """
    try:
        return [stripped for line in read_text(path).splitlines() if (stripped := line.strip())]
    except (OSError, DataError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Unpack it again from the data set's archive") from None


def read_table(path: Path, *columns: str) -> list[tuple[str, dict[str, str]]]:
    """Return (`line 2`, values by column) for each row of a CSV file whose first line names its columns.

    Raises:
        DataError: the file is missing, damaged or empty, or lacks one of `columns`.
    """
    try:
        table = read_csv(path, columns)
        table.require(*columns)
        rows = [(f"line {line}", {name: row[name].strip() for name in columns}) for line, row in table.rows()]
    except DataError as error:
        raise DataError(f"{error}. If it was not changed, unpack it again from the data set's archive") from None
    if not rows:
        raise DataError(f"{path}: holds no row. Unpack it again from the data set's archive")
    return rows


def whole_number(path: Path, where: str, name: str, text: str, low: int, high: int) -> int:
    """Return the number in a cell of a table.

    Raises:
        DataError: the cell holds no number, or one outside [low, high].
    """
    if not text.isdecimal() or not low <= int(text) <= high:
        raise DataError(f"{path}, {where}: {name} must be a number from {low} to {high}, got {text!r}")
    return int(text)


def add_class(classes: dict[int, str], number: int, name: str, where: str) -> None:
    """Add a class to `classes` by its number.

    Raises:
        DataError: the number already has another name.
    """
    if classes.setdefault(number, name) != name:
        raise DataError(f"{where}: class {number} is {name!r}, and was {classes[number]!r} before")
