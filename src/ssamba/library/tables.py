"""Tables of embeddings as files: NPZ, Parquet and CSV, written and read back.

Rows are files, or time steps if there is a column `time_s`. Besides the embeddings a table holds, for each file, its
path as given, its absolute path, size and time (so that the same command recognizes it), its duration, and how the
embeddings were made: the model, `config_hash` (a digest of everything they depend on) and `settings` (JSON).

Tables of earlier versions lack some columns. A missing size or time counts as unchanged; a missing absolute path is the
path as seen from the current folder; without `config_hash` a table can be read, not continued.

Shapes: D channels.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ssamba.errors import MissingExtraError, SsambaError
from ssamba.files import RealPaths, json_text, path_from_text, path_text, user_path
from ssamba.library.storage import Place, reading, url_of

Array = np.ndarray[Any, Any]
FORMATS = (".npz", ".parquet", ".csv")
UNKNOWN = -1
"""Size and time of a file in a table that does not hold them."""

_BATCH_BYTES = 1 << 24
"""Embeddings that are read and written at once."""
_ARROW_ROWS = 16_384
_PER_FILE = ("path", "absolute_path", "file_bytes", "modified_ns", "duration_s")
_PER_TABLE = ("model", "weights_digest", "window_s", "config_hash")
_PART = re.compile(r"part-\d{6,}-[0-9a-f]+\.parquet")
_READERS = 16
"""Parts that are read at the same time."""


class StoreError(SsambaError, ValueError):
    """A table cannot be read, written or continued."""


@dataclass(frozen=True)
class FileRecord:
    """Metadata of an embedded file."""

    path: str
    """As it was given first."""
    file_bytes: int
    modified_ns: int
    duration_s: float
    rows: int
    absolute_path: str = ""
    """Resolved: two records with the same one are of the same file."""

    @property
    def key(self) -> str:
        """Identity of the file."""
        return self.absolute_path or self.path

    def is_unchanged(self, file_bytes: int, modified_ns: int) -> bool:
        """Return whether a file of this size and time is the one that was embedded."""
        return self.file_bytes == UNKNOWN or (self.file_bytes, self.modified_ns) == (file_bytes, modified_ns)


@dataclass(frozen=True)
class Rows:
    """Rows of a file: a slice of an array on disk."""

    record: FileRecord
    part: Path
    first: int
    count: int

    def embedding(self) -> Array:
        """Read the embeddings, (count, D)."""
        return self._read(self.part)

    def times_s(self) -> Array:
        """Read the times, (count,)."""
        return self._read(times_file(self.part))

    def _read(self, path: Path) -> Array:
        # A copy: pages of a mapped file stay in memory as long as the map.
        rows: Array = np.load(path, mmap_mode="r")[self.first : self.first + self.count].copy()
        return rows


def batches(rows: Sequence[Rows], dim: int) -> Iterator[list[Rows]]:
    """Yield the rows in order, `_BATCH_BYTES` of embeddings (rows, D) at a time; a long file is divided."""
    limit = max(1, _BATCH_BYTES // (4 * max(1, dim)))
    batch: list[Rows] = []
    left = limit
    for entry in rows:
        for first in range(0, entry.count, limit):
            part = replace(entry, first=entry.first + first, count=min(limit, entry.count - first))
            if part.count > left:
                yield batch
                batch, left = [], limit
            batch.append(part)
            left -= part.count
    if batch:
        yield batch


def write_array(path: Path, shape: tuple[int, int], pieces: Iterable[Array]) -> None:
    """Write a `.npy` file of float32 from pieces of its rows (n, D), one after the other."""
    with path.open("wb") as file:
        _write_rows(file, shape, pieces)


def _write_rows(file: IO[bytes], shape: tuple[int, int], pieces: Iterable[Array]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for piece in pieces:
        file.write(np.ascontiguousarray(piece, dtype="<f4").data)


def times_file(part: Path) -> Path:
    """Return the file of the times that belong to a file of embeddings."""
    return part.with_suffix(".times.npy")


@dataclass(frozen=True)
class Listing:
    """Everything in a table but its embeddings."""

    records: list[FileRecord]
    settings: dict[str, Any]
    """How the embeddings were made; of older tables only `model` and digests, or nothing."""
    frames: bool
    """Whether rows are time steps."""


def write_table(target: Path, rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> None:
    """Write a table in the format of the suffix.

    Args:
        target: the file to write.
        rows: the files in order.
        settings: how the embeddings were made.
        frames: rows are time steps.
    """
    write = _write_npz if target.suffix == ".npz" else _write_arrow
    write(target, rows, settings, frames)


def _write_npz(target: Path, rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> None:
    records = [entry.record for entry in rows]
    members: dict[str, Array] = {
        "path": np.array([r.path for r in records], dtype=np.str_),
        "absolute_path": np.array([r.absolute_path for r in records], dtype=np.str_),
        "duration_s": np.array([r.duration_s for r in records], dtype=np.float64),
        "file_bytes": np.array([r.file_bytes for r in records], dtype=np.int64),
        "modified_ns": np.array([r.modified_ns for r in records], dtype=np.int64),
        "file": np.repeat(np.arange(len(records)), [r.rows for r in records]),
        **{key: np.array(settings[key]) for key in _PER_TABLE},
        "settings": np.array(json_text(settings)),
    }
    if frames:
        members["time_s"] = np.concatenate([np.zeros(0, np.float32), *(entry.times_s() for entry in rows)])
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        dim = _dim(rows)
        pieces = (entry.embedding() for batch in batches(rows, dim) for entry in batch)
        with archive.open("embedding.npy", "w", force_zip64=True) as member:
            _write_rows(member, (sum(r.rows for r in records), dim), pieces)


def _write_arrow(target: Path, rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> None:
    """Write Parquet with a list column `embedding`, or CSV with columns `e0`, `e1`, ..., some rows at a time."""
    pa = require_pyarrow()
    from pyarrow import csv, parquet

    dim = _dim(rows)
    schema = arrow_schema(dim, settings, frames)
    open_writer: Any = parquet.ParquetWriter
    if target.suffix == ".csv":
        vectors = (pa.field(f"e{index}", pa.float32()) for index in range(dim))
        named = [schema.field(name) for name in schema.names if name != "embedding"]
        schema, open_writer = pa.schema([*named, pa.field("settings", pa.string()), *vectors]), csv.CSVWriter
    with target.open("wb") as file, open_writer(file, schema) as writer:  # pyarrow takes no path that is not UTF-8
        for group in batches(rows, dim):
            records = [entry.record for entry in group for _ in range(entry.count)]
            times_s = np.concatenate([entry.times_s() for entry in group]) if frames else None
            embedding = np.concatenate([entry.embedding() for entry in group])
            writer.write_table(arrow_table(schema, records, settings, embedding, times_s))


def arrow_schema(dim: int, settings: Mapping[str, Any], frames: bool) -> Any:
    """Return the schema of a Parquet table: columns, and settings as its metadata."""
    pa = require_pyarrow()
    fields = [("path", pa.string()), *([("time_s", pa.float32())] if frames else [])]
    fields += [("duration_s", pa.float64()), ("window_s", pa.float64()), ("model", pa.string())]
    fields += [("weights_digest", pa.string()), ("config_hash", pa.string())]
    fields += [("file_bytes", pa.int64()), ("modified_ns", pa.int64()), ("absolute_path", pa.string())]
    schema = pa.schema([*fields, ("embedding", pa.list_(pa.float32(), dim))])
    return schema.with_metadata({"settings": json_text(settings)})


def arrow_table(
    schema: Any, records: Sequence[FileRecord], settings: Mapping[str, Any], embedding: Array, times_s: Array | None
) -> Any:
    """Return rows as an Arrow table, a record for each of the embeddings (rows, D); as lists, or as columns in CSV."""
    pa = require_pyarrow()
    embedding = embedding.astype(np.float32, copy=False)
    columns: dict[str, Any] = {name: [settings[name]] * len(records) for name in _PER_TABLE}
    columns |= {name: [getattr(record, name) for record in records] for name in _PER_FILE}
    if times_s is not None:
        columns["time_s"] = times_s.astype(np.float32)
    if "embedding" in schema.names:
        dim = embedding.shape[1]
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), dim)
    else:
        columns["settings"] = [json_text(settings)] * len(records)
        columns |= {f"e{index}": np.ascontiguousarray(column) for index, column in enumerate(embedding.T)}
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _dim(rows: Sequence[Rows]) -> int:
    return replace(rows[0], count=0).embedding().shape[1] if rows else 0


def require_pyarrow() -> Any:
    """Return the module pyarrow, or raise a MissingExtraError."""
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError(
            'Parquet and CSV need pyarrow: pip install "ssamba[store]", or write a .npz file instead'
        ) from None
    return pyarrow


def read_embeddings(path: str | Path) -> dict[str, Array]:
    """Read a table that `ssamba embed` wrote, in any of its formats, as arrays.

    Args:
        path: a file, or the folder or the URL of a table in parts.

    Returns:
        `embedding` (rows, D); `path`, `absolute_path`, `duration_s`, `file_bytes`, `modified_ns` (files,); `file`
        (rows,), each row's index into these; `time_s` (rows,) if rows are time steps; and the scalars `model`,
        (versioned name or path), `weights_digest`, `window_s`, `config_hash`, `settings` (JSON). Tables of earlier
        versions lack some of them.

    Raises:
        StoreError: the file is missing or was not written by `ssamba embed`.
    """
    if (folder := parts_folder(path)) is not None:
        with reading(str(path)):
            return folder.read()
    path = user_path(path)
    with _reading(path):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return _with_file_index({name: archive[name] for name in archive.files})
        table = _read_columns(path)
        batches = list(_arrow_batches(path))
        dim = batches[0][0].shape[1] if batches else 0
        table["embedding"] = np.concatenate([np.zeros((0, dim), np.float32), *(batch for batch, _ in batches)])
        return table


def read_listing(path: Path) -> Listing:
    """Read everything of a table but its embeddings.

    Raises:
        StoreError: the file is missing or was not written by `ssamba embed`.
    """
    table: dict[str, Array] = {}
    with _reading(path):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                table = _with_file_index({name: archive[name] for name in archive.files if name != "embedding"})
        else:
            table = _read_columns(path)
    return _listing(table)


def _listing(table: dict[str, Array]) -> Listing:
    names = table["path"].tolist()
    counts = np.bincount(table["file"], minlength=len(names)).tolist()
    columns = {name: table[name].tolist() for name in _PER_FILE if name in table}
    if "absolute_path" not in columns:
        real_path = RealPaths()
        columns["absolute_path"] = [path_text(real_path(path_from_text(name))) for name in names]
    for name in ("file_bytes", "modified_ns"):
        columns.setdefault(name, [UNKNOWN] * len(names))
    columns.setdefault("duration_s", [float("nan")] * len(names))
    records = [
        FileRecord(**dict(zip(columns, values, strict=True)), rows=count)
        for values, count in zip(zip(*columns.values(), strict=True), counts, strict=True)
    ]
    settings: dict[str, Any] = {
        name: str(table[name]) for name in ("model", "weights_digest", "config_hash") if name in table
    }
    if "settings" in table and str(table["settings"]):
        settings = json.loads(str(table["settings"]))
    return Listing(records, settings, "time_s" in table)


def row_batches(path: Path) -> Iterator[tuple[Array, Array | None]]:
    """Yield the embeddings (rows, D) of a table and its times (rows,), if it has them, some rows at a time."""
    with _reading(path):
        if path.suffix != ".npz":
            yield from _arrow_batches(path)
            return
        embedding = _map_member(path, "embedding.npy")
        with np.load(path, allow_pickle=False) as archive:
            times = archive["time_s"] if "time_s" in archive.files else None
        size = max(1, _BATCH_BYTES // (4 * max(1, embedding.shape[1])))
        for first in range(0, len(embedding), size):
            if isinstance(embedding, np.memmap):  # pages that were read stay in memory as long as their map
                embedding = _map_member(path, "embedding.npy")
            part = slice(first, first + size)
            yield embedding[part].copy(), None if times is None else times[part]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of a file into a StoreError that names it."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise StoreError(f"{path}: {problem}. Expected a file that `ssamba embed -o` wrote")
    if path.suffix not in FORMATS:
        raise StoreError(f"{path}: expected a table that `ssamba embed -o` wrote, {', '.join(FORMATS)}")
    if path.suffix == ".npz" and not zipfile.is_zipfile(path):
        raise StoreError(f"{path} is damaged or was not written by `ssamba embed` (it is no .npz archive)")
    try:
        yield
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is damaged or was not written by `ssamba embed` ({error})") from None


def _with_file_index(table: dict[str, Array]) -> dict[str, Array]:
    if "path" not in table:
        raise KeyError("no column `path`")
    table.setdefault("file", np.arange(len(table["path"])))
    return table


def _map_member(path: Path, name: str) -> Array:
    """Return an array in a .npz file, mapped into memory if it is stored without compression."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED:
            with archive.open(name) as file:
                array: Array = np.lib.format.read_array(file, allow_pickle=False)
                return array
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)  # the lengths of name and extra field, in the local header
        lengths = np.frombuffer(file.read(4), "<u2")
        file.seek(member.header_offset + 30 + int(lengths.sum()))
        shape, fortran_order, kind = _read_array_header(file)
        if 0 in shape:  # an empty array cannot be mapped
            return np.zeros(shape, kind)
        return np.memmap(path, kind, "r", file.tell(), shape, "F" if fortran_order else "C")


