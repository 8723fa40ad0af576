"""Corpora: every kind of source gives the same clips, exact samples, and errors that name the clip."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest

from ssamba.audio.decode import decode
from ssamba.data.cache import CachedCorpus
from ssamba.data.corpus import ManifestCorpus, open_corpus
from ssamba.data.manifest import Clip, Manifest, write_manifest
from ssamba.errors import AudioDecodeError, DataError


def assert_reads_slices(corpus, i, whole, atol=0.0):
    rate = corpus.sample_rate_hz
    np.testing.assert_allclose(corpus.read(i), whole, rtol=0, atol=atol)
    for start, stop in ((0, 1), (7, 400), (1001, len(whole)), (len(whole) - 1, len(whole))):
        part = corpus.read(i, start / rate, (stop - start) / rate)
        np.testing.assert_allclose(part, whole[start:stop], rtol=0, atol=atol)
    np.testing.assert_allclose(corpus.read(i, 1000 / rate), whole[1000:], rtol=0, atol=atol)
    with pytest.raises(AudioDecodeError, match="past the end"):
        corpus.read(i, len(whole) / rate + 1, 0.1)


def test_a_folder_of_audio_is_a_corpus(tmp_path, clips):
    for path in clips[:3]:
        shutil.copy(path, tmp_path)
    (tmp_path / "bad.wav").write_text("no audio")
    corpus = open_corpus(tmp_path, labels="folder")
    assert [corpus.key(i) for i in range(3)] == [path.name for path in clips[:3]]
    assert corpus.clip(0).labels == (tmp_path.name,)
    assert [entry.path for entry in corpus.skipped] == [str(tmp_path / "bad.wav")]
    for i in range(3):
        assert_reads_slices(corpus, i, decode(clips[i]), atol=1e-6)
    assert corpus.hours == pytest.approx(sum(len(decode(p)) for p in clips[:3]) / 16_000 / 3600, rel=1e-4)
    again = pickle.loads(pickle.dumps(corpus))
    np.testing.assert_array_equal(again.read(1), corpus.read(1))
    assert again.fingerprint() == corpus.fingerprint()


def test_parts_of_recordings_and_splits(tmp_path, clips):
    whole = decode(clips[6])
    parts = [Clip(clips[6], 0.0, 0.5, split="train"), Clip(clips[6], 0.25, 0.3, split="test"), Clip(clips[6], 0.25)]
    write_manifest(parts, tmp_path / "m.csv")
    corpus = open_corpus(tmp_path / "m.csv")
    assert len({corpus.key(i) for i in range(3)}) == 3
    assert_reads_slices(corpus, 1, whole[4000:8800], atol=1e-6)
    assert_reads_slices(corpus, 2, whole[4000:], atol=1e-6)
    test = open_corpus(tmp_path / "m.csv", split="test")
    assert [test.clip(0).split, len(test)] == ["test", 1]
    assert test.fingerprint() != corpus.fingerprint()


def test_the_fingerprint_follows_the_set_of_clips_not_their_order_or_place(tmp_path, clips):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for path in clips[:3]:
            shutil.copy(path, tmp_path / folder)
    one, other = open_corpus(tmp_path / "a"), open_corpus(tmp_path / "b")
    assert one.fingerprint() == other.fingerprint()
    backwards = ManifestCorpus(Manifest(list(one.manifest)[::-1], tmp_path / "a"))
    assert backwards.fingerprint() == one.fingerprint()
    (tmp_path / "b" / clips[2].name).unlink()
    assert open_corpus(tmp_path / "b").fingerprint() != one.fingerprint()
    assert open_corpus(tmp_path / "a", 8_000).fingerprint() != one.fingerprint()


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_of_other_programs_are_read_at_their_offsets(foreign_shards, tmp_path, clips, workers):
    folder = tmp_path / "shards"
    shutil.copytree(foreign_shards, folder)
    (folder / "index.csv").write_text("key,package\n")
    corpus = open_corpus(folder, workers=workers)
    assert len(corpus) == len(clips)
    assert corpus.key(0) == "part-0/sub/000"
    assert corpus.key(7) == "part-1/sub/000"
    assert (corpus.clip(0).labels, corpus.clip(0).split) == ((clips[0].stem,), "test")
    assert corpus.clip(1).labels == ("7",)
    assert len(corpus.skipped) == 4
    assert corpus.shards is not None
    assert corpus.shards.tolist() == [0] * 7 + [1] * 7
    for i in (0, 8, 13):
        assert np.corrcoef(corpus.read(i), decode(clips[i]))[0, 1] > 0.9
    assert_reads_slices(corpus, 8, corpus.read(8), atol=1e-6)
    assert len(open_corpus(folder, split="test")) == 2
    with pytest.raises(DataError, match="there are: test"):
        open_corpus(folder, split="train")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(corpus)).read(3), corpus.read(3))
    assert len(open_corpus(folder / "part-1.tar")) == 7
    assert (folder / "index.csv").read_text() == "key,package\n"


@pytest.mark.parametrize("pyarrow", [True, False])
def test_the_index_is_saved_and_replaced_when_the_tars_change(foreign_shards, tmp_path, monkeypatch, pyarrow):
    if pyarrow:
        pytest.importorskip("pyarrow")
    else:
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    folder = tmp_path / "shards"
    shutil.copytree(foreign_shards, folder)
    first = open_corpus(folder)
    kept = "index.parquet" if pyarrow else "index.csv"
    assert {path.name for path in folder.iterdir()} == {"part-0.tar", "part-1.tar", "shards.json", kept}
    with monkeypatch.context() as patch:
        patch.setattr("ssamba.data.shard_index.scan_tar", None)
        second = open_corpus(folder)
    assert [second.clip(i) for i in range(14)] == [first.clip(i) for i in range(14)]
    assert second.skipped == first.skipped
    np.testing.assert_array_equal(second.read(5), first.read(5))
    (folder / "part-1.tar").unlink()
    assert len(open_corpus(folder)) == 7
    (folder / kept).write_bytes(b"rubbish")
    assert len(open_corpus(folder)) == 7


def test_nothing_is_written_to_a_read_only_folder(foreign_shards, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(foreign_shards, folder)
    before = {path.name for path in folder.iterdir()}
    folder.chmod(0o555)
    try:
        assert len(open_corpus(folder)) == 14
        assert {path.name for path in folder.iterdir()} == before
    finally:
        folder.chmod(0o755)


def test_a_truncated_tar_gives_the_clips_before_the_cut(foreign_shards, tmp_path):
    whole = (foreign_shards / "part-0.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    corpus = open_corpus(tmp_path)
    assert 0 < len(corpus) < 7
    assert any("cut.tar" in entry.reason for entry in corpus.skipped)
    for i in range(len(corpus)):
        corpus.read(i)
    (tmp_path / "cut.tar").write_bytes(b"")
    with pytest.raises(DataError, match="no clip that can be read"):
        open_corpus(tmp_path)


def test_a_deleted_shard_is_an_audio_error(foreign_shards, tmp_path):
    shutil.copytree(foreign_shards, tmp_path / "shards")
    corpus = open_corpus(tmp_path / "shards")
    (tmp_path / "shards" / "part-1.tar").unlink()
    corpus.read(0)
    with pytest.raises(AudioDecodeError, match=r"part-1\.tar"):
        corpus.read(10)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_holds_the_same_samples_and_lists_broken_clips(tmp_path, clips, workers):
    manifest = Manifest([Clip(path, 0.0, 9.0 if i == 1 else None) for i, path in enumerate(clips[:4])])
    broken = tmp_path / "broken.flac"
    data = clips[4].read_bytes()
    broken.write_bytes(data[: len(data) // 2])
    corpus = ManifestCorpus(Manifest([*manifest, Clip(broken, 0.0, 2.0)]))
    seen = []
    cached = CachedCorpus(corpus, workers=workers, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert len(cached) == 4
    assert ["broken.flac" in entry.reason for entry in cached.skipped] == [True]
    for i in range(4):
        assert cached.clip(i).key == corpus.clip(i).key
        assert_reads_slices(cached, i, np.clip(decode(clips[i]), -1, 1), atol=0.51 / 32767)
    assert cached.in_memory
    with pytest.raises(DataError, match="raise the limit"):
        CachedCorpus(corpus, limit_gb=1e-5)


def test_a_hugging_face_dataset_is_a_corpus(clips, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.ClassLabel(names=["low", "high"]),
            "speaker": datasets.Value("string"),
        }
    )
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in clips[:3]]
    cells[1] = {"bytes": None, "path": str(clips[1])}
    cells.append({"bytes": b"no audio", "path": "bad.wav"})
    table = {"sound": cells, "label": [0, 1, 1, 0], "speaker": ["a", "b", None, "c"]}
    # As a download has it: bytes that were never decoded, in a column that would be decoded on access.
    dataset = datasets.Dataset.from_dict(table, features=features).cast_column("sound", datasets.Audio())
    corpus = open_corpus(dataset)
    assert [corpus.clip(i).labels for i in range(3)] == [("low",), ("high",), ("high",)]
    assert len(corpus.skipped) == 1
    for i in range(3):
        assert_reads_slices(corpus, i, decode(clips[i]), atol=1e-6)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(corpus)).read(0), corpus.read(0))
    dataset.save_to_disk(tmp_path / "saved")
    assert open_corpus(tmp_path / "saved").fingerprint() == corpus.fingerprint()
    both = datasets.DatasetDict({"train": dataset})
    assert open_corpus(both, split="train").clip(0).split == "train"
    both.save_to_disk(tmp_path / "both")
    assert open_corpus(tmp_path / "both").fingerprint() == open_corpus(both).fingerprint()
    with pytest.raises(DataError, match="name one of its splits: night"):
        open_corpus(datasets.DatasetDict({"night": dataset}))
    with pytest.raises(DataError, match="no audio column"):
        open_corpus(dataset.remove_columns("sound"))
    with pytest.raises(DataError, match="streaming=False"):
        open_corpus(dataset.to_iterable_dataset())


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "no such file"), ("empty", "no audio file"), ("a.wav", "nor a manifest")]
)
def test_sources_that_are_no_corpus_are_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.wav").touch()
    with pytest.raises(DataError, match=message):
        open_corpus(tmp_path / name)
    with pytest.raises(DataError, match="has no splits"):
        open_corpus(tmp_path, split="train")
    with pytest.raises(DataError, match=r"a corpus or a datasets\.Dataset, got int"):
        open_corpus(17)
