"""Augmentation of log-mel features: crops, levels, voices, speed and SpecAugment, each independent of the batch."""

from __future__ import annotations

import pytest
import torch

from ssamba.audio.augmentation import (
    Augmentation,
    SpecAugment,
    add_noise_and_roll,
    apply_crop,
    augment,
    change_speed,
    change_voice,
    draw_crop,
    mask_stripes,
    random_factors,
)
from ssamba.audio.decode import decode
from ssamba.audio.fbank import fbank, hertz_to_mel, mel_band, mel_centers, mel_matrix
from ssamba.config import FrontEndConfig
from ssamba.errors import ConfigError

STRONG = Augmentation(gain_db=6, tilt_db=3, equalizer_db=2, band_share=0.5, shift_bins=4, floor_share=0.5, noise=0.1)


def spectrograms(clips, count=4, frames=120):
    whole = [fbank(torch.from_numpy(decode(path))) for path in clips]
    return torch.stack([x[:frames] for x in whole if len(x) >= frames][:count])


def test_augmentation_of_a_clip_is_independent_of_its_batch_and_keeps_padding(clips):
    x, seeds = spectrograms(clips), torch.tensor([1, 2, 3, 4])
    lengths = torch.tensor([120, 50, 120, 80])
    out = augment(x, seeds, STRONG, lengths)
    assert not torch.equal(out[:, :50], x[:, :50])
    assert torch.equal(out[1, 50:], x[1, 50:])
    alone = augment(x[1:2, :50], seeds[1:2], STRONG)
    torch.testing.assert_close(alone[0], out[1, :50])


def test_default_augmentation_changes_nothing(clips):
    x = spectrograms(clips, 2)
    assert augment(x, torch.tensor([1, 2]), Augmentation()) is x


def test_gain_is_uniform_within_its_limits(clips):
    x = spectrograms(clips, 1).expand(200, -1, -1)
    change = (augment(x, torch.arange(200), Augmentation(gain_db=6)) - x)[x > -9].reshape(-1) / 0.2302585
    assert -6.001 < float(change.min()) < -5.5
    assert 5.5 < float(change.max()) < 6.001


def test_equalizer_is_smooth_constant_in_time_and_within_its_limits():
    x = torch.zeros(300, 5, 128)
    change = (augment(x, torch.arange(300), Augmentation(equalizer_db=2)) - x) / 0.2302585
    assert torch.equal(change, change[:, :1].expand_as(change))
    assert 4 < float(change.abs().max()) <= 10.001  # five cosines of 2 dB
    assert float(change.diff(dim=2).abs().max()) < 0.75  # five of 2 dB, none quicker than 5 pi / 128 a bin
    torch.testing.assert_close(change.mean((0, 1)), torch.zeros(128), atol=0.6, rtol=0)


def test_noise_floor_raises_quiet_values_only(clips):
    x = spectrograms(clips, 1).expand(200, -1, -1)
    out = augment(x, torch.arange(200), Augmentation(floor_share=0.5, floor_db=(40, 40)))
    changed = (out != x).flatten(1).any(1)
    assert 80 < int(changed.sum()) < 120
    top = float(x.max())
    loud = x > top - 2.3  # within 10 dB of the loudest: 30 dB above a floor that a tilt lifts by 10 dB at most
    assert float((out - x)[loud].max()) < 0.1
    assert (out >= x).all()
    quiet = x[changed] < top - 80 * 0.2302585
    middle = float(out[changed][quiet].mean() - top) / 0.2302585
    assert -45 < middle < -40  # the mean logarithm of exponential noise lies 2.5 dB below that of its mean
    with pytest.raises(ConfigError, match="floor_db must rise"):
        Augmentation.parse({"floor_db": (50, 40)}, "test")


def test_short_clips_are_not_cropped():
    lengths, seeds = torch.tensor([120, 50, 7, 80]), torch.tensor([1, 2, 3, 4])
    crop = draw_crop(lengths, seeds, "first", longest=64, shortest_share=0.5, step=8, whole=60)
    assert crop.lengths[1:3].tolist() == [50, 7]
    assert crop.starts[1:3].tolist() == [0, 0]
    free = draw_crop(lengths, seeds, "first", longest=64, shortest_share=0.5, step=8)
    assert torch.equal(crop.lengths[[0, 3]], free.lengths[[0, 3]])