def _read_array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(file)
    return header


def _read_columns(path: Path) -> dict[str, Array]:
    """Read the columns of a Parquet or CSV table except embeddings, one value for each file."""
    require_pyarrow()
    settings = None
    if path.suffix == ".parquet":
        from pyarrow import parquet

        with path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            metadata = file.schema_arrow.metadata or {}
            settings = metadata.get(b"settings")
            rows = file.read([name for name in file.schema_arrow.names if name != "embedding"])
    else:
        with _open_csv(path, vectors=False) as reader:
            rows = reader.read_all()
    return _columns(rows, settings)


def _columns(rows: Any, settings: bytes | None) -> dict[str, Array]:
    """Return the columns of an Arrow table except embeddings, one value for each file."""
    paths = rows["path"].to_pylist()
    # Files of one relative path, as seen from several folders, differ in the absolute one.
    keys = rows["absolute_path"].to_pylist() if "absolute_path" in rows.column_names else paths
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    table = {"path": np.array([paths[i] for i in starts], dtype=np.str_)}
    table["file"] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(paths)]))
    for name in _PER_FILE[1:]:
        if name in rows.column_names:
            table[name] = np.array(rows[name].to_pylist())[starts]
    for name in (*_PER_TABLE, "settings"):
        if name in rows.column_names:
            table[name] = np.array(rows[name][0].as_py() if len(rows) else "")
    if settings is not None:
        table["settings"] = np.array(settings.decode())
    if "time_s" in rows.column_names:
        table["time_s"] = rows["time_s"].to_numpy()
    return table


