import pytest
import torch

from ssamba.audio.augment import Augmentation, augment
from ssamba.audio.crops import cut, draw_crop
from ssamba.audio.decode import decode
from ssamba.audio.fbank import fbank
from ssamba.errors import ConfigError

STRONG = Augmentation(gain_db=6, tilt_db=3, equaliser_db=2, band_share=0.5, shift_bins=4, floor_share=0.5, noise=0.1)


def spectrograms(clips, count=4, frames=120):
    whole = [fbank(torch.from_numpy(decode(path))) for path in clips]
    return torch.stack([x[:frames] for x in whole if len(x) >= frames][:count])


def test_a_clip_is_changed_alike_in_every_batch_and_padding_stays(clips):
    x, seeds = spectrograms(clips), torch.tensor([1, 2, 3, 4])
    lengths = torch.tensor([120, 50, 120, 80])
    out = augment(x, seeds, STRONG, lengths)
    assert not torch.equal(out[:, :50], x[:, :50])
    assert torch.equal(out[1, 50:], x[1, 50:])
    alone = augment(x[1:2, :50], seeds[1:2], STRONG)
    torch.testing.assert_close(alone[0], out[1, :50])


def test_the_default_changes_nothing(clips):
    x = spectrograms(clips, 2)
    assert augment(x, torch.tensor([1, 2]), Augmentation()) is x


def test_gain_and_tilt_are_what_they_say(clips):
    x = spectrograms(clips, 1).expand(200, -1, -1)
    change = (augment(x, torch.arange(200), Augmentation(gain_db=6)) - x)[x > -9].reshape(-1) / 0.2302585
    assert -6.001 < float(change.min()) < -5.5
    assert 5.5 < float(change.max()) < 6.001


def test_an_equaliser_is_smooth_steady_and_as_strong_as_it_says():
    x = torch.zeros(300, 5, 128)
    change = (augment(x, torch.arange(300), Augmentation(equaliser_db=2)) - x) / 0.2302585
    assert torch.equal(change, change[:, :1].expand_as(change))
    assert 4 < float(change.abs().max()) <= 10.001  # five cosines of 2 dB
    assert float(change.diff(dim=2).abs().max()) < 0.75  # five of 2 dB, none quicker than 5 pi / 128 a bin
    torch.testing.assert_close(change.mean((0, 1)), torch.zeros(128), atol=0.6, rtol=0)


def test_a_noise_floor_fills_what_is_quieter_and_leaves_the_rest(clips):
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


def test_short_clips_stay_whole():
    lengths, seeds = torch.tensor([120, 50, 7, 80]), torch.tensor([1, 2, 3, 4])
    crop = draw_crop(lengths, seeds, "first", longest=64, shortest_share=0.5, step=8, whole=60)
    assert crop.lengths[1:3].tolist() == [50, 7]
    assert crop.starts[1:3].tolist() == [0, 0]
    free = draw_crop(lengths, seeds, "first", longest=64, shortest_share=0.5, step=8)
    assert torch.equal(crop.lengths[[0, 3]], free.lengths[[0, 3]])


def test_crops_stay_inside_and_come_from_the_clip(clips):
    x = spectrograms(clips)
    lengths, seeds = torch.tensor([120, 50, 7, 80]), torch.tensor([1, 2, 3, 4])
    crop = draw_crop(lengths, seeds, "first", longest=64, shortest_share=0.5, step=8)
    assert (crop.starts >= 0).all()
    assert (crop.starts + crop.lengths <= lengths).all()
    assert crop.lengths[2] == 7
    assert (crop.lengths[[0, 1, 3]] % 8 == 0).all()
    out = cut(x, crop, fill=0.5, multiple=16)
    assert out.shape[1] % 16 == 0
    for i in range(4):
        start, count = int(crop.starts[i]), int(crop.lengths[i])
        assert torch.equal(out[i, :count], x[i, start : start + count])
        assert (out[i, count:] == 0.5).all()
