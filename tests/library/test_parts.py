"""Tables in parts, recordings at URLs, and locks of URLs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from datetime import datetime, timezone

import fsspec
import numpy as np
import pytest
from pyarrow import parquet
from tests.conftest import invoke

from ssamba.errors import ConfigError, DataError, Interrupted, LockLostError, OtherSettingsError, OutputInUseError
from ssamba.library import url_locks
from ssamba.library.embed import embed_files
from ssamba.library.info import is_table, table_facts
from ssamba.library.parts import PartsStore
from ssamba.library.storage import modified_ns, url_of
from ssamba.library.tables import StoreError, read_embeddings
from ssamba.library.url_locks import lock_url


@pytest.fixture
def bucket(clips):
    """A storage with four recordings, one of them long, and a text file, as `memory://`."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for path in clips[:3]:
        fs.put_file(os.fspath(path), f"/bucket/in/{path.name}")
    fs.pipe_file("/bucket/in/text.wav", b"hello")
    fs.pipe_file("/bucket/in/notes.txt", b"hello")
    yield fs
    fs.store.clear()


def rows_of(path):
    table = read_embeddings(path)
    names = [str(name).rpartition("/")[2] for name in table["path"]]
    assert len(set(names)) == len(names)
    return {name: table["embedding"][table["file"] == index] for index, name in enumerate(names)}


def assert_same_rows(found, expected):
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_allclose(found[name], rows, atol=1e-5)


@pytest.mark.parametrize("every_s", [None, 1.0])
def test_a_table_in_parts_holds_the_rows_of_a_file_and_opens_as_parquet(clips, tmp_path, embedder, every_s):
    report = embed_files(clips[:3], f"{tmp_path}/parts/", embedder, every_s=every_s, workers=0)
    embed_files(clips[:3], tmp_path / "one.parquet", embedder, every_s=every_s, workers=0)
    assert report.rows == len(read_embeddings(tmp_path / "parts")["embedding"])
    assert_same_rows(rows_of(tmp_path / "parts"), rows_of(tmp_path / "one.parquet"))
    assert sorted(read_embeddings(f"{tmp_path}/parts/")) == sorted(read_embeddings(tmp_path / "one.parquet"))
    opened, one = parquet.read_table(tmp_path / "parts"), parquet.read_table(tmp_path / "one.parquet")
    assert opened.schema.equals(one.schema, check_metadata=True)
    assert is_table(f"{tmp_path}/parts")
    assert table_facts(tmp_path / "parts") == table_facts(tmp_path / "one.parquet")


def test_what_a_killed_job_had_written_stays_and_is_not_done_again(clips, tmp_path, embedder, monkeypatch):
    monkeypatch.setattr("ssamba.library.parts._FLUSH_S", -1.0)
    output = f"{tmp_path}/parts/"

    def stop(state):
        if state.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="2 files are embedded and saved"):
        embed_files(clips[:4], output, embedder, workers=0, batch_tokens=1, progress=stop)
    assert len(list((tmp_path / "parts").iterdir())) == 2
    report = embed_files(clips[:4], output, embedder, workers=0)
    assert (report.done, report.unchanged, report.rows) == (2, 2, 4)
    assert embed_files(clips[:4], output, embedder).done == 0
    with pytest.raises(OtherSettingsError, match="layer was None, is 1"):
        embed_files(clips[:4], tmp_path / "parts", embedder, layer=1)
    assert embed_files(clips[:2], output, embedder, layer=1, overwrite=True).rows == 2
    assert len(rows_of(output)) == 2


def test_changed_files_take_the_place_of_their_rows_and_others_go(clips, tmp_path, embedder):
    recordings = tmp_path / "in"
    recordings.mkdir()
    for path in clips[:4]:
        shutil.copy(path, recordings)
    output = f"{tmp_path}/parts/"
    embed_files(recordings, output, embedder, workers=0)
    shutil.copy(clips[4], recordings / clips[0].name)
    (recordings / clips[1].name).write_text("broken")
    (recordings / clips[2].name).unlink()
    report = embed_files(recordings, output, embedder, workers=0, prune=True)
    assert (report.done, report.changed, report.pruned, report.rows) == (1, 1, 1, 2)
    assert_same_rows(
        rows_of(output),
        {
            clips[0].name: embedder.embed(clips[4]).clip[None].numpy(),
            clips[3].name: embedder.embed(clips[3]).clip[None].numpy(),
        },
    )


