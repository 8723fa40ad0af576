"""Clips of a task made one by one and written as `TASK.tar` and `TASK.csv`, each whole or not there.

Recordings that are in two splits, to the bit, are counted: they flatter a score a little. They stay, because the suite as it was
published has them, and scores are to be compared.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.open_suite.instruments import Note, cut_note
from benchmarks.open_suite.labels import Label
from benchmarks.open_suite.sounds import as_clip, as_opus, digest, read_clip
from benchmarks.open_suite.words import Utterance
from ssamba.audio.files import Skipped
from ssamba.audio.readers import Samples
from ssamba.errors import AudioDecodeError, DataError, WorkerDiedError
from ssamba.files import write_atomically
from ssamba.worker_pool import map_in_processes


@dataclass(frozen=True)
class Source:
    """What a clip is made of: a file as it is, an utterance to be spoken, or a note to be cut out of one."""

    name: str
    label: Label
    place: Path
    """The file; for an utterance, the folder to speak to."""
    longest_s: float
    made: Utterance | Note | None = None


@dataclass(frozen=True)
class Written:
    """A task that was written."""

    clips: int
    classes: int
    skipped: tuple[Skipped, ...]
    repeated: int
    """Clips that are the same recording as one of another split."""


def write_task(
    name: str, sources: Sequence[Source], folder: Path, workers: int, on_clip: Callable[[int, int], None]
) -> Written:
    """Write the clips of a task, in the order given, to `folder/NAME.tar` and then `folder/NAME.csv`.

    Raises:
        DataError: a program that makes a clip fails, or no clip can be read.
        MissingExtraError: a recording needs codecs that are not installed.
    """
    table, archive = folder / f"{name}.csv", folder / f"{name}.tar"
    rows: list[tuple[str, str, str, str]] = []
    skipped: list[Skipped] = []
    split_of: dict[str, str] = {}
    repeated = 0

    def write(target: Path) -> None:
        nonlocal repeated
        with tarfile.open(target, "w") as tar:
            for source, key, data in _made(sources, workers, skipped, lambda done: on_clip(done, len(sources))):
                member = tarfile.TarInfo(f"{name}/{len(rows):05d}.opus")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                repeated += split_of.setdefault(key, source.label.split) != source.label.split
                rows.append((member.name, source.label.label, source.label.split, source.label.group))
        if not rows:
            raise DataError(
                f"{name}: none of its {len(sources)} clips can be read. {skipped[0].reason if skipped else ''}"
            )

    table.unlink(missing_ok=True)  # it says that the archive is whole
    write_atomically(archive, write)
    write_atomically(table, lambda target: _write_table(target, rows))
    return Written(len(rows), len({row[1] for row in rows}), tuple(skipped), repeated)


def _made(
    sources: Sequence[Source], workers: int, skipped: list[Skipped], on_clip: Callable[[int], None]
) -> Iterator[tuple[Source, str, bytes]]:
    for done, (source, made) in enumerate(map_in_processes(make_clip, sources, workers), 1):
        on_clip(done)
        if isinstance(made, WorkerDiedError):
            skipped.append(Skipped(source.name, f"{source.name}: the decoder crashed on it, so it is damaged"))
        elif isinstance(made, AudioDecodeError):
            skipped.append(Skipped(source.name, f"{source.name}: {made}"))
        else:
            yield source, *made


def make_clip(source: Source) -> tuple[str, bytes] | AudioDecodeError:
    """The digest of a clip's samples and its Opus file, or why it cannot be read."""
    try:
        samples = _samples(source)
        return digest(samples), as_opus(samples)
    except AudioDecodeError as error:
        return error


def _samples(source: Source) -> Samples:
    if isinstance(source.made, Utterance):
        return read_clip(source.made.speak(source.place), source.longest_s)
    if isinstance(source.made, Note):
        return as_clip(cut_note(source.place, source.made), source.longest_s, source.name)
    return read_clip(source.place, source.longest_s)


def _write_table(target: Path, rows: Sequence[Sequence[str]]) -> None:
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("clip", "label", "split", "group"))
        writer.writerows(rows)