def test_crops_lie_within_the_clip_and_copy_it(clips):
    x = spectrograms(clips)
    lengths, seeds = torch.tensor([120, 50, 7, 80]), torch.tensor([1, 2, 3, 4])
    crop = draw_crop(lengths, seeds, "first", longest=64, shortest_share=0.5, step=8)
    assert (crop.starts >= 0).all()
    assert (crop.starts + crop.lengths <= lengths).all()
    assert crop.lengths[2] == 7
    assert (crop.lengths[[0, 1, 3]] % 8 == 0).all()
    out = apply_crop(x, crop, fill=0.5, multiple=16)
    assert out.shape[1] % 16 == 0
    for i in range(4):
        start, count = int(crop.starts[i]), int(crop.lengths[i])
        assert torch.equal(out[i, :count], x[i, start : start + count])
        assert (out[i, count:] == 0.5).all()


RATE_HZ = 16_000


def voice(pitch_hz, formants_hz=(500.0, 1500.0, 2500.0)):
    """Return half a second of harmonics with formants, as log-mel (1, T, M)."""
    time = torch.arange(RATE_HZ // 2, dtype=torch.float64) / RATE_HZ
    wave = torch.zeros_like(time)
    for k in range(1, int(4000 / pitch_hz)):
        level = sum(1 / (1 + ((k * pitch_hz - f) / 150) ** 2) for f in formants_hz) + 0.003
        wave += level * torch.sin(2 * torch.pi * k * pitch_hz * time + k * k)
    return fbank((wave / wave.abs().max()).float())[None]


def seed_of(stream, most, wanted):
    """Return a seed whose factor is close to `wanted`."""
    seeds = torch.arange(20_000)
    return seeds[(random_factors(seeds, stream, most) - wanted).abs().argmin()][None]


def lines(features):
    """Return the mean over frames between 300 and 1,500 Hz, minus its level."""
    centers = mel_centers(FrontEndConfig())
    x = features[0].mean(0)[(centers > 300) & (centers < 1500)]
    return x - x.mean()


def closeness(a, b):
    return float(torch.nn.functional.cosine_similarity(lines(a), lines(b), dim=0))


def test_mel_centers_are_where_the_filters_peak():
    config = FrontEndConfig()
    low, step = mel_band(config)
    torch.testing.assert_close(
        hertz_to_mel(mel_centers(config)), low + (torch.arange(128) + 1) * step, atol=2e-3, rtol=0
    )
    filters = mel_matrix(config)[:, 60:]  # wide enough to hold several bins of the transform
    hertz = torch.arange(len(filters)) * RATE_HZ / 512
    middles = (filters * hertz[:, None]).sum(0) / filters.sum(0)
    assert float((middles - mel_centers(config)[60:]).abs().max()) < RATE_HZ / 512


def test_factors_are_log_uniform():
    found = random_factors(torch.arange(4000), "x", 0.25)
    assert float(found.min()) >= 1 / 1.2501
    assert float(found.max()) <= 1.2501
    assert abs(float(found.log().mean())) < 0.005


def test_pitch_change_resembles_a_voice_of_that_pitch():
    own, higher = voice(130.0), voice(160.0)
    changed = change_voice(own, seed_of("voice.pitch", 1.0, 160 / 130), 0.0, 1.0)
    assert closeness(changed, higher) > closeness(own, higher) + 0.15
    assert closeness(changed, higher) > 0.75  # peaks become wider with the stretch, as those of a higher voice do not


def test_formant_change_keeps_the_pitch():
    own, longer = voice(130.0), voice(130.0, (420.0, 1260.0, 2100.0))
    changed = change_voice(own, seed_of("voice.formants", 0.25, 0.84), 0.25, 0.0)
    assert closeness(changed, longer) > closeness(own, longer) + 0.15
    assert closeness(changed, longer) > 0.9


def test_voice_change_is_independent_of_the_batch_and_zero_strength_changes_nothing(clips):
    features = torch.stack([fbank(torch.from_numpy(decode(path))[: RATE_HZ // 2]) for path in clips[:3]])
    seeds = torch.tensor([3, 4, 5])
    torch.testing.assert_close(change_voice(features, seeds, 0.0, 0.0), features, atol=2e-4, rtol=0)
    together = change_voice(features, seeds, 0.25, 1.0)
    assert not torch.allclose(together, features, atol=0.1)
    torch.testing.assert_close(change_voice(features[1:2], seeds[1:2], 0.25, 1.0), together[1:2], atol=1e-4, rtol=0)
    half = change_voice(features.bfloat16(), seeds, 0.25, 1.0)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "config", [FrontEndConfig(num_mel_bins=40), FrontEndConfig(sample_rate_hz=8000, num_mel_bins=64)]
)
def test_voice_change_works_with_other_front_ends(clips, config):
    features = fbank(torch.from_numpy(decode(clips[0], sample_rate_hz=config.sample_rate_hz)), config=config)[None, :50]
    changed = change_voice(features, torch.tensor([1]), 0.25, 1.0, config)
    assert changed.shape == features.shape
    assert bool(changed.isfinite().all())


def test_speed_change_keeps_first_and_last_frame():
    ramp = torch.arange(100.0)[None, :, None].expand(3, -1, 4).contiguous()
    lengths = torch.tensor([100, 37, 1])
    seeds = torch.tensor([1, 2, 3])
    out, changed = change_speed(ramp, seeds, 0.25, lengths, 512)
    wanted = (lengths * random_factors(seeds, "voice.speed", 0.25)).round().long()
    assert changed.tolist() == wanted.tolist()
    assert out.shape == (3, int(changed.max()), 4)
    for x, old, new in zip(out, lengths.tolist(), changed.tolist(), strict=True):
        torch.testing.assert_close(x[:new, 0], torch.linspace(0, old - 1, new))
        assert float(x[new:].abs().sum()) == 0


def test_zero_speed_change_returns_the_clip_and_long_results_are_truncated():
    features = torch.randn(2, 30, 8)
    lengths = torch.tensor([30, 12])
    out, same = change_speed(features, torch.tensor([1, 2]), 0.0, lengths, 512)
    assert same.tolist() == [30, 12]
    assert torch.equal(out[0], features[0])
    assert torch.equal(out[1, :12], features[1, :12])
    seeds = torch.arange(50)
    cut, short = change_speed(features[:1].expand(50, -1, -1), seeds, 0.25, torch.full((50,), 30), 30)
    assert cut.shape[1] == int(short.max()) == 30
    empty, none = change_speed(features, torch.tensor([1, 2]), 0.25, torch.tensor([30, 0]), 512)
    assert none[1] == 0
    assert float(empty[1].abs().sum()) == 0


CLIP_SEEDS = torch.arange(200)
LENGTHS = torch.randint(20, 101, (200,), generator=torch.Generator().manual_seed(0))
SPEC_AUGMENT = SpecAugment(mel_bins=12, frames=40, noise=0.1, roll_frames=10)


def random_features():
    return torch.rand(200, 100, 32, generator=torch.Generator().manual_seed(1)) + 1


def beyond():
    return (torch.arange(100) >= LENGTHS[:, None])[..., None].expand(-1, -1, 32)


def test_stripes_lie_within_the_valid_frames():
    before = random_features()
    after = mask_stripes(before, CLIP_SEEDS, SPEC_AUGMENT, LENGTHS, -7.0)
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
    before = random_features()
    after = add_noise_and_roll(before, CLIP_SEEDS, SpecAugment(roll_frames=10), LENGTHS)
    assert torch.equal(before[beyond()], after[beyond()])
    shifts = set()
    for old, new, length in zip(before, after, LENGTHS.tolist(), strict=True):
        shift = next(k for k in range(-10, 10) if torch.equal(old[:length].roll(k, 0), new[:length]))
        shifts.add(shift)
    assert shifts == set(range(-10, 10))
    added = add_noise_and_roll(before, CLIP_SEEDS, SpecAugment(noise=0.1), LENGTHS) - before
    assert float(added.min()) >= 0
    assert 0.05 < float(added.max()) < 0.1
    assert float(added[beyond()].abs().max()) == 0


def test_spec_augment_of_a_clip_is_independent_of_its_batch():
    before = random_features()
    whole = add_noise_and_roll(
        mask_stripes(before, CLIP_SEEDS, SPEC_AUGMENT, LENGTHS, 0.0), CLIP_SEEDS, SPEC_AUGMENT, LENGTHS
    )
    length = int(LENGTHS[7])
    alone = mask_stripes(before[7:8, :length], CLIP_SEEDS[7:8], SPEC_AUGMENT, LENGTHS[7:8], 0.0)
    alone = add_noise_and_roll(alone, CLIP_SEEDS[7:8], SPEC_AUGMENT, LENGTHS[7:8])
    torch.testing.assert_close(alone[0], whole[7, :length])


def test_default_spec_augment_changes_nothing():
    before = random_features()
    assert torch.equal(mask_stripes(before, CLIP_SEEDS, SpecAugment(), LENGTHS, 0.0), before)
    assert torch.equal(add_noise_and_roll(before, CLIP_SEEDS, SpecAugment(), LENGTHS), before)
