"""Minutes of sound strung together from the clips of each fold, with a label for each second.

As the SSAMBA paper has it for UrbanSound8K (its `prep_urban8k.py`): the clips of a fold in random order, each filled
with silence to whole seconds, one after the other, cut every 60 s. Two things differ. The order follows from a seed, so
that the same clips always make the same scenes. And the last scene of a fold ends with its last clip, where the
original fills it with silence and labels that with the last class.

The manifest's rows are the parts of the scenes that one clip fills: path of the scene, start, whole seconds, its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssamba.audio.decode import decode
from ssamba.audio.files import Skipped, path_text
from ssamba.data.manifest import Clip, ScanProgress
from ssamba.datasets.recipe import Report
from ssamba.errors import WorkerDiedError
from ssamba.files import write_atomically
from ssamba.worker_pool import map_in_processes

SCENE_S = 60
_RATE_HZ = 16_000
_SEED = 0


@dataclass(frozen=True)
class _Fold:
    name: str
    number: int
    clips: tuple[Clip, ...]
    folder: Path


def render_scenes(
    clips: Sequence[Clip], folder: Path, workers: int = 0, on_progress: Report | None = None
) -> tuple[list[Clip], list[Skipped]]:
    """Write the scenes of every split as FLAC (16 kHz, mono, 16 bits) to `folder/SPLIT/`.

    Returns:
        The parts of the scenes that one clip fills, and the clips that cannot be decoded. The group of a part is its
        split: its neighbors in the scene, and other parts of the same recordings, are anywhere in that split.
    """
    names = sorted({clip.split or "all" for clip in clips}, key=lambda name: (len(name), name))
    folds = [
        _Fold(name, number, tuple(clip for clip in clips if (clip.split or "all") == name), folder)
        for number, name in enumerate(names)
    ]
    progress = ScanProgress(len(clips))
    parts: list[Clip] = []
    skipped: list[Skipped] = []
    for fold, made in map_in_processes(_render_fold, folds, min(workers, len(folds)), ahead=1):
        if isinstance(made, WorkerDiedError):
            raise made
        parts += made[0]
        skipped += made[1]
        progress.done += len(fold.clips)
        progress.skipped += len(made[1])
        progress.audio_s += sum(part.duration_s or 0.0 for part in made[0])
        if on_progress is not None:
            on_progress(progress)
    return parts, skipped


def _render_fold(fold: _Fold) -> tuple[list[Clip], list[Skipped]]:
    target = fold.folder / fold.name
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("scene-*.flac"):  # of a run with more clips
        old.unlink()
    parts: list[Clip] = []
    skipped: list[Skipped] = []
    held: list[npt.NDArray[np.float32]] = []
    seconds = 0
    number = 0

    def scene() -> Path:
        return target / f"scene-{number:03d}.flac"

    for i in np.random.default_rng([_SEED, fold.number]).permutation(len(fold.clips)):
        clip = fold.clips[int(i)]
        try:
            samples = decode(clip.path, sample_rate_hz=_RATE_HZ)
        except (ValueError, OSError) as error:
            skipped.append(Skipped(path_text(clip.path), str(error)))
            continue
        filled = -(-len(samples) // _RATE_HZ)
        samples = np.pad(samples, (0, filled * _RATE_HZ - len(samples)))
        while filled:
            taken = min(filled, SCENE_S - seconds)
            parts.append(replace(clip, path=scene(), start_s=float(seconds), duration_s=float(taken), group=fold.name))
            held.append(samples[: taken * _RATE_HZ])
            samples = samples[taken * _RATE_HZ :]
            seconds, filled = seconds + taken, filled - taken
            if seconds == SCENE_S:
                _write(scene(), held)
                held, seconds, number = [], 0, number + 1
    if held:
        _write(scene(), held)
    return parts, skipped


def _write(path: Path, pieces: Sequence[npt.NDArray[np.float32]]) -> None:
    import soundfile

    samples = np.clip(np.concatenate(pieces), -1.0, 1.0)
    write_atomically(path, lambda target: soundfile.write(target, samples, _RATE_HZ, format="FLAC", subtype="PCM_16"))
