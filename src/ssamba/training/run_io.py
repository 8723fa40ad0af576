"""What a run reports: `log.jsonl`, `skipped.csv`, pictures, curves (TensorBoard, Weights & Biases), progress, report.

`log.jsonl` has one object on each line, with `event` (start, train, validation, bad_step, save_failed or end) and
`step`. A resumed run removes the lines of steps that it will repeat. A full disk loses lines but does not stop it.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.errors import MissingExtraError
from ssamba.files import check_before_replacing, finite, json_text, utf8_cells, utf8_text, write_atomically
from ssamba.plotting import save_figure, styled
from ssamba.progress import Progress, counted, format_duration
from ssamba.training.distributed import World
from ssamba.training.settings import RunSettings
from ssamba.training.state import EARLIER_LOGS
from ssamba.training.task import StepOutcome

LOG_FILE = "log.jsonl"
SKIPPED_FILE = "skipped.csv"
LOG_COLUMNS = frozenset(
    (
        *("event", "step", "time", "epoch", "elapsed_s", "bad_steps", "learning_rate", "grad_norm", "clips_per_s"),
        *("audio_h_per_s", "data_wait_share", "steps", "peak_memory_bytes"),
    )
)
"""Names of what the loop itself logs; no metric may have one of them."""
REPORT_FILE = "report.json"
_KEYS_SHOWN = 20
_CURVE_EVENTS = ("train", "validation")
_SHOWN_METRICS = ("loss", "discriminative", "accuracy", "generative", "clip")
_SHOWN_VALIDATION = ("accuracy", "balanced_accuracy", "mAP")


@dataclass(kw_only=True)
class RunTotals:
    """Counts and metrics over all sessions of a run."""

    step: int = 0
    """Steps done."""
    epoch: int = 0
    """Epochs done."""
    elapsed_s: float = 0.0
    """Time spent."""
    clips: int = 0
    """Clips seen."""
    audio_s: float = 0.0
    """Seconds of audio seen."""
    loss: float = float("nan")
    """Loss of the last step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Mean loss and metrics over the last log window (the steps between two log lines)."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the last validation; empty if there was none."""
    skipped: int = 0
    """Clips that could not be used, each counted once."""
    bad_steps: int = 0
    """Steps skipped because the loss or gradient was not finite."""
    failed_saves: int = 0
    """States that could not be written."""


@dataclass(kw_only=True)
class TrainingProgress(RunTotals):
    """Progress of a run. The same object is updated and passed to `on_progress` after each step."""

    total_steps: int | None = None
    """Steps of the whole run; None if only a time budget ends it."""
    left_s: float | None = None
    """Estimate of the time left."""
    share: float = 0.0
    """Share of the run that is done."""
    learning_rate: float = 0.0
    """Learning rate of the last step."""
    grad_norm: float = float("nan")
    """Gradient norm of the last step, before clipping."""
    clips_per_s: float | None = None
    """Clips per second over the last log window, all processes together; None before the first."""
    audio_h_per_s: float = 0.0
    """Hours of audio per second, likewise."""
    data_wait_share: float = 0.0
    """Share of that window's time spent waiting for data."""

    def add_window(self, window: Window, seconds: float) -> None:
        """Update metrics, counts and rates by a log window, summed over processes, that took `seconds`."""
        self.metrics = window.means()
        self.clips += window.clips
        self.audio_s += window.audio_s
        self.clips_per_s = window.clips / seconds
        self.audio_h_per_s = window.audio_s / 3600 / seconds
        self.data_wait_share = window.wait_s / seconds

    def log_values(self) -> dict[str, float]:
        """Return the values of a `train` line besides the metrics."""
        return {
            "epoch": self.epoch,
            "elapsed_s": round(self.elapsed_s, 3),
            "bad_steps": self.bad_steps,
            "learning_rate": self.learning_rate,
            "grad_norm": self.grad_norm,
            "clips_per_s": round(self.clips_per_s or 0.0, 3),
            "audio_h_per_s": round(self.audio_h_per_s, 6),
            "data_wait_share": round(self.data_wait_share, 4),
        }

    def estimate(self, session_steps: int, session_s: float, max_minutes: float | None) -> None:
        """Update `share` and `left_s` from the speed of this session."""
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


