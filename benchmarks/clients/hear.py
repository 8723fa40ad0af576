"""HEAR: its validator, and the embeddings of a task's clips against `embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hearvalidator.validate import ValidateModel

from ssamba.evaluation.clips import Waves
from ssamba.evaluation.task import Task
from ssamba.integrations import hear


def run(model: str, task: Task, waves: Waves, work: Path) -> dict[str, Any]:
    """Return the validator's verdict and the largest difference from `embed`."""
    ValidateModel("ssamba.integrations.hear", model)()  # raises an error if anything is wrong
    loaded = hear.load_model(model)
    long = np.flatnonzero(waves.lengths >= waves.sample_rate_hz)[:8].tolist()
    audio = torch.from_numpy(np.stack([waves[i][: waves.sample_rate_hz] for i in long]))
    direct = loaded.embedder.embed(audio, batch=True)
    steps, _ = hear.get_timestamp_embeddings(audio, loaded)
    pairs = (
        (hear.get_scene_embeddings(audio, loaded), [one.clip for one in direct]),
        (steps, [one.frames for one in direct]),
    )
    difference = max((through - torch.stack(own)).abs().max().item() for through, own in pairs)
    return {"hear-validator": "Looks good!", "largest difference from embed": float(f"{difference:.1g}")}
