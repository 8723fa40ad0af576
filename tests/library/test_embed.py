"""Bulk embedding: mixed folders, broken files, interruption and resume, formats."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from ssamba.audio.decode import decode_files
from ssamba.audio.files import find_audio
from ssamba.embedder import Embedder
from ssamba.errors import ModelMismatchError
from ssamba.library.embed import embed_collection, skipped_file
from ssamba.library.search import nearest_neighbors
from ssamba.library.tables import FileRecord, Store, StoreError, read_embeddings


@pytest.fixture
def folder(tmp_path, clips, medley):
    """Twelve recordings in several formats and folders, and eight broken ones."""
    root = tmp_path / "field recordings"
    (root / "naïve (1)").mkdir(parents=True)
    for index, path in enumerate(clips[:6]):
        shutil.copy(path, root / f"{index} {path.name}")
        samples, rate = sf.read(path)
        name = root / "naïve (1)" / f"{path.stem}{['.wav', '.mp3', '.ogg', '.aiff', '.WAV', '.flac'][index]}"
        sf.write(name, samples, rate)
    (root / "empty.wav").touch()
    (root / "text.wav").write_text("hello")
    (root / "image.mp3").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    whole = (root / f"0 {clips[0].name}").read_bytes()
    (root / "cut.flac").write_bytes(whole[: len(whole) // 2])
    sf.write(root / "nan.wav", np.array([0.0, np.nan] * 1000), 16_000, subtype="FLOAT")
    sf.write(root / "short.wav", np.zeros(100), 16_000)
    (root / "folder.wav").mkdir()
    (root / "dangling.wav").symlink_to(root / "nowhere.wav")
    (root / "notes.txt").write_text("not looked at")
    (root / ".hidden.wav").write_text("not looked at")
    return root


def table_of(path):
    table = read_embeddings(path)
    return {str(name): table["embedding"][table["file"] == i] for i, name in enumerate(table["path"])}


def assert_same_tables(one, other):
    one, other = table_of(one), table_of(other)
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_a_mixed_folder_gives_rows_and_reasons(folder, tmp_path, embedder, suffix, frames):
    if suffix != ".npz":
        pytest.importorskip("pyarrow")
    files = find_audio([folder])
    assert len(files) == 20
    output = tmp_path / "out" / f"e{suffix}"
    seen = []
    result = embed_collection(files, output, embedder, frames=frames, on_progress=lambda p: seen.append(p.embedded))
    assert (result.embedded, len(result.skipped), result.resumed) == (12, 8, 0)
    assert len(seen) == 20
    assert sorted(p.name for p in output.parent.iterdir()) == [output.name, f"{output.name}.skipped.csv"]
    reasons = skipped_file(output).read_text(encoding="utf-8").splitlines()
    assert len(reasons) == 9
    for name in ("empty", "text", "image", "cut", "nan", "short", "folder", "dangling"):
        (line,) = [line for line in reasons if f"{name}." in line]
        assert line.count(f"{name}.") >= 2, "path and reason both name the file"

    table = read_embeddings(output)
    good = [f for f in files if f.stem not in {Path(s.path).stem for s in result.skipped}]
    assert table["path"].tolist() == [str(f) for f in good]
    assert str(table["config_hash"]) == embedder.digest()
    assert float(table["window_s"]) == pytest.approx(10.24)
    for index, path in enumerate(good):
        e = embedder.embed(path)
        rows = table["embedding"][table["file"] == index]
        np.testing.assert_allclose(rows, e.frames if frames else e.clip[None], atol=1e-5)
        assert table["duration_s"][index] == pytest.approx(e.duration_s)
        if frames:
            np.testing.assert_allclose(table["time_s"][table["file"] == index], e.times_s, atol=1e-6)


def test_worker_processes_give_the_same(folder, tmp_path, embedder):
    files = find_audio([folder])
    embed_collection(files, tmp_path / "a.npz", embedder)
    embed_collection(files, tmp_path / "b.npz", embedder, workers=1)
    assert_same_tables(tmp_path / "a.npz", tmp_path / "b.npz")


class Killed(BaseException):
    pass


def test_an_interrupted_run_goes_on_where_it_was(folder, tmp_path, embedder, monkeypatch):
    monkeypatch.setattr("ssamba.library.embed._FLUSH_FILES", 2)
    monkeypatch.setattr("ssamba.inference.CPU_TOKENS_PER_BATCH", 200)
    files = find_audio([folder])
    embed_collection(files, tmp_path / "whole.npz", embedder)
    output = tmp_path / "parts.npz"

    def kill_after(count):
        def check(progress):
            if progress.embedded == count:
                raise Killed

        return check

    with pytest.raises(Killed):
        embed_collection(files, output, embedder, on_progress=kill_after(3))
    assert not output.exists()
    with pytest.raises(StoreError, match="--resume goes on"):
        embed_collection(files, output, embedder)
    with pytest.raises(Killed):
        embed_collection(files, output, embedder, resume=True, on_progress=kill_after(4))
    result = embed_collection(files, output, embedder, resume=True)
    assert result.resumed >= 6
    assert result.resumed + result.embedded == 12
    assert len(result.skipped) == 8
    assert_same_tables(tmp_path / "whole.npz", output)
    assert not Path(f"{output}.partial").exists()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_process_loses_little_and_leaves_no_worker(folder, tmp_path, ssamba_pth):
    command = [
        sys.executable,
        "-m",
        "ssamba",
        "embed",
        str(folder),
        "-o",
        str(tmp_path / "k.npz"),
        "-c",
        str(ssamba_pth),
    ]
    for _ in range(30):
        extra = folder / f"copy {_}.wav"
        sf.write(extra, np.tile(sf.read(folder / "naïve (1)" / "drum_cymbal_open.ogg")[0], 8), 44_100)
    process = subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not Path(f"{tmp_path / 'k.npz'}.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    process.kill()
    process.wait()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_embeddings(tmp_path / "k.npz")["path"]) == 42
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
@pytest.mark.parametrize("frames", [False, True])
def test_new_and_changed_files_join_a_finished_output(folder, tmp_path, embedder, suffix, frames, clips):
    if suffix != ".npz":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"e{suffix}"
    embed_collection(find_audio([folder]), output, embedder, frames=frames)
    with pytest.raises(StoreError, match="exists"):
        embed_collection(find_audio([folder]), output, embedder, frames=frames)
    shutil.copy(clips[9], folder / "new.flac")
    shutil.copy(clips[10], folder / f"0 {clips[0].name}")
    result = embed_collection(find_audio([folder]), output, embedder, frames=frames, resume=True)
    assert (result.embedded, result.resumed) == (2, 11)
    embed_collection(find_audio([folder]), tmp_path / f"fresh{suffix}", embedder, frames=frames)
    assert_same_tables(output, tmp_path / f"fresh{suffix}")


def test_other_settings_are_never_mixed_in(folder, tmp_path, embedder):
    from ssamba.embedder import EmbedOptions

    files = find_audio([folder])
    output = tmp_path / "e.npz"
    embed_collection(files, output, embedder)
    with pytest.raises(StoreError, match="other settings"):
        embed_collection(files, output, embedder, EmbedOptions(layer=1), resume=True)
    with pytest.raises(StoreError, match="other settings"):
        embed_collection(files, output, embedder, frames=True, resume=True)
    shutil.rmtree(f"{output}.partial", ignore_errors=True)
    embed_collection(files, output, embedder, EmbedOptions(layer=1), overwrite=True)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_a_table_names_its_model_and_is_not_continued_with_another(tmp_path, clips, make_encoder, suffix):
    one = Embedder(make_encoder(), device="cpu", name="one")
    other = Embedder(make_encoder(final_norms=1), device="cpu", name="two")
    with torch.no_grad():
        other.encoder.cls_token += 1
    output = tmp_path / f"e{suffix}"
    embed_collection(clips[:2], output, one)
    table = read_embeddings(output)
    assert (str(table["model"]), str(table["weights_digest"])) == ("one", one.identity.weights_digest)
    with pytest.raises(ModelMismatchError) as error:
        embed_collection(clips[:3], output, other, resume=True)
    for text in (str(output), str(one.identity), str(other.identity), "go on with `-c one`", "--overwrite"):
        assert text in str(error.value)
    one.name = "the same weights elsewhere"
    assert embed_collection(clips[:3], output, one, resume=True).resumed == 2


def test_an_interrupted_table_is_not_continued_with_another_model(tmp_path, clips, embedder, make_encoder):
    def stop(progress):
        raise Killed

    other = Embedder(make_encoder(), device="cpu", name="other")
    with torch.no_grad():
        other.encoder.cls_token += 1
    output = tmp_path / "e.npz"
    with pytest.raises(Killed):
        embed_collection(clips[:2], output, embedder, on_progress=stop)
    with pytest.raises(ModelMismatchError, match=r"partial was made with the model small .*not with other "):
        embed_collection(clips[:2], output, other, resume=True)


def test_digests_and_names_of_digits_survive_a_csv(tmp_path):
    store = Store(
        tmp_path / "e.csv", {"model": "007", "window_s": 1.0, "weights_digest": "1e5", "config_hash": "01"}, False
    )
    store.open(False, False)
    store.add(FileRecord("12", 1, 2, 0.5, 1), np.ones((1, 3), np.float32), np.zeros(1))
    store.finish(["12"])
    table = read_embeddings(tmp_path / "e.csv")
    assert [str(table[name]) for name in ("model", "weights_digest", "config_hash")] == ["007", "1e5", "01"]
    assert table["path"].tolist() == ["12"]


def test_a_table_without_rows_belongs_to_no_model(tmp_path, clips, embedder, make_encoder):
    (tmp_path / "a.wav").touch()
    for suffix in (".npz", ".parquet", ".csv"):
        output = tmp_path / f"e{suffix}"
        embed_collection([tmp_path / "a.wav"], output, embedder)
        other = Embedder(make_encoder(final_norms=1), device="cpu", name="other")
        assert embed_collection(clips[:1], output, other, resume=True).rows == 1


def test_a_half_written_part_does_not_count(tmp_path):
    store = Store(tmp_path / "e.npz", {"model": "m", "window_s": 1.0, "weights_digest": "w", "config_hash": "h"}, False)
    store.open(False, False)
    store.add(FileRecord("a", 1, 2, 0.5, 1), np.ones((1, 3), np.float32), np.zeros(1))
    store.flush()
    np.save(store.partial / "part-000002.npy", np.ones((1, 3)))
    again = Store(tmp_path / "e.npz", {"model": "m", "window_s": 1.0, "weights_digest": "w", "config_hash": "h"}, False)
    again.open(True, False)
    assert again.done("a", 1, 2)
    assert not again.done("a", 1, 3)
    assert again.finish(["a", "b"]) == 1


def test_outputs_that_cannot_be_are_refused_at_once(tmp_path, embedder, clips):
    for name, message in (("e.txt", "ends in"), ("e", "ends in")):
        with pytest.raises(StoreError, match=message):
            embed_collection(clips, tmp_path / name, embedder)
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(StoreError, match="is a folder"):
        embed_collection(clips, tmp_path / "d.npz", embedder)
    (tmp_path / "bad.npz").write_text("x")
    with pytest.raises(StoreError, match="damaged or was not written"):
        read_embeddings(tmp_path / "bad.npz")
    with pytest.raises(StoreError, match="no such file"):
        read_embeddings(tmp_path / "absent.npz")


def test_only_broken_files_still_give_a_table(tmp_path, embedder):
    (tmp_path / "a.wav").touch()
    result = embed_collection([tmp_path / "a.wav"], tmp_path / "e.npz", embedder)
    assert (result.embedded, len(result.skipped)) == (0, 1)
    assert len(read_embeddings(tmp_path / "e.npz")["path"]) == 0


def test_patterns_and_missing_files(folder, tmp_path, clips):
    assert len(find_audio([str(folder / "**" / "*.mp3")])) == 2
    assert find_audio([clips[0], clips[0].parent])[0] == clips[0]
    assert len(find_audio([clips[0], clips[0].parent])) == len(clips)
    assert find_audio([tmp_path / "absent.wav"]) == [tmp_path / "absent.wav"]
    bracket = tmp_path / "take [1].wav"
    bracket.touch()
    assert find_audio([bracket]) == [bracket]
    for entry, message in ((tmp_path / "*.nothing", "matches no file"), (folder / "naïve (1)" / "..", None)):
        if message:
            with pytest.raises(ValueError, match=message):
                find_audio([str(entry)])
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="no audio file"):
        find_audio([tmp_path / "bare"])


def test_a_decoder_that_dies_costs_one_file(tmp_path, clips):
    """A worker that crashes inside a codec is stood in for by a file name that makes the worker exit."""
    results = dict(decode_files([clips[0], *clips[1:3]], 16_000, 1))
    assert all(isinstance(r, np.ndarray) for r in results.values())
    killer = tmp_path / "killer.wav"
    os.mkfifo(killer) if hasattr(os, "mkfifo") else killer.touch()
    results = dict(decode_files([clips[0], killer, clips[1]], 16_000, 1))
    assert isinstance(results[killer], Exception)
    assert isinstance(results[clips[1]], np.ndarray)


def test_neighbors_agree_with_plain_cosine_similarity():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 5)) + 10
    found = nearest_neighbors(x, 3)
    c = x - x.mean(0)
    for i in range(20):
        similarity = [c[i] @ c[j] / np.linalg.norm(c[i]) / np.linalg.norm(c[j]) if j != i else -2 for j in range(20)]
        expected = np.argsort(similarity)[::-1][:3]
        assert found.indices[i].tolist() == expected.tolist()
        np.testing.assert_allclose(found.similarity[i], np.array(similarity)[expected])
    for bad, count in ((x[:1], 1), (x, 20), (x[0], 1)):
        with pytest.raises(ValueError, match=r"recordings|count"):
            nearest_neighbors(bad, count)


def test_no_damaged_file_can_end_a_job(tmp_path, embedder, clips, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "junk.ogg").write_bytes(b"OggS" + rng.bytes(50_000))
    sf.write(tmp_path / "huge.wav", np.tile([1e25, -1e25], 8_000), 16_000, subtype="FLOAT")
    shutil.copy(clips[8], tmp_path / "good.flac")
    result = embed_collection(find_audio([tmp_path]), tmp_path / "e.npz", embedder)
    assert (result.embedded, len(result.skipped)) == (1, 2)
    assert "not finite" in result.skipped[0].reason

    def unheard_of(path):
        raise RuntimeError("a codec's own trouble")

    monkeypatch.setattr("ssamba.audio.decode.probe", unheard_of)
    result = embed_collection(find_audio([tmp_path]), tmp_path / "f.npz", embedder)
    assert len(result.skipped) == 3
    assert "a codec's own trouble" in result.skipped[0].reason


def test_resuming_with_other_inputs_keeps_earlier_rows(tmp_path, embedder, clips):
    output = tmp_path / "e.npz"
    embed_collection(clips[:3], output, embedder)
    result = embed_collection(clips[2:5], output, embedder, resume=True)
    assert (result.embedded, result.resumed, result.rows) == (2, 1, 5)
    assert read_embeddings(output)["path"].tolist() == [str(clips[i]) for i in (2, 3, 4, 0, 1)]


def test_a_refused_run_leaves_everything_as_it_was(tmp_path, embedder, clips):
    from ssamba.embedder import EmbedOptions

    output = tmp_path / "e.npz"
    embed_collection(clips[:2], output, embedder)
    before = output.read_bytes()
    with pytest.raises(StoreError, match="other settings"):
        embed_collection(clips[:2], output, embedder, EmbedOptions(layer=1), resume=True)
    with pytest.raises(ValueError, match="layer must lie"):
        embed_collection(clips[:2], output, embedder, EmbedOptions(layer=99), overwrite=True)
    assert output.read_bytes() == before
    assert not Path(f"{output}.partial").exists()
    assert embed_collection(clips[:2], output, embedder, resume=True).resumed == 2


def test_a_part_that_a_crash_damaged_is_computed_again(tmp_path, embedder, clips, monkeypatch):
    monkeypatch.setattr("ssamba.library.embed._FLUSH_FILES", 1)
    output = tmp_path / "e.npz"

    def stop(progress):
        if progress.embedded == 3:
            raise Killed

    with pytest.raises(Killed):
        embed_collection(clips[:4], output, embedder, on_progress=stop)
    first = sorted(Path(f"{output}.partial").glob("part-*.npy"))[0]
    first.write_bytes(first.read_bytes()[:50])
    result = embed_collection(clips[:4], output, embedder, resume=True)
    assert (result.resumed, result.embedded, result.rows) == (2, 2, 4)


def test_an_empty_partial_folder_stands_in_nobodys_way(tmp_path, embedder, clips):
    output = tmp_path / "e.npz"
    Path(f"{output}.partial").mkdir()
    (Path(f"{output}.partial") / "run.json").write_text('{"layer": 7}')
    assert embed_collection(clips[:1], output, embedder).rows == 1
