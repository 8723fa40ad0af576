"""The Python and shell examples of the README run, each in the order in which they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import ROOT, SSAMBA_PTH

README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN_HERE = ("embed", "predict", "info", "convert", "average", "reconstruct")
"""Commands whose examples run as they are; those that train need settings of their own."""


@pytest.fixture(scope="module")
def example_folder(clips, classifier_folder, tmp_path_factory) -> Path:
    """A folder with the recordings and models that the examples name."""
    folder: Path = tmp_path_factory.mktemp("readme")
    for name in ("dawn.flac", "hour.flac", "night.wav", "a.wav", "b.mp3", "c.flac", "more.flac"):
        shutil.copy(clips[0], folder / name)  # the contents tell the format, not the name
    for inner, suffix in (("recordings", ".flac"), ("field/site/day", ".flac"), ("new", ".wav")):
        (folder / inner).mkdir(parents=True)
        for clip in clips[6:9]:
            shutil.copy(clip, (folder / inner / clip.name).with_suffix(suffix))
    shutil.copy(SSAMBA_PTH, folder / "ssamba_tiny.pth")
    shutil.copytree(classifier_folder, folder / "runs" / "birds" / "model")
    return folder


def commands_of_the_readme() -> list[str]:
    """Return the lines of the shell examples, without comments; a line that ends in a backslash goes on."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*", "", line).strip() for line in lines if line.strip()]


def test_python_examples_run(example_folder, clips, monkeypatch):
    monkeypatch.chdir(example_folder)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    samples = np.zeros(48_000, np.float32)
    names = {
        "samples": samples,
        "stereo": np.stack((samples, samples)),
        "batch": torch.zeros(3, 16_000),
        "files": clips,
    }
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, Python example {number}", "exec"), names)
    assert len(names["many"]) == 3
    (example_folder / "embeddings.npz").unlink()  # the shell examples make it anew


def test_shell_examples_run(example_folder):
    scripts = example_folder / "bin"
    scripts.mkdir()
    script = scripts / "ssamba"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ssamba "$@"\n')
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    found = [line for line in commands_of_the_readme() if line.startswith(tuple(f"ssamba {one}" for one in RUN_HERE))]
    for name in RUN_HERE:
        assert any(line.startswith(f"ssamba {name}") for line in found), f"no example of ssamba {name}"
    for run in ("mine", "more"):  # what `pretrain` would have made
        subprocess.run(
            [script, "convert", "ssamba_tiny.pth", "-o", f"runs/{run}/model"], cwd=example_folder, check=True
        )
    for line in found:
        done = subprocess.run(
            ["bash", "-c", line], cwd=example_folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "warning" not in done.stderr, f"{line}\n{done.stderr}"
    for name in (
        "embeddings.npz",
        "embeddings.parquet",
        "night.csv",
        "ssamba-tiny/config.json",
        "labels.csv",
        "dawn.png",
    ):
        assert (example_folder / name).is_file(), name
