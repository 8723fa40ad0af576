"""Shards: written in parallel, checked, resumed after a kill, read at offsets and by WebDataset."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from ssamba.audio.decode import AudioBytes, decode
from ssamba.data.corpus import open_corpus
from ssamba.data.manifest import Clip, Manifest, read_manifest, scan_folder, write_manifest
from ssamba.data.shards import ShardSettings, write_shards
from ssamba.errors import ConfigError, DataError, OtherSettingsError


@pytest.fixture
def manifest(clips, tmp_path):
    """The demo's recordings, one of them long, and two broken ones."""
    broken = tmp_path / "cut.flac"
    broken.write_bytes(clips[0].read_bytes()[:5000])
    found, _ = scan_folder(clips)
    labeled = [
        Clip(clip.path, 0.0, clip.duration_s, (clip.path.stem, "demo"), "train", None)
        for clip in found
        if clip.duration_s
    ]
    return Manifest([*labeled, Clip(broken, 0.0, 2.0), Clip(tmp_path / "absent.wav", 0.0, 1.0)])


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.parametrize("codec", ["flac", "opus"])
def test_every_recording_can_be_read_back(manifest, clips, tmp_path, codec):
    seen = []
    report = write_shards(
        manifest,
        tmp_path / "out",
        codec,
        shard_mb=0.15,
        max_clip_s=1.5,
        progress=lambda p: seen.append(p.done) if p.unit == "shards" else None,
    )
    assert seen == list(range(1, report.total + 1))
    assert report.total >= 2
    assert sorted(Path(entry.path).name for entry in report.skipped) == ["absent.wav", "cut.flac"]
    listed = (tmp_path / "out" / "skipped.csv").read_text()
    assert "absent.wav" in listed
    assert "cut.flac" in listed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*contents(tmp_path / "out"), "index.parquet", "shards.json", "skipped.csv"}

    corpus = open_corpus(tmp_path / "out")
    assert len(corpus) == report.clips
    pieces = {}
    for i in range(len(corpus)):
        clip = corpus.clip(i)
        assert clip.seconds <= 1.5
        assert clip.split == "train"
        assert clip.labels[1] == "demo"
        assert (clip.group is not None) == ("-" in clip.key)
        pieces.setdefault(clip.labels[0], []).append((clip.key, corpus.read(i)))
    assert set(pieces) == {path.stem for path in clips}
    for path in clips:
        parts = [samples for _, samples in sorted(pieces[path.stem], key=lambda piece: piece[0])]
        whole, back = decode(path), np.concatenate(parts)
        assert len(back) == len(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= len(parts), "equal pieces"
        if codec == "flac":
            np.testing.assert_allclose(back, np.clip(whole, -1, 1), atol=1 / 32768)
        else:
            assert np.corrcoef(back, whole)[0, 1] > 0.85
    assert report.audio_s == pytest.approx(sum(len(decode(path)) for path in clips) / 16_000)


def test_workers_write_the_same_bytes_and_a_finished_job_is_checked(manifest, tmp_path):
    write_shards(manifest, tmp_path / "one", "flac", shard_mb=0.15)
    report = write_shards(manifest, tmp_path / "two", "flac", shard_mb=0.15, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert report.resumed == 0
    again = write_shards(manifest, tmp_path / "two", "flac", shard_mb=0.15)
    assert again.resumed == again.total == report.total
    assert (again.clips, again.skipped) == (report.clips, report.skipped)
    # Damage is found by size and by checksum, and mended.
    first, second = sorted((tmp_path / "two").glob("*.tar"))[:2]
    first.write_bytes(first.read_bytes()[:-512])
    data = bytearray(second.read_bytes())
    data[700] ^= 1
    second.write_bytes(data)
    mended = write_shards(manifest, tmp_path / "two", "flac", shard_mb=0.15)
    assert mended.resumed == mended.total - 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert open_corpus(tmp_path / "one").fingerprint() == open_corpus(tmp_path / "two").fingerprint()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_job_resumes_where_it_stopped(manifest, tmp_path):
    write_manifest(list(manifest), tmp_path / "m.jsonl")
    script = (
        "import sys, time\n"
        "from ssamba.data.manifest import read_manifest\n"
        "from ssamba.data.shards import write_shards\n"
        "manifest, out = read_manifest(sys.argv[1]), sys.argv[2]\n"
        "write_shards(manifest, out, 'flac', shard_mb=0.1, progress=lambda p: time.sleep(0.2))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "m.jsonl"), str(tmp_path / "out")])
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("out/*.tar"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "out" / ".shard-000009.tar.1.tmp").write_bytes(b"half")
    kept = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in contents(tmp_path / "out")}
    again = read_manifest(tmp_path / "m.jsonl")
    with pytest.raises(OtherSettingsError, match=r"codec was 'flac', is 'opus'; shard_mb was 0\.1, is 200\.0"):
        write_shards(again, tmp_path / "out", "opus")
    report = write_shards(again, tmp_path / "out", "flac", shard_mb=0.1)
    assert 0 < report.resumed < report.total
    unchanged = [name for name, at in kept.items() if (tmp_path / "out" / name).stat().st_mtime_ns == at]
    assert len(unchanged) == report.resumed
    assert not list((tmp_path / "out").glob(".*"))
    write_shards(again, tmp_path / "fresh", "flac", shard_mb=0.1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_webdataset_reads_the_shards(manifest, tmp_path):
    pytest.importorskip("webdataset")
    report = write_shards(manifest, tmp_path / "out", "flac", shard_mb=0.3)
    # In a process of its own: it leaves files open.
    script = (
        "import json, sys, webdataset\n"
        "for s in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):\n"
        "    print(json.dumps([s['__key__'], json.loads(s['json']), s['flac'].hex()]))"
    )
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    done = subprocess.run([sys.executable, "-c", script, *urls], capture_output=True, text=True, check=True)
    samples = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(samples) == report.clips
    corpus = open_corpus(tmp_path / "out")
    for i, (key, about, data) in enumerate(samples):
        clip = corpus.clip(i)
        assert key == clip.key
        assert (about["labels"], about["seconds"]) == (list(clip.labels), clip.seconds)
        np.testing.assert_array_equal(decode(AudioBytes(key, bytes.fromhex(data))), corpus.read(i))


def test_other_shards_are_replaced_only_with_overwrite_and_other_tars_never(manifest, tmp_path):
    out = tmp_path / "out"
    write_shards(manifest, out, "flac", shard_mb=0.1)
    before = contents(out)
    with pytest.raises(OtherSettingsError, match="holds other shards: codec was 'flac', is 'opus'"):
        write_shards(manifest, out, "opus")
    with pytest.raises(OtherSettingsError, match=f"the recordings were {len(manifest)} clips, are 3"):
        write_shards(Manifest(list(manifest)[:3]), out, "flac", shard_mb=0.1)
    report = write_shards(manifest, out, "opus", overwrite=True)
    assert contents(tmp_path / "out.old") == before
    assert report.moved_to == tmp_path / "out.old"
    assert len(contents(out)) == report.total == 1
    assert all(open_corpus(out).key(i).isdigit() for i in range(3))
    shutil.copy(out / "shard-000000.tar", out / "mine.tar")
    with pytest.raises(DataError, match=r"mine\.tar was not written by ssamba"):
        write_shards(manifest, out, "flac", overwrite=True)
    assert (out / "mine.tar").exists()
    assert (out / "shard-000000.tar").exists()


def test_parts_and_very_short_clips_are_written_exactly(clips, tmp_path):
    parts = [Clip(clips[6], 0.1, seconds) for seconds in (1 / 16_000, 0.001, 0.0125, 0.3)]
    parts += [Clip(clips[6], 0.2, 0.9), Clip(clips[7], 0.0, 0.05)]
    for codec in ("flac", "opus"):
        write_shards(Manifest(parts), tmp_path / codec, codec, max_clip_s=0.5, shuffle=False)
        corpus = open_corpus(tmp_path / codec)
        back = {corpus.key(i): corpus.read(i) for i in range(len(corpus))}
        assert list(back) == [
            "00000000", "00000001", "00000002", "00000003", "00000004-0000", "00000004-0001", "00000005"
        ]  # fmt: skip
        assert [len(samples) for samples in back.values()] == [1, 16, 200, 4800, 7200, 7200, 800]
        if codec == "flac":
            whole = decode(clips[6])[3200 : 3200 + 14400]
            joined = np.concatenate([back["00000004-0000"], back["00000004-0001"]])
            np.testing.assert_allclose(joined, whole, atol=1 / 32768)


def test_invalid_settings_and_unreadable_recordings_are_refused(tmp_path, manifest):
    with pytest.raises(ConfigError, match="Opus knows the rates"):
        write_shards(manifest, tmp_path / "out", "opus", sample_rate=44_100)
    with pytest.raises(ConfigError, match="bitrate_kbps"):
        write_shards(manifest, tmp_path / "out", bitrate=3)
    with pytest.raises(DataError, match="none of 1 recordings"):
        write_shards(Manifest([Clip(tmp_path / "absent.wav")]), tmp_path / "out")
    with pytest.raises(DataError, match="none of 1 recordings"):
        write_shards(Manifest([Clip(tmp_path / "absent.wav", 0.0, 1.0)]), tmp_path / "out")
    assert ShardSettings(codec="flac", sample_rate_hz=96_000).bytes_per_s == pytest.approx(105_600)


@pytest.mark.parametrize("index", ["index.parquet", "index.csv"])
def test_tars_of_others_with_names_that_are_not_utf8_are_indexed(tmp_path, clips, index, monkeypatch):
    monkeypatch.setattr("ssamba.data.shard_index._index_names", lambda: [index])
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with tarfile.open(folder / os.fsdecode(b"\xff.tar"), "w") as tar:
        for name, metadata in ((b"a\xe9", b'{"label": "K\\u00f6ter"}'), (b"b", b'{"label": "K\xf6ter"}')):
            tar.add(clips[0], os.fsdecode(name + b".flac"))
            info = tarfile.TarInfo(os.fsdecode(name + b".json"))
            info.size = len(metadata)
            tar.addfile(info, io.BytesIO(metadata))
    for _ in range(2):  # scanned, and read from the index
        corpus = open_corpus(folder)
        assert (corpus.key(0), corpus.clip(0).labels, len(corpus)) == ("a\\xe9", ("K\u00f6ter",), 1)
        assert len(corpus.read(0)) > 1000
        (entry,) = corpus.skipped
        assert "b.flac: its labels cannot be read" in entry.reason
    assert (folder / index).is_file()
