"""Two `ssamba embed` on one output, started in any order and killed at any moment: no row holds another's vector."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ssamba.library.tables import read_embeddings

FILES = 60
ROUNDS = int(os.environ.get("SSAMBA_RACE_ROUNDS", "4"))


@pytest.fixture(scope="module")
def race(tmp_path_factory, clips, ssamba_pth):
    """A folder of recordings, and the table that undisturbed jobs give."""
    folder = tmp_path_factory.mktemp("race")
    (folder / "rec").mkdir()
    for number in range(FILES):
        shutil.copy(clips[number % len(clips)], folder / "rec" / f"{number}.flac")
    command = [sys.executable, "-m", "ssamba", "embed", "rec", "-c", str(ssamba_pth), "--workers", "0", "-o"]
    subprocess.run([*command, "reference.npz"], cwd=folder, check=True, capture_output=True)
    return folder, command


def vectors(path):
    table = read_embeddings(path)
    return dict(zip(table["path"].tolist(), table["embedding"], strict=True))


def assert_is_the_reference(folder, name):
    found, expected = vectors(folder / name), vectors(folder / "reference.npz")
    assert found.keys() == expected.keys()
    for path, vector in found.items():
        np.testing.assert_allclose(vector, expected[path], atol=1e-5)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_table_is_complete_and_right_or_absent(race, seed):
    folder, command = race
    draw = random.Random(seed)
    name = f"{seed}.npz"
    jobs = []
    for _ in range(2):
        overwrite = ["--overwrite"] if draw.random() < 0.5 else []
        job = subprocess.Popen([*command, name, *overwrite], cwd=folder, stderr=subprocess.PIPE, text=True)
        jobs.append(job)
        time.sleep(draw.uniform(0, 4))
    time.sleep(draw.uniform(0, 4))
    killed = draw.choice(jobs)
    killed.send_signal(signal.SIGKILL)
    ends = [(job.wait(), job.stderr.read()) for job in jobs]
    for code, errors in ends:
        assert code in (0, 1, -signal.SIGKILL), errors
        assert code != 1 or "is being written by" in errors
    if (folder / name).exists():
        assert_is_the_reference(folder, name)
    done = subprocess.run([*command, name], cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_is_the_reference(folder, name)
    assert not (folder / f"{name}.partial").exists()
