"""How a run is doing: sums over a window of steps, what is shown while it runs, what is said at its end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.training.distributed import World
from ssamba.training.task import StepOutcome


@dataclass
class TrainingProgress:
    """How far a run is; the same object is updated and handed to `on_progress` after each step."""

    step: int = 0
    """Steps done."""
    total_steps: int | None = None
    """Of the whole run; None when only a time budget ends it."""
    epoch: int = 0
    """Epochs done."""
    elapsed_s: float = 0.0
    """Time spent, over all sessions."""
    left_s: float | None = None
    """Time left at the pace so far."""
    share: float = 0.0
    """Share of the run that is done."""
    loss: float = float("nan")
    """Of the last step."""
    learning_rate: float = 0.0
    """Of the last step."""
    grad_norm: float = float("nan")
    """Of the last step, before clipping."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means over the last logged window, the loss among them."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """Figures of the last validation."""
    clips_per_s: float = 0.0
    """Over the last logged window, all processes together."""
    audio_h_per_s: float = 0.0
    """Hours of audio for each second, likewise."""
    data_wait_share: float = 0.0
    """Share of that window's time spent waiting for data."""
    clips: int = 0
    """Clips seen, over all sessions."""
    audio_s: float = 0.0
    """Audio seen, over all sessions."""
    skipped: int = 0
    """Clips that could not be used, each counted once."""
    bad_steps: int = 0
    """Steps left out because something was not finite."""
    failed_saves: int = 0
    """States that could not be written."""
    message: str | None = None
    """Something the user should see once."""

    def take(self, window: Window, seconds: float) -> None:
        """Take over the figures of a window of all processes that took so long."""
        self.metrics = window.means()
        self.clips += window.clips
        self.audio_s += window.audio_s
        self.clips_per_s = window.clips / seconds
        self.audio_h_per_s = window.audio_s / 3600 / seconds
        self.data_wait_share = window.wait_s / seconds

    def figures(self) -> dict[str, float]:
        """What the log says of the last step and window, besides the metrics."""
        return {
            "epoch": self.epoch,
            "elapsed_s": round(self.elapsed_s, 3),
            "bad_steps": self.bad_steps,
            "learning_rate": self.learning_rate,
            "grad_norm": self.grad_norm,
            "clips_per_s": round(self.clips_per_s, 3),
            "audio_h_per_s": round(self.audio_h_per_s, 6),
            "data_wait_share": round(self.data_wait_share, 4),
        }

    def estimate(self, session_steps: int, session_s: float, max_minutes: float | None) -> None:
        """Work out share and time left from the pace of this session."""
        ends = []
        self.share = 0.0
        if self.total_steps is not None:
            self.share = self.step / self.total_steps
            ends.append((self.total_steps - self.step) * session_s / max(1, session_steps))
        if max_minutes is not None:
            self.share = max(self.share, self.elapsed_s / (max_minutes * 60))
            ends.append(max_minutes * 60 - self.elapsed_s)
        self.share = min(1.0, self.share)
        self.left_s = max(0.0, min(ends)) if ends else None

    def report(self, stopped: str, **more: Any) -> TrainingReport:
        """The report of a run that ended here; `more` are the fields that only the loop knows."""
        shared = {f.name for f in fields(TrainingReport)} & {f.name for f in fields(self)}
        return TrainingReport(stopped=stopped, **{name: getattr(self, name) for name in shared}, **more)


@dataclass(frozen=True)
class TrainingReport:
    """How a run, or this session of it, ended."""

    stopped: str
    """`finished`, or the signal that ended it early; it can then be resumed."""
    step: int
    """Steps done, over all sessions."""
    epoch: int
    """Whole epochs done."""
    elapsed_s: float
    """Time spent, over all sessions."""
    clips: int
    """Clips seen."""
    audio_s: float
    """Audio seen."""
    resumed_from: int | None
    """The step that this session began at, None if at the start."""
    loss: float
    """Of the last step."""
    metrics: Mapping[str, float]
    """Means over the last logged window."""
    validation: Mapping[str, float]
    """Figures of the last validation, empty if there was none."""
    best: tuple[int, float] | None
    """Step and value of the best validation."""
    skipped: int
    """Clips that could not be used."""
    bad_steps: int
    """Steps left out because something was not finite."""
    failed_saves: int
    """States that could not be written."""
    peak_memory_bytes: int | None
    """Highest memory of the first process: its GPU's, or its own."""
    last_state: Path | None
    """Folder of the last saved state."""
    model: Path | None
    """Folder of the trained model, once the run is finished."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


@dataclass
class Window:
    """Sums over the steps since the last line of the log. Tensors stay where they are until they are asked for."""

    steps: int = 0
    clips: int = 0
    audio_s: float = 0.0
    weight: float = 0.0
    wait_s: float = 0.0
    sums: dict[str, Tensor | float] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def add(self, outcomes: Sequence[StepOutcome], usable: bool) -> None:
        """Take the outcomes of a step; one that was not finite counts its clips alone."""
        self.steps += 1
        for outcome in outcomes:
            self.clips += outcome.clips
            self.audio_s += outcome.audio_s
            self.skipped += outcome.skipped
            if not usable or outcome.weight == 0:
                continue
            self.weight += outcome.weight
            values = {"loss": outcome.loss, **outcome.metrics}
            for name, value in values.items():
                if value is not None:
                    value = value.detach() if isinstance(value, Tensor) else value
                    self.sums[name] = self.sums.get(name, 0.0) + value * outcome.weight

    def over_all(self, world: World) -> Window:
        """The window of all processes together, in every process; `wait_s` is their mean."""
        own = Window(**{**self.__dict__, "sums": {name: float(value) for name, value in self.sums.items()}})
        total = Window(steps=self.steps)
        for part in world.all_gather(own):
            total.clips += part.clips
            total.audio_s += part.audio_s
            total.weight += part.weight
            total.wait_s += part.wait_s / world.size
            total.skipped += part.skipped
            for name, value in part.sums.items():
                total.sums[name] = total.sums.get(name, 0.0) + value
        return total

    def means(self) -> dict[str, float]:
        """Mean of the loss and of each metric, over their terms."""
        return {name: float(value) / self.weight for name, value in self.sums.items()} if self.weight else {}


def peak_memory_bytes(device: torch.device) -> int | None:
    """Highest memory so far: the GPU's, or this process's; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
