"""Reference rows: what other models scored on the open suite. `reference.json` beside this file says where from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class ReferenceRow:
    """A model that was scored before."""

    name: str
    """Model and version."""
    parameters_millions: float | None
    """Its size; None for a formula."""
    scores: dict[str, float]
    """Accuracy by task."""

    def mean(self, tasks: list[str]) -> float:
        """Over these tasks."""
        return sum(self.scores[task] for task in tasks) / len(tasks)


def reference_rows() -> list[ReferenceRow]:
    """The rows, as published with the suite."""
    content = json.loads(files("ssamba.evaluation").joinpath("reference.json").read_text(encoding="utf-8"))
    return [
        ReferenceRow(row["name"], row["parameters_millions"], dict(zip(content["tasks"], row["scores"], strict=True)))
        for row in content["rows"]
    ]
