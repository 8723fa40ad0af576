"""What a run leaves to read: `log.jsonl`, `skipped.csv`, curves for TensorBoard and Weights & Biases, pictures.

`log.jsonl` has an object on each line, with `event` one of start, train, validation, bad_step, save_failed, end, and
`step`. A resumed run removes the lines of steps that it will do again. A full disk loses lines, not the run.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ssamba.errors import MissingExtraError
from ssamba.files import write_atomically
from ssamba.training.settings import RunSettings

LOG_FILE = "log.jsonl"
SKIPPED_FILE = "skipped.csv"
_CURVE_EVENTS = ("train", "validation")


class RunLog:
    """The log of the first process."""

    def __init__(self, out: Path, run: RunSettings, step: int, wandb_id: str | None, recipe: Mapping[str, Any]):
        """Open the log at a step: later lines are removed.

        Raises:
            MissingExtraError: TensorBoard or Weights & Biases was asked for and is not installed.
        """
        self.out = out
        self.lost = 0
        """Lines, curves or pictures that could not be written."""
        self.skipped: set[str] = set()
        self._torn = False
        self._tensorboard = _open_tensorboard(out / "tensorboard", step) if run.tensorboard else None
        self._wandb = _open_wandb(run.wandb, out, wandb_id, recipe) if run.wandb else None
        if step:
            _truncate(out / LOG_FILE, step)
            self.skipped = _read_skipped(out / SKIPPED_FILE)
        else:
            for name in (LOG_FILE, SKIPPED_FILE):
                (out / name).unlink(missing_ok=True)

    @property
    def wandb_id(self) -> str | None:
        """The run's name at Weights & Biases."""
        return self._wandb.id if self._wandb is not None else None

    def event(self, event: str, step: int, values: Mapping[str, Any] | None = None) -> None:
        """Append a line; the numbers of a `train` or `validation` line become curves."""
        values = values or {}
        own = {"event": event, "step": step, "time": round(time.time(), 3)}
        line = json.dumps(_finite(own | dict(values) | own)) + "\n"  # first, and not to be overwritten

        def append() -> None:
            with (self.out / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(("\n" if self._torn else "") + line)

        self._torn = not self._try(append)
        if event not in _CURVE_EVENTS:
            return
        curves = {
            f"{event}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        if self._tensorboard is not None:
            writer = self._tensorboard
            self._try(lambda: [writer.add_scalar(name, value, step) for name, value in curves.items()])
        if self._wandb is not None:
            self._wandb.log(curves, step=step)

    def skip(self, clips: Iterable[tuple[str, str]]) -> None:
        """List clips that could not be used, each once."""
        new = {key: reason for key, reason in clips if key not in self.skipped}
        if not new:
            return
        self.skipped |= new.keys()

        def append() -> None:
            path = self.out / SKIPPED_FILE
            fresh = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(["key", "reason"])
                writer.writerows(new.items())

        self._try(append)

    def picture(self, name: str, figure: Any, step: int) -> None:
        """Keep a matplotlib figure as `pictures/step-N-NAME.png`, and show it in TensorBoard."""

        def write() -> None:
            path = self.out / "pictures" / f"step-{step:08d}-{name}.png"
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, lambda target: figure.savefig(target, dpi=110, format="png"))
            if self._tensorboard is not None:
                self._tensorboard.add_figure(name, figure, step)

        self._try(write)

    def close(self) -> None:
        """Flush what is pending."""
        if self._tensorboard is not None:
            self._try(self._tensorboard.close)
        if self._wandb is not None:
            self._wandb.finish()

    def _try(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except OSError:
            self.lost += 1
            return False
        return True


def _finite(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _truncate(path: Path, step: int) -> None:
    """Keep the whole lines of steps up to this one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that a killed run or a full disk left half written
        if record.get("step", 0) <= step and record.get("event") != "end":
            kept.append(line + "\n")
    write_atomically(path, lambda target: target.write_text("".join(kept), encoding="utf-8"))


def _read_skipped(path: Path) -> set[str]:
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {row[0] for row in list(csv.reader(file))[1:] if row}


def _open_tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError('curves in TensorBoard need it: pip install "ssamba[train]"') from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _open_wandb(project: str | None, out: Path, run_id: str | None, recipe: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise MissingExtraError(
            "curves at Weights & Biases need its client: pip install wandb (or leave `wandb` out of the recipe)"
        ) from None
    return wandb.init(project=project, dir=str(out), id=run_id, resume="allow", config=dict(recipe), name=out.name)
