"""Tables of embeddings: written by resumable jobs, in three formats, and read back.

Rows are files, or time steps if there is a column `time_s`. While a job for `x.npz` runs, the folder `x.npz.partial`
holds its settings and its parts: the embeddings of some files (`part-N.npy`, and `part-N.times.npy` for time steps) and
the list of these files (`part-N.json`, written last, so that a part without it does not count). A killed job loses at
most the part it was collecting. At the end the parts are concatenated in the order of the inputs under a temporary
name, the result is renamed, and the folder is removed. All rows are never in memory at once.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.checkpoint.files import read_json, write_json
from ssamba.config import ModelIdentity
from ssamba.errors import MissingExtraError, SsambaError

Array = np.ndarray[Any, Any]
FORMATS = (".npz", ".parquet", ".csv")

_SETTINGS_FILE = "run.json"
_COLUMNS = ("model", "weights_digest", "window_s", "config_hash")  # settings that every row holds
_ROWS_PER_BATCH = 65_536


class StoreError(SsambaError, ValueError):
    """A table exists already, belongs to another run, or cannot be read."""


@dataclass(frozen=True)
class FileRecord:
    """Metadata of an embedded file."""

    path: str
    file_bytes: int
    modified_ns: int
    duration_s: float
    rows: int


@dataclass(frozen=True)
class Rows:
    """The rows of a file in a part."""

    record: FileRecord
    part: Path
    first: int

    def embedding(self) -> Array:
        """Read the embeddings, (rows, D)."""
        return self._read(self.part)

    def times_s(self) -> Array:
        """Read the times, (rows,)."""
        return self._read(self.part.with_suffix(".times.npy"))

    def _read(self, path: Path) -> Array:
        rows: Array = np.load(path, mmap_mode="r")[self.first : self.first + self.record.rows]
        return rows


class Store:
    """Collects the embeddings of one job in parts and writes its table."""

    def __init__(self, output: str | Path, settings: Mapping[str, Any], frames: bool):
        """Check the name of the output; nothing is written yet.

        Args:
            output: the file to write; its suffix chooses the format.
            settings: what the embeddings depend on; parts with other settings are refused. `model`, `weights_digest`,
                `window_s` and `config_hash` become columns.
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
        """Start a new table, or continue an earlier run.

        Raises:
            StoreError: there is an output or an interrupted run, and neither `resume` nor `overwrite` was asked for; or
                `resume` finds other settings.
            ModelMismatchError: `resume` finds embeddings of another model.
        """
        if self.output.is_dir():
            raise StoreError(f"{self.output} is a folder: give the name of a file in it, such as embeddings.npz")
        if overwrite:
            shutil.rmtree(self.partial, ignore_errors=True)
        count = sum(len(_read_part(part)) for part in self.partial.glob("part-*.json"))
        if count == 0:  # the run was killed before it wrote anything
            shutil.rmtree(self.partial, ignore_errors=True)
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
            finished = read_embeddings(self.output)
        if finished is not None and len(finished["path"]):
            self._check_model(finished, self.output)
            if str(finished["config_hash"]) != self.settings["config_hash"] or ("time_s" in finished) != self.frames:
                raise StoreError(f"{self.output} was made with other settings: --overwrite replaces it")
        self.partial.mkdir(parents=True, exist_ok=True)
        self._check_settings()
        for part in sorted(self.partial.glob("part-*.json")):
            self._index(part)
        if finished is not None:
            self._import(finished)

    def done(self, path: str, file_bytes: int, modified_ns: int) -> bool:
        """Return whether this very file (same size and time) is embedded already."""
        rows = self._rows.get(path)
        return rows is not None and (rows.record.file_bytes, rows.record.modified_ns) == (file_bytes, modified_ns)

    def add(self, record: FileRecord, embedding: Array, times_s: Array) -> None:
        """Add the rows of a file, (rows, D), and their times, (rows,); the next `flush` writes them."""
        self._pending.append((record, embedding, times_s))

    @property
    def num_pending(self) -> int:
        """Files that are not on disk yet."""
        return len(self._pending)

    def flush(self) -> None:
        """Write what was added since the last call as a part."""
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
        """Write the output, remove the parts and return the number of rows.

        The files of `order` come first (those that were embedded), then the other files of earlier runs.
        """
        self.flush()
        wanted = {path: self._rows[path] for path in order if path in self._rows}
        rows = list({**wanted, **self._rows}.values())
        # Written among the parts, so that a killed run leaves everything in one place, and renamed.
        target = self.partial / f"output{self.output.suffix}"
        write = _write_npz if target.suffix == ".npz" else _write_arrow
        write(target, rows, self.settings, self.frames)
        target.replace(self.output)
        shutil.rmtree(self.partial)
        return sum(entry.record.rows for entry in rows)

    def _check_settings(self) -> None:
        file = self.partial / _SETTINGS_FILE
        if not file.exists():
            write_json(file, self.settings)
            return
        before = read_json(file)
        self._check_model(before, self.partial)
        # The digest identifies the weights; the path that they were loaded from may be written in many ways.
        keys = {*before, *self.settings} - {"model"}
        changed = sorted(key for key in keys if before.get(key) != self.settings.get(key))
        if changed:
            what = "; ".join(f"{key} was {before.get(key)!r}, is {self.settings.get(key)!r}" for key in changed)
            raise StoreError(f"{self.partial} is of a run with other settings ({what}): --overwrite starts again")

    def _check_model(self, before: Mapping[str, Any], made: Path) -> None:
        """Refuse to go on with embeddings of another model."""
        old, own = (
            ModelIdentity(name=str(found.get("model")), weights_digest=str(found.get("weights_digest")))
            for found in (before, self.settings)
        )
        remedy = f"go on with `-c {old.name}`, write another table, or replace this one with --overwrite"
        old.check_same(own, str(made), remedy)

    def _index(self, part: Path) -> None:
        first, records, array = 0, _read_part(part), part.with_suffix(".npy")
        # A machine that crashed may leave a damaged part: its files are embedded again.
        try:
            if len(np.load(array, mmap_mode="r")) != sum(record.rows for record in records):
                return
        except (OSError, ValueError, EOFError):
            return
        for record in records:
            self._rows[record.path] = Rows(record, array, first)
            first += record.rows

    def _import(self, table: dict[str, Array]) -> None:
        """Add the rows of a finished output, so that more files can join them."""
        counts = np.bincount(table["file"], minlength=len(table["path"]))
        first = 0
        for index, rows in enumerate(counts.tolist()):
            names = ("path", "file_bytes", "modified_ns", "duration_s")
            record = FileRecord(**{name: table[name][index].item() for name in names}, rows=rows)
            if record.path not in self._rows:
                times = table["time_s"][first : first + rows] if self.frames else np.zeros(rows)
                self.add(record, table["embedding"][first : first + rows], times)
            first += rows
        self.flush()


