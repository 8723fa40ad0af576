"""A disk that is full, or that nobody may write to: the message says what is kept, and the same command goes on."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ssamba.library.embed import embed_files
from ssamba.library.tables import StoreError, read_embeddings


@pytest.fixture
def rec(tmp_path, clips):
    (tmp_path / "rec").mkdir()
    for clip in clips[:3]:
        shutil.copy(clip, tmp_path / "rec")
    return tmp_path / "rec"


def test_vectors_that_could_not_be_written_are_not_said_to_be_kept(rec, tmp_path, embedder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(StoreError, match=r"device\. 0 files are embedded and saved"):
            embed_files(rec, tmp_path / "o.npz", embedder, workers=0)
    assert not (tmp_path / "o.npz").exists()
    assert embed_files(rec, tmp_path / "o.npz", embedder, workers=0).done == 3
    assert len(read_embeddings(tmp_path / "o.npz")["path"]) == 3


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder in which nobody can write")
def test_a_folder_that_cannot_be_written_is_named(ssamba, rec, ssamba_pth):
    for command, output in (("manifest", "m.csv"), ("embed", "o.npz")):
        options = ["-c", ssamba_pth] if command == "embed" else []
        code, out, err = ssamba(command, rec, "-o", f"/proc/{output}", *options)
        assert (code, out) == (1, "")
        assert err.endswith(f"(the output {output} would be written there): '/proc'\n")
