"""The command line: output, written files and exit codes, as a user sees them."""

from __future__ import annotations

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

from ssamba.library.tables import read_embeddings


def ssamba(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "ssamba", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("arguments", [(), ("embed",), ("info",), ("convert",), ("average",)])
def test_help_has_examples_and_exit_codes(arguments):
    done = ssamba(*arguments, "--help")
    assert done.returncode == 0
    assert "Exit codes" in done.stdout
    if arguments:
        assert "Example" in done.stdout


def test_version():
    done = ssamba("--version")
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
    assert "error: 1 files were skipped" in strict.stderr


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
    assert re.search(r"interrupted: \d+ files are embedded and kept, repeat the command to go on", errors)
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


def test_convert_writes_our_format(tmp_path, ssamba_pth, ssast_pth):
    done = ssamba("convert", ssamba_pth, "-o", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "c").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert ssamba("convert", ssamba_pth, "-o", tmp_path / "c").returncode == 1
    assert ssamba("convert", ssamba_pth, "-o", tmp_path / "c", "--overwrite").returncode == 0
    assert ssamba("convert", ssast_pth, "-o", tmp_path / "d").returncode == 0
    assert "SSAST, 2 blocks, width 24, 3 heads" in ssamba("info", tmp_path / "d").stdout


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
    other = ssamba("average", tmp_path / "a", ssast_pth, "-o", tmp_path / "d")
    assert other.returncode == 1
    assert "of another structure" in other.stderr
    short = ssamba("average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "d", "--weights", "1")
    assert short.returncode == 1
    assert "need as many weights" in short.stderr
    assert ssamba("average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c").returncode == 1
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("embed", "absent.wav"), 2, "--output"),
        (("embed", "absent.wav", "-o", "x.txt"), 1, "ends in"),
        (("embed", "*.none", "-o", "x.npz"), 1, "matches no file"),
        (("embed", "a.wav", "-o", "x.npz", "--context", "all"), 2, "is not one of 'windows', 'full'"),
        (("embed", "a.wav", "-o", "x.npz", "--resume"), 2, "No such option"),
        (("embed", "a.wav", "-o", "x.npz", "-c", "no/model"), 1, "no such file or folder"),
        (("embed", "a.wav", "-o", "x.npz", "--device", "toaster"), 1, "device"),
        (("embed", "a.wav", "-o", "x.npz"), 1, "no file could be embedded"),
        (("embed", "a.wav", "-o", "."), 1, "ends in"),
        (("embed", "a.wav", "-o", "x.npz", "--layer", "99"), 1, "layer must lie"),
        (("info", "hf:../../x"), 1, "expected hf:OWNER/NAME"),
        (("embeds",), 2, "embed"),
    ],
)
def test_usage_errors_end_in_one_message(tmp_path, arguments, code, message):
    done = ssamba(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
