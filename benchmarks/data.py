"""Measure how fast training data are read: `python -m benchmarks.data [--shards FOLDER] [--minutes 20] [--workers 2]`.

From Opus shards to batches of waveforms, as hours of audio per hour: of processor time of one process, which depends
little on other load, and of wall time with worker processes. Also the share of batches that is padding, for each way to
treat short clips. Without `--shards`, the demo recordings are repeated, cut into clips of 10.24 s, of 30 s and of 0.3
to 10 s, and written as shards to a temporary folder first, which is timed as well. Writes benchmarks/results/data.json
and data.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from benchmarks.timing import demo_samples, save
from ssamba.data.cache import CachedCorpus
from ssamba.data.corpus import Corpus, open_corpus
from ssamba.data.loader import WaveLoader
from ssamba.data.manifest import Clip, Manifest
from ssamba.data.plan import Plan, PlanConfig
from ssamba.data.shards import write_shards
from ssamba.studies.harness import environment, table

RATE_HZ = 16_000
DURATIONS_S = {"clips of 10.24 s": (10.24, 10.24), "clips of 30 s": (30.0, 30.0), "clips of 0.3 to 10 s": (0.3, 10.0)}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="folder of Opus shards to use instead of the demo recordings")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="duration of audio to write and read for each corpus"
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {**environment(), "corpora": {}}
    with tempfile.TemporaryDirectory() as folder:
        if options.shards:
            corpora = {options.shards.name: open_corpus(options.shards)}
        else:
            corpora = {}
            for name, (shortest_s, longest_s) in DURATIONS_S.items():
                shards = Path(folder) / name.replace(" ", "-")
                results["corpora"][name] = {"write": measure_writing(shards, options.minutes, shortest_s, longest_s)}
                corpora[name] = open_corpus(shards)
        for name, corpus in corpora.items():
            figures = results["corpora"].setdefault(name, {})
            figures |= {"clips": len(corpus), "hours": corpus.hours, "median_s": float(np.median(corpus.seconds))}
            figures["read"] = measure_reading(corpus, options.minutes, options.workers)
            figures["filled"] = {
                kind: Plan(PlanConfig.parse({"short_clips": kind, "batch_size": 16}, "plan"), [corpus])
                .batches(0)
                .filled
                for kind in ("join", "bucket", "pad")
            }
    save("data", results, markdown(results, options.workers))


def measure_writing(folder: Path, minutes: float, shortest_s: float, longest_s: float) -> dict[str, float]:
    """Write shards of demo clips of random duration; return hours per hour of processor time, and the bit rate."""
    samples = np.resize(demo_samples(), int(minutes * 60 * RATE_HZ))
    folder.mkdir()
    source = folder.parent / f"{folder.name}.wav"
    sf.write(source, samples, RATE_HZ)
    rng = np.random.default_rng(0)
    clips, start_s = [], 0.0
    while (length_s := float(rng.uniform(shortest_s, longest_s))) and start_s + length_s <= minutes * 60:
        clips.append(Clip(source, start_s, length_s))
        start_s += length_s
    started = time.process_time()
    report = write_shards(Manifest(clips), folder, "opus", shard_mb=5)
    elapsed_s = time.process_time() - started
    source.unlink()
    return {"hours_per_core_hour": report.audio_s / elapsed_s, "kbps": report.size * 8e-3 / report.audio_s}


def measure_reading(corpus: Corpus, minutes: float, workers: int) -> dict[str, float]:
    """Return hours of audio in batches per hour: processor time of one process, wall time with workers, from memory."""
    plan = Plan(PlanConfig(batch_size=16, short_clips="join"), [corpus])
    cached = CachedCorpus(corpus)
    from_memory = WaveLoader([cached], Plan(plan.config, [cached]))
    return {
        "core": hours_per_hour(WaveLoader([corpus], plan), minutes, time.process_time),
        "wall": hours_per_hour(WaveLoader([corpus], plan, workers=workers), minutes, time.perf_counter),
        "cached": hours_per_hour(from_memory, minutes, time.process_time),
    }


def hours_per_hour(loader: WaveLoader, minutes: float, clock: Callable[[], float]) -> float:
    """Time whole epochs until at least `minutes` of audio are read; the epoch before them starts the workers."""
    for _ in loader.batches(0):
        pass
    started, samples, epoch = clock(), 0, 0
    while samples < minutes * 60 * RATE_HZ:
        epoch += 1
        samples += sum(batch.num_samples for batch in loader.batches(epoch))
    return samples / RATE_HZ / (clock() - started)


def markdown(results: dict[str, Any], workers: int) -> str:
    """Return the results as a table."""
    rows = []
    for name, figures in results["corpora"].items():
        write = f"{figures['write']['hours_per_core_hour']:.0f}" if "write" in figures else "-"
        rows.append(
            [
                f"{name} ({figures['clips']:,} clips, {figures['hours']:.2f} h, median {figures['median_s']:.1f} s)",
                write,
                *(f"{figures['read'][key]:,.0f}" for key in ("core", "wall", "cached")),
                *(f"{1 - figures['filled'][key]:.1%}" for key in ("join", "bucket", "pad")),
            ]
        )
    columns = ["corpus", "written per core", "read per core", f"read, {workers} workers", "from memory per core"]
    columns += ["padding: join", "bucket", "pad"]
    return "Hours of audio per hour; share of batches that is padding.\n\n" + table(columns, rows)


if __name__ == "__main__":
    main()
