"""Engines run a model over many recordings: in this process (`LocalEngine`), or on Ray (`ray_engine.py`).

An engine gets paths and yields each file with its result, or with the error of a file that cannot be read; who asks
keeps the results (`jobs.py`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from ssamba.audio.decode import Damaged, decode_files
from ssamba.audio.readers import Samples
from ssamba.audio.sources import PEAK_REMARK, OneChannel, Source, peak_remark
from ssamba.library.remote import Job, Recording, RemoteFile, run_on_copies
from ssamba.progress import counted
from ssamba.worker_pool import default_workers

_log = logging.getLogger(__name__)
Result = TypeVar("Result")
Output = TypeVar("Output", covariant=True)

_FEW_FILES = 8
"""A worker process takes longer to start than this many files take to decode."""


class Engine(Protocol[Output]):
    """Runs a model over recordings."""

    def run(self, files: Sequence[Recording], job: Job) -> Generator[tuple[Recording, Output | Exception]]:
        """Yield files with their results or errors, as they are ready; files that are told to `job.skip` are not.

        Remarks about files go to what collects them in this context (`collect_remarks`, `collect_above_band`).
        """


@dataclass(frozen=True)
class LocalEngine(Generic[Result]):
    """Decodes in worker processes, ahead of the model, which runs in this process."""

    stream: Callable[[Iterator[tuple[Path, Source]]], Iterator[tuple[Path, Result | Exception]]]
    """Turns recordings into results; importable and picklable if another machine is to call it."""
    sample_rate_hz: int
    """Rate at which recordings are decoded."""
    channels: OneChannel = "mean"
    """`mean`, or the number of a channel."""
    damaged: Damaged = "skip"
    """`skip` leaves out files of which a part is missing, `keep` uses what comes before it."""
    workers: int | None = None
    """Decoding processes; None means up to four, if there are more than a few files."""

    def with_workers(self, workers: int) -> LocalEngine[Result]:
        """Return the same engine with another number of decoding processes."""
        return replace(self, workers=workers)

    def run(self, files: Sequence[Recording], job: Job) -> Generator[tuple[Recording, Result | Exception]]:
        """Yield results in the order of the files, except that errors come at once; see `Engine.run`."""
        workers = self.workers
        if workers is None:
            workers = default_workers(4) if len(files) > _FEW_FILES else 0
        _log.debug("%s", f"decoded by {counted(workers, 'process')}" if workers else "decoded in this process")
        run = partial(self._run, workers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", PEAK_REMARK)  # `_sources` says which file it is
            yield from run([file for file in files if isinstance(file, Path)], job)
            if (remote := [file for file in files if isinstance(file, RemoteFile)]) and job.goes_on():
                yield from run_on_copies(run, remote, job)

    def _run(self, workers: int, paths: Iterable[Path], job: Job) -> Iterator[tuple[Path, Result | Exception]]:
        channel = self.channels if isinstance(self.channels, int) else None
        decoded = decode_files(paths, self.sample_rate_hz, workers, self.damaged, channel)
        return self.stream(_sources(decoded, job))


def _sources(decoded: Iterator[tuple[Path, Samples | Path | Exception]], job: Job) -> Iterator[tuple[Path, Source]]:
    for path, samples in decoded:
        if isinstance(samples, Exception):
            job.skip(path, samples)
        else:
            remark = None if isinstance(samples, Path) else peak_remark(float(np.abs(samples).max()))
            if remark is not None:
                job.note(f"{path}: {remark}")
            yield path, samples
        if not job.goes_on():  # what was read before is still worked on
            return
