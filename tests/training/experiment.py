"""A small real experiment for the tests of the loop: classify feature crops of the demo recordings.

As a script it is one process of a run that tests kill, stop or start under torchrun:

    python experiment.py OUT '{"steps": 6}' [--resume] [--kill-at STEP] [--kill-in-save N] [--threads 1] ...
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.audio.decode import decode
from ssamba.audio.fbank import log_mel, normalise
from ssamba.checkpoint import save_checkpoint
from ssamba.config import ClassifierConfig, FrontEndConfig
from ssamba.model.create import encoder_config
from ssamba.model.heads import Classifier
from ssamba.training import OptimiserSettings, RunSettings, ScheduleSettings, StepContext, StepOutcome, train

ROOT = Path(__file__).resolve().parent.parent.parent
CROP = 32
"""Frames of a crop."""
_features: list[Tensor] = []


def features() -> list[Tensor]:
    """Features (T, M) of the demo recordings, computed once."""
    if not _features:
        for path in sorted((ROOT / "demo" / "audio").glob("*.flac")):
            mel = normalise(log_mel(torch.from_numpy(decode(path))), FrontEndConfig())[: 4 * CROP]
            _features.append(F.pad(mel, (0, 0, 0, max(0, CROP - len(mel)))))
    return _features


class DemoTask:
    """Which of the demo recordings a crop comes from; crops, dropout and noise are random."""

    best_metric: tuple[str, Literal["min", "max"]] = ("loss", "min")

    def __init__(
        self, batch: int = 4, global_noise: bool = False, drop_path: float = 0.0, poisoned: tuple[int, ...] = ()
    ):
        torch.manual_seed(1)
        encoder = encoder_config("tiny", embed_dim=24, depth=2, num_frames=CROP, drop_path=drop_path)
        self.model = Classifier(encoder, ClassifierConfig(num_classes=len(features())))
        self.batch, self.global_noise, self.poisoned = batch, global_noise, poisoned
        self.seen: list[int] = []
        """Steps that changed the weights, as `after_step` heard of them."""
        self.teacher = self.model.linear.weight.detach().clone()
        self.kill_at: int | None = None
        self.loss_of_step: dict[int, float] = {}

    def batches_in_epoch(self, epoch: int) -> int:
        return -(-len(features()) // self.batch)

    def batches(self, epoch: int, start: int, rank: int, world: int) -> Iterator[list[int]]:
        order = np.random.default_rng((7, epoch)).permutation(len(features()))
        torch.rand(3)  # what a data loader draws when it starts
        for index in range(start, self.batches_in_epoch(epoch)):
            clips = order[index * self.batch : (index + 1) * self.batch]
            yield clips[rank::world].tolist()

    def step_loss(self, model: nn.Module, batch: list[int], context: StepContext) -> StepOutcome:
        if context.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
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


OPTIMISER = OptimiserSettings(learning_rate=3e-3)
SCHEDULE = ScheduleSettings(warmup_steps=2)


def settings(**changes: Any) -> RunSettings:
    """A short run that logs every step and saves by steps alone."""
    values: dict[str, Any] = {"steps": 8, "log_every": 1, "checkpoint_every_minutes": None, **changes}
    return RunSettings.parse(values, "test")


def main() -> None:
    """One process of a run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("run", type=json.loads)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--kill-in-save", type=int)
    parser.add_argument("--kill-rank", type=int)
    parser.add_argument("--terminate-at", type=int)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--global-noise", action="store_true")
    parser.add_argument("--optimiser", type=json.loads, default={})
    options = parser.parse_args()
    torch.set_num_threads(1)
    noise = options.global_noise
    task = DemoTask(batch=options.batch, global_noise=noise, drop_path=0.5 if noise else 0.0)
    first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first_life and options.kill_rank in (None, int(os.environ.get("RANK", "0"))):
        task.kill_at = options.kill_at
    if options.kill_in_save is not None:
        _kill_in_save(options.kill_in_save)

    def terminate(progress: Any) -> None:
        if progress.step == options.terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)

    report = train(
        task,
        OPTIMISER.with_changes(**options.optimiser),
        SCHEDULE,
        settings(**options.run),
        options.out,
        resume="auto" if options.resume else False,
        device="cpu",
        on_progress=terminate,
    )
    print(json.dumps(report.as_json()))


def _kill_in_save(number: int) -> None:
    """Die in the middle of writing the state of this number, counted from 1."""
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
