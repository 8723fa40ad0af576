"""A small experiment for the tests of the loop: classify crops of the demo recordings' features.

As a script it is one process of a run, which tests kill, stop or start under torchrun:

    python experiment.py OUT '{"steps": 6}' [--kill-at STEP] ...

With `--lives '[["--kill-at", "3"], []]'` it forks one such process after the other, each with these options added, and
prints the exit status of each. That saves starting Python several times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.audio.decode import decode
from ssamba.audio.fbank import log_mel, normalize
from ssamba.checkpoint import save_checkpoint
from ssamba.config import ClassifierConfig, FrontEndConfig
from ssamba.model.create import encoder_config
from ssamba.model.heads import Classifier
from ssamba.training import OptimizerSettings, RunSettings, ScheduleSettings, StepContext, StepOutcome, train

ROOT = Path(__file__).resolve().parent.parent.parent
CROP = 32
"""Length of a crop in frames."""
_features: list[Tensor] = []


def features() -> list[Tensor]:
    """Return the features (T, M) of the demo recordings; they are computed once."""
    if not _features:
        for path in sorted((ROOT / "demo" / "audio").glob("*.flac")):
            mel = normalize(log_mel(torch.from_numpy(decode(path))), FrontEndConfig())[: 4 * CROP]
            _features.append(F.pad(mel, (0, 0, 0, max(0, CROP - len(mel)))))
    return _features


class DemoTask:
    """Classify which of the demo recordings a crop comes from; crops, dropout and noise are random."""

    best_metric: tuple[str, Literal["min", "max"]] = ("loss", "min")

    def __init__(
        self, batch: int = 4, global_noise: bool = False, drop_path: float = 0.0, poisoned: tuple[int, ...] = ()
    ):
        torch.manual_seed(1)
        encoder = encoder_config("tiny", embed_dim=24, depth=2, num_frames=CROP, drop_path=drop_path)
        self.model = Classifier(encoder, ClassifierConfig(num_classes=len(features())))
        self.batch, self.global_noise, self.poisoned = batch, global_noise, poisoned
        self.seen: list[int] = []
        """The last arguments of `after_step`."""
        self.teacher = self.model.linear.weight.detach().clone()
        self.kill_at: int | None = None
        self.fail_at: int | None = None

    def batches_in_epoch(self, epoch: int) -> int:
        return -(-len(features()) // self.batch)

    def batches(self, epoch: int, start: int, rank: int, world: int) -> Iterator[list[int]]:
        order = np.random.default_rng((7, epoch)).permutation(len(features()))
        torch.rand(3)  # a data loader draws such numbers when it starts
        for index in range(start, self.batches_in_epoch(epoch)):
            clips = order[index * self.batch : (index + 1) * self.batch]
            yield clips[rank::world].tolist()

    def step_loss(self, model: nn.Module, batch: list[int], context: StepContext) -> StepOutcome:
        if context.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if context.step == self.fail_at:
            raise RuntimeError("a failure on purpose")
        if not batch:
            return StepOutcome(None, 0)
        crops = []
        for clip in batch:
            source = features()[clip]
            first = int(np.random.default_rng((context.seed, context.step, clip)).integers(0, len(source) - CROP + 1))
            crops.append(source[first : first + CROP])
        x = torch.stack(crops).to(context.device)
        if self.global_noise:
            x = x + 0.1 * torch.randn_like(x) + 0.01 * float(np.random.rand()) + 0.01 * random.random()
        labels = torch.tensor(batch, device=context.device)
        with context.autocast():
            logits = model(x)
        loss = F.cross_entropy(logits.float(), labels)
        if context.step in self.poisoned:
            loss = loss * float("nan")
        accuracy = (logits.argmax(1) == labels).float().mean()
        return StepOutcome(
            loss,
            weight=len(batch),
            metrics={"accuracy": accuracy},
            clips=len(batch),
            audio_s=len(batch) * CROP / 100,
            keys=[f"clip-{clip}" for clip in batch],
            skipped=(("broken.wav", "not audio"),) if context.step % 2 else (),
        )

    def after_step(self, step: int) -> None:
        self.seen = [*self.seen[-5:], step]
        self.teacher.lerp_(self.model.linear.weight.detach().to(self.teacher.device), 0.1)

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        assert not model.training
        torch.rand(17)
        crops = torch.stack([f[:CROP] for f in features()]).to(next(model.parameters()).device)
        labels = torch.arange(len(crops), device=crops.device)
        logits = model(crops)
        return {
            "loss": float(F.cross_entropy(logits, labels)),
            "accuracy": float((logits.argmax(1) == labels).float().mean()),
        }

    def pictures(self, model: nn.Module, step: int) -> Mapping[str, Any]:
        assert isinstance(model, Classifier)
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2, 2))
        figure.subplots().imshow(model.linear.weight.detach().cpu().numpy())
        return {"weights": figure}

    def state_dict(self) -> Mapping[str, Any]:
        return {"teacher": self.teacher, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher.copy_(state["teacher"])
        self.seen = list(state["seen"])

    def save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, Classifier)
        save_checkpoint(folder, model)


OPTIMIZER = OptimizerSettings(learning_rate=3e-3)
SCHEDULE = ScheduleSettings(warmup_steps=2)


def settings(**changes: Any) -> RunSettings:
    """Return settings of a short run that logs every step and does not save by time."""
    values: dict[str, Any] = {"steps": 8, "log_every": 1, "checkpoint_every_minutes": None, **changes}
    return RunSettings.parse(values, "test")


def run(task: DemoTask, out: Path, **changes: Any) -> Any:
    """Train in this process; `changes` are run settings, `optimizer`, `schedule`, or arguments of `train`."""
    arguments = {
        name: changes.pop(name) for name in ("overwrite", "on_progress", "recipe", "task_defaults") if name in changes
    }
    optimizer, schedule = changes.pop("optimizer", OPTIMIZER), changes.pop("schedule", SCHEDULE)
    if isinstance(schedule, dict):
        schedule = ScheduleSettings.parse(schedule, "test")
    return train(task, optimizer, schedule, settings(**changes), out, device="cpu", **arguments)


def log(out: Path, event: str = "train") -> list[dict[str, Any]]:
    """Return the lines of the log with this event."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def curve(out: Path) -> dict[int, float]:
    """Return the loss by step."""
    return {record["step"]: record["loss"] for record in log(out)}


