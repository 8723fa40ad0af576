"""An engine that runs on Ray: on all cores of a machine, or on a cluster, through Ray Data.

    embed_files("recordings/", "embeddings.parquet", engine="ray", address="auto")

The process that asks finds the files, holds the lock and writes the output, as with `LocalEngine`. Chunks of files
become blocks of a Ray data set, and each worker (an actor with one core, or one GPU and its share of the cores) runs a
`LocalEngine` on a chunk at a time. Ray Data hands out chunks as results are taken, so that memory stays bounded.

When a worker dies, Ray starts another one, which gets the chunk again. What a worker begins, it counts first, in a
process of its own (`_start_attempts`); so it is known what killed two of them:

| attempt | work on a chunk |
|---|---|
| 1, 2 | as a local engine without decoding processes: the quickest for each core |
| 3, ... | file by file, each decoded in a process of its own; a file on which two died so is an error |

A chunk that was done twice (its worker died just after it) gives results twice: the first ones are taken.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, TypeVar

import torch

from ssamba import __version__
from ssamba.audio.band import collect_above_band
from ssamba.audio.decode import collect_remarks, pass_on
from ssamba.audio.files import Remark
from ssamba.cores import allowed_cores
from ssamba.devices import parse_device
from ssamba.embedder import Embedder
from ssamba.errors import AudioDecodeError, ConfigError, MissingExtraError, WorkerDiedError, WorkerStartError
from ssamba.library.engines import LocalEngine
from ssamba.library.remote import Job, Recording, file_error
from ssamba.progress import counted

_log = logging.getLogger(__name__)
Result = TypeVar("Result")

_CHUNK_FILES, _CHUNK_BYTES = 64, 1 << 25
"""Most files of a chunk, and most bytes of these files: seconds of work (5 s of 44.1 kHz stereo are 0.9 MB)."""
_GPU_CHUNKS = 8
"""How many times larger chunks are for a GPU, whose decoding processes start with each of them."""
_MOST_CPUS_A_GPU = 8
_CHUNKS_A_WORKER = 4
_MOST_CHUNKS = 20_000
"""Ray Data takes 1 ms to prepare each."""
_SENT_BYTES = 1 << 26
"""Results that a worker collects before it sends them."""
_QUICK_ATTEMPTS = 2
_ERROR_LINE = re.compile(r"^[\w.]+(?:Error|Exception): .*", re.MULTILINE)
_CONNECT_S = 5.0
_LOST_S = 40.0
"""Time without an answer of the cluster after which it is lost; after 60 s Ray ends this process, without a word."""
_PATIENCE_S = 60.0


def require_ray() -> Any:
    """Return the module ray, or raise a MissingExtraError."""
    # Ray prints each death of a worker at length; `RayEngine.run` does so in a line.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError('the engine "ray" needs Ray: pip install "ssamba[ray]"') from None
    return ray


class RayEngine(Generic[Result]):
    """Runs a local engine on chunks of files in the workers of a Ray cluster, which is left as it was found."""

    def __init__(
        self, local: LocalEngine[Result], model: Embedder, address: str | None, workers: int | None, device: str | None
    ) -> None:
        """Check what can be checked without Ray's start.

        Args:
            local: what a worker does, picklable.
            model: the model in `local`, on the CPU; workers move it to their device.
            address: of a cluster, `HOST:PORT`, or `auto` for the one that this machine belongs to; None starts Ray on
                this machine for this job, or takes the cluster that RAY_ADDRESS names or that is connected already.
            workers: their greatest number; None means all cores, or all GPUs.
            device: where workers run the model; None means GPUs if the cluster has some.

        Raises:
            MissingExtraError: Ray is not installed.
            ConfigError: `address` is of a kind that cannot be used, or `workers` is 0.
        """
        require_ray()
        if address is not None and "://" in address:
            raise ConfigError(
                f"address {address}: expected HOST:PORT, or auto for the cluster that this machine belongs to. "
                "Run the command on a machine of the cluster"
            )
        if workers == 0:
            raise ConfigError("workers are processes of Ray, one for each core or GPU: expected at least 1, got 0")
        self._local, self._model, self._workers, self._device = local, model, workers, device
        self._address = address

    def run(self, files: Sequence[Recording], job: Job) -> Generator[tuple[Recording, Result | Exception]]:
        """Yield results in whatever order they are ready; see `Engine.run`.

        Raises:
            ConfigError: the cluster cannot be reached.
            WorkerStartError: workers cannot start.
            WorkerDiedError: the cluster was lost.
        """
        if not files:
            return
        with _connected(self._address) as ray:
            missing = dict.fromkeys(files)
            for outcome in self._outcomes(ray, files, job):
                if outcome.failure is not None:
                    raise outcome.failure
                new = [one for one in outcome.results if one[0] in missing]
                if new:
                    self._tell(outcome, len(new), job)
                for path, result in new:
                    del missing[path]
                    yield path, result
                if not job.goes_on():
                    return
            for path in missing:
                yield path, OSError(f"{path}: its result was lost in the cluster: run the command again")

    def _tell(self, outcome: _Outcome, count: int, job: Job) -> None:
        """Pass the remarks about a chunk on to the job; `count` of its results are new."""
        pass_on(outcome.remarks, outcome.above_band)
        if outcome.attempt > 1:
            of, attempt = counted(count, "file"), outcome.attempt
            job.note(f"a worker died while it worked on {of}: done by another one, at attempt {attempt}")
        for text in outcome.notes:
            job.note(text)

    def _outcomes(self, ray: Any, files: Sequence[Recording], job: Job) -> Iterator[_Outcome]:
        """Start the workers and yield what they send."""
        plan = Plan.of(ray.cluster_resources(), self._device, self._workers)
        chunks = plan.chunks(files, list(map(job.file_bytes, files)))
        # Decoding in the worker itself is quickest for each core, decoding beside it keeps a GPU busy.
        local = self._local.with_workers(plan.cpus - 1)
        attempts = _start_attempts(ray)
        rows = [{"number": number, "files": pickle.dumps(chunk)} for number, chunk in enumerate(chunks)]
        with _quiet(ray), _patience(ray) as waiting, _unless_lost(ray):
            data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Worker,
                fn_constructor_args=(__version__, pickle.dumps((local, self._model)), plan.device, attempts),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=plan.workers, initial_size=plan.workers),
                num_cpus=plan.cpus,
                num_gpus=None if plan.device == "cpu" else 1,
            )
            try:
                for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                    waiting.cancel()
                    for one in batch["outcome"]:
                        yield pickle.loads(one.as_buffer())
            except ray.exceptions.RayError as error:
                raise _cluster_error(error) from error


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Let Ray Data show no progress bars and log nothing: what goes wrong is raised."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])


def _start_attempts(ray: Any) -> Any:
    """Start the process that counts how often something was begun and not ended, for workers that may die."""

    class Attempts:  # Ray sends a class of a function as it is, so that its process need not load PyTorch
        def __init__(self) -> None:
            self._counts: dict[str, int] = {}

        def begin(self, what: str) -> int:
            self._counts[what] = self._counts.get(what, 0) + 1
            return self._counts[what]

        def ended(self, what: str) -> None:
            self._counts.pop(what, None)

    # If it dies, it begins anew, and a call that it did not answer is made again.
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()


class _Worker:
    """Works on chunks of files, in a process that Ray started."""

    def __init__(self, version: str, pickled: bytes, device: str, attempts: Any) -> None:
        if version != __version__:
            raise WorkerStartError(
                f"ssamba {version} asks, and a machine of the cluster has ssamba {__version__}: install one version"
            )
        self._local: LocalEngine[Any]
        self._local, model = pickle.loads(pickled)
        self._attempts = attempts
        if device == "cpu":
            torch.set_num_threads(1)
            model.follows_load = False
        model.to(device)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[Any]:
        import pyarrow as pa

        for number, files in zip(batch["number"], batch["files"], strict=True):
            for outcome in self._work(f"chunk {number}", pickle.loads(files)):
                yield pa.table({"outcome": pa.array([pickle.dumps(outcome)], pa.large_binary())})

    def _work(self, name: str, files: list[Recording]) -> Iterator[_Outcome]:
        outcome = _Outcome(self._begin(name))
        run = self._local.run if outcome.attempt <= _QUICK_ATTEMPTS else self._run_one_by_one
        with collect_remarks() as outcome.remarks, collect_above_band() as outcome.above_band:
            try:
                for path, result in run(files, outcome):
                    outcome.add(path, result)
                    if outcome.sent_bytes > _SENT_BYTES:
                        yield outcome
                        outcome.clear()
            except Exception as error:  # whatever it is, it belongs to whoever waits for the result
                outcome.failure = _picklable(error)
        yield outcome

    def _run_one_by_one(self, files: Sequence[Recording], job: Job) -> Iterator[tuple[Recording, Any]]:
        for path in files:
            if self._begin(str(path)) > _QUICK_ATTEMPTS:
                text = f"{path}: two worker processes died while they worked on it (out of memory?). Divide or omit it"
                job.skip(path, AudioDecodeError(text))
            else:
                yield from self._local.with_workers(1).run([path], job)
                self._ended(str(path))

    def _begin(self, what: str) -> int:
        import ray

        attempt: int = ray.get(self._attempts.begin.remote(what))
        return attempt

    def _ended(self, what: str) -> None:
        import ray

        ray.get(self._attempts.ended.remote(what))


class _Outcome:
    """What a worker sends of a chunk: the job that its local engine works for, collected."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.remarks: list[Remark] = []
        self.above_band: list[Remark] = []
        self.failure: Exception | None = None
        """An error that is not of one file, and ends the job."""
        self.clear()

    def clear(self) -> None:
        """Forget what was sent."""
        self.results: list[tuple[Recording, Any]] = []
        self.notes: list[str] = []
        self.sent_bytes = 0
        del self.remarks[:], self.above_band[:]

    def add(self, path: Recording, result: Any) -> None:
        """Add the result of a file."""
        if isinstance(result, Exception):
            self.skip(path, result)
        else:
            self.results.append((path, result))
            self.sent_bytes += getattr(result, "nbytes", 0)

    def skip(self, path: Recording, error: Exception) -> None:
        """Add the error of a file, of which its kind and its text matter."""
        self.results.append((path, file_error(error, str(error))))

    def note(self, text: str) -> None:
        """Add what is to be said about a file."""
        self.notes.append(text)

    def goes_on(self) -> bool:
        """Return True: a chunk is worked on to its end."""
        return True

    def file_bytes(self, path: Recording) -> int:
        """Return 0: a chunk is not divided further."""
        return 0


