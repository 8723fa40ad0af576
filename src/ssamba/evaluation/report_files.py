"""What every report is written with: JSON beside Markdown, and pictures drawn without a display (the `figures` extra)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssamba.checkpoint.files import write_json
from ssamba.errors import MissingExtraError
from ssamba.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(folder: Path, name: str, content: Mapping[str, Any], text: str) -> list[Path]:
    """Write `NAME.json` and `NAME.md` into a folder, made if need be, each atomically; the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json", folder / f"{name}.md"]
    write_json(files[0], dict(content))
    write_atomically(files[1], lambda target: target.write_text(text, encoding="utf-8"))
    return files


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


def save_figure(figure: Figure, output: str | Path) -> Path:
    """Write a picture, of the kind that its name says (PNG where it says none), atomically; its path."""
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    kind = output.suffix.removeprefix(".") or "png"
    write_atomically(output, lambda target: figure.savefig(target, dpi=120, format=kind))
    return output
