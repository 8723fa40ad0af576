"""Measure how fast recordings are embedded, and in how much memory: `python -m benchmarks.embedding [--minutes 60]`.

Three measurements: the log-mel front end on one thread, a 10.24 s clip through the tiny encoder, and a long recording
in windows in a process of its own (decoding included) with its peak resident memory. Recordings are those of the demo,
repeated. Medians of warm runs. Writes benchmarks/results/embedding.json and embedding.md.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

import ssamba
from benchmarks.timing import demo_samples, medians_s, save
from ssamba.audio.fbank import fbank
from ssamba.ops import available_backends
from ssamba.studies.harness import environment, table
from ssamba.studies.long_audio import embed_in_child


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="duration of the long recording")
    minutes = parser.parse_args().minutes
    warnings.simplefilter("ignore")
    samples = demo_samples()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ten_seconds = torch.from_numpy(samples[:160_000])
    fbank_s = medians_s({"fbank": lambda: fbank(ten_seconds)}, repeats=30)["fbank"]
    torch.set_num_threads(threads)

    model = ssamba.load_model(device="cpu")
    window = samples[: round(10.24 * 16_000)]
    clip_s = medians_s({"clip": lambda: model.embed(window)})["clip"]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        sf.write(path, np.resize(samples, int(minutes * 60 * 16_000)), 16_000)
        vectors = Path(folder) / "frames.npy"
        done = embed_in_child(path.name, path, "windows", vectors, None, torch.device("cpu"), budget_s=3600)
    if done.seconds is None or done.duration_s is None:
        raise SystemExit(f"the long recording was not embedded: {done.stopped}")
    long = {"seconds": done.seconds, "frames": done.frames, "audio_s": done.duration_s}
    if done.process_bytes is not None and done.peak_bytes is not None:
        long["peak_mb"] = done.process_bytes / 2**20
        long["peak_before_embedding_mb"] = (done.process_bytes - done.peak_bytes) / 2**20
    long["real_time_factor"] = done.duration_s / done.seconds
    results: dict[str, Any] = {
        **environment(),
        "backend": next(b.name for b in available_backends("cpu") if b.chosen),
        "fbank_10s_ms": fbank_s * 1000,
        "fbank_real_time_factor": 10 / fbank_s,
        "tiny_clip_10.24s_ms": clip_s * 1000,
        "tiny_clip_real_time_factor": 10.24 / clip_s,
        "long": long,
    }
    rows = [
        [name, f"{value:.1f}" if isinstance(value, float) else str(value)]
        for name, value in results.items()
        if name != "long"
    ]
    rows += [[f"long recording: {name}", f"{value:.1f}"] for name, value in long.items()]
    save("embedding", results, table(["quantity", "value"], rows))


if __name__ == "__main__":
    main()
