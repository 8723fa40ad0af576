"""Mixup: waves and labels are mixed by the same share, whatever the number of workers and ranks."""

import numpy as np
import pytest
from tests.data.corpora import NoiseCorpus

from ssamba.data.loader import WaveLoader, read_batch
from ssamba.data.mixing import BackgroundsFrom, Mixup
from ssamba.data.plan import Plan, PlanConfig

ALWAYS = Mixup(share=1.0)


def planned(corpora):
    return Plan(PlanConfig(crop_s=1.0, short_clips="bucket", batch_size=8), corpora)


def test_wave_and_labels_are_mixed_by_the_same_share():
    corpora = [NoiseCorpus([1.0] * 20), NoiseCorpus([0.5] * 10, name="short")]
    keys = {corpus.key(i): corpus.read(i) for corpus in corpora for i in range(len(corpus))}
    epoch = planned(corpora).batches(0)
    shares = []
    for k in range(len(epoch)):
        batch = read_batch(corpora, epoch[k], epoch.padded_samples(k), mixup=ALWAYS)
        for wave, count, own, mixed in zip(batch.waves, batch.samples, batch.keys, batch.mixed, strict=True):
            assert mixed is not None
            first, other = keys[own[0]], keys[mixed.key]
            expected = (first - first.mean()) * (1 - mixed.share)
            # A longer partner is cut somewhere: its ramp is the same everywhere but for the mean, which goes.
            part = other[: len(first)]
            expected[: len(part)] += (part - part.mean()) * mixed.share
            np.testing.assert_allclose(wave[: int(count)], expected, atol=2e-4)
            assert mixed.labels
            shares.append(mixed.share)
    assert abs(np.mean(shares) - 0.5) < 0.08
    assert np.std(shares) == pytest.approx(0.109, abs=0.05)  # of Beta(10, 10)


def test_a_share_of_the_clips_is_not_mixed():
    corpora = [NoiseCorpus([1.0] * 60)]
    batches = list(WaveLoader(corpora, planned(corpora), mixup=Mixup(share=0.5)).batches(0))
    mixed = [entry for batch in batches for entry in batch.mixed]
    assert 15 < sum(entry is None for entry in mixed) < 45
    plain = next(WaveLoader(corpora, planned(corpora)).batches(0))
    assert plain.mixed == ()


def test_two_ranks_mix_as_one_process_does():
    corpora = [NoiseCorpus([1.0] * 20)]
    plan = planned(corpora)
    whole = list(WaveLoader(corpora, plan, mixup=ALWAYS).batches(0))
    parts = [list(WaveLoader(corpora, plan, rank=r, world_size=2, mixup=ALWAYS).batches(0)) for r in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert batch.mixed[0::2] == first.mixed
        assert batch.mixed[1::2] == second.mixed


def test_a_broken_partner_is_left_out():
    corpora = [NoiseCorpus([1.0] * 4, broken=(1, 2, 3))]
    epoch = planned(corpora).batches(0)
    batch = read_batch(corpora, epoch[0], epoch.padded_samples(0), mixup=ALWAYS)
    assert [key for keys in batch.keys for key in keys] == ["noise-0"]
    assert batch.mixed[0] is None or batch.mixed[0].key == "noise-0"


def test_clips_become_windows_of_a_background():
    corpora = [NoiseCorpus([0.2, 0.3, 0.5, 1.0] * 10), NoiseCorpus([3.0] * 5, name="night")]
    settings = BackgroundsFrom(share=1.0, below_db=(120.0, 120.0), corpus=1, window_s=0.5)
    window = round(0.5 * corpora[0].sample_rate_hz)
    epoch = planned(corpora[:1]).batches(0)
    places = []
    for k in range(len(epoch)):
        batch = read_batch(corpora, epoch[k], epoch.padded_samples(k), backgrounds=settings)
        assert set(batch.samples.tolist()) == {window}
        for wave, (key,) in zip(batch.waves.numpy(), batch.keys, strict=True):
            i = int(key.removeprefix("noise-"))
            clip, heard = corpora[0].read(i), np.flatnonzero(wave > 0.7 * (i + 0.1))
            if i and len(clip) < window:
                assert len(heard) == len(clip)
                assert wave[heard] == pytest.approx(clip, abs=0.01 * (i + 1))
                places.append(heard[0] / (window - len(clip)))
            elif len(clip) > window:  # it rises from i to i + 1
                start = min(max(0, round((float(wave[0]) - i) * len(clip))), len(clip) - window)
                assert wave[:window] == pytest.approx(clip[start : start + window], abs=0.01 * (i + 1))
                places.append(start / (len(clip) - window))
    assert 0.3 < np.mean(places) < 0.7
    assert np.std(places) > 0.2
    settings = settings.model_copy(update={"window_share": 0.0})
    whole = [read_batch(corpora, epoch[k], epoch.padded_samples(k), backgrounds=settings) for k in range(len(epoch))]
    assert len({count for batch in whole for count in batch.samples.tolist()}) == 4


class _Hit(NoiseCorpus):
    """A short hit and its quiet tail."""

    def read(self, i, start_s=0.0, seconds=None):
        wave = np.full(round(2.0 * self.sample_rate_hz), 1e-3, np.float32)
        wave[: self.sample_rate_hz // 10] = 0.5
        return wave


def test_the_part_of_a_longer_clip_is_not_its_quiet_tail():
    corpora = [_Hit([2.0] * 20), NoiseCorpus([3.0] * 5, name="night")]
    settings = BackgroundsFrom(share=1.0, below_db=(120.0, 120.0), corpus=1, window_s=0.5)
    epoch = planned(corpora[:1]).batches(0)
    for k in range(len(epoch)):
        for wave in read_batch(corpora, epoch[k], epoch.padded_samples(k), backgrounds=settings).waves.numpy():
            assert (wave[: wave.size] > 0.4).sum() >= 0.04 * corpora[0].sample_rate_hz
