"""Read text and CSV files that people and other programs wrote: encodings, separators, quotes, paths of other systems.

    table = read_csv(Path("labels.csv"), ["path", "labels"])
    table.require("path")
    find = ListedPaths(table.path.parent)
    files = {find(row["path"]): row["labels"] for line, row in table.rows()}

Text is UTF-8 unless a byte order mark or `encoding` says otherwise. Whatever cannot be read exactly is refused when the
file is opened, with its line and byte, so that a long job does not meet it at its end.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from ssamba.errors import DataError
from ssamba.files import path_from_text

DELIMITERS = (",", ";", "\t", "|")
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_EXCEL_DELIMITER = re.compile(r'"?sep=(.)"?')
_ABSOLUTE_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_DECIMAL_COMMA = re.compile(r"\s*\d+,\d+\s*")
_MAX_SHOWN = 60


def read_text(path: Path, encoding: str | None = None) -> str:
    """Return the text of a file, with its line endings.

    Args:
        path: the file.
        encoding: name of its encoding, such as `cp1252`, `latin-1` or `utf-16`; None means UTF-8. A byte order mark at
            the beginning of the file takes precedence.

    Raises:
        DataError: the file holds bytes that the encoding does not have (the message names line and byte), or there is
            no such encoding.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    chosen = next((name for mark, name in _MARKS if data.startswith(mark)), encoding or "utf-8")
    try:
        text = data.decode(chosen)
    except UnicodeDecodeError as error:
        raise DataError(_undecodable(path, data, chosen, error, given=chosen == encoding)) from None
    except (LookupError, ValueError):
        raise DataError(
            f"{path}: there is no encoding {encoding!r}. Known are utf-8, cp1252, latin-1, utf-16, cp1251, shift_jis, "
            "gb18030 and all others of Python"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}, line {line}: holds a zero byte: it is UTF-16 (encoding utf-16), damaged, or no text")
    return text


def _undecodable(path: Path, data: bytes, encoding: str, error: UnicodeDecodeError, given: bool) -> str:
    """Return the message about the first byte that is not of an encoding."""
    if data.count(0) > len(data) // 4:
        return f"{path}: is not {encoding}, and half of it is zero bytes: its encoding is utf-16, probably"
    start = data.rfind(b"\n", 0, error.start) + 1
    line, end = data.count(b"\n", 0, error.start) + 1, data.find(b"\n", start)
    where = f"{path}, line {line}: byte 0x{data[error.start]:02x} (number {error.start + 1} of the file)"
    if given:
        return f"{where} is not {encoding}. Name another encoding, or save the file as UTF-8"
    shown = data[start : end if end >= 0 else None].strip()[:_MAX_SHOWN].decode("cp1252", "replace")
    return (
        f"{where} is not {encoding}. Save the file as UTF-8, or name its encoding (--encoding). If it is cp1252 "
        f"(Windows, Western Europe), the line reads {shown!r}"
    )


@dataclass(frozen=True)
class CsvTable:
    """A CSV file with a line of column names."""

    path: Path
    """The file."""
    columns: tuple[str, ...]
    """Names of the columns, without spaces around them; columns without a name are left out."""
    delimiter: str
    """What separates the columns."""
    text: str
    """The content."""
    names: tuple[str, ...]
    """Names of all columns; "" has none."""
    header_line: int
    """Number of the line that names the columns."""
    spaced: bool = False
    """Whether a space follows every delimiter of the first line; then it is no part of the values."""

    def require(self, *columns: str) -> None:
        """Check that the columns exist.

        Raises:
            DataError: one does not; the message lists those that do.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            there = ", ".join(self.columns) or "none"
            raise DataError(
                f"{self.path}: no column {missing[0]!r} (there are: {there}). Expected {', '.join(columns)}"
            )

    def rows(
        self, *, short: bool = False, accept: Callable[[dict[str, str]], bool] | None = None
    ) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the line and the values, by column, of each row; empty rows are left out.

        Args:
            short: whether values may be missing at the end of a row (Excel leaves out what is empty): they are "".
            accept: called with a row over several lines that looks as if a stray quote had swallowed rows; True means
                that it is right as it is.

        Raises:
            DataError: a row has another number of values than there are columns, or a stray quote joins several rows;
                the message names the line.
        """
        reader = csv.reader(
            io.StringIO(self.text, newline=""), delimiter=self.delimiter, skipinitialspace=self.spaced, strict=True
        )
        count, line = len(self.names), 0
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._quote_error(line, reader.line_num, error) from None
            if reader.line_num <= self.header_line or not any(cell.strip() for cell in cells):
                continue
            surplus = [cell for cell in cells[count:] if cell.strip()]
            values = dict(zip(self.names, [*cells, *[""] * (count - len(cells))], strict=False))
            values.pop("", None)
            several = reader.line_num > line
            if several and (surplus or len(cells) < count or self._swallows_rows(cells)):
                if accept is None or surplus or not accept(values):
                    raise self._quote_error(line, reader.line_num)
            elif surplus:
                raise DataError(
                    f"{self.path}, line {line}: more values than the {count} columns of the first line. A value that "
                    f"contains {self.delimiter!r} needs quotes around it"
                )
            elif len(cells) < count and not short:
                raise DataError(
                    f"{self.path}, line {line}: {len(cells)} values for {count} columns. The file is cut off, or a "
                    f"{self.delimiter!r} is missing"
                )
            yield line, values

    def decimal_point(self, number: str) -> str:
        """Return a number with a decimal point: where commas do not separate columns, they may separate decimals."""
        return number.replace(",", ".") if self.delimiter != "," and _DECIMAL_COMMA.fullmatch(number) else number

    def _swallows_rows(self, cells: Sequence[str]) -> bool:
        """Return whether the lines of a value would be whole rows without the quotes around it."""
        count = len(self.names)
        for number, cell in enumerate(cells):
            fields = [line.count(self.delimiter) + 1 for line in re.split(r"\r\n|\r|\n", cell)]
            fields[0] += number
            fields[-1] += len(cells) - number - 1
            if len(fields) > 1 < count and all(field == count for field in fields):
                return True
        return False

    def _quote_error(self, line: int, last: int, error: csv.Error | None = None) -> DataError:
        if error is not None and "expected after" in str(error):
            return DataError(
                f"{self.path}, line {line}: text follows the quote that ends a value. Write a quote inside a value "
                'twice, as in "12"" record"'
            )
        if error is not None and "unexpected end" not in str(error) and "field limit" not in str(error):
            return DataError(f"{self.path}, line {line}: cannot be read ({error})")
        end = "the end of the file" if error is not None else f"line {last}"
        shown = io.StringIO(self.text, newline="").readlines()[line - 1].strip()[:_MAX_SHOWN]
        return DataError(
            f'{self.path}, line {line}: a quote (") that is not closed in this line joins it with all rows to {end}. '
            f"Remove it, or write it twice inside a quoted value. The line is: {shown}"
        )


