"""MTEB: classification, clustering and pairs of a task's clips, by `mteb.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import AbsTaskClustering

from ssamba.evaluation.clips import Waves
from ssamba.evaluation.task import Task
from ssamba.integrations.mteb import SsambaEncoder


def run(model: str, task: Task, waves: Waves, work: Path) -> dict[str, Any]:
    """Return the scores of two local tasks for each readout."""
    names = np.unique(task.labels)

    def rows(split: str) -> Dataset:
        chosen = np.flatnonzero(task.splits == split)
        audio = [{"array": waves[i].tolist(), "sampling_rate": waves.sample_rate_hz} for i in chosen.tolist()]
        labels = np.searchsorted(names, task.labels[chosen]).tolist()
        return Dataset.from_dict({"audio": audio, "label": labels})

    local: Any = {
        "dataset": {"path": "local", "revision": task.digest},
        "eval_splits": ["test"],
        "eval_langs": ["zxx-Zxxx"],
        "modalities": ["audio"],
        "category": "a2c",
        "description": task.name,
        **dict.fromkeys(
            ("reference", "date", "domains", "task_subtypes", "license", "annotations_creators", "dialect"), None
        ),
        **dict.fromkeys(("sample_creation", "bibtex_citation"), None),
    }
    splits = DatasetDict({"train": rows("train"), "test": rows("test")})

    class Classification(AbsTaskClassification):  # type: ignore[misc]
        metadata = mteb.TaskMetadata(name="LocalClips", type="AudioClassification", main_score="accuracy", **local)
        input_column_name = "audio"

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            self.dataset, self.data_loaded = splits, True

    class Clustering(AbsTaskClustering):  # type: ignore[misc]
        metadata = mteb.TaskMetadata(name="LocalGroups", type="AudioClustering", main_score="v_measure", **local)
        input_column_name, label_column_name = "audio", "label"
        max_fraction_of_documents_to_embed = None

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            self.dataset, self.data_loaded = splits, True

    found: dict[str, Any] = {}
    for readout in ("clip", "parts"):
        encoder = SsambaEncoder(model, readout=readout)
        for result in mteb.evaluate(encoder, [Classification(), Clustering()], cache=None).task_results:
            found[f"{result.task_name} {readout}"] = round(float(result.get_score()), 3)
    direct = encoder.model.embed([waves[i] for i in range(8)])
    batches = [{"audio": [{"array": waves[i], "sampling_rate": waves.sample_rate_hz} for i in range(8)]}]
    through = encoder.encode(batches)
    found["largest difference from embed"] = float(f"{np.abs(through - np.stack([e.parts for e in direct])).max():.1g}")
    return found
