"""A table in parts, Parquet files in a folder or at a URL, that a resumable job writes.

Every part is complete as soon as it is there, and says what it depends on; so a killed job loses what it had collected
since the last one, and nothing is joined at the end: tables may be larger than any disk of the machine that writes
them. A file has its rows in one part. If it has changed, its old rows are removed before the new ones are written: a
crash between the two leaves it for the next call, and never twice.
"""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.files import write_atomically
from ssamba.library.store import ANEW, check_settings
from ssamba.library.tables import (
    Array,
    FileRecord,
    PartsFolder,
    StoreError,
    arrow_schema,
    arrow_table,
    require_pyarrow,
)

_FLUSH_BYTES = 1 << 26
_FLUSH_S = 30.0


class PartsStore:
    """Collects the embeddings of one job and writes them as parts; see `ssamba.library.store.Store`."""

    def __init__(
        self,
        output: Path | str,
        folder: PartsFolder,
        settings: Mapping[str, Any],
        frames: bool,
        verify: Callable[[], None] = lambda: None,
    ) -> None:
        """Remember where to write; nothing is written yet.

        Args:
            output: the name of the folder, a path or a URL.
            folder: the folder.
            settings, frames, verify: as for `Store`.
        """
        require_pyarrow()
        self.output, self.frames, self.verify = output, frames, verify
        self.settings = {**settings, "frames": frames}
        self._folder = folder
        self._where: dict[str, tuple[FileRecord, str]] = {}
        self._pending: list[tuple[FileRecord, Array, Array | None]] = []
        self._pending_bytes = 0
        self._flushed_s = time.monotonic()
        self._token = secrets.token_hex(4)
        self._last_part = 0

    def open(self, overwrite: bool = False) -> None:
        """Take up the parts that are there, or remove them if `overwrite` is set.

        Raises:
            OtherSettingsError: they were made with other settings.
            StoreError: the folder holds something else.
        """
        parts = self._folder.parts()
        if not parts and (others := self._folder.others_and_parts()):
            raise StoreError(
                f"{self.output} holds {others[0]} and no part of a table: choose a new folder, or an empty one"
            )
        self._last_part = max((int(name.split("-")[1]) for name in parts), default=0)
        if overwrite:
            self.verify()
            for name in parts:
                self._remove(name)
            return
        for name, listing in self._folder.listings():
            check_settings(
                {**listing.settings, "frames": listing.frames}, self.settings, f"{self.output} was made", ANEW
            )
            self._where |= {record.key: (record, name) for record in listing.records}

    @property
    def records(self) -> dict[str, FileRecord]:
        """The files that are there, by key."""
        return {key: record for key, (record, _) in self._where.items()}

    def add(self, record: FileRecord, embedding: Array, times_s: Array | None) -> None:
        """Add the rows of a file, (rows, D), and the times of time steps, (rows,); written within half a minute."""
        self._pending.append((record, embedding, times_s))
        self._pending_bytes += embedding.nbytes
        if self._pending_bytes >= _FLUSH_BYTES or time.monotonic() - self._flushed_s > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last call as a part."""
        self._flushed_s = time.monotonic()
        if not self._pending:
            return
        self._drop([record.key for record, _, _ in self._pending])
        records = [record for record, _, _ in self._pending]
        embedding = np.concatenate([rows for _, rows, _ in self._pending])
        times_s = np.concatenate([times for _, _, times in self._pending if times is not None]) if self.frames else None
        self._last_part += 1
        name = f"part-{self._last_part:06d}-{self._token}.parquet"
        schema = arrow_schema(embedding.shape[1], self.settings, self.frames)
        of_rows = [record for record in records for _ in range(record.rows)]
        self._write(name, arrow_table(schema, of_rows, self.settings, embedding, times_s))
        self._where |= {record.key: (record, name) for record in records}
        self._pending, self._pending_bytes = [], 0

    def finish(self, order: Sequence[str], dropped: Collection[str] = ()) -> int:
        """Write what is left, remove the rows of dropped files, and return the number of rows; `order` is not kept."""
        self.flush()
        self._drop(dropped)
        return sum(record.rows for record, _ in self._where.values())

    def _drop(self, keys: Collection[str]) -> None:
        """Remove the rows of files from the parts that hold them."""
        by_part: dict[str, set[str]] = {}
        for key in keys:
            if key in self._where:
                by_part.setdefault(self._where.pop(key)[1], set()).add(key)
        for name, gone in by_part.items():
            rows = self._folder.read_arrow(name)
            pairs = zip(rows["absolute_path"].to_pylist(), rows["path"].to_pylist(), strict=True)
            rows = rows.filter([(real or path) not in gone for real, path in pairs])
            if len(rows):
                self._write(name, rows)
            else:
                self.verify()
                self._remove(name)

    def _write(self, name: str, rows: Any) -> None:
        from pyarrow import parquet

        self.verify()
        place = self._folder.place.below(name)
        if isinstance(self.output, Path):
            self.output.mkdir(parents=True, exist_ok=True)
            write_atomically(self.output / name, lambda path: parquet.write_table(rows, path))
            return
        content = io.BytesIO()
        parquet.write_table(rows, content)
        place.fs.pipe_file(place.path, content.getvalue())  # there at once and whole, or not

    def _remove(self, name: str) -> None:
        place = self._folder.place.below(name)
        place.fs.rm_file(place.path)
