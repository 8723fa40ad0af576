"""Plan epochs: assign crops of clips to sequences, and sequences to batches.

A plan is a pure function of its configuration, the corpora and the epoch; it knows nothing of workers or ranks. Rank r
of R reads the rows r, r + R, r + 2R, ... of each batch, and an interrupted epoch resumes at the index of the next
batch. With one corpus every clip appears exactly once in an epoch. Several corpora are mixed by weight: each runs
through its own permutation, across epochs, and starts another one when it is exhausted.

Every random number is a hash (splitmix64) of the plan's seed, the pass over the corpus and the clip's key, so it
depends on neither the order of the clips nor their number. With one corpus a pass is an epoch.

Clips shorter than the crop (`short_clips`):

- `join`: clips are joined in time until the crop is full (best fit among a bounded number of open sequences:
  "bounded-space best fit", Csirik and Johnson 2001);
- `bucket`: each clip is a sequence; batches hold clips of similar length, as many as fit into the seconds of a batch;
- `pad`: each clip is a sequence, zero-padded to the crop, as in the original.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ssamba.config import Config
from ssamba.data.corpus import Corpus, read_or_error
from ssamba.data.manifest import LazySequence
from ssamba.errors import DataError, WorkerDiedError
from ssamba.hashing import digest_of, hash_names, splitmix64
from ssamba.worker_pool import map_in_processes

Ints: TypeAlias = "npt.NDArray[np.int64]"
Hashes: TypeAlias = "npt.NDArray[np.uint64]"

_MAX_OPEN_SEQUENCES = 64
"""Sequences that `join` still adds clips to."""
_BUCKET_BATCHES = 64
"""Batches whose rows `bucket` sorts by length together."""
_ORDER, _START, _SEED, _CORPUS_ORDER, _BATCH_ORDER, _GROUP = range(6)
"""Purposes of a hash, which keep its random numbers independent."""


class PlanConfig(Config):
    """How clips become batches."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random."""
    sample_rate_hz: int = Field(16_000, gt=0)
    """Sample rate of the corpora."""
    crop_s: float = Field(10.24, gt=0)
    """Longest part that is taken of a clip, and the length of a sequence."""
    crop: Literal["random", "start"] = "random"
    """Where the crop of a longer clip begins: anywhere, or at the start of the clip, as in the original."""
    short_clips: Literal["join", "bucket", "pad"] = "join"
    """What happens to clips shorter than the crop; see the top of this file."""
    batch_size: int = Field(64, gt=0)
    """Sequences in a batch, over all ranks; with `bucket`, batch_size * crop_s seconds with padding."""
    length_step_s: float = Field(0.16, gt=0)
    """With `bucket`: sequences of a batch are padded to a multiple of this (the default is one patch)."""
    shuffle: bool = True
    """Take the clips of each epoch in another order; otherwise in the order of the corpora."""
    shuffle_window: int | None = Field(None, gt=0)
    """Shuffle the shards, and clips within this many shards, to read slow disks sequentially; None: all clips."""
    weights: tuple[float, ...] | None = None
    """Share of each corpus in an epoch's clips; None: by their numbers of clips, so that each clip appears once."""
    epoch_clips: int | None = Field(None, gt=0)
    """Clips in an epoch; None: as many as the corpora have."""
    fewest: int = Field(1, gt=0)
    """Smallest number of sequences in a batch; a smaller remainder is left out."""
    grouped_share: float = Field(0.0, ge=0, le=1, json_schema_extra={"since": 2})
    """With `bucket`: share of the groups (`group_hashes`) whose clips fill batches of their own; which ones is
    drawn anew for every 64 batches. A remainder joins the other batches."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of a clip."""

    corpus: int
    """Index of the corpus."""
    index: int
    """Index of the clip in the corpus."""
    start_s: float
    seconds: float
    seed: int
    """63 bits for masks and augmentation: a function of the plan's seed, the pass, the corpus and the clip's key."""


SequencePlan: TypeAlias = tuple[Crop, ...]
BatchPlan: TypeAlias = tuple[SequencePlan, ...]


def crops_that_kill(corpora: Sequence[Corpus], crops: Sequence[Crop]) -> dict[Crop, WorkerDiedError]:
    """Return those crops that end a process that reads them, with the reasons; the processes load no torch."""
    results = map_in_processes(partial(_read_crop, corpora), crops, 1)
    return {crop: result for crop, result in results if isinstance(result, WorkerDiedError)}


