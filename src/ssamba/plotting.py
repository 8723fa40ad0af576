"""Pictures without a display, with matplotlib (the `figures` extra): an empty figure, and writing one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ssamba.errors import MissingExtraError
from ssamba.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank_figure(width: float, height: float) -> Figure:
    """A figure of so many inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError('pictures need matplotlib: pip install "ssamba[figures]"') from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, output: str | Path, dpi: int = 120) -> Path:
    """Write a picture, of the kind that its name says (PNG where it says none), atomically; its path."""
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    kind = output.suffix.removeprefix(".") or "png"
    write_atomically(output, lambda target: figure.savefig(target, dpi=dpi, format=kind))
    return output
