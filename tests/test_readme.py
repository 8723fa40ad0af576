"""The examples of the README run, in the order in which they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.conftest import ROOT, SSAMBA_PTH, small_encoder
from tests.evaluation.test_hear import write_task
from typer.testing import CliRunner

from ssamba.audio.decode import decode
from ssamba.checkpoint import save_checkpoint
from ssamba.cli import app
from ssamba.config import ClassifierConfig
from ssamba.model import Classifier, encoder_config


@pytest.fixture
def example_files(clips, suite, tmp_path, monkeypatch):
    """The files and variables that the examples name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSAMBA_CACHE", str(tmp_path / "cache"))
    for folder in ("recordings", "audioset", "librispeech"):
        shutil.copytree(clips[0].parent, folder, ignore=shutil.ignore_patterns("*.md"))
    for folder in ("sounds", "words"):
        for kind, path in (("drum", clips[6]), ("tabla", clips[11])):
            write_pieces(f"{folder}/{kind}", path)
    shutil.copytree(suite, "suite")
    samples = [decode(path, sample_rate_hz=48_000) for path in (clips[6], clips[11])]
    parts = {
        part: {f"{part}{k}.wav": ([("drum", "tabla")[k % 2]], samples[k % 2][3000 * k :][:9000]) for k in range(count)}
        for part, count in (("train", 8), ("valid", 4), ("test", 4))
    }
    write_task(tmp_path / "hear-2021.0.6" / "tasks" / "demo-v1", parts, split_mode="trainvaltest")
    for name in ("dawn.flac", "hour.flac", "a.wav", "b.mp3", "c.flac", "more.flac"):
        shutil.copy(clips[0], name)  # the contents tell the format, not the name
    shutil.copy(SSAMBA_PTH, "ssamba_tiny.pth")
    model = Classifier(encoder_config("tiny", embed_dim=32, depth=2), ClassifierConfig(num_classes=4))
    save_checkpoint("runs/birds", model)
    samples = np.zeros(48_000, np.float32)
    return {"samples": samples, "stereo": np.stack((samples, samples)), "batch": torch.zeros(3, 16_000), "files": clips}


def write_pieces(folder, path):
    """Write eight pieces of a recording."""
    Path(folder).mkdir(parents=True)
    samples = decode(path)
    for number in range(8):
        soundfile.write(f"{folder}/{number}.wav", samples[1600 * number :][:8000], 16_000)


def test_python_examples_run(example_files, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = dict(example_files)
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, Python example {number}", "exec"), names)
    assert len(names["many"]) == 3


COMMANDS = ("manifest", "shard", "pretrain", "finetune", "evaluate", "prepare", "stats")
"""Commands whose examples run here."""


def shortened(command: list[str]) -> list[str]:
    """Return a command with fewer tasks, or a small model and few steps."""
    if command[0] == "evaluate" and command[1] == "suite/":
        return [*command, "--task", "kinds"]
    if command[0] not in ("pretrain", "finetune"):
        return command
    for name in ("--minutes", "--epochs"):
        if name in command:
            at = command.index(name)
            command = command[:at] + command[at + 2 :]
    command = [*command, "--set", "run.epochs=none", "--set", "run.max_minutes=none", "--set", "run.steps=1"]
    if command[0] == "finetune":
        return [*command, "--set", "clips.workers=0", *([] if "-c" in command else ["-c", "start"])]
    return [*command, "--set", "data.workers=0", *([] if "-c" in command else ["--set", "model.encoder.depth=2"])]


def test_shell_examples_run(example_files):
    save_checkpoint("start", small_encoder(variant="ssamba2", patch_size=(128, 4), patch_stride=(128, 4)))
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    lines = [re.sub(r"^torchrun .* -m ssamba", "ssamba", line) for line in lines]
    examples = [shlex.split(line)[1:] for line in lines if line.startswith("ssamba ")]
    examples = [example for example in examples if example[0] in COMMANDS]
    assert {"pretrain", "finetune", "manifest", "shard", "evaluate"} <= {example[0] for example in examples}
    done = CliRunner().invoke(app, ["manifest", "sounds", "-o", "esc50.parquet", "--labels", "folder"])
    for example in examples:
        done = CliRunner().invoke(app, shortened(example))
        assert done.exit_code == 0, f"ssamba {shlex.join(example)}\n{done.output}"