def _arrow_batches(path: Path) -> Iterator[tuple[Array, Array | None]]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        with path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            names = [name for name in ("embedding", "time_s") if name in file.schema_arrow.names]
            for batch in file.iter_batches(_ARROW_ROWS, columns=names):
                vectors = batch["embedding"].flatten().to_numpy(zero_copy_only=False)
                times = batch["time_s"].to_numpy(zero_copy_only=False) if "time_s" in names else None
                yield vectors.reshape(len(batch), -1), times
        return
    with _open_csv(path, vectors=True) as reader:
        for batch in reader:
            names = [name for name in batch.schema.names if name != "time_s"]
            columns = [batch[name].to_numpy(zero_copy_only=False) for name in names]
            times = batch["time_s"].to_numpy(zero_copy_only=False) if "time_s" in batch.schema.names else None
            yield np.stack(columns, axis=1).astype(np.float32), times


class PartsFolder(NamedTuple):
    """A table in parts: the Parquet files `part-N-TOKEN.parquet` in a folder or at a URL."""

    place: Place

    def parts(self) -> list[str]:
        """Return the names of the parts, in order; none if there is no folder."""
        names = self.others_and_parts()
        return [name for name in names if _PART.fullmatch(name)]

    def others_and_parts(self) -> list[str]:
        """Return the names of all files and folders that are not hidden, in order."""
        try:
            found = self.place.fs.ls(self.place.path, detail=False)
        except FileNotFoundError:
            return []
        names = sorted(name.rstrip("/").rpartition("/")[2] for name in found if name.rstrip("/") != self.place.path)
        return [name for name in names if name and not name.startswith(".")]

    def listings(self) -> Iterator[tuple[str, Listing]]:
        """Yield each part with everything in it but its embeddings."""
        names = self.parts()
        with ThreadPoolExecutor(_READERS) as pool:  # storage takes its time to answer
            for name, (table, _) in zip(names, pool.map(self._read_part, names, repeat(False)), strict=True):
                yield name, _listing(table)

    def read(self) -> dict[str, Array]:
        """Read all parts as `read_embeddings` does one file."""
        names = self.parts()
        if not names:
            raise StoreError(f"{self.place.path}: holds no part of a table that `ssamba embed -o` wrote")
        with ThreadPoolExecutor(_READERS) as pool:
            tables, vectors = zip(*pool.map(self._read_part, names, repeat(True)), strict=True)
        joined: dict[str, Array] = dict(tables[-1])
        joined |= {key: np.concatenate([one[key] for one in tables]) for key in (*_PER_FILE, "time_s") if key in joined}
        starts = np.cumsum([0, *(len(one["path"]) for one in tables[:-1])])
        joined["file"] = np.concatenate([one["file"] + start for one, start in zip(tables, starts, strict=True)])
        joined["embedding"] = np.concatenate(vectors)
        return joined

    def read_arrow(self, name: str, vectors: bool = True) -> Any:
        """Read a part as an Arrow table, with or without embeddings."""
        require_pyarrow()
        from pyarrow import parquet

        place = self.place.below(name)
        try:
            with place.fs.open(place.path, "rb") as opened, parquet.ParquetFile(opened) as file:
                return file.read([one for one in file.schema_arrow.names if vectors or one != "embedding"])
        except ValueError as error:
            remedy = "Remove it, and its files are embedded again"
            raise StoreError(f"{place.path}: is no whole part of a table ({error}). {remedy}") from None

    def _read_part(self, name: str, vectors: bool) -> tuple[dict[str, Array], Array]:
        rows = self.read_arrow(name, vectors)
        table = _columns(rows, (rows.schema.metadata or {}).get(b"settings"))
        if not vectors:
            return table, np.zeros((0, 0), np.float32)
        column = rows["embedding"].combine_chunks()
        return table, column.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), column.type.list_size)