def _picklable(error: Exception) -> Exception:
    """Return the error, or one with its text if it cannot be sent."""
    error.__cause__ = error.__context__ = error.__traceback__ = None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # some exceptions cannot be made again from their arguments
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@dataclass(frozen=True)
class Plan:
    """How a cluster is used."""

    device: str
    """Where workers run the model."""
    workers: int
    """Their number."""
    cpus: int
    """Cores of each worker; those beside the first one decode."""

    @classmethod
    def of(cls, resources: Mapping[str, float], device: str | None = None, workers: int | None = None) -> Plan:
        """Plan for the resources of a cluster, as `ray.cluster_resources` returns them.

        Raises:
            ConfigError: it has no such device.
        """
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        kind = ("cuda" if gpus else "cpu") if device is None else parse_device(device).type
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not gpus):
            raise ConfigError(f"device={device!r}: the cluster has {counted(cpus, 'core')} and {counted(gpus, 'GPU')}")
        if kind == "cpu":
            return cls(kind, workers or max(1, cpus), 1)
        return cls(kind, workers or gpus, min(_MOST_CPUS_A_GPU, max(1, cpus // gpus)))

    def chunks(self, files: Sequence[Recording], sizes: Sequence[int]) -> list[list[Recording]]:
        """Divide files, with their sizes in bytes, into chunks that follow each other."""
        factor = 1 if self.device == "cpu" else _GPU_CHUNKS
        fair = -(-len(files) // (self.workers * _CHUNKS_A_WORKER))
        most_files = max(min(factor * _CHUNK_FILES, fair), -(-len(files) // _MOST_CHUNKS))
        most_bytes = max(factor * _CHUNK_BYTES, sum(sizes) // _MOST_CHUNKS)
        chunks: list[list[Recording]] = []
        left = 0
        for path, size in zip(files, sizes, strict=True):
            if not chunks or len(chunks[-1]) >= most_files or size > left:
                chunks.append([])
                left = most_bytes
            chunks[-1].append(path)
            left -= size
        return chunks


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster, or start Ray on this machine, unless that is done; yield the module."""
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {"address": "local", "num_cpus": allowed_cores(), "include_dashboard": False}
    elif address != "auto":
        _check_answers(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _without_stderr():  # what goes wrong is raised, too
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        if address is None:
            raise WorkerStartError(f"Ray cannot start on this machine: {reason}") from error
        raise ConfigError(_unreachable(address, reason)) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray would end the process
        yield ray
    finally:
        if _answers(ray.get_runtime_context().gcs_address):  # else it would wait, and end this process
            ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what C++ code writes to standard error."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _check_answers(address: str) -> None:
    """Raise a ConfigError unless something listens at HOST:PORT; Ray itself would try for a minute."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise ConfigError(f"address {address}: expected HOST:PORT, as `ray start --head` prints it, or auto")
    try:
        _connect(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(_unreachable(address, str(error))) from None


def _unreachable(address: str, reason: str) -> str:
    start = "Start one with `ray start --head`, which prints its address"
    if address == "auto":
        where = "no cluster runs on this machine"
    else:
        where = "no cluster can be reached there"
        start += "; if one runs there, it may want its token (RAY_AUTH_MODE=token; on its machines use auto)"
    return f"address {address}: {where} ({reason}). {start}; or omit --address (address=) to use this machine alone"


def _answers(address: str) -> bool:
    """Return whether something listens at HOST:PORT."""
    try:
        _connect(address)
    except OSError:
        return False
    return True


def _connect(address: str) -> None:
    """Connect to HOST:PORT and end the connection."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()


@contextmanager
def _unless_lost(ray: Any) -> Iterator[None]:
    """Interrupt what waits for the cluster in the main thread once it has not answered for a while.

    Raises:
        WorkerDiedError: the cluster was lost.
    """
    address = ray.get_runtime_context().gcs_address
    stop, is_lost = threading.Event(), threading.Event()

    def watch() -> None:
        answered_s = time.monotonic()
        while not stop.wait(_CONNECT_S):
            if _answers(address):
                answered_s = time.monotonic()
            elif time.monotonic() - answered_s > _LOST_S:
                is_lost.set()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if is_lost.is_set():
            raise KeyboardInterrupt
        if callable(on_sigint):
            on_sigint(signum, frame)

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_kill"):
        yield
        return
    on_sigint = signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=watch, name="cluster", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not is_lost.is_set():
            raise
        raise WorkerDiedError(
            f"the cluster at {address} does not answer any more: Ray has stopped on its first machine. What is done is "
            "kept: repeat the command to resume"
        ) from None
    finally:
        stop.set()
        signal.signal(signal.SIGINT, on_sigint)


@contextmanager
def _patience(ray: Any) -> Iterator[threading.Timer]:
    """Say after a minute that nothing has come yet, unless the timer that is yielded was canceled."""

    def say() -> None:
        free, cores = (int(found.get("CPU", 0)) for found in (ray.available_resources(), ray.cluster_resources()))
        _log.warning(
            "no result of Ray after %g s; %d of its %d cores are free. Still waiting", _PATIENCE_S, free, cores
        )

    timer = threading.Timer(_PATIENCE_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


def _cluster_error(error: Exception) -> Exception:
    """Return what Ray's error means for the job."""
    text = str(error).strip() or type(error).__name__
    # Of a traceback and what Ray adds to it, the error itself.
    reason = (_ERROR_LINE.findall(text) or text.splitlines())[-1]
    if "creation task" in text:
        needs = "Every machine of the cluster needs this version of ssamba, and the packages that the model needs"
        return WorkerStartError(f"the workers of Ray cannot start ({reason}). {needs}")
    return WorkerDiedError(f"Ray failed ({type(error).__name__}: {reason}). What is done is kept: repeat it to resume")
