"""How fast training data come: `python -m benchmarks.data [--shards FOLDER] [--minutes 20] [--workers 2]`.

Opus shards to batches of waveforms, as hours of audio per hour and core: processor time of one process, which another
load on the machine does not change much, and wall time with worker processes. And how much of the batches is padding,
for each way to treat short clips. Without `--shards` the demo's recordings, repeated and cut in clips of 10.24 s, of 30 s
and of 0.3 to 10 s, are written as shards into a temporary folder first, which is timed, too. Writes
benchmarks/results/data.json and data.md.
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

from benchmarks.timing import save
from ssamba.audio.decode import decode
from ssamba.data.cache import CachedCorpus
from ssamba.data.corpus import Corpus, open_corpus
from ssamba.data.loader import WaveLoader
from ssamba.data.manifest import Clip, Manifest
from ssamba.data.plan import Plan, PlanConfig
from ssamba.data.shards import write_shards
from ssamba.studies.harness import environment, table

ROOT = Path(__file__).resolve().parent.parent
RATE_HZ = 16_000
KINDS = {"clips of 10.24 s": (10.24, 10.24), "clips of 30 s": (30.0, 30.0), "clips of 0.3 to 10 s": (0.3, 10.0)}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, help="folder of Opus shards to measure with, instead of the demo's")
    parser.add_argument("--minutes", type=float, default=20.0, help="audio of each kind that is written and read")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {**environment(), "corpora": {}}
    with tempfile.TemporaryDirectory() as folder:
        if options.shards:
            corpora = {options.shards.name: open_corpus(options.shards)}
        else:
            corpora = {}
            for kind, (shortest, longest) in KINDS.items():
                place = Path(folder) / kind.replace(" ", "-")
                results["corpora"][kind] = {"write": written(place, options.minutes, shortest, longest)}
                corpora[kind] = open_corpus(place)
        for kind, corpus in corpora.items():
            figures = results["corpora"].setdefault(kind, {})
            figures |= {"clips": len(corpus), "hours": corpus.hours, "median_s": float(np.median(corpus.seconds))}
            figures["read"] = reading(corpus, options.minutes, options.workers)
            figures["filled"] = filling(corpus)
    save("data", results, text(results, options.workers))


def written(folder: Path, minutes: float, shortest_s: float, longest_s: float) -> dict[str, float]:
    """Write shards of the demo's recordings, cut in clips of uniformly drawn length; hours of audio per processor hour."""
    medley = np.concatenate([decode(path) for path in sorted((ROOT / "demo" / "audio").glob("*.flac"))])
    tiled = np.tile(medley, int(np.ceil(minutes * 60 * RATE_HZ / len(medley))))[: int(minutes * 60 * RATE_HZ)]
    folder.mkdir()
    source = folder.parent / f"{folder.name}.wav"
    sf.write(source, tiled, RATE_HZ)
    rng = np.random.default_rng(0)
    clips, start_s = [], 0.0
    while (length_s := float(rng.uniform(shortest_s, longest_s))) and start_s + length_s <= minutes * 60:
        clips.append(Clip(source, start_s, length_s))
        start_s += length_s
    begun = time.process_time()
    report = write_shards(Manifest(clips), folder, "opus", shard_mb=5)
    spent_s = time.process_time() - begun
    source.unlink()
    return {"hours_per_core_hour": report.audio_s / spent_s, "kbps": report.size * 8e-3 / report.audio_s}


def reading(corpus: Corpus, minutes: float, workers: int) -> dict[str, float]:
    """Hours of audio in batches per hour: of one process' processor time, and of wall time with workers."""
    plan = Plan(PlanConfig(batch_size=16, short_clips="join"), [corpus])
    figures = {}
    for name, loader in (("core", WaveLoader([corpus], plan)), ("wall", WaveLoader([corpus], plan, workers=workers))):
        clock = time.process_time if name == "core" else time.perf_counter
        figures[name] = hours_per_hour(loader, minutes, clock)
    cached = CachedCorpus(corpus)
    figures["cached"] = hours_per_hour(WaveLoader([cached], Plan(plan.config, [cached])), minutes, time.process_time)
    return figures


def hours_per_hour(loader: WaveLoader, minutes: float, clock: Callable[[], float]) -> float:
    """Whole epochs, at least so many minutes of audio; the one before them starts the workers."""
    for _ in loader.batches(0):
        pass
    begun, samples, epoch = clock(), 0, 0
    while samples < minutes * 60 * RATE_HZ:
        epoch += 1
        samples += sum(batch.num_samples for batch in loader.batches(epoch))
    return samples / RATE_HZ / (clock() - begun)


def filling(corpus: Corpus) -> dict[str, float]:
    """The share of batches that is audio."""
    return {
        kind: Plan(PlanConfig.parse({"short_clips": kind, "batch_size": 16}, "plan"), [corpus]).batches(0).filled
        for kind in ("join", "bucket", "pad")
    }


def text(results: dict[str, Any], workers: int) -> str:
    """Tables."""
    rows = []
    for kind, figures in results["corpora"].items():
        write = f"{figures['write']['hours_per_core_hour']:.0f}" if "write" in figures else "-"
        read = figures["read"]
        rows.append(
            [
                f"{kind} ({figures['clips']:,} clips, {figures['hours']:.2f} h, median {figures['median_s']:.1f} s)",
                write,
                *(f"{read[name]:,.0f}" for name in ("core", "wall", "cached")),
                *(f"{1 - figures['filled'][name]:.1%}" for name in ("join", "bucket", "pad")),
            ]
        )
    columns = ["corpus", "written per core", "read per core", f"read, {workers} workers", "from memory per core"]
    columns += ["padding: join", "bucket", "pad"]
    return "Hours of audio per hour; share of batches that is padding.\n\n" + table(columns, rows)


if __name__ == "__main__":
    main()
