"""What several test files share: the golden numbers, real recordings, and a small model."""

from __future__ import annotations

import ssamba  # noqa: F401 - before PyTorch, whose threads it tells how to wait

# isort: split
import csv
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ssamba.audio.decode import decode
from ssamba.checkpoint import save_checkpoint
from ssamba.cli import app
from ssamba.config import ClassifierConfig
from ssamba.embedder import Embedder
from ssamba.model import create_encoder
from ssamba.model.heads import Classifier

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
SSAMBA_PTH = GOLDEN / "ssamba_official_dim32_depth4" / "official_checkpoint.pth"
SSAST_PTH = GOLDEN / "ssast_official_dim24_depth2" / "official_checkpoint.pth"


def invoke(*arguments):
    """Run `ssamba` in this process, with the warnings of a new one; errors that it does not handle are raised."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        done = CliRunner().invoke(app, list(map(os.fspath, arguments)))
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done


@pytest.fixture
def one_thread():
    """Computes with one thread of PyTorch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden():
    """Loads a golden file by its name under tests/golden."""
    return lambda name: load_file(GOLDEN / name)


@pytest.fixture(scope="session")
def ssamba_pth() -> Path:
    return SSAMBA_PTH


@pytest.fixture(scope="session")
def ssast_pth() -> Path:
    return SSAST_PTH


@pytest.fixture(scope="session")
def clips() -> list[Path]:
    """The demo's real recordings."""
    return sorted((ROOT / "demo" / "audio").glob("*.flac"))


@pytest.fixture(scope="session")
def medley(clips) -> np.ndarray:
    """All demo recordings one after the other, 28 s at 16 kHz."""
    return np.concatenate([decode(path) for path in clips])


def small_encoder(**overrides):
    """Depth 4, width 32, random weights from a fixed seed, in evaluation mode."""
    torch.manual_seed(0)
    return create_encoder("tiny", **{"embed_dim": 32, "depth": 4, **overrides}).eval()


@pytest.fixture(scope="session")
def make_encoder():
    return small_encoder


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return Embedder(small_encoder(), device="cpu", name="small")


def write_table(path: Path, rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "label", "split", "group"])
        writer.writerows(rows)


@pytest.fixture(scope="session")
def suite(clips, tmp_path_factory) -> Path:
    """Two tasks on pieces of 0.3 to 0.5 s; the label is the kind of recording.

    `drum8`, a name of the open suite's, lies in an archive and is scored by three folds; `kinds` is unpacked, with a
    training and a test part.
    """
    folder: Path = tmp_path_factory.mktemp("suite")
    (folder / "kinds").mkdir()
    folds, parts = [], []
    for path in clips:
        kind = path.stem.split("_")[0]
        if kind in ("drum", "misc", "perc"):
            continue
        samples = decode(path, sample_rate_hz=16_000)
        for number, start_s in enumerate((0.0, 0.25, 0.5)):
            start = round(start_s * 16_000)
            piece = samples[start : start + round((0.3 + 0.1 * number) * 16_000)]
            if len(piece) < 1000:
                piece = samples[:4000]
            name = f"kinds/{path.stem}_{number}.flac"
            soundfile.write(folder / name, piece, 16_000)
            folds.append((name, kind, f"fold{number}", f"{path.stem}{number}"))
            parts.append((name, kind, "test" if number == 2 else "train", f"{path.stem}{number}"))
    write_table(folder / "drum8.csv", folds)
    with tarfile.open(folder / "drum8.tar", "w") as archive:
        archive.add(folder / "kinds", "kinds")
    write_table(folder / "kinds.csv", parts)
    return folder


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory) -> Path:
    """A classifier of three classes with random weights, as a checkpoint."""
    torch.manual_seed(1)
    config = ClassifierConfig(num_classes=3, labels=("crow", "drum", "choir"))
    folder: Path = tmp_path_factory.mktemp("classifier")
    return save_checkpoint(folder / "model", Classifier(small_encoder().config, config).eval())
