"""Work through a queue of short pretraining runs ("arms"), score each on a suite, and tabulate them.

    python -m benchmarks.screening benchmarks/screening/arms.toml -o FOLDER --data first=SHARDS --data more=SHARDS \\
        --suite SUITE
    python -m benchmarks.screening benchmarks/screening/arms.toml -o FOLDER --table screening22
    python -m benchmarks.screening benchmarks/screening/candidates.toml -o FOLDER --averages NAME --suite SUITE

An arm is a table of the file of arms: `data` (names of recordings, given by --data), `set` (settings of `ssamba
pretrain`, beside those of `[base]`; `{arms}` in a text is FOLDER), `after` (an arm that must be finished first),
`snapshot_steps` (steps after which the model is kept). The first arm that is neither finished nor in work is next, so
several of these processes share a queue, each on one core. The file is read again before each arm. When all are
finished, `base17`, if there is one, and the three best are repeated with another seed. A killed process loses at most a
minute of training: the command goes on where it stopped, with the checkout that an arm began with.

    FOLDER/ARM/run            the run of `ssamba pretrain`
    FOLDER/ARM/scores.json    scorecards of `ssamba evaluate`, one for each readout
    FOLDER/ARM/arm.json       settings, checkout, processor time in seconds
    FOLDER/ARM/log.txt        what the commands said
    FOLDER/ARM/snapshots      models on the way
    FOLDER/ARM/averages       means of the last snapshots, with the final model, and their scores

`--table NAME` writes what is there to benchmarks/results/NAME.json and NAME.md; `--averages ARM` averages the final
model and the last snapshots of an arm, scores the means on the suite, and prints them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssamba.checkpoint.files import write_json
from ssamba.errors import OutputInUseError
from ssamba.locks import lock_output

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_CHECKOUT = Path(__file__).resolve().parents[2]
_READOUTS = ("clip", "parts")
_VIEWS = {"final.mean": "clip", "final.mean.parts": "parts"}
_REFERENCE = "base17"
_FINALISTS = 3
_POLL_S = 20.0


def read_arms(path: Path) -> dict[str, dict[str, Any]]:
    """Return the arms of a file in their order, each with the settings of `[base]` and its own."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    base = content["base"]
    return {
        name: {"after": None, "snapshot_steps": None, **base, **arm, "set": {**base["set"], **arm.get("set", {})}}
        for name, arm in content["arms"].items()
    }


