"""Fine-tuning against training from scratch: `python -m benchmarks.finetuning SUITE --work FOLDER [--task NAME]`.

Each task is learned from the shipped weights and from random ones, by the same recipe, for the same minutes; tasks that
are scored in both directions are learned in both. Recordings are unpacked, and runs kept, in FOLDER; repeating the
command goes on. benchmarks/results/finetuning.json is written when all tasks are done (an hour and a half).
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ssamba
from benchmarks.timing import RESULTS
from ssamba.checkpoint.files import write_json
from ssamba.evaluation import Task, read_suite
from ssamba.files import write_csv
from ssamba.studies.harness import environment

_EXCHANGED = {"train": "test", "test": "train"}


class Plan(NamedTuple):
    """How a task is learned."""

    recipe: str
    minutes: float
    """Time to train for a fold, or for a direction."""
    seeds: int = 1


PLANS = {
    "sfx14": Plan("cpu", 2),
    "kws35": Plan("cpu-speech", 5.3),
    "instr_family": Plan("cpu", 3),
    "speaker": Plan("cpu", 1.8),
    "zh_final": Plan("cpu-speech", 3.2, seeds=3),
    "drum8": Plan("cpu", 1),
}


def tables(task: Task, folder: Path) -> Iterator[Path]:
    """Write the tables that a task is learned from to `folder`, its recordings beside them: one, or one a direction."""
    folder.mkdir(parents=True, exist_ok=True)
    if task.audio.suffix == ".tar":
        with tarfile.open(task.audio) as archive:
            archive.extractall(folder, filter="data")
        root = folder
    else:
        root = task.audio.absolute()
    for back in (False, True)[: 1 + task.both_directions]:
        table = folder / f"{task.name}{'-back' if back else ''}.csv"
        splits = [_EXCHANGED.get(split, split) if back else split for split in task.splits.tolist()]
        rows = zip((root / clip for clip in task.clips.tolist()), task.labels, splits, task.groups, strict=True)
        write_csv(table, ("clip", "label", "split", "group"), rows)
        yield table


def measure(task: Task, work: Path, epochs: int | None = None) -> dict[str, Any]:
    """Return the accuracies of a task, means over folds, directions and seeds."""
    plan = PLANS.get(task.name, Plan("cpu", 2))
    row: dict[str, Any] = {"task": task.name, "recipe": plan.recipe, "minutes": plan.minutes}
    for side in ("shipped", "scratch"):
        found, rounds, seconds = [], 0, 0.0
        for table in tables(task, work / task.name):
            for seed in range(plan.seeds):
                started_s = time.monotonic()
                output = work / "runs" / f"{table.stem}-{side}-{seed}"
                report = ssamba.finetune(
                    table, output, recipe=plan.recipe, scratch=side == "scratch", minutes=plan.minutes, epochs=epochs,
                    seed=seed, refit=False, device="cpu",
                )  # fmt: skip
                seconds += (time.monotonic() - started_s) / plan.seeds
                rounds += len(report.folds)
                found.append(report.scores()["accuracy"][0])
        row[side] = statistics.mean(found)
        row |= {"rounds": rounds // plan.seeds, "seconds": round(seconds)}
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of recordings and runs")
    parser.add_argument("--task", action="append", help="only this task; repeatable; nothing is saved")
    parser.add_argument("--epochs", type=int, help="at most, to try the command; nothing is saved")
    options = parser.parse_args(arguments)
    rows = []
    for task in read_suite(options.suite, options.task):
        rows.append(measure(task, options.work.resolve(), options.epochs))
        print(rows[-1])
    if not options.task and not options.epochs:
        write_json(RESULTS / "finetuning.json", {"environment": environment("cpu"), "rows": rows})


if __name__ == "__main__":
    main()
