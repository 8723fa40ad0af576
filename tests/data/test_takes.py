"""Other takes: the second view of a clip is of another clip with the same labels, whatever the workers and ranks."""

import numpy as np
import pytest
import torch
from tests.data.corpora import NoiseCorpus

from ssamba.data.corpus import CorpusClip
from ssamba.data.loader import WaveLoader, read_batch
from ssamba.data.mixing import Backgrounds
from ssamba.data.plan import Plan, PlanConfig
from ssamba.data.takes import OtherTakes, label_hashes
from ssamba.errors import DataError


class Unlabeled(NoiseCorpus):
    def clip(self, i):
        return CorpusClip(self.key(i), float(self.seconds[i]))


def planned(corpora):
    return Plan(PlanConfig(crop_s=1.0, short_clips="bucket", batch_size=8), corpora)


def takes_of(corpora, share=1.0, longest_s=1.0):
    return OtherTakes(corpora, share, longest_s, shortest_s=0.025)


def values(waves, samples):
    """The number of the clip that each wave is of: a clip's samples rise from its number to the next."""
    return [int(np.floor(wave[: int(count)].min())) for wave, count in zip(waves.numpy(), samples, strict=True)]


def test_another_take_has_the_labels_and_is_another_clip():
    corpora = [NoiseCorpus(np.linspace(0.3, 0.9, 30)), Unlabeled([0.5] * 10, name="plain")]
    seen = set()
    for batch in WaveLoader(corpora, planned(corpora), takes=takes_of(corpora)).batches(0):
        own, other = values(batch.waves, batch.samples), values(batch.other_waves, batch.other_samples)
        for (key,), a, b, has in zip(batch.keys, own, other, batch.has_other.tolist(), strict=True):
            assert has == key.startswith("noise")
            assert a == b if not has else (a != b and a % 3 == b % 3)
            seen.add((a, b))
        longest = int(batch.other_samples.max())
        assert batch.other_waves.shape == (len(batch), longest)
    assert len(seen) > 30


def test_which_take_is_chosen_is_the_same_for_ranks_and_workers():
    corpora = [NoiseCorpus([0.6] * 12)]
    plan, takes = planned(corpora), takes_of(corpora)
    whole = list(WaveLoader(corpora, plan, takes=takes).batches(0))
    parts = [list(WaveLoader(corpora, plan, rank=r, world_size=2, takes=takes).batches(0)) for r in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch.other_waves[0::2], first.other_waves)
        assert torch.equal(batch.other_waves[1::2], second.other_waves)
    processes = list(WaveLoader(corpora, plan, takes=takes, workers=1).batches(0))
    assert all(torch.equal(a.other_waves, b.other_waves) for a, b in zip(whole, processes, strict=True))


def test_a_share_of_the_clips_has_another_take_and_none_costs_nothing():
    corpora = [NoiseCorpus([0.5] * 90)]
    batches = list(WaveLoader(corpora, planned(corpora), takes=takes_of(corpora, share=0.5)).batches(0))
    assert 30 < sum(int(batch.has_other.sum()) for batch in batches) < 60
    batch = next(WaveLoader(corpora, planned(corpora), takes=takes_of(corpora, share=0.0)).batches(0))
    assert batch.other_waves is None
    assert batch.has_other is None
    for alone in (Unlabeled([0.5] * 9), NoiseCorpus([0.5] * 3)):
        with pytest.raises(DataError, match=r"of [39] clips [03] have labels, and none has those"):
            takes_of([alone])


def test_a_long_take_is_cut_and_a_tiny_or_broken_one_is_none():
    corpora = [NoiseCorpus([0.5, 1, 1, 2.0])]  # clips 0 and 3 share a label
    takes = takes_of(corpora, longest_s=0.7)
    batch = next(WaveLoader(corpora, planned(corpora), takes=takes).batches(0))
    other = batch.other_samples[batch.keys.index(("noise-0",))]
    assert other == round(0.7 * 16_000)
    for broken in (NoiseCorpus([0.5, 1, 1, 2.0], broken=[3]), NoiseCorpus([0.5, 1, 1, 0.01])):
        both = [broken, NoiseCorpus([0.5] * 4, name="other")]
        batch = next(WaveLoader(both, planned(both), takes=takes_of(both)).batches(0))
        assert not batch.has_other[batch.keys.index(("noise-0",))]
        assert batch.has_other[batch.keys.index(("other-0",))]


def test_a_take_has_a_background_of_its_own():
    corpora = [NoiseCorpus([0.5] * 24)]
    epoch = planned(corpora).batches(0)
    settings = Backgrounds(share=1.0, below_db=(0.0, 0.0))
    batch = read_batch(corpora, epoch[0], epoch.padded_samples(0), None, settings, None, takes_of(corpora))
    plain = read_batch(corpora, epoch[0], epoch.padded_samples(0), takes=takes_of(corpora))
    added, added_to_own = batch.other_waves - plain.other_waves, batch.waves - plain.waves
    assert (added.abs().amax(1) > 0).sum() > len(batch) / 2
    assert not torch.allclose(added, added_to_own[:, : added.shape[1]])


def test_a_batch_keeps_its_takes_when_rows_are_chosen():
    corpora = [NoiseCorpus([0.5] * 6)]
    batch = next(WaveLoader(corpora, planned(corpora), takes=takes_of(corpora)).batches(0))
    chosen = batch.chosen([2, 0])
    assert torch.equal(chosen.other_waves, batch.other_waves[[2, 0]])
    assert chosen.has_other.shape == (2,)
    assert batch.to("cpu").other_samples is not None


def test_a_take_is_at_most_twice_as_long_as_the_batch():
    corpora = [NoiseCorpus([0.5, 1, 1, 5.0, 1, 1])]
    takes = takes_of(corpora, longest_s=8.0)
    epoch = planned(corpora).batches(0)
    batch = read_batch(corpora, epoch[0], 16_000, takes=takes)
    assert batch.other_samples[batch.keys.index(("noise-0",))] == 2 * 16_000
    assert takes.digest() == takes_of(corpora).digest()
    assert takes.digest() != takes_of([NoiseCorpus([0.5, 1, 1, 5.0, 1])]).digest()


def test_the_set_of_labels_counts():
    a, b, c = label_hashes([("x", "y", "x"), ("y", "x"), ("x",)])
    assert a == b != c


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_is_kept(share):
    corpora = [NoiseCorpus([0.5] * 6)]
    crop = planned(corpora).batches(0)[0][0][0]
    assert (takes_of(corpora, share).choose(crop, corpora) is None) == (share == 0)
