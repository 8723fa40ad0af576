"""SpecAugment: stripes within what is heard, the same for a clip in any batch."""

import torch

from ssamba.audio.spec_augment import SpecAugment, hide_stripes, noise_and_roll

SEEDS = torch.arange(200)
LENGTHS = torch.randint(20, 101, (200,), generator=torch.Generator().manual_seed(0))
BOTH = SpecAugment(mel_bins=12, frames=40, noise=0.1, roll_frames=10)


def features():
    return torch.rand(200, 100, 32, generator=torch.Generator().manual_seed(1)) + 1


def beyond():
    return (torch.arange(100) >= LENGTHS[:, None])[..., None].expand(-1, -1, 32)


def test_stripes_lie_within_the_valid_frames():
    before = features()
    after = hide_stripes(before, SEEDS, BOTH, LENGTHS, -7.0)
    assert torch.equal(before[beyond()], after[beyond()])
    hidden = after == -7
    assert torch.equal(after[~hidden], before[~hidden])
    for clip, length in zip(hidden, LENGTHS.tolist(), strict=True):
        frames = int(clip[:length].all(1).sum())
        bins = int(clip[:length].all(0).sum())
        assert frames <= min(40, length // 2)
        assert bins < 12
    assert hidden.all(2).any(1).float().mean() > 0.8  # most clips have a stripe of frames
    widths = hidden.all(2).sum(1)[LENGTHS >= 80].float()
    assert 14 < widths.mean() < 26  # uniform from 0 to 40


def test_roll_and_noise_stay_within_the_clip():
    before = features()
    after = noise_and_roll(before, SEEDS, SpecAugment(roll_frames=10), LENGTHS)
    assert torch.equal(before[beyond()], after[beyond()])
    shifts = set()
    for old, new, length in zip(before, after, LENGTHS.tolist(), strict=True):
        shift = next(k for k in range(-10, 10) if torch.equal(old[:length].roll(k, 0), new[:length]))
        shifts.add(shift)
    assert shifts == set(range(-10, 10))
    added = noise_and_roll(before, SEEDS, SpecAugment(noise=0.1), LENGTHS) - before
    assert float(added.min()) >= 0
    assert 0.05 < float(added.max()) < 0.1
    assert float(added[beyond()].abs().max()) == 0


def test_a_clip_is_changed_alike_in_any_batch():
    before = features()
    whole = noise_and_roll(hide_stripes(before, SEEDS, BOTH, LENGTHS, 0.0), SEEDS, BOTH, LENGTHS)
    length = int(LENGTHS[7])
    alone = hide_stripes(before[7:8, :length], SEEDS[7:8], BOTH, LENGTHS[7:8], 0.0)
    alone = noise_and_roll(alone, SEEDS[7:8], BOTH, LENGTHS[7:8])
    torch.testing.assert_close(alone[0], whole[7, :length])


def test_the_default_changes_nothing():
    before = features()
    assert torch.equal(hide_stripes(before, SEEDS, SpecAugment(), LENGTHS, 0.0), before)
    assert torch.equal(noise_and_roll(before, SEEDS, SpecAugment(), LENGTHS), before)
