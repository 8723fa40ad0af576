"""Clips that are the very same recording under several names: they must not be on both sides of a split.

In memory the decoded samples are compared; files by their sizes and, where these agree, by their first and last 64 KiB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.corpus import Corpus
from ssamba.hashing import hash_bytes

MOST_FILES = 100_000
"""Files that are looked into at most; in a larger corpus that is not in memory, copies are not looked for."""
_END = 1 << 16


def copies_of(corpus: Corpus, files: Sequence[str]) -> tuple[str | None, ...]:
    """Of each clip, a name that it shares with clips that are the very same recording; None where there are none.

    Clips of silence, or of any constant value, are nobody's copies.

    Args:
        corpus: the clips (N).
        files: where each clip's audio is (N), as a path where it is a file of its own.
    """
    if corpus.in_memory:
        names = [_samples_digest(corpus, i) for i in range(len(corpus))]
    else:
        by_file = _file_digests([Path(file) for file in dict.fromkeys(files)])
        names = [by_file.get(file) for file in files]
    owners: dict[str | None, set[str]] = {}
    for name, file in zip(names, files, strict=True):
        owners.setdefault(name, set()).add(file)
    return tuple(name if name is not None and len(owners[name]) > 1 else None for name in names)


def _samples_digest(corpus: Corpus, i: int) -> str | None:
    samples = corpus.read(i)
    if not len(samples) or samples.min() == samples.max():
        return None
    return hash_bytes(samples.tobytes()).hex()


def _file_digests(paths: Sequence[Path]) -> dict[str, str]:
    """Of each file whose size another one has, too, what its size and ends are."""
    if len(paths) > MOST_FILES:
        return {}
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    shared = Counter(sizes.values())
    return {str(path): _ends_digest(path, size) for path, size in sizes.items() if shared[size] > 1}


def _ends_digest(path: Path, size: int) -> str:
    with path.open("rb") as file:
        data = str(size).encode() + file.read(_END)
        if size > _END:
            file.seek(max(_END, size - _END))
            data += file.read(_END)
    return hash_bytes(data).hex()
