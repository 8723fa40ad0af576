"""From a plan to batches of waveforms: worker processes read and decode whole batches, ahead of the model.

    plan = Plan(PlanConfig(batch_size=64), [corpus])
    loader = WaveLoader([corpus], plan, workers=8)
    for batch in loader.batches(epoch=0):          # batch.waves (B, S), batch.samples (B,), ...

A batch is the same for any number of workers. Workers know no plan: each batch's rows are sent to them, so they persist
over epochs. A clip that cannot be read is left out of its batch and named in `skipped`; so is one on which a worker dies,
after which the workers start again.

Features are computed from the waves by the trainer, on the model's device. Shapes: B sequences, S samples.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssamba.data.corpus import Corpus, Samples
from ssamba.data.mixing import Backgrounds, Mixed, Mixup, add_background, chosen_background, chosen_partner, mix
from ssamba.data.plan import BatchPlan, Crop, EpochPlan, Plan
from ssamba.errors import AudioDecodeError, DataError
from ssamba.worker_pool import crashing_items

StartMethod = Literal["spawn", "forkserver", "fork"]
Item: TypeAlias = tuple[BatchPlan, int, frozenset[tuple[int, int]]]

_DEATHS = 3  # of workers without a clip that explains them, before this is an error


@dataclass(frozen=True)
class WaveBatch:
    """Sequences of audio, each one clip or several joined in time."""

    waves: Tensor
    """(B, S) float32, zero beyond `samples`. B is 0 when no clip of the batch could be read, or none was this rank's."""
    samples: Tensor
    """Valid samples of each sequence (B,), int64."""
    seeds: Tensor
    """A number of 63 bits for each sequence (B,), int64, from which its masks and augmentation are drawn."""
    keys: tuple[tuple[str, ...], ...]
    """Names of the clips of each sequence."""
    pieces: tuple[tuple[int, ...], ...]
    """How many samples of the sequence each of them is."""
    labels: tuple[tuple[str, ...], ...]
    """Labels of each sequence: those of its clips, each once."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(key, reason) of clips that could not be read."""
    mixed: tuple[Mixed | None, ...] = ()
    """With mixup: what was mixed into each sequence."""

    def __len__(self) -> int:
        return len(self.waves)

    @property
    def num_samples(self) -> int:
        """Valid samples of all its sequences."""
        return int(self.samples.sum())

    def chosen(self, rows: Sequence[int]) -> WaveBatch:
        """Some of the sequences."""
        changes: dict[str, Any] = {name: getattr(self, name)[list(rows)] for name in ("waves", "samples", "seeds")}
        for name in ("keys", "pieces", "labels", "mixed"):
            if own := getattr(self, name):
                changes[name] = tuple(own[i] for i in rows)
        return dataclasses.replace(self, **changes)

    def pin_memory(self) -> WaveBatch:
        """The same in memory from which a GPU copies without waiting."""
        tensors = {name: getattr(self, name).pin_memory() for name in ("waves", "samples", "seeds")}
        return dataclasses.replace(self, **tensors)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> WaveBatch:
        """The same on a device."""
        names = ("waves", "samples", "seeds")
        tensors = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        return dataclasses.replace(self, **tensors)


def read_batch(
    corpora: Sequence[Corpus],
    rows: BatchPlan,
    padded_samples: int,
    crashing: frozenset[tuple[int, int]] = frozenset(),
    backgrounds: Backgrounds | None = None,
    mixup: Mixup | None = None,
) -> WaveBatch:
    """Read the clips of a batch: what a worker does.

    Args:
        corpora: as the plan numbers them.
        rows: the sequences.
        padded_samples: S.
        crashing: clips (corpus, index) not to touch.
        backgrounds: what is mixed under the sequences, if anything.
        mixup: what is mixed into them, with its labels, if anything.
    """
    waves = np.zeros((len(rows), padded_samples), np.float32)
    samples: list[int] = []
    seeds: list[int] = []
    keys: list[tuple[str, ...]] = []
    pieces: list[tuple[int, ...]] = []
    labels: list[tuple[str, ...]] = []
    skipped: list[tuple[str, str]] = []
    mixed: list[Mixed | None] = []
    for sequence in rows:
        parts: list[Samples] = []
        clips = []
        for crop in sequence:
            corpus = corpora[crop.corpus]
            part = _CRASHED if (crop.corpus, crop.index) in crashing else _read(corpus, crop)
            if isinstance(part, Exception):
                skipped.append((corpus.key(crop.index), str(part)))
            else:
                parts.append(part[: round(crop.seconds * corpus.sample_rate_hz)])
                clips.append(corpus.clip(crop.index))
        if not parts:
            continue
        joined = np.concatenate(parts)
        if backgrounds is not None:
            joined = add_background(joined, sequence[0], corpora, backgrounds, crashing)
        if mixup is not None:
            joined, other = mix(joined, sequence[0], corpora, mixup, crashing)
            mixed.append(other)
        waves[len(samples), : len(joined)] = joined
        samples.append(len(joined))
        seeds.append(sequence[0].seed)
        keys.append(tuple(clip.key for clip in clips))
        pieces.append(tuple(map(len, parts)))
        labels.append(tuple(dict.fromkeys(label for clip in clips for label in clip.labels)))
    return WaveBatch(
        torch.from_numpy(waves)[: len(samples)],
        torch.tensor(samples, dtype=torch.int64),
        torch.tensor(seeds, dtype=torch.int64),
        tuple(keys),
        tuple(pieces),
        tuple(labels),
        tuple(skipped),
        tuple(mixed),
    )