def _read_part(part: Path) -> list[FileRecord]:
    return [FileRecord(**record) for record in json.loads(part.read_text(encoding="utf-8"))["files"]]


def _write_npz(target: Path, rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> None:
    records = [entry.record for entry in rows]
    members: dict[str, Array] = {
        "path": np.array([r.path for r in records], dtype=np.str_),
        "duration_s": np.array([r.duration_s for r in records], dtype=np.float64),
        "file_bytes": np.array([r.file_bytes for r in records], dtype=np.int64),
        "modified_ns": np.array([r.modified_ns for r in records], dtype=np.int64),
        "file": np.repeat(np.arange(len(records)), [r.rows for r in records]),
        **{key: np.array(settings[key]) for key in _COLUMNS},
        "settings": np.array(json.dumps(settings)),
    }
    if frames:
        members["time_s"] = np.concatenate([np.zeros(0, np.float32), *(entry.times_s() for entry in rows)])
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        header = {"descr": "<f4", "fortran_order": False, "shape": (sum(r.rows for r in records), _dim(rows))}
        with archive.open("embedding.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for entry in rows:
                member.write(np.ascontiguousarray(entry.embedding(), dtype="<f4").tobytes())


def _write_arrow(target: Path, rows: Sequence[Rows], settings: Mapping[str, Any], frames: bool) -> None:
    """Write Parquet with a list column `embedding`, or CSV with columns `e0`, `e1`, ..., some rows at a time."""
    pa = require_pyarrow()
    from pyarrow import csv, parquet

    dim = _dim(rows)
    fields = [("path", pa.string()), *([("time_s", pa.float32())] if frames else [])]
    fields += [("duration_s", pa.float64()), ("window_s", pa.float64()), ("model", pa.string())]
    fields += [
        ("weights_digest", pa.string()),
        ("config_hash", pa.string()),
        ("file_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
    ]
    if target.suffix == ".parquet":
        schema = pa.schema([*fields, ("embedding", pa.list_(pa.float32(), dim))])
        writer = parquet.ParquetWriter(target, schema.with_metadata({"settings": json.dumps(settings)}))
    else:
        schema = pa.schema([*fields, *((f"e{index}", pa.float32()) for index in range(dim))])
        writer = csv.CSVWriter(target, schema)
    with writer:
        for group in _groups(rows):
            records = [entry.record for entry in group for _ in range(entry.record.rows)]
            columns: dict[str, Any] = {
                name: [settings[name]] * len(records)
                if name in _COLUMNS
                else [getattr(record, name) for record in records]
                for name, _ in fields
                if name != "time_s"
            }
            if frames:
                columns["time_s"] = np.concatenate([entry.times_s() for entry in group]).astype(np.float32)
            embedding = np.concatenate([entry.embedding() for entry in group]).astype(np.float32)
            if target.suffix == ".parquet":
                vectors = [pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), dim)]
            else:
                vectors = [pa.array(np.ascontiguousarray(column)) for column in embedding.T]
            writer.write_table(pa.table([*(columns[name] for name, _ in fields), *vectors], schema=schema))


def _groups(rows: Sequence[Rows]) -> Iterator[list[Rows]]:
    """Yield consecutive files with some tens of thousands of rows together."""
    group: list[Rows] = []
    count = 0
    for entry in rows:
        group.append(entry)
        count += entry.record.rows
        if count >= _ROWS_PER_BATCH:
            yield group
            group, count = [], 0
    if group:
        yield group


def _dim(rows: Sequence[Rows]) -> int:
    return rows[0].embedding().shape[1] if rows else 0


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

    Returns:
        `embedding` (rows, D); `path`, `duration_s`, `file_bytes`, `modified_ns` (files,); `file` (rows,), each row's
        index into these; `time_s` (rows,) if rows are time steps; and the scalars `model` (versioned name or
        path), `weights_digest`, `window_s` and `config_hash`.

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
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is damaged or was not written by `ssamba embed` ({error})") from None
    needed = ("embedding", "path", "duration_s", "file", "model", "weights_digest", "config_hash")
    missing = [name for name in needed if name not in table]
    if missing:
        raise StoreError(f"{path} was not written by `ssamba embed`: {', '.join(missing)} missing")
    return table


def _read_rows(path: Path) -> dict[str, Array]:
    """Read a Parquet or CSV table."""
    pa = require_pyarrow()
    if path.suffix == ".parquet":
        from pyarrow import parquet

        rows = parquet.read_table(path)
        vectors = rows["embedding"].combine_chunks()
        embedding = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), vectors.type.list_size)
    else:
        from pyarrow import csv

        texts = dict.fromkeys(("path", "model", "weights_digest", "config_hash"), pa.string())  # digits are no number
        rows = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=texts))
        names = [name for name in rows.column_names if name[0] == "e" and name[1:].isdigit()]
        embedding = np.array([rows[name].to_numpy() for name in names], np.float32).reshape(len(names), len(rows)).T
    paths = rows["path"].to_pylist()
    starts = [i for i, name in enumerate(paths) if i == 0 or name != paths[i - 1]]
    table = {"embedding": embedding, "path": np.array([paths[i] for i in starts])}
    table["file"] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(paths)]))
    for name in ("duration_s", "file_bytes", "modified_ns"):
        table[name] = rows[name].to_numpy()[starts]
    for name in _COLUMNS:
        table[name] = np.array(rows[name][0].as_py() if len(rows) else "")
    if "time_s" in rows.column_names:
        table["time_s"] = rows["time_s"].to_numpy()
    return table
