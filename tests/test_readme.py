"""The Python and shell examples of the README and the guides run, each in the order in which they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

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

GUIDES = ("pretrain", "models", "embed", "finetune", "events", "quick-start", "studies")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in GUIDES)]


@pytest.fixture
def example_folder(clips, suite, tmp_path, monkeypatch):
    """The working folder, with the recordings and models that the examples name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSAMBA_CACHE", str(tmp_path / "cache"))
    for folder in ("recordings", "audioset", "librispeech", "nights", "bats"):
        shutil.copytree(clips[0].parent, folder, ignore=shutil.ignore_patterns("*.md"))
    for folder in ("sounds", "words", "birds", "surveys/wood/2026-05-01", "surveys/lake/2026-05-02"):
        for kind, path in (("drum", clips[6]), ("tabla", clips[11])):
            write_pieces(f"{folder}/{kind}", path)
    for folder, suffix in (("field/site/day", ".flac"), ("new", ".wav")):
        Path(folder).mkdir(parents=True)
        for clip in clips[6:9]:
            shutil.copy(clip, (Path(folder) / clip.name).with_suffix(suffix))
    shutil.copytree(suite, "suite")
    samples = [decode(path, sample_rate_hz=48_000) for path in (clips[6], clips[11])]
    parts = {
        part: {f"{part}{k}.wav": ([("drum", "tabla")[k % 2]], samples[k % 2][3000 * k :][:9000]) for k in range(count)}
        for part, count in (("train", 8), ("valid", 4), ("test", 4))
    }
    write_task(tmp_path / "hear-2021.0.6" / "tasks" / "demo-v1", parts, split_mode="trainvaltest")
    for name in ("dawn.flac", "hour.flac", "night.wav", "a.wav", "b.mp3", "c.flac", "more.flac"):
        shutil.copy(clips[0], name)  # the contents tell the format, not the name
    shutil.copy(SSAMBA_PTH, "ssamba_tiny.pth")
    return tmp_path


def write_pieces(folder, path):
    """Write eight pieces of a recording."""
    Path(folder).mkdir(parents=True)
    samples = decode(path)
    for number in range(8):
        soundfile.write(f"{folder}/{number}.wav", samples[1600 * number :][:8000], 16_000)


def blocks(page, language):
    """Return the blocks of code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_python_examples_run(example_folder, clips):
    model = Classifier(encoder_config("tiny", embed_dim=32, depth=2), ClassifierConfig(num_classes=4))
    save_checkpoint("runs/birds", model)
    samples = np.zeros(48_000, np.float32)
    names = {
        "samples": samples,
        "stereo": np.stack((samples, samples)),
        "batch": torch.zeros(3, 16_000),
        "files": clips,
        "probe": SimpleNamespace(classes_=np.array(["owl"]), predict_proba=lambda x: np.ones((len(x), 1))),
    }
    for page in PAGES:
        for number, block in enumerate(blocks(page, "python")):
            exec(compile(block, f"{page.name}, Python example {number}", "exec"), names)
    assert len(names["many"]) == 3


def examples() -> list[list[str]]:
    """Return the arguments of the pages' `ssamba` commands."""
    lines = "\n".join(block for page in PAGES for block in blocks(page, "bash")).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+# .*", "", re.sub(r"^torchrun .* -m ssamba", "ssamba", line)).strip() for line in lines]
    return [shlex.split(line)[1:] for line in lines if line.startswith("ssamba ")]


def shortened(command: list[str]) -> list[str]:
    """Return a command with fewer tasks, or a small model and few steps."""
    if command[:2] == ["evaluate", "suite/"]:
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


def test_shell_examples_run(example_folder):
    save_checkpoint("start", small_encoder(variant="ssamba2", patch_size=(128, 4), patch_stride=(128, 4)))
    found = [example for example in examples() if example[0] != "bench"]  # benchmarks take minutes: tests/studies
    assert {example[0] for example in found} == {
        "average", "compare", "convert", "embed", "evaluate", "finetune", "info", "manifest", "predict", "pretrain",
        "reconstruct", "shard",
    }  # fmt: skip
    done = CliRunner().invoke(app, ["manifest", "sounds", "-o", "esc50.parquet", "--labels", "folder"])
    for example in found:
        done = CliRunner().invoke(app, shortened(example))
        assert done.exit_code == 0, f"ssamba {shlex.join(example)}\n{done.output}"
        if example[0] not in (
            "pretrain",
            "finetune",
            "evaluate",
            "predict",
        ):  # these name what is small about the test's data
            assert "warning" not in done.stderr, f"ssamba {shlex.join(example)}\n{done.stderr}"
    for name in (
        "embeddings.npz", "embeddings.parquet", "night.csv", "ssamba-tiny/config.json", "labels.csv", "dawn.png",
        "dawn.wav", "runs/mean/model.safetensors", "card.png", "shards/index.parquet",
    ):  # fmt: skip
        assert Path(name).is_file(), name
