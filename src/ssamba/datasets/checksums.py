"""Published checksums of a data set's downloads, where the archives still lie beside what was unpacked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ssamba.errors import DataError
from ssamba.hashing import file_checksum


def verify_archives(folder: Path, archives: Mapping[str, str]) -> list[str]:
    """Compare the archives that are in `folder` with their checksums.

    Args:
        folder: where the data set is.
        archives: `md5:...` or `sha256:...` by file name.

    Returns:
        The names of those that were there, all of them whole.

    Raises:
        DataError: one differs.
    """
    checked = []
    for name, expected in archives.items():
        path = folder / name
        if not path.is_file():
            continue
        algorithm, _, digest = expected.partition(":")
        found = file_checksum(path, algorithm)
        if found != digest:
            raise DataError(
                f"{path}: its {algorithm} is {found}, published is {digest}: the download is damaged, and "
                "what was unpacked from it may be. Fetch and unpack it again"
            )
        checked.append(name)
    return checked