def queue(path: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the arms of a file, then, if all are finished, the best and the reference with seed 1."""
    arms = read_arms(path)
    means = {name: sum(one["mean"] for one in scores_of(folder / name).values()) for name in arms}
    if _REFERENCE not in arms or not all(means.values()):
        return arms
    best = sorted({*means} - {_REFERENCE}, key=lambda name: -means[name])[:_FINALISTS]
    again = {f"{name}-seed1": arms[name] for name in (_REFERENCE, *best)}
    return arms | {name: {**arm, "after": None, "set": {**arm["set"], "run.seed": 1}} for name, arm in again.items()}


def scores_of(arm: Path) -> dict[str, dict[str, float]]:
    """Return the scores of an arm by readout and task, and their `mean`; empty if it is not finished."""
    if not (arm / "scores.json").exists():
        return {}
    rows = json.loads((arm / "scores.json").read_text(encoding="utf-8"))["rows"]
    return {_VIEWS[row["view"]]: {**row["scores"], "mean": row["mean"]} for row in rows if row["view"] in _VIEWS}


def commands(
    arm: Mapping[str, Any], folder: Path, data: Mapping[str, str], suite: Path, python: str, checkout: Path
) -> list[list[str]]:
    """Return the commands that train and score an arm."""
    pretrain = [python, "-m", "ssamba", "-q", "pretrain", *(data[name] for name in arm["data"])]
    pretrain += ["-o", str(folder / "run"), "--recipe", str(checkout / arm["recipe"]), "--device", "cpu"]
    for key, value in arm["set"].items():
        text = value.replace("{arms}", str(folder.parent)) if isinstance(value, str) else json.dumps(value)
        pretrain += ["--set", f"{key}={text}"]
    evaluate = [python, "-m", "ssamba", "-q", "evaluate", str(suite), "-c", str(folder / "run"), "--workers", "1"]
    evaluate += ["--device", "cpu", "-o", str(folder / "scores.json")]
    return [pretrain, evaluate + [word for readout in _READOUTS for word in ("--readout", readout)]]


def work(arm: Mapping[str, Any], folder: Path, data: Mapping[str, str], suite: Path) -> bool:
    """Train and score an arm, or go on with it; return whether it is finished."""
    record = folder / "arm.json"
    state = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    state = {**arm, "checkout": str(_CHECKOUT), "python": sys.executable, "processor_s": 0.0, **state}
    checkout = Path(state["checkout"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    for command in commands(state, folder, data, suite, state["python"], checkout):
        write_json(record, state)
        is_training = "pretrain" in command
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            print(time.strftime("%F %T"), *command, file=log, flush=True)
            try:
                with subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log) as process:
                    code = _wait(process, folder, state["snapshot_steps"])
            finally:
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                if is_training:
                    state["processor_s"] += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                    write_json(record, state)
        if code:
            print(f"{folder.name}: ended with {code}; see {folder / 'log.txt'}", flush=True)
            return False
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)  # optimizer states
    return True


def _wait(process: subprocess.Popen[bytes], folder: Path, snapshot_steps: int | None) -> int:
    """Wait for a command, and keep models on the way; return its exit status."""
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_S)
            if snapshot_steps is not None:
                keep_snapshot(folder, snapshot_steps)
    except BaseException:
        process.terminate()  # it saves its state
        raise


def keep_snapshot(folder: Path, steps: int) -> None:
    """Copy the model of the newest state of an arm, if that is the first one after another `steps` steps."""
    saved = sorted((folder / "run" / "checkpoints").glob("step-*/meta.json"))
    if not saved:
        return
    newest, kept = saved[-1].parent, folder / "snapshots"
    number = int(newest.name.removeprefix("step-")) // steps
    if number and not (kept / f"{number:03}").exists():
        with suppress(FileNotFoundError):  # the run has just removed it
            shutil.copytree(newest / "model", kept / f".{number:03}", dirs_exist_ok=True)
            (kept / f".{number:03}").rename(kept / f"{number:03}")


def score_averages(folder: Path, suite: Path) -> None:
    """Average the final model of an arm and its last snapshots, score the means, and print a table."""
    from ssamba.checkpoint import average_checkpoints
    from ssamba.evaluation import evaluate
    from ssamba.studies.harness import table

    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.name.isdigit())
    lines = []
    for count in (0, 1, 2, 4, 6, 8):
        if count > len(snapshots):
            break
        model = folder / "run" / "model" if count == 0 else folder / "averages" / f"last-{count}"
        if count:
            average_checkpoints([folder / "run" / "model", *snapshots[-count:]], model)
        card = evaluate(suite, model, readout=_READOUTS, workers=1, device="cpu").card
        lines.append([f"final and {count} before", *(f"{card.row(view).mean:.3f}" for view in _VIEWS)])
    print(table(["mean of", *_READOUTS], lines))


def work_through(path: Path, folder: Path, data: Mapping[str, str], suite: Path) -> None:
    """Work on arms until none is left."""
    failed: set[str] = set()
    while True:
        for name, arm in queue(path, folder).items():
            waits = arm["after"] is not None and not scores_of(folder / arm["after"])
            if waits or name in failed or scores_of(folder / name):
                continue
            try:
                with lock_output(folder / name, folder=True):
                    if not scores_of(folder / name):
                        print(time.strftime("%F %T"), name, flush=True)
                        failed |= set() if work(arm, folder / name, data, suite) else {name}
                break
            except OutputInUseError:
                continue
        else:
            return


def tabulate(path: Path, folder: Path, name: str) -> None:
    """Write the scores of finished arms, with their distance to the arm `base17`, and where the others stand."""
    from benchmarks.timing import save
    from ssamba.studies.harness import environment, table

    rows: list[dict[str, Any]] = []
    for arm, settings in queue(path, folder).items():
        record = folder / arm / "arm.json"
        begun = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"processor_s": 0.0}
        row = {"arm": arm, "about": settings["about"], "data": settings["data"], "set": settings["set"]}
        rows.append(row | {"processor_minutes": begun["processor_s"] / 60, "scores": scores_of(folder / arm)})
    reference = scores_of(folder / _REFERENCE)
    lines = []
    for row in rows:
        for view, scores in row["scores"].items():
            difference = f"{scores['mean'] - reference[view]['mean']:+.3f}" if reference else ""
            cells = [f"{value:.3f}" for value in scores.values()]
            lines.append([row["arm"], view, *cells, difference, f"{row['processor_minutes']:.0f}"])
    tasks = list(next((scores for row in rows for scores in row["scores"].values()), {}))
    text = table(["arm", "readout", *tasks, f"to {_REFERENCE}", "minutes"], lines)
    text += "\n\n" + "\n".join(f"- {row['arm']}: {row['about']}" for row in rows)
    text += f"\n\nNot finished: {', '.join(row['arm'] for row in rows if not row['scores']) or 'none'}."
    save(name, {**environment(), "rows": rows}, text)


def main() -> None:
    """Parse, and work or tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--table", metavar="NAME", help="only write the table of results")
    parser.add_argument("--averages", metavar="ARM", help="only average the snapshots of an arm, and score the means")
    arguments = parser.parse_args()
    if arguments.table:
        tabulate(arguments.arms, arguments.output, arguments.table)
        return
    if arguments.averages:
        score_averages(arguments.output / arguments.averages, arguments.suite)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data = {name: str(Path(source).resolve()) for name, _, source in (one.partition("=") for one in arguments.data)}
    work_through(arguments.arms, arguments.output.resolve(), data, arguments.suite.resolve())


if __name__ == "__main__":
    main()
