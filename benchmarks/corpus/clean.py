"""Copy a corpus without the clips that a suite holds.

    python -m benchmarks.corpus.clean open_audio/pretrain/ -o runs/first-corpus/ --exclude suite/

Games share sounds, in other codecs and at other levels, so that a hash does not tell that a clip of one package is a
clip of another. Each clip of the corpus, a folder of tars, is compared with the suite's as `benchmarks.corpus` does;
the tars are copied without those that are found, which are listed in NEW/left_out.csv. A table beside the tars,
index.csv (columns `key` and `package`), groups clips by their package. A killed job goes on with the tars that are
missing. Exit codes: 0 done; 1 an error; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from rich.markup import escape

from benchmarks.corpus.build import find_known, signatures_of
from benchmarks.open_suite.__main__ import exit_with_code
from benchmarks.open_suite.packages import is_sound
from benchmarks.open_suite.synthesis import RATE_HZ
from benchmarks.proxy_suite.known import KnownClips
from ssamba.audio.decode import AudioBytes, decode
from ssamba.audio.files import Skipped, write_skipped
from ssamba.cli.app import log_to_stderr, out
from ssamba.cli.progress import ProgressDisplay
from ssamba.data.shard_index import shard_files
from ssamba.data.shards import add_member
from ssamba.errors import DataError
from ssamba.files import write_atomically
from ssamba.progress import Progress, counted


def clean_corpus(
    corpus: Path, output: Path, known: KnownClips, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Skipped]:
    """Copy the tars of a corpus to a folder without the clips that are known; return those with the reason.

    Raises:
        DataError: the folder holds no tars, or both folders are the same. AudioDecodeError: a clip is damaged.
    """
    tars = shard_files(corpus)
    if not tars:
        raise DataError(f"{corpus}: holds no tars. Expected a corpus as `ssamba shard` writes it")
    if corpus.resolve() == output.resolve():
        raise DataError(f"{output} is the corpus itself: choose another output")
    output.mkdir(parents=True, exist_ok=True)
    packages = _packages(corpus / "index.csv")
    left_out: list[Skipped] = []
    for done, path in enumerate(tars):
        on_progress(done, len(tars))
        copy = output / path.name
        if copy.is_file():
            left_out += _missing(path, copy)
            continue
        found = dict(_known_clips(path, known))
        write_atomically(copy, partial(_copy, path, left_out=found, packages=packages))
        left_out += [Skipped(name, f"{path.name}: {name} {reason}") for name, reason in found.items()]
    write_skipped(output / "left_out.csv", left_out)
    return left_out


def _known_clips(path: Path, known: KnownClips) -> Iterator[tuple[str, str]]:
    """Yield the name without suffix of each clip that is known, and the reason."""
    for name, data in _clips(path):
        samples = decode(AudioBytes(name, data), sample_rate_hz=RATE_HZ)
        if not samples.any():
            continue
        if match := find_known(signatures_of(samples, name), known):
            yield _stem(name), match


def _clips(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and is_sound(member.name):
                file = tar.extractfile(member)
                assert file is not None, "a regular file has contents"
                yield member.name, file.read()


def _packages(index: Path) -> dict[str, str]:
    """Return the package of each clip by key; empty if no table names any."""
    if not index.is_file():
        return {}
    with index.open(encoding="utf-8", newline="") as file:
        return {row["key"]: row["package"] for row in csv.DictReader(file) if row.get("key") and row.get("package")}


def _copy(path: Path, target: Path, left_out: Mapping[str, str], packages: Mapping[str, str]) -> None:
    with tarfile.open(path) as tar, tarfile.open(target, "w") as copy:
        described = {_stem(name) for name in tar.getnames() if name.endswith(".json")}
        for member in tar:
            stem = _stem(member.name)
            if not member.isfile() or stem in left_out:
                continue
            file = tar.extractfile(member)
            assert file is not None, "a regular file has contents"
            copy.addfile(member, io.BytesIO(file.read()))
            if is_sound(member.name) and stem in packages and stem not in described:
                add_member(copy, f"{stem}.json", json.dumps({"group": packages[stem]}).encode())


def _missing(path: Path, copy: Path) -> list[Skipped]:
    """Return the clips that an earlier call left out."""
    with tarfile.open(path) as tar, tarfile.open(copy) as copied:
        there = set(copied.getnames())
        gone = [name for name in tar.getnames() if is_sound(name) and name not in there]
    return [Skipped(_stem(name), f"{path.name}: {_stem(name)} was left out by an earlier call") for name in gone]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy a corpus as the command line says."""
    log_to_stderr()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corpus.clean",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", type=Path, help="folder of tars")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the copy")
    parser.add_argument(
        "--exclude", type=Path, action="append", required=True, help="folder of a suite; may be repeated"
    )
    args = parser.parse_args(arguments)
    known = KnownClips.read(args.exclude)
    with ProgressDisplay() as show:
        left_out = clean_corpus(
            args.corpus, args.output, known, lambda done, total: show(Progress("comparing", done, total, "tars"))
        )
    out.print(
        f"{counted(len(left_out), 'clip')} left out, compared with {counted(len(known.names), 'excluded clip')}: "
        f"{escape(str(args.output))}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    exit_with_code(main)
