"""The pages: links and anchors lead somewhere, tables are those of the committed results, and pages stay short."""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from benchmarks.results_page import TABLES, filled, names, pages
from benchmarks.summaries import summarize_needles
from tests.conftest import ROOT

PAGES = sorted({*pages(), *ROOT.glob("*.md"), *ROOT.glob("packages/*/*.md"), *ROOT.glob(".github/**/*.md")})
RESULT_PAGES = [ROOT / "docs" / "results.md", *sorted((ROOT / "docs" / "benchmarks").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """Return a page without code blocks and inline code."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "code", text)


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: Counter[str] = Counter()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        kept = (c for c in plain if c in "-_ " or unicodedata.category(c)[0] in "LN")
        name = "".join(kept).replace(" ", "-")
        found[name] += 1
    return {name if k == 0 else f"{name}-{k}" for name, count in found.items() for k in range(count)}


@each_page
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}; {file.name} has {sorted(anchors(file))}"


def test_the_reference_has_every_public_name_once():
    public = ["", ".training", ".evaluation", ".model", ".checkpoint", ".config", ".ops", ".inference", ".datasets"]
    public += [".integrations.huggingface", ".integrations.onnx", ".integrations.web"]
    modules = [*(importlib.import_module(f"ssamba{name}") for name in public), importlib.import_module("ssamba_onnx")]
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    shown = [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)]
    assert max(Counter(shown).values()) == 1
    listed = {(name.partition(".")[0], name.rpartition(".")[2]) for name in shown}
    missing = [
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if not name.startswith("__") and (module.__name__.partition(".")[0], name) not in listed
    ]
    assert not missing, f"in no page of docs/api: {missing}"


def test_hooks_of_commits_take_the_linter_of_the_checks():
    (version,) = re.findall(r'"(ruff==[\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert set(re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))) == {version}


@each_page
def test_tables_are_those_of_the_committed_results(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, f"{page.name}: run `python -m benchmarks.results_page`"


def test_every_table_stands_on_one_page():
    assert Counter(name for page in PAGES for name in names(page.read_text(encoding="utf-8"))) == dict.fromkeys(
        TABLES, 1
    )


def test_pages_stay_short():
    assert len((ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()) <= 150
    for file in (ROOT / "benchmarks" / "results").rglob("*"):
        summary = f"{file.name} is large: commit a summary (benchmarks/summaries.py)"
        assert file.is_dir() or file.suffix == ".png" or file.stat().st_size <= 100_000, summary


def test_lines_of_the_changelog_have_120_characters():
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    long = [number for number, line in enumerate(lines, 1) if len(line) > 120]
    assert not long, f"CHANGELOG.md: lines {long} are longer than 120 characters"


def test_entries_of_the_log_have_ten_lines():
    for entry in re.split(r"^## ", (ROOT / "docs" / "log.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, *lines = [line for line in entry.splitlines() if line.strip()]
        assert len(lines) <= 10, f"{title}: {len(lines)} lines"


@pytest.mark.parametrize("page", RESULT_PAGES, ids=lambda page: page.name)
def test_results_speak_of_no_targets(page):
    found = re.search(r"\b(wanted|must|aimed|not met|issue \d+)\b", prose(page), re.IGNORECASE)
    assert found is None, f"{page.name}: strangers know no targets ({found})"


def test_needle_studies_are_summarized_by_duration_side_and_rule():
    def trial(rank, level_db=0.0):
        return {
            "minutes": 1.0, "side": "full", "rule": "frame", "level_db": level_db, "rank": rank, "chance": 0.25,
        }  # fmt: skip

    facts = dict.fromkeys(("options", "identity", "environment", "needles", "files", "passes", "finished"))
    summary = summarize_needles({**facts, "trials": [trial(1), trial(3), trial(None), trial(1, -6.0)], "curves": []})
    assert [(s["level_db"], s["trials"], s["first"], s["five"]) for s in summary["scores"]] == [
        (0.0, 3, 1, 2),
        (-6.0, 1, 1, 1),
    ]
    assert "curves" not in summary
