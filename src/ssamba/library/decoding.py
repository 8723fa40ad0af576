"""Decoding files in worker processes, ahead of the model, in order.

Workers import soundfile and soxr, not torch. A file longer than `LONG_S` is not sent between processes: its path
comes back instead, to be streamed where it is needed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.audio.decode import decode, probe
from ssamba.errors import AudioDecodeError

LONG_S = 300.0
_AHEAD = 16  # files in flight for each worker

Decoded = np.ndarray[Any, Any] | Path | Exception


def decode_file(path: Path, sample_rate_hz: int) -> Decoded:
    """Mono samples at `sample_rate_hz`; the path itself when the file is long; or why it cannot be read."""
    try:
        duration_s = probe(path).duration_s
        if duration_s is None or duration_s > LONG_S:
            return path
        return decode(path, sample_rate_hz=sample_rate_hz)
    except (ValueError, OSError) as error:
        return error
    except Exception as error:  # whatever a damaged file provokes, it must not cost the other files
        return AudioDecodeError(
            f"{path}: cannot be decoded ({type(error).__name__}: {error}). Re-encode or leave it out"
        )


def decode_files(paths: Sequence[Path], sample_rate_hz: int, workers: int) -> Iterator[tuple[Path, Decoded]]:
    """Decode many files, in order, `workers` at a time; 0 decodes in this process.

    A file on which a worker dies (a fault inside a codec) gives an `AudioDecodeError`; the others go on.
    """
    if workers <= 0:
        for path in paths:
            yield path, decode_file(path, sample_rate_hz)
        return
    todo = deque(paths)
    while todo:
        with _pool(workers) as pool:
            flying: deque[tuple[Path, Future[Decoded]]] = deque()
            try:
                while todo or flying:
                    while todo and len(flying) < workers * _AHEAD:
                        path = todo.popleft()
                        flying.append((path, pool.submit(decode_file, path, sample_rate_hz)))
                    path, future = flying[0]
                    result = future.result()
                    flying.popleft()
                    yield path, result
            except BrokenProcessPool:
                # One of the files in flight killed a worker: each of them gets a process of its own.
                suspects = [path for path, _ in flying]
            else:
                return
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        for path in suspects:
            yield path, _decode_alone(path, sample_rate_hz)


def _decode_alone(path: Path, sample_rate_hz: int) -> Decoded:
    with _pool(1) as pool:
        try:
            return pool.submit(decode_file, path, sample_rate_hz).result()
        except BrokenProcessPool:
            return AudioDecodeError(
                f"{path}: the decoder crashed on this file, so it is damaged: re-encode or leave it out"
            )


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked: torch's threads may hold locks at any moment.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    with _signals_deferred():
        pool.submit(os.getpid)  # starts the processes
    return pool


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Hold interrupts back: one that hits while a process is being started would leave that process half born."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: held.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        for received in held:
            signal.raise_signal(received)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles the interrupt and ends its workers
    # Codecs write remarks about damaged files to standard error, where they would run into the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A worker whose parent was killed would wait for work forever."""
    parent.join()
    os._exit(1)