def _read_crop(corpora: Sequence[Corpus], crop: Crop) -> None:
    read_or_error(corpora[crop.corpus], crop.index, crop.start_s, crop.seconds)


def group_hashes(corpus: Corpus) -> Hashes:
    """Return a hash of what each clip belongs to (clips,): its group, else its first label, else its folder."""
    clips = map(corpus.clip, range(len(corpus)))
    return hash_names(
        clip.group or next(iter(clip.labels), "") or str(PurePosixPath(clip.key).parent) for clip in clips
    )


@dataclass(frozen=True)
class _Source:
    """The columns of a corpus that a plan needs."""

    samples: Ints
    """Length of each clip (clips,)."""
    hashes: Hashes
    """Hash of each clip's key, the plan's seed and the index of the corpus (clips,)."""
    shards: Ints | None
    groups: Hashes
    """Hash of each clip's group (clips,); zeros where nothing is grouped."""


class Plan:
    """The batches of every epoch."""

    def __init__(self, config: PlanConfig, corpora: Sequence[Corpus]):
        """Plan epochs over `corpora`.

        Raises:
            DataError: there is no corpus, one is empty or has another sample rate, or the weights do not fit.
        """
        self.config = config
        if not corpora:
            raise DataError("a plan needs at least one corpus, got none")
        for corpus in corpora:
            if corpus.sample_rate_hz != config.sample_rate_hz:
                raise DataError(
                    f"{corpus.name}: is read at {corpus.sample_rate_hz} Hz, the plan is for {config.sample_rate_hz} "
                    "Hz: open it with the plan's rate"
                )
            if not len(corpus):
                raise DataError(f"{corpus.name}: holds no clip")
        self._sources = [
            _Source(
                np.maximum(1, np.round(corpus.seconds * config.sample_rate_hz)).astype(np.int64),
                _hash(corpus.key_hashes, config.seed, number),
                corpus.shards,
                group_hashes(corpus) if config.grouped_share else np.zeros(len(corpus), np.uint64),
            )
            for number, corpus in enumerate(corpora)
        ]
        self.corpora = [corpus.fingerprint() for corpus in corpora]
        """Fingerprints of the corpora."""
        self._counts = self._clip_counts()

    @property
    def clips_of_epoch(self) -> tuple[int, ...]:
        """Number of clips of each corpus in an epoch."""
        return tuple(self._counts)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when the batches do: a run resumes only if they are the same."""
        return digest_of("/".join([self.config.digest(), *self.corpora]))

    def batches(self, epoch: int) -> EpochPlan:
        """Return the batches of an epoch (counted from 0) as a sequence."""
        corpus, index, start, samples, seed = self._crops(epoch)
        groups = np.zeros(len(index), np.uint64)
        for number, source in enumerate(self._sources):
            groups[corpus == number] = source.groups[index[corpus == number]]
        return EpochPlan(self.config, corpus, index, start, samples, seed, groups)

    def _clip_counts(self) -> list[int]:
        sizes = [len(source.samples) for source in self._sources]
        weights = self.config.weights
        if weights is not None and (len(weights) != len(sizes) or min(weights) < 0 or sum(weights) <= 0):
            raise DataError(f"{len(sizes)} corpora need as many weights, none below 0 and one above; got {weights}")
        shares = np.array(sizes if weights is None else weights, np.float64)
        total = self.config.epoch_clips or sum(sizes)
        exact = shares / shares.sum() * total
        counts = np.floor(exact + 1e-9).astype(np.int64)
        # The corpora with the largest remainders get the clips that are left; equal ones in their order.
        for i in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
            counts[i] += 1
        return [int(count) for count in counts]

    def _crops(self, epoch: int) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        """Return the crops of an epoch in order: corpus, index, first sample, samples, seed, each (crops,)."""
        crop = round(self.config.crop_s * self.config.sample_rate_hz)
        streams = [self._stream(number, epoch) for number in range(len(self._sources))]
        numbers = np.repeat(np.arange(len(streams)), self._counts)
        if self.config.shuffle and len(streams) > 1:
            order = _hash(np.arange(len(numbers), dtype=np.uint64), self.config.seed, epoch, _CORPUS_ORDER)
            numbers = numbers[np.argsort(order, kind="stable")]
        columns = np.empty((4, len(numbers)), np.int64)
        for number, (index, passes) in enumerate(streams):
            source = self._sources[number]
            length = source.samples[index]
            taken = np.minimum(length, crop)
            hashes = _hash(source.hashes[index], passes)
            room = (length - taken + 1).astype(np.float64)
            start = np.floor(_uniform(_hash(hashes, _START)) * room).astype(np.int64)
            if self.config.crop == "start":
                start[:] = 0
            seeds = (_hash(hashes, _SEED) >> np.uint64(1)).astype(np.int64)
            columns[:, numbers == number] = index, start, taken, seeds
        return numbers.astype(np.int64), columns[0], columns[1], columns[2], columns[3]

    def _stream(self, number: int, epoch: int) -> tuple[Ints, Hashes]:
        """Return the clips of a corpus in an epoch, in order, and the pass over the corpus that each belongs to."""
        size, count = len(self._sources[number].samples), self._counts[number]
        first, stop = epoch * count, (epoch + 1) * count
        pieces = [np.zeros(0, np.int64)]
        for number_of_pass in range(first // size, -(-stop // size)):
            order = self._permutation(number, number_of_pass)
            pieces.append(order[max(0, first - number_of_pass * size) : stop - number_of_pass * size])
        passes = np.arange(first, stop, dtype=np.int64) // size
        return np.concatenate(pieces), passes.astype(np.uint64)

    def _permutation(self, number: int, number_of_pass: int) -> Ints:
        """Return the order of a corpus' clips in one pass."""
        source, config = self._sources[number], self.config
        if not config.shuffle:
            return np.arange(len(source.samples))
        hashes = _hash(source.hashes, number_of_pass, _ORDER)
        if config.shuffle_window is None or source.shards is None:
            return np.argsort(hashes, kind="stable")
        shards = np.arange(source.shards.max() + 1, dtype=np.uint64)
        shard_hashes = _hash(shards, config.seed, number, number_of_pass, _ORDER)
        rank = np.argsort(np.argsort(shard_hashes, kind="stable"), kind="stable")
        return np.lexsort((hashes, rank[source.shards] // config.shuffle_window))


class EpochPlan(LazySequence[BatchPlan]):
    """The batches of one epoch. It holds columns, and creates the crops of a batch on access."""

    def __init__(
        self, config: PlanConfig, corpus: Ints, index: Ints, start: Ints, samples: Ints, seed: Ints, groups: Hashes
    ):
        self.config = config
        self._columns = corpus, index, start, samples, seed
        self._groups = groups
        self._crop = round(config.crop_s * config.sample_rate_hz)
        self._step = max(1, round(config.length_step_s * config.sample_rate_hz))
        joins = config.short_clips == "join"
        sequences = _join(samples, self._crop) if joins else [[i] for i in range(len(samples))]
        # Sequence s consists of the crops rows[ends[s] : ends[s + 1]].
        self._rows = np.array([i for sequence in sequences for i in sequence], np.int64)
        self._ends = np.cumsum([0, *map(len, sequences)])
        self._lengths = np.add.reduceat(samples[self._rows], self._ends[:-1]) if sequences else np.zeros(0, np.int64)
        self._batches = self._group(self._lengths)

    def __len__(self) -> int:
        return len(self._batches)

    def element(self, index: int) -> BatchPlan:
        """Return one batch, with the rows of all ranks."""
        return self.rows(index)

    def rows(self, k: int, rank: int = 0, world_size: int = 1) -> BatchPlan:
        """Return the rows of batch `k` that one rank reads."""
        return tuple(self._sequence(int(row)) for row in self._batches[k][rank::world_size])

    def padded_samples(self, k: int) -> int:
        """Return the length that the sequences of batch `k` are padded to, the same for every rank."""
        if self.config.short_clips != "bucket":
            return self._crop
        return self._padded(int(self._lengths[self._batches[k]].max()))

    @property
    def num_sequences(self) -> int:
        """Sequences in all batches."""
        return sum(map(len, self._batches))

    @property
    def num_clips(self) -> int:
        """Crops in all batches."""
        return int(sum((self._ends[rows + 1] - self._ends[rows]).sum() for rows in self._batches))

    @property
    def hours(self) -> float:
        """Audio in all batches, without padding."""
        return self._valid / self.config.sample_rate_hz / 3600

    @property
    def filled(self) -> float:
        """Share of the batches that is audio; the rest is padding."""
        room = sum(len(self._batches[k]) * self.padded_samples(k) for k in range(len(self)))
        return self._valid / max(room, 1)

    @property
    def _valid(self) -> int:
        return int(sum(self._lengths[rows].sum() for rows in self._batches))

    def _sequence(self, row: int) -> SequencePlan:
        rate_hz = self.config.sample_rate_hz
        crops = self._rows[self._ends[row] : self._ends[row + 1]]
        return tuple(
            Crop(int(corpus), int(index), int(start) / rate_hz, int(samples) / rate_hz, int(seed))
            for corpus, index, start, samples, seed in zip(*(column[crops] for column in self._columns), strict=True)
        )

    def _padded(self, samples: int) -> int:
        return -(-samples // self._step) * self._step

    def _group(self, lengths: Ints) -> list[Ints]:
        """Return the sequences of each batch."""
        size = self.config.batch_size
        order = np.arange(len(lengths))
        if self.config.short_clips != "bucket":
            batches = [order[first : first + size] for first in range(0, len(order), size)]
            return [rows for rows in batches if len(rows) >= min(size, self.config.fewest)]
        batches = []
        budget = size * self._padded(self._crop)
        window = int(_BUCKET_BATCHES * budget / max(1.0, float(lengths.mean()))) if len(lengths) else 1
        for first in range(0, len(order), window):
            batches += self._bucket(order[first : first + window], lengths, budget)
        return batches

    def _bucket(self, rows: Ints, lengths: Ints, budget: int) -> Iterator[Ints]:
        """Yield batches of sequences of similar length, each of at most `budget` samples including padding."""
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        batches, is_left = [], np.ones(len(rows), bool)
        for places in self._groups_apart(rows):
            full, remainder = self._cut(rows[places], lengths, budget)
            batches += full
            is_left[places[: len(places) - len(remainder)]] = False
        full, remainder = self._cut(rows[is_left], lengths, budget)
        batches += full
        if len(remainder) >= self.config.fewest:
            batches.append(remainder)
        # Shuffle long and short batches; the seed of a batch's first crop depends on the epoch, too.
        leaders = np.array([batch[0] for batch in batches], np.int64)
        order = np.argsort(_hash(self._seeds(leaders), _BATCH_ORDER), kind="stable")
        return (batches[i] for i in (order if self.config.shuffle else range(len(batches))))

    def _groups_apart(self, rows: Ints) -> Iterator[Ints]:
        """Yield the places in `rows` of each group that fills batches of its own, in their order."""
        if not self.config.grouped_share or not len(rows):
            return
        groups = self._groups[self._rows[self._ends[rows]]]
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            drawn = _uniform(_hash(self._seeds(rows[places[:1]]), int(group), _GROUP))
            if drawn[0] < self.config.grouped_share:
                yield places

    def _cut(self, rows: Ints, lengths: Ints, budget: int) -> tuple[list[Ints], Ints]:
        """Cut rows, the longest first, into batches that `budget` samples with padding fill; also return the rest."""
        batches = []
        while len(rows):
            count = max(1, budget // self._padded(int(lengths[rows[0]])))
            if len(rows) < count:
                break
            batches.append(rows[:count])
            rows = rows[count:]
        return batches, rows

    def _seeds(self, sequences: Ints) -> Hashes:
        """Return the seed of the first crop of each sequence."""
        seeds: Hashes = self._columns[4][self._rows[self._ends[sequences]]].astype(np.uint64)
        return seeds


def _join(samples: Ints, crop: int) -> list[list[int]]:
    """Group crops into sequences of at most `crop` samples, in the order in which the sequences are full."""
    done: list[list[int]] = []
    opened: dict[int, list[int]] = {}
    free: list[tuple[int, int]] = []  # (room, number) of the open sequences, sorted
    shortest = int(samples.min()) if len(samples) else 0
    for i, length in enumerate(samples.tolist()):
        at = bisect_left(free, (length, -1))
        room, number = free.pop(at) if at < len(free) else (crop, i)
        opened.setdefault(number, []).append(i)
        if room - length < shortest:
            done.append(opened.pop(number))
            continue
        insort(free, (room - length, number))
        if len(free) > _MAX_OPEN_SEQUENCES:
            done.append(opened.pop(free.pop(0)[1]))
    return done + list(opened.values())


def _hash(values: Hashes, *more: int | Any) -> Hashes:
    """Return splitmix64 of each of `values` (n,), combined with further numbers or arrays (n,) one after the other."""
    state = splitmix64(values.view(np.int64))
    for value in more:
        state = splitmix64(state ^ np.asarray(value).astype(np.uint64).view(np.int64))
    return state.view(np.uint64)


def _uniform(hashes: Hashes) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1) of 53 bits."""
    numbers: npt.NDArray[np.float64] = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers
