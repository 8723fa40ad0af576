"""What the cases share: the command line as a user starts it, and short recordings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ssamba.audio.decode import decode


@pytest.fixture
def ssamba(tmp_path, monkeypatch):
    """Runs the command in the folder of the test; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "ssamba", *map(os.fspath, arguments)],
            capture_output=True,
            check=False,
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
