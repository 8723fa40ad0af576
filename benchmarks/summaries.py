"""Summarize the needle study's JSON before it is committed: `python -m benchmarks.summaries RUN/needle.json`.

The study keeps every trial, some hundred kilobytes. The summary has counts by duration, side, rule and level, and is
written to benchmarks/results/needle/summary.json.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timing import RESULTS
from ssamba.files import write_atomically


def summarize_needles(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study's facts and, for each (minutes, side, rule, level), trials, found first and found among five."""
    groups: dict[tuple[float, str, str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for trial in study["trials"]:
        groups[trial["minutes"], trial["side"], trial["rule"], trial["level_db"]].append(trial)
    scores = [
        {
            **dict(zip(("minutes", "side", "rule", "level_db"), key, strict=True)),
            "trials": len(trials),
            "first": sum(trial["rank"] == 1 for trial in trials),
            "five": sum(trial["rank"] is not None for trial in trials),
            "chance": round(sum(trial["chance"] for trial in trials) / len(trials), 8),
        }
        for key, trials in groups.items()
    ]
    facts = ("options", "identity", "environment", "needles", "files", "passes", "finished")
    return {**{name: study[name] for name in facts}, "scores": scores}


def main() -> None:
    """Summarize one study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="needle.json of `ssamba bench needle`")
    summary = summarize_needles(json.loads(parser.parse_args().study.read_text(encoding="utf-8")))
    output = RESULTS / "needle" / "summary.json"
    text = json.dumps(summary, indent=1) + "\n"
    write_atomically(output, partial(Path.write_text, data=text, encoding="utf-8"))
    print(output)


if __name__ == "__main__":
    main()
