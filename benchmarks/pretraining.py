"""Measure how fast pretraining steps are: `python -m benchmarks.pretraining [--size tiny] [--clips 4]`.

A training step (features, masks, forward, backward, optimizer) on crops of 10.24 s with 400 of 512 patches masked, with
the same kernels for all sides: the two encoder passes of the original, one shared pass, visible patches only. Sides
take turns. Also the share of time that a short run waits for data, with recordings decoded on the fly. Recordings are
those of the demo. Writes benchmarks/results/pretraining.json and pretraining.md.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.timing import DEMO_AUDIO, demo_samples, save
from ssamba.data.loader import WaveBatch
from ssamba.progress import Progress
from ssamba.studies.harness import environment, table, timings_s
from ssamba.training.optim import build_optimizer
from ssamba.training.pretraining.data import open_corpora
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.pretraining.run import pretrain
from ssamba.training.pretraining.task import PretrainingTask
from ssamba.training.run_io import StepProgress
from ssamba.training.task import StepContext

PASSES: dict[str, dict[str, Any]] = {
    "two passes (the original)": {"variant": "official", "passes": 2, "encode": "all"},
    "one pass": {"variant": "official", "passes": 1, "encode": "all"},
    "visible patches only": {"variant": "official", "passes": 1, "encode": "visible"},
    "visible only, tokens of ssamba2": {"variant": "ssamba2", "passes": 1, "encode": "visible"},
}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--clips", type=int, default=4, help="clips in a step")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--budget-s", type=float, default=120.0)
    parser.add_argument("--wait-minutes", type=float, default=1.0, help="duration of the run that measures waiting")
    options = parser.parse_args()
    results: dict[str, Any] = {**environment(), **vars(options)}
    with tempfile.TemporaryDirectory() as folder:
        for path in DEMO_AUDIO.glob("*.flac"):
            shutil.copy(path, folder)
        sides = {
            name: _step(folder, options.size, options.clips, options.precision, **side) for name, side in PASSES.items()
        }
        times = {name: median(found) for name, found in timings_s(sides, options.budget_s).items()}
        results["step_s"] = times
        results["data_wait_share"] = _data_wait_share(folder, options)
    slowest = times["two passes (the original)"]
    rows = [
        [name, f"{1000 * s:.0f} ms", f"{options.clips / s:.2f}", f"{slowest / s:.2f} x"] for name, s in times.items()
    ]
    text = table(["step", "median", "clips of 10.24 s per second", "against two passes"], rows)
    text += f"\n\nShare of time that training waits for data: {100 * results['data_wait_share']:.1f} %."
    save("pretraining", results, text)


def _step(
    folder: str, size: str, clips: int, precision: Any, variant: str, passes: int, encode: str
) -> Callable[[], Any]:
    """Return a call that takes one training step on a fixed batch."""
    recipe = PretrainRecipe.parse(
        {
            "model": {"size": size, "variant": variant},
            "data": {"crop_s": 10.24, "short_clips": "join", "batch_s": 10.24 * clips, "valid_share": 0.0},
            "objectives": {"passes": passes, "encode": encode, "decoder_depth": int(encode == "visible")},
        },
        "benchmark",
    )
    task = PretrainingTask(recipe, open_corpora([folder], recipe))
    task.model.train()
    optimizer = build_optimizer(task.model, recipe.optimizer)
    # One sample more than 1,024 frames need, as the original's 10.24 s crops give 1,024 after padding.
    samples_per_clip = 400 + 160 * 1023
    wave = torch.from_numpy(np.resize(demo_samples(), (clips, samples_per_clip)))
    samples, seeds = torch.full((clips,), wave.shape[1]), torch.arange(clips)
    names = tuple((str(i),) for i in range(clips))
    batch = WaveBatch(wave, samples, seeds, names, tuple((wave.shape[1],) for _ in range(clips)), ((),) * clips)
    context = StepContext(0, 0, 0, torch.device("cpu"), precision)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        outcome = task.step_loss(task.model, batch, context)
        assert outcome.loss is not None
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _data_wait_share(folder: str, options: argparse.Namespace) -> float:
    """Return the share of time that a run with one decoding process waits for data."""
    recipe = PretrainRecipe.parse(
        {
            "model": {"size": options.size},
            "data": {"crop_s": 10.24, "batch_s": 40.0, "workers": 1, "cache_gb": 0.0},
            "run": {"max_minutes": options.wait_minutes, "log_every": 5},
        },
        "benchmark",
    )
    shares: list[float] = []

    def add_share(state: Progress) -> None:
        if isinstance(state, StepProgress):
            shares.append(state.data_wait_share)

    with tempfile.TemporaryDirectory() as out:
        for i in range(20):  # more recordings than a batch holds
            for path in DEMO_AUDIO.glob("*.flac"):
                link = Path(folder) / f"{i}-{path.name}"
                if not link.exists():
                    link.symlink_to(path)
        pretrain(folder, Path(out) / "run", recipe=recipe, progress=add_share)
    return median(shares[len(shares) // 2 :])


if __name__ == "__main__":
    main()
