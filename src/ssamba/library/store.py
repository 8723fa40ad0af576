"""Where bulk embeddings are written: parts while a job runs, one file at its end.

Beside the output `x.npz` a job keeps a folder `x.npz.partial` with its settings and its parts: each part is the
embeddings of some files (`part-N.npy`, and `part-N.times.npy` for frames) and a list of these files (`part-N.json`,
written last, so that a part without it does not count). A killed job loses at most the part it was collecting. At the
end the parts are put together in the order of the inputs under a temporary name, renamed, and the folder is removed.

Rows are files, or time steps with `frames`; never are all of them in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.checkpoint.files import read_json, write_json
from ssamba.library.tables import (
    FORMATS,
    Array,
    FileRecord,
    Rows,
    StoreError,
    read_embeddings,
    require_pyarrow,
    write_table,
)

_SETTINGS_FILE = "run.json"


class Store:
    """The parts of one job, and the writing of its output."""

    def __init__(self, output: str | Path, settings: Mapping[str, Any], frames: bool):
        """Check the output's name; nothing is written yet.

        Args:
            output: the file to make; its suffix chooses the format.
            settings: what the embeddings depend on; parts of other settings are never mixed in. `model`, `window_s` and
                `config_hash` among them become columns.
            frames: one row for each time step instead of each file.

        Raises:
            StoreError: an unknown suffix.
            MissingExtraError: the format needs pyarrow.
        """
        self.output = Path(output)
        self.settings = {**settings, "frames": frames}
        self.frames = frames
        if self.output.suffix not in FORMATS:
            raise StoreError(f"{self.output}: expected a file name that ends in {', '.join(FORMATS)}")
        self.partial = self.output.with_name(self.output.name + ".partial")
        if self.output.suffix != ".npz":
            require_pyarrow()
        self._rows: dict[str, Rows] = {}
        self._pending: list[tuple[FileRecord, Array, Array]] = []

    def open(self, resume: bool, overwrite: bool) -> None:
        """Make ready to add files: afresh, or after what an earlier run left.

        Raises:
            StoreError: there is an output or an interrupted run already and neither `resume` nor `overwrite` was
                asked for; or `resume` finds other settings.
        """
        if self.output.is_dir():
            raise StoreError(f"{self.output} is a folder: give the name of a file in it, such as embeddings.npz")
        if overwrite:
            shutil.rmtree(self.partial, ignore_errors=True)
        count = sum(len(_read_part(part)) for part in self.partial.glob("part-*.json"))
        if not count:
            shutil.rmtree(self.partial, ignore_errors=True)  # of a run that was killed before it had anything
        elif not resume:
            raise StoreError(
                f"{self.partial} holds {count} files of an interrupted run: --resume goes on with it, "
                "--overwrite starts again"
            )
        finished = None
        if self.output.exists() and not overwrite:
            if not resume:
                raise StoreError(
                    f"{self.output} exists: --resume adds the files that are not in it, --overwrite replaces it"
                )
            finished = self._finished_output()
        self.partial.mkdir(parents=True, exist_ok=True)
        self._check_settings()
        for part in sorted(self.partial.glob("part-*.json")):
            self._index(part)
        if finished is not None:
            self._import(finished)

    def done(self, path: str, file_bytes: int, modified_ns: int) -> bool:
        """Whether this very file (same size and time) is embedded already."""
        rows = self._rows.get(path)
        return rows is not None and (rows.record.file_bytes, rows.record.modified_ns) == (file_bytes, modified_ns)

    def add(self, record: FileRecord, embedding: Array, times_s: Array) -> None:
        """Take a file's rows (rows, D) and their times (rows,); they are on disk after the next `flush`."""
        self._pending.append((record, embedding, times_s))

    @property
    def num_pending(self) -> int:
        """Files that are not on disk yet."""
        return len(self._pending)

    def flush(self) -> None:
        """Write what was added since the last time as a part."""
        if not self._pending:
            return
        numbers = [int(part.stem.removeprefix("part-")) for part in self.partial.glob("part-*.json")]
        part = self.partial / f"part-{max(numbers, default=0) + 1:06d}.npy"
        np.save(part, np.concatenate([rows for _, rows, _ in self._pending]))
        if self.frames:
            np.save(part.with_suffix(".times.npy"), np.concatenate([times for _, _, times in self._pending]))
        write_json(part.with_suffix(".json"), {"files": [asdict(record) for record, _, _ in self._pending]})
        self._index(part.with_suffix(".json"))
        self._pending = []

    def finish(self, order: Sequence[str]) -> int:
        """Write the output, remove the parts, return the number of rows.

        The files of `order` come first (those that were embedded), then what earlier runs embedded besides.
        """
        self.flush()
        wanted = {path: self._rows[path] for path in order if path in self._rows}
        rows = list({**wanted, **self._rows}.values())
        # Written among the parts, so that what a killed run leaves is in one place, and renamed.
        target = self.partial / f"output{self.output.suffix}"
        write_table(target, rows, self.settings, self.frames)
        target.replace(self.output)
        shutil.rmtree(self.partial)
        return sum(entry.record.rows for entry in rows)

    def _check_settings(self) -> None:
        file = self.partial / _SETTINGS_FILE
        if not file.exists():
            write_json(file, self.settings)
            return
        before = read_json(file)
        # The hash stands for the weights; the path that they were loaded from may be written in many ways.
        keys = {*before, *self.settings} - {"model"}
        changed = sorted(key for key in keys if before.get(key) != self.settings.get(key))
        if changed:
            what = "; ".join(f"{key} was {before.get(key)!r}, is {self.settings.get(key)!r}" for key in changed)
            raise StoreError(f"{self.partial} is of a run with other settings ({what}): --overwrite starts again")

    def _index(self, part: Path) -> None:
        first = 0
        records = _read_part(part)
        if not _part_is_whole(part.with_suffix(".npy"), sum(record.rows for record in records)):
            return  # a machine that went down may leave such a part: its files are embedded again
        for record in records:
            self._rows[record.path] = Rows(record, part.with_suffix(".npy"), first)
            first += record.rows

    def _finished_output(self) -> dict[str, Array]:
        table = read_embeddings(self.output)
        if str(table["config_hash"]) != self.settings["config_hash"] or ("time_s" in table) != self.frames:
            raise StoreError(f"{self.output} was made with another model or other settings: --overwrite replaces it")
        return table

    def _import(self, table: dict[str, Array]) -> None:
        """Take over the rows of a finished output, so that more files can join them."""
        counts = np.bincount(table["file"], minlength=len(table["path"]))
        first = 0
        for index, rows in enumerate(counts.tolist()):
            record = FileRecord(
                str(table["path"][index]),
                int(table["file_bytes"][index]),
                int(table["modified_ns"][index]),
                float(table["duration_s"][index]),
                rows,
            )
            if record.path not in self._rows:
                times = table["time_s"][first : first + rows] if self.frames else np.zeros(rows)
                self.add(record, table["embedding"][first : first + rows], times)
            first += rows
        self.flush()


def _part_is_whole(part: Path, rows: int) -> bool:
    try:
        return len(np.load(part, mmap_mode="r")) == rows
    except (OSError, ValueError, EOFError):
        return False


def _read_part(part: Path) -> list[FileRecord]:
    return [FileRecord(**record) for record in json.loads(part.read_text(encoding="utf-8"))["files"]]
