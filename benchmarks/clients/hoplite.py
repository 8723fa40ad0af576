"""perch-hoplite: embed a folder of recordings, insert the windows into a database, and search it.

It reads audio with librosa, windows of a second here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from ml_collections import config_dict
from perch_hoplite.agile import source_info
from perch_hoplite.agile.embed import EmbedWorker, ModelConfig
from perch_hoplite.db import brutalism, db_loader

from ssamba.evaluation.clips import Waves
from ssamba.evaluation.task import Task
from ssamba.integrations.perch_hoplite import SsambaEmbeddingModel


def run(model: str, task: Task, waves: Waves, work: Path) -> dict[str, Any]:
    """Return what is in the database, how often the nearest other window has the label, and the recall of search."""
    shutil.rmtree(work)
    chosen = np.flatnonzero((task.splits == "test") & (waves.lengths >= waves.sample_rate_hz)).tolist()
    for i in chosen:
        path = work / "audio" / str(task.labels[i]) / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waves[i], waves.sample_rate_hz)
    settings = config_dict.ConfigDict({"model": model, "window_size_s": 1.0, "hop_size_s": 1.0})
    embedding_model = SsambaEmbeddingModel.from_config(settings)
    database = db_loader.create_new_usearch_db(str(work / "database"), embedding_model.embedding_dim)
    sources = source_info.AudioSources(
        (source_info.AudioSourceConfig(dataset_name=task.name, base_path=str(work / "audio"), file_glob="*/*.wav"),)
    )
    worker = EmbedWorker(
        audio_sources=sources,
        model_config=ModelConfig("ssamba", embedding_model.embedding_dim, settings),
        db=database,
        embedding_model=embedding_model,
        audio_worker_threads=1,
    )
    worker.process_all(target_dataset_name=task.name)
    windows = {window.id: window for window in database.get_all_windows()}
    names = {recording.id: recording.filename for recording in database.get_all_recordings()}
    right = same = total = 0
    for number, window in windows.items():
        query = database.get_embedding(number)
        exact = brutalism.brute_search(database, query, 6, np.dot).search_results
        near = [one.window_id for one in exact if windows[one.window_id].recording_id != window.recording_id]
        fast = {one.window_id for one in database.search(query, 6).search_results}
        label = names[window.recording_id].split("/")[0]
        right += names[windows[near[0]].recording_id].split("/")[0] == label if near else 0
        same += len(fast & {one.window_id for one in exact})
        total += 6
    first = next(iter(windows))
    wave, _ = soundfile.read(work / "audio" / names[windows[first].recording_id], dtype="float32")
    start = round(windows[first].offsets[0] * 16_000)
    direct = embedding_model.embedder.embed(wave[start : start + 16_000]).clip.numpy()
    difference = np.abs(database.get_embedding(first) - direct / np.linalg.norm(direct)).max()
    return {
        "recordings": len(names),
        "windows": len(windows),
        "nearest of another recording has the label": round(right / len(windows), 3),
        "recall of search at 6": round(same / total, 3),
        "largest difference from embed": float(f"{difference:.1g}"),
    }