def test_folders_that_hold_something_else_are_left_alone(clips, tmp_path, embedder):
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"holds song.txt and no part of a table"):
            embed_files(clips[:1], f"{tmp_path}/music/", embedder, overwrite=overwrite)
    with pytest.raises(ConfigError, match="folder of Parquet files: omit the suffix"):
        embed_files(clips[:1], "memory://bucket/x.npz", embedder)
    with pytest.raises(StoreError, match="holds no part of a table"):
        read_embeddings(f"{tmp_path}/music/")
    embed_files(clips[:1], f"{tmp_path}/parts/", embedder)
    (part,) = (tmp_path / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"part-000001-\w+.parquet: is no whole part .* Remove it"):
        embed_files(clips[:1], f"{tmp_path}/parts/", embedder)


def test_recordings_and_table_at_urls(bucket, clips, tmp_path, embedder):
    report = embed_files("memory://bucket/in/", "memory://bucket/table", embedder, workers=0, damaged="keep")
    assert (report.done, len(report.skipped), report.rows) == (3, 1, 3)
    assert report.skipped[0].reason.startswith("memory:///bucket/in/text.wav: is text")
    assert bucket.cat("/bucket/table.skipped.csv").startswith(b"path,reason")
    assert not bucket.exists("/bucket/table.lock")
    embed_files(clips[:3], tmp_path / "local.npz", embedder, workers=0)
    assert_same_rows(rows_of("memory://bucket/table"), rows_of(tmp_path / "local.npz"))
    bucket.rm("/bucket/in/text.wav")
    bucket.put_file(os.fspath(clips[3]), f"/bucket/in/{clips[0].name}")
    report = embed_files("memory://bucket/in/*.flac", "memory://bucket/table", embedder, workers=0, damaged="keep")
    assert (report.done, report.changed, report.rows) == (1, 1, 3)
    assert not bucket.exists("/bucket/table.skipped.csv")
    # A file that is gone when its turn comes is skipped, and local files may stand beside URLs.
    found = [f"memory://bucket/in/{clips[0].name}", clips[5]]
    bucket.rm(f"/bucket/in/{clips[1].name}")
    mixed = embed_files(found, tmp_path / "mixed.npz", embedder, workers=0)
    assert (mixed.done, mixed.rows) == (2, 2)