def parts_folder(name: str | Path) -> PartsFolder | None:
    """Return the folder of a table in parts that a name stands for: a URL, a name that ends in a slash, or a folder."""
    if (url := url_of(name)) is not None:
        return PartsFolder(Place.of(url))
    path = user_path(name)
    if str(name).endswith(("/", os.sep)) or any(_PART.fullmatch(one.name) for one in path.glob("part-*.parquet")):
        return PartsFolder(Place.of(path.absolute().as_uri()))
    return None


@contextmanager
def _open_csv(path: Path, *, vectors: bool) -> Iterator[Any]:
    """Open a CSV table: its embeddings and times, or all the other columns."""
    pa = require_pyarrow()
    from pyarrow import csv

    parsing = csv.ParseOptions(newlines_in_values=True)
    with path.open("rb") as file, csv.open_csv(file, parse_options=parsing) as reader:
        names = reader.schema.names
    is_vector = [name[0] == "e" and name[1:].isdigit() for name in names]
    # Nothing is inferred from the first rows: names and digests may look like numbers, durations like whole ones.
    kinds = dict.fromkeys(names, pa.float64())
    kinds |= dict.fromkeys(("path", "absolute_path", "model", "weights_digest", "config_hash", "settings"), pa.string())
    kinds |= dict.fromkeys(("file_bytes", "modified_ns"), pa.int64())
    included = [name for name, is_one in zip(names, is_vector, strict=True) if is_one == vectors or name == "time_s"]
    options = csv.ConvertOptions(column_types=kinds, include_columns=included)
    with path.open("rb") as file, csv.open_csv(file, parse_options=parsing, convert_options=options) as reader:
        yield reader
