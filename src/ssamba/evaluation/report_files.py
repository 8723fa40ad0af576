"""What every study is written as: JSON beside Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssamba.checkpoint.files import write_json
from ssamba.files import write_atomically


def write_report(folder: Path, name: str, content: Mapping[str, Any], text: str) -> list[Path]:
    """Write `NAME.json` and `NAME.md` into a folder, made if need be, each atomically; the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json", folder / f"{name}.md"]
    write_json(files[0], dict(content))
    write_atomically(files[1], lambda target: target.write_text(text, encoding="utf-8"))
    return files
