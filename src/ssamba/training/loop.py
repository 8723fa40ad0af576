"""The training loop: from a task's batches to a released model.

    for each step:  learning rate -> loss and gradient of this rank's parts of the batches -> all-reduce
                    -> if finite: scale to the mean, clip, update, average -> log, validate, save

The gradient of a step is the mean over all terms of all parts (of ranks and accumulated batches), so it does not depend
on the number of processes or on how a batch is split. With w_i terms and mean loss l_i in part i,

    loss = sum_i w_i l_i / sum_i w_i

Each part adds the gradient of w_i l_i; the sum is divided by sum_i w_i when that is known. The saved state holds
everything that resuming needs, and all randomness follows from (seed, step): a run that was killed and resumed equals
the uninterrupted one, bit for bit on one process.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from ssamba.checkpoint.files import write_json
from ssamba.checkpoint.names import MODEL_FOLDER, STATES_FOLDER
from ssamba.cores import say_if_spinning
from ssamba.errors import ConfigError, MissingExtraError, SsambaError, TrainingDivergedError, TrainingError
from ssamba.files import check_before_replacing
from ssamba.locks import OutputLock
from ssamba.randomness import seed_generators
from ssamba.training.averaging import Averages, evaluation_mode
from ssamba.training.distributed import (
    StepTotals,
    StopRequest,
    World,
    backward_zeros,
    init_distributed,
    is_restarted,
    no_sync,
    stop_on_signals,
    wrap_ddp,
)
from ssamba.training.optim import Schedule, build_optimizer, set_learning_rate
from ssamba.training.run_io import (
    REPORT_FILE,
    BadStep,
    RunLog,
    RunTotals,
    TrainingProgress,
    TrainingReport,
    Window,
    peak_memory_bytes,
    why_diverged,
    why_early,
)
from ssamba.training.settings import OptimizerSettings, RunSettings, ScheduleSettings, saved_settings
from ssamba.training.state import (
    BEST_FOLDER,
    StateFolder,
    check_output,
    check_plain,
    move_run_aside,
    on_cpu,
    replace_folder,
)
from ssamba.training.task import BatchStream, StepContext, StepOutcome, Task, choose_precision

_VALIDATION, _PICTURES = 1_000_000, 1_000_001  # numbers of parts for `seed_generators`, larger than any batch's
_FIRST_STATE_S = 10.0
_SAVING_SHARE = 0.05  # of the time between two states that saving may take
STOPPED = "stopped"
"""Value of `TrainingReport.stopped` if `on_progress` ended the session."""
OnStep: TypeAlias = Callable[[TrainingProgress], "bool | None"]
_log = logging.getLogger(__name__)


def train(
    task: Task,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    run: RunSettings,
    out: str | Path,
    *,
    overwrite: bool = False,
    recipe: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    on_progress: OnStep | None = None,
    lock: OutputLock | None = None,
    notes: Sequence[str] = (),
    task_defaults: Mapping[str, Any] | None = None,
) -> TrainingReport:
    """Train a task's model, or resume the run in `out`; under `torchrun`, on all its processes together.

    Args:
        task: the model, its data and its loss.
        optimizer: how gradients change the weights.
        schedule: the learning rate over the run.
        run: length, precision, checkpoints and logs.
        out: folder for `checkpoints/`, `model/` (the trained model), `best/` (the model with the best validation),
            `log.jsonl`, `skipped.csv`, `report.json`, `pictures/` and `tensorboard/`.
        overwrite: start anew, and move what an earlier run wrote to a folder beside it.
        recipe: other settings of the experiment as plain values; they are saved and compared when resuming.
        device: where to compute; None means a GPU if there is one.
        on_progress: called on the main process after each step; returning False stops.
        lock: the lock of the output, which the caller holds on the main process.
        notes: what the caller found wrong with the recordings as a whole, for the report.
        task_defaults: defaults of the settings in `recipe`, for states from before some of them existed.

    Returns:
        The report, also when SIGTERM, SIGINT or `on_progress` ended the run after a step; its state is then saved.

    Raises:
        ConfigError: the settings contradict the model.
        OtherSettingsError: they differ from those of the run in `out`; every key is named.
        CheckpointError: no saved state of that run can be loaded, or it has a model and no state.
        TrainingDivergedError: too many steps in a row were not finite; the state before them is saved.
        TrainingError: the task breaks its interface, or the last state or the model could not be written.
        LockLostError: another process has taken over the output.
        MissingExtraError: TensorBoard or Weights & Biases is requested and not installed.
    """
    settings = saved_settings(optimizer, schedule, run, recipe or {})
    with init_distributed(device) as world, stop_on_signals() as stop:
        if world.device.type == "cpu":
            say_if_spinning(torch.get_num_threads())
        trainer = _Trainer(task, optimizer, schedule, run, Path(out), settings, world, stop, on_progress, lock, notes)
        trainer.start(overwrite and not is_restarted(), task_defaults)
        try:
            return trainer.run_to_end()
        finally:
            trainer.close()


class _Trainer:
    """One rank's part of a run."""

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerSettings,
        schedule: ScheduleSettings,
        run: RunSettings,
        out: Path,
        settings: Mapping[str, Any],
        world: World,
        stop: StopRequest,
        on_progress: OnStep | None,
        lock: OutputLock | None,
        notes: Sequence[str],
    ):
        if schedule.kind == "plateau" and run.validate_every is None:
            raise ConfigError("schedule.kind 'plateau' follows validations: set run.validate_every")
        self.task, self.run, self.out, self.settings = task, run, out, settings
        self.world, self.stop, self.on_progress, self.lock = world, stop, on_progress, lock
        self.notes = tuple(notes)
        self.precision = choose_precision(run.precision, world.device)
        self.best_metric, best_mode = task.best_metric
        self.model = task.model.to(world.device).train()
        compiled: nn.Module = torch.compile(self.model) if run.compile else self.model  # type: ignore[assignment]
        self.wrapped_model = wrap_ddp(compiled, world, run.find_unused_parameters)
        self.optimizer_settings = optimizer
        self.optimizer = build_optimizer(self.model, optimizer)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.schedule = Schedule(schedule, best_mode)
        self.averages = Averages(self.model, run.ema_decay, run.average_epochs)
        self.stream = BatchStream(task, run.accumulate, world)
        self.states = StateFolder(out / STATES_FOLDER, run.keep_last)
        self.log: RunLog | None = None  # only on the main process
        lengths = (run.steps, self.stream.steps_in(run.epochs) if run.epochs else None)
        self.total_steps = min((length for length in lengths if length is not None), default=None)
        self.progress = TrainingProgress(total_steps=self.total_steps)
        self.window = Window()
        self.bad_streak: list[BadStep] = []  # since the last good step
        self.best: tuple[int, float] | None = None
        self.best_saved_step: int | None = None
        self.validated_at: int | None = None
        self.validation_due = False
        self.resumed_from: int | None = None
        self.moved_to: Path | None = None
        self.saved: tuple[int, Path] | None = None
        self.wandb_id: str | None = None
        self.save_s, self.validation_s = 0.0, math.inf  # how long the last ones took; math.inf: not known

    @property
    def step(self) -> int:
        return self.progress.step

    def start(self, overwrite: bool, task_defaults: Mapping[str, Any] | None) -> None:
        """Load the state to resume from, the same on all ranks, and open the log."""
        check_plain(self.task.state_dict(), "task.state_dict()")
        found: tuple[Path, dict[str, Any]] | None = None
        error: Exception | None = None
        if self.world.is_main:
            try:
                if overwrite:
                    self.moved_to = move_run_aside(self.out)
                check_output(self.out)
                check_before_replacing()
                self.out.mkdir(parents=True, exist_ok=True)
                self.states.clean()
                found = self.states.newest(self.settings, task_defaults)
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
            self.log = RunLog(self.out, self.run, self.resumed_from, self.wandb_id, self.settings)
            if self.log.earlier is not None:
                _log.warning(
                    "%s holds no saved state to resume from: starting from step 0; the earlier log is kept as %s",
                    self.out,
                    self.log.earlier.name,
                )
            if self.states.damaged:
                _log.warning("%s; resuming from step %d", "; ".join(self.states.damaged), self.step)
            values = {"processes": self.world.size, "device": str(self.world.device), "precision": self.precision}
            values |= {"settings": self.settings, "data": self.task.state_dict().get("data")}
            self.log.event("start", self.step, {**values, "damaged": self.states.damaged})
        self.session_step, self.session_elapsed_s = self.step, self.progress.elapsed_s
        self.session_started_s = self.window_started_s = self.last_save_s = self.step_began_s = time.monotonic()

    def run_to_end(self) -> TrainingReport:
        """Train until the run reaches its length or a signal arrives."""
        run = self.run
        stop_signal: str | None = None
        if self.step == 0 and run.validate_first:
            self._save_if(self._validate())
        if self.validation_due and not self._is_done():  # the last session ended between a step and its validation
            self._save_if(self._validate())
        while not self._is_done():
            if self.lock is not None:
                self.lock.check()
            stop_signal, save_is_due = self._train_step()
            epoch_ended = self.stream.next_epoch_if_ended()
            if epoch_ended:
                self.progress.epoch = self.stream.epoch
                self.averages.after_epoch(self.model, self.stream.epoch)
            self.validation_due = epoch_ended if run.validate_every == "epoch" else self._every(run.validate_every)
            if len(self.bad_streak) > run.bad_steps_limit:
                self._raise_diverged()
            if stop_signal is not None or self._is_done():
                break
            is_best = self.validation_due and self._validate()
            self._save_if(is_best, save_is_due or self._every(run.checkpoint_every_steps))
            if self._every(run.log_every):
                self._log_window()
            self._draw_pictures()
            self._report_progress()
            if self.world.size == 1 and self.stop.signal == STOPPED:  # several processes agree in the next step
                stop_signal = self.stop.signal
                break
        bad, is_finite = self.progress.bad_steps, nn.utils.get_total_norm(self.parameters).isfinite()
        if stop_signal is None and bad and (bad == self.step or not is_finite):
            self._raise_diverged()  # a short run, too, must not look as if it had learned something
        return self._finish(stop_signal)

    def close(self) -> None:
        """Close log and data, and drop the DDP model, which would keep the process group alive."""
        self.stream.close()
        self.wrapped_model = self.model
        if self.log is not None:
            self.log.close()

    # One step.

    def _train_step(self) -> tuple[str | None, bool]:
        """Update the weights once. Return the signal that asks to stop, if any, and whether it is time to save."""
        run, world, progress, step, epoch = self.run, self.world, self.progress, self.step, self.stream.epoch
        self.step_began_s = time.monotonic()
        factor = self.schedule.factor(step, epoch, self.total_steps, self._budget_share())
        learning_rate = self.optimizer_settings.learning_rate * factor
        set_learning_rate(self.optimizer, learning_rate, step)
        seed_generators(run.seed, step, 0, world.rank)
        batches = self.stream.next_step()
        self.optimizer.zero_grad(set_to_none=True)
        outcomes = self._backward(batches, StepContext(step, epoch, run.seed, world.device, self.precision))
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        totals = self._all_reduce(outcomes, gradients)
        is_finite = math.isfinite(totals.loss) and math.isfinite(totals.grad_norm)
        usable = totals.weight > 0 and is_finite
        if usable:
            scale = world.size / totals.weight  # from DDP's mean over ranks to the mean over terms
            clip_norm = self.optimizer_settings.clip_norm
            if clip_norm is not None and totals.grad_norm > clip_norm:
                scale *= clip_norm / totals.grad_norm
            if scale != 1:
                torch._foreach_mul_(gradients, scale)
            self.optimizer.step()
            self.averages.after_step(self.model)
            self.task.after_step(step + 1)
            self.bad_streak.clear()
        progress.step, progress.elapsed_s = step + 1, totals.elapsed_s
        progress.loss, progress.grad_norm, progress.learning_rate = totals.loss, totals.grad_norm, learning_rate
        self.window.add(outcomes, usable)
        if totals.weight > 0 and not is_finite:
            bad = self._bad_parts(outcomes)
            self._skip_step(BadStep(step, totals.loss, totals.grad_norm, learning_rate, *bad))
        return totals.signal, totals.save_is_due

    def _backward(self, batches: Sequence[Any], context: StepContext) -> list[StepOutcome]:
        """Accumulate the gradients of w_i l_i over this rank's parts; DDP then averages them over ranks."""
        outcomes = []
        for part, batch in enumerate(batches, start=1):
            seed_generators(context.seed, context.step, part, self.world.rank)
            is_last = part == len(batches)
            with no_sync(self.wrapped_model, not is_last):
                outcome = self.task.step_loss(self.wrapped_model, batch, context)
                loss, weight = outcome.loss, outcome.weight
                if loss is not None and weight > 0:
                    (loss * weight).backward()  # type: ignore[no-untyped-call]
                elif is_last:
                    backward_zeros(self.wrapped_model)
            outcomes.append(replace(outcome, loss=None if loss is None else loss.detach()))
        return outcomes

    def _all_reduce(self, outcomes: Sequence[StepOutcome], gradients: Sequence[Tensor]) -> StepTotals:
        """Sum terms and losses over ranks, and agree on signals and on the main process's clock.

        One small all-reduce carries everything, and one transfer brings it to the host.
        """
        world, now_s = self.world, time.monotonic()
        elapsed_s = self.session_elapsed_s + now_s - self.session_started_s
        save_is_due = self._save_is_due(within_s=now_s - self.step_began_s)  # before the next step would end
        weights = [outcome.weight for outcome in outcomes]
        is_main, received = float(world.is_main), self.stop.signal
        signals = [received == name for name in ("SIGTERM", "SIGINT", STOPPED)]
        flags = [*signals, is_main * elapsed_s, is_main * save_is_due]
        dtype = torch.float32 if world.device.type == "mps" else torch.float64
        sums = torch.tensor([sum(weights), 0.0, *flags], dtype=dtype).to(world.device)
        for outcome, weight in zip(outcomes, weights, strict=True):
            if outcome.loss is not None and weight > 0:
                sums[1] += outcome.loss.to(dtype) * weight
        world.all_reduce(sums)
        norm = nn.utils.get_total_norm(gradients).to(sums)
        weight, loss, sigterm, sigint, stopped, elapsed_s, due, grad_norm = torch.cat((sums, norm[None])).tolist()
        per_term = 1 / weight if weight else math.nan
        stop_signal = "SIGTERM" if sigterm else "SIGINT" if sigint else STOPPED if stopped else None
        return StepTotals(weight, loss * per_term, grad_norm * world.size * per_term, stop_signal, elapsed_s, bool(due))

    def _bad_parts(self, outcomes: Sequence[StepOutcome]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return clips and terms of the parts whose loss is not finite; of all parts if only the gradient is not."""
        own = [(o.loss is not None and not bool(torch.isfinite(o.loss)), tuple(o.keys), o.not_finite) for o in outcomes]
        parts = [part for rank in self.world.all_gather(own) for part in rank]
        bad = [part for part in parts if part[0]] or parts
        return tuple(key for _, keys, _ in bad for key in keys), tuple(
            dict.fromkeys(t for *_, each in bad for t in each)
        )

    def _skip_step(self, bad: BadStep) -> None:
        self.progress.bad_steps += 1
        self.bad_streak.append(bad)
        if self.log is not None:
            self.log.event("bad_step", self.step, {**asdict(bad), "keys": list(bad.keys), "terms": list(bad.terms)})
        if self.world.is_main:
            _log.warning("skipped a step that was not finite: %s", bad)

    def _raise_diverged(self) -> NoReturn:
        self._log_window()
        self._save(prune=False)
        raise TrainingDivergedError(why_diverged(self.progress, self.bad_streak, self.saved[1] if self.saved else None))

    def _is_done(self) -> bool:
        if self.run.patience is not None and self.schedule.stale >= self.run.patience:
            return True
        return self._budget_share() >= 1 or (self.total_steps is not None and self.step >= self.total_steps)

    def _budget_share(self) -> float:
        return self.progress.elapsed_s / (self.run.max_minutes * 60) if self.run.max_minutes else 0.0

    def _every(self, steps: int | Literal["epoch"] | None) -> bool:
        return isinstance(steps, int) and self.step % steps == 0

    # Between steps: validation, pictures, log.

    @contextmanager
    def _excluded_from_speed(self) -> Iterator[None]:
        """Exclude the time spent inside from clips per second."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.window_started_s += time.monotonic() - began_s

    @contextmanager
    def _released_model(self) -> Iterator[nn.Module]:
        """Yield the model as it is validated and released, with averaged weights if there are any."""
        with self._excluded_from_speed(), evaluation_mode(self.averages.released(self.model)) as model:
            yield model

    def _validate(self) -> bool:
        """Validate; return whether this is the best validation so far, equal to it, or within its standard error.

        In fine-tuning, `choice.metric` (`finetuning/recipe.py` `ChoiceSettings`) names the metric that is compared, and
        `choice.state` whether `finetuning/run.py` `_test` uses the best state (the default) or the last one.
        """
        self._log_window()
        if self.step and self._save_is_due(within_s=self.validation_s):
            self._save()
        began_s = time.monotonic()
        with self._released_model() as model:
            seed_generators(self.run.seed, 0, _VALIDATION, self.world.rank)
            metrics = self.world.broadcast({name: float(v) for name, v in self.task.validate(model).items()})
        if self.best_metric not in metrics:
            raise TrainingError(
                f"the task's best_metric is {self.best_metric!r}, but its validation gave "
                f"{', '.join(metrics) or 'nothing'}"
            )
        self.validation_s = time.monotonic() - began_s
        self.validated_at, self.validation_due = self.step, False
        self.progress.validation = metrics
        value = metrics[self.best_metric]
        is_kept = self.schedule.validated(value, self.step, metrics.get(f"{self.best_metric}_error", 0.0))
        if self.log is not None:
            self.log.event("validation", self.step, metrics)
            found = ", ".join(f"{name} {metric:.4f}" for name, metric in metrics.items())
            _log.debug("step %d, held out in %.1f s: %s", self.step, self.validation_s, found)
        if is_kept:
            self.best = (self.step, value)
        return is_kept

    def _draw_pictures(self) -> None:
        """Draw pictures if it is time to; the first ones with the first validation."""
        if self.log is None or self.run.picture_every is None:
            return
        is_first = self.validated_at == self.step and not self.log.has_pictures
        if not is_first and not self._every(self.run.picture_every):
            return
        with self._released_model() as model:
            seed_generators(self.run.seed, 0, _PICTURES)
            try:
                figures = self.task.pictures(model, self.step)
            except MissingExtraError as error:
                _log.warning("%s; training continues without pictures", error)
                return
            for name, figure in figures.items():
                self.log.picture(name, figure, self.step)

    def _log_window(self) -> None:
        """Write a line of the log for the steps since the last one."""
        if not self.window.steps:
            return
        self.window.wait_s, self.stream.wait_s = self.stream.wait_s, 0.0
        total = self.window.over_all(self.world)
        self.window = Window()
        seconds = max(time.monotonic() - self.window_started_s, 1e-9)
        self.window_started_s += seconds
        self.progress.add_window(total, seconds)
        if self.log is None:
            return
        self.log.skip(total.skipped)
        self.progress.skipped = len(self.log.skipped)
        memory = peak_memory_bytes(self.world.device)
        values = {**total.means(), **self.progress.log_values(), "steps": total.steps, "peak_memory_bytes": memory}
        self.log.event("train", self.step, values)

    def _report_progress(self) -> None:
        progress = self.progress
        session_s = progress.elapsed_s - self.session_elapsed_s
        progress.estimate(self.step - self.session_step, session_s, self.run.max_minutes)
        if self.on_progress is not None and self.world.is_main and self.on_progress(progress) is False:
            self.stop.signal = STOPPED

    # States and the end of the run.

    def _state(self, best_saved_step: int | None) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.stream.epoch,
            "batch": self.stream.batch,
            "elapsed_s": self.progress.elapsed_s,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "averages": self.averages.state_dict(),
            "task": dict(self.task.state_dict()),
            "best": self.best,
            "kept_best": best_saved_step,
            "validated_at": self.validated_at,
            "validation_due": self.validation_due,
            "validation": dict(self.progress.validation),
            "clips": self.progress.clips,
            "audio_s": self.progress.audio_s,
            "bad_steps": self.progress.bad_steps,
            "wandb_id": None if self.log is None else self.log.wandb_id,
        }

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state["task"])  # first, since it refuses other data in words
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.averages.load_state_dict(state["averages"])
        progress = self.progress
        progress.step = self.resumed_from = state["step"]
        progress.epoch, progress.elapsed_s = state["epoch"], state["elapsed_s"]
        progress.clips, progress.audio_s, progress.bad_steps = state["clips"], state["audio_s"], state["bad_steps"]
        progress.validation = state["validation"]
        self.stream = BatchStream(self.task, self.run.accumulate, self.world, state["epoch"], state["batch"])
        self.best = None if state["best"] is None else (state["best"][0], state["best"][1])
        self.best_saved_step, self.validated_at = state["kept_best"], state["validated_at"]
        self.validation_due = state["validation_due"]
        self.wandb_id = state["wandb_id"]
        self.saved = (self.step, folder)

    def _save_is_due(self, within_s: float) -> bool:
        """Return whether this process's last state will be older than the interval allows in `within_s` seconds."""
        minutes = self.run.checkpoint_every_minutes
        if minutes is None:
            return False
        interval_s = max(60 * minutes, self.save_s / _SAVING_SHARE)
        if self.saved is None and not self.progress.failed_saves:
            interval_s = min(interval_s, _FIRST_STATE_S)
        return time.monotonic() + within_s - self.last_save_s > interval_s

    def _save_if(self, is_best: bool, is_due: bool = False) -> None:
        if is_best or is_due:
            self._log_window()
            self._save(is_best=is_best)

    def _save(self, *, is_best: bool = False, prune: bool = True) -> None:
        """Save the state. If the disk refuses it, count that and continue."""
        self.last_save_s = time.monotonic()
        if self.log is None:
            return
        best_saved_step = self.step if is_best else self.best_saved_step
        with self._excluded_from_speed():
            state = self._state(best_saved_step)
            check_plain(state, "the state")
            meta = {"recipe": self.settings, "validation": dict(self.progress.validation), "best": self.best}
            try:
                path = self.states.save(
                    self.step, state, meta, self._write_model, best_step=best_saved_step, prune=prune
                )
            except OSError as error:
                self.progress.failed_saves += 1
                _log.warning("the state of step %d could not be saved (%s); training continues", self.step, error)
                self.log.event("save_failed", self.step, {"error": str(error)})
                return
        self.saved, self.best_saved_step = (self.step, path), best_saved_step
        self.save_s = time.monotonic() - self.last_save_s
        _log.debug("state of step %d saved in %.1f s: %s", self.step, self.save_s, path)

    def _write_model(self, folder: Path) -> None:
        with evaluation_mode(self.averages.released(self.model)) as model:
            self.task.save(model, folder)

    def _finish(self, stop_signal: str | None) -> TrainingReport:
        """Validate, save, and write the trained model; after a signal only save."""
        is_best = stop_signal is None and self.validated_at != self.step and self._validate()
        self._log_window()
        if is_best or self.saved is None or self.saved[0] != self.step:
            self._save(is_best=is_best)
        if stop_signal is None:
            self._draw_pictures()
        self._report_progress()
        report = TrainingReport(
            **{f.name: getattr(self.progress, f.name) for f in fields(RunTotals)},
            stopped=stop_signal or "finished",
            resumed_from=self.resumed_from,
            best=self.best,
            peak_memory_bytes=peak_memory_bytes(self.world.device),
            last_state=None if self.saved is None else self.saved[1],
            model=None if stop_signal else self.out / MODEL_FOLDER,
            moved_to=self.moved_to,
            notes=self.notes,
            ended_early=None
            if stop_signal
            else why_early(self.run, self.progress, self.schedule.stale, self.best_metric, stop_signal),
        )
        if self.log is None:
            return report
        self.log.event("end", self.step, {"stopped": report.stopped})
        last = "there is no saved state" if self.saved is None else f"the last saved state is {self.saved[1]}"
        try:
            if report.model is not None:
                replace_folder(report.model, self._write_model)
                best = None if self.best_saved_step is None else self.states.path(self.best_saved_step) / MODEL_FOLDER
                if best is not None and best.is_dir():
                    replace_folder(self.out / BEST_FOLDER, partial(shutil.copytree, best, dirs_exist_ok=True))
            write_json(self.out / REPORT_FILE, report.as_json())
        except OSError as error:
            raise TrainingError(f"{self.out} cannot be written ({error}); {last}. Free disk space and resume") from None
        if self.saved is None or self.saved[0] != self.step:
            wrote = "" if report.model is None else f"the model is in {report.model}, but "
            then = "; --overwrite starts anew" if self.saved is None else " and resume"
            problem = f"{wrote}the state of step {self.step} could not be saved"
            raise TrainingError(f"{problem}; {last}. Free disk space{then}")
        return report
