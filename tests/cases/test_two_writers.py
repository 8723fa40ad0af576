"""Two jobs that write one output: the second is refused, or takes it over and the first writes nothing more."""

from __future__ import annotations

import shutil
import threading
from functools import partial

import numpy as np
import pytest

import ssamba
from ssamba.data.corpus import open_corpus
from ssamba.data.listing import make_manifest
from ssamba.data.manifest import read_manifest, scan_folder
from ssamba.data.shards import write_shards
from ssamba.datasets import prepare
from ssamba.datasets.urbansound8k import render_scenes
from ssamba.errors import LockLostError, OutputInUseError
from ssamba.library.store import Store
from ssamba.library.tables import FileRecord, StoreError, read_embeddings
from ssamba.locks import lock_output
from ssamba.training.pretraining.recipe import PretrainRecipe

RECIPE = {
    "model": {"encoder": {"embed_dim": 24, "depth": 2}},
    "data": {"crop_s": 0.5, "batch_s": 1.0, "workers": 0},
    "run": {"steps": 2, "checkpoint_every_steps": 1},
}


@pytest.fixture
def folders(tmp_path, clips):
    """Three recordings, and two others."""
    for name, paths in (("a", clips[:3]), ("b", clips[3:5])):
        (tmp_path / name).mkdir()
        for path in paths:
            shutil.copy(path, tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def scenes(source, output, *, overwrite=False, **options):
    return render_scenes(scan_folder(source)[0], output, **options)


class Writer:
    """A function that writes an output from a folder, and how many recordings are in the output."""

    def __init__(self, name, embedder):
        self.name = name
        self.write, self.output, self.count = {
            "embed": (
                lambda source, output, **options: ssamba.embed_files(source, output, embedder, workers=0, **options),
                "t.npz",
                lambda output: len(read_embeddings(output)["path"]),
            ),
            "manifest": (make_manifest, "m.csv", lambda output: len(read_manifest(output))),
            "shard": (partial(write_shards, workers=1), "shards", lambda output: len(open_corpus(output))),
            "scenes": (scenes, "scenes", lambda output: len(list(output.rglob("*.flac")))),
            "pretrain": (
                partial(ssamba.pretrain, recipe=PretrainRecipe.parse(RECIPE, "test")),
                "run",
                lambda output: len(list(output.glob("checkpoints/step-00000002/model"))),
            ),
        }[name]

    def expected(self, recordings):
        return 1 if self.name in ("scenes", "pretrain") else recordings


@pytest.fixture(params=["embed", "manifest", "shard", "scenes", "pretrain"])
def writer(request, embedder):
    return Writer(request.param, embedder)


def test_a_second_writer_is_refused_at_once(folders, tmp_path, writer):
    output, (first, second) = tmp_path / writer.output, folders
    refused = []

    def begin_another(state):
        for overwrite in (True, False):
            with pytest.raises(OutputInUseError, match="is being written by this very process") as caught:
                writer.write(second, output, overwrite=overwrite)
            refused.append(str(caught.value))

    writer.write(first, output, progress=begin_another)
    assert len(refused) >= 2
    assert writer.count(output) == writer.expected(3)
    assert list(tmp_path.rglob("*.lock*")) == []


def test_a_writer_that_was_taken_over_writes_nothing_more(folders, tmp_path, writer):
    output, (first, second) = tmp_path / writer.output, folders

    def take_over(state):
        if taken:
            return
        thread = threading.Thread(target=writer.write, args=(second, output), kwargs={"take_over": True})
        thread.start()
        thread.join()
        taken.update(snapshot(output))

    taken = {}
    with pytest.raises(LockLostError, match=r"taken over, or its lock was removed\. This process stops"):
        writer.write(first, output, progress=take_over)
    assert writer.count(output) == writer.expected(2)
    assert snapshot(output) == taken
    assert list(tmp_path.rglob("*.lock*")) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_rows_keep_their_vectors_where_nothing_locks(tmp_path, overwrite):
    """The class behind `embed` without its lock, as on a file system that has none, in the order of two processes."""
    output = tmp_path / "o.npz"
    settings = {"model": "m", "weights_digest": "d", "window_s": 10.24, "config_hash": "0" * 16}
    old, new = (Store(output, settings, frames=False) for _ in range(2))

    def add(store, numbers):
        for number in numbers:
            store.add(FileRecord(f"{number}.wav", 1, 1, 1.0, 1), np.full((1, 4), number, np.float32), np.zeros(1))
        store.flush()

    old.open(overwrite)
    add(old, range(10))
    new.open(overwrite=True)  # the requeued job
    add(old, range(10, 20))
    add(new, range(10))
    with pytest.raises(StoreError, match=r"part-000001-\w+\.npy has been removed by another process\. No table"):
        old.finish([f"{number}.wav" for number in range(20)])
    assert not output.exists()
    assert new.finish([f"{number}.wav" for number in range(10)]) == 10
    table = read_embeddings(output)
    assert table["path"].tolist() == [f"{number}.wav" for number in range(10)]
    assert table["embedding"][:, 0].tolist() == list(range(10))


def snapshot(output):
    """Every file that belongs to an output, with its content."""
    files = [path for path in output.parent.rglob("*") if path.is_file() and output.name in str(path)]
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["embed_files", "predict_files", "pretrain", "finetune", "make_manifest", "prepare"])
def test_every_public_writer_asks_for_the_lock_before_it_works(folders, tmp_path, embedder, classifier_folder, name):
    write, output = {
        "embed_files": (partial(ssamba.embed_files, checkpoint=embedder), "t.npz"),
        "predict_files": (lambda data, output: ssamba.predict_files(data, classifier_folder, output), "p.csv"),
        "pretrain": (ssamba.pretrain, "run"),
        "finetune": (ssamba.finetune, "run"),
        "make_manifest": (make_manifest, "m.csv"),
        "prepare": (lambda data, output: prepare("esc50", data, output), "p.csv"),
    }[name]
    is_folder = output == "run"
    with lock_output(tmp_path / output, folder=is_folder), pytest.raises(OutputInUseError):
        write(folders[0], tmp_path / output)
    left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert left == {"a", "b"}
