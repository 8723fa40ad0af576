"""The files that hold a manifest: CSV, JSON lines, Parquet, and the original's JSON.

All of them give the same rows; `manifest.py` says what the columns mean.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssamba.errors import DataError, MissingExtraError
from ssamba.files import write_atomically

FORMATS = (".csv", ".jsonl", ".parquet")
COLUMNS = ("path", "start_s", "duration_s", "labels", "split", "group")
_ALIASES = {"start": "start_s", "duration": "duration_s", "label": "labels"}
LABEL_SEPARATOR = ";"
"""Stands between labels, in manifests as in tables of suites."""
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a manifest, as written."""

    path: str
    start_s: float
    duration_s: float | None
    labels: tuple[str, ...]
    split: str | None
    group: str | None
    where: str = ""
    """`line 3`, for messages."""


def read_rows(path: Path) -> tuple[Iterator[Row], list[str]]:
    """The rows of a manifest, and the names of columns that are not used.

    Raises:
        DataError: the file is missing or damaged, or a value does not fit; also while iterating.
        MissingExtraError: Parquet without pyarrow.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet, ".json": _read_official}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a manifest, a file that ends in {', '.join(readers)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file. Expected a manifest; `ssamba manifest FOLDER -o FILE` makes one")
    names, separator, records = readers[path.suffix](path)
    names = list(names)
    _check_columns(path, names)
    ignored = [name for name in names if _ALIASES.get(name, name) not in COLUMNS]
    return (_row(path, where, record, separator) for where, record in records), ignored


Records = tuple[Iterable[str], str, Iterable[tuple[str, Mapping[str, Any]]]]


def _check_columns(path: Path, names: list[str]) -> None:
    for name in _ALIASES:
        if name in names and _ALIASES[name] in names:
            raise DataError(f"{path}: has both a column {name!r} and {_ALIASES[name]!r}: leave one of them out")
    if "path" in names:
        return
    near = difflib.get_close_matches("path", names, n=1) or [
        n for n in names if n.lower() in ("file", "filename", "file_name", "wav", "audio", "clip", "filepath")
    ]
    hint = f": rename {near[0]!r}?" if near else ""
    raise DataError(f"{path}: no column 'path' (there are: {', '.join(map(str, names)) or 'none'}){hint}")


def _row(path: Path, where: str, record: Mapping[str, Any], separator: str) -> Row:
    values = {_ALIASES.get(name, name): value for name, value in record.items()}

    def seconds(name: str) -> float | None:
        value = values.get(name)
        if value is None or value == "":
            return None
        try:
            return float(value)
        except (TypeError, ValueError):
            raise DataError(f"{path}, {where}: {name} must be a number of seconds, got {value!r}") from None

    def text(name: str) -> str | None:
        value = values.get(name)
        return None if value is None or value == "" else str(value)

    name = values.get("path")
    if not isinstance(name, str) or not name:
        raise DataError(f"{path}, {where}: expected the path of a recording, got {name!r}")
    labels = values.get("labels")
    if labels is None:
        labels = ()
    elif isinstance(labels, str):
        labels = tuple(part for label in labels.split(separator) if (part := label.strip()))
    elif isinstance(labels, list | tuple):
        labels = tuple(map(str, labels))
    else:
        labels = (str(labels),)
    return Row(name, seconds("start_s") or 0.0, seconds("duration_s"), labels, text("split"), text("group"), where)


def _read_csv(path: Path) -> Records:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        names = next(csv.reader(file), [])

    def records() -> Iterator[tuple[str, Mapping[str, Any]]]:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            for record in reader:
                where = f"line {reader.line_num}"
                if None in record:
                    raise DataError(f"{path}, {where}: more values than the {len(names)} columns of the first line")
                yield where, record

    return names, LABEL_SEPARATOR, records()


def _read_jsonl(path: Path) -> Records:
    records: list[tuple[str, Mapping[str, Any]]] = []
    names: dict[str, None] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: is not JSON ({error}). Expected an object a line") from None
            if not isinstance(record, dict):
                raise DataError(
                    f'{path}, line {number}: expected an object such as {{"path": "a.wav"}}, got {record!r}'
                )
            names.update(dict.fromkeys(record))
            records.append((f"line {number}", record))
    return names, LABEL_SEPARATOR, records


def _read_official(path: Path) -> Records:
    """`{"data": [{"wav": ..., "labels": "a,b"}]}`, as the original's recipes and SSAST's and AST's have it."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["data"]
        records = [
            (f"entry {number}", {**{k: v for k, v in entry.items() if k != "wav"}, "path": entry["wav"]})
            for number, entry in enumerate(entries, 1)
        ]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not JSON ({error}). Restore it, or make a manifest anew") from None
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
        raise DataError(f"{path}: is damaged or no Parquet file ({error}). Write it anew") from None
    names = file.schema_arrow.names
    wanted = [name for name in names if _ALIASES.get(name, name) in COLUMNS]

    def records() -> Iterator[tuple[str, Mapping[str, Any]]]:
        number = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=wanted):
            for record in batch.to_pylist():
                number += 1
                yield f"row {number}", record

    return names, LABEL_SEPARATOR, records()


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows in the format of the suffix, atomically.

    Raises:
        DataError: a value that the format cannot hold.
        MissingExtraError: Parquet without pyarrow.
    """
    writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if path.suffix == ".parquet":
        require_pyarrow()
    write_atomically(path, lambda target: writers[path.suffix](target, rows))


def _write_csv(target: Path, rows: Iterable[Row]) -> None:
    with target.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            for label in row.labels:
                if LABEL_SEPARATOR in label:
                    raise DataError(
                        f"{row.path}: the label {label!r} holds a ';', which separates labels in CSV: use .jsonl"
                    )
            start = repr(row.start_s) if row.start_s else ""
            duration = "" if row.duration_s is None else repr(row.duration_s)
            writer.writerow([row.path, start, duration, LABEL_SEPARATOR.join(row.labels), row.split, row.group])


def _write_jsonl(target: Path, rows: Iterable[Row]) -> None:
    with target.open("w", encoding="utf-8") as file:
        for row in rows:
            record = {
                "path": row.path,
                "start_s": row.start_s or None,
                "duration_s": row.duration_s,
                "labels": list(row.labels) or None,
                "split": row.split,
                "group": row.group,
            }
            file.write(json.dumps({name: value for name, value in record.items() if value is not None}) + "\n")


def _write_parquet(target: Path, rows: Iterable[Row]) -> None:
    pa = require_pyarrow()
    from pyarrow import parquet

    kinds = (pa.string(), pa.float64(), pa.float64(), pa.list_(pa.string()), pa.string(), pa.string())
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    with parquet.ParquetWriter(target, schema) as writer:
        held: list[Row] = []

        def flush() -> None:
            try:
                columns = [[getattr(row, name) for row in held] for name in COLUMNS]
                arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
            except UnicodeEncodeError as error:
                raise DataError(f"{error.object!r}: Parquet cannot hold a name that is not UTF-8: use .jsonl") from None
            writer.write_table(pa.table(arrays, schema=schema))
            held.clear()

        for row in rows:
            held.append(row)
            if len(held) == _ROWS_AT_ONCE:
                flush()
        flush()


def require_pyarrow() -> Any:
    """The pyarrow module, or a MissingExtraError."""
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError(
            'Parquet needs pyarrow: pip install "ssamba[store]", or use .csv or .jsonl instead'
        ) from None
    return pyarrow
