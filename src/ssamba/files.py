"""Write files atomically, so that a killed writer never leaves half a file."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's umask; some writers are stricter
        write(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def move_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Move files of a folder to a new folder beside it (`NAME.old`, `NAME.old-2`, ...), in this order.

    Returns:
        The new folder; None if there was nothing to move.
    """
    found = [name for name in names if (folder / name).exists()]
    if not found:
        return None
    number, target = 1, folder.with_name(f"{folder.name}.old")
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.old-{number}")
    target.mkdir()
    for name in found:
        (folder / name).rename(target / name)
    return target


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file atomically; create its folder if necessary."""

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
