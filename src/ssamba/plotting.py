"""One style for all figures, made without a display by matplotlib (the `figures` extra).

    with styled(labels) as show:                     # fonts that have the characters of the labels
        figure = blank_figure(8, 4)
        axis = figure.subplots()
        axis.set_title(show(labels[0]))              # characters that no installed font has, as \u25a1
        save_figure(figure, "x.png")

Lines are labeled at their ends (`label_lines`), spectrograms have an axis in hertz (`spectrogram`), and where a single
value was measured there is a table (`draw_table`) instead of a curve.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ssamba.errors import MissingExtraError
from ssamba.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

GREEN, RED, GRAY = "#0b6e4f", "#b23a48", "#777777"
"""The model; what it is compared with; the background of both."""
WHITE_TO_BLUE = ("white", "#6baed6", "#08306b")
"""Colors of shares from 0 to 100 %."""
STYLE: dict[str, Any] = {
    "font.size": 8,
    "figure.titlesize": 11,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "image.cmap": "magma",
    "image.interpolation": "nearest",
}
LineEnd: TypeAlias = tuple[float, float, str, str]
"""x and y of the last point of a line, its name and its color."""

_FONT = "DejaVu Sans"
_reported: set[str] = set()
"""Characters without a font that were warned of."""
_LETTER_POINTS, _LINE_POINTS = 4.0, 8.0  # of names of lines


@contextmanager
def styled(texts: Iterable[str] = ()) -> Iterator[Callable[[str], str]]:
    """Use the style, with fonts for the characters of these texts, for figures that are made and saved within.

    Yields:
        A function that returns a text as it can be shown: a square for each character that no installed font has.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _require_matplotlib()
    import matplotlib as mpl

    families, missing = _fonts_for("".join(texts))
    if missing - _reported:
        _reported.update(missing)
        _log.warning(
            "no installed font has the characters %s, so a plot shows squares: install one, such as Noto Sans CJK",
            "".join(sorted(missing)[:10]),
        )

    def show(text: str) -> str:
        return "".join("\u25a1" if one in missing else one for one in text).replace("$", r"\$")

    settings: Any = {**STYLE, "font.family": families}
    with mpl.rc_context(settings):
        yield show


def _fonts_for(text: str) -> tuple[list[str], set[str]]:
    """Return names of fonts that together have the characters of a text, and the characters that none has."""
    from matplotlib import font_manager

    wanted = {ord(one) for one in text if not (one.isascii() or one.isspace())}
    wanted -= _characters(font_manager.findfont(_FONT))
    families = [_FONT]
    for name, file in _other_fonts() if wanted else ():
        if found := wanted & _characters(file):
            families.append(name)
            wanted -= found
        if not wanted:
            break
    return families, {chr(one) for one in wanted}


def _other_fonts() -> Iterator[tuple[str, str]]:
    """Yield name and file of the installed upright fonts, the regular ones first."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = {font.fname for font in manager.ttflist}
    for file in font_manager.findSystemFonts():  # installed since matplotlib listed them
        if file not in known:
            with suppress(OSError, RuntimeError):  # a damaged font
                manager.addfont(file)
    upright = [font for font in manager.ttflist if font.style == "normal" and "LastResort" not in font.fname]
    for font in sorted(upright, key=lambda font: str(font.weight) not in ("400", "normal")):
        yield font.name, font.fname


@lru_cache(maxsize=256)
def _characters(file: str) -> frozenset[int]:
    """Return the code points that a font file has."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(file).get_charmap())


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError('pictures need matplotlib: pip install "ssamba[figures]"') from None


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, output: str | Path, dpi: int = 120, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a figure atomically, in the format of the file's suffix (PNG if it has none); return the path."""
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    kind = output.suffix.removeprefix(".") or "png"
    write_atomically(output, lambda target: figure.savefig(target, dpi=dpi, format=kind, metadata=metadata))
    return output


def spectrogram(axis: Any, values: Any, duration_s: float, ticks: tuple[list[float], list[str]], **options: Any) -> Any:
    """Draw a log-mel spectrogram (T, M) with axes in seconds and hertz, and return the image.

    Args:
        axis: axes to draw on.
        values: the spectrogram; NaN is gray.
        duration_s: length in seconds.
        ticks: places in bins and labels of the vertical axis (`ssamba.audio.fbank.hertz_ticks`).
        options: of `imshow`.
    """
    axis.set_facecolor("0.8")
    extent = (0, duration_s, 0, values.shape[1])
    image = axis.imshow(values.T, origin="lower", aspect="auto", extent=extent, **options)
    axis.set_yticks(*ticks)
    axis.set_ylabel("Hz")
    axis.set_xlabel("seconds")
    return image


def label_lines(ends: Mapping[Any, Sequence[LineEnd]]) -> None:
    """Write the names of lines beside their ends, where they cover neither lines nor each other; call it at the end.

    Args:
        ends: of the lines of each of a figure's axes.
    """
    for figure in {axis.get_figure(root=True) for axis in ends}:
        figure.draw_without_rendering()  # places are known afterwards
    for axis, lines in ends.items():
        _label_lines(axis, lines)


def _label_lines(axis: Any, ends: Sequence[LineEnd]) -> None:
    figure = axis.get_figure(root=True)
    points = 72 / figure.dpi  # for each pixel
    lines = [axis.transData.transform(line.get_xydata()) * points for line in axis.get_lines()]
    taken = np.concatenate([np.linspace(a, b, 40) for line in lines for a, b in pairwise(line)] or [np.zeros((0, 2))])
    left, _, _, top = axis.get_window_extent().extents * points
    for x, y, name, color in sorted(ends, key=lambda end: -end[1]):
        place = axis.transData.transform((x, y)) * points
        size = np.array([_LETTER_POINTS * len(name), _LINE_POINTS])
        # Right of the point or left of it, and somewhat higher or lower.
        offsets = [(dx, float(dy)) for dx in (6.0, -6.0 - size[0]) for dy in np.arange(-24, 25, 2)]
        corners = [place + np.array([dx, dy - size[1] / 2]) for dx, dy in offsets]
        costs = [
            ((taken > corner - 1) & (taken < corner + size + 1)).all(1).sum()
            + 0.4 * abs(dy)
            + (dx < 0)
            + 9 * max(0.0, corner[1] + size[1] - top)
            + 99 * max(0.0, left + 2 - corner[0])  # the axis has names of its own
            for corner, (dx, dy) in zip(corners, offsets, strict=True)
        ]
        best = int(np.argmin(costs))
        box = np.stack(np.meshgrid(np.linspace(0, size[0], 20), np.linspace(0, size[1], 8)), -1).reshape(-1, 2)
        taken = np.concatenate((taken, corners[best] + box))
        dx, dy = offsets[best]
        axis.annotate(name, (x, y), (6 if dx > 0 else -6, dy), textcoords="offset points", color=color, fontsize=7,
                      va="center", ha="left" if dx > 0 else "right")  # fmt: skip


def draw_table(axis: Any, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Fill axes with a table: the first column to the left, the others to the right."""
    axis.set_axis_off()
    table = axis.table([*rows], colLabels=[*columns], loc="upper left", cellLoc="right", edges="horizontal")
    table.auto_set_font_size(False)
    table.auto_set_column_width([*range(len(columns))])
    table.scale(1, 1.4)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.4)
        cell.get_text().set_fontsize(8)
        cell.get_text().set_color("0.4" if row == 0 else "black")
        if column == 0:
            cell.get_text().set_horizontalalignment("left")
