"""Results of a resumable job by file, as JSON lines, from which its output is written.

While a job for `x.csv` runs, `x.csv.partial` gets a line for each finished file; a killed job loses at most the line
that it was writing. At the end the output is written from the lines, and they stay as `x.csv.run.jsonl`: they say how
the output was made and from which versions of the files, so that the same job adds new and changed files later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ssamba.files import write_atomically
from ssamba.hashing import file_checksum
from ssamba.library.store import ANEW, check_settings
from ssamba.library.tables import FileRecord, StoreError


@dataclass(frozen=True)
class Entry:
    """The result of one file."""

    record: FileRecord
    rows: list[dict[str, Any]]
    """Rows of the output, as JSON can hold them."""


class Journal:
    """Collects the results of one job and writes its output.

    Attributes:
        output: the output.
        partial: the results of a job that runs or was interrupted.
        finished: the results behind the output.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], verify: Callable[[], None] = lambda: None) -> None:
        """Start; nothing is written yet.

        Args:
            output: the file to write.
            settings: what the results depend on, with `model`, `weights_digest` and `config_hash`.
            verify: called before everything that is committed; raises if the output is not this process's any more.
        """
        self.output, self.settings, self.verify = output, settings, verify
        self.partial = output.with_name(f"{output.name}.partial")
        self.finished = output.with_name(f"{output.name}.run.jsonl")
        self.entries: dict[str, Entry] = {}
        self._replaces = False
        self._is_new = False
        self._file: IO[str] | None = None

    def open(self, overwrite: bool = False) -> None:
        """Take up what is there: an interrupted run, a finished output, or none. Nothing is written yet.

        Raises:
            OtherSettingsError: what is there was made with other settings, and `overwrite` was not asked for.
            StoreError: the output exists, and what it was made from is not known.
        """
        self._replaces = overwrite
        if overwrite:
            self.partial.unlink(missing_ok=True)
        elif self.partial.exists():
            header, self.entries = _read(self.partial)
            self._replaces = bool(header.get("replaces"))
            remedy = "the command of that run to resume it, or --overwrite (overwrite=True) to start anew"
            if self.entries:
                check_settings(header["settings"], self.settings, f"{self.partial} is of an interrupted run", remedy)
                self._is_new = True
        if self.output.exists() and not self._replaces and not self.entries:
            if not self.finished.exists():
                raise StoreError(
                    f"{self.output} exists, and {self.finished.name}, which would say how it was made, does not. "
                    f"Use {ANEW}"
                )
            header, self.entries = _read(self.finished)
            check_settings(header["settings"], self.settings, f"{self.output} was made")
            if header["digest"] != file_checksum(self.output):
                raise StoreError(f"{self.output} was changed after it was written, and would be replaced. Use {ANEW}")

    @property
    def records(self) -> dict[str, FileRecord]:
        """The files that are there, by key."""
        return {key: entry.record for key, entry in self.entries.items()}

    def add(self, entry: Entry) -> None:
        """Write the result of a file."""
        self.verify()
        if self._file is None:
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            header = {"settings": self.settings, "replaces": self._replaces}
            _write(self.partial, header, self.entries.values())  # also ends a line that was cut
            self._file = self.partial.open("a", encoding="utf-8")
        self._file.write(_line(entry))
        self._file.flush()
        self.entries[entry.record.key] = entry
        self._is_new = True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(
        self, order: Sequence[str], dropped: Collection[str], write: Callable[[Path, list[dict[str, Any]]], object]
    ) -> list[dict[str, Any]]:
        """Write the output, unless it is there and nothing changes, and return its rows.

        Args:
            order: keys of files; those that are there come first, in this order, then the others as they were.
            dropped: keys of files to leave out.
            write: writes rows to a path.
        """
        self.close()
        wanted = {key: self.entries[key] for key in order if key in self.entries}
        entries = [entry for key, entry in {**wanted, **self.entries}.items() if key not in dropped]
        if not self._is_new and not any(key in self.entries for key in dropped):
            return [row for entry in self.entries.values() for row in entry.rows]
        rows = [row for entry in entries for row in entry.rows]
        self.verify()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.output, lambda target: write(target, rows))
        _write(self.finished, {"settings": self.settings, "digest": file_checksum(self.output)}, entries)
        self.partial.unlink(missing_ok=True)
        return rows


def _line(entry: Entry) -> str:
    return json.dumps({**asdict(entry.record), "results": entry.rows}) + "\n"


def _write(path: Path, header: Mapping[str, Any], entries: Collection[Entry]) -> None:
    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8") as file:
            file.write(json.dumps(header) + "\n")
            file.writelines(map(_line, entries))
            file.flush()
            os.fsync(file.fileno())

    write_atomically(path, write)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    header: dict[str, Any] = {}
    entries: dict[str, Entry] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                values = json.loads(line)
            except ValueError:  # the line that a killed job was writing
                break
            if not header:
                header = values
                continue
            rows = values.pop("results")
            entry = Entry(FileRecord(**values), rows)
            entries[entry.record.key] = entry
    if "settings" not in header:
        raise StoreError(f"{path} is damaged: remove it to start anew")
    return header, entries
