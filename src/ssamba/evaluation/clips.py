"""Decoded clips of a task, and the disk cache of decoded clips and embeddings.

Cached files are named by digests of their inputs, so they are never out of date; the folder may be deleted at any time.

Shapes: N clips, S samples.
"""

from __future__ import annotations

import posixpath
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from ssamba.audio.decode import decode
from ssamba.checkpoint.files import read_tensors, write_tensors
from ssamba.errors import CheckpointError, SuiteError
from ssamba.evaluation.task import Task
from ssamba.hashing import hash_bytes
from ssamba.metrics.classification import Array
from ssamba.text_files import spellings


def cached_arrays(path: Path | None, compute: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
    """Return the arrays in the safetensors file `path`, in the order in which they were computed.

    If the file is missing or damaged they are computed and written. With `path` None they are only computed.
    """
    if path is not None and path.exists():
        try:
            stored = read_tensors(path)
            return {name.split(" ", 1)[1]: stored[name].numpy() for name in sorted(stored)}
        except CheckpointError:
            pass  # an incomplete file or a failed disk: compute the arrays again
    arrays = dict(compute())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Safetensors files are unordered: numbers in the names keep the order.
        numbered = {f"{number:04d} {name}": array for number, (name, array) in enumerate(arrays.items())}
        write_tensors(path, {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in numbered.items()})
    return arrays


class Waves(Sequence[Array]):
    """Decoded clips, stored as 16-bit samples relative to each clip's peak; items are float32 (S,)."""

    def __init__(
        self,
        samples: Array,
        starts: Array,
        ends: Array,
        peaks: Array,
        sample_rate_hz: int,
        level: float | None = None,
    ):
        """Hold the int16 samples of all clips, with start, end and peak of each, (N,); for `level` see `select`."""
        self._samples, self._starts, self._ends, self._peaks = samples, starts, ends, peaks
        self.sample_rate_hz, self.level = sample_rate_hz, level

    @property
    def lengths(self) -> Array:
        """Number of samples of each clip, (N,)."""
        lengths: Array = self._ends - self._starts
        return lengths

    def select(self, indices: Array, level: float | None) -> Waves:
        """Return the clips at `indices`, each scaled to the peak `level`; None leaves them as they are."""
        starts, ends, peaks = self._starts[indices], self._ends[indices], self._peaks[indices]
        return Waves(self._samples, starts, ends, peaks, self.sample_rate_hz, level)

    def digests(self) -> Array:
        """Return a number for each clip, (N,) int64, equal for clips with equal stored samples."""
        return np.array([_hash(self._samples[a:b]) for a, b in zip(self._starts, self._ends, strict=True)], np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...

    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        samples: Array = self._samples[self._starts[index] : self._ends[index]].astype(np.float32)
        peak = self._peaks[index]
        # Silence stays silence at any level.
        scaled: Array = samples * np.float32((peak if self.level is None or peak == 0 else self.level) / 32767)
        return scaled


def read_waves(
    task: Task,
    sample_rate_hz: int = 16_000,
    cache: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Waves:
    """Decode the clips of a task, or read them from the folder `cache`.

    Raises:
        AudioDecodeError: a clip cannot be read.
        SuiteError: a clip is missing.
    """
    path = cache / "waves" / f"{task.name}-{task.digest}-{sample_rate_hz}.safetensors" if cache else None

    def compute() -> dict[str, Array]:
        parts: list[Array] = []
        peaks = np.zeros(len(task.clips), dtype=np.float32)
        for index, file in enumerate(_files(task)):
            samples = decode(file, sample_rate_hz=sample_rate_hz)
            peaks[index] = np.abs(samples).max()
            scale = 32767 / peaks[index] if peaks[index] else 0.0
            parts.append(np.rint(samples * scale).astype(np.int16))
            if on_progress is not None:
                on_progress(index + 1)
        return {"samples": np.concatenate(parts), "ends": np.cumsum([len(part) for part in parts]), "peaks": peaks}

    arrays = cached_arrays(path, compute)
    ends = arrays["ends"]
    return Waves(arrays["samples"], np.concatenate(([0], ends[:-1])), ends, arrays["peaks"], sample_rate_hz)


def is_all_silent(task: Task) -> bool:
    """Return whether every clip of a task holds nothing but one value; the first that does not settles it."""
    for file in _files(task):
        samples = decode(file)
        if samples.min() != samples.max():
            return False
    return True


def recording_digests(task: Task, waves: Callable[[], Waves], cache: Path | None = None) -> Array:
    """Return a number for each clip of a task, (N,) int64, equal for identical recordings whatever their names.

    Args:
        task: the task.
        waves: returns the decoded clips of the task; called only if the numbers are not cached.
        cache: folder; None caches nothing.
    """
    path = cache / "waves" / f"{task.name}-{task.digest}-digests.safetensors" if cache else None
    return cached_arrays(path, lambda: {"digests": waves().digests()})["digests"]


def _hash(samples: Array) -> int:
    return int.from_bytes(hash_bytes(samples.tobytes()), "little", signed=True)


def _files(task: Task) -> Iterator[Path]:
    """Yield the clips as files, in the order of the table; files of an archive exist until the next one is taken."""
    if not task.audio.is_file():
        for clip in task.clips:
            if not (task.audio / clip).is_file():
                raise SuiteError(f"{task.table} names {clip}, but neither {task.name}.tar nor that file is beside it")
            yield task.audio / clip
        return
    try:
        opened = tarfile.open(task.audio)  # noqa: SIM115 - the next statement closes it
    except tarfile.TarError:
        raise SuiteError(f"{task.audio} is damaged or no tar: pack it again, or unpack it beside the table") from None
    with opened as archive, tempfile.TemporaryDirectory(prefix="ssamba-") as folder:
        members = {posixpath.normpath(member.name): member for member in archive if member.isfile()}
        for clip in task.clips:
            found = next((name for name in spellings(clip) if name in members), None)
            if found is None:
                raise SuiteError(f"{task.table} names {clip}, which is not in {task.audio.name}")
            content: Any = archive.extractfile(members[found])
            target = Path(folder) / f"clip{Path(clip).suffix}"
            target.write_bytes(content.read())
            yield target
