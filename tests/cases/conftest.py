"""What the cases share: the command line, and short recordings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.conftest import invoke

from ssamba.audio.decode import decode


@pytest.fixture
def ssamba(tmp_path, monkeypatch):
    """Runs the command in this process, in a folder (of the test, if none is given), with other environment variables.

    Returns exit code, standard output and standard error.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments, cwd=".", **environment):
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            for name, value in environment.items():
                patch.setenv(name, value)
            done = invoke(*arguments)
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.fixture
def ssamba_process(tmp_path):
    """Runs the command in a process of its own, which takes 2 s; otherwise as `ssamba`."""

    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "ssamba", *map(os.fspath, arguments)],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )
        return done.returncode, *(stream.decode("utf-8") for stream in (done.stdout, done.stderr))

    return run


@pytest.fixture(scope="session")
def second(clips):
    """Returns the n-th second of the demo's recordings, 16 kHz, as bytes of a WAV file."""
    import io

    import numpy as np
    import soundfile

    samples = np.concatenate([decode(path) for path in clips])

    def wav(number: int) -> bytes:
        file = io.BytesIO()
        start = number * 8_000
        soundfile.write(file, samples[start : start + 16_000], 16_000, format="WAV")
        return file.getvalue()

    return wav
