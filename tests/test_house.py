"""The house rules that a test can hold: the import direction, and files that name what they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "ssamba"

# A room may import from rooms of lower floors, and from itself. `errors` and `files` are below everything.
FLOORS = {
    "errors": 0,
    "files": 0,
    "hashing": 0,
    "worker_pool": 1,
    "config": 1,
    "randomness": 1,
    "plotting": 1,
    "metrics": 1,
    "splits": 1,
    "events": 2,
    "ops": 1,
    "model": 2,
    "audio": 2,
    "checkpoint": 3,
    "data": 3,
    "recording": 3,
    "datasets": 4,
    "embedder": 4,
    "evaluation": 5,
    "integrations": 5,
    "library": 5,
    "training": 6,
    "serve": 7,
    "studies": 7,
    "cli": 8,
    "__main__": 9,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path):
    """Rooms imported anywhere in a file, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "ssamba" else [node.module]
            )
        for name in names:
            parts = name.split(".")
            if parts[0] == "ssamba" and len(parts) > 1 and parts[1] in FLOORS:
                yield parts[1], node.lineno


@pytest.mark.parametrize(
    "path", [f for f in FILES if f != PACKAGE / "__init__.py"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path):
    own = room(path)
    assert own in FLOORS, f"{own} has no floor: add it to DESIGN and to this test"
    for other, line in imported_rooms(path):
        assert other == own or FLOORS[other] < FLOORS[own], f"{path}:{line}: {own} must not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_open_with_what_they_do_and_stay_short(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} has no docstring"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, f"{path} is too long to read on a few screens"
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")


def test_decoding_needs_no_torch():
    for name in ("decode", "readers", "containers", "files"):
        assert "torch" not in (PACKAGE / "audio" / f"{name}.py").read_text().replace("No torch here", "")
