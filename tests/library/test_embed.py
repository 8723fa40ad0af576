"""Bulk embedding: mixed folders, broken files, interruption and resume, formats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from pyarrow import csv as arrow_csv
from pyarrow import parquet
from typer.testing import CliRunner

from ssamba.audio.decode import decode_files
from ssamba.audio.files import find_audio
from ssamba.cli import app
from ssamba.embedder import Embedder
from ssamba.embedding import EmbedOptions
from ssamba.errors import ConfigError, ModelMismatchError, OtherSettingsError, OutputInUseError, SkippedFilesError
from ssamba.library.embed import EmbedReport, embed_files, embed_settings
from ssamba.library.info import table_facts
from ssamba.library.jobs import FileJob
from ssamba.library.store import Store, check_settings
from ssamba.library.tables import FileRecord, StoreError, read_embeddings


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
    files = find_audio([folder])
    assert len(files) == 20
    output = tmp_path / "out" / f"e{suffix}"
    seen = []
    result = embed_files(files, output, embedder, frames=frames, progress=seen.append)
    assert (result.done, len(result.skipped), result.unchanged) == (12, 8, 0)
    assert [state.done for state in seen] == list(range(1, 21))
    assert (seen[-1].total, seen[-1].skipped, seen[-1].step) == (20, 8, "embedding")
    assert seen[-1].audio_s == pytest.approx(result.audio_s)
    assert sorted(p.name for p in output.parent.iterdir()) == [output.name, f"{output.name}.skipped.csv"]
    reasons = Path(f"{output}.skipped.csv").read_text(encoding="utf-8").splitlines()
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
    embed_files(files, tmp_path / "a.npz", embedder)
    embed_files(files, tmp_path / "b.npz", embedder, workers=1)
    assert_same_tables(tmp_path / "a.npz", tmp_path / "b.npz")


class Killed(BaseException):
    pass


def test_an_interrupted_run_goes_on_where_it_was(folder, tmp_path, embedder, monkeypatch):
    monkeypatch.setattr("ssamba.library.store._FLUSH_FILES", 2)
    monkeypatch.setattr("ssamba.inference.engine.CPU_TOKENS_PER_BATCH", 200)
    files = find_audio([folder])
    embed_files(files, tmp_path / "whole.npz", embedder)
    output = tmp_path / "parts.npz"

    def kill_after(count):
        def check(progress):
            if progress.done - progress.skipped == count:
                raise Killed

        return check

    with pytest.raises(Killed):
        embed_files(files, output, embedder, progress=kill_after(3))
    assert not output.exists()
    with pytest.raises(Killed):
        embed_files(files, output, embedder, progress=kill_after(4))
    result = embed_files(files, output, embedder)
    assert result.unchanged >= 6
    assert result.unchanged + result.done == 12
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
    while not Path(f"{tmp_path / 'k.npz'}.partial").exists() and process.poll() is None:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    process.kill()
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_embeddings(tmp_path / "k.npz")["path"]) == 42
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
@pytest.mark.parametrize("frames", [False, True])
def test_new_and_changed_files_join_a_finished_output(folder, tmp_path, embedder, suffix, frames, clips):
    output = tmp_path / f"e{suffix}"
    embed_files(find_audio([folder]), output, embedder, frames=frames)
    again = embed_files(folder, output, embedder, frames=frames)
    assert str(again).startswith("nothing to do: 12 files already there, 8 skipped")
    shutil.copy(clips[9], folder / "new.flac")
    shutil.copy(clips[10], folder / f"0 {clips[0].name}")
    result = embed_files(find_audio([folder]), output, embedder, frames=frames)
    assert (result.done, result.changed, result.unchanged, result.kept) == (2, 1, 11, 0)
    embed_files(find_audio([folder]), tmp_path / f"fresh{suffix}", embedder, frames=frames)
    assert_same_tables(output, tmp_path / f"fresh{suffix}")


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_other_settings_are_refused_and_each_difference_is_named(clips, tmp_path, embedder, make_encoder, suffix):
    output = tmp_path / f"e{suffix}"
    embed_files(clips[:2], output, embedder)
    before = output.read_bytes()
    with pytest.raises(OtherSettingsError) as refused:
        embed_files(clips[:3], output, embedder, frames=True, layer=1, padding="official")
    assert str(refused.value) == (
        f"{output} was made with other settings: frames was False, is True; layer was None, is 1; padding was 'patch', "
        "is 'official'. Use another output, or --overwrite (overwrite=True) to start anew"
    )
    other = Embedder(make_encoder(depth=2), device="cpu", name="other")
    with pytest.raises(ModelMismatchError) as refused:
        embed_files(clips[:3], output, other, frames=True)
    assert str(refused.value) == (
        f"{output} was made with other settings: the model was {embedder.identity}, is {other.identity}; "
        f"encoder was {embedder.encoder.config.digest()!r}, is {other.encoder.config.digest()!r}; frames was False, is "
        "True. Use another output, or --overwrite (overwrite=True) to start anew"
    )
    moved = Embedder(embedder.encoder, device="cpu", name="the same weights elsewhere")
    assert embed_files(clips[:2], output, moved).unchanged == 2
    changed = Embedder(make_encoder(), device="cpu", name="other")
    with torch.no_grad():
        changed.encoder.cls_token += 1
    with pytest.raises(ModelMismatchError, match=r"Use -c small, another output, or --overwrite"):
        embed_files(clips[:2], output, changed)
    assert output.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [output]
    assert embed_files(clips[:3], output, other, layer=1, overwrite=True).rows == 3
    assert str(read_embeddings(output)["model"]) == "other"


def test_windows_and_full_context_are_not_mixed_in_a_table(clips, tmp_path, embedder):
    output = tmp_path / "e.npz"
    embed_files(clips[:2], output, embedder)
    before = output.read_bytes()
    for options, named in (
        ({"context": "full"}, "context was 'windows', is 'full'"),
        ({"overlap": 0.25}, "overlap was 0.5, is 0.25"),
        ({"precision": "bf16"}, "precision was 'fp32', is 'bf16'"),
        ({"channels": 0}, "channels was 'mean', is 0"),
        ({"readout": "parts"}, "readout was 'clip', is 'parts'"),
    ):
        with pytest.raises(OtherSettingsError) as refused:
            embed_files(clips[:3], output, embedder, **options)
        assert f"{output} was made with other settings: {named}. Use another output" in str(refused.value)
    assert output.read_bytes() == before
    assert embed_files(clips[:2], output, embedder, precision="auto").unchanged == 2  # fp32 on a CPU


def test_tables_hold_the_readout_that_was_asked_for(clips, tmp_path, embedder, ssamba_pth):
    output = tmp_path / "e.npz"
    embed_files(clips[:2], output, embedder, readout="parts")
    table = read_embeddings(output)
    np.testing.assert_allclose(table["embedding"][0], embedder.embed(clips[0]).parts, atol=1e-5)
    assert str(table["config_hash"]) != embedder.digest()
    with pytest.raises(OtherSettingsError, match="readout was 'parts', is 'clip'"):
        embed_files(clips[:3], output, embedder)
    assert embed_files(clips[:3], output, embedder, readout="parts").unchanged == 2
    arguments = ["embed", str(clips[0]), "-o", str(tmp_path / "c.npz"), "-c", str(ssamba_pth), "--readout", "parts"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert read_embeddings(tmp_path / "c.npz")["embedding"].shape == (1, 4 * 32)
    # Tables that do not say which were made before there was a choice.
    before, now = (embed_settings(embedder, EmbedOptions(), readout=readout) for readout in ("clip", "parts"))
    del before["options"]["readout"]
    with pytest.raises(OtherSettingsError, match=r"settings: readout was 'clip', is 'parts'\. Use"):
        check_settings(before, now, "It was made")
    with pytest.raises(ConfigError, match="the readout 'parts' is one vector of a file: leave one out"):
        embed_files(clips[:2], output, embedder, frames=True, readout="parts")
    with pytest.raises(ConfigError, match="readout: expected 'clip' or 'parts', got 'thirds'"):
        embed_files(clips[:2], output, embedder, readout="thirds")


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_rows_can_be_means_over_stretches_of_time(clips, tmp_path, embedder, suffix, monkeypatch):
    monkeypatch.setattr("ssamba.library.tables._BATCH_BYTES", 300)  # two rows
    output, names = tmp_path / f"e{suffix}", clips[:2]
    embed_files(names, output, embedder, every_s=0.32)
    table = read_embeddings(output)
    for index, path in enumerate(names):
        e, own = embedder.embed(path), table["file"] == index
        assert own.sum() == np.ceil(e.duration_s / 0.32)
        whole = len(e.frames) // 2
        pairs = e.frames[: 2 * whole].reshape(whole, 2, -1).mean(1)
        np.testing.assert_allclose(table["embedding"][own][:whole], pairs, atol=1e-5)
        np.testing.assert_allclose(table["time_s"][own][:2], [0.16, 0.48], atol=1e-6)
    assert embed_files(clips[:3], output, embedder, every_s=0.32).done == 1
    assert len(read_embeddings(output)["path"]) == 3
    with pytest.raises(OtherSettingsError, match=r"every_s was 0\.32, is 1"):
        embed_files(names, output, embedder, every_s=1)
    with pytest.raises(ConfigError, match="at least a time step of this model"):
        embed_files(names, tmp_path / "other.npz", embedder, every_s=0.1)
    with pytest.raises(ConfigError, match="leave one out"):
        embed_files(names, tmp_path / "other.npz", embedder, every_s=1, readout="parts")


def test_an_interrupted_run_with_other_settings_is_refused(clips, tmp_path, embedder, monkeypatch):
    monkeypatch.setattr("ssamba.inference.engine.CPU_TOKENS_PER_BATCH", 200)
    output = tmp_path / "e.npz"
    assert not embed_files(clips, output, embedder, progress=lambda state: False).finished
    named = r"partial is of an interrupted run .* layer was None, is 1\. Use the command"
    with pytest.raises(OtherSettingsError, match=named):
        embed_files(clips, output, embedder, layer=1)
    assert embed_files(clips, output, embedder).unchanged >= 1


def test_a_half_written_part_does_not_count(tmp_path):
    settings = {"model": "m", "weights_digest": "d", "window_s": 1.0, "config_hash": "h", "options": {}}
    store = Store(tmp_path / "e.npz", settings, False)
    store.open()
    store.add(FileRecord("a", 1, 2, 0.5, 1), np.ones((1, 3), np.float32), np.zeros(1))
    store.flush()
    np.save(store.partial / "part-000002.npy", np.ones((1, 3)))
    again = Store(tmp_path / "e.npz", settings, False)
    again.open()
    assert again.records["a"].is_unchanged(1, 2)
    assert not again.records["a"].is_unchanged(1, 3)
    assert again.finish(["a", "b"]) == 1


def test_outputs_that_cannot_be_are_refused_at_once(tmp_path, embedder, clips):
    for name, message in (("e.txt", "ends in"), ("e", "ends in")):
        with pytest.raises(ConfigError, match=message):
            embed_files(clips, tmp_path / name, embedder)
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        embed_files(clips, tmp_path / "d.npz", embedder)
    (tmp_path / "bad.npz").write_text("x")
    with pytest.raises(StoreError, match="damaged or was not written"):
        read_embeddings(tmp_path / "bad.npz")
    with pytest.raises(StoreError, match="no such file"):
        read_embeddings(tmp_path / "absent.npz")


def test_only_broken_files_are_an_error_with_the_reason(tmp_path, embedder):
    (tmp_path / "a.wav").touch()
    with pytest.raises(StoreError, match=r"no file could be embedded: .*a\.wav.*e\.npz\.skipped\.csv"):
        embed_files([tmp_path / "a.wav"], tmp_path / "e.npz", embedder)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.wav", "e.npz.skipped.csv"]


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


def test_no_damaged_file_can_end_a_job(tmp_path, embedder, clips, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "junk.ogg").write_bytes(b"OggS" + rng.bytes(50_000))
    sf.write(tmp_path / "huge.wav", np.tile([1e25, -1e25], 8_000), 16_000, subtype="FLOAT")
    shutil.copy(clips[8], tmp_path / "good.flac")
    result = embed_files(find_audio([tmp_path]), tmp_path / "e.npz", embedder)
    assert (result.done, len(result.skipped)) == (1, 2)
    assert "not finite" in result.skipped[0].reason

    def unheard_of(path):
        raise RuntimeError("a codec's own trouble")

    monkeypatch.setattr("ssamba.audio.decode.open_audio", unheard_of)
    with pytest.raises(StoreError, match="a codec's own trouble"):
        embed_files(find_audio([tmp_path]), tmp_path / "f.npz", embedder)
    assert len((tmp_path / "f.npz.skipped.csv").read_text().splitlines()) == 4


def test_other_inputs_are_added_and_earlier_rows_kept_until_pruned(tmp_path, embedder, clips):
    output = tmp_path / "e.npz"
    embed_files(clips[:3], output, embedder)
    report = embed_files(clips[2:5], output, embedder)
    assert (report.done, report.unchanged, report.kept, report.rows) == (2, 1, 2, 5)
    assert str(report).endswith("\nkept the rows of 2 files not named this time (--prune removes them)")
    assert read_embeddings(output)["path"].tolist() == [str(clips[i]) for i in (2, 3, 4, 0, 1)]
    vectors = read_embeddings(output)["embedding"]
    report = embed_files(clips[3], output, embedder, prune=True)
    assert (report.done, report.unchanged, report.kept, report.pruned, report.rows) == (0, 1, 0, 4, 1)
    np.testing.assert_array_equal(read_embeddings(output)["embedding"], vectors[1:2])


def test_a_file_is_the_same_however_it_is_named(tmp_path, embedder, clips, monkeypatch):
    (tmp_path / "rec").mkdir()
    for clip in clips[:2]:
        shutil.copy(clip, tmp_path / "rec")
    (tmp_path / "link").symlink_to("rec")
    monkeypatch.chdir(tmp_path)
    assert embed_files(["rec", "rec/../rec", "link"], "e.npz", embedder).done == 2
    monkeypatch.chdir(tmp_path / "rec")
    for name in (".", tmp_path / "rec", "../link", "*.flac"):
        assert embed_files(name, "../e.npz", embedder).unchanged == 2
    table = read_embeddings("../e.npz")
    assert table["path"].tolist() == [f"rec/{clip.name}" for clip in clips[:2]]
    assert table["absolute_path"].tolist() == [str((tmp_path / "rec" / clip.name).resolve()) for clip in clips[:2]]


def test_rows_of_files_that_are_gone_stay_and_of_files_that_broke_go(tmp_path, embedder, clips):
    gone, broken, fine = (Path(shutil.copy(clip, tmp_path)) for clip in clips[:3])
    output = tmp_path / "e.parquet"
    embed_files([gone, broken, fine], output, embedder)
    gone.unlink()
    broken.write_text("no audio")
    report = embed_files([gone, broken, fine], output, embedder)
    assert (report.done, report.unchanged, len(report.skipped)) == (0, 1, 2)
    assert read_embeddings(output)["path"].tolist() == [str(gone), str(fine)]


def test_overwriting_keeps_the_old_table_until_the_new_one_is_complete(tmp_path, embedder, clips, monkeypatch):
    monkeypatch.setattr("ssamba.inference.engine.CPU_TOKENS_PER_BATCH", 200)
    output = tmp_path / "e.npz"
    embed_files(clips[:2], output, embedder)
    before = output.read_bytes()
    assert not embed_files(clips[1:], output, embedder, layer=1, overwrite=True, progress=lambda _: False).finished
    assert output.read_bytes() == before
    report = embed_files(clips[1:], output, embedder, layer=1)
    assert report.unchanged >= 1
    assert (report.unchanged + report.done, report.rows, report.kept) == (len(clips) - 1, len(clips) - 1, 0)
    embed_files(clips[1:], tmp_path / "fresh.npz", embedder, layer=1)
    assert_same_tables(output, tmp_path / "fresh.npz")


def test_progress_that_returns_false_stops_and_keeps_what_is_done(tmp_path, embedder, clips, monkeypatch):
    monkeypatch.setattr("ssamba.inference.engine.CPU_TOKENS_PER_BATCH", 200)
    output = tmp_path / "e.npz"
    report = embed_files(clips, output, embedder, progress=lambda state: state.done < 3)
    assert not report.finished
    assert 3 <= report.done < len(clips)
    assert (report.rows, output.exists()) == (0, False)
    again = embed_files(clips, output, embedder, progress=lambda state: state.done < state.total)
    assert (again.unchanged, again.done, again.finished) == (report.done, len(clips) - report.done, True)


def test_the_time_left_counts_audio_and_not_files(tmp_path, monkeypatch):
    lengths_s = {f"{i}.wav": 60.0 for i in range(6)} | {"6.flac": 60.0, "7.wav": 1440.0}
    for name, seconds in lengths_s.items():
        (tmp_path / name).write_bytes(bytes(int(seconds) * (16 if name.endswith(".flac") else 32)))
    clock = SimpleNamespace(monotonic=lambda: clock.now_s, now_s=0.0)
    monkeypatch.setattr("ssamba.progress.time", clock)

    class Engine:  # twenty times real time, and three seconds to start
        def run(self, paths, job):
            clock.now_s += 3
            for path in sorted(paths, key=lambda path: path.name):
                clock.now_s += lengths_s[path.name] / 20
                yield path, "result"

    job, states = FileJob([tmp_path], EmbedReport(output=None)), []
    job.compare({})
    job.run(Engine(), lambda path, result: lengths_s[path.name], states.append)
    left_s = [state.left_s for state in states]
    assert left_s[1:] == pytest.approx([(1440 + 60 * k) / 20 for k in (4.5, 3.5, 2.5, 1.5, 0.5, 0)] + [0.0])


def test_a_second_writer_is_refused(tmp_path, embedder, clips):
    def embed_again(state):
        with pytest.raises(OutputInUseError, match="is being written by"):
            embed_files(clips[:2], tmp_path / "e.npz", embedder, overwrite=True)

    assert embed_files(clips[:2], tmp_path / "e.npz", embedder, progress=embed_again).rows == 2


def test_info_says_how_a_table_was_made(tmp_path, embedder, clips):
    embed_files(clips[:2], tmp_path / "e.npz", embedder, readout="parts")
    facts = dict(table_facts(tmp_path / "e.npz"))
    assert (facts["rows"], facts["dimension"], facts["readout"]) == ("2 files", "128", "parts")
    assert facts["weights digest"] == embedder.identity.weights_digest
    (tmp_path / "x.npz").write_text("text")
    done = CliRunner().invoke(app, ["info", str(tmp_path / "e.npz"), str(tmp_path / "x.npz")])
    assert done.exit_code == 1
    assert "parts" in done.stdout
    assert "x.npz" in done.stderr


def test_strict_raises_when_the_table_is_written(tmp_path, embedder, clips):
    (tmp_path / "a.wav").touch()
    with pytest.raises(SkippedFilesError, match=r"skipped 1 file$") as skipped:
        embed_files([clips[0], tmp_path / "a.wav"], tmp_path / "e.npz", embedder, strict=True)
    assert skipped.value.report.rows == len(read_embeddings(tmp_path / "e.npz")["path"]) == 1


@pytest.mark.parametrize(
    "lacks", [("absolute_path",), ("absolute_path", "file_bytes", "modified_ns", "weights_digest", "settings")]
)
@pytest.mark.parametrize(("suffix", "frames"), [(".npz", False), (".npz", True), (".parquet", True), (".csv", True)])
def test_tables_of_earlier_versions_are_continued(tmp_path, embedder, clips, suffix, frames, lacks, monkeypatch):
    """They had no `absolute_path`, options as text, CSV no `settings`; the earliest had no size and time either."""
    new, old = tmp_path / f"new{suffix}", tmp_path / f"old{suffix}"
    monkeypatch.chdir(clips[0].parent)
    names = [clip.name for clip in clips[:3]]
    embed_files(names[:2], new, embedder, frames=frames)
    without_columns(new, old, lacks)
    assert_same_tables(new, old)
    assert embed_files(names[:2], old, embedder, frames=frames).unchanged == 2
    named = "layer was None, is 1" if "settings" not in lacks else "config_hash was .* is .* .it does not say why"
    with pytest.raises(OtherSettingsError, match=named):
        embed_files(names, old, embedder, frames=frames, layer=1)
    report = embed_files(names, old, embedder, frames=frames)
    assert (report.unchanged, report.done) == (2, 1)
    embed_files(names, new, embedder, frames=frames)
    assert_same_tables(new, old)
    without_columns(new, old, ("settings", "config_hash"))
    with pytest.raises(StoreError, match="does not say how it was made"):
        embed_files(names, old, embedder, frames=frames)


def without_columns(source, target, names):
    if source.suffix == ".npz":
        with np.load(source) as archive:
            members = {name: archive[name] for name in archive.files if name not in names}
        if "settings" in members:
            settings = json.loads(str(members["settings"]))
            settings["options"] = json.dumps(settings["options"])
            del settings["weights_digest"], settings["encoder"], settings["front_end"]
            members["settings"] = np.array(json.dumps(settings))
        with zipfile.ZipFile(target, "w") as archive:
            for name, array in members.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array)
        return
    if source.suffix == ".parquet":
        table = parquet.read_table(source)
        keep = [name for name in table.column_names if name not in names]
        table = table.select(keep)
        parquet.write_table(table.replace_schema_metadata({}) if "settings" in names else table, target)
        return
    table = arrow_csv.read_csv(source)
    arrow_csv.write_csv(table.select([name for name in table.column_names if name not in names]), target)


def test_names_and_digests_that_look_like_numbers_stay_text(tmp_path, clips):
    output = tmp_path / "e.csv"
    settings = {"model": "1", "weights_digest": "1", "window_s": 1.0, "config_hash": "00012e4567890123", "options": {}}
    store = Store(output, settings, False)
    store.open()
    store.add(FileRecord("0123", 1, 2, 1.0, 1, "/0123"), np.ones((1, 3), np.float32), np.zeros(1))
    store.finish(["/0123"])
    table = read_embeddings(output)
    assert (table["path"].tolist(), str(table["config_hash"])) == (["0123"], "00012e4567890123")


def test_a_refused_run_leaves_everything_as_it_was(tmp_path, embedder, clips):
    output = tmp_path / "e.npz"
    embed_files(clips[:2], output, embedder)
    before = output.read_bytes()
    with pytest.raises(OtherSettingsError, match="other settings"):
        embed_files(clips[:2], output, embedder, layer=1)
    with pytest.raises(ValueError, match="layer must lie"):
        embed_files(clips[:2], output, embedder, layer=99, overwrite=True)
    assert output.read_bytes() == before
    assert not Path(f"{output}.partial").exists()
    assert embed_files(clips[:2], output, embedder).unchanged == 2


def test_a_part_that_a_crash_damaged_is_computed_again(tmp_path, embedder, clips, monkeypatch):
    monkeypatch.setattr("ssamba.library.store._FLUSH_FILES", 1)
    output = tmp_path / "e.npz"

    def stop(progress):
        if progress.done == 3:
            raise Killed

    with pytest.raises(Killed):
        embed_files(clips[:4], output, embedder, progress=stop)
    first = sorted(Path(f"{output}.partial").glob("part-*.npy"))[0]
    first.write_bytes(first.read_bytes()[:50])
    result = embed_files(clips[:4], output, embedder)
    assert (result.unchanged, result.done, result.rows) == (2, 2, 4)


def test_an_empty_partial_folder_stands_in_nobodys_way(tmp_path, embedder, clips):
    output = tmp_path / "e.npz"
    Path(f"{output}.partial").mkdir()
    (Path(f"{output}.partial") / "run.json").write_text('{"layer": 7}')
    assert embed_files(clips[:1], output, embedder).rows == 1
