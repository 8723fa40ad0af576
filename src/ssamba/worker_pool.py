"""Mapping a function over many things in worker processes, in order, whatever happens to a worker.

The workers are light: what they import is what the function's module imports. One that dies (a fault inside a codec)
costs only the item it died on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from ssamba.errors import WorkerDiedError

T = TypeVar("T")
R = TypeVar("R")


def map_in_processes(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int = 16
) -> Iterator[tuple[T, R | WorkerDiedError]]:
    """(item, function(item)) for every item, in order; a `WorkerDiedError` is the result where a worker died.

    Args:
        function: importable by name (the workers are spawned), like its arguments and results picklable.
        items: what to map over; taken as it is needed.
        workers: processes; 0 runs in this one. A script that asks for some needs `if __name__ == "__main__":`.
        ahead: items in flight for each worker.

    Raises:
        Exception: whatever `function` raises, at that item.
    """
    if workers <= 0:
        for item in items:
            yield item, function(item)
        return
    source = iter(items)
    held: deque[T] = deque()  # taken from the source, and not under way
    while True:
        with _pool(workers) as pool:
            flying: deque[tuple[T, Future[R]]] = deque()
            try:
                while True:
                    held.extend(islice(source, workers * ahead - len(flying) - len(held)))
                    while held:
                        flying.append((held[0], pool.submit(function, held[0])))  # a broken pool raises here, too
                        held.popleft()
                    if not flying:
                        return
                    item, future = flying[0]
                    result = future.result()
                    flying.popleft()
                    yield item, result
            except BrokenProcessPool:
                # One of the items in flight killed a worker: each of them gets a process of its own.
                suspects = [item for item, _ in flying]
            except BaseException:  # interrupted, or nobody wants the rest: what is under way may take minutes
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        for item in suspects:
            yield item, run_alone(function, item)


def run_alone(function: Callable[[T], R], item: T) -> R | WorkerDiedError:
    """function(item) in a process of its own; a `WorkerDiedError` if that dies."""
    with _pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return WorkerDiedError(f"a worker process died on {item}")


def crashing_items(function: Callable[[Sequence[T]], object], items: Sequence[T]) -> list[T]:
    """Those of `items` on which `function` (given some of them) kills its process: halves that do are divided further."""
    if not items or not isinstance(run_alone(function, items), WorkerDiedError):
        return []
    if len(items) == 1:
        return list(items)
    middle = len(items) // 2
    return crashing_items(function, items[:middle]) + crashing_items(function, items[middle:])


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