def read_csv(path: Path, expected: Sequence[str] = (), encoding: str | None = None) -> CsvTable:
    r"""Read a CSV file: separated by commas, semicolons, tabs or `|`, as its first line shows; any line ending.

    Args:
        path: the file.
        expected: names of columns that it may have, by which the separator is found.
        encoding: as for `read_text`.

    Raises:
        DataError: the file is missing, is not in the encoding, or names a column of `expected` twice.
    """
    try:
        text = read_text(path, encoding)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    lines = enumerate(io.StringIO(text, newline=""), 1)
    first, header = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    delimiters: Sequence[str] = DELIMITERS
    if stated := _EXCEL_DELIMITER.fullmatch(header.strip()):  # Excel's own first line
        delimiters = stated[1]
        first, header = next(lines, (first, ""))
    header = header.strip("\r\n")
    names, delimiter = max(
        ((_header_names(header, delimiter), delimiter) for delimiter in delimiters),
        key=lambda found: (sum(name in expected for name in found[0]), len(found[0])),
    )
    twice = [name for name in names if name in expected and names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: two columns are named {twice[0]!r}: remove or rename one")
    spaced = header.count(delimiter) > 0 and header.count(delimiter) == header.count(f"{delimiter} ")
    columns = tuple(dict.fromkeys(name for name in names if name))
    return CsvTable(path, columns, delimiter, text, names, first, spaced)


def _header_names(header: str, delimiter: str) -> tuple[str, ...]:
    cells = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
    return tuple(cell.strip() for cell in cells)


def spellings(name: str, encoding: str | None = None) -> Iterator[str]:
    """Yield the ways in which a path that a table names may be written; `ListedPaths` describes them."""
    yield path_from_text(name)
    stripped = name.strip()
    for text in dict.fromkeys((name, stripped, stripped.replace("\\", "/"))):
        yield text
        if not text.isascii():
            yield from (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
            if encoding is not None:
                with suppress(UnicodeEncodeError):
                    yield os.fsdecode(text.encode(encoding))


class ListedPaths:
    r"""Finds the files that a table names, made here or on another system.

    If the name as `path_text` wrote it does not exist, others are tried: as it stands; without spaces around it; with
    the bytes of the table's encoding; with accents composed or decomposed (macOS); and, if it has the separators of
    Windows, with `/` in place of `\` and whatever the case of letters.
    """

    def __init__(self, folder: Path, encoding: str | None = None):
        """Find files of a table in `folder`, to which relative paths refer; `encoding` is as for `read_text`."""
        self.folder, self.encoding = folder, encoding
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def __call__(self, name: str) -> Path:
        """Return the path of the file; the name as it stands, below the folder, if none exists.

        Raises:
            DataError: the name is no path, or one of another system that says nothing here (`C:\\sounds`).
        """
        if not name.strip() or "\0" in name:
            raise DataError(f"expected the path of a recording, got {name!r}")
        plain = self.folder / path_from_text(name)
        if (name.isascii() and "\\" not in name and name == name.strip() and ":" not in name) or _exists(plain):
            return plain
        for other in spellings(name, self.encoding):
            path = self.folder / other
            if _exists(path):
                return path
        if os.name != "nt" and _ABSOLUTE_WINDOWS.match(name):
            raise DataError(
                f"{name} is a path of Windows, and this is another system. Write paths that are relative to the folder "
                "of this table, such as sounds/1.wav"
            )
        if "\\" in name and (found := self._ignoring_case(PureWindowsPath(name.strip()).parts)) is not None:
            return found
        return plain

    def _ignoring_case(self, parts: Sequence[str]) -> Path | None:
        """Return the only path below the folder whose parts are these apart from case, or None."""
        path = self.folder
        for part in parts:
            exact = path / part
            found = (
                [exact] if _exists(exact) else [path / name for name in self._listing(path).get(part.casefold(), ())]
            )
            if len(found) != 1:
                return None
            path = found[0]
        return path

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        """Return the names in a folder by their spelling without case."""
        if folder not in self._listings:
            names: dict[str, list[str]] = {}
            with suppress(OSError):
                for entry in folder.iterdir():
                    names.setdefault(entry.name.casefold(), []).append(entry.name)
            self._listings[folder] = names
        return self._listings[folder]


def _exists(path: Path) -> bool:
    return os.path.lexists(path)