def test_remarks_about_recordings_at_urls_name_them(bucket, clips, embedder, caplog):
    whole = clips[6].read_bytes()
    bucket.pipe_file("/bucket/cut/a.flac", whole[: len(whole) * 2 // 3])
    report = embed_files("memory://bucket/cut/", "memory://bucket/t", embedder, workers=0, damaged="keep")
    (found,) = report.remarks
    assert (found.path, found.verdict) == ("memory:///bucket/cut/a.flac", "cut")
    assert found.reason.startswith("memory:///bucket/cut/a.flac: truncated")
    assert b"memory:///bucket/cut/a.flac,cut" in bucket.cat("/bucket/t.remarks.csv")


def test_a_recording_that_is_not_at_its_url_is_skipped_and_others_may_have_names_like_patterns(
    bucket, clips, tmp_path, embedder
):
    name = "/bucket/in/what [1]?.flac"
    bucket.put_file(os.fspath(clips[3]), name)
    urls = [f"memory://{name}", "memory://bucket/in/none.flac", f"memory://bucket/in/{clips[1].name}"]
    report = embed_files(urls, tmp_path / "x.npz", embedder, workers=0)
    assert (report.done, [one.reason for one in report.skipped]) == (
        2, ["memory:///bucket/in/none.flac: no such file. Check the URL"],
    )  # fmt: skip
    assert set(rows_of(tmp_path / "x.npz")) == {"what [1]?.flac", clips[1].name}
    # A row whose recording has gone stays.
    bucket.rm(f"/bucket/in/{clips[1].name}")
    assert embed_files(urls, tmp_path / "x.npz", embedder, workers=0).rows == 2


def test_urls_that_lead_nowhere_say_so(bucket, tmp_path, embedder, clips):
    for url in ("memory://bucket/none", "memory://bucket/*.mp3"):
        with pytest.raises(DataError, match=r"no audio file there. Expected a file, a folder or a pattern"):
            embed_files(url, tmp_path / "x.npz", embedder)
    with pytest.raises(ValueError, match="nothing is read over the network"):
        embed_files("https://example.org/*.wav", tmp_path / "x.npz", embedder)
    assert url_of(tmp_path / "s3:") is None
    assert url_of("s3:/bucket/x") == url_of("s3://bucket/x/") == "s3://bucket/x"  # one output, one lock
    assert invoke("embed", "nosuch://b/c.wav", "-o", tmp_path / "x.npz").exit_code == 1


def test_times_of_storage_are_read_in_every_form():
    when = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
    expected = round(when.timestamp() * 1e9)
    assert modified_ns({"LastModified": when}) == modified_ns({"mtime": when.timestamp()}) == expected
    assert modified_ns({"updated": "2026-05-01T12:00:00Z"}) == expected
    assert modified_ns({"name": "x"}) == 0


def test_one_process_at_a_time_writes_a_url(bucket, monkeypatch, caplog):
    monkeypatch.setattr(url_locks, "_SETTLE_S", 0.0)
    url = "memory://bucket/table"
    with lock_url(url) as lock:
        with pytest.raises(OutputInUseError, match=r"is being written by .*this very process"), lock_url(url):
            pass
        lock.verify()
        with lock_url(url, take_over=True) as other:
            other.verify()
            with pytest.raises(LockLostError, match="taken over by another process"):
                lock.verify()
    assert not bucket.exists("/bucket/table.lock")

    # A process of another machine is gone when it has given no sign of life for a while.
    holder = json.dumps({**vars(url_locks.Holder.this_process()), "host": "elsewhere", "token": "x"}).encode()
    bucket.pipe_file("/bucket/table.lock", holder)
    with pytest.raises(OutputInUseError, match=r"on elsewhere.*last sign of life 0 s ago"), lock_url(url):
        pass
    monkeypatch.setattr(url_locks, "STALE_S", -1.0)
    monkeypatch.setattr("ssamba.locks.STALE_S", -1.0)
    with caplog.at_level(logging.WARNING), lock_url(url):
        assert "taken over from" in caplog.text
    bucket.pipe_file("/bucket/table.lock", b"damaged")
    with lock_url(url):
        pass


def test_a_lost_lock_is_found_by_the_heartbeat(bucket, monkeypatch):
    monkeypatch.setattr(url_locks, "HEARTBEAT_S", 0.01)
    with lock_url("memory://bucket/table") as lock:
        before, waited_until_s = bucket.modified("/bucket/table.lock"), time.monotonic() + 30
        while bucket.modified("/bucket/table.lock") == before:
            assert time.monotonic() < waited_until_s
            time.sleep(0.01)
        lock.check()

        def check_for_a_while():
            while time.monotonic() < waited_until_s:
                bucket.pipe_file("/bucket/table.lock", b"another's")
                time.sleep(0.02)
                lock.check()

        with pytest.raises(LockLostError):
            check_for_a_while()
    assert bucket.cat("/bucket/table.lock") == b"another's"


def test_a_store_that_lost_its_lock_writes_nothing(tmp_path, clips, embedder, monkeypatch):
    def lost(_):
        raise LockLostError("taken over")

    monkeypatch.setattr(PartsStore, "verify", lost, raising=False)
    output = f"{tmp_path}/parts/"
    monkeypatch.setattr("ssamba.locks.OutputLock.verify", lost)
    with pytest.raises(LockLostError):
        embed_files(clips[:1], output, embedder, workers=0)
    assert not list((tmp_path / "parts").glob("*"))
