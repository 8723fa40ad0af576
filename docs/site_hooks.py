"""Hooks of the site: files of the repository that pages link to are part of it; the first page is the README.

A link to a file outside docs/ (a picture of results, a recipe, an example) leads to a copy under `repository/`; to a
folder, it becomes plain text. Notebooks become pages: their text, code, printed output and pictures as they stand in
the files.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "examples" / "notebooks"
_LINK = re.compile(r"(!?)\[([^]]*)\]\(((?:\.\.?/)*[\w./-]+?)(#[\w-]+)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the README as the first page, and a page for each notebook."""
    files.append(File.generated(config, "index.md", content=_of_the_readme()))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, pictures = _of_a_notebook(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def _of_a_notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook (nbformat 4) as Markdown for `notebooks/`, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source.replace("](../../docs/", "](../"))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {})
            if "image/png" in shown:
                name = f"{path.stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(shown["image/png"]))
                parts.append(f"![output of the cell above]({name})")
            elif text := "".join(output.get("text", shown.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    parts.insert(1, f"The notebook, to run it from a clone: [{path.name}](../../examples/notebooks/{path.name})")
    return "\n\n".join(parts) + "\n", pictures


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
        if target.parent == NOTEBOOKS and target.suffix == ".ipynb" and page.file.src_uri == "notebooks/index.md":
            return f"[{found[2]}]({target.stem}.md)"
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
