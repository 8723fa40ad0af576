"""Load the batches of a plan as waveforms: worker processes read and decode whole batches ahead of the model.

    plan = Plan(PlanConfig(batch_size=64), [corpus])
    loader = WaveLoader([corpus], plan, workers=8)
    for batch in loader.batches(epoch=0):          # batch.waves (B, S), batch.samples (B,), ...

A batch is the same for any number of workers. Workers do not hold the plan: the rows of each batch are sent to them, so
they persist over epochs. A clip that cannot be read is left out of its batch and listed in `skipped`; so is a clip that
ends a worker process, after which the workers are restarted.

Features are computed from the waves by the training step, on the model's device. Shapes: B sequences, S samples.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssamba.data.corpus import Corpus, Samples, read_or_error
from ssamba.data.mixing import Backgrounds, Mixed, Mixup, add_background, choose_background, choose_partner, mix
from ssamba.data.plan import BatchPlan, Crop, EpochPlan, Plan, crops_that_kill
from ssamba.data.takes import OtherTakes
from ssamba.errors import DataError
from ssamba.worker_pool import starting_processes

StartMethod = Literal["spawn", "forkserver", "fork"]
Unusable: TypeAlias = "dict[tuple[int, int], str]"
"""Clips (corpus, index) that must not be read, with the reasons."""
Item: TypeAlias = tuple[BatchPlan, int, Unusable]
"""Work for a worker: the rows of a batch, its padded length in samples, and the clips that must not be read."""

_MAX_DEATHS = 3
"""Successive deaths of workers without a clip that explains them, before an error is raised."""
_TENSORS = ("waves", "samples", "seeds", "other_waves", "other_samples", "has_other")


@dataclass(frozen=True)
class WaveBatch:
    """Sequences of audio, each one clip or several clips joined in time."""

    waves: Tensor
    """(B, S) float32, zero beyond `samples`. B is 0 if no clip of the batch could be read or this rank has none."""
    samples: Tensor
    """Valid samples of each sequence (B,), int64."""
    seeds: Tensor
    """A 63-bit seed for each sequence (B,), int64, for its masks and augmentation."""
    keys: tuple[tuple[str, ...], ...]
    """Keys of the clips in each sequence."""
    pieces: tuple[tuple[int, ...], ...]
    """Length in samples of each clip's part of the sequence."""
    labels: tuple[tuple[str, ...], ...]
    """Distinct labels of each sequence, over its clips."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(key, reason) of clips that could not be read."""
    mixed: tuple[Mixed | None, ...] = ()
    """With mixup: the clip that was mixed into each sequence."""
    other_waves: Tensor | None = None
    """With other takes: another clip of the same labels for each sequence (B, S'), itself where there is none; None if
    no sequence has one."""
    other_samples: Tensor | None = None
    """Valid samples of these (B,), int64."""
    has_other: Tensor | None = None
    """True for sequences with another take (B,), bool."""

    def __len__(self) -> int:
        return len(self.waves)

    @property
    def num_samples(self) -> int:
        """Valid samples of all sequences."""
        return int(self.samples.sum())

    def chosen(self, rows: Sequence[int]) -> WaveBatch:
        """Return the sequences with the indices `rows`."""
        changes: dict[str, Any] = {name: tensor[list(rows)] for name, tensor in self._tensors()}
        for name in ("keys", "pieces", "labels", "mixed"):
            if own := getattr(self, name):
                changes[name] = tuple(own[i] for i in rows)
        return dataclasses.replace(self, **changes)

    def pin_memory(self) -> WaveBatch:
        """Return a copy in page-locked memory, for asynchronous copies to a GPU."""
        tensors: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in self._tensors()}
        return dataclasses.replace(self, **tensors)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> WaveBatch:
        """Return a copy on a device."""
        tensors: dict[str, Any] = {
            name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors()
        }
        return dataclasses.replace(self, **tensors)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name in _TENSORS if (tensor := getattr(self, name)) is not None)