@dataclass(frozen=True, kw_only=True)
class StepProgress(Progress):
    """Progress of a training run as `progress` gets it: counts in percent of the run, and what the log says."""

    steps: int = 0
    """Steps done."""
    epoch: int = 0
    """Epochs done."""
    learning_rate: float = 0.0
    """Learning rate of the last step."""
    clips_per_s: float | None = None
    """Clips per second over the last log window, all processes together; None before the first."""
    data_wait_share: float = 0.0
    """Share of that window's time spent waiting for data."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Mean loss and metrics over the last log window."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the last validation."""

    @classmethod
    def of(cls, state: TrainingProgress, step: str) -> StepProgress:
        """Return the progress of a run, whose current part is named `step`."""
        shown = [f"{name} {state.metrics[name]:.3f}" for name in _SHOWN_METRICS if name in state.metrics]
        known = {name: value for name, value in state.validation.items() if math.isfinite(value)}
        held = [f"{name} {known[name]:.3f}" for name in _SHOWN_VALIDATION if name in known]
        rate = "" if state.clips_per_s is None else f"{state.clips_per_s:.3g} clips/s"
        detail = [f"step {state.step}", rate, " ".join(shown)]
        detail += [f"held out: {' '.join(held)}"] if held else []
        return cls(
            step=step,
            done=100 * state.share,
            total=100,
            unit="%",
            audio_s=state.audio_s,
            skipped=state.skipped,
            elapsed_s=state.elapsed_s,
            left_s=state.left_s,
            detail=", ".join(part for part in detail if part),
            steps=state.step,
            epoch=state.epoch,
            learning_rate=state.learning_rate,
            clips_per_s=state.clips_per_s,
            data_wait_share=state.data_wait_share,
            metrics=dict(state.metrics),
            validation=dict(state.validation),
        )


@dataclass(kw_only=True)
class TrainingReport(RunTotals):
    """Result of a run, or of this session of it. `report.json` holds it, too."""

    stopped: str
    """`finished`, the name of the signal that ended it, or `stopped` by `progress`; repeating the call resumes."""
    resumed_from: int | None
    """Step that this session resumed from; None for a new run."""
    best: tuple[int, float] | None
    """Step and value of the best validation, or the latest one within its standard error (`Task.validate`)."""
    peak_memory_bytes: int | None
    """Peak memory of the main process: the GPU's, or the process's own."""
    last_state: Path | None
    """Folder of the last saved state."""
    model: Path | None
    """Folder of the trained model, once the run is finished."""
    moved_to: Path | None = None
    """Folder that an earlier run was moved to, because of `overwrite`."""
    notes: tuple[str, ...] = ()
    """What is wrong with the recordings as a whole."""
    ended_early: str | None = None
    """Why training ended before its steps or epochs; None if it did not."""

    def __str__(self) -> str:
        left_out = f", {counted(self.skipped, 'clip')} skipped (skipped.csv)" if self.skipped else ""
        left_out += f", {counted(self.bad_steps, 'step')} left out" if self.bad_steps else ""
        was_finished = self.stopped == "finished" and self.resumed_from == self.step
        status = "already finished" if was_finished else self.stopped
        extend = " (more minutes or epochs extend it)" if was_finished else ""
        audio, elapsed = format_duration(self.audio_s), format_duration(self.elapsed_s)
        clips = f"{counted(self.clips, 'clip')}, {audio} of audio in {elapsed}{left_out}"
        lines = [f"{status} at step {self.step}{extend}: {clips}"]
        counts: dict[str, list[str]] = {}
        for name, value in self.validation.items():
            metric, at, count = name.partition("@")
            if at:
                counts.setdefault(count, []).insert(0 if metric == "loss" else 999, f"{metric} {value:.4f}")
        lines += [f"  held out, {count} of 512 patches masked: {', '.join(shown)}" for count, shown in counts.items()]
        lines += [f"ended early: {self.ended_early}"] if self.ended_early else []
        lines += [] if self.moved_to is None else [f"the earlier run is in {self.moved_to}"]
        lines += [f"note: {note}" for note in self.notes]
        where = f"model in {self.model}" if self.model else f"state in {self.last_state}: repeat the command to resume"
        return "\n".join([*lines, where])

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def why_early(
    run: RunSettings, state: TrainingProgress, stale: int, metric: str, stop_signal: str | None
) -> str | None:
    """Return why a run ended before its steps or epochs, for people; None if it did not, or only stopped.

    `stale` counts the validations since the best `metric`.
    """
    if stop_signal is not None or (state.total_steps is not None and state.step >= state.total_steps):
        return None
    total = f" of {run.epochs}" if run.epochs else ""
    after = f"after {counted(state.epoch, 'epoch')}{total} ({counted(state.step, 'step')})"
    if run.patience is not None and stale >= run.patience:
        times = counted(run.patience, "validation")
        return f"{after}: {metric.replace('_', ' ')} had not been better for {times} (run.patience)"
    if run.max_minutes is not None and state.total_steps is not None:
        return f"{after}: the time was up, {run.max_minutes:g} minutes (--minutes, run.max_minutes)"
    return None


