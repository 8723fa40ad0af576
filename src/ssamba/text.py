"""Tables as plain text, for reports that are printed."""

from __future__ import annotations

import re
from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, wrap: bool = True) -> str:
    """Return a table as text: the first column to the left, the others to the right, a line for each word of a header.

    Args:
        header: names of the columns; spaces and underscores divide words; a percent sign stays with its number.
        rows: cells of each row, as many as there are columns.
        wrap: False leaves the names of the columns as they are, on one line.
    """
    words = [(re.findall(r"\S+(?: %)?", name.replace("_", " ")) if wrap else [name]) or [""] for name in header]
    height = max(map(len, words))
    lines = [[(("",) * (height - len(cell)) + (*cell,))[i] for cell in words] for i in range(height)]
    widths = [max(map(len, column)) for column in zip(*lines, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "  ".join(padded).rstrip()

    return "\n".join([*map(line, lines), line(["-" * width for width in widths]), *map(line, rows)])
