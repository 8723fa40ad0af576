"""Random numbers of clips: uniform, independent between streams, and the same in every batch."""

import numpy as np
import torch

from ssamba import randomness


def test_streams_seeds_and_counters_are_independent_and_uniform():
    seeds = torch.arange(2000) * 3
    a, b = randomness.uniform(seeds, "a", 8), randomness.uniform(seeds, "b", 8)
    assert float(a.min()) >= 0
    assert float(a.max()) < 1
    histogram = torch.histc(a, 16, 0, 1)
    assert (histogram - 1000).abs().max() < 5 * 1000**0.5
    for x, y in ((a, b), (a[1:], a[:-1]), (a[:, 1:], a[:, :-1])):
        assert abs(np.corrcoef(x.flatten(), y.flatten())[0, 1]) < 0.03


def test_a_clips_numbers_depend_on_its_seed_alone():
    seeds = torch.tensor([4, 9, -3, 2**62])
    together = randomness.uniform(seeds, "x", 5)
    assert torch.equal(randomness.uniform(seeds[2:3], "x", 5), together[2:3])
    assert torch.equal(randomness.uniform(seeds, "x", 3), together[:, :3])
    # Pinned: masks of old runs must stay what they were.
    assert randomness.integers(seeds, "x", 0, 99).tolist() == PINNED


PINNED = [66, 45, 18, 88]


def test_integers_reach_both_ends_and_normals_are_normal():
    whole = randomness.integers(torch.arange(1000), "x", 3, 5)
    assert sorted(set(whole.tolist())) == [3, 4, 5]
    z = randomness.normal(torch.arange(500), "x", 40)
    assert abs(float(z.mean())) < 0.03
    assert abs(float(z.std()) - 1) < 0.03
