"""Corpora of the demo's recordings."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import soundfile as sf

from ssamba.audio.decode import decode


def add(tar, name, data, **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def foreign_shards(tmp_path_factory, clips) -> Path:
    """Two tars as other programs write them: keys repeat, metadata is of several kinds, some members are no audio."""
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
