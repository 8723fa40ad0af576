r"""Annotations of recordings, and the files that hold them: CSV, JSON, Parquet, Raven and Audacity, read and written.

    .csv             path, start_s, end_s, label, probability, front_end; opens in Excel, whatever the alphabet
    .json            a list of objects with these keys
    .parquet         the same columns
    .selections.txt  a Raven selection table
    .labels.txt      an Audacity label track (File > Import > Labels)

A table of the first three kinds holds any number of recordings. Raven and Audacity open one beside its recording, so
there is one for each: `night.wav.selections.txt`, `night.wav.labels.txt`; a folder of them is read as a whole.

Relative paths in a file start at its folder, as those of manifests do: recordings below it are listed so, others (and
those of Raven, and those that were given so) by absolute paths. In Python paths are those of this process.

    found = read_annotations("reviewed/")
    write_annotations("events.csv", found)
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ssamba.config import FrontEndConfig
from ssamba.errors import ConfigError, DataError, MissingExtraError
from ssamba.files import excel_bytes, listed_path, table_path, user_path, utf8_text, write_atomically
from ssamba.text_files import CsvTable, read_csv, read_text

Style = Literal["raven", "audacity"]
"""Formats of one file for each recording."""
TABLES = (".csv", ".json", ".parquet")
SUFFIXES: Mapping[Style, str] = {"raven": ".selections.txt", "audacity": ".labels.txt"}
_ALIASES = {"file": "path", "start": "start_s", "end": "end_s", "labels": "label"}
_LABEL_COLUMNS = ("annotation", "label", "common name", "species", "species code", "class", "call type", "tags", "tag")
_PROBABILITY_COLUMNS = ("probability", "confidence", "score")
_RAVEN_BEGIN, _RAVEN_END = "Begin Time (s)", "End Time (s)"
_RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", _RAVEN_BEGIN, _RAVEN_END, "Low Freq (Hz)", "High Freq (Hz)"),
    *("Begin Path", "File Offset (s)", "Annotation", "Probability", "Front End"),
)
_NYQUIST_HZ = 24_000.0
"""Upper edge of a selection whose band is unknown: Raven needs one, and shows what the recording has of it."""


@dataclass(frozen=True)
class Annotation:
    """A label for a stretch of a recording.

    Raises:
        DataError: a time is not finite or negative, or the end lies before the start.
    """

    path: str
    """The recording."""
    start_s: float
    end_s: float
    label: str
    """What is heard; may be empty."""
    probability: float | None = None
    """Of the label; None if a person gave it."""
    low_hz: float | None = None
    """Lower edge of the band that was marked; None if it is unknown."""
    high_hz: float | None = None
    """Upper edge of the band."""
    front_end: str | None = None
    """Front end of the model that found it, such as `16khz` or `x10` (`FrontEndConfig.name`); None for a person's."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and math.isfinite(self.end_s) and 0 <= self.start_s <= self.end_s):
            raise DataError(f"expected 0 <= start <= end in seconds, got {self.start_s} and {self.end_s}")


_COLUMNS = tuple(field.name for field in fields(Annotation))
_NUMBERS = ("start_s", "end_s", "probability", "low_hz", "high_hz")


