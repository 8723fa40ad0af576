"""Compare readouts on a suite: `python -m benchmarks.readouts SUITE [-c MODEL] [--thresholds 30,40] [--name NAME]`.

Scores of the linear probe with the readouts `clip` and `parts`, the latter with several thresholds of the sounding
region, for a model (by default the weights that ship), its structure with random weights, and log-mel statistics.
Finished embeddings are cached, so that a stopped run goes on. Writes benchmarks/results/NAME.json and NAME.md.

The threshold `ssamba.model.readouts.SOUNDING_DB` is chosen on suites that are not used for judging.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import save
from ssamba.embedder import load_model, random_model
from ssamba.embedding import Readout
from ssamba.evaluation import (
    ClipModel,
    EncoderModel,
    LogMelStatistics,
    VectorOptions,
    WaveformParts,
    cache_folder,
    evaluate_model,
    read_suite,
)
from ssamba.hashing import digest_of_json
from ssamba.model import readouts
from ssamba.studies.harness import environment, table


class WithThreshold:
    """A model that is scored, with another threshold of the sounding region."""

    def __init__(self, model: ClipModel, threshold_db: float):
        self.model, self.threshold_db = model, threshold_db
        self.name, self.sample_rate_hz = model.name, model.sample_rate_hz

    def digest(self) -> str:
        """Return a digest of the model and the threshold."""
        return digest_of_json([self.model.digest(), self.threshold_db])

    def vectors(self, waves: Sequence[np.ndarray[Any, Any]], on_progress: Any = None) -> dict[str, Any]:
        """Return the model's views."""
        with _threshold(self.threshold_db):
            return self.model.vectors(waves, on_progress)


@contextmanager
def _threshold(decibels: float) -> Iterator[None]:
    before, readouts.SOUNDING_DB = readouts.SOUNDING_DB, decibels
    try:
        yield
    finally:
        readouts.SOUNDING_DB = before


def models(checkpoint: str | None, readout: Readout) -> list[ClipModel]:
    """Return what is scored with one readout."""
    options = VectorOptions(readouts=(readout,))
    log_mel = LogMelStatistics()
    return [
        EncoderModel(load_model(checkpoint, device="cpu"), options),
        EncoderModel(random_model(device="cpu"), options),
        log_mel if readout == "clip" else WaveformParts(log_mel),
    ]


def main() -> None:
    """Score, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("-c", "--checkpoint", help="a model; by default the weights that ship")
    parser.add_argument("--thresholds", default=f"{readouts.SOUNDING_DB:g}", help="of `parts`, in dB, such as 30,40")
    parser.add_argument("--task", action="append", help="only this task; repeatable")
    parser.add_argument("--name", default="readouts", help="of the results")
    arguments = parser.parse_args()
    tasks = read_suite(arguments.suite, arguments.task)
    rows: list[dict[str, Any]] = []
    sides = [("clip", model) for model in models(arguments.checkpoint, "clip")]
    for threshold in map(float, arguments.thresholds.split(",")):
        sides += [
            (f"parts, {threshold:g} dB", WithThreshold(one, threshold)) for one in models(arguments.checkpoint, "parts")
        ]
    for readout, model in sides:
        card = evaluate_model(model, tasks, cache=cache_folder())
        row = card.best()
        intervals = {name: [interval.low, interval.high] for name, interval in row.intervals.items()}
        rows.append(
            {"model": card.model, "readout": readout, "scores": row.scores, "mean": row.mean, "intervals": intervals}
        )
        print(f"{card.model}, {readout}: {row.mean:.3f}", flush=True)
    names = [task.name for task in tasks]
    cells = [[r["model"], r["readout"], *(f"{r['scores'][n]:.3f}" for n in names), f"{r['mean']:.3f}"] for r in rows]
    results = {**environment(), "tasks": {task.name: task.facts for task in tasks}, "rows": rows}
    save(arguments.name, results, table(["model", "readout", *names, "mean"], cells))


if __name__ == "__main__":
    main()
