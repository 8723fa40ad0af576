"""The examples in examples/ and the Python blocks of docs/own-loop.md and own-objective.md run as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from examples.own_objective import main as own_objective

import ssamba

ROOT = Path(__file__).resolve().parent.parent


def run(*command, cwd):
    """Run Python on one thread, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks_of(page):
    """Return the Python blocks of a page of docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_example_trains_on_real_recordings(tmp_path):
    out = run(
        ROOT / "examples" / "own_loop.py", "--epochs", 3, "--checkpointing", "-o", tmp_path / "model", cwd=tmp_path
    )
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert len(losses) == 3
    assert losses[-1] < 0.6 * losses[0]
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_the_blocks_of_the_page_about_own_loops_run_one_after_the_other(tmp_path):
    blocks = blocks_of("own-loop.md")
    assert len(blocks) >= 7
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    # Two blocks compiled without C++ in place of minutes; a process group of one.
    head = f"""
import functools, os, torch
os.environ.update({environment!r})
torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="eager")
torch.set_num_threads(1)
"""
    code = "\n".join([head, *blocks, "print('done')"]).replace(
        'create_encoder("tiny")', 'create_encoder("tiny", depth=2)'
    )
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    assert run("page.py", cwd=tmp_path).endswith("done\n")
    assert {path.name for path in tmp_path.iterdir()} == {"page.py", "encoder.pt", "encoder.pt2", "my-encoder"}


SMALL = {"model.encoder.embed_dim": 24, "model.encoder.depth": 2, "data.workers": 0, "run.log_every": 1}


def small_runs(monkeypatch, **changes):
    """Let `ssamba.pretrain` train a small encoder in this process."""
    whole = ssamba.pretrain

    def pretrain(*arguments, set=None, **options):
        return whole(*arguments, set={**SMALL, **changes, **(set or {})}, **options)

    monkeypatch.setattr(ssamba, "pretrain", pretrain, raising=False)


def logged(run):
    """Return the lines of a log about training steps."""
    lines = map(json.loads, (run / "log.jsonl").read_text("utf-8").splitlines())
    return [line for line in lines if line["event"] == "train"]


def test_the_example_of_an_objective_trains_on_real_recordings(tmp_path, clips, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_runs(monkeypatch)
    own_objective([clips[0].parent])
    steps = logged(tmp_path / "build" / "vicreg")
    assert all(0 < step["vicreg"] < 5 and step["vicreg_deviation"] > 0 for step in steps)
    assert "clip" not in steps[-1]


def test_the_blocks_of_the_page_about_objectives_run(tmp_path, clips, monkeypatch):
    (tmp_path / "recordings").mkdir()
    for clip in clips:
        shutil.copy(clip, tmp_path / "recordings")
    monkeypatch.chdir(tmp_path)
    small_runs(monkeypatch, **{"data.crop_s": 1.0, "data.valid_share": 0.3})
    blocks = blocks_of("own-objective.md")
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert all(step["loudness"] > 0 for step in logged(tmp_path / "runs" / "loud"))
    assert "own_heads.loudness.weight" in ssamba.load_checkpoint("runs/loud").model.state_dict()
