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
from ssamba.files import path_text, relative_path, utf8_text, write_atomically
from ssamba.text_files import CsvTable, ListedPaths, read_csv, read_text

FORMATS = (".csv", ".jsonl", ".parquet")
"""Suffixes of the formats that can be written."""
COLUMNS = ("path", "start_s", "duration_s", "labels", "split", "group")
_ALIASES = {"start": "start_s", "duration": "duration_s", "end": "end_s", "label": "labels"}
SUITE_PATH = "clip"
"""The column of paths in the tables of evaluation suites; a table without `path` is read by it."""
_TIMES = ("start_s", "start", "duration_s", "duration", "end_s", "end")
_READ = (*COLUMNS, "end_s")
"""`end_s`, as in tables of annotations, stands for the duration."""
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


def read_clips(path: Path, encoding: str | None = None) -> tuple[list[Clip], list[str]]:
    """Return the clips that a file lists, and the names of the columns that were ignored.

    Paths are found as `ssamba.text_files.ListedPaths` says.

    Args:
        path: the file.
        encoding: of CSV and JSON, as for `ssamba.text_files.read_text`; None means UTF-8.

    Raises:
        DataError: the file is missing or damaged, or a value is invalid; the message names the line.
        MissingExtraError: the file is Parquet and pyarrow is not installed.
    """
    if path.suffix not in _READERS:
        raise DataError(f"{path}: expected a manifest, a file that ends in {', '.join(_READERS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file. Expected a manifest; `ssamba manifest FOLDER -o FILE` makes one")
    columns, separator, records = _READERS[path.suffix](path, encoding)
    columns = list(columns)
    path_column = SUITE_PATH if SUITE_PATH in columns and "path" not in columns else "path"
    _check_columns(path, columns, path_column)
    ignored = [name for name in columns if name != path_column and _ALIASES.get(name, name) not in _READ]
    find = ListedPaths(path.parent, encoding)
    clips = []
    for where, record in records:
        try:
            clips.append(_clip(find, record, separator, path_column))
        except DataError as error:
            raise DataError(f"{path}, {where}: {error}") from None
    archive = path.with_suffix(".tar")
    if path_column == SUITE_PATH and clips and archive.is_file() and not clips[0].path.exists():
        raise DataError(
            f"{path}: expected its recordings as files beside it; they are in {archive.name}, which only `ssamba "
            f"evaluate` reads. Unpack it: tar -xf {archive} -C {path.parent}"
        )
    return clips, ignored


def _check_columns(path: Path, columns: list[str], path_column: str) -> None:
    for name in _ALIASES:
        if name in columns and _ALIASES[name] in columns:
            raise DataError(f"{path}: has both a column {name!r} and {_ALIASES[name]!r}: remove one of them")
    if path_column in columns:
        return
    near = difflib.get_close_matches("path", columns, n=1) or [
        n for n in columns if n.lower() in ("file", "filename", "file_name", "wav", "audio", "filepath")
    ]
    hint = f": rename {near[0]!r}?" if near else ""
    raise DataError(f"{path}: no column 'path' (there are: {', '.join(map(str, columns)) or 'none'}){hint}")


def _clip(find: ListedPaths, record: Mapping[str, Any], separator: str, path_column: str) -> Clip:
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
        return None if value is None else _name(str(value)) or None

    name = values.get(path_column)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str):
        raise DataError(f"expected the path of a recording, got {name!r}")
    labels = values.get("labels")
    if labels is None:
        labels = ()
    elif isinstance(labels, str):
        labels = tuple(part for label in labels.split(separator) if (part := _name(label)))
    elif isinstance(labels, list | tuple):
        labels = tuple(_name(str(label)) for label in labels)
    else:
        labels = (_name(str(labels)),)
    start_s, duration_s, end_s = seconds("start_s") or 0.0, seconds("duration_s"), seconds("end_s")
    if end_s is not None and duration_s is None:
        duration_s = end_s - start_s
    return Clip(find(name), start_s, duration_s, labels, text("split"), text("group"))


def _name(text: str) -> str:
    """Return the name of a class, split or group without spaces around it.

    Raises:
        DataError: it is not valid Unicode.
    """
    if utf8_text(text) != text:
        raise DataError(f"{utf8_text(text)} is not valid Unicode: write it again")
    return text.strip()


def _read_csv(path: Path, encoding: str | None) -> Records:
    table = read_csv(path, [*_READ, *_ALIASES, SUITE_PATH], encoding)
    return table.columns, LABEL_SEPARATOR, _csv_records(table, encoding)