def write_annotations(path: str | Path, annotations: Iterable[Annotation], style: Style | None = None) -> None:
    """Write annotations in the format of the file's name; its folder is created if necessary.

    Args:
        path: a file whose name ends as the docstring of this module lists; or, with `style`, a folder that gets a file
            for each recording.
        annotations: in the order of the file.
        style: `raven` or `audacity`.

    Raises:
        ConfigError: the name ends otherwise, or one selection table or label track is to hold several recordings.
        MissingExtraError: Parquet needs pyarrow.
    """
    target, rows = user_path(path), list(annotations)
    if style is not None:
        write_label_files(target, rows, style)
        return
    suffix = suffix_of(target)
    recordings = {row.path for row in rows}
    if suffix not in TABLES and len(recordings) > 1:
        raise ConfigError(
            f"{target}: Raven and Audacity have one file for each recording, and there are {len(recordings)}: give a "
            "folder and the style (style='raven' or 'audacity'), or a .csv, .json or .parquet file"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    absolute = suffix == SUFFIXES["raven"]
    rows = [
        replace(row, path=os.path.abspath(row.path) if absolute else table_path(row.path, target))  # noqa: PTH100
        for row in rows
    ]
    write_atomically(target, lambda temporary: write_as(suffix, temporary, rows))


def write_label_files(
    folder: Path, annotations: Iterable[Annotation], style: Style, recordings: Iterable[str] | None = None
) -> list[Path]:
    """Write a selection table or label track for each recording to a folder, and return their paths.

    Their names are those of the recordings, in folders of their own as far as the recordings are in several.

    Args:
        folder: where to write; created if necessary.
        annotations: of any number of recordings.
        style: `raven` or `audacity`.
        recordings: those that get a file, also if nothing was found in them; None means those with annotations.
    """
    if style not in SUFFIXES:
        raise ConfigError(f"style must be 'raven' or 'audacity', got {style!r}")
    own: dict[str, list[Annotation]] = {name: [] for name in recordings or ()}
    for row in annotations:
        own.setdefault(row.path, []).append(row)
    parents = [os.path.dirname(os.path.abspath(name)) for name in own]  # noqa: PTH100, PTH120 - links stay
    common = os.path.commonpath(parents) if parents else ""
    written = []
    for (name, rows), parent in zip(own.items(), parents, strict=True):
        target = folder / os.path.relpath(parent, common) / f"{Path(name).name}{SUFFIXES[style]}"
        write_annotations(target, rows)
        written.append(target)
    return written


def suffix_of(path: Path) -> str:
    """Return which of the known endings a file name has.

    Raises:
        ConfigError: none of them.
    """
    known = (*TABLES, *SUFFIXES.values())
    suffix = next((one for one in known if path.name.lower().endswith(one)), None)
    if suffix is None or path.is_dir():
        raise ConfigError(f"{path}: expected a file name that ends in {', '.join(known[:-1])} or {known[-1]}")
    return suffix


def write_as(suffix: str, path: Path, rows: Sequence[Annotation]) -> None:
    """Write annotations to a file in the format that `suffix` names, with their paths as they stand."""
    if suffix == ".parquet":
        _write_parquet(path, rows)
    elif suffix == ".csv":
        path.write_bytes(excel_bytes(as_csv(rows)))
    else:
        texts = {".json": as_json, SUFFIXES["raven"]: _as_raven, SUFFIXES["audacity"]: _as_audacity}
        path.write_text(utf8_text(texts[suffix](rows)), encoding="utf-8", newline="\n")


def as_csv(rows: Iterable[Annotation]) -> str:
    """Return CSV; bands have columns only if one is known."""
    rows = list(rows)
    bands = ("low_hz", "high_hz")
    has_bands = any(getattr(row, name) is not None for row in rows for name in bands)
    columns = [name for name in _COLUMNS if has_bands or name not in bands]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(getattr(row, name), name) for name in columns])
    return text.getvalue()


def _cell(value: str | float | None, name: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.4f}" if name == "probability" else _number(value)


