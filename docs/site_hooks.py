"""Hooks of the site: files of the repository that pages link to are part of it; the first page is the README.

A link to a file outside docs/ (a picture of results, a recipe, an example) leads to a copy under `repository/`; to a
folder, it becomes plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(!?)\[([^]]*)\]\(((?:\.\.?/)*[\w./-]+?)(#[\w-]+)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the README as the first page."""
    files.append(File.generated(config, "index.md", content=_of_the_readme()))
    return files


def _of_the_readme() -> str:
    """Return the README with links as from docs/."""

    def moved(found: re.Match[str]) -> str:
        target = found[3].removeprefix("docs/") if found[3].startswith("docs/") else f"../{found[3]}"
        return f"{found[1]}[{found[2]}]({target}{found[4] or ''})"

    return _LINK.sub(moved, (ROOT / "README.md").read_text(encoding="utf-8"))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Add the files outside docs/ that the page links to, and let its links lead there."""
    docs = Path(config["docs_dir"])
    folder = (docs / page.file.src_uri).parent

    def inside(found: re.Match[str]) -> str:
        target = (folder / found[3]).resolve()
        if docs in target.parents or ROOT not in target.parents:
            return found[0]
        if not target.is_file():
            return found[2]
        name = f"repository/{target.relative_to(ROOT).as_posix()}"
        if target.suffix == ".md":
            name += ".txt"
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(target)))
        up = "../" * page.file.src_uri.count("/")
        return f"{found[1]}[{found[2]}]({up}{name})"

    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("`") else _LINK.sub(inside, part) for part in parts)
