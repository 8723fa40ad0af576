"""Fixtures of the training tests. They run on one thread, so that sums are always formed in the same order."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import soundfile

from ssamba.audio.decode import decode

SCRIPT = Path(__file__).with_name("experiment.py")


@pytest.fixture(scope="session")
def experiment() -> ModuleType:
    """Import experiment.py as a module."""
    name = "training_experiment"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def classes(tmp_path_factory, clips):
    """Write a folder with three classes of eight clips of 0.5 to 1 s."""
    folder = tmp_path_factory.mktemp("classes")
    for name, sources in {"drum": clips[6:8], "tabla": clips[10:12], "choir": clips[:2]}.items():
        (folder / name).mkdir()
        for k in range(8):
            wave = decode(sources[k % 2])
            part = wave[k * 1600 : k * 1600 + 8000 + 1000 * k]
            soundfile.write(folder / name / f"{k}.wav", part, 16_000)
    return folder


@pytest.fixture
def launch():
    """Return a function that runs experiment.py in a new process, or in several under torchrun."""

    def start(*arguments: object, processes: int | None = None, restarts: int = 0) -> subprocess.CompletedProcess[str]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        torchrun += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
        command = [sys.executable, *(torchrun if processes else []), str(SCRIPT), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)

    return start


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass
