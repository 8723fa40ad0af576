"""UrbanSound8K (Salamon, Jacoby & Bello, 2014): 8,732 clips of up to 4 s, 10 classes, 10 folds.

The slices of one Freesound recording (`fsID`) are in one fold and form a group; as published, five recordings that gave
slices of two classes are in two folds, and are no groups.

`urbansound8k-scenes` is dynamic scene labeling as in the SSAMBA paper (its `prep_urban8k.py`): the clips of a fold in
random order, each zero-padded to whole seconds, are concatenated and cut every 60 s, with a label for each second. Two
things differ from the original. The order follows from a seed, so the same clips always make the same scenes. And the
last scene of a fold ends with its last clip, where the original pads it with silence labeled as the last class. A row
of the manifest is a part of a scene that one clip fills: path of the scene, start, whole seconds, label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssamba.audio.decode import decode
from ssamba.audio.files import Skipped
from ssamba.data.manifest import Clip
from ssamba.datasets.dataset import (
    Listing,
    PublicDataset,
    add_class,
    find_root,
    read_table,
    whole_number,
)
from ssamba.errors import DataError, Interrupted, WorkerDiedError
from ssamba.files import checking_before_replacing, path_text, soundfile_path, write_atomically
from ssamba.locks import LockToken, OutputLock, lock_output
from ssamba.progress import OnProgress, ProgressReporter
from ssamba.worker_pool import map_in_processes

SCENE_S = 60
_RATE_HZ = 16_000
_SEED = 0


def _list(source: Path) -> Listing:
    root = find_root(source, "metadata/UrbanSound8K.csv", "audio")
    table = root / "metadata" / "UrbanSound8K.csv"
    clips: list[Clip] = []
    classes: dict[int, str] = {}
    for where, row in read_table(table, "slice_file_name", "fsID", "fold", "classID", "class"):
        fold = whole_number(table, where, "fold", row["fold"], 1, 10)
        number = whole_number(table, where, "classID", row["classID"], 0, 9)
        name = row["slice_file_name"]
        if name.split("-")[:2] != [row["fsID"], row["classID"]]:
            raise DataError(
                f"{table}, {where}: {name!r} contradicts fsID {row['fsID']} and classID {number}, with which it must "
                "begin"
            )
        add_class(classes, number, row["class"], f"{table}, {where}")
        path = root / "audio" / f"fold{fold}" / name
        clips.append(Clip(path, labels=(row["class"],), split=f"fold{fold}", group=row["fsID"]))
    return Listing(clips, tuple(classes[number] for number in sorted(classes)))


@dataclass(frozen=True)
class _Fold:
    name: str
    number: int
    clips: tuple[Clip, ...]
    folder: Path
    lock: LockToken


def render_scenes(
    clips: Sequence[Clip],
    folder: Path,
    workers: int = 0,
    progress: OnProgress | None = None,
    take_over: bool = False,
) -> tuple[list[Clip], list[Skipped]]:
    """Write the scenes of every split as FLAC (16 kHz, mono, 16 bits) to `folder/SPLIT/`.

    Args:
        clips: what the scenes are made of.
        folder: where to write.
        workers: processes, each of which writes the scenes of one split at a time; 0 writes in this process.
        progress: called after each split; returning False raises Interrupted.
        take_over: take the folder away from another process that is writing to it.

    Returns:
        The parts of the scenes that one clip fills, and the clips that cannot be decoded. The group of a part is its
        split: its neighbors in the scene, and other parts of the same recordings, are anywhere in that split.
    """
    with lock_output(folder, folder=True, take_over=take_over) as lock:
        return _render(clips, folder, workers, progress, lock)


def _render(
    clips: Sequence[Clip], folder: Path, workers: int, progress: OnProgress | None, lock: OutputLock
) -> tuple[list[Clip], list[Skipped]]:
    names = sorted({clip.split or "all" for clip in clips}, key=lambda name: (len(name), name))
    folds = [
        _Fold(name, number, tuple(clip for clip in clips if (clip.split or "all") == name), folder, lock.token)
        for number, name in enumerate(names)
    ]
    reporter, done, audio_s = ProgressReporter(progress, "writing scenes", len(clips), "clips"), 0, 0.0
    parts: list[Clip] = []
    skipped: list[Skipped] = []
    for fold, result in map_in_processes(_render_fold, folds, min(workers, len(folds)), ahead=1):
        if isinstance(result, WorkerDiedError):
            raise WorkerDiedError(f"the scenes of {fold.name} cannot be written: {result}")
        parts += result[0]
        skipped += result[1]
        done += len(fold.clips)
        audio_s += sum(part.duration_s or 0.0 for part in result[0])
        if not reporter.update(done, audio_s=audio_s, skipped=len(skipped)):
            raise Interrupted("stopped while scenes were written")
    lock.verify()  # otherwise the scenes may be another process's
    return parts, skipped


def _render_fold(fold: _Fold) -> tuple[list[Clip], list[Skipped]]:
    fold.lock.verify()
    with checking_before_replacing(fold.lock.verify):
        return _write_scenes(fold)


def _write_scenes(fold: _Fold) -> tuple[list[Clip], list[Skipped]]:
    target = fold.folder / fold.name
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("scene-*.flac"):  # of an earlier run with more clips
        old.unlink()
    parts: list[Clip] = []
    skipped: list[Skipped] = []
    pieces: list[npt.NDArray[np.float32]] = []  # of the current scene
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
        left = -(-len(samples) // _RATE_HZ)
        samples = np.pad(samples, (0, left * _RATE_HZ - len(samples)))
        while left:
            taken = min(left, SCENE_S - seconds)
            parts.append(replace(clip, path=scene(), start_s=float(seconds), duration_s=float(taken), group=fold.name))
            pieces.append(samples[: taken * _RATE_HZ])
            samples = samples[taken * _RATE_HZ :]
            seconds, left = seconds + taken, left - taken
            if seconds == SCENE_S:
                _write(scene(), pieces)
                pieces, seconds, number = [], 0, number + 1
    if pieces:
        _write(scene(), pieces)
    return parts, skipped


def _write(path: Path, pieces: Sequence[npt.NDArray[np.float32]]) -> None:
    import soundfile

    samples = np.clip(np.concatenate(pieces), -1.0, 1.0)
    write_atomically(
        path, lambda target: soundfile.write(soundfile_path(target), samples, _RATE_HZ, format="FLAC", subtype="PCM_16")
    )


URBANSOUND8K = PublicDataset(
    name="urbansound8k",
    title="UrbanSound8K",
    reference="https://urbansounddataset.weebly.com/urbansound8k.html",
    structure="UrbanSound8K/\n  audio/fold1/101415-3-0-2.wav ... fold10/\n  metadata/UrbanSound8K.csv",
    list_clips=_list,
    # Sums of the table of clips by fold and class in its README.
    published=dict(
        zip([f"fold{n}" for n in range(1, 11)], (873, 888, 925, 990, 936, 823, 838, 806, 816, 837), strict=True)
    ),
    num_classes=10,
    class_counts={
        "air_conditioner": 1000,
        "car_horn": 429,
        "children_playing": 1000,
        "dog_bark": 1000,
        "drilling": 1000,
        "engine_idling": 1000,
        "gun_shot": 374,
        "jackhammer": 1000,
        "siren": 929,
        "street_music": 1000,
    },
    archives={"UrbanSound8K.tar.gz": "md5:9aa69802bbf37fb986f71ec1483a196e"},  # Zenodo, record 1203745
    shared_groups=frozenset({"77751", "106905", "132016", "176638", "180937"}),
)

URBANSOUND8K_SCENES = replace(
    URBANSOUND8K, name="urbansound8k-scenes", title="UrbanSound8K, one-minute scenes", render=render_scenes
)
