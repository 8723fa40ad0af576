"""Map a function over items in worker processes, in order; a process that dies costs at most the item it worked on.

A fault inside a codec kills a process and cannot be caught, and the system kills processes when memory is short. Each
worker works on one item at a time, so it is known on which one it died. That item is tried again in a new process,
while all others wait: if memory was short, the item is not to blame.

| what happened | result |
|---|---|
| killed (SIGKILL, SIGTERM, ...), and again while it was alone | `WorkerDiedError`: killed, out of memory? |
| two new processes crashed on it (SIGSEGV, SIGABRT, ...) | `WorkerDiedError`: it crashes the decoder |
| no worker process can start | `WorkerStartError` is raised; no item is to blame |

Workers are new Python processes that import what the function needs, and not the script that is running (unless the
function is defined in it). So scripts need no `if __name__ == "__main__":`, and may come from standard input. A thread
of this process talks to each worker through pipes; `multiprocessing` and `concurrent.futures` do not tell which item a
process died on, run the script again, and close their pipes in no order.
"""

from __future__ import annotations

import atexit
import multiprocessing.spawn
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import IO, Any, TypeVar

from ssamba.cores import free_cores
from ssamba.errors import ConfigError, WorkerDiedError, WorkerStartError

T = TypeVar("T")
R = TypeVar("R")

START_TIMEOUT_S = 300.0
"""How long a worker process may take to start: importing from a slow network disk takes minutes."""

_EXIT_TIMEOUT_S = 5.0
_WAIT_S = 1.0
_CHUNK_S, _MAX_CHUNK = 0.02, 64
"""Items are sent in chunks that take about this long, and hold at most so many."""
_READY = b"ssamba worker is ready\n"
_LENGTH, _REPLY = struct.Struct("<Q"), struct.Struct("<Q?Q")
_BOOT = """
import os, pickle, sys
inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0), os.dup2(null, 1)
sys.path[:] = pickle.load(inbox)
from ssamba.worker_pool import serve
serve(inbox, outbox)
"""
_CRASHES = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")
    if hasattr(signal, name)
}


def default_workers(most: int = 8) -> int:
    """Return the number of free cores minus one, between 1 and `most`."""
    return min(most, max(1, free_cores() - 1))


def checked_workers(workers: int | None) -> int | None:
    """Return `workers`; raise a ConfigError unless it is None or a number of processes."""
    if workers is not None and (type(workers) is not int or workers < 0):
        raise ConfigError(f"workers is a number of processes, 0 for none besides this one; got {workers!r}")
    return workers


def map_in_processes(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int = 16
) -> Iterator[tuple[T, R | WorkerDiedError]]:
    """Yield (item, function(item)) for every item, in order; the result is a `WorkerDiedError` if a worker died on it.

    Args:
        function: importable by name; it is sent to each worker once, items and results are pickled, too.
        items: the items; consumed lazily.
        workers: processes; 0 runs in this process.
        ahead: items in flight for each worker.

    Raises:
        ConfigError: `workers` is no number of processes.
        WorkerStartError: no worker process can start; the message says why.
        Exception: any exception of `function`, when its item is reached.
    """
    if not checked_workers(workers):
        for item in items:
            yield item, function(item)
        return
    source = iter(items)
    waiting: deque[_Task] = deque()
    pool = _Pool(function, workers)
    try:
        while True:
            for item in islice(source, workers * ahead - len(waiting)):
                waiting.append(pool.submit(item))
            if not waiting:
                break
            task = waiting[0]
            result = pool.result(task)
            waiting.popleft()
            yield task.item, result
    except BaseException:  # interrupted, or the generator was closed: running items may take minutes
        pool.kill()
        raise
    finally:
        pool.close()


def run_alone(function: Callable[[T], R], item: T) -> R | WorkerDiedError:
    """Return function(item), run in a process of its own, or a `WorkerDiedError` if that process dies."""
    ((_, result),) = map_in_processes(function, [item], 1)
    return result