def read_batch(
    corpora: Sequence[Corpus],
    rows: BatchPlan,
    padded_samples: int,
    unusable: Unusable | None = None,
    backgrounds: Backgrounds | None = None,
    mixup: Mixup | None = None,
    takes: OtherTakes | None = None,
) -> WaveBatch:
    """Read the clips of a batch; each call of a worker is one of these.

    Args:
        corpora: as the plan numbers them.
        rows: the sequences.
        padded_samples: S, unless backgrounds make a sequence longer.
        unusable: clips (corpus, index) that must not be read, with the reasons.
        backgrounds: backgrounds to mix under the sequences, if any.
        mixup: mixup of waves and labels, if any.
        takes: other takes for second views, if any.
    """
    unusable = unusable or {}
    sequences: list[Samples] = []
    seeds: list[int] = []
    keys: list[tuple[str, ...]] = []
    pieces: list[tuple[int, ...]] = []
    labels: list[tuple[str, ...]] = []
    skipped: list[tuple[str, str]] = []
    mixed: list[Mixed | None] = []
    others: list[Samples | None] = []
    for sequence in rows:
        parts: list[Samples] = []
        clips = []
        for crop in sequence:
            corpus = corpora[crop.corpus]
            if (reason := unusable.get((crop.corpus, crop.index))) is not None:
                skipped.append((corpus.key(crop.index), f"{corpus.key(crop.index)}: {reason}"))
                continue
            part = read_or_error(corpus, crop.index, crop.start_s, crop.seconds)
            if isinstance(part, Exception):
                skipped.append((corpus.key(crop.index), str(part)))
            else:
                parts.append(part[: round(crop.seconds * corpus.sample_rate_hz)])
                clips.append(corpus.clip(crop.index))
        if not parts:
            continue
        joined = np.concatenate(parts)
        if backgrounds is not None:
            joined = add_background(joined, sequence[0], corpora, backgrounds, unusable)
        if mixup is not None:
            joined, other = mix(joined, sequence[0], corpora, mixup, unusable)
            mixed.append(other)
        if takes is not None:
            batch_s = padded_samples / corpora[sequence[0].corpus].sample_rate_hz
            other_take, take_crop = takes.read(sequence[0], corpora, unusable, batch_s) or (None, None)
            if other_take is not None and take_crop is not None and backgrounds is not None:
                other_take = add_background(other_take, take_crop, corpora, backgrounds, unusable)
            others.append(other_take)
        sequences.append(joined)
        seeds.append(sequence[0].seed)
        keys.append(tuple(clip.key for clip in clips))
        pieces.append(tuple(map(len, parts)))
        labels.append(tuple(dict.fromkeys(label for clip in clips for label in clip.labels)))
    waves, samples = _padded(sequences, padded_samples)
    other_waves = other_samples = has_other = None
    if any(other is not None for other in others):
        pairs = zip(others, sequences, strict=True)
        other_waves, other_samples = _padded([own if other is None else other for other, own in pairs], 0)
        has_other = torch.tensor([other is not None for other in others])
    return WaveBatch(
        waves,
        samples,
        torch.tensor(seeds, dtype=torch.int64),
        tuple(keys),
        tuple(pieces),
        tuple(labels),
        tuple(skipped),
        tuple(mixed),
        other_waves,
        other_samples,
        has_other,
    )


