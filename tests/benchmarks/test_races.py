"""Two `ssamba embed` on one table, killed at any moment: ten rounds of `python -m benchmarks.races`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the race forks its processes")
def test_two_writers_that_are_killed_at_any_moment_never_spoil_a_table():
    command = [sys.executable, "-m", "benchmarks.races", "--rounds", "10", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("10 rounds: ")
    assert "refused" in done.stdout
