"""Commands whose reader goes away (`| head`), and commands with worker processes, end without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(os.name != "posix", reason="pipes without a reader")
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize("options", [["--workers", "0"], ["--log-json", "-v", "--workers", "2"]])
def test_a_command_that_nobody_reads_does_its_work_and_ends_quietly(tmp_path, clips, options, closed):
    output = tmp_path / "m.csv"
    command = [sys.executable, "-m", "ssamba", "manifest", str(clips[0].parent), "-o", str(output), *options]
    read_end, write_end = os.pipe()
    os.close(read_end)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: write_end}
    done = subprocess.run(command, **streams, text=True, check=False)
    os.close(write_end)
    assert done.returncode == 0
    assert len(output.read_text().splitlines()) == len(clips) + 1
    if closed == "stdout":
        assert "Traceback" not in done.stderr
        assert "pipe" not in done.stderr
    else:
        assert "14 recordings" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="pipes without a reader")
def test_results_that_nobody_reads_end_the_command_quietly():
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "ssamba", "models"], stdout=write_end, stderr=subprocess.PIPE, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")
