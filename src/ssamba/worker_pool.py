"""Map a function over items in worker processes, in order; a worker that dies costs only the item it died on.

A fault inside a codec kills a process and cannot be caught. Workers are light: they import what the function's module
imports.
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


def default_workers(most: int = 8) -> int:
    """Return the number of cores minus one, between 1 and `most`."""
    return min(most, max(1, (os.cpu_count() or 2) - 1))


def map_in_processes(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int = 16
) -> Iterator[tuple[T, R | WorkerDiedError]]:
    """Yield (item, function(item)) for every item, in order; the result is a `WorkerDiedError` if a worker died on it.

    Args:
        function: importable by name, because workers are spawned; its arguments and results can be pickled.
        items: the items; consumed lazily.
        workers: processes; 0 runs in this process. A script with workers needs `if __name__ == "__main__":`.
        ahead: items in flight for each worker.

    Raises:
        Exception: any exception of `function`, when its item is reached.
    """
    if workers <= 0:
        for item in items:
            yield item, function(item)
        return
    source = iter(items)
    waiting: deque[T] = deque()  # taken from the source, and not submitted
    while True:
        with _pool(workers) as pool:
            submitted: deque[tuple[T, Future[R]]] = deque()
            try:
                while True:
                    waiting.extend(islice(source, workers * ahead - len(submitted) - len(waiting)))
                    while waiting:
                        submitted.append(
                            (waiting[0], pool.submit(function, waiting[0]))
                        )  # raises if the pool is broken
                        waiting.popleft()
                    if not submitted:
                        return
                    item, future = submitted[0]
                    result = future.result()
                    submitted.popleft()
                    yield item, result
            except BrokenProcessPool:
                # One of the items in flight killed a worker: each of them is retried in a process of its own.
                suspects = [item for item, _ in submitted]
            except BaseException:  # interrupted, or the generator was closed: running items may take minutes
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        for item in suspects:
            yield item, run_alone(function, item)


def run_alone(function: Callable[[T], R], item: T) -> R | WorkerDiedError:
    """Return function(item), run in a process of its own, or a `WorkerDiedError` if that process dies."""
    with _pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return WorkerDiedError(f"a worker process died on {item}")


def crashing_items(function: Callable[[Sequence[T]], object], items: Sequence[T]) -> list[T]:
    """Return those of `items` on which `function`, called with several items, crashes its process; by bisection."""
    if not items or not isinstance(run_alone(function, items), WorkerDiedError):
        return []
    if len(items) == 1:
        return list(items)
    middle = len(items) // 2
    return crashing_items(function, items[:middle]) + crashing_items(function, items[middle:])


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: torch's threads may hold locks at any moment.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    with _signals_deferred():
        pool.submit(os.getpid)  # starts the processes
    return pool


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer interrupts: one that arrives while a process starts would leave that process half started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        for one in received:
            signal.raise_signal(one)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles the interrupt and ends its workers
    # Codecs write remarks about damaged files to standard error, where they would break the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: Any) -> None:
    """Exit when the parent is killed; otherwise this worker would wait for work forever."""
    parent.join()
    os._exit(1)