@dataclass
class Window:
    """Sums over the steps since the last line of the log. Tensors stay on their device until they are read."""

    steps: int = 0
    clips: int = 0
    audio_s: float = 0.0
    weight: float = 0.0
    wait_s: float = 0.0
    sums: dict[str, Tensor | float] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def add(self, outcomes: Sequence[StepOutcome], usable: bool) -> None:
        """Add the outcomes of a step; of one that was not finite only the clips count."""
        self.steps += 1
        for outcome in outcomes:
            self.clips += outcome.clips
            self.audio_s += outcome.audio_s
            self.skipped += outcome.skipped
            if not usable or outcome.weight == 0:
                continue
            self.weight += outcome.weight
            for name, value in {"loss": outcome.loss, **outcome.metrics}.items():
                if value is not None:
                    value = value.detach() if isinstance(value, Tensor) else value
                    self.sums[name] = self.sums.get(name, 0.0) + value * outcome.weight

    def over_all(self, world: World) -> Window:
        """Return the sums over all processes, to every process; `wait_s` is the mean."""
        own = replace(self, sums={name: float(value) for name, value in self.sums.items()})
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
        """Return the mean loss and metrics over all terms."""
        return {name: float(value) / self.weight for name, value in self.sums.items()} if self.weight else {}


@dataclass(frozen=True)
class BadStep:
    """A step that was skipped because its loss or gradient was not finite."""

    step: int
    """Steps done before it."""
    loss: float
    """Mean over all ranks."""
    grad_norm: float
    """Euclidean norm of the gradient."""
    learning_rate: float
    """Full learning rate times the schedule."""
    keys: tuple[str, ...]
    """Clips of the parts whose loss was not finite; all clips of the step if only the gradient was not."""
    terms: tuple[str, ...] = ()
    """Terms of the loss and other metrics that were not finite."""

    def __str__(self) -> str:
        more = f" and {len(self.keys) - _KEYS_SHOWN} more" if len(self.keys) > _KEYS_SHOWN else ""
        clips = ", ".join(self.keys[:_KEYS_SHOWN]) or "unknown"
        terms = f" (not finite: {', '.join(self.terms)})" if self.terms else ""
        return (
            f"step {self.step}: loss {self.loss:g}{terms}, gradient norm {self.grad_norm:g}, learning rate "
            f"{self.learning_rate:.3g}, clips {clips}{more}"
        )


def why_diverged(state: RunTotals, streak: Sequence[BadStep], saved: Path | None) -> str:
    """Return what is said of a run whose last steps (`streak`), all steps, or weights are not finite."""
    some = f"{len(streak)} steps in a row" if streak else f"{state.bad_steps} of {state.step} steps"
    which = f"all {state.step} steps" if state.bad_steps == state.step else some
    where = "" if saved is None else f"The weights from before these steps are saved in {saved}. "
    steps = "".join(f"\n  {bad}" for bad in streak)
    return (
        f"{which} had a loss or gradient that is not finite. {where}Check the clips, lower optimizer.learning_rate, or "
        f"set optimizer.clip_norm{':' if steps else ''}{steps}"
    )


