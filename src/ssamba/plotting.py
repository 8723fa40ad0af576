"""Create and write figures without a display, by matplotlib (the `figures` extra)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ssamba.errors import MissingExtraError
from ssamba.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError('pictures need matplotlib: pip install "ssamba[figures]"') from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, output: str | Path, dpi: int = 120, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a figure atomically, in the format of the file's suffix (PNG if it has none); return the path."""
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    kind = output.suffix.removeprefix(".") or "png"
    write_atomically(output, lambda target: figure.savefig(target, dpi=dpi, format=kind, metadata=metadata))
    return output
