"""The loader: batches do not depend on workers, resuming is exact, broken clips are named and left out."""

from __future__ import annotations

import shutil
import signal
import time

import numpy as np
import pytest
import torch
from tests.data.corpora import CrashingCorpus, NoiseCorpus

from ssamba.data.corpus import open_corpus
from ssamba.data.loader import WaveLoader
from ssamba.data.mixing import Backgrounds
from ssamba.data.plan import Plan, PlanConfig
from ssamba.errors import DataError


def assert_same_batch(one, other):
    assert (one.keys, one.pieces, one.labels, one.skipped) == (other.keys, other.pieces, other.labels, other.skipped)
    assert torch.equal(one.waves, other.waves)
    assert torch.equal(one.samples, other.samples)
    assert torch.equal(one.seeds, other.seeds)


@pytest.fixture(scope="module")
def corpus(foreign_shards, tmp_path_factory):
    return open_corpus(shutil.copytree(foreign_shards, tmp_path_factory.mktemp("loader") / "shards"))


@pytest.mark.parametrize("short_clips", ["join", "bucket", "pad"])
def test_waves_are_the_clips_of_the_plan(corpus, short_clips):
    plan = Plan(PlanConfig(short_clips=short_clips, batch_size=2, crop_s=2.0), [corpus])
    epoch = plan.batches(0)
    batches = list(WaveLoader([corpus], plan).batches(0))
    assert len(batches) == len(epoch)
    for k, (batch, rows) in enumerate(zip(batches, epoch, strict=True)):
        assert batch.waves.shape == (len(rows), epoch.padded_samples(k))
        assert batch.waves.dtype == torch.float32
        assert batch.seeds.tolist() == [sequence[0].seed for sequence in rows]
        for row, sequence in enumerate(rows):
            expected = np.concatenate([corpus.read(d.index, d.start_s, d.seconds) for d in sequence])
            assert batch.samples[row] == len(expected)
            np.testing.assert_array_equal(batch.waves[row, : len(expected)].numpy(), expected)
            assert not batch.waves[row, len(expected) :].any()
            assert batch.keys[row] == tuple(corpus.key(d.index) for d in sequence)
            assert sum(batch.pieces[row]) == len(expected)
        assert batch.num_samples == sum(map(sum, batch.pieces))


def test_two_workers_give_the_same_bits_as_none_in_every_epoch(corpus):
    broken = NoiseCorpus(np.linspace(0.1, 5, 40), broken=(3, 20))
    corpora = [corpus, broken]
    plan = Plan(PlanConfig(batch_size=3), corpora)
    alone = WaveLoader(corpora, plan)
    loader = WaveLoader(corpora, plan, workers=2)
    for epoch in (0, 1):
        pairs = list(zip(alone.batches(epoch), loader.batches(epoch), strict=True))
        assert len(pairs) > 3
        for one, other in pairs:
            assert_same_batch(one, other)
    # Left in the middle, and begun again elsewhere.
    for start in (1, 0):
        assert_same_batch(next(loader.batches(0, start)), next(alone.batches(0, start)))


def test_ranks_together_read_what_one_process_reads_and_an_interrupted_epoch_resumes(corpus):
    plan = Plan(PlanConfig(batch_size=3, short_clips="pad", crop_s=1.0), [corpus])
    whole = list(WaveLoader([corpus], plan).batches(2))
    shares = [list(WaveLoader([corpus], plan, rank=rank, world_size=2).batches(2)) for rank in (0, 1)]
    for k, batch in enumerate(whole):
        for rank in (0, 1):
            assert torch.equal(shares[rank][k].waves, batch.waves[rank::2])
            assert shares[rank][k].keys == batch.keys[rank::2]
    rest = list(WaveLoader([corpus], plan).batches(2, 2))
    for one, other in zip(rest, whole[2:], strict=True):
        assert_same_batch(one, other)
    assert not list(WaveLoader([corpus], plan).batches(2, 99))


