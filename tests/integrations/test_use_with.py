"""The Python blocks of docs/use-with.md run, one after the other, except those marked as not tested."""

from __future__ import annotations

import re
import shutil

import pandas as pd
from tests.conftest import ROOT

from ssamba.audio.decode import decode


def test_the_blocks_of_the_page_run(clips, suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips[0].parent, "recordings")
    for name, clip in (("dog", clips[0]), ("crow", clips[8])):
        shutil.copy(clip, f"{name}.flac")
    table = pd.read_csv(suite / "kinds.csv").sort_values("clip")[:6]
    table["path"] = [str(suite / clip) for clip in table["clip"]]
    names = {
        "table": table, "paths": table["path"], "labels": ["a", "b"] * 3,
        "samples": decode(clips[0], sample_rate_hz=48_000),
    }  # fmt: skip
    page = (ROOT / "docs" / "use-with.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:<!-- not tested: [^\n]* -->\n)?```python\n.*?```", page, re.DOTALL)
    tested = [re.fullmatch(r"```python\n(.*?)```", block, re.DOTALL) for block in blocks]
    for number, block in enumerate(filter(None, tested)):
        exec(compile(block[1], f"docs/use-with.md, Python block {number}", "exec"), names)
    assert sum(map(bool, tested)) >= 3
