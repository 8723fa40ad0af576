"""The example in examples/ and the Python blocks of docs/own-loop.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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


def test_the_example_trains_on_real_recordings(tmp_path):
    out = run(
        ROOT / "examples" / "own_loop.py", "--epochs", 3, "--checkpointing", "-o", tmp_path / "model", cwd=tmp_path
    )
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert len(losses) == 3
    assert losses[-1] < 0.6 * losses[0]
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_the_blocks_of_the_page_about_own_loops_run_one_after_the_other(tmp_path):
    page = (ROOT / "docs" / "own-loop.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
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
