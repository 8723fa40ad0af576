"""Read and write `Clip`, a row of a manifest, as CSV, JSON lines, Parquet and the JSON of the original SSAMBA.

`manifest.py` describes the columns.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ssamba.errors import DataError, MissingExtraError
from ssamba.files import write_atomically

FORMATS = (".csv", ".jsonl", ".parquet")
"""Suffixes of the formats that can be written."""
COLUMNS = ("path", "start_s", "duration_s", "labels", "split", "group")
_ALIASES = {"start": "start_s", "duration": "duration_s", "label": "labels"}
LABEL_SEPARATOR = ";"
"""Separates labels in CSV, in manifests as in the tables of evaluation suites."""
_ROWS_PER_BATCH = 65_536

Records = tuple[Iterable[str], str, Iterable[tuple[str, Mapping[str, Any]]]]
"""Column names, separator of labels, and for each row its place for messages (`line 3`) and its values by column."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or a part of one.

    Raises:
        DataError: `start_s` is negative, or `duration_s` is not positive.
    """

    path: Path
    start_s: float = 0.0
    duration_s: float | None = None
    """None: to the end of the recording."""
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise DataError(f"{self.path}: start_s must be a finite number of seconds, at least 0; got {self.start_s}")
        if self.duration_s is not None and not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise DataError(f"{self.path}: duration_s must be finite and above 0; got {self.duration_s}")


def read_clips(path: Path) -> tuple[list[Clip], list[str]]:
    """Return the clips that a file lists, and the names of the columns that were ignored.

    Raises:
        DataError: the file is missing or damaged, or a value is invalid; the message names the line.
        MissingExtraError: the file is Parquet and pyarrow is not installed.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet, ".json": _read_official}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a manifest, a file that ends in {', '.join(readers)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file. Expected a manifest; `ssamba manifest FOLDER -o FILE` makes one")
    columns, separator, records = readers[path.suffix](path)
    columns = list(columns)
    _check_columns(path, columns)
    ignored = [name for name in columns if _ALIASES.get(name, name) not in COLUMNS]
    clips = []
    for where, record in records:
        try:
            clips.append(_clip(path.parent, record, separator))
        except DataError as error:
            raise DataError(f"{path}, {where}: {error}") from None
    return clips, ignored


def _check_columns(path: Path, columns: list[str]) -> None:
    for name in _ALIASES:
        if name in columns and _ALIASES[name] in columns:
            raise DataError(f"{path}: has both a column {name!r} and {_ALIASES[name]!r}: remove one of them")
    if "path" in columns:
        return
    near = difflib.get_close_matches("path", columns, n=1) or [
        n for n in columns if n.lower() in ("file", "filename", "file_name", "wav", "audio", "clip", "filepath")
    ]
    hint = f": rename {near[0]!r}?" if near else ""
    raise DataError(f"{path}: no column 'path' (there are: {', '.join(map(str, columns)) or 'none'}){hint}")


def _clip(folder: Path, record: Mapping[str, Any], separator: str) -> Clip:
    values = {_ALIASES.get(name, name): value for name, value in record.items()}

    def seconds(name: str) -> float | None:
        value = values.get(name)
        if value is None or value == "":
            return None
        try:
            return float(value)
        except (TypeError, ValueError):
            raise DataError(f"{name} must be a number of seconds, got {value!r}") from None

    def text(name: str) -> str | None:
        value = values.get(name)
        return None if value is None or value == "" else str(value)

    name = values.get("path")
    if not isinstance(name, str) or not name:
        raise DataError(f"expected the path of a recording, got {name!r}")
    labels = values.get("labels")
    if labels is None:
        labels = ()
    elif isinstance(labels, str):
        labels = tuple(part for label in labels.split(separator) if (part := label.strip()))
    elif isinstance(labels, list | tuple):
        labels = tuple(map(str, labels))
    else:
        labels = (str(labels),)
    # An absolute path replaces the folder.
    return Clip(folder / name, seconds("start_s") or 0.0, seconds("duration_s"), labels, text("split"), text("group"))


def _read_csv(path: Path) -> Records:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        columns = next(csv.reader(file), [])

    def records() -> Iterator[tuple[str, Mapping[str, Any]]]:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            for record in reader:
                where = f"line {reader.line_num}"
                if None in record:
                    raise DataError(f"{path}, {where}: more values than the {len(columns)} columns of the first line")
                yield where, record

    return columns, LABEL_SEPARATOR, records()


def _read_jsonl(path: Path) -> Records:
    records: list[tuple[str, Mapping[str, Any]]] = []
    columns: dict[str, None] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                message = f"{path}, line {number}: is not JSON ({error}). Expected one object on each line"
                raise DataError(message) from None
            if not isinstance(record, dict):
                raise DataError(
                    f'{path}, line {number}: expected an object such as {{"path": "a.wav"}}, got {record!r}'
                )
            columns.update(dict.fromkeys(record))
            records.append((f"line {number}", record))
    return columns, LABEL_SEPARATOR, records


def _read_official(path: Path) -> Records:
    """Read `{"data": [{"wav": ..., "labels": "a,b"}]}`, the layout of AST, SSAST and SSAMBA."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["data"]
        records = [
            (f"entry {number}", {**{k: v for k, v in entry.items() if k != "wav"}, "path": entry["wav"]})
            for number, entry in enumerate(entries, 1)
        ]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not JSON ({error}). Restore it, or make a new manifest") from None
    except (KeyError, TypeError, AttributeError):
        raise DataError(
            f'{path}: expected the original\'s layout, {{"data": [{{"wav": "a.wav", "labels": "x,y"}}]}}. '
            "Manifests of another layout end in .csv, .jsonl or .parquet"
        ) from None
    return dict.fromkeys(name for _, record in records for name in record) or ["path"], ",", records


def _read_parquet(path: Path) -> Records:
    pa = require_pyarrow()
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: is damaged, or no Parquet file ({error}). Write it again") from None
    columns = file.schema_arrow.names
    used = [name for name in columns if _ALIASES.get(name, name) in COLUMNS]

    def records() -> Iterator[tuple[str, Mapping[str, Any]]]:
        number = 0
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=used):
            for record in batch.to_pylist():
                number += 1
                yield f"row {number}", record

    return columns, LABEL_SEPARATOR, records()


def write_clips(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips atomically in the format of the suffix; paths inside the file's folder become relative to it.

    Raises:
        DataError: the format cannot hold a value.
        MissingExtraError: the file is Parquet and pyarrow is not installed.
    """
    writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if path.suffix == ".parquet":
        require_pyarrow()
    folder = path.parent.absolute()
    rows = ((relative_path(c.path, folder), c.start_s, c.duration_s, c.labels, c.split, c.group) for c in clips)
    write_atomically(path, lambda target: writers[path.suffix](target, rows))


Row = tuple[str, float, float | None, tuple[str, ...], str | None, str | None]
"""Values of a clip in the order of `COLUMNS`, as they are written."""


def relative_path(path: Path, folder: Path) -> str:
    """Return a path as a manifest in `folder` (absolute) holds it: relative if below the folder, else absolute."""
    path = Path(os.path.normpath(path.expanduser().absolute()))
    return os.fspath(path.relative_to(folder)) if path.is_relative_to(folder) else os.fspath(path)


def _write_csv(target: Path, rows: Iterable[Row]) -> None:
    with target.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for path, start_s, duration_s, labels, split, group in rows:
            for label in labels:
                if LABEL_SEPARATOR in label:
                    raise DataError(
                        f"{path}: the label {label!r} contains ';', which separates labels in CSV: use .jsonl"
                    )
            start = repr(start_s) if start_s else ""
            duration = "" if duration_s is None else repr(duration_s)
            writer.writerow([path, start, duration, LABEL_SEPARATOR.join(labels), split, group])


def _write_jsonl(target: Path, rows: Iterable[Row]) -> None:
    with target.open("w", encoding="utf-8") as file:
        for path, start_s, duration_s, labels, split, group in rows:
            values = (path, start_s or None, duration_s, list(labels) or None, split, group)
            record = {name: value for name, value in zip(COLUMNS, values, strict=True) if value is not None}
            file.write(json.dumps(record) + "\n")


def _write_parquet(target: Path, rows: Iterable[Row]) -> None:
    pa = require_pyarrow()
    from pyarrow import parquet

    types = (pa.string(), pa.float64(), pa.float64(), pa.list_(pa.string()), pa.string(), pa.string())
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    rows = iter(rows)
    with parquet.ParquetWriter(target, schema) as writer:
        while True:
            batch = list(islice(rows, _ROWS_PER_BATCH))
            try:
                columns = zip(*batch, strict=True) if batch else [()] * len(types)
                arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
            except UnicodeEncodeError as error:
                raise DataError(f"{error.object!r}: Parquet cannot hold a name that is not UTF-8: use .jsonl") from None
            writer.write_table(pa.table(arrays, schema=schema))
            if len(batch) < _ROWS_PER_BATCH:
                return


def require_pyarrow() -> Any:
    """Return the module pyarrow.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        message = 'Parquet needs pyarrow: pip install "ssamba[store]", or use .csv or .jsonl instead'
        raise MissingExtraError(message) from None
    return pyarrow
