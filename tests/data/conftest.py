"""Corpora of the demo's recordings, kept in every way there is."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ssamba.audio.decode import decode
from ssamba.data.corpus import Corpus, CorpusClip


class NoiseCorpus(Corpus):
    """Clips of given lengths, each of its own constant value, without files."""

    def __init__(self, seconds, name="noise", shards=None, rate_hz=16_000, broken=()):
        self.name, self.sample_rate_hz = name, rate_hz
        self.seconds = np.asarray(seconds, np.float64)
        self.shards = None if shards is None else np.asarray(shards, np.int64)
        self.broken = frozenset(broken)

    def key(self, i):
        return f"{self.name}-{i}"

    def clip(self, i):
        return CorpusClip(self.key(i), float(self.seconds[i]), (f"class {i % 3}",))

    def read(self, i, start_s=0.0, seconds=None):
        if i in self.broken:
            raise ValueError(f"{self.key(i)}: broken on purpose")
        length = round(self.seconds[i] * self.sample_rate_hz)
        ramp = (np.arange(length, dtype=np.float32) / length + i).astype(np.float32)
        first = round(start_s * self.sample_rate_hz)
        return ramp[first : None if seconds is None else round((start_s + seconds) * self.sample_rate_hz)]


class CrashingCorpus(NoiseCorpus):
    """Reading one of its clips kills the process, as a fault in a codec does."""

    def read(self, i, start_s=0.0, seconds=None):
        if i == 7 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i, start_s, seconds)


def add(tar, name, data, **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def foreign_shards(tmp_path_factory, clips) -> Path:
    """Two tars as others write them: keys that begin anew, metadata of several kinds, and some rubbish."""
    folder: Path = tmp_path_factory.mktemp("foreign")
    for number, part in enumerate((clips[:7], clips[7:])):
        with tarfile.open(folder / f"part-{number}.tar", "w") as tar:
            for i, path in enumerate(part):
                samples = decode(path)
                encoded = io.BytesIO()
                sf.write(encoded, samples, 16_000, format="OGG", subtype="OPUS")
                add(tar, f"sub/{i:03d}.opus", encoded.getvalue())
                if i == 0:
                    add(tar, f"sub/{i:03d}.json", json.dumps({"label": path.stem, "split": "test"}).encode())
                elif i == 1:
                    add(tar, f"sub/{i:03d}.cls", b"7\n")
            add(tar, "sub/099.opus", b"not audio")
            add(tar, "sub/100.txt", b"no audio beside it")
    return folder