def _number(value: float) -> str:
    """Return a number with at most six decimals."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def as_json(rows: Iterable[Annotation]) -> str:
    """Return a list of objects; bands only where they are known."""
    objects = [{key: value for key, value in asdict(row).items() if value is not None} for row in rows]
    return json.dumps(objects, indent=2, ensure_ascii=False) + "\n"


def _write_parquet(path: Path, rows: Sequence[Annotation]) -> None:
    pa, parquet = _pyarrow()
    columns = {
        name: pa.array([getattr(row, name) for row in rows], pa.float64() if name in _NUMBERS else pa.string())
        for name in _COLUMNS
    }
    with path.open("wb") as file:  # pyarrow takes no path that is not UTF-8
        parquet.write_table(pa.table(columns), file)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError('Parquet needs pyarrow: pip install "ssamba[store]", or use .csv or .json') from None
    return pyarrow, parquet


def _as_raven(rows: Iterable[Annotation]) -> str:
    lines = ["\t".join(_RAVEN_COLUMNS)]
    for number, row in enumerate(rows, 1):
        low, high = row.low_hz or 0.0, _heard_to(row.front_end) if row.high_hz is None else row.high_hz
        cells = [str(number), "Spectrogram 1", "1", *map(_number, (row.start_s, row.end_s, low, high))]
        cells += [_one_line(row.path), _number(row.start_s), _one_line(row.label)]
        cells += ["" if row.probability is None else f"{row.probability:.4f}", row.front_end or ""]
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def _heard_to(front_end: str | None) -> float:
    """Return the upper edge of a selection whose band is unknown: what the model heard, if that has a name."""
    try:
        return FrontEndConfig().named(front_end or "").highest_hz
    except ConfigError:
        return _NYQUIST_HZ


def _as_audacity(rows: Iterable[Annotation]) -> str:
    lines = []
    for row in rows:
        lines.append(f"{row.start_s:.6f}\t{row.end_s:.6f}\t{_one_line(row.label)}\n")
        if row.low_hz is not None or row.high_hz is not None:
            low, high = (-1.0 if edge is None else edge for edge in (row.low_hz, row.high_hz))
            lines.append(f"\\\t{low:.6f}\t{high:.6f}\n")
    return "".join(lines)


def _one_line(text: str) -> str:
    """Return text without what separates cells and lines."""
    return re.sub(r"[\t\r\n]+", " ", text)


def read_annotations(
    path: str | Path,
    *,
    recording: str | Path | None = None,
    label_column: str | None = None,
    encoding: str | None = None,
) -> list[Annotation]:
    """Read annotations that this module, Raven, Audacity or another program wrote.

    Tables have columns path, start_s, end_s and label, and perhaps probability, low_hz and high_hz (also named file,
    start and end). Of a Raven table with several views of a selection one is kept, and `File Offset (s)` is taken where
    one table is of several recordings. A text file is a selection table if its first line says so, else a label track.

    Args:
        path: a file, or a folder of selection tables and label tracks, which is searched recursively.
        recording: the recording of a table or track that does not name one, or a folder, where it has the name that it
            is listed after; None means beside it (`night.wav.labels.txt`: `night.wav`).
        label_column: column of the label, for tables in which it has a name of its own.
        encoding: of text files, such as `cp1252`; None means UTF-8.

    Returns:
        The annotations, in the order of the file; files of a folder by name.

    Raises:
        DataError: the file is missing or no such table, or a value is wrong; the message names the line.
        MissingExtraError: Parquet needs pyarrow.
    """
    source = user_path(path)
    if source.is_dir():
        files = sorted(one for suffix in SUFFIXES.values() for one in source.rglob(f"*{suffix}"))
        if not files:
            raise DataError(f"{source}: no file ends in {' or '.join(SUFFIXES.values())}")
        found = []
        for file in files:
            beside = recording
            if recording is not None and (folder := user_path(recording)).is_dir():
                beside = folder / file.parent.relative_to(source)
            found += read_annotations(file, recording=beside, label_column=label_column, encoding=encoding)
        return found
    if not source.is_file():
        raise DataError(f"{source}: no such file. Expected annotations: {', '.join((*TABLES, '.txt'))}, or a folder")
    suffix = source.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(source, label_column)
    if suffix == ".json":
        return _read_json(source, label_column, encoding)
    if suffix not in (".csv", ".tsv", ".txt"):
        raise DataError(f"{source}: expected annotations in a file that ends in {', '.join((*TABLES, '.txt'))}")
    named_after = _named_after(source)
    if recording is not None:
        given = user_path(recording)
        named_after = str(given / Path(named_after).name if given.is_dir() else given)
    first = next(iter(read_text(source, encoding).splitlines()), "")
    if _RAVEN_BEGIN in first:
        return _read_raven(source, named_after, label_column, encoding)
    if suffix == ".txt":
        return _read_audacity(source, named_after, encoding)
    table = read_csv(source, [*_COLUMNS, *_ALIASES], encoding)
    return [_annotation(source, f"line {line}", row, label_column, table) for line, row in table.rows(short=True)]


def _named_after(path: Path) -> str:
    """Return the recording that a selection table or label track belongs to, by its name."""
    name = path.name
    for suffix in (*SUFFIXES.values(), ".txt"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    name = re.sub(r"\.Table\.\d+$", "", name)  # as Raven saves them
    return str(path.with_name(name))


def _read_parquet(path: Path, label_column: str | None) -> list[Annotation]:
    pa, parquet = _pyarrow()
    try:
        with path.open("rb") as file:
            rows = parquet.read_table(file).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from None
    return [_annotation(path, f"row {number}", row, label_column) for number, row in enumerate(rows, 1)]


def _read_json(path: Path, label_column: str | None, encoding: str | None) -> list[Annotation]:
    try:
        rows = json.loads(read_text(path, encoding))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise DataError(f"{path}: expected a list of objects with path, start_s, end_s and label")
    return [_annotation(path, f"object {number}", row, label_column) for number, row in enumerate(rows, 1)]


def _annotation(
    path: Path, where: str, row: Mapping[str, Any], label_column: str | None, table: CsvTable | None = None
) -> Annotation:
    """Return the annotation in a row of a table."""
    values = {_ALIASES.get(name, name): value for name, value in row.items()}
    if label_column is not None:
        values["label"] = values.get(label_column)
    missing = [name for name in ("path", "start_s", "end_s", "label") if values.get(name) is None]
    if missing:
        remedy = ": name the column of the label (label_column)" if missing == ["label"] else ""
        raise DataError(f"{path}, {where}: no {missing[0]} (there are: {', '.join(map(str, row)) or 'none'}){remedy}")
    numbers = {name: _parsed(path, where, name, values.get(name), table) for name in _NUMBERS}
    name = listed_path(str(values["path"]), path)
    texts = {"label": str(values["label"]), "front_end": values.get("front_end") or None}
    return _checked(path, where, {**numbers, "path": name, **texts})


def _parsed(path: Path, where: str, name: str, value: Any, table: CsvTable | None = None) -> float | None:
    """Return a number of a table; None if the cell is empty."""
    if value is None or value == "":
        return None
    try:
        return float(table.decimal_point(value) if table is not None else value)
    except (TypeError, ValueError):
        raise DataError(f"{path}, {where}: {name} must be a number, got {value!r}") from None


def _checked(path: Path, where: str, values: Mapping[str, Any]) -> Annotation:
    missing = [name for name in ("start_s", "end_s") if values[name] is None]
    if missing:
        raise DataError(f"{path}, {where}: {missing[0]} is empty: expected a number of seconds")
    try:
        return Annotation(**values)
    except DataError as error:
        raise DataError(f"{path}, {where}: {error}") from None


def _read_raven(path: Path, recording: str, label_column: str | None, encoding: str | None) -> list[Annotation]:
    table = read_csv(path, _RAVEN_COLUMNS, encoding)
    table.require(_RAVEN_BEGIN, _RAVEN_END)
    by_name = {name.lower(): name for name in table.columns}
    label = _raven_label(table, by_name, label_column)
    probability = next((by_name[name] for name in _PROBABILITY_COLUMNS if name in by_name), "")
    found: dict[str, Annotation] = {}
    for line, row in table.rows(short=True):

        def number(name: str, row: Mapping[str, str] = row, where: str = f"line {line}") -> float | None:
            return _parsed(path, where, name, row.get(name), table)

        start_s, end_s, offset_s = number(_RAVEN_BEGIN), number(_RAVEN_END), number("File Offset (s)")
        if start_s is not None and end_s is not None and offset_s is not None:
            start_s, end_s = offset_s, offset_s + end_s - start_s
        selection = row.get("Selection") or f"line {line}"
        if selection in found and not row.get("View", "").startswith("Spectrogram"):
            continue  # the waveform of a selection that is there
        values: dict[str, Any] = {"start_s": start_s, "end_s": end_s, "probability": number(probability)}
        values["front_end"] = row.get("Front End") or None
        bands = {"low_hz": number("Low Freq (Hz)"), "high_hz": number("High Freq (Hz)")}
        listed = row.get("Begin Path") or row.get("Begin File")
        name = listed_path(listed, path) if listed else recording
        found[selection] = _checked(
            path, f"line {line}", {**values, **bands, "path": name, "label": row[label].strip()}
        )
    return list(found.values())


def _raven_label(table: CsvTable, by_name: Mapping[str, str], label_column: str | None) -> str:
    """Return the column of a selection table that holds the label: Raven has none, every user adds one."""
    if label_column is not None:
        table.require(label_column)
        return label_column
    known = [by_name[name] for name in _LABEL_COLUMNS if name in by_name]
    others = [name for name in table.columns if name not in _RAVEN_COLUMNS and "(" not in name and "Begin" not in name]
    found = known or (others if len(others) == 1 else [])
    if not found:
        there = ", ".join(table.columns)
        raise DataError(f"{table.path}: which column holds the label? Name it (label_column). There are: {there}")
    return found[0]


def _read_audacity(path: Path, recording: str, encoding: str | None) -> list[Annotation]:
    found: list[dict[str, Any]] = []
    for number, line in enumerate(read_text(path, encoding).splitlines(), 1):
        if not line.strip():
            continue
        where, cells = f"line {number}", line.split("\t", 2)
        if len(cells) < 2 or (cells[0] == "\\" and not found):
            raise DataError(
                f"{path}, {where}: expected the start, the end and the label, separated by tabs, as Audacity writes "
                f"them, or the columns of a Raven selection table; got {line[:60]!r}"
            )
        times = cells[1:] if cells[0] == "\\" else cells[:2]
        first, second = (_parsed(path, where, "time", cell.strip().replace(",", ".")) for cell in (*times, "")[:2])
        if cells[0] == "\\":  # the band of the label before
            bands = {"low_hz": first, "high_hz": second}
            found[-1].update({name: edge for name, edge in bands.items() if edge is not None and edge >= 0})
            continue
        label = cells[2].strip() if len(cells) > 2 else ""
        found.append({"path": recording, "start_s": first, "end_s": second, "label": label, "where": where})
    return [_checked(path, row.pop("where"), row) for row in found]
