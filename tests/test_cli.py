"""The command line: output, written files and exit codes, as a user sees them."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import invoke
from typer.testing import CliRunner

from ssamba.cli import app
from ssamba.cli.app import raise_interrupt
from ssamba.cli.progress import ProgressDisplay
from ssamba.library.tables import read_embeddings
from ssamba.progress import Progress


def ssamba_process(*arguments):
    """Run a command in a process of its own, which takes 2 s."""
    return subprocess.run([sys.executable, "-m", "ssamba", *arguments], capture_output=True, text=True, check=False)


def ssamba(*arguments):
    """Run a command in this process; return what `ssamba_process` would."""
    done = invoke(*arguments)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "arguments", [(), ("embed",), ("predict",), ("info",), ("convert",), ("average",), ("reconstruct",)]
)
def test_help_has_examples_and_exit_codes(arguments):
    done = ssamba(*arguments, "--help")
    assert done.returncode == 0
    assert "Exit codes" in done.stdout
    if arguments:
        assert "Example" in done.stdout


def test_version():
    done = ssamba_process("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("ssamba ")


def test_embed_writes_a_folder_and_skips_broken_files(tmp_path, clips, ssamba_pth):
    for path in clips[:3]:
        shutil.copy(path, tmp_path)
    (tmp_path / "bad.wav").write_text("no audio")
    done = ssamba("embed", tmp_path, "-o", tmp_path / "e.npz", "-c", ssamba_pth)
    assert done.returncode == 0, done.stderr
    assert "3 files embedded, 1 skipped" in done.stdout
    assert "bad.wav" in done.stderr
    assert read_embeddings(tmp_path / "e.npz")["embedding"].shape == (3, 32)
    again = ssamba("embed", tmp_path, "-o", tmp_path / "e.npz", "-c", ssamba_pth)
    assert again.returncode == 0, again.stderr
    assert "nothing to do: 3 files already there, 1 skipped" in again.stdout
    strict = ssamba("embed", tmp_path, "-o", tmp_path / "e.npz", "-c", ssamba_pth, "--strict")
    assert strict.returncode == 3
    assert "error: skipped 1 file\n" in strict.stderr


def test_bundled_weights_are_the_default(tmp_path, clips):
    done = ssamba("embed", clips[8], "-o", tmp_path / "e.npz")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


def interrupted(command, how, when, **options):
    """Run a command, send it a signal once `when()` holds, and return its exit code and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ssamba", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A script's background job, as the tests may be, ignores SIGINT, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    deadline = time.monotonic() + 300
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    out, errors = process.communicate()
    assert "Traceback" not in errors
    return process.returncode, out, errors


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_embed_keeps_what_is_done_and_the_same_command_goes_on(tmp_path, clips, ssamba_pth, how):
    for index in range(300):
        shutil.copy(clips[6], tmp_path / f"{index}.flac")
    command = ["embed", tmp_path, "-o", tmp_path / "e.npz", "-c", ssamba_pth]
    partial = Path(f"{tmp_path / 'e.npz'}.partial")
    code, _, errors = interrupted(command, how, lambda: any(partial.glob("part-*.json")))
    assert code == 130
    assert re.search(r"interrupted: \d+ files are embedded and saved: repeat the command to resume", errors)
    kept = int(re.search(r"(\d+) files are embedded", errors)[1])
    assert not (tmp_path / "e.npz").exists()
    done = ssamba(*command)
    assert done.returncode == 0, done.stderr
    assert f"{300 - kept} files embedded, {kept} already there" in done.stdout
    vectors = read_embeddings(tmp_path / "e.npz")["embedding"]
    assert len(vectors) == 300
    np.testing.assert_allclose(vectors, vectors[:1].repeat(300, 0), atol=1e-5)


def test_info_on_checkpoints_audio_and_the_environment(tmp_path, clips, ssamba_pth):
    done = ssamba("info", ssamba_pth, clips[0])
    assert done.returncode == 0, done.stderr
    assert "4 blocks, width 32" in done.stdout
    assert "unused vision head" in done.stdout
    assert "44100 Hz" in done.stdout
    assert "eager" in ssamba("info").stdout
    cut = tmp_path / "cut.flac"
    cut.write_bytes(clips[0].read_bytes()[:20_000])
    (tmp_path / "x.pth").write_text("no")
    done = ssamba("info", tmp_path / "x.pth", tmp_path / "absent.wav", clips[0])
    assert done.returncode == 1
    assert done.stderr.count("error:") == 2
    assert "44100 Hz" in done.stdout


