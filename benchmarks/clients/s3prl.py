"""s3prl: `S3PRLUpstream` and `Featurizer` on clips of a task, and a weighted sum of layers trained on them.

Needs the folder of s3prl's source distribution in PYTHONPATH (0.4.18 cannot be installed beside current releases). Its
list of upstreams, `s3prl.hub`, imports all of them, and torchaudio: where that is not installed, both are empty here.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ssamba.embedder import load_model
from ssamba.evaluation.clips import Waves
from ssamba.evaluation.task import Task
from ssamba.integrations.s3prl import UpstreamExpert


def run(model: str, task: Task, waves: Waves, work: Path) -> dict[str, Any]:
    """Return shapes, the largest difference from `embed`, and the accuracy of a head on the weighted sum of layers."""
    if importlib.util.find_spec("torchaudio") is None:
        for name in ("torchaudio", "s3prl.hub"):
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
    import s3prl
    from s3prl import hub
    from s3prl.nn import Featurizer, S3PRLUpstream
    from s3prl.nn import upstream as module

    hub.ssamba = UpstreamExpert
    module.get_pseudo_wavs = lambda: [torch.from_numpy(waves[i]) for i in range(3)]  # its own are written by torchaudio
    upstream = S3PRLUpstream("ssamba", path_or_url=model).eval()
    featurizer = Featurizer(upstream)
    names = np.unique(task.labels)

    def states(chosen: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        clips = [torch.from_numpy(waves[i]) for i in chosen]
        with torch.no_grad():
            hidden, lengths = upstream(pad_sequence(clips, batch_first=True), torch.tensor(list(map(len, clips))))
        return hidden, lengths

    parts = {split: np.flatnonzero(task.splits == split)[:208].tolist() for split in ("train", "test")}
    found = {split: states(chosen) for split, chosen in parts.items()}
    labels = {split: torch.from_numpy(np.searchsorted(names, task.labels[chosen])) for split, chosen in parts.items()}
    head = torch.nn.Linear(featurizer.output_size, len(names))
    optimizer = torch.optim.Adam([*featurizer.parameters(), *head.parameters()], 1e-2)

    def logits(split: str) -> torch.Tensor:
        features, lengths = featurizer(*found[split])
        valid = torch.arange(features.shape[1]) < lengths[:, None]
        found_logits: torch.Tensor = head((features * valid[..., None]).sum(1) / lengths[:, None])
        return found_logits

    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(logits("train"), labels["train"]))
        optimizer.step()
    accuracy = (logits("test").argmax(1) == labels["test"]).float().mean().item()
    hidden, _ = states(parts["test"][:4])
    difference = 0.0
    for row, i in enumerate(parts["test"][:4]):
        frames = load_model(model, device="cpu").embed(waves[i], context="full").frames
        difference = max(difference, (hidden[-1][row, : len(frames)] - frames).abs().max().item())
    return {
        "versions": {"s3prl": s3prl.__version__, "torchaudio": "replaced"},
        "layers": upstream.num_layers,
        "downsample rate": featurizer.downsample_rate,
        "steps": tuple(hidden[-1].shape[:2]),
        "accuracy, weighted sum of layers": round(accuracy, 3),
        "largest difference from embed": float(f"{difference:.1g}"),
    }
