"""Plans: every clip once, the same batches for any number of ranks, crops that depend on the clip alone."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from tests.data.corpora import NoiseCorpus

from ssamba.data.corpus import CorpusClip
from ssamba.data.plan import Crop, Plan, PlanConfig, _hash, _uniform, group_hashes
from ssamba.errors import DataError

LENGTHS = st.lists(st.floats(0.01, 40), min_size=1, max_size=60)
CONFIGS = st.builds(
    PlanConfig,
    seed=st.integers(0, 2**63 - 1),
    short_clips=st.sampled_from(["join", "bucket", "pad"]),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    grouped_share=st.sampled_from([0.0, 0.5, 1.0]),
)


def draws_of(plan, epoch):
    return [crop for batch in plan.batches(epoch) for sequence in batch for crop in sequence]


@settings(deadline=None, max_examples=150)
@given(seconds=LENGTHS, config=CONFIGS, epoch=st.integers(0, 3))
def test_an_epoch_holds_every_clip_once_within_its_bounds(seconds, config, epoch):
    corpus = NoiseCorpus(seconds)
    plan = Plan(config, [corpus]).batches(epoch)
    crops = [crop for batch in plan for sequence in batch for crop in sequence]
    assert sorted(crop.index for crop in crops) == list(range(len(seconds)))
    rate = config.sample_rate_hz
    for crop in crops:
        length = max(1, round(seconds[crop.index] * rate))
        start, taken = round(crop.start_s * rate), round(crop.seconds * rate)
        assert taken == min(length, round(config.crop_s * rate))
        assert 0 <= start <= length - taken
        assert 0 <= crop.seed < 2**63
    assert plan.num_clips == len(seconds)
    assert plan.num_sequences == sum(map(len, plan))
    valid, room = 0, 0
    for k, batch in enumerate(plan):
        lengths = [sum(round(crop.seconds * rate) for crop in sequence) for sequence in batch]
        assert max(lengths) <= plan.padded_samples(k) <= round(config.crop_s * rate)
        if config.short_clips == "bucket":
            budget = config.batch_size * round(config.crop_s * rate)
            assert len(batch) == 1 or len(batch) * plan.padded_samples(k) <= budget
        else:
            assert len(batch) == config.batch_size or k == len(plan) - 1
        valid += sum(lengths)
        room += len(batch) * plan.padded_samples(k)
    assert plan.filled == pytest.approx(valid / room)
    assert plan.hours == pytest.approx(valid / rate / 3600)


@pytest.mark.parametrize("short_clips", ["join", "bucket", "pad"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_divide_each_batch_without_overlap(short_clips, world_size):
    corpus = NoiseCorpus(np.random.default_rng(0).exponential(3, 500) + 0.1)
    plan = Plan(PlanConfig(short_clips=short_clips, batch_size=8), [corpus]).batches(1)
    for k, batch in enumerate(plan):
        shares = [plan.rows(k, rank, world_size) for rank in range(world_size)]
        assert Counter(row for share in shares for row in share) == Counter(batch)
        assert tuple(shares[0]) == batch[::world_size]


def test_crops_depend_on_the_clip_alone():
    """The order of the clips and other clips do not change a crop and its seed; epoch and plan seed do."""

    class Renamed(NoiseCorpus):
        def __init__(self, seconds, names):
            super().__init__(seconds)
            self.names = names

        def key(self, i):
            return self.names[i]

    seconds = {f"clip {i}": 5.0 + i for i in range(40)}
    config = PlanConfig(batch_size=4)

    def drawn(names, epoch=0, **changes):
        corpus = Renamed([seconds[name] for name in names], names)
        crops = draws_of(Plan(config.with_changes(**changes), [corpus]), epoch)
        return {names[d.index]: (d.start_s, d.seconds, d.seed) for d in crops}

    whole = drawn(list(seconds))
    assert drawn(list(seconds)[::-1]) == whole
    half = drawn(list(seconds)[::2])
    assert half == {name: whole[name] for name in half}
    assert drawn(list(seconds), short_clips="pad", batch_size=7) == whole
    for other in (drawn(list(seconds), epoch=1), drawn(list(seconds), seed=1)):
        assert all(other[name][2] != whole[name][2] for name in seconds)
    assert len({seed for _, _, seed in whole.values()}) == len(seconds)


def test_orders_differ_between_epochs_and_stay_the_same_between_runs():
    corpus = NoiseCorpus(np.full(200, 3.0))
    plan = Plan(PlanConfig(short_clips="pad"), [corpus])
    orders = [[d.index for d in draws_of(plan, epoch)] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert [d.index for d in draws_of(Plan(PlanConfig(short_clips="pad"), [corpus]), 1)] == orders[1]
    still = Plan(PlanConfig(short_clips="pad", shuffle=False), [corpus])
    assert [d.index for d in draws_of(still, 2)] == list(range(200))
    # Pinned: a plan must not change between versions, or interrupted epochs could not resume.
    assert draws_of(plan, 0)[0] == PINNED
    assert plan.fingerprint() == PINNED_FINGERPRINT


def test_crops_are_random_or_at_the_start():
    corpus = NoiseCorpus(np.full(4000, 20.48))
    starts = np.array([crop.start_s for crop in draws_of(Plan(PlanConfig(), [corpus]), 0)])
    assert abs(starts.mean() - 5.12) < 0.15
    assert np.histogram(starts, 8, (0, 10.24))[0].min() > 400
    assert {crop.start_s for crop in draws_of(Plan(PlanConfig(crop="start"), [corpus]), 0)} == {0.0}


def test_corpora_are_mixed_by_weight_and_each_uses_all_its_clips():
    small, large = NoiseCorpus(np.full(30, 2.0), "small"), NoiseCorpus(np.full(170, 2.0), "large")
    config = PlanConfig(weights=(1, 3), epoch_clips=80, short_clips="pad")
    plan = Plan(config, [small, large])
    assert plan.clips_of_epoch == (20, 60)
    seen = {0: [], 1: []}
    for epoch in range(6):
        crops = draws_of(plan, epoch)
        assert Counter(crop.corpus for crop in crops) == {0: 20, 1: 60}
        first_half = Counter(crop.corpus for crop in crops[:40])
        assert 4 <= first_half[0] <= 16, "mixed, not one after the other"
        for crop in crops:
            seen[crop.corpus].append(crop)
    for number, size in ((0, 30), (1, 170)):
        crops = seen[number]
        for first in range(0, len(crops) - size + 1, size):
            assert len({crop.index for crop in crops[first : first + size]}) == size or number == 1
        assert len({crop.seed for crop in crops}) == len(crops), "a clip's second appearance is another draw"
    counts = Counter(crop.index for crop in seen[1])
    assert max(counts.values()) - min(counts.values()) <= 1
    assert Plan(PlanConfig(), [small, large]).clips_of_epoch == (30, 170)
    assert Plan(PlanConfig(weights=(1, 1, 1), epoch_clips=8), [small, large, large]).clips_of_epoch == (3, 3, 2)


def test_a_window_of_shards_is_read_before_the_next():
    shards = np.repeat(np.arange(20), 50)
    corpus = NoiseCorpus(np.full(1000, 1.0), shards=shards)
    plan = Plan(PlanConfig(shuffle_window=4, short_clips="pad"), [corpus])
    for epoch in (0, 1):
        order = np.array([shards[crop.index] for crop in draws_of(plan, epoch)]).reshape(5, 200)
        windows = [frozenset(part.tolist()) for part in order]
        assert [len(window) for window in windows] == [4] * 5
        assert len(frozenset.union(*windows)) == 20
        assert all(len(set(part[:20].tolist())) > 1 for part in order), "shuffled inside the window"


@pytest.mark.parametrize(("short_clips", "least"), [("join", 0.97), ("bucket", 0.93)])
def test_short_clips_need_little_padding(short_clips, least):
    seconds = np.clip(np.random.default_rng(0).lognormal(0.4, 0.9, 6000), 0.2, 30)
    corpus = NoiseCorpus(seconds)
    filled = {
        kind: Plan(PlanConfig(short_clips=kind, batch_size=32), [corpus]).batches(0).filled
        for kind in (short_clips, "pad")
    }
    assert filled[short_clips] > least
    assert filled["pad"] < 0.4


def test_groups_fill_batches_of_their_own_and_the_remainders_share_others():
    corpus = NoiseCorpus(np.linspace(0.5, 3, 3000))  # three labels
    settings = {"batch_size": 3, "short_clips": "bucket", "seed": 2}
    budget = 3 * 10.24
    mixed, grouped = (Plan(PlanConfig(grouped_share=share, **settings), [corpus]) for share in (0, 1))

    def alone(plan, epoch):
        return [len({crop.index % 3 for sequence in batch for crop in sequence}) == 1 for batch in plan.batches(epoch)]

    assert not any(alone(mixed, 0))
    assert np.mean(alone(grouped, 0)) > 0.9
    for k, batch in enumerate(plan := grouped.batches(0)):
        assert len(batch) * plan.padded_samples(k) <= budget * 16_000
    assert plan.filled > 0.9 * mixed.batches(0).filled
    half = Plan(PlanConfig(grouped_share=0.5, **settings), [corpus])
    assert 0.2 < np.mean([np.mean(alone(half, epoch)) for epoch in range(8)]) < 0.8
    assert half.batches(0).rows(3) == Plan(half.config, [corpus]).batches(0).rows(3)


def test_the_group_of_a_clip_is_its_group_else_its_first_label_else_its_folder():
    clips = [
        CorpusClip("a/x.wav", 1, ("dog", "cat"), group="walk"),
        CorpusClip("a/y.wav", 1, ("dog", "cat")),
        CorpusClip("a/z.wav", 1),
        CorpusClip("b/z.wav", 1, ("walk",)),
        CorpusClip("a/w.wav", 1),
    ]

    class Labeled(NoiseCorpus):
        def clip(self, i):
            return clips[i]

    walk, dog, folder, other, same = group_hashes(Labeled(np.ones(5)))
    assert walk == other
    assert folder == same
    assert len({walk, dog, folder}) == 3


def test_plans_without_groups_have_the_fingerprint_they_had_before_there_were_any():
    assert PlanConfig().digest() == PlanConfig(grouped_share=0.0).digest() != PlanConfig(grouped_share=0.5).digest()


def test_the_last_batch_can_be_left_out():
    corpus = NoiseCorpus(np.full(70, 10.24))
    for kind in ("join", "pad", "bucket"):
        config = PlanConfig(short_clips=kind, batch_size=16)
        assert [len(b) for b in Plan(config, [corpus]).batches(0)].count(16) == 4
        assert len(Plan(config, [corpus]).batches(0)) == 5
        assert [len(b) for b in Plan(config.with_changes(fewest=16), [corpus]).batches(0)] == [16] * 4


def test_invalid_plans_are_refused():
    corpus = NoiseCorpus([1.0])
    for config, corpora, message in (
        (PlanConfig(), [], "at least one"),
        (PlanConfig(sample_rate_hz=8000), [corpus], "open it with the plan's rate"),
        (PlanConfig(), [NoiseCorpus([])], "no clip"),
        (PlanConfig(weights=(1,)), [corpus, corpus], "as many weights"),
        (PlanConfig(weights=(0, 0)), [corpus, corpus], "one above"),
    ):
        with pytest.raises(DataError, match=message):
            Plan(config, corpora)
    with pytest.raises(IndexError):
        Plan(PlanConfig(), [corpus]).batches(0)[1]


def test_the_hash_is_splitmix64():
    """The first outputs of the reference (https://prng.di.unimi.it/splitmix64.c) for the seed 1234567."""
    state, step = 1234567, 0x9E3779B97F4A7C15
    outputs = [int(_hash(np.array([(state + i * step) % 2**64], np.uint64))[0]) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    values = _uniform(_hash(np.arange(100_000, dtype=np.uint64), 3))
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005


PINNED = Crop(0, 2, 0.0, 3.0, 6061524117147634179)
PINNED_FINGERPRINT = "9c6993258f4e362c"