def _padded(sequences: Sequence[Samples], shortest: int) -> tuple[Tensor, Tensor]:
    """Return sequences padded with zeros to the longest, or to `shortest` (B, S), and their lengths (B,)."""
    samples = [len(wave) for wave in sequences]
    waves = np.zeros((len(sequences), max(shortest, *samples, 0)), np.float32)
    for row, wave in zip(waves, sequences, strict=True):
        row[: len(wave)] = wave
    return torch.from_numpy(waves), torch.tensor(samples, dtype=torch.int64)


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
        takes: OtherTakes | None = None,
    ):
        """Create a loader; its workers start with the first batch.

        Args:
            corpora: the corpora of the plan, in the same order.
            plan: the batches.
            rank: this process reads rows rank, rank + world_size, ... of each batch.
            world_size: number of ranks.
            workers: processes that read; 0 reads in this process, as do corpora that are all in memory.
            prefetch: batches that each worker prepares ahead.
            pin_memory: page-locked memory for copies to a GPU; None: if there is a GPU.
            start_method: how workers start. `fork` is faster and shares the corpora's memory, but may hang if threads
                are running. With the others, a script that defines a corpus class needs `if __name__ == "__main__":`.
            backgrounds: backgrounds to mix under the sequences, if any.
            mixup: mixup of waves and labels, if any.
            takes: other takes for second views, if any.

        Raises:
            DataError: the corpora are not those of the plan, or the rank is out of range.
        """
        if plan.corpora != [corpus.fingerprint() for corpus in corpora]:
            raise DataError("the corpora are not those that the plan was made of: make a plan of these")
        if not 0 <= rank < world_size:
            raise DataError(f"rank must be one of 0 to {world_size - 1} (world_size {world_size}), got {rank}")
        self.plan, self.rank, self.world_size = plan, rank, world_size
        self._corpora = list(corpora)
        self._workers = 0 if all(corpus.in_memory for corpus in corpora) else workers
        self._prefetch, self._start_method = prefetch, start_method
        self._backgrounds, self._mixup, self._takes = backgrounds, mixup, takes
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._unusable: Unusable = {}
        self._order = _Order()
        self._loader = self._make_loader()

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[WaveBatch]:
        """Yield this rank's part of the batches of an epoch, from batch `start_batch` on; one epoch at a time.

        Raises:
            DataError: workers die repeatedly, and no clip is the reason.
        """
        return self.run(self.plan.batches(epoch), start_batch)

    def run(self, epoch: EpochPlan, start_batch: int = 0) -> Iterator[WaveBatch]:
        """Yield the batches of an epoch that the plan has already made; see `batches`."""
        next_batch, deaths = start_batch, 0
        while True:
            self._order.items = self._items(epoch, next_batch)
            try:
                for batch in self._iterator():
                    yield batch
                    next_batch += 1
                return
            except (RuntimeError, EOFError, OSError) as error:
                if not _is_death(error):
                    raise
            del self._loader
            found = self._find_unusable(epoch, next_batch)
            self._unusable = {**self._unusable, **found}
            deaths = 0 if found else deaths + 1
            if deaths == _MAX_DEATHS:
                raise DataError(
                    f"loading workers could not start, or were killed, {deaths} times, and no clip is the reason. If "
                    "memory is short, use fewer workers, a smaller prefetch or smaller batches; in a container, allow "
                    "more shared memory; workers=0 reads in this process"
                )
            self._loader = self._make_loader()

    def _items(self, epoch: EpochPlan, start_batch: int) -> Iterator[Item]:
        for k in range(start_batch, len(epoch)):
            yield epoch.rows(k, self.rank, self.world_size), epoch.padded_samples(k), self._unusable

    def _iterator(self) -> Iterator[WaveBatch]:
        """Iterate over the loader, without the signal handler that its first start installs.

        That handler raises an error wherever this process is when a worker dies, perhaps in the middle of a step.
        Waiting for the next batch notices a death soon enough.
        """
        is_main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGCHLD) if is_main and hasattr(signal, "SIGCHLD") else None
        with starting_processes(self._loader.dataset) if self._workers else nullcontext():
            iterator = iter(self._loader)
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        return iterator

    def _find_unusable(self, epoch: EpochPlan, next_batch: int) -> Unusable:
        """Try the clips of the batches that were being read, and return those that end a process."""
        ahead = range(next_batch, min(len(epoch), next_batch + self._workers * (self._prefetch + 1)))
        rows = [row for k in ahead for row in epoch.rows(k, self.rank, self.world_size)]
        suspects = [crop for row in rows for crop in self._crops_read_for(row)]
        suspects = [crop for crop in suspects if (crop.corpus, crop.index) not in self._unusable]
        found = crops_that_kill(self._corpora, suspects)
        return {(crop.corpus, crop.index): str(reason) for crop, reason in found.items()}

    def _crops_read_for(self, row: Sequence[Crop]) -> Iterator[Crop]:
        """Yield the crops of a sequence, and the clips that are mixed into it or are its other take."""
        yield from row
        yield from self._mixed_into(row[0])
        if self._takes is not None and (take := self._takes.choose(row[0], self._corpora)) is not None:
            yield take
            yield from self._mixed_into(take)

    def _mixed_into(self, crop: Crop) -> Iterator[Crop]:
        for other in (
            None if self._backgrounds is None else choose_background(crop, self._corpora, self._backgrounds),
            None if self._mixup is None else choose_partner(crop, self._corpora, self._mixup),
        ):
            if other is not None:
                seconds = float(self._corpora[other.corpus].seconds[other.clip])
                yield Crop(other.corpus, other.clip, 0.0, seconds, crop.seed)

    def _make_loader(self) -> DataLoader[WaveBatch]:
        options: dict[str, Any] = {}
        if self._workers > 0:
            options = {
                "prefetch_factor": self._prefetch,
                "persistent_workers": True,
                "multiprocessing_context": self._start_method,
                "worker_init_fn": _start_worker,
            }
        return DataLoader(
            _Batches(self._corpora, self._backgrounds, self._mixup, self._takes),
            batch_size=None,
            sampler=self._order,
            num_workers=self._workers,
            collate_fn=_identity,
            pin_memory=self._pin,
            **options,
        )


def _is_death(error: Exception) -> bool:
    """Return whether an error of a DataLoader means that a worker died, rather than an exception inside a worker."""
    if "Caught" in str(error):
        return False
    return "DataLoader worker" in str(error) or isinstance(error, EOFError | ConnectionError | FileNotFoundError)


class _Order(Sampler[Item]):
    """Passes the items of the current epoch to the workers."""

    items: Iterator[Item] = iter(())

    def __iter__(self) -> Iterator[Item]:
        return self.items


class _Batches(Dataset[WaveBatch]):
    def __init__(self, corpora: Sequence[Corpus], *mixing: Any):
        self._corpora, self._mixing = list(corpora), mixing

    def __getitem__(self, item: Item) -> WaveBatch:
        return read_batch(self._corpora, *item, *self._mixing)


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles the interrupt and ends its workers
    if hasattr(os, "setsid"):
        os.setsid()  # signals to the parent's group (by torchrun, timeout, systemd) are the parent's to handle, too
