"""The tables that bulk embedding writes, in three formats, and reading them back.

Rows are files, or time steps when there is a `time_s` column. Rows stream from the parts of a job to the file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.errors import MissingExtraError, SsambaError

Array = np.ndarray[Any, Any]
FORMATS = (".npz", ".parquet", ".csv")
_ROWS_AT_ONCE = 65_536


class StoreError(SsambaError, ValueError):
    """An output exists already, belongs to another run, or cannot be read."""


@dataclass(frozen=True)
class FileRecord:
    """What is known of an embedded file, besides its vectors."""

    path: str
    file_bytes: int
    modified_ns: int
    duration_s: float
    rows: int


@dataclass(frozen=True)
class Rows:
    """Where a file's rows are."""

    record: FileRecord
    part: Path
    first: int

    def embedding(self) -> Array:
        """(rows, D)."""
        return _slice(self.part, self.first, self.record.rows)

    def times_s(self) -> Array:
        """(rows,)."""
        return _slice(self.part.with_suffix(".times.npy"), self.first, self.record.rows)


def _slice(path: Path, first: int, count: int) -> Array:
    rows: Array = np.load(path, mmap_mode="r")[first : first + count]
    return rows


def write_table(target: Path, rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> None:
    """Write the rows of files to `target`, in the format of its suffix.

    `model`, `window_s` and `config_hash` of the settings become columns (scalars in .npz).
    """
    writers = {".npz": _write_npz, ".parquet": _write_parquet, ".csv": _write_csv}
    writers[target.suffix](target, rows, settings, frames)


def _write_npz(target: Path, rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> None:
    records = [entry.record for entry in rows]
    members: dict[str, Array] = {
        "path": np.array([r.path for r in records], dtype=np.str_),
        "duration_s": np.array([r.duration_s for r in records], dtype=np.float64),
        "file_bytes": np.array([r.file_bytes for r in records], dtype=np.int64),
        "modified_ns": np.array([r.modified_ns for r in records], dtype=np.int64),
        "file": np.repeat(np.arange(len(records)), [r.rows for r in records]),
        **{key: np.array(settings[key]) for key in ("model", "window_s", "config_hash")},
        "settings": np.array(json.dumps(settings)),
    }
    if frames:
        members["time_s"] = np.concatenate([np.zeros(0, np.float32), *(entry.times_s() for entry in rows)])
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        dim = rows[0].embedding().shape[1] if rows else 0
        header = {"descr": "<f4", "fortran_order": False, "shape": (sum(r.rows for r in records), dim)}
        with archive.open("embedding.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for entry in rows:
                member.write(np.ascontiguousarray(entry.embedding(), dtype="<f4").tobytes())


def _write_parquet(target: Path, rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> None:
    pa = require_pyarrow()
    from pyarrow import parquet

    dim = rows[0].embedding().shape[1] if rows else 0
    schema = _schema(pa, frames).append(pa.field("embedding", pa.list_(pa.float32(), dim)))
    schema = schema.with_metadata({"settings": json.dumps(settings)})
    with parquet.ParquetWriter(target, schema) as writer:
        for columns, embedding in _batches(rows, settings, frames):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), dim)
            writer.write_table(pa.table([*columns.values(), vectors], schema=schema))


def _write_csv(target: Path, rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> None:
    pa = require_pyarrow()
    from pyarrow import csv

    dim = rows[0].embedding().shape[1] if rows else 0
    schema = _schema(pa, frames)
    for index in range(dim):
        schema = schema.append(pa.field(f"e{index}", pa.float32()))
    with csv.CSVWriter(target, schema) as writer:
        for columns, embedding in _batches(rows, settings, frames):
            vectors = [pa.array(np.ascontiguousarray(column)) for column in embedding.T]
            writer.write_table(pa.table([*columns.values(), *vectors], schema=schema))


def _schema(pa: Any, frames: bool) -> Any:
    fields = [("path", pa.string()), *([("time_s", pa.float32())] if frames else [])]
    fields += [("duration_s", pa.float64()), ("window_s", pa.float64()), ("model", pa.string())]
    fields += [("config_hash", pa.string()), ("file_bytes", pa.int64()), ("modified_ns", pa.int64())]
    return pa.schema(fields)


def _batches(rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> Iterator[tuple[dict[str, Any], Array]]:
    """Columns in the schema's order, and embeddings, of some tens of thousands of rows at a time."""
    group: list[Rows] = []
    count = 0
    for index, entry in enumerate(rows):
        group.append(entry)
        count += entry.record.rows
        if count < _ROWS_AT_ONCE and index + 1 < len(rows):
            continue
        repeats = [e.record.rows for e in group]

        def column(values: list[Any], repeats: list[int] = repeats) -> list[Any]:
            return [value for value, times in zip(values, repeats, strict=True) for _ in range(times)]

        columns: dict[str, Any] = {"path": column([e.record.path for e in group])}
        if frames:
            columns["time_s"] = np.concatenate([e.times_s() for e in group]).astype(np.float32)
        columns["duration_s"] = column([e.record.duration_s for e in group])
        for key in ("window_s", "model", "config_hash"):
            columns[key] = [settings[key]] * count
        columns["file_bytes"] = column([e.record.file_bytes for e in group])
        columns["modified_ns"] = column([e.record.modified_ns for e in group])
        yield columns, np.concatenate([e.embedding() for e in group]).astype(np.float32)
        group, count = [], 0


def require_pyarrow() -> Any:
    """The pyarrow module, or a MissingExtraError."""
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError(
            'Parquet and CSV need pyarrow: pip install "ssamba[store]", or write a .npz file instead'
        ) from None
    return pyarrow


def read_embeddings(path: str | Path) -> dict[str, Array]:
    """What `ssamba embed` wrote, from any of its formats, as arrays.

    Returns:
        `embedding` (rows, D); `path`, `duration_s`, `file_bytes`, `modified_ns` (files,); `file` (rows,), each row's
        index into these; `time_s` (rows,) when rows are time steps; and the scalars `model`, `window_s`, `config_hash`.

    Raises:
        StoreError: the file is missing or was not written by `ssamba embed`.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path}: no such file. Expected what `ssamba embed -o` wrote")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                table = {name: archive[name] for name in archive.files}
        else:
            table = _read_rows(path)
        needed = ("embedding", "path", "duration_s", "file", "model", "config_hash")
        missing = [name for name in needed if name not in table]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is damaged or was not written by `ssamba embed` ({error})") from None
    if missing:
        raise StoreError(f"{path} was not written by `ssamba embed`: {', '.join(missing)} missing")
    return table


def _read_rows(path: Path) -> dict[str, Array]:
    require_pyarrow()
    if path.suffix == ".parquet":
        from pyarrow import parquet

        rows = parquet.read_table(path)
        vectors = rows["embedding"].combine_chunks()
        embedding = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
    else:
        from pyarrow import csv

        rows = csv.read_csv(path)
        names = [name for name in rows.column_names if name[0] == "e" and name[1:].isdigit()]
        embedding = np.stack([rows[name].to_numpy() for name in names], axis=1).astype(np.float32)
    paths = rows["path"].to_pylist()
    starts = [i for i, name in enumerate(paths) if i == 0 or name != paths[i - 1]]
    table = {"embedding": embedding, "path": np.array([paths[i] for i in starts])}
    table["file"] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(paths)]))
    for name in ("duration_s", "file_bytes", "modified_ns"):
        table[name] = rows[name].to_numpy()[starts]
    for name in ("model", "window_s", "config_hash"):
        table[name] = np.array(rows[name][0].as_py() if len(rows) else "")
    if "time_s" in rows.column_names:
        table["time_s"] = rows["time_s"].to_numpy()
    return table
