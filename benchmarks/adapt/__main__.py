"""Measure what adapting the shipped weights to recordings brings on labels of them.

    python -m benchmarks.adapt.voices debs/ -o voices/ --fetch          # acted speech
    python -m benchmarks.open_suite debs/ -o suite/ --fetch --task sfx14   # effects of games
    OMP_NUM_THREADS=1 nice python -m benchmarks.adapt voices/voices.csv suite/sfx14.csv --work runs/adapt

For each task: the weights that ship (the start), log-mel statistics, and for each seed `ssamba pretrain --recipe adapt`
from the start (`adapt`), the mean of both weights (`half`), and the same objectives from random weights (`scratch`),
each for at most `--steps` steps (equal clips) on all recordings of the task, without labels, those of test clips
included: the case of an archive that labels a part of itself. Scores are of linear probes, as `ssamba evaluate` gives
them. Differences to the start are those of `compare_models`: both sides have the same probe, chosen for both together,
so that they are not quite the differences of the scores; their intervals are of a paired bootstrap.

Every arm is a row of benchmarks/results/adapt.json, which is written after each one; existing rows are skipped, and an
interrupted arm resumes from its saved state, so that the command may be killed and repeated at any time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import RESULTS, inline, save
from ssamba.checkpoint import average_checkpoints
from ssamba.evaluation import evaluate
from ssamba.evaluation.compare import compare_models, read_task
from ssamba.evaluation.task import Task
from ssamba.studies.harness import environment, table
from ssamba.training.pretraining.run import pretrain

START = "ssamba2-tiny"
VIEWS = {"clip": "final.mean", "parts": "final.mean.parts"}
"""Readout -> row of the scorecard."""
SCRATCH = Path(__file__).resolve().parents[2] / "docs" / "model-card" / "tiny-open-audio-4.toml"
Values = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the arms that are missing, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", type=Path, help="TASK.csv, with the recordings beside it")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs and of cached vectors")
    parser.add_argument("--steps", type=int, default=5400, help="of each training; 1,800 take 20 minutes of a core")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=("start", "logmel", "adapt", "scratch"), help="only these arms")
    parser.add_argument("--arms", type=int, help="stop after this many arms")
    parser.add_argument("--name", default="adapt", help="name of the files in benchmarks/results")
    options = parser.parse_args(arguments)
    path = RESULTS / f"{options.name}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}
    where = {"steps": options.steps, **environment()}
    if content["rows"] and content["where"]["steps"] != options.steps:
        raise SystemExit(f"{path} holds runs of {content['where']['steps']} steps: give --steps or --name")
    content.setdefault("where", where)
    tasks = {task.name: task for task in map(read_task, options.tasks)}
    done = 0
    for name, arm, seed in arms(list(tasks), options.seeds):
        key = f"{name}/{arm}" if seed is None else f"{name}/{arm}/{seed}"
        if key in content["rows"] or (options.only and arm not in options.only):
            continue
        if options.arms is not None and done >= options.arms:
            break
        content["rows"] |= run_arm(key, tasks[name], arm, seed, options.work, options.steps)
        save(options.name, content, report(content))
        done += 1


def arms(tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, int | None]]:
    """Yield task, arm and seed in the order in which they run: what every seed has, then seed by seed."""
    for name in tasks:
        yield name, "start", None
        yield name, "logmel", None
    for seed in seeds:
        for name in tasks:
            yield name, "adapt", seed
            yield name, "scratch", seed


def run_arm(key: str, task: Task, arm: str, seed: int | None, work: Path, steps: int) -> dict[str, Values]:
    """Train, if it is an arm that trains, and score; return the rows by key."""
    if seed is None:
        return {key: scores(task, START if arm == "start" else "logmel", work)}
    run = work / key
    length = {"run.steps": steps, "run.max_minutes": None}
    if arm == "adapt":
        trained = pretrain(task.audio, run, START, recipe="adapt", set=length, seed=seed)
    else:
        same = {"model.start": None, "data.batch_s": 64.0, "data.valid_share": 0.1, "run.picture_every": None}
        trained = pretrain(task.audio, run, recipe=SCRATCH, set={**length, **same}, seed=seed)
    held_out = {name: round(value, 4) for name, value in trained.validation.items() if "@" not in name}
    facts = {"steps": trained.step, "hours": round(trained.audio_s / 3600, 2), "best": trained.best, **held_out}
    rows = {key: {**scores(task, run, work), **facts}}
    if arm == "adapt":
        average_checkpoints([START, run], run / "half")
        rows[f"{task.name}/half/{seed}"] = scores(task, run / "half", work)
    return rows


def scores(task: Task, model: str | Path, work: Path) -> Values:
    """Return the scores of both readouts as `ssamba evaluate` gives them, and the differences to the start."""
    card = evaluate([task], model, readout=tuple(VIEWS), cache=work / "cache").card
    found: Values = {"scores": {name: round(card.row(view).scores[task.name], 4) for name, view in VIEWS.items()}}
    if model != START:
        for name in VIEWS:
            compared = compare_models(task, START, model, readout=name, cache=work / "cache")
            interval = [round(value, 4) for value in (compared.difference, *compared.interval)]
            found.setdefault("difference", {})[name] = interval
    return found


def report(content: Values) -> str:
    """Return the rows as a table; seeds are averaged, and listed with their own differences."""
    lines = [inline(content["where"]), ""]
    grouped: dict[str, list[Values]] = {}
    for key, row in content["rows"].items():
        grouped.setdefault("/".join(key.split("/")[:2]), []).append(row)
    body = []
    for key in sorted(grouped):
        rows = grouped[key]
        cells = []
        for view in VIEWS:
            mean = np.mean([row["scores"][view] for row in rows])
            each = [row["difference"][view] for row in rows if "difference" in row]
            cells += [f"{mean:.3f}", "; ".join("{:+.3f} ({:+.3f} to {:+.3f})".format(*one) for one in each)]
        body.append([*key.split("/"), str(len(rows)), *cells])
    head = ["task", "arm", "runs", "clip", "to the start (95 %)", "parts", "to the start (95 %)"]
    return "\n".join([*lines, table(head, body)])


if __name__ == "__main__":
    main()
