"""Rules of the source tree: the direction of imports, no cycles, lazy imports, and files that say what they hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "ssamba"

# A package, or a module of its own, may import from rows below its own, and from itself.
ROWS = {
    "errors": -1,
    "cores": 0,
    "files": 0,
    "progress": 0,
    "text": 0,
    "hashing": 0,
    "hints": 0,
    "locks": 1,
    "text_files": 1,
    "worker_pool": 1,
    "config": 1,
    "devices": 1,
    "randomness": 1,
    "plotting": 1,
    "metrics": 1,
    "probes": 1,
    "similarity": 1,
    "splits": 1,
    "annotations": 2,
    "events": 2,
    "ops": 1,
    "embedding": 2,
    "model": 2,
    "audio": 2,
    "checkpoint": 3,
    "data": 3,
    "inference": 3,
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
OPTIONAL = (
    *("av", "datasets", "faiss", "huggingface_hub", "matplotlib", "mir_eval", "onnx", "onnxruntime", "pyarrow"),
    *("pandas", "ray", "scipy", "sentence_transformers", "sklearn", "tensorboard", "transformers", "triton"),
    *("umap", "webdataset"),
)
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_name(path: Path) -> str:
    parts = ("ssamba", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row_name(module: str) -> str:
    """The package or top-level module that has a row."""
    return module.split(".")[1] if "." in module else "__init__"


@cache
def imports_of(path: Path) -> dict[str, int]:
    """Modules of the package that a file imports anywhere, also in functions and under TYPE_CHECKING, with the line."""
    modules = {module_name(file) for file in FILES}
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            target = f"{module}.{name}" if f"{module}.{name}" in modules else module
            if target.split(".")[0] == "ssamba":
                compiled = target.rpartition(".")[2].startswith("_")
                assert target in modules or compiled, f"{path}:{node.lineno}: no module {target}"
                found.setdefault(target, node.lineno)
    return found


def modules_after(code: str) -> set[str]:
    """Top-level modules that a new interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "path", [f for f in FILES if f != PACKAGE / "__init__.py"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path):
    own = row_name(module_name(path))
    assert own in ROWS, f"{own} has no row: add it to `ROWS` in this test"
    for module, line in imports_of(path).items():
        other = row_name(module)
        if other != "__init__":  # the package itself: its version
            assert other == own or ROWS[other] < ROWS[own], f"{path}:{line}: {own} must not import {other}"


@each_file
def test_no_module_is_in_an_import_cycle(path):
    files = {module_name(file): file for file in FILES}
    start = module_name(path)
    came_from = {start: ""}
    queue = [start]
    while queue:
        module = queue.pop()
        # Names that `ssamba` hands on under TYPE_CHECKING are loaded when they are first used.
        for imported in imports_of(files[module]) if module in files and module != "ssamba" else ():
            if imported == start:
                cycle = [start]
                while module:
                    cycle.append(module)
                    module = came_from[module]
                pytest.fail(f"import cycle: {' <- '.join(cycle)}")
            if imported not in came_from:
                came_from[imported] = module
                queue.append(imported)


@each_file
def test_files_open_with_what_they_do(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")


@each_file
def test_files_have_at_most_600_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, f"{path} holds more than one story: divide it"


@pytest.mark.parametrize(
    "module",
    [
        "ssamba",
        "ssamba.audio.decode",
        "ssamba.cli.app",
        "ssamba.data.corpus",
        "ssamba.data.shards",
        "ssamba.hashing",
        "ssamba.locks",
        "ssamba.worker_pool",
    ],
)
def test_light_modules_load_no_torch(module):
    """Processes that only decode, and commands that only parse, start quickly."""
    assert "torch" not in modules_after(f"import {module}")


def test_importing_ssamba_loads_the_standard_library_alone():
    assert not modules_after("import ssamba") - set(sys.stdlib_module_names) - modules_after("") - {"ssamba"}


def test_no_module_loads_an_optional_dependency_when_imported():
    """Except those that need one by name: kernels in Triton, and integrations."""
    own_dependency = ("ssamba.ops.triton", "ssamba.integrations.", "ssamba.__main__")
    modules = [name for name in map(module_name, FILES) if not name.startswith(own_dependency)]
    loaded = modules_after("\n".join(f"import {name}" for name in modules)) & set(OPTIONAL)
    assert not loaded - modules_after("import torch")


def test_loading_a_model_does_not_load_the_compiler_of_pytorch():
    """Which takes a second and 100 MB, and brings SymPy."""
    assert "sympy" not in modules_after("import ssamba\nssamba.load_model(device='cpu')")


def defined_names(path: Path) -> set[str]:
    """Classes, functions and constants of a module, and `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            names |= {target.id} if isinstance(target, ast.Name) else set()
    return names


def test_the_layout_page_names_files_and_functions_that_exist():
    rows = [line.split("|")[2] for line in (ROOT / "docs" / "layout.md").read_text("utf-8").splitlines() if "|" in line]
    checked = 0
    for row in rows:
        path = ROOT
        for name in re.findall(r"`([^`]+)`", row):
            if name.endswith((".py", ".md", "/")):
                path = next((root / name for root in (PACKAGE, ROOT) if (root / name).exists()), ROOT / name)
                assert path.exists(), f"docs/layout.md: there is no {name}"
            elif path.suffix == ".py" and re.fullmatch(r"[A-Za-z_][\w.]*", name) and name != "config.json":
                assert name in defined_names(path), f"docs/layout.md: {path.relative_to(ROOT)} defines no {name}"
            checked += 1
    assert checked > 120
