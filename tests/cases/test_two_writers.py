"""Two jobs that write one output: the second is refused, or takes it over and the first writes nothing more."""

from __future__ import annotations

import shutil
import threading
from functools import partial

import pytest

from ssamba.data.corpus import open_corpus
from ssamba.data.listing import make_manifest
from ssamba.data.manifest import read_manifest, scan_folder
from ssamba.data.shards import write_shards
from ssamba.datasets.urbansound8k import render_scenes
from ssamba.errors import LockLostError, OutputInUseError


@pytest.fixture
def folders(tmp_path, clips):
    """Three recordings, and two others."""
    for name, paths in (("a", clips[:3]), ("b", clips[3:5])):
        (tmp_path / name).mkdir()
        for path in paths:
            shutil.copy(path, tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def scenes(source, output, **options):
    return render_scenes(scan_folder(source)[0], output, **options)


WRITERS = [
    (make_manifest, "m.csv", lambda output: len(read_manifest(output))),
    (partial(write_shards, workers=1), "shards", lambda output: len(open_corpus(output))),
    (scenes, "scenes", lambda output: len(list(output.rglob("*.flac")))),
]


@pytest.mark.parametrize(("write", "name", "count"), WRITERS, ids=["manifest", "shards", "scenes"])
def test_a_second_writer_is_refused_at_once(folders, tmp_path, write, name, count):
    output, (first, second) = tmp_path / name, folders
    refused = []

    def begin_another(state):
        for overwrite in ({"overwrite": True}, {}):
            with pytest.raises(OutputInUseError, match="is being written by this very process") as caught:
                write(second, output, **(overwrite if write is not scenes else {}))
            refused.append(str(caught.value))

    write(first, output, progress=begin_another)
    assert len(refused) >= 2
    assert count(output) == (1 if write is scenes else 3)
    assert list(tmp_path.rglob("*.lock*")) == []


@pytest.mark.parametrize(("write", "name", "count"), WRITERS, ids=["manifest", "shards", "scenes"])
def test_a_writer_that_was_taken_over_writes_nothing_more(folders, tmp_path, write, name, count):
    output, (first, second) = tmp_path / name, folders

    def take_over(state):
        if not taken:
            taken.append(True)
            thread = threading.Thread(target=write, args=(second, output), kwargs={"take_over": True})
            thread.start()
            thread.join()

    taken = []
    with pytest.raises(LockLostError, match=r"taken over, or its lock was removed\. This process stops"):
        write(first, output, progress=take_over)
    assert count(output) == (1 if write is scenes else 2)
    assert list(tmp_path.rglob("*.lock*")) == []