def _csv_records(table: CsvTable, encoding: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    find = ListedPaths(table.path.parent, encoding)

    def is_name(row: Mapping[str, str]) -> bool:
        """Return whether the path of a row over several lines is that of a file, whose name holds a line break."""
        name = row.get("path", row.get(SUITE_PATH, ""))
        return "\n" in name and os.path.lexists(find(name))

    for line, row in table.rows(short=True, accept=is_name):
        times = {name: table.decimal_point(row[name]) for name in _TIMES if name in row}
        yield f"line {line}", {**row, **times}


def _read_jsonl(path: Path, encoding: str | None) -> Records:
    records: list[tuple[str, Mapping[str, Any]]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(read_text(path, encoding).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"{path}, line {number}: is not JSON ({error}). Expected one object on each line"
            raise DataError(message) from None
        if not isinstance(record, dict):
            raise DataError(f'{path}, line {number}: expected an object such as {{"path": "a.wav"}}, got {record!r}')
        columns.update(dict.fromkeys(record))
        records.append((f"line {number}", record))
    return columns, LABEL_SEPARATOR, records


def _read_official(path: Path, encoding: str | None) -> Records:
    """Read `{"data": [{"wav": ..., "labels": "a,b"}]}`, the layout of AST, SSAST and SSAMBA."""
    try:
        entries = json.loads(read_text(path, encoding))["data"]
        records = [
            (f"entry {number}", {**{k: v for k, v in entry.items() if k != "wav"}, "path": entry["wav"]})
            for number, entry in enumerate(entries, 1)
        ]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON ({error}). Restore it, or make a new manifest") from None
    except (KeyError, TypeError, AttributeError):
        raise DataError(
            f'{path}: expected the original\'s layout, {{"data": [{{"wav": "a.wav", "labels": "x,y"}}]}}. '
            "Manifests of another layout end in .csv, .jsonl or .parquet"
        ) from None
    return dict.fromkeys(name for _, record in records for name in record) or ["path"], ",", records


def _read_parquet(path: Path, encoding: str | None) -> Records:
    pa = require_pyarrow()
    from pyarrow import parquet

    try:
        with path.open("rb") as file:  # pyarrow takes no path that is not UTF-8, or has a colon
            columns = parquet.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: is damaged, or no Parquet file ({error}). Write it again") from None
    used = [name for name in columns if _ALIASES.get(name, name) in _READ or name == SUITE_PATH]

    def records() -> Iterator[tuple[str, Mapping[str, Any]]]:
        number = 0
        with path.open("rb") as file:
            for batch in parquet.ParquetFile(file).iter_batches(_ROWS_PER_BATCH, columns=used):
                try:
                    rows = batch.to_pylist()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, rows {number + 1} to {number + len(batch)}: text that is not UTF-8 ({error}). Write "
                        "the column again, paths as binary"
                    ) from None
                for record in rows:
                    number += 1
                    yield f"row {number}", record

    return columns, LABEL_SEPARATOR, records()


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet, ".json": _read_official}


def write_clips(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips atomically in the format of the suffix; paths inside the file's folder become relative to it.

    Paths are written by `ssamba.files.path_text`: bytes that are not UTF-8 are escaped, and read as they were.

    Raises:
        DataError: the format cannot hold a value.
        MissingExtraError: the file is Parquet and pyarrow is not installed.
    """
    writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if path.suffix == ".parquet":
        require_pyarrow()
    folder = path.parent.absolute()
    rows = (_row(clip, folder) for clip in clips)
    write_atomically(path, lambda target: writers[path.suffix](target, rows))


Row = tuple[str, float, float | None, list[str], str | None, str | None]
"""Values of a clip in the order of `COLUMNS`, as they are written."""


def _row(clip: Clip, folder: Path) -> Row:
    names = [None if name is None else utf8_text(name) for name in (clip.split, clip.group)]
    labels = list(map(utf8_text, clip.labels))
    return path_text(relative_path(clip.path, folder)), clip.start_s, clip.duration_s, labels, names[0], names[1]


def check_labels(labels: Iterable[str], suffix: str) -> None:
    """Check that a manifest whose name ends in `suffix` can hold these names of classes.

    Raises:
        DataError: a name contains the separator of labels in CSV.
    """
    for label in labels:
        if suffix == ".csv" and LABEL_SEPARATOR in label:
            raise DataError(f"the label {label!r} contains ';', which separates labels in CSV: use .jsonl or .parquet")


def _write_csv(target: Path, rows: Iterable[Row]) -> None:
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for path, start_s, duration_s, labels, split, group in rows:
            check_labels(labels, ".csv")
            start = repr(start_s) if start_s else ""
            duration = "" if duration_s is None else repr(duration_s)
            writer.writerow([path, start, duration, LABEL_SEPARATOR.join(labels), split, group])


def _write_jsonl(target: Path, rows: Iterable[Row]) -> None:
    with target.open("w", encoding="utf-8") as file:
        for path, start_s, duration_s, labels, split, group in rows:
            values = (path, start_s or None, duration_s, labels or None, split, group)
            record = {name: value for name, value in zip(COLUMNS, values, strict=True) if value is not None}
            file.write(json.dumps(record) + "\n")


def _write_parquet(target: Path, rows: Iterable[Row]) -> None:
    pa = require_pyarrow()
    from pyarrow import parquet

    types = (pa.string(), pa.float64(), pa.float64(), pa.list_(pa.string()), pa.string(), pa.string())
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    rows = iter(rows)
    with target.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while True:
            batch = list(islice(rows, _ROWS_PER_BATCH))
            columns = zip(*batch, strict=True) if batch else [()] * len(types)
            arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
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
