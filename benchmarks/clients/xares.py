"""X-ARES: its checker, then one of its tasks (perceptron and nearest neighbors) on tars of a task's clips.

X-ARES reads audio with torchaudio. Where that is not installed, its two functions that are called here are those of
soundfile and soxr.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from ssamba.data.shards import add_member
from ssamba.evaluation.clips import Waves
from ssamba.evaluation.task import Task

VALID_EVERY = 5


def run(model: str, task: Task, waves: Waves, work: Path) -> dict[str, Any]:
    """Return the checker's verdict, the scores, and the largest difference of a batch from `embed`."""
    found: dict[str, Any] = {}
    if importlib.util.find_spec("torchaudio") is None:
        stand_in: Any = ModuleType("torchaudio")
        stand_in.__spec__ = ModuleSpec("torchaudio", None)
        stand_in.load, stand_in.functional = _load, SimpleNamespace(resample=_resample)
        sys.modules["torchaudio"] = stand_in
        found["versions"] = {"torchaudio": "replaced"}
    from xares.audio_encoder_checker import check_audio_encoder
    from xares.task import TaskConfig, XaresTask
    from xares.utils import attr_from_py_path

    encoder = attr_from_py_path("ssamba/integrations/xares.py", endswith="Encoder")(model)
    found["check_audio_encoder"] = check_audio_encoder(encoder)
    names = np.unique(task.labels)
    config = TaskConfig(
        name=task.name, encoder=encoder, env_root=work, private=True, output_dim=len(names), epochs=30, eval_weight=1,
        label_processor=lambda values: values["label"], num_encoder_workers=0,
    )  # fmt: skip
    folder = work / config.name
    folder.mkdir(exist_ok=True)
    train = np.flatnonzero(task.splits == "train")
    parts = {"valid": train[::VALID_EVERY], "test": np.flatnonzero(task.splits == "test")}
    parts["train"] = np.setdiff1d(train, parts["valid"])
    for split, chosen in parts.items():
        with tarfile.open(folder / f"{split}00000.tar", "w") as archive:
            for i in chosen.tolist():
                wav = io.BytesIO()
                quiet = waves[i] * 0.9 / max(np.abs(waves[i]).max(), 1e-3)  # it drops clips that touch full scale
                soundfile.write(wav, quiet, waves.sample_rate_hz, format="WAV")
                label = json.dumps({"label": int(np.searchsorted(names, task.labels[i]))})
                for name, data in ((f"{i}.wav", wav.getvalue()), (f"{i}.json", label.encode())):
                    add_member(archive, name, data)
    (folder / config.xares_settings.audio_ready_filename).touch()
    (mlp, _), (knn, _) = XaresTask(config).run()
    found |= {"accuracy, perceptron": round(float(mlp), 3), "accuracy, neighbors": round(float(knn), 3)}
    long = np.flatnonzero(waves.lengths >= waves.sample_rate_hz)[:4].tolist()
    clips = torch.from_numpy(np.stack([waves[i][: waves.sample_rate_hz] for i in long]))
    through, direct = encoder(clips), encoder.embedder.embed(clips, batch=True)
    difference = (through - torch.stack([one.frames for one in direct])).abs().max()
    return found | {"largest difference from embed": float(f"{difference:.1g}")}


def _load(file: Any) -> tuple[torch.Tensor, int]:
    samples, rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate_hz


def _resample(wave: torch.Tensor, rate_hz: int, new_hz: int) -> torch.Tensor:
    return torch.from_numpy(soxr.resample(wave.T.numpy(), rate_hz, new_hz).T.copy())
