"""Compare SSAMBA with SSAST in quality, as the paper claims it, at a small scale: `python -m benchmarks.claim`.

    OMP_NUM_THREADS=1 nice python -m benchmarks.claim --corpus A --corpus B --suite SUITE --work FOLDER
    python -m benchmarks.claim --work FOLDER --table claim

Both sides are the official tiny models (patches of 16 x 16), pretrained on the same batches of the same recordings with
the same objectives (InfoNCE and 10 times reconstruction), masks (400 of 512 patches, in clusters), optimizer and
schedule. Short recordings are joined to crops of 10.24 s and, in a second comparison, of 40.96 s, where attention costs
more. Each side takes the learning rate at which its held-out loss is lowest after a short run.

Two readings. `clips`: both sides see the same clips; the slower one takes --minutes of one core. `time`: the faster one
goes on seeing clips until it has taken as long. A side's time is its median processor time of a step, times its steps.
Within 5 % of each other, one run stands for both readings.

Each model is scored on the suite by linear probes and retrieval, and fine-tuned on each task (recipe `cpu`, a number of
epochs, the first round of tasks with train and test). Models of crops of 40.96 s are scored at four times the length of
the clips: four of one label, split and group joined, repeated if there are fewer.

Results are in FOLDER/rows.json, written after each part; what is there is not done again, and an interrupted run
resumes from its saved state, so that the command may be killed and repeated at any time. `--table NAME` writes them to
benchmarks/results/NAME.json and NAME.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.timing import inline, save
from ssamba.checkpoint.files import write_json
from ssamba.evaluation import evaluate, read_suite
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.suite import METADATA_FILE
from ssamba.evaluation.task import Task
from ssamba.progress import Progress
from ssamba.similarity import SIMILARITY
from ssamba.studies.harness import environment, table
from ssamba.training.finetuning.run import finetune
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.pretraining.run import pretrain

Values = dict[str, Any]

SIDES = {"SSAMBA": "official", "SSAST": "ssast"}
VIEWS = {"clip": "final.mean", "parts": "final.mean.parts"}
RATES = (5e-4, 1e-3, 2e-3)
TIMES = {10.24: 1, 40.96: 4}
"""Seconds of a crop -> how many clips of the suite are joined."""
_SAME_TIME = 1.05
_PILOT_STEPS = 60
_SAVE_STEPS = 10
_MANIFESTS = "manifests"
_SECONDS_IN_A_BATCH = 163.84


def recipe(side: str, crop_s: float, steps: int, rate: float, seed: int) -> PretrainRecipe:
    """Return the settings of a run; sides differ in `model.variant` and the learning rate alone."""
    values: Values = {
        "model": {"size": "tiny", "variant": SIDES[side], "encoder": {"num_frames": round(crop_s * 100)}},
        "data": {"crop_s": crop_s, "short_clips": "join", "batch_s": _SECONDS_IN_A_BATCH, "workers": 0},
        "masking": {"ratio": 400 / 512},
        "objectives": {"discriminative": 1.0, "generative": 10.0, "encode": "all", "normalize_targets": False},
        "optimizer": {"learning_rate": rate},
        "schedule": {"kind": "cosine", "warmup_steps": min(50, steps // 2)},
        "run": {"steps": steps, "seed": seed, "precision": "auto", "ema_decay": 0.998, "picture_every": None},
    }
    return PretrainRecipe.parse(values, "benchmarks.claim").with_values({"run.epochs": None})


class Claim:
    """The comparison: what is done is in `rows`."""

    def __init__(self, work: Path, options: argparse.Namespace):
        self.work, self.options = work, options
        self.path = work / "rows.json"
        self.content: Values = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self.content.setdefault("where", environment())
        self.rows: dict[str, Values] = self.content.setdefault("rows", {})

    def save(self) -> None:
        """Write what is done."""
        self.work.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)

    def train(self, key: str, side: str, crop_s: float, steps: int, rate: float, seed: int) -> Values:
        """Pretrain, unless it is done; return the row."""
        row = self.rows.setdefault(key, {})
        if "steps" in row:
            return row
        spent: list[float] = []
        last = [0, 0.0]  # step, processor time

        def note(progress: Progress) -> None:
            done, now_s = getattr(progress, "steps", 0), time.process_time()
            if done <= last[0]:
                return
            if last[0]:
                spent.append((now_s - last[1]) / (done - last[0]))
                row["step_s"] = statistics.median(spent)
            last[:] = [done, now_s]
            if done % _SAVE_STEPS == 0:
                self.save()  # a run that is resumed at its end has no step to measure

        run = self.work / "runs" / key.replace("/", "-")
        settings = recipe(side, crop_s, steps, rate, seed)
        report = pretrain(self.options.corpus, run, recipe=settings, device="cpu", progress=note)
        held_out = {name: round(value, 4) for name, value in report.validation.items() if name.endswith("@400")}
        row |= {"rate": rate, "clips": report.clips, "held_out": held_out}
        row |= {"loss": report.validation["loss"], "run": run.name, "steps": steps}
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # optimizer states
        self.save()
        return row

    def pilot(self, side: str, crop_s: float) -> tuple[float, float]:
        """Return the learning rate of a side, found at crops of 10.24 s, and its processor time of a step."""
        steps = self.options.pilot_steps
        tried = {rate: self.train(f"pilot/{side}/{rate:g}", side, 10.24, steps, rate, 0) for rate in RATES}
        best = min(tried, key=lambda rate: tried[rate]["loss"])
        if crop_s == 10.24:
            return best, tried[best]["step_s"]
        return best, self.train(f"pilot/{side}/{crop_s:g}", side, crop_s, max(3, steps // 6), best, 0)["step_s"]

    def score(self, key: str, suite: Path, seed: int) -> None:
        """Score a run by probes, retrieval and fine-tuning, as far as that is not done."""
        row, options = self.rows[key], self.options
        run = self.work / "runs" / row["run"]
        if "probe" not in row:
            card = evaluate(suite, run, readout=tuple(VIEWS), cache=self.work / "cache", workers=1, device="cpu").card
            for name, view in VIEWS.items():
                scored = card.row(view)
                found = scored.retrieval[SIMILARITY]
                row.setdefault("probe", {})[name] = {
                    "scores": scored.scores,
                    "mean": scored.mean,
                    "interval": [*scored.intervals["mean"]],
                    "intervals": {task: [*scored.intervals[task]] for task in scored.scores},
                }
                row.setdefault("retrieval", {})[name] = {
                    "scores": found.scores["mAP"],
                    "mean": found.mean(),
                    "interval": [*found.intervals["mAP"]["mean"]],
                }
            self.save()
        tuned = row.setdefault("finetuned", {})
        for task in sorted((suite / _MANIFESTS).glob("*.csv")):
            if task.stem in tuned:
                continue
            output = self.work / "finetuned" / f"{row['run']}-{task.stem}"
            changes = {"run.max_minutes": None, "run.patience": None, "finish.refit": False, "clips.workers": 0}
            changes["clips.frames"] = 512 * (4 if suite.name == "suite-4" else 1)
            report = finetune(
                task, output, str(run), recipe="cpu", set=changes, epochs=options.epochs, seed=seed, device="cpu"
            )
            score, _ = report.scores()["accuracy"]
            tuned[task.stem] = {"accuracy": score, "interval": [*report.intervals["accuracy"]]}
            shutil.rmtree(output)
            self.save()

    def run(self, tasks: Sequence[Task]) -> None:
        """Do what is missing."""
        options = self.options
        for crop_s in options.crops:
            suite = self.work / f"suite-{TIMES[crop_s]}"
            write_suite(tasks, suite, TIMES[crop_s])
            pilots = {side: self.pilot(side, crop_s) for side in SIDES}
            step_s = {side: seconds for side, (_, seconds) in pilots.items()}
            planned = self.content.setdefault("steps", {})
            planned.setdefault(f"{crop_s:g}", round(options.minutes * 60 / max(step_s.values())))
            steps = planned[f"{crop_s:g}"]
            for seed in options.seeds:
                keys = {side: f"{crop_s:g} s/{side}/clips/{seed}" for side in SIDES}
                rows = {side: self.train(keys[side], side, crop_s, steps, pilots[side][0], seed) for side in SIDES}
                for key in keys.values():
                    self.score(key, suite, seed)
                fast, slow = sorted(SIDES, key=lambda side: rows[side]["step_s"])
                ratio = rows[slow]["step_s"] / rows[fast]["step_s"]
                if ratio > _SAME_TIME:
                    key = f"{crop_s:g} s/{fast}/time/{seed}"
                    self.train(key, fast, crop_s, round(steps * ratio), pilots[fast][0], seed)
                    self.score(key, suite, seed)


def write_suite(tasks: Sequence[Task], folder: Path, times: int) -> None:
    """Write tasks with `times` clips of one label, split and group joined, as FLAC, and manifests for fine-tuning."""
    if (folder / METADATA_FILE).exists():
        return
    for task in tasks:
        waves = read_waves(task)
        (folder / task.name).mkdir(parents=True, exist_ok=True)
        cells: dict[tuple[str, str, str], list[int]] = {}
        for index, cell in enumerate(zip(task.labels, task.splits, task.groups, strict=True)):
            cells.setdefault(tuple(map(str, cell)), []).append(index)  # type: ignore[arg-type]  # three texts
        rows: list[list[str]] = []
        for (label, split, group), members in cells.items():
            for first in range(0, len(members), times):
                chosen = [members[(first + k) % len(members)] for k in range(times)]
                name = f"{task.name}/{len(rows):05}.flac"
                soundfile.write(folder / name, np.concatenate([waves[k] for k in chosen]), waves.sample_rate_hz)
                rows.append([name, label, split, group])
        _write_table(folder / f"{task.name}.csv", ["clip", "label", "split", "group"], rows)
        manifest = [[f"../{name}", *others] for name, *others in rows]
        _write_table(folder / _MANIFESTS / f"{task.name}.csv", ["path", "labels", "split", "group"], manifest)
    both = {task.name: {"both_directions": task.both_directions} for task in tasks}
    write_json(folder / METADATA_FILE, {"tasks": both})


def _write_table(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def report(content: Mapping[str, Any]) -> str:
    """Return the finished rows as a table: the mean over tasks, 95 % intervals over test clips."""

    def cell(found: Mapping[str, Any]) -> str:
        low, high = found["interval"]
        return f"{found['mean']:.3f} ({low:.3f} to {high:.3f})"

    body = []
    for key, row in content["rows"].items():
        if "probe" not in row:
            continue
        tuned = [one["accuracy"] for one in row["finetuned"].values()]
        cells = [cell(row[kind][readout]) for kind in ("probe", "retrieval") for readout in VIEWS]
        mean = f"{statistics.mean(tuned):.3f} of {len(tuned)}" if tuned else ""
        minutes = row["steps"] * row["step_s"] / 60
        held_out = f"{row['held_out']['discriminative@400']:.3f}"
        body.append([*key.split("/"), f"{row['rate']:g}", str(row["clips"]), f"{minutes:.0f}", held_out, *cells, mean])
    head = ["crops", "model", "equal", "seed", "rate", "clips", "minutes", "InfoNCE", "probe, clip", "probe, parts"]
    head += ["mAP, clip", "mAP, parts", "fine-tuned, tasks"]
    return f"{inline(content['where'])}\n\n{table(head, body)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse; do what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", default=[], help="recordings; repeatable")
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of runs and rows")
    parser.add_argument("--minutes", type=float, default=45.0, help="processor time of a pretraining run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--crops", type=float, nargs="+", default=[*TIMES], choices=[*TIMES], help="seconds")
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning")
    parser.add_argument("--pilot-steps", type=int, default=_PILOT_STEPS)
    parser.add_argument("--task", action="append", help="only this task of the suite; repeatable")
    parser.add_argument("--table", metavar="NAME", help="only write the table of results")
    options = parser.parse_args(arguments)
    claim = Claim(options.work.resolve(), options)
    if options.table:
        save(options.table, claim.content, report(claim.content))
        return
    claim.run(read_suite(options.suite, options.task))


if __name__ == "__main__":
    main()