_CRASHED = AudioDecodeError("the decoder crashed on it, so it is damaged: re-encode or leave it out")


def _read(corpus: Corpus, crop: Crop) -> Samples | Exception:
    try:
        return corpus.read(crop.index, crop.start_s, crop.seconds)
    except (ValueError, OSError) as error:
        return error
    except Exception as error:  # whatever a damaged file provokes, it must not end the training
        return AudioDecodeError(f"{corpus.key(crop.index)}: cannot be decoded ({type(error).__name__}: {error})")


class WaveLoader:
    """Batches of a plan for one rank, read by worker processes that persist over epochs."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        plan: Plan,
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool | None = None,
        start_method: StartMethod = "spawn",
        backgrounds: Backgrounds | None = None,
        mixup: Mixup | None = None,
    ):
        """Make a loader; workers start with the first batch.

        Args:
            corpora: those that the plan was made of, in the same order.
            plan: the batches.
            rank: which rows of each batch are read: rank, rank + world_size, ...
            world_size: number of ranks.
            workers: processes that read; 0 reads in this one, as it does when every corpus is in memory.
            prefetch: batches that each worker is ahead.
            pin_memory: for copies to a GPU; None: where there is one.
            start_method: how workers start. A script needs `if __name__ == "__main__":` but for `fork`, which is quicker
                and shares the corpora's memory, and may hang where threads are running.
            backgrounds: what is mixed under the sequences, if anything.
            mixup: what is mixed into them, with its labels, if anything.

        Raises:
            DataError: the corpora are not those of the plan, or there is no such rank.
        """
        if plan.corpora != [corpus.fingerprint() for corpus in corpora]:
            raise DataError("the corpora are not those that the plan was made of: make a plan of these")
        if not 0 <= rank < world_size:
            raise DataError(f"rank must be one of 0 to {world_size - 1} (world_size {world_size}), got {rank}")
        self.plan, self.rank, self.world_size = plan, rank, world_size
        self._corpora = list(corpora)
        self._workers = 0 if all(corpus.in_memory for corpus in corpora) else workers
        self._prefetch, self._start_method = prefetch, start_method
        self._backgrounds, self._mixup = backgrounds, mixup
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._crashing: frozenset[tuple[int, int]] = frozenset()
        self._order = _Order()
        self._loader = self._started()

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[WaveBatch]:
        """This rank's part of the batches of an epoch, from number `start_batch` on; one epoch at a time.

        Raises:
            DataError: workers die again and again, and no clip is the reason.
        """
        return self.run(self.plan.batches(epoch), start_batch)

    def run(self, epoch: EpochPlan, start_batch: int = 0) -> Iterator[WaveBatch]:
        """The same for an epoch of the plan that was made already."""
        next_batch, deaths = start_batch, 0
        while True:
            self._order.items = _Items(epoch, next_batch, self.rank, self.world_size, self._crashing)
            try:
                for batch in self._iterator():
                    yield batch
                    next_batch += 1
                return
            except (RuntimeError, EOFError, OSError) as error:
                if not _is_death(error):
                    raise
                ahead = range(next_batch, min(len(epoch), next_batch + self._workers * (self._prefetch + 1)))
            del self._loader
            rows = [row for k in ahead for row in epoch.rows(k, self.rank, self.world_size)]
            suspects = [crop for row in rows for crop in self._read_for(row)]
            suspects = [crop for crop in suspects if (crop.corpus, crop.index) not in self._crashing]
            found = crashing_crops(self._corpora, suspects)
            self._crashing |= {(crop.corpus, crop.index) for crop in found}
            deaths = 0 if found else deaths + 1
            if deaths == _DEATHS:
                raise DataError(
                    f"loading workers were killed {deaths} times, and no clip is the reason. Where memory is short, use "
                    "fewer workers, a smaller prefetch or smaller batches; in a container, allow more shared memory"
                )
            self._loader = self._started()

    def _iterator(self) -> Iterator[WaveBatch]:
        """The loader's batches. Its first start makes a worker's death an error wherever this process is at that moment, in
        the middle of a step perhaps; it is noticed soon enough where the next batch is waited for."""
        if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
            return iter(self._loader)
        before = signal.getsignal(signal.SIGCHLD)
        iterator = iter(self._loader)
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        return iterator

    def _read_for(self, row: Sequence[Crop]) -> Iterator[Crop]:
        """Everything that a sequence is made of: its clips, and what is mixed into it."""
        yield from row
        for other in (
            None if self._backgrounds is None else chosen_background(row[0], self._corpora, self._backgrounds),
            None if self._mixup is None else chosen_partner(row[0], self._corpora, self._mixup),
        ):
            if other is not None:
                seconds = float(self._corpora[other.corpus].seconds[other.clip])
                yield Crop(other.corpus, other.clip, 0.0, seconds, row[0].seed)

    def _started(self) -> DataLoader[WaveBatch]:
        options: dict[str, Any] = {}
        if self._workers > 0:
            options = {
                "prefetch_factor": self._prefetch,
                "persistent_workers": True,
                "multiprocessing_context": self._start_method,
                "worker_init_fn": _start_worker,
            }
        return DataLoader(
            _Batches(self._corpora, self._backgrounds, self._mixup),
            batch_size=None,
            sampler=self._order,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._pin,
            **options,
        )


def _is_death(error: Exception) -> bool:
    """Whether an error of a DataLoader says that a worker is gone, rather than what a worker ran into."""
    if "Caught" in str(error):
        return False
    return "DataLoader worker" in str(error) or isinstance(error, EOFError | ConnectionError | FileNotFoundError)


def make_loader(
    corpora: Sequence[Corpus],
    plan: Plan,
    epoch: int,
    start_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[WaveBatch]:
    """One rank's batches of one epoch; arguments and errors are those of `WaveLoader`, which keeps workers for more."""
    loader = WaveLoader(corpora, plan, rank=rank, world_size=world_size, workers=workers, prefetch=prefetch)
    return loader.batches(epoch, start_batch)


