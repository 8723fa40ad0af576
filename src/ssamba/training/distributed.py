"""Several processes under `torchrun`, or one: who this process is, and the few words it exchanges with the others.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK. GPUs talk through NCCL, CPUs through Gloo. Only the first process writes
files. When a process dies, `torchrun --max-restarts` starts all of them again, and a run with `resume="auto"` goes on
from the last saved state, on however many processes there now are.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssamba.errors import TrainingError

T = TypeVar("T")
_TIMEOUT = timedelta(minutes=30)  # also bounds a validation or the writing of a state, which the others wait for


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them."""

    rank: int
    """This process, from 0."""
    size: int
    """Processes."""
    device: torch.device
    """Where this process computes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, value: T) -> list[T]:
        """Every process's value, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


@contextmanager
def init_distributed(device: str | torch.device | None = None) -> Iterator[World]:
    """Take this process's place among those that `torchrun` started; alone, there is only this one.

    Args:
        device: where to compute; None is this process's GPU, or the CPU where there is none.

    Raises:
        TrainingError: the device cannot be used.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    where = _device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    started = size > 1 and not dist.is_initialized()
    if started:
        # Threads of a group that is still alive when Python ends abort the process now and then
        # (https://github.com/pytorch/pytorch/issues/190489). DistributedDataParallel imports torch._dynamo, and what is
        # imported while there is a group keeps it for good: import it before.
        importlib.import_module("torch._dynamo")
        backend = "nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_meeting_place(), rank=rank, world_size=size, timeout=_TIMEOUT)
    try:
        yield World(rank, size, where)
    finally:
        if started:
            dist.destroy_process_group()
            gc.collect()  # the wrapped model, in cycles, holds the group too


class _Shares(nn.Module):
    """The model, or a zero in which every parameter takes part: for a process whose share of a batch is empty."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args: Any, nothing: bool = False, **kwargs: Any) -> Any:
        if not nothing:
            return self.model(*args, **kwargs)
        return sum((p.sum() * 0.0 for p in self.model.parameters() if p.requires_grad), torch.zeros(()))


def wrap_ddp(model: nn.Module, world: World, find_unused: bool = False) -> nn.Module:
    """The model as the loop calls it: with several processes, its gradients become their mean over processes."""
    if world.size == 1:
        return model
    devices = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(_Shares(model), device_ids=devices, find_unused_parameters=find_unused)


def backward_zeros(model: nn.Module) -> None:
    """Take part in the exchange of gradients with zeros."""
    if isinstance(model, DistributedDataParallel):
        model(nothing=True).backward()


def no_sync(model: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """A context in which gradients only add up here, if wanted."""
    if wanted and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def _meeting_place() -> Any:
    """The store that `torchrun` lends, with its own names for each restart.

    It outlives restarts, and processes would look for each other where those before them were
    (https://github.com/pytorch/pytorch/issues/135712). Only on one machine do all processes count the same restarts;
    on several, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun lend a new store each time.
    """
    from torch.distributed.rendezvous import rendezvous

    store, _, size = next(rendezvous("env://", timeout=_TIMEOUT))
    if os.environ.get("LOCAL_WORLD_SIZE") != str(size):
        return store
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"ssamba-{restarts}", store)  # type: ignore[attr-defined]


def _device(device: str | torch.device | None) -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError:
        raise TrainingError(f"there is no device {device!r}: expected cpu, cuda, cuda:1 or the like") from None
    if str(where) == "cuda":
        where = torch.device("cuda", local)
    if where.type == "cuda" and where.index >= torch.cuda.device_count():
        raise TrainingError(
            f"process {local} of this machine wants {where}, but it has {torch.cuda.device_count()} GPUs: start at most "
            "as many processes (torchrun --nproc-per-node), or ask for the CPU"
        )
    return where
