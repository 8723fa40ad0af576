"""Other voices: pitch and formants move apart from each other, and speed apart from both."""

import pytest
import torch

from ssamba.audio.decode import decode
from ssamba.audio.fbank import fbank, hertz_to_mel, mel_band, mel_centers, mel_matrix
from ssamba.audio.voice import change_speed, change_voice, factors
from ssamba.config import FrontEndConfig

RATE_HZ = 16_000


def voice(pitch_hz, formants_hz=(500.0, 1500.0, 2500.0)):
    """Half a second of harmonics with formants, as log-mel (1, T, M)."""
    time = torch.arange(RATE_HZ // 2, dtype=torch.float64) / RATE_HZ
    wave = torch.zeros_like(time)
    for k in range(1, int(4000 / pitch_hz)):
        level = sum(1 / (1 + ((k * pitch_hz - f) / 150) ** 2) for f in formants_hz) + 0.003
        wave += level * torch.sin(2 * torch.pi * k * pitch_hz * time + k * k)
    return fbank((wave / wave.abs().max()).float())[None]


def seed_of(stream, most, wanted):
    """A seed whose factor is nearly the wanted one."""
    seeds = torch.arange(20_000)
    return seeds[(factors(seeds, stream, most) - wanted).abs().argmin()][None]


def lines(features):
    """Mean over frames between 300 and 1,500 Hz, without its level."""
    centers = mel_centers(FrontEndConfig())
    x = features[0].mean(0)[(centers > 300) & (centers < 1500)]
    return x - x.mean()


def closeness(a, b):
    return float(torch.nn.functional.cosine_similarity(lines(a), lines(b), dim=0))


def test_centres_are_where_the_filters_peak():
    config = FrontEndConfig()
    low, step = mel_band(config)
    torch.testing.assert_close(
        hertz_to_mel(mel_centers(config)), low + (torch.arange(128) + 1) * step, atol=2e-3, rtol=0
    )
    filters = mel_matrix(config)[:, 60:]  # wide enough to hold several bins of the transform
    hertz = torch.arange(len(filters)) * RATE_HZ / 512
    middles = (filters * hertz[:, None]).sum(0) / filters.sum(0)
    assert float((middles - mel_centers(config)[60:]).abs().max()) < RATE_HZ / 512


def test_factors_are_even_in_both_directions():
    found = factors(torch.arange(4000), "x", 0.25)
    assert float(found.min()) >= 1 / 1.2501
    assert float(found.max()) <= 1.2501
    assert abs(float(found.log().mean())) < 0.005


def test_a_voice_with_another_pitch_is_like_one_that_speaks_at_it():
    own, higher = voice(130.0), voice(160.0)
    changed = change_voice(own, seed_of("voice.pitch", 1.0, 160 / 130), 0.0, 1.0)
    assert closeness(changed, higher) > closeness(own, higher) + 0.15
    assert closeness(changed, higher) > 0.75  # peaks become wider with the stretch, as those of a higher voice do not


def test_a_voice_with_other_formants_keeps_its_pitch():
    own, longer = voice(130.0), voice(130.0, (420.0, 1260.0, 2100.0))
    changed = change_voice(own, seed_of("voice.formants", 0.25, 0.84), 0.25, 0.0)
    assert closeness(changed, longer) > closeness(own, longer) + 0.15
    assert closeness(changed, longer) > 0.9


def test_nothing_asked_changes_nothing_and_a_clip_is_changed_alike_in_every_batch(clips):
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
def test_other_front_ends_have_their_own_bins(clips, config):
    features = fbank(torch.from_numpy(decode(clips[0], sample_rate_hz=config.sample_rate_hz)), config=config)[None, :50]
    changed = change_voice(features, torch.tensor([1]), 0.25, 1.0, config)
    assert changed.shape == features.shape
    assert bool(changed.isfinite().all())


def test_speed_stretches_time_between_the_same_ends():
    ramp = torch.arange(100.0)[None, :, None].expand(3, -1, 4).contiguous()
    lengths = torch.tensor([100, 37, 1])
    seeds = torch.tensor([1, 2, 3])
    out, changed = change_speed(ramp, seeds, 0.25, lengths, 512)
    wanted = (lengths * factors(seeds, "voice.speed", 0.25)).round().long()
    assert changed.tolist() == wanted.tolist()
    assert out.shape == (3, int(changed.max()), 4)
    for x, old, new in zip(out, lengths.tolist(), changed.tolist(), strict=True):
        torch.testing.assert_close(x[:new, 0], torch.linspace(0, old - 1, new))
        assert float(x[new:].abs().sum()) == 0


def test_speed_without_a_change_is_the_clip_and_the_longest_is_kept():
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
