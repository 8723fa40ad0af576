"""Drive an interface by the library that it serves, on recordings of a task; run it where that library is installed.

    python -m benchmarks.clients mteb SUITE            # the suite of `python -m benchmarks.proxy_suite`, for example

Results of the clients gather in benchmarks/results/clients.json and .md.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from benchmarks.timing import RESULTS, save
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.suite import read_suite
from ssamba.studies.harness import environment, table

PACKAGES = {
    "hear": ("hearvalidator", "tensorflow"),
    "hoplite": ("perch-hoplite",),
    "mteb": ("mteb", "datasets"),
    "xares": ("xares", "pytorch-ignite", "webdataset"),
    "s3prl": (),
    "databases": ("lancedb", "duckdb", "pandas", "polars", "pyarrow"),
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("client", choices=PACKAGES)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--task", default="voices", help="a task of clips with one label each, train and test")
    parser.add_argument("--model", default="ssamba2-tiny")
    parser.add_argument("--work", type=Path, default=Path("runs/clients"), help="folder for what the client writes")
    arguments = parser.parse_args()
    (task,) = read_suite(arguments.suite, [arguments.task])
    work = arguments.work / arguments.client
    work.mkdir(parents=True, exist_ok=True)
    found = import_module(f"benchmarks.clients.{arguments.client}").run(arguments.model, task, read_waves(task), work)
    stored = RESULTS / "clients.json"
    results = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    results[arguments.client] = {
        "date": environment()["date"],
        "versions": {name: version(name) for name in PACKAGES[arguments.client]} | found.pop("versions", {}),
        "task": f"{arguments.task}, {len(task.clips)} clips, {task.num_classes} classes",
        "model": arguments.model,
        "found": found,
    }
    rows = [
        [
            name,
            one["date"],
            ", ".join(f"{k} {v}" for k, v in one["versions"].items()),
            "; ".join(f"{k}: {v}" for k, v in one["found"].items()),
        ]
        for name, one in sorted(results.items())
    ]
    tasks = sorted({one["task"] for one in results.values()})
    text = (
        f"# Interfaces, driven by their clients\n\n`python -m benchmarks.clients CLIENT SUITE`; {'; '.join(tasks)}.\n\n"
    )
    save("clients", results, text + table(["client", "date", "versions", "what was run, and what it gave"], rows))


if __name__ == "__main__":
    main()