def last_state(out: Path) -> dict[str, Any]:
    """Load the last saved state, without its time."""
    folder = max((out / "checkpoints").glob("step-*"))
    state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    del state["elapsed_s"]
    return state


def same(one: Any, other: Any) -> bool:
    """Return whether two states are equal, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def main() -> None:
    """Run one process, or several one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("run", type=json.loads, help="run settings")
    parser.add_argument("--lives", type=json.loads, help="lists of further options")
    parser.add_argument("--kill-at", type=int, help="die by SIGKILL in this step")
    parser.add_argument(
        "--kill-in-save", type=int, help="die by SIGKILL with half of this state (counted from 1) written"
    )
    parser.add_argument("--poison", type=int, help="the loss of this step is NaN")
    parser.add_argument("--only-rank", type=int, help="rank of the only process that dies or is poisoned")
    parser.add_argument("--terminate-at", type=int, help="send SIGTERM after this step")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--global-noise", action="store_true")
    arguments = sys.argv[1:]
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for more in options.lives or []:
        child = os.fork()
        if child == 0:
            live(parser.parse_args([*arguments, *more]))
            sys.stdout.flush()
            os._exit(0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}), flush=True)
    if options.lives is None:
        live(options)


def live(options: argparse.Namespace) -> None:
    """Train with the given options."""
    noise = options.global_noise
    task = DemoTask(batch=options.batch, global_noise=noise, drop_path=0.5 if noise else 0.0)
    if options.only_rank in (None, int(os.environ.get("RANK", "0"))):
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            task.kill_at = options.kill_at
        task.poisoned = () if options.poison is None else (options.poison,)
    if options.kill_in_save is not None:
        _kill_in_save(options.kill_in_save)

    def terminate(progress: Any) -> None:
        if progress.step == options.terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)

    report = run(task, options.out, on_progress=terminate, **options.run)
    print(json.dumps({**report.as_json(), "gloo_threads": _gloo_threads()}))


def _gloo_threads() -> list[str]:
    """Return the threads of process groups that are still alive (Linux)."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return sorted(name for name in names if "gloo" in name)


def _kill_in_save(number: int) -> None:
    """Make the process die in the middle of writing this state (counted from 1)."""
    import ssamba.training.state

    whole, count = ssamba.training.state.write_state, [0]

    def half(path: Path, state: Mapping[str, Any]) -> None:
        count[0] += 1
        whole(path, state)
        if count[0] == number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    ssamba.training.state.write_state = half


if __name__ == "__main__":
    main()
