"""Compare readouts on a suite: `python -m benchmarks.readouts SUITE [-c MODEL] [--thresholds 30 40] [--name NAME]`.

Scores of the linear probe with the readouts `clip` and `parts`, the latter with several thresholds of the sounding
region, for a model (by default the weights that ship), its structure with random weights, and log-mel statistics.
Writes benchmarks/results/NAME.json and NAME.md after each row; rows that are there are not measured again, and
finished embeddings are cached, so that a stopped run goes on.

The threshold `ssamba.model.readouts.SOUNDING_DB` is chosen on suites that are not used for judging.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import RESULTS, save
from ssamba.embedder import load_model
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
from ssamba.evaluation.run import random_model
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


def models(names: Sequence[str], checkpoint: str | None, readout: Readout) -> list[ClipModel]:
    """Return what is scored with one readout."""
    options, log_mel = VectorOptions(readouts=(readout,)), LogMelStatistics()
    known: dict[str, Callable[[], ClipModel]] = {
        "model": lambda: EncoderModel(load_model(checkpoint, device="cpu"), options),
        "random": lambda: EncoderModel(random_model(device="cpu"), options),
        "logmel": lambda: log_mel if readout == "clip" else WaveformParts(log_mel),
    }
    return [known[name]() for name in names]


def main() -> None:
    """Score, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("-c", "--checkpoint", help="a model; by default the weights that ship")
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="*",
        default=[readouts.SOUNDING_DB],
        help="of `parts`, in dB; none: `clip` only",
    )
    parser.add_argument("--sides", nargs="+", default=["model", "random", "logmel"], help="what to score")
    parser.add_argument("--readouts", nargs="+", default=["clip", "parts"])
    parser.add_argument("--task", action="append", help="only this task; repeatable")
    parser.add_argument("--name", default="readouts", help="of the results")
    arguments = parser.parse_args()
    tasks = read_suite(arguments.suite, arguments.task)
    facts = {task.name: task.facts for task in tasks}
    stored = RESULTS / f"{arguments.name}.json"
    before = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    rows: list[dict[str, Any]] = before["rows"] if before.get("tasks") == facts else []
    sides: list[tuple[str, ClipModel]] = []
    if "clip" in arguments.readouts:
        sides += [("clip", model) for model in models(arguments.sides, arguments.checkpoint, "clip")]
    for threshold in arguments.thresholds if "parts" in arguments.readouts else ():
        thirds = models(arguments.sides, arguments.checkpoint, "parts")
        sides += [(f"parts, {threshold:g} dB", WithThreshold(model, threshold)) for model in thirds]
    for readout, model in sides:
        digest = model.digest()
        if digest in {row["model_digest"] for row in rows}:
            continue
        card = evaluate_model(model, tasks, cache=cache_folder())
        row = card.best()
        intervals = {name: [interval.low, interval.high] for name, interval in row.intervals.items()}
        entry = {"model": card.model, "readout": readout, "model_digest": digest}
        rows.append({**entry, "scores": row.scores, "mean": row.mean, "intervals": intervals})
        names = [task.name for task in tasks]
        cells = [
            [r["model"], r["readout"], *(f"{r['scores'][n]:.3f}" for n in names), f"{r['mean']:.3f}"] for r in rows
        ]
        text = table(["model", "readout", *names, "mean"], cells)
        save(arguments.name, {**environment(), "tasks": facts, "rows": rows}, text)


if __name__ == "__main__":
    main()