def test_info_on_folders_of_recordings_and_a_checkpoint(tmp_path, clips, ssamba_pth):
    for clip in clips[:2]:
        shutil.copy(clip, tmp_path)
    done = ssamba("info", tmp_path, "-c", ssamba_pth)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("decoded length") == 2
    assert done.stdout.count("4 blocks, width 32") == 1


def test_convert_writes_our_format_once(tmp_path, ssamba_pth, ssast_pth):
    done = ssamba("convert", ssamba_pth, "-o", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert f"model in {tmp_path / 'c'}" in done.stdout
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    again = ssamba("convert", ssamba_pth, "-o", tmp_path / "c")
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()} == files
    other = ssamba("convert", ssast_pth, "-o", tmp_path / "c")
    assert (other.returncode, "holds another checkpoint: " in other.stderr) == (1, True)
    assert ssamba("convert", ssast_pth, "-o", tmp_path / "c", "--overwrite").returncode == 0
    assert "SSAST, 2 blocks, width 24, 3 heads" in ssamba("info", tmp_path / "c").stdout


def test_average_is_the_weighted_mean_and_refuses_other_structures(tmp_path, ssamba_pth, ssast_pth):
    ssamba("convert", ssamba_pth, "-o", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "b" / "model.safetensors")
    done = ssamba("average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c", "--weights", "1,3")
    assert done.returncode == 0, done.stderr
    mean = load_file(tmp_path / "c" / "model.safetensors")
    for name, tensor in tensors.items():
        torch.testing.assert_close(mean[name], tensor + 0.75)
    assert "mean of 1 of" in (tmp_path / "c" / "config.json").read_text()
    again = ssamba("average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c", "--weights", "1,3")
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)
    other = ssamba("average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c")
    assert (other.returncode, "origin was 'mean of 1 of" in other.stderr) == (1, True)


def test_messages_and_progress_are_json_lines_if_asked_for(tmp_path, clips, ssamba_pth):
    (tmp_path / "bad.wav").write_text("no audio")
    done = ssamba("embed", clips[0], tmp_path / "bad.wav", "-o", tmp_path / "e.npz", "-c", ssamba_pth, "--log-json")
    assert done.returncode == 0
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (progress,) = [event for event in events if event["event"] == "progress"]
    assert (progress["step"], progress["done"], progress["total"], progress["skipped"]) == ("embedding", 2, 2, 1)
    assert progress["audio_s"] > 0
    assert [event["level"] for event in events if event["event"] == "log"] == ["warning", "warning"]


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet_commands_say_nothing_and_verbose_ones_more(tmp_path, clips, ssamba_pth, place):
    def run(flag, *arguments):
        command = ["embed", *arguments, "-c", ssamba_pth]
        return ssamba(*([flag, *command] if place == "before" else [*command, flag]))

    (tmp_path / "bad.wav").write_text("no audio")
    quiet = run("-q", clips[0], tmp_path / "bad.wav", "-o", tmp_path / "e.npz")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    failed = run("--quiet", tmp_path / "absent.wav", "-o", tmp_path / "f.npz")
    assert failed.returncode == 1
    assert re.fullmatch(r"error: no file could be embedded: .*\n", failed.stderr)
    verbose = run("-v", tmp_path / "absent.wav", "-o", tmp_path / "f.npz")
    assert "Traceback" in verbose.stderr


