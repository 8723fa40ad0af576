"""The Python examples of the README run, in the order in which they stand there."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from tests.conftest import ROOT, SSAMBA_PTH

from ssamba.checkpoint import save_checkpoint
from ssamba.config import ClassifierConfig
from ssamba.model import Classifier, encoder_config


@pytest.fixture
def example_files(clips, tmp_path, monkeypatch):
    """The files and variables that the examples name."""
    monkeypatch.chdir(tmp_path)
    for name in ("dawn.flac", "hour.flac", "a.wav", "b.mp3", "c.flac", "more.flac"):
        shutil.copy(clips[0], name)  # the contents tell the format, not the name
    shutil.copy(SSAMBA_PTH, "ssamba_tiny.pth")
    model = Classifier(encoder_config("tiny", embed_dim=32, depth=2), ClassifierConfig(num_classes=4))
    save_checkpoint("runs/birds", model)
    samples = np.zeros(48_000, np.float32)
    return {"samples": samples, "stereo": np.stack((samples, samples)), "batch": torch.zeros(3, 16_000), "files": clips}


def test_python_examples_run(example_files, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = dict(example_files)
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, Python example {number}", "exec"), names)
    assert len(names["many"]) == 3