class _Items(Sequence[Item]):
    """What workers are sent, one item for each batch, made when its turn comes."""

    def __init__(
        self, epoch: EpochPlan, start_batch: int, rank: int, world_size: int, crashing: frozenset[tuple[int, int]]
    ):
        self._epoch, self._start, self._rank, self._world_size = epoch, start_batch, rank, world_size
        self._crashing = crashing

    def __len__(self) -> int:
        return max(0, len(self._epoch) - self._start)

    def __getitem__(self, k: Any) -> Any:
        if k >= len(self):
            raise IndexError(k)
        batch = self._start + k
        rows = self._epoch.rows(batch, self._rank, self._world_size)
        return rows, self._epoch.padded_samples(batch), self._crashing


class _Order(Sampler[Item]):
    """Hands the items of the current epoch to the workers."""

    def __init__(self) -> None:
        self.items: Sequence[Item] = ()

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class _Batches(Dataset[WaveBatch]):
    def __init__(self, corpora: Sequence[Corpus], backgrounds: Backgrounds | None, mixup: Mixup | None):
        self._corpora, self._backgrounds, self._mixup = list(corpora), backgrounds, mixup

    def __getitem__(self, item: Item) -> WaveBatch:
        return read_batch(self._corpora, *item, self._backgrounds, self._mixup)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles the interrupt and ends its workers
    if hasattr(os, "setsid"):
        os.setsid()  # what is sent to the parent's group (torchrun, timeout, systemd) is the parent's to handle, too


def crashing_crops(corpora: Sequence[Corpus], crops: Sequence[Crop]) -> list[Crop]:
    """Those of `crops` on which a process dies."""
    return crashing_items(partial(_read_all, corpora), crops)


def _read_all(corpora: Sequence[Corpus], crops: Sequence[Crop]) -> None:
    for crop in crops:
        try:
            corpora[crop.corpus].read(crop.index, crop.start_s, crop.seconds)
        except Exception:  # told when its batch is read
            continue