def test_a_partly_broken_corpus_is_read_to_the_end():
    broken = set(range(0, 200, 20))
    corpus = NoiseCorpus(np.full(200, 0.7), broken=broken)
    plan = Plan(PlanConfig(batch_size=4), [corpus])
    batches = list(WaveLoader([corpus], plan).batches(0))
    keys = [key for batch in batches for row in batch.keys for key in row]
    skipped = [key for batch in batches for key, _ in batch.skipped]
    assert sorted(skipped) == sorted(corpus.key(i) for i in broken)
    assert sorted(keys + skipped) == sorted(corpus.key(i) for i in range(200))
    assert all("on purpose" in reason for batch in batches for _, reason in batch.skipped)
    for batch in batches:
        for row, (count, keys_of_row) in enumerate(zip(batch.samples, batch.keys, strict=True)):
            assert count == 11200 * len(keys_of_row)
            assert not batch.waves[row, count:].any()


def test_a_batch_of_broken_clips_is_empty_but_not_dropped():
    corpus = NoiseCorpus(np.full(6, 1.0), broken=range(6))
    plan = Plan(PlanConfig(batch_size=3, short_clips="pad"), [corpus])
    batches = list(WaveLoader([corpus], plan).batches(0))
    assert [tuple(batch.waves.shape) for batch in batches] == [(0, 163840)] * 2
    assert [len(batch.skipped) for batch in batches] == [3, 3]
    assert len(batches[0]) == 0
    few = Plan(PlanConfig(batch_size=2, short_clips="pad"), [corpus])
    assert len(list(WaveLoader([corpus], few, rank=5, world_size=8).batches(0))) == 3


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "the process was killed (out of memory?)"), (signal.SIGABRT, "it crashes the decoder (SIGABRT)")],
)
def test_a_clip_that_ends_a_worker_is_left_out(number, reason):
    corpus = CrashingCorpus(np.full(12, 1.0), broken=(3,), signal_number=number)
    plan = Plan(PlanConfig(batch_size=2, short_clips="pad"), [corpus])
    loader = WaveLoader([corpus], plan, workers=1, prefetch=1)
    batches = list(loader.batches(0))
    assert len(batches) == 6
    skipped = dict(entry for batch in batches for entry in batch.skipped)
    assert skipped.keys() == {corpus.key(3), corpus.key(7)}
    assert skipped[corpus.key(7)].startswith(f"{corpus.key(7)}: {reason}")
    assert sum(map(len, batches)) == 10
    again = list(loader.batches(1))
    assert sum(map(len, again)) == 10, "it is not touched again"


def test_a_background_that_crashes_a_worker_is_found_and_not_read_again():
    corpus = CrashingCorpus(np.full(12, 1.0))
    plan = Plan(PlanConfig(batch_size=2, short_clips="pad"), [corpus])
    loader = WaveLoader([corpus], plan, workers=1, prefetch=1, backgrounds=Backgrounds(share=1.0))
    for epoch in range(2):
        batches = list(loader.batches(epoch))
        names = {key for batch in batches for row in batch.keys for key in row}
        assert names == {corpus.key(i) for i in range(12) if i != 7}
        assert {key for batch in batches for key, _ in batch.skipped} == {corpus.key(7)}


def test_a_dying_worker_does_not_interrupt_a_training_step():
    corpus = CrashingCorpus(np.full(12, 1.0))
    plan = Plan(PlanConfig(batch_size=2, short_clips="pad"), [corpus])
    batches = WaveLoader([corpus], plan, workers=1, prefetch=4).batches(0)
    seen = 0
    for batch in batches:
        seen += len(batch)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:  # a worker that is ahead dies meanwhile
            time.sleep(0.01)
    assert seen == 11


def test_other_corpora_and_ranks_are_refused(corpus):
    plan = Plan(PlanConfig(), [corpus])
    with pytest.raises(DataError, match="not those that the plan"):
        WaveLoader([NoiseCorpus([1.0])], plan)
    with pytest.raises(DataError, match="one of 0 to 1"):
        WaveLoader([corpus], plan, rank=2, world_size=2)
