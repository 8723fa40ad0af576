"""Training on several processes under `torchrun`: rank, world size, collectives and DistributedDataParallel (DDP).

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK. GPUs communicate through NCCL, CPUs through Gloo. Only the main process
(rank 0) writes files. When a process dies, `torchrun --max-restarts` restarts all of them, and the run resumes from its
last saved state, on any number of processes.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssamba.devices import parse_device
from ssamba.errors import TrainingError
from ssamba.locks import OutputLock, lock_output

_log = logging.getLogger(__name__)

T = TypeVar("T")
_log = logging.getLogger(__name__)
_TIMEOUT = timedelta(minutes=30)  # validation and saving must also finish within it: other ranks wait for them


@dataclass(frozen=True)
class World:
    """The processes of a run, as seen from one of them. Collectives do nothing when there is only one."""

    rank: int
    """Number of this process, from 0."""
    size: int
    """World size: the number of processes."""
    device: torch.device
    """Device of this process."""

    @property
    def is_main(self) -> bool:
        """Whether this is the main process (rank 0), which writes files."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank, to every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Return the main process's value to every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


@dataclass(frozen=True)
class StepTotals:
    """Sums over all ranks after the backward pass, the same on every rank."""

    weight: float
    """Number of terms of the step."""
    loss: float
    """Mean loss over them."""
    grad_norm: float
    """Euclidean norm of the mean loss's gradient."""
    signal: str | None
    """Name of a signal that any process received, or `STOPPED`."""
    elapsed_s: float
    """Time spent over all sessions, by the main process's clock."""
    save_is_due: bool
    """Whether it is time to save, by the main process's clock."""


@contextmanager
def init_distributed(device: str | torch.device | None = None) -> Iterator[World]:
    """Join the process group of `torchrun`, and leave it at the end; without `torchrun` the world size is 1.

    Args:
        device: where to compute; None means the GPU number LOCAL_RANK, or the CPU if there is no GPU.

    Raises:
        ConfigError: `device` does not name a device.
        TrainingError: the device does not exist.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    own = training_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    init = size > 1 and not dist.is_initialized()
    if init:
        # Threads of a process group that is still alive when Python exits sometimes abort the process
        # (https://github.com/pytorch/pytorch/issues/190489). DistributedDataParallel imports torch._dynamo, and modules
        # imported while a group exists keep it alive: import it before.
        importlib.import_module("torch._dynamo")
        warn_if_restarts_fail()
        backend = "nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_rendezvous_store(), rank=rank, world_size=size, timeout=_TIMEOUT)
    try:
        _log.debug("process %d of %d on %s with %d threads", rank + 1, size, own, torch.get_num_threads())
        yield World(rank, size, own)
    finally:
        if init:
            # The DDP model is part of reference cycles and holds the group, too. If it were the last to do so, its
            # destructor would wait for the group's threads with the GIL held, which they may need to end.
            gc.collect()
            dist.destroy_process_group()
            gc.collect()


def is_main_process() -> bool:
    """Return whether this process is alone, or rank 0 of those of `torchrun`."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def lock_run(output: Path, take_over: bool = False) -> Iterator[OutputLock | None]:
    """Hold the lock of a run's folder on the main process; yield None on the others.

    Raises:
        OutputInUseError, ConfigError, OSError: see `lock_output`.
    """
    if not is_main_process():
        yield None
        return
    with lock_output(output, folder=True, take_over=take_over) as lock:
        yield lock


def is_restarted() -> bool:
    """Return whether `torchrun` restarted this process."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def warn_if_restarts_fail() -> None:
    """Warn, on the main process, if `torchrun` runs on several machines and could not restart them.

    Its store survives restarts. All processes count the same restarts only on one machine; a machine that is started
    again looks for keys that the others have not written, and after a minute every `torchrun` ends.
    """
    environment = os.environ
    several = environment.get("LOCAL_WORLD_SIZE") != environment.get("WORLD_SIZE")
    if several and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and is_main_process():
        _log.warning(
            "this run is on several machines: to restart one of them, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each "
            "before torchrun starts"
        )


class _ModelOrZero(nn.Module):
    """Call the model, or with `zero=True` return 0 as a function of all its parameters, so that DDP can synchronize."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args: Any, zero: bool = False, **kwargs: Any) -> Any:
        if not zero:
            return self.model(*args, **kwargs)
        return sum((p.sum() * 0.0 for p in self.model.parameters() if p.requires_grad), torch.zeros(()))


def wrap_ddp(model: nn.Module, world: World, find_unused_parameters: bool = False) -> nn.Module:
    """Wrap the model so that `backward` averages gradients over ranks (if several); the loop then rescales them."""
    if world.size == 1:
        return model
    devices = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        _ModelOrZero(model), device_ids=devices, find_unused_parameters=find_unused_parameters
    )


def backward_zeros(model: nn.Module) -> None:
    """Take part in DDP's all-reduce with gradients of zero, for a rank that has no clips of a batch."""
    if isinstance(model, DistributedDataParallel):
        model(zero=True).backward()


def no_sync(model: nn.Module, enabled: bool) -> AbstractContextManager[None]:
    """Return DDP's `no_sync` context, in which gradients only accumulate locally, or one that does nothing."""
    return model.no_sync() if enabled and isinstance(model, DistributedDataParallel) else nullcontext()


def _rendezvous_store() -> Any:
    """Return the store that `torchrun` provides, with a key prefix for each restart.

    The store survives restarts, and new processes would read the addresses of the old ones from it
    (https://github.com/pytorch/pytorch/issues/135712). On several machines torchrun has to provide a new store after
    each restart; see `warn_if_restarts_fail`.
    """
    from torch.distributed.rendezvous import rendezvous

    store, _, size = next(rendezvous("env://", timeout=_TIMEOUT))
    if os.environ.get("LOCAL_WORLD_SIZE") != str(size):
        return store
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"ssamba-{restarts}", store)  # type: ignore[attr-defined]


def training_device(name: str | torch.device | None) -> torch.device:
    """Return the device of this process; errors and None as `init_distributed`."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name is None:
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    device = parse_device(name)
    if str(device) == "cuda":
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise TrainingError(
            f"process {local_rank} of this machine needs {device}, but there are {torch.cuda.device_count()} GPUs: "
            "start at most as many processes (torchrun --nproc-per-node), or use the CPU"
        )
    return device


@dataclass
class StopRequest:
    """Name of the last signal received, or `STOPPED`, if any. A second SIGINT raises KeyboardInterrupt."""

    signal: str | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; see `signal.signal`."""
        if number == signal.SIGINT and self.signal == "SIGINT":
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into requests to stop after the current step (only possible in the main thread)."""
    request = StopRequest()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