class _Task:
    """An item on its way, and what came of it."""

    def __init__(self, index: int, item: Any) -> None:
        self.index, self.item = index, item
        self.is_done = False
        self.reply: tuple[bool, bytes] | None = None
        """Whether the function returned, and its pickled result or exception."""
        self.error: Exception | None = None
        """Why there is no reply: the process died on the item, or the item cannot be pickled."""
        self.kills = 0
        self.crashes = 0

    def died(self, exit_code: int, is_new_process: bool) -> None:
        """Note that a process died on the item; decide whether it is to blame."""
        if exit_code < 0 and -exit_code not in _CRASHES:
            self.kills += 1
        else:  # a process that worked on other items before may have been damaged by these
            self.crashes += is_new_process
        how = _describe(exit_code)
        if self.kills == 2:
            self.error = WorkerDiedError(
                f"the process was killed (out of memory?) twice, the second time with this alone ({how}): free memory, "
                "or omit it"
            )
        elif self.crashes == 2:
            self.error = WorkerDiedError(f"it crashes the decoder ({how}): re-encode it, or omit it")


class _Pool:
    """Worker processes, each with a thread of this process that talks to it."""

    def __init__(self, function: Callable[[Any], Any], workers: int) -> None:
        self._preparation = _preparation(function)
        self._workers = workers
        self._changed = threading.Condition()
        # The fields below are read and changed while `_changed` is held.
        self._todo: deque[_Task] = deque()
        self._suspects: deque[_Task] = deque()
        """Items that a process died on, to be tried again alone."""
        self._num_busy = 0
        self._is_one_alone = False
        self._processes: set[_Process] = set()
        self._num_submitted = 0
        self._item_s: float | None = None
        """Mean time of an item, of which later items count more."""
        self._error: Exception | None = None
        self._is_closing = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()
        _open_pools.add(self)

    def submit(self, item: Any) -> _Task:
        with self._changed:
            task = _Task(self._num_submitted, item)
            self._num_submitted += 1
            self._todo.append(task)
            self._changed.notify_all()
        return task

    def result(self, task: _Task) -> Any:
        with self._changed:
            while not task.is_done and self._error is None:
                self._changed.wait(_WAIT_S)  # without a limit, Windows defers Ctrl-C until the wait ends
        if task.error is not None:
            return task.error
        if task.reply is None:
            assert self._error is not None
            raise self._error
        has_returned, payload = task.reply
        if has_returned:
            return pickle.loads(payload)
        error, remote_traceback = pickle.loads(payload)
        raise error from _InWorkerError(f"\n{remote_traceback}")

    def kill(self) -> None:
        """End all processes at once."""
        with self._changed:
            self._is_closing = True
            for process in self._processes:
                process.kill()
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all processes and threads have ended."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        _open_pools.discard(self)

    # In the threads.

    def _run(self) -> None:
        process: _Process | None = None
        try:
            while (work := self._take()) is not None:
                tasks, is_alone = work
                exit_code: int | None = None
                try:
                    if is_alone and process is not None:
                        self._end(process)
                        process = None
                    if process is None:
                        process = self._start()
                    exit_code = self._work(process, tasks)
                    if exit_code is not None:
                        self._blame(tasks, exit_code, process.num_done == 0)
                        self._end(process)
                        process = None
                finally:
                    self._give_back(tasks, is_alone)
        except WorkerStartError as error:
            self._fail(error, if_no_process_is_left=True)
        except Exception as error:  # must reach whoever waits for results
            self._fail(error)
        finally:
            if process is not None:
                self._end(process)

    def _take(self) -> tuple[list[_Task], bool] | None:
        """Wait for work; return it with whether it must be done alone, or None at the end."""
        with self._changed:
            while not self._is_closing and self._error is None:
                if self._suspects:
                    if not self._num_busy:
                        self._num_busy, self._is_one_alone = 1, True
                        return [self._suspects.popleft()], True
                elif self._todo and not self._is_one_alone:
                    count = 1 if self._item_s is None else int(_CHUNK_S / max(self._item_s, 1e-9))
                    count = max(1, min(count, _MAX_CHUNK, len(self._todo) // self._workers))
                    self._num_busy += 1
                    return [self._todo.popleft() for _ in range(count)], False
                self._changed.wait()
        return None

    def _give_back(self, tasks: list[_Task], was_alone: bool) -> None:
        with self._changed:
            self._num_busy -= 1
            self._is_one_alone &= not was_alone
            self._todo.extendleft(task for task in reversed(tasks) if not task.is_done and task not in self._suspects)
            self._changed.notify_all()

    def _start(self) -> _Process:
        process = _Process()
        with self._changed:
            self._processes.add(process)
            if self._is_closing:
                process.kill()
        try:
            process.prepare(self._preparation)
        except WorkerStartError:
            self._end(process)
            raise
        return process

    def _end(self, process: _Process) -> None:
        process.close()
        with self._changed:
            self._processes.discard(process)

    def _work(self, process: _Process, tasks: list[_Task]) -> int | None:
        """Let a process do the tasks; return its exit code if it died."""
        sent = []
        for task in tasks:
            try:
                sent.append((task.index, pickle.dumps(task.item)))
            except Exception as error:  # whatever pickling the item raises belongs to whoever waits for it
                self._finish(task, (False, _pickled_error(error)))
        by_index = {task.index: task for task in tasks}
        try:
            process.send(sent)
            for _ in sent:
                started_s = time.monotonic()
                index, has_returned, payload = process.receive()
                self._finish(by_index[index], (has_returned, payload), time.monotonic() - started_s)
                process.num_done += 1
        except (OSError, EOFError):
            return process.exit_code()
        return None

    def _finish(self, task: _Task, reply: tuple[bool, bytes], seconds: float | None = None) -> None:
        with self._changed:
            task.reply, task.is_done = reply, True
            if seconds is not None:
                self._item_s = seconds if self._item_s is None else 0.9 * self._item_s + 0.1 * seconds
            self._changed.notify_all()

    def _blame(self, tasks: list[_Task], exit_code: int, is_new_process: bool) -> None:
        """Note which task a process died on: the first one that is not done."""
        with self._changed:
            if self._is_closing:
                return
            task = next((task for task in tasks if not task.is_done), None)
            if task is None:
                return  # it died idle
            task.died(exit_code, is_new_process)
            if task.error is None:
                self._suspects.append(task)
            else:
                task.is_done = True

    def _fail(self, error: Exception, if_no_process_is_left: bool = False) -> None:
        with self._changed:
            if not (if_no_process_is_left and self._processes):
                self._error = self._error or error
            self._changed.notify_all()


_open_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()


@atexit.register
def _close_pools() -> None:
    """Close the pools of iterators that were never finished, before the interpreter takes threads and files away."""
    for pool in list(_open_pools):
        pool.kill()
        pool.close()


class _Process:
    """A worker process, seen from its parent."""

    def __init__(self) -> None:
        self.num_done = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - standard error, until the process is ready
        command = [os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable), "-c", _BOOT]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                # Signals of the terminal, of `timeout` and of batch systems are the parent's to handle.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            self._errors.close()
            raise WorkerStartError(_cannot_start(str(error))) from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout

    def prepare(self, preparation: bytes) -> None:
        """Send the function, and wait until the process is ready to work.

        Raises:
            WorkerStartError: it died, or is not ready in time.
        """
        timer = threading.Timer(START_TIMEOUT_S, self.kill)
        timer.daemon = True
        timer.start()
        try:
            self._to.write(preparation)
            self._to.flush()
            # What a start-up file of the installation prints comes before.
            line = self._from.readline()
            while line and not line.endswith(_READY):
                line = self._from.readline()
            if line:
                return
        except OSError:
            pass  # it died before it had read everything
        finally:
            is_in_time = timer.is_alive()
            timer.cancel()
        exit_code = self.exit_code()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        how = _describe(exit_code) if is_in_time else f"it was not ready within {START_TIMEOUT_S:g} s"
        raise WorkerStartError(_cannot_start(f"{how}: {lines[-1]}" if lines else how))

    def send(self, chunk: list[tuple[int, bytes]]) -> None:
        """Send items with their numbers; it never waits long, because the process reads while it works."""
        _send(self._to, chunk)

    def receive(self) -> tuple[int, bool, bytes]:
        """Wait for the next reply: number, whether the function returned, pickled result or exception.

        Raises:
            EOFError: the process died.
        """
        index, has_returned, length = _REPLY.unpack(_read(self._from, _REPLY.size))
        return index, has_returned, _read(self._from, length)

    def exit_code(self) -> int:
        """Wait for the end of a process that closed its pipe."""
        try:
            return self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """Let the process end, wait for it, and close the pipes."""
        with suppress(OSError):  # it died
            self._to.close()
        self.exit_code()
        self._from.close()
        self._errors.close()


def _describe(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def _cannot_start(reason: str) -> str:
    return (
        f"no worker process can start ({reason}). No recording is to blame: remove the cause, or work in this process "
        "(workers=0, --workers 0)"
    )


def _preparation(function: Callable[[Any], Any]) -> bytes:
    """Return what is sent to a worker first: where to import from, and the function.

    Raises:
        WorkerStartError: the function is defined where a worker cannot find it.
    """
    if _is_importing_main:
        raise WorkerStartError(
            "a worker process imports this script, because a function or class that it needs is defined in it, and the "
            'script starts workers again: put its calls under `if __name__ == "__main__":`, or use workers=0'
        )
    pickled = pickle.dumps(function)
    main = _main_to_import(pickled)
    content = pickle.dumps((main, pickled))
    # As in the parent, also if it has changed its folder since.
    path_list = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100
    return pickle.dumps(path_list) + _LENGTH.pack(len(content)) + content


def _main_to_import(pickled: bytes) -> dict[str, str]:
    """Return how a process finds the running script; empty if `pickled` holds nothing that is defined in it.

    Raises:
        WorkerStartError: it does, and the script cannot be imported.
    """
    if b"__main__" not in pickled:
        return {}
    module = sys.modules["__main__"]
    path = getattr(module, "__file__", None)
    if module.__spec__ is not None:
        return {"init_main_from_name": module.__spec__.name}
    if path is not None and Path(path).is_file():
        return {"init_main_from_path": os.path.abspath(path)}  # noqa: PTH100
    raise WorkerStartError(
        "worker processes cannot find functions and classes that are defined in a notebook or on standard input: put "
        "them into a module, or use workers=0"
    )


@contextmanager
def starting_processes(*needed: Any) -> Iterator[None]:
    """Let processes that `multiprocessing` starts inside (torch's loading workers) start like those of this module.

    They do not run the script again, unless one of the objects `needed` is defined in it, and ignore Ctrl-C, which the
    parent handles.

    Raises:
        WorkerStartError: one of the objects is defined where a process cannot find it.
    """
    main = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {}
    if not _main_to_import(bytes(ForkingPickler.dumps(needed))):
        hidden = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) if hasattr(signal, "pthread_sigmask") else None
    main.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        main.update(hidden)
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _send(file: IO[bytes], content: Any) -> None:
    data = pickle.dumps(content)
    file.write(_LENGTH.pack(len(data)) + data)
    file.flush()


def _read(file: IO[bytes], length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return data


# In the worker processes.

_is_importing_main = False


def serve(inbox: IO[bytes], outbox: IO[bytes]) -> None:
    """Work as a worker process: read items from `inbox` and write replies to `outbox` until the parent closes it."""
    global _is_importing_main
    (length,) = _LENGTH.unpack(_read(inbox, _LENGTH.size))
    main, pickled = pickle.loads(_read(inbox, length))
    if main:
        _is_importing_main = True
        multiprocessing.spawn.prepare(main)
        _is_importing_main = False
    function = pickle.loads(pickled)
    chunks: queue.SimpleQueue[list[tuple[int, bytes]]] = queue.SimpleQueue()
    threading.Thread(target=_receive_chunks, args=(inbox, chunks), daemon=True).start()
    # Codecs write remarks about damaged files to standard error, where they would break the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    outbox.write(_READY)
    outbox.flush()
    while True:
        for index, item in chunks.get():
            try:
                has_returned, payload = True, pickle.dumps(function(pickle.loads(item)))
            except Exception as error:  # whatever it is, it belongs to whoever waits for the result
                has_returned, payload = False, _pickled_error(error)
            outbox.write(_REPLY.pack(index, has_returned, len(payload)))
            outbox.write(payload)
            outbox.flush()


def _receive_chunks(inbox: IO[bytes], chunks: queue.SimpleQueue[list[tuple[int, bytes]]]) -> None:
    """Read ahead of the work, so that the parent never waits; exit when the parent closes the pipe or is killed."""
    try:
        while True:
            (length,) = _LENGTH.unpack(_read(inbox, _LENGTH.size))
            chunks.put(pickle.loads(_read(inbox, length)))
    finally:
        os._exit(0)


class _InWorkerError(Exception):
    """Where an exception was raised in a worker process, shown as its cause."""


def _pickled_error(error: Exception) -> bytes:
    """Pickle an exception, and where it was raised."""
    text = "".join(traceback.format_exception(error))
    error.__cause__ = error.__context__ = None
    try:
        data = pickle.dumps((error, text))
        pickle.loads(data)  # some exceptions cannot be made again from their arguments
    except Exception:
        data = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), text))
    return data
