"""The training loop: one step after the other, from a task's batches to a released model, whatever happens on the way.

    for each step:  rate from the schedule -> loss and gradient of each process's share -> mean over the global batch
                    -> finite? clip, update, average : leave it out -> log, validate, save

The step's gradient is the mean over all terms of all shares and accumulated batches, so it does not depend on how many
processes there are or how a batch is cut: with w_i terms and mean loss l_i in share i,

    loss = sum_i w_i l_i / sum_i w_i

Everything that resuming needs is in the saved state, and what is random follows from (seed, step): a run that was killed
and resumed equals the uninterrupted one, bit for bit in one process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import nn

from ssamba.errors import ConfigError, SsambaError, TrainingDivergedError, TrainingError
from ssamba.randomness import seed_generators
from ssamba.training.averaging import Averages, evaluating
from ssamba.training.distributed import World, init_distributed, wrap_ddp
from ssamba.training.guard import BadStep, FiniteGuard, StopRequest, stop_on_signals
from ssamba.training.optim import build_optimizer, set_learning_rate
from ssamba.training.precision import chosen_precision
from ssamba.training.progress import TrainingProgress, TrainingReport, Window, peak_memory_bytes
from ssamba.training.release import MODEL_FOLDER, release
from ssamba.training.run_io import RunLog
from ssamba.training.schedule import Schedule
from ssamba.training.settings import OptimizerSettings, RunSettings, ScheduleSettings
from ssamba.training.state import STATES_FOLDER, StateFolder, check_plain, on_cpu
from ssamba.training.step import accumulate_gradients, agree, keys_of_bad_shares, scale_gradients
from ssamba.training.stream import BatchStream
from ssamba.training.task import StepContext, StepOutcome, Task

__all__ = ["StepContext", "StepOutcome", "Task", "TrainingProgress", "TrainingReport", "train"]

_VALIDATION, _PICTURES = 1_000_000, 1_000_001  # parts of a step for `seed_generators`, beyond any batch's


def train(
    task: Task,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    run: RunSettings,
    out: str | Path,
    *,
    resume: bool | Literal["auto"] = False,
    recipe: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> TrainingReport:
    """Train a task's model; under `torchrun`, together with the other processes.

    Args:
        task: the model, its data and its loss.
        optimizer: how gradients change weights.
        schedule: the learning rate over the run.
        run: length, precision, what is written when.
        out: folder for `checkpoints/`, `model/` (the trained model), `best/` (the one with the best validation),
            `log.jsonl`, `skipped.csv`, `report.json`, `pictures/` and `tensorboard/`.
        resume: go on from the last saved state; "auto" does so if there is one.
        recipe: further settings of the experiment as plain values, saved with the states and compared when resuming.
        device: where to compute; None is a GPU if there is one.
        on_progress: called in the first process after each step.

    Returns:
        The report, also when SIGTERM or SIGINT ended the run after a step: its state is then saved.

    Raises:
        ConfigError: the settings contradict the model, or those of the run to be resumed (every key is named).
        CheckpointError: there is nothing to resume, or something already where a fresh run was asked for.
        TrainingDivergedError: too many steps in a row were not finite; the state before them is saved.
        TrainingError: the task breaks its promises, or the last state or the model could not be written.
        MissingExtraError: TensorBoard or Weights & Biases is not installed.
    """
    settings: dict[str, Any] = {
        "optimizer": optimizer.model_dump(mode="json"),
        "schedule": schedule.model_dump(mode="json"),
        "run": run.model_dump(mode="json"),
        "task": json.loads(json.dumps(dict(recipe or {}))),
    }
    with init_distributed(device) as world, stop_on_signals() as stop:
        trainer = _Trainer(task, optimizer, schedule, run, Path(out), settings, world, stop, on_progress)
        trainer.start(resume)
        try:
            return trainer.run_to_end()
        finally:
            trainer.close()


class _Trainer:
    """One process's part of a run."""

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerSettings,
        schedule: ScheduleSettings,
        run: RunSettings,
        out: Path,
        recipe: Mapping[str, Any],
        world: World,
        stop: StopRequest,
        on_progress: Callable[[TrainingProgress], None] | None,
    ):
        if schedule.kind == "plateau" and run.validate_every is None:
            raise ConfigError("schedule.kind 'plateau' follows validations: set run.validate_every")
        self.task, self.run, self.out, self.recipe = task, run, out, recipe
        self.world, self.stop, self.on_progress = world, stop, on_progress
        self.precision = chosen_precision(run.precision, world.device)
        self.optimizer_settings = optimizer
        self.best_name, self.best_way = task.best_metric
        self.schedule = Schedule(schedule, self.best_way)
        self.model = task.model.to(world.device).train()
        self.optimizer = build_optimizer(self.model, optimizer)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        compiled: nn.Module = torch.compile(self.model) if run.compile else self.model  # type: ignore[assignment]
        self.stepped = wrap_ddp(compiled, world, run.find_unused_parameters)
        self.averages = Averages(self.model, run.ema_decay, run.average_epochs)
        self.guard = FiniteGuard(run.bad_steps_limit)
        self.states = StateFolder(out / STATES_FOLDER, run.keep_last)
        self.stream = BatchStream(task, run.accumulate, world)
        lengths = (run.steps, self.stream.steps_in(run.epochs) if run.epochs else None)
        self.total_steps = min((length for length in lengths if length is not None), default=None)
        self.progress = TrainingProgress(total_steps=self.total_steps)
        self.window = Window()
        self.log: RunLog | None = None
        self.step = 0
        self.elapsed_s = 0.0  # over all sessions, as agreed at the last step
        self.best: tuple[int, float] | None = None
        self.kept_best: int | None = None  # step of the best state that is on disk
        self.validated_at: int | None = None
        self.validation_due = False
        self.resumed_from: int | None = None
        self.saved: tuple[int, Path] | None = None
        self.wandb_id: str | None = None

    def start(self, resume: bool | Literal["auto"]) -> None:
        """Load what is to be resumed, the same in every process, and open the log."""
        check_plain(self.task.state_dict(), "task.state_dict()")
        found: tuple[Path, dict[str, Any]] | None = None
        error: Exception | None = None
        if self.world.is_main:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                self.states.clean()
                found = self.states.newest(self.recipe, resume)
            except (SsambaError, OSError) as problem:
                error = problem
        found, error = self.world.broadcast((found, error))
        if error is not None:
            raise error
        if found is not None:
            self._restore(*found)
        elif self.world.size > 1:
            self.task.load_state_dict(self.world.broadcast(on_cpu(self.task.state_dict())))
        if self.world.is_main:
            self.log = RunLog(self.out, self.run, self.step, self.wandb_id, self.recipe)
            if self.states.damaged:
                self.progress.message = "; ".join([*self.states.damaged, f"going on from step {self.step}"])
            values = {"processes": self.world.size, "device": str(self.world.device), "precision": self.precision}
            self.log.event("start", self.step, {**values, "damaged": self.states.damaged})
        self.session_step, self.session_elapsed_s = self.step, self.elapsed_s
        self.session_started_s = self.window_started_s = self.saved_s = time.monotonic()

    def run_to_end(self) -> TrainingReport:
        """Steps until the run's length is reached or a signal comes."""
        run = self.run
        signal: str | None = None
        if self.step == 0 and run.validate_first:
            self._save_if(self._validate())
        if self.validation_due and not self._is_done():  # a signal came between a step and its validation
            self._save_if(self._validate())
        while not self._is_done():
            signal, save_is_due = self._one_step()
            epoch_ended = self.stream.epoch_ended()
            if epoch_ended:
                self.averages.after_epoch(self.model, self.stream.epoch)
            self.validation_due = epoch_ended if run.validate_every == "epoch" else self._every(run.validate_every)
            self._note_progress()
            if self.guard.is_over:
                self._give_up()
            if signal is not None or self._is_done():
                break
            is_best = self.validation_due and self._validate()
            self._save_if(is_best, save_is_due or self._every(run.checkpoint_every_steps))
            if self._every(run.log_every):
                self._log_window()
            if self._every(run.picture_every):
                self._draw()
            self._show()
        return self._finish(signal)

    def close(self) -> None:
        """End what runs beside the loop."""
        self.stream.close()
        self.stepped = self.model  # the wrapper would keep the processes' group, with its threads, beyond the run
        if self.log is not None:
            self.log.close()

    # One step.

    def _one_step(self) -> tuple[str | None, bool]:
        """Update the weights once. The signal that asks to stop, if any, and whether the clock asks to save."""
        run, world, step = self.run, self.world, self.step
        factor = self.schedule.factor(step, self.stream.epoch, self.total_steps, self._budget_share())
        rate = self.optimizer_settings.learning_rate * factor
        set_learning_rate(self.optimizer, rate)
        context = StepContext(step, self.stream.epoch, run.seed, world.device, self.precision)
        seed_generators(run.seed, step, 0, world.rank)
        batches = self.stream.next_step()
        self.optimizer.zero_grad(set_to_none=True)
        outcomes = accumulate_gradients(self.task, self.stepped, batches, context, world)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        now_s = time.monotonic()
        agreed = agree(
            outcomes,
            gradients,
            world,
            signal=self.stop.signal,
            elapsed_s=self.session_elapsed_s + now_s - self.session_started_s,
            save_is_due=now_s - self.saved_s > (run.checkpoint_every_minutes or float("inf")) * 60,
        )
        usable = agreed.weight > 0 and agreed.is_finite
        if usable:
            scale_gradients(gradients, agreed, world, self.optimizer_settings.clip_norm)
            self.optimizer.step()
            self.averages.after_step(self.model)
            self.task.after_step(step + 1)
            self.guard.good()
        self.step, self.elapsed_s = step + 1, agreed.elapsed_s
        self.progress.loss, self.progress.learning_rate, self.progress.grad_norm = agreed.loss, rate, agreed.grad_norm
        self.window.add(outcomes, usable)
        if not usable and agreed.weight > 0:
            keys = keys_of_bad_shares(outcomes, world)
            self._leave_out(BadStep(step, agreed.loss, agreed.grad_norm, rate, keys))
        return agreed.signal, agreed.save_is_due

    def _leave_out(self, bad: BadStep) -> None:
        self.guard.bad(bad)
        if self.log is not None:
            self.log.event("bad_step", self.step, {**asdict(bad), "keys": list(bad.keys)})
        self.progress.message = f"left out: not finite at {bad}"

    def _give_up(self) -> NoReturn:
        self._log_window()
        self._save(prune=False)
        where = f"The weights of before are saved in {self.saved[1]}. " if self.saved is not None else ""
        raise TrainingDivergedError(
            f"{len(self.guard.row)} steps in a row had a loss or gradient that is not finite. {where}Look at the clips, "
            f"lower optimizer.learning_rate, or set optimizer.clip_norm:\n  {self.guard.report()}"
        )

    def _is_done(self) -> bool:
        if self.run.patience is not None and self.schedule.stale >= self.run.patience:
            return True
        return self._budget_share() >= 1 or (self.total_steps is not None and self.step >= self.total_steps)

    def _budget_share(self) -> float:
        return self.elapsed_s / (self.run.max_minutes * 60) if self.run.max_minutes else 0.0

    def _every(self, steps: int | Literal["epoch"] | None) -> bool:
        return isinstance(steps, int) and self.step % steps == 0

    # What happens between steps.

    @contextmanager
    def _beside_training(self) -> Iterator[None]:
        """Time that does not count in clips per second."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.window_started_s += time.monotonic() - began_s

    def _released_weights(self) -> AbstractContextManager[nn.Module]:
        """The model as it is released: with the mean over epochs, the EMA, or its own weights."""
        return evaluating(self.model, self.averages.released())

    def _validate(self) -> bool:
        """Whether this is the best so far."""
        self._log_window()
        with self._beside_training(), self._released_weights() as model:
            seed_generators(self.run.seed, 0, _VALIDATION, self.world.rank)
            figures = self.world.broadcast({name: float(v) for name, v in self.task.validate(model).items()})
        if self.best_name not in figures:
            raise TrainingError(
                f"the task's best_metric is {self.best_name!r}, but its validation gave {', '.join(figures) or 'nothing'}"
            )
        self.validated_at, self.validation_due = self.step, False
        self.progress.validation = figures
        value = figures[self.best_name]
        self.schedule.validated(value, self.step)
        if self.log is not None:
            self.log.event("validation", self.step, figures)
        sign = 1 if self.best_way == "max" else -1
        is_best = self.best is None or sign * value >= sign * self.best[1]  # of equals the later, which has seen more
        if is_best and value == value:
            self.best = (self.step, value)
            return True
        return False

    def _draw(self) -> None:
        if self.log is None:
            return
        with self._beside_training(), self._released_weights() as model:
            seed_generators(self.run.seed, 0, _PICTURES)
            for name, figure in self.task.pictures(model, self.step).items():
                self.log.picture(name, figure, self.step)

    def _log_window(self) -> None:
        """Write a line for the steps since the last one."""
        if not self.window.steps:
            return
        self.window.wait_s, self.stream.wait_s = self.stream.wait_s, 0.0
        total = self.window.over_all(self.world)
        self.window = Window()
        seconds = max(time.monotonic() - self.window_started_s, 1e-9)
        self.window_started_s += seconds
        self.progress.take(total, seconds)
        if self.log is None:
            return
        self.log.skip(total.skipped)
        self.progress.skipped = len(self.log.skipped)
        memory = peak_memory_bytes(self.world.device)
        values = {**total.means(), **self.progress.figures(), "steps": total.steps, "peak_memory_bytes": memory}
        self.log.event("train", self.step, values)

    def _note_progress(self) -> None:
        self.progress.step, self.progress.epoch, self.progress.elapsed_s = self.step, self.stream.epoch, self.elapsed_s
        self.progress.bad_steps = self.guard.count

    def _show(self) -> None:
        progress = self.progress
        progress.estimate(self.step - self.session_step, self.elapsed_s - self.session_elapsed_s, self.run.max_minutes)
        if self.on_progress is not None and self.world.is_main:
            self.on_progress(progress)
            progress.message = None

    # States.

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.averages.load_state_dict(state["averages"])
        self.task.load_state_dict(state["task"])
        self.step = self.resumed_from = state["step"]
        self.stream = BatchStream(self.task, self.run.accumulate, self.world, state["epoch"], state["batch"])
        self.elapsed_s = state["elapsed_s"]
        self.best = None if state["best"] is None else (state["best"][0], state["best"][1])
        self.kept_best, self.validated_at = state["kept_best"], state["validated_at"]
        self.validation_due = state["validation_due"]
        self.guard.count = state["bad_steps"]
        self.progress.clips, self.progress.audio_s = state["clips"], state["audio_s"]
        self.progress.validation = state["validation"]
        self.wandb_id = state["wandb_id"]
        self._note_progress()
        self.saved = (self.step, folder)

    def _state(self, kept_best: int | None) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.stream.epoch,
            "batch": self.stream.batch,
            "elapsed_s": self.elapsed_s,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "averages": self.averages.state_dict(),
            "task": dict(self.task.state_dict()),
            "best": self.best,
            "kept_best": kept_best,
            "validated_at": self.validated_at,
            "validation_due": self.validation_due,
            "validation": dict(self.progress.validation),
            "clips": self.progress.clips,
            "audio_s": self.progress.audio_s,
            "bad_steps": self.guard.count,
            "wandb_id": None if self.log is None else self.log.wandb_id,
        }

    def _save_if(self, is_best: bool, is_due: bool = False) -> None:
        if is_best or is_due:
            self._log_window()
            self._save(is_best=is_best)

    def _save(self, *, is_best: bool = False, prune: bool = True) -> None:
        """Save the state, or count that it could not be; training goes on either way."""
        self.saved_s = time.monotonic()
        if self.log is None:
            return
        kept_best = self.step if is_best else self.kept_best
        with self._beside_training():
            state = self._state(kept_best)
            check_plain(state, "the state")
            meta = {"recipe": self.recipe, "validation": dict(self.progress.validation), "best": self.best}
            try:
                path = self.states.save(self.step, state, meta, self._write_model, best_step=kept_best, prune=prune)
            except OSError as error:
                self.progress.failed_saves += 1
                self.progress.message = f"the state of step {self.step} could not be saved ({error}); training goes on"
                self.log.event("save_failed", self.step, {"error": str(error)})
                return
        self.saved, self.kept_best = (self.step, path), kept_best

    def _write_model(self, folder: Path) -> None:
        with self._released_weights() as model:
            self.task.save(model, folder)

    def _finish(self, signal: str | None) -> TrainingReport:
        """Validate, save, and write the trained model; after a signal only save."""
        is_best = signal is None and self.validated_at != self.step and self._validate()
        self._log_window()
        already = self.saved is not None and self.saved[0] == self.step
        if is_best or not already:
            self._save(is_best=is_best)
        if signal is None and self._every(self.run.picture_every):
            self._draw()
        self._show()
        report = self.progress.report(
            signal or "finished",
            resumed_from=self.resumed_from,
            best=self.best,
            peak_memory_bytes=peak_memory_bytes(self.world.device),
            last_state=None if self.saved is None else self.saved[1],
            model=None if signal else self.out / MODEL_FOLDER,
        )
        if self.log is None:
            return report
        self.log.event("end", self.step, {"stopped": report.stopped})
        last = "there is no saved state" if self.saved is None else f"the last saved state is {self.saved[1]}"
        best = None if self.kept_best is None else self.states.path(self.kept_best) / MODEL_FOLDER
        try:
            release(self.out, report, self._write_model, best)
        except OSError as error:
            raise TrainingError(f"{self.out} cannot be written ({error}); {last}: make room, and resume") from None
        if self.saved is None or self.saved[0] != self.step:
            raise TrainingError(f"the state of step {self.step} could not be saved; {last}: make room, and resume")
        return report