def test_progress_without_a_terminal_is_a_line_every_thirty_seconds(monkeypatch, capsys):
    from ssamba.cli import progress

    now_s = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s)
    with progress.ProgressDisplay() as show:
        for done in range(100):
            now_s = 10.0 * done
            show(Progress("embedding", done, 100, audio_s=3600.0 * done, elapsed_s=now_s, skipped=2, left_s=90.0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 33
    assert lines[0] == "embedding: 3 of 100 files, 3.00 h of audio, 360x real time, 2 skipped, 1.5 min left"


def wait_for_lines(path, count):
    return path.exists() and path.read_text().count("\n") >= count


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_predict_keeps_what_is_done_and_the_same_command_goes_on(
    tmp_path, clips, classifier_folder, how
):
    for index in range(300):
        shutil.copy(clips[6], tmp_path / f"{index}.flac")
    command = ["predict", tmp_path, "-c", classifier_folder, "-o", tmp_path / "p.csv", "--workers", "0"]
    code, _, errors = interrupted(command, how, lambda: wait_for_lines(tmp_path / "p.csv.partial", 5))
    assert code == 130
    kept = int(re.search(r"interrupted: (\d+) files are classified and saved: repeat the command to resume", errors)[1])
    assert not (tmp_path / "p.csv").exists()
    done = ssamba(*command)
    assert done.returncode == 0, done.stderr
    assert f"{300 - kept} files classified, {kept} already there" in done.stdout
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 3 * 300


def test_an_interrupted_predict_without_a_file_prints_what_is_done(tmp_path, clips, classifier_folder, monkeypatch):
    for index in range(30):
        shutil.copy(clips[6], tmp_path / f"{index}.flac")
    show = ProgressDisplay.__call__

    def interrupt(display, state):
        show(display, state)
        if state.done == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr("ssamba.inference.engine.CPU_TOKENS_PER_BATCH", 200)
    monkeypatch.setattr(ProgressDisplay, "__call__", interrupt)
    done = ssamba("predict", tmp_path, "-c", classifier_folder, "--format", "csv", "--workers", "0")
    assert done.returncode == 130, done.stderr
    classified = int(re.search(r"interrupted: (\d+) files are classified", done.stderr)[1])
    assert 0 < classified < 30
    assert len(done.stdout.splitlines()) == 1 + 3 * classified


def test_an_import_is_not_interrupted_in_the_middle(tmp_path, monkeypatch):
    (tmp_path / "signaled.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\nis_whole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        signaled = importlib.import_module("signaled")
        assert signaled.is_whole
        with pytest.raises(KeyboardInterrupt):
            time.sleep(60)
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.modules.pop("signaled", None)


def test_an_interrupt_where_exceptions_are_ignored_comes_again(tmp_path, clips, monkeypatch):
    class Signals:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def find_audio(*arguments):
        Signals()
        time.sleep(60)

    monkeypatch.setattr("ssamba.audio.files.find_audio", find_audio)
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = invoke("info", clips[0].parent)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (130, "warning: interrupted")


@pytest.mark.parametrize(
    "command",
    [
        ("info", "recordings"),
        ("convert", "ssamba2-tiny", "-o", "c"),
        ("average", "ssamba2-tiny", "ssamba2-tiny", "-o", "c"),
        ("reconstruct", "recordings/0.flac", "-o", "c.png"),
    ],
)
def test_other_interrupted_commands_end_with_130_and_write_all_or_nothing(tmp_path, clips, command):
    (tmp_path / "recordings").mkdir()
    for index in range(200):
        shutil.copy(clips[0], tmp_path / "recordings" / f"{index}.flac")
    started_s = time.monotonic()
    code, _, errors = interrupted(command, signal.SIGTERM, lambda: time.monotonic() - started_s > 1.5, cwd=tmp_path)
    assert (code, errors.splitlines()[-1:]) in ((130, ["warning: interrupted"]), (0, errors.splitlines()[-1:]))
    assert {path.name for path in tmp_path.iterdir()} <= {"recordings", "c", "c.png"}
    if code == 130 and (tmp_path / "c").exists():
        assert not any(path.name.startswith(".") for path in (tmp_path / "c").iterdir())


WRONG_USES = {
    "embed": [
        (["a.wav"], 2, "Missing option '--output'"),
        (["-o", "x.npz"], 2, "Missing argument 'RECORDINGS...'"),
        (["a.wav", "-o", "x.txt"], 2, "x.txt: expected a file name that ends in .npz, .parquet, .csv"),
        (["a.wav", "-o", "."], 2, "expected a file name that ends in"),
        (["*.none", "-o", "x.npz"], 1, "*.none: the pattern matches no file"),
        (["empty", "-o", "x.npz"], 1, "empty: no audio file in this folder"),
        (["a.wav", "-o", "x.npz", "--context", "all"], 2, "'all' is not one of 'windows', 'full'"),
        (["a.wav", "-o", "x.npz", "--overlap", "1.5"], 2, "overlap: Input should be less than 1 (got 1.5)"),
        (["a.wav", "-o", "x.npz", "--context", "full", "--overlap", "0.2"], 2, "context='full' has none"),
        (["a.wav", "-o", "x.npz", "--channels", "left"], 2, "channels must be"),
        (["a.wav", "-o", "x.npz", "--resume"], 2, "No such option: --resume"),
        (["a.wav", "-o", "x.npz", "-c", "ssamba2-tinny"], 1, "Did you mean 'ssamba2-tiny'?"),
        (["a.wav", "-o", "x.npz", "-c", "no/model"], 1, "no/model: no such file or folder"),
        (
            ["a.wav", "-o", "x.npz", "--device", "gpu"],
            2,
            "device must be 'cpu', 'cuda', 'cuda:1' or the like, got 'gpu'",
        ),
        (["a.wav", "-o", "x.npz"], 1, "no file could be embedded: a.wav"),
        (["a.wav", "-o", "x.npz", "--layer", "99"], 1, "layer must lie"),
        (["good.flac", "-o", "text.npz"], 1, "text.npz is damaged or was not written by `ssamba embed`"),
        (["a.wav", "-o", "x.npz", "--workers", "-1"], 2, "should be greater than or equal to 0"),
    ],
    "predict": [
        (["a.wav"], 2, "Missing option '--checkpoint'"),
        (["-c", "classifier"], 2, "Missing argument 'RECORDINGS...'"),
        (
            ["a.wav", "-c", "classifier", "-o", "x.txt"],
            2,
            "x.txt: expected a file name that ends in .csv, .json or .parquet",
        ),
        (["*.none", "-c", "classifier"], 1, "the pattern matches no file"),
        (["good.flac", "-c", "ssamba_tiny.pth"], 1, "has no classifier"),
        (["good.flac", "-c", "no/model"], 1, "no/model: no such file or folder"),
        (["good.flac", "-c", "classifier", "--top", "-1"], 2, "should be greater than or equal to 0"),
        (["good.flac", "-c", "classifier", "--format", "xml"], 2, "'xml' is not one of 'table', 'csv', 'json'"),
        (["a.wav", "-c", "classifier"], 1, "no file could be classified: a.wav"),
        (["good.flac", "-c", "classifier", "-o", "text.csv"], 1, "text.csv exists, and text.csv.run.jsonl"),
        (["good.flac", "-c", "classifier", "--channels", "7"], 1, "has no channel 7"),
        (["good.flac", "-c", "classifier", "--damaged", "mend"], 2, "'mend' is not one of 'skip', 'keep'"),
    ],
    "info": [
        (["hf:../../x"], 1, "expected hf:OWNER/NAME"),
        (["ssamba2-tinny"], 1, "Did you mean 'ssamba2-tiny'?"),
        (["absent.wav"], 1, "absent.wav: no such file"),
        (["text.wav"], 1, "text.wav"),
        (["text.pth"], 1, "text.pth is damaged or not a PyTorch checkpoint"),
        (["empty"], 1, "empty: no audio file in this folder"),
        (["*.none"], 1, "the pattern matches no file"),
        (["-c", "good.flac"], 1, "good.flac is damaged or not a PyTorch checkpoint"),
        (["-c", ""], 1, "the name of the model is empty"),
        (["-o", "x.txt"], 2, "No such option: -o"),
    ],
    "convert": [
        ([], 2, "Missing argument 'MODEL'"),
        (["ssamba_tiny.pth"], 2, "Missing option '--output'"),
        (["ssamba_tiny.pth", "c", "-o", "c"], 2, "Got unexpected extra argument"),
        (["absent.pth", "-o", "c"], 1, "absent.pth: no such file or folder"),
        (["text.pth", "-o", "c"], 1, "text.pth is damaged or not a PyTorch checkpoint"),
        (["empty.pth", "-o", "c"], 1, "empty.pth is empty (0 bytes)"),
        (["empty", "-o", "c"], 1, "config.json is missing"),
        (
            ["ssamba_tiny.pth", "-o", "text.wav"],
            2,
            "text.wav is a file, or lies below one: expected the name of a folder",
        ),
        (["ssamba_tiny.pth", "-o", "classifier"], 1, "classifier holds another checkpoint: "),
        (["https://example.org/a.pth", "-o", "c"], 1, "is a URL, which is not fetched"),
    ],
    "average": [
        ([], 2, "Missing argument 'MODEL...'"),
        (["classifier", "classifier"], 2, "Missing option '--output'"),
        (["classifier", "-o", "c"], 2, "averaging takes two checkpoints or more, got 1"),
        (["classifier", "absent", "-o", "c"], 1, "absent: no such file or folder"),
        (["classifier", "ssamba_tiny.pth", "-o", "c"], 1, "is of another structure than classifier"),
        (["classifier", "classifier", "-o", "c", "--weights", "1"], 2, "2 checkpoints need as many weights"),
        (["classifier", "classifier", "-o", "c", "--weights", "1,-1"], 2, "none below 0"),
        (["classifier", "classifier", "-o", "c", "--weights", "a,b"], 2, "expected numbers with commas between"),
        (["classifier", "classifier", "-o", "text.wav"], 2, "text.wav is a file"),
        (["classifier", "text.pth", "-o", "c"], 1, "text.pth is damaged or not a PyTorch checkpoint"),
    ],
    "compare": [
        ([], 2, "Missing argument 'RUN...'"),
        (["empty"], 1, "empty holds no run: expected a folder that `ssamba pretrain`"),
        (["classifier"], 1, "classifier holds no run"),
        (["empty", "-o", "text.wav"], 2, "text.wav is a file"),
    ],
    "reconstruct": [
        ([], 2, "Missing argument 'RECORDING'"),
        (["good.flac"], 2, "Missing option '--output'"),
        (["good.flac", "-o", "p.txt"], 2, "p.txt: expected a file name that ends in .png, .pdf, .svg"),
        (["a.wav", "-o", "p.png"], 1, "a.wav: no such file"),
        (["text.wav", "-o", "p.png"], 1, "text.wav"),
        (["good.flac", "-o", "p.png", "-c", "classifier"], 1, "is of kind 'classifier', without prediction heads"),
        (["good.flac", "-o", "p.png", "--ratio", "1.5"], 2, "should be less than or equal to 0.99"),
        (["good.flac", "-o", "p.png", "--style", "random"], 2, "'random' is not one of"),
        (["good.flac", "-o", "p.png", "--start", "500"], 1, "lies past the end of the recording"),
        (["good.flac", "-o", "p.png", "--audio", "p.mp3"], 2, "p.mp3: expected a file name that ends in .wav"),
    ],
}


@pytest.fixture(scope="module")
def wrong_folder(tmp_path_factory, clips, ssamba_pth, classifier_folder):
    """A folder with good and bad files, which no wrong use may change."""
    folder = tmp_path_factory.mktemp("wrong")
    shutil.copy(clips[8], folder / "good.flac")
    shutil.copy(ssamba_pth, folder / "ssamba_tiny.pth")
    shutil.copytree(classifier_folder, folder / "classifier")
    for name in ("text.wav", "text.pth", "text.csv", "text.npz"):
        (folder / name).write_text("no audio, no weights")
    (folder / "empty.pth").touch()
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("command", "arguments", "code", "message"),
    [(command, *case) for command, cases in WRONG_USES.items() for case in cases],
    ids=[f"{command} {' '.join(case[0])}" for command, cases in WRONG_USES.items() for case in cases],
)
def test_a_wrong_use_ends_in_one_clear_message(wrong_folder, monkeypatch, command, arguments, code, message):
    monkeypatch.chdir(wrong_folder)
    before = {path: path.stat().st_mtime_ns for path in wrong_folder.rglob("*")}
    done = CliRunner().invoke(app, [command, *arguments])
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    written = {path for path in wrong_folder.rglob("*") if before.get(path) != path.stat().st_mtime_ns}
    for path in written - {wrong_folder}:
        assert path.name.endswith(".skipped.csv")
        path.unlink()


def test_unknown_commands_are_refused_with_the_nearest_one():
    done = CliRunner().invoke(app, ["embeds"])
    assert (done.exit_code, done.stderr) == (
        2,
        "error: No such command 'embeds'. Did you mean 'embed'? See `ssamba --help`\n",
    )