class RunLog:
    """The files that the main process writes while it trains."""

    def __init__(
        self, out: Path, run: RunSettings, resumed_from: int | None, wandb_id: str | None, recipe: Mapping[str, Any]
    ):
        """Open the log.

        Args:
            out: folder of the run.
            run: which curves to write.
            resumed_from: step of the state that the run resumes from; later lines are removed. None starts a new log.
            wandb_id: identifier of the run at Weights & Biases.
            recipe: settings of the run.

        Raises:
            MissingExtraError: TensorBoard or Weights & Biases is requested and not installed.
        """
        self.out = out
        self.lost = 0
        """Lines, curves or pictures that could not be written."""
        self.earlier: Path | None = None
        """Where the log of a session is that ended before there was a state."""
        self.has_pictures = any((out / "pictures").glob("*.png"))
        """Whether this run has drawn pictures."""
        self.skipped: set[str] = set()
        self._last_line_torn = False
        self._tensorboard = _open_tensorboard(out / "tensorboard", resumed_from) if run.tensorboard else None
        self._wandb = _open_wandb(run.wandb, out, wandb_id, recipe) if run.wandb else None
        if resumed_from is not None:
            _truncate(out / LOG_FILE, resumed_from)
            self.skipped = _read_skipped(out / SKIPPED_FILE)
        else:
            (out / SKIPPED_FILE).unlink(missing_ok=True)
            if (out / LOG_FILE).exists():
                number = 1 + len([*out.glob(EARLIER_LOGS)])
                self.earlier = (out / LOG_FILE).rename(out / EARLIER_LOGS.replace("*", str(number)))

    @property
    def wandb_id(self) -> str | None:
        """Identifier of the run at Weights & Biases."""
        return self._wandb.id if self._wandb is not None else None

    def event(self, event: str, step: int, values: Mapping[str, Any] | None = None) -> None:
        """Append a line; the numbers of a `train` or `validation` line also become curves."""
        values = values or {}
        own = {"event": event, "step": step, "time": round(time.time(), 3)}
        line = json_text(finite(own | dict(values) | own)) + "\n"  # own keys come first and cannot be overwritten

        def append() -> None:
            check_before_replacing()
            with (self.out / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(("\n" if self._last_line_torn else "") + line)

        self._last_line_torn = not self._try(append)
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
        """List clips (key, reason) that could not be used, each once."""
        new = {name: reason for key, reason in clips if (name := utf8_text(key)) not in self.skipped}
        if not new:
            return
        self.skipped |= new.keys()

        def append() -> None:
            path = self.out / SKIPPED_FILE
            is_new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(["key", "reason"])
                writer.writerows(map(utf8_cells, new.items()))

        self._try(append)

    def picture(self, name: str, figure: Any, step: int) -> None:
        """Save a matplotlib figure as `pictures/step-N-NAME.png`, and add it to TensorBoard."""

        self.has_pictures = True

        def write() -> None:
            path = self.out / "pictures" / f"step-{step:08d}-{name}.png"
            path.parent.mkdir(exist_ok=True)
            with styled():
                save_figure(figure, path, dpi=110)
            if self._tensorboard is not None:
                self._tensorboard.add_figure(name, figure, step)

        self._try(write)

    def close(self) -> None:
        """Flush and close TensorBoard and Weights & Biases."""
        if self._tensorboard is not None:
            self._try(self._tensorboard.close)
        if self._wandb is not None:
            self._wandb.finish()

    def _try(self, write: Callable[[], object]) -> bool:
        """Call `write`; return False if the disk refused it."""
        try:
            write()
        except OSError:
            self.lost += 1
            return False
        return True


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, without one that is incomplete."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # is being written, or a killed run or a full disk left it
    return lines


def metrics_of_line(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the loss and metrics of a `train` or `validation` line; those that were not finite are left out."""
    return {name: value for name, value in line.items() if name not in LOG_COLUMNS and value is not None}


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory so far: the GPU's, or this process's; None where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _truncate(path: Path, step: int) -> None:
    """Keep only complete lines, and those of steps up to this one."""
    if not path.exists():
        return
    kept = [
        json_text(record) + "\n"
        for record in read_log(path)
        if record.get("step", 0) <= step and record.get("event") != "end"
    ]
    write_atomically(path, lambda target: target.write_text("".join(kept), encoding="utf-8"))


def _read_skipped(path: Path) -> set[str]:
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {row[0] for row in list(csv.reader(file))[1:] if row}


def _open_tensorboard(folder: Path, resumed_from: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError('TensorBoard is not installed: pip install "ssamba[train]"') from None
    return SummaryWriter(str(folder), purge_step=(resumed_from or 0) + 1)


def _open_wandb(project: str | None, out: Path, run_id: str | None, recipe: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise MissingExtraError(
            'the client of Weights & Biases is not installed: pip install "ssamba[wandb]" '
            "(or leave `wandb` out of the recipe)"
        ) from None
    return wandb.init(project=project, dir=str(out), id=run_id, resume="allow", config=dict(recipe), name=out.name)
