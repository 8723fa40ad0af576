"""The open suite's miniature packages and synthesizers, and a suite whose clips are left out."""

from __future__ import annotations

import io
import tarfile

import pytest
import soundfile as sf
from tests.benchmarks.open_suite.conftest import debs, program, wav

from ssamba.data.shards import ShardSettings, encode

__all__ = ["debs", "excluded", "program", "wav"]


@pytest.fixture
def excluded(tmp_path):
    """Writes a suite that holds the first 4 s of recordings, in a codec and bit rate of its own."""

    def write(recordings):
        folder = tmp_path / "suite"
        folder.mkdir()
        with tarfile.open(folder / "speaker.tar", "w") as tar:
            for number, data in enumerate(recordings):
                samples, rate_hz = sf.read(io.BytesIO(data), dtype="float32")
                opus = encode(samples[: 4 * rate_hz], ShardSettings(bitrate_kbps=48.0))
                member = tarfile.TarInfo(f"{number}.opus")
                member.size = len(opus)
                tar.addfile(member, io.BytesIO(opus))
        lines = [f"{n}.opus,{'ab'[n % 2]},{('train', 'test')[n // 2 % 2]},\n" for n in range(len(recordings))]
        (folder / "speaker.csv").write_text("clip,label,split,group\n" + "".join(lines))
        return folder

    return write
