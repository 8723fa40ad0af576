"""What several test files share: the golden numbers, real recordings, and a small model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssamba.audio.decode import decode
from ssamba.embedder import Embedder
from ssamba.model import create_encoder

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
SSAMBA_PTH = GOLDEN / "ssamba_official_dim32_depth4" / "official_checkpoint.pth"
SSAST_PTH = GOLDEN / "ssast_official_dim24_depth2" / "official_checkpoint.pth"


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
