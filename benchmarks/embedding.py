"""How fast, and in how much memory, recordings become embeddings: `python -m benchmarks.embedding [--minutes 60]`.

Measures the log-mel front end on one thread, a 10.24 s clip through the tiny encoder, and a long recording through
`ssamba embed` (decoding included) in a process of its own with its peak resident memory. The recordings are the
demo's, repeated. Medians of warm runs; writes benchmarks/results/embedding.json and embedding.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

import ssamba
from benchmarks.timing import medians_s, save
from ssamba.audio.decode import decode
from ssamba.audio.fbank import fbank
from ssamba.ops import available_backends
from ssamba.studies.harness import environment, table

ROOT = Path(__file__).resolve().parent.parent

_EMBED_LONG = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
import ssamba
model = ssamba.load_model(device="cpu")
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
e = model.embed(sys.argv[1])
print(json.dumps({
    "seconds": time.perf_counter() - started,
    "frames": len(e.frames),
    "audio_s": e.duration_s,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "peak_before_embedding_mb": loaded / 1024,
}))
"""


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the long recording")
    minutes = parser.parse_args().minutes
    warnings.simplefilter("ignore")
    medley = np.concatenate([decode(path) for path in sorted((ROOT / "demo" / "audio").glob("*.flac"))])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ten_seconds = torch.from_numpy(medley[:160_000])
    fbank_s = medians_s({"fbank": lambda: fbank(ten_seconds)}, repeats=30)["fbank"]
    torch.set_num_threads(threads)

    model = ssamba.load_model(device="cpu")
    window = medley[: round(10.24 * 16_000)]
    clip_s = medians_s({"clip": lambda: model.embed(window)})["clip"]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        repeats = int(np.ceil(minutes * 60 * 16_000 / len(medley)))
        sf.write(path, np.tile(medley, repeats)[: int(minutes * 60 * 16_000)], 16_000)
        done = subprocess.run(
            [sys.executable, "-c", _EMBED_LONG, str(path)], capture_output=True, text=True, check=True
        )
    long = json.loads(done.stdout)

    results: dict[str, Any] = {
        **environment(),
        "backend": next(b.name for b in available_backends("cpu") if b.chosen),
        "fbank_10s_ms": fbank_s * 1000,
        "fbank_real_time_factor": 10 / fbank_s,
        "tiny_clip_10.24s_ms": clip_s * 1000,
        "tiny_clip_real_time_factor": 10.24 / clip_s,
        "long": {**long, "real_time_factor": long["audio_s"] / long["seconds"]},
    }
    rows = [
        [name, f"{value:.1f}" if isinstance(value, float) else str(value)]
        for name, value in results.items()
        if name != "long"
    ]
    rows += [[f"long recording: {name}", f"{value:.1f}"] for name, value in results["long"].items()]
    save("embedding", results, table(["what", "measured"], rows))


if __name__ == "__main__":
    main()
