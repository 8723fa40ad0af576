"""Measure memory and time of the commands over the length of a recording: `python -m benchmarks.memory`.

`ssamba embed` (a vector, a row for each second, a row for each time step), `ssamba predict --per second` and Python's
`Embedder.embed` run in processes of their own on recordings of 0.1 to 10 hours, which are the
demo's recordings joined in random order, 16 kHz, in a temporary folder: real sound throughout, so that no window is
skipped as digital silence. The classifier has random weights in its head. Writes benchmarks/results/memory.json and
memory.md after each measurement; what is there is not measured again.

The peak is that of all resident memory of the process, pages of libraries included, as the system counts it. With
`--depth` the encoder has fewer blocks and random weights: its memory is almost the same, its time much shorter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from benchmarks.timing import DEMO_AUDIO, RESULTS, save
from ssamba.audio.decode import decode
from ssamba.checkpoint import load_checkpoint, save_checkpoint
from ssamba.config import ClassifierConfig
from ssamba.model.heads import Classifier
from ssamba.studies.harness import environment, table

RATE_HZ = 16_000
CALL = "import sys, ssamba; ssamba.load_model(sys.argv[3]).embed(sys.argv[1], frames=False)"
SSAMBA = ["-m", "ssamba", "-q"]
COMMANDS: dict[str, list[str]] = {
    "embed": [*SSAMBA, "embed", "-o", "e.npz"],
    "predict --per second": [*SSAMBA, "predict", "-o", "p.csv", "--per", "second"],
    "embed --every 1s": [*SSAMBA, "embed", "-o", "s.csv", "--every", "1s"],
    "embed --frames": [*SSAMBA, "embed", "-o", "f.npz", "--frames"],
    "Embedder.embed(frames=False)": ["-c", CALL],
}
"""Arguments of Python; the recording and `-c CLASSIFIER` follow."""


def write_recording(path: Path, hours: float) -> None:
    """Join recordings of the demo in random order, `hours` in all."""
    clips = [decode(one) for one in sorted(DEMO_AUDIO.glob("*.flac"))]
    order, left = np.random.default_rng(0), round(hours * 3600 * RATE_HZ)
    with sf.SoundFile(path, "w", RATE_HZ, 1, "PCM_16") as file:
        while left:
            samples = clips[order.integers(len(clips))][:left]
            file.write(samples)
            left -= len(samples)


def write_classifier(folder: Path, depth: int | None) -> None:
    """Save the default encoder, or one of its structure with `depth` blocks, with a random head of six classes."""
    torch.manual_seed(0)
    loaded = load_checkpoint()
    config = loaded.config.encoder if depth is None else loaded.config.encoder.with_changes(depth=depth)
    classifier = Classifier(config, ClassifierConfig(num_classes=6, labels=tuple("abcdef")))
    if depth is None:
        classifier.encoder.load_state_dict(loaded.model.encoder.state_dict())
    save_checkpoint(folder, classifier.eval(), front_end=loaded.front_end)


def measure(arguments: list[str], folder: Path, limit_s: float) -> dict[str, float]:
    """Run Python in a process of its own in a folder; return its peak in MB, its seconds, and those of processors."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder)
    while not (done := os.wait4(process.pid, os.WNOHANG))[0]:
        if time.monotonic() - started > limit_s:
            process.kill()
        time.sleep(0.1)
    if done[1]:
        raise SystemExit(f"python {' '.join(arguments)} ended with status {done[1]}")
    process.returncode = 0
    seconds = time.monotonic() - started
    return {"peak_mb": done[2].ru_maxrss / 1024, "seconds": seconds, "cpu_s": done[2].ru_utime + done[2].ru_stime}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", default="0.1,1,10")
    parser.add_argument("--depth", type=int, help="blocks of the encoder, with random weights; default: ssamba2-tiny")
    parser.add_argument("--limit-s", type=float, default=7200.0, help="end a command that takes longer")
    options = parser.parse_args()
    report = RESULTS / "memory.json"
    done: dict[str, dict[str, Any]] = json.loads(report.read_text())["runs"] if report.exists() else {}
    blocks = "" if options.depth is None else f", {options.depth} blocks"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_classifier(folder / "classifier", options.depth)
        for hours in map(float, options.hours.split(",")):
            todo = [one for one in COMMANDS if f"{hours:g}" not in done.get(one + blocks, {})]
            recording = folder / f"{hours:g}h.wav"
            if todo:
                write_recording(recording, hours)
            for command in todo:
                arguments = [*COMMANDS[command], str(recording), "-c", str(folder / "classifier")]
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    found = measure(arguments, Path(out), options.limit_s)
                done.setdefault(command + blocks, {})[f"{hours:g}"] = found
                _save(done)
            recording.unlink(missing_ok=True)


def _save(done: dict[str, dict[str, Any]]) -> None:
    lengths = sorted({hours for runs in done.values() for hours in runs}, key=float)
    rows = [
        [command, *(f"{run['peak_mb']:.0f} / {run['cpu_s']:.0f}" if (run := runs.get(h)) else "" for h in lengths)]
        for command, runs in done.items()
    ]
    text = table(["peak MB / processor seconds", *(f"{hours} h" for hours in lengths)], rows)
    save("memory", {"environment": environment(), "runs": done}, text)


if __name__ == "__main__":
    main()
