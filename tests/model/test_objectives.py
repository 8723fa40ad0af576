import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dct

from ssamba.model.objectives import (
    clip_contrast,
    log_mel_texture,
    profile_bands,
    remove_channel,
    temporal_profile,
    texture_values,
    unit_cross_entropy,
)


def test_profile_is_the_mean_of_each_segment_and_band():
    features = torch.randn(2, 12, 8)
    profile = temporal_profile(features, None, 3)
    assert profile.shape == (2, 3 * profile_bands(8))
    expected = features.view(2, 3, 4, 2, 4).mean((2, 4))
    torch.testing.assert_close(profile, expected.flatten(1))


def test_frames_on_segment_borders_count_fractionally():
    ramp = torch.arange(3.0)[None, :, None].expand(1, 3, 4)
    torch.testing.assert_close(temporal_profile(ramp, None, 2), torch.tensor([[1 / 3, 5 / 3]]))
    # More segments than frames: each frame stands for several.
    torch.testing.assert_close(temporal_profile(ramp, None, 6), torch.tensor([[0.0, 0, 1, 1, 2, 2]]))


@pytest.mark.parametrize("length", [1, 5, 12])
def test_profile_ignores_padding(length):
    features = torch.randn(1, 12, 8)
    padded = features.clone()
    padded[:, length:] = torch.nan
    torch.testing.assert_close(
        temporal_profile(padded, torch.tensor([length]), 4), temporal_profile(features[:, :length], None, 4)
    )


def test_incomplete_last_band_is_averaged():
    features = torch.tensor([1.0, 1, 1, 1, 3, 5]).expand(1, 4, 6)
    torch.testing.assert_close(temporal_profile(features, None, 1), torch.tensor([[1.0, 4.0]]))


def test_remove_channel_ignores_level_color_and_quiet_floor():
    levels, lengths = torch.randn(2, 12, 8).clamp(-4, 4), torch.tensor([12, 7])
    heard = remove_channel(levels, lengths)
    torch.testing.assert_close(heard[1, :7].mean(0), torch.zeros(8), atol=1e-6, rtol=0)
    padded = levels.clone()
    padded[1, 7:] = torch.nan
    torch.testing.assert_close(remove_channel(padded, lengths)[1, :7], heard[1, :7])
    color = torch.linspace(-0.3, 0.3, 8) - 5
    torch.testing.assert_close(remove_channel(levels + color, lengths)[1, :7], heard[1, :7])
    levels[0, 3] = -50.0
    floored = levels.clone()
    floored[0, 3] = -10.0  # both more than 40 dB below the loudest value
    torch.testing.assert_close(remove_channel(levels, lengths)[0], remove_channel(floored, lengths)[0])


def test_texture_matches_scipy_and_plain_means():
    x = torch.randn(1, 20, 64, dtype=torch.float64)
    texture = log_mel_texture(x)[0].numpy()
    cepstra = dct(x[0].numpy(), type=2, norm="ortho")[:, :40]
    cepstra[:, 0] *= 2**0.5  # scipy's first basis vector is shorter
    expected = [cepstra.std(0), (np.diff(cepstra, axis=0) ** 2).mean(0) ** 0.5]
    expected.append((np.diff(x[0].numpy(), axis=1) ** 2).mean(0) ** 0.5)
    bands = x[0].view(20, 8, 8).mean(2).numpy()
    expected += [((bands[lag:] - bands[:-lag]) ** 2).mean(0) ** 0.5 for lag in (4, 8, 16)]
    expected.append(np.zeros(8))  # a change over 32 frames does not fit into 20
    np.testing.assert_allclose(texture, np.concatenate(expected), rtol=1e-4, atol=1e-5)
    assert len(texture) == texture_values(64)


@pytest.mark.parametrize("length", [1, 7, 40])
def test_texture_ignores_padding(length):
    features = torch.randn(1, 40, 20)
    padded = features.clone()
    padded[:, length:] = torch.nan
    own = log_mel_texture(features[:, :length])
    torch.testing.assert_close(log_mel_texture(padded, torch.tensor([length])), own)
    assert own.shape == (1, texture_values(20))


def test_unit_cross_entropy_averages_over_valid_tokens_then_over_clips():
    scores, units = torch.randn(2, 3, 5), torch.tensor([[0, 4, 2], [1, 0, 0]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    loss, accuracy = unit_cross_entropy(scores, units, valid)
    expected = (F.cross_entropy(scores[0], units[0]) + F.cross_entropy(scores[1, :1], units[1, :1])) / 2
    torch.testing.assert_close(loss, expected)
    right = (scores.argmax(-1) == units).float()
    torch.testing.assert_close(accuracy, (right[0].mean() + right[1, 0]) / 2)


def test_a_contrast_has_one_or_several_positives_and_more_negatives():
    views = F.normalize(torch.randn(6, 4), dim=1)
    partner = torch.tensor([3, 4, 5, 0, 1, 2])
    one = clip_contrast(views, partner, 0.1)
    chances = (views @ views.T / 0.1).fill_diagonal_(-torch.inf).softmax(1)
    torch.testing.assert_close(one.loss, -chances[torch.arange(6), partner].log().mean())
    positive = F.one_hot(partner, 6).bool()
    torch.testing.assert_close(clip_contrast(views, positive, 0.1), one)
    positive[0, 4] = positive[0, 0] = True  # itself does not count
    several = clip_contrast(views, positive, 0.1)
    change = (-chances[0, [3, 4]].log().mean() + chances[0, 3].log()) / 6
    torch.testing.assert_close(several.loss, one.loss + change)
    left_out = torch.zeros(6, 6, dtype=torch.bool)
    left_out[5] = left_out[:, 5] = True
    without = clip_contrast(views, F.one_hot(partner, 6).bool(), 0.1, left_out)
    kept = [0, 1, 3, 4]  # views 2 and 5 have no positive, and view 2 is a negative
    chances = (views[:5] @ views[:5].T / 0.1).fill_diagonal_(-torch.inf).softmax(1)
    torch.testing.assert_close(without.loss, -chances[kept, partner[kept]].log().mean())
    queue = F.normalize(torch.randn(3, 4), dim=1)
    harder = clip_contrast(views, partner, 0.1, negatives=queue)
    scores = torch.cat(((views @ views.T / 0.1).fill_diagonal_(-torch.inf), views @ queue.T / 0.1), 1)
    torch.testing.assert_close(harder.loss, F.cross_entropy(scores, partner))


def test_left_out_views_have_no_gradient():
    views = torch.randn(4, 3, requires_grad=True)
    left_out = torch.zeros(4, 4, dtype=torch.bool)
    left_out[3] = left_out[:, 3] = True
    clip_contrast(views, F.one_hot(torch.tensor([1, 0, 3, 2]), 4).bool(), 0.1, left_out).loss.backward()
    assert views.grad.isfinite().all()
    assert (views.grad[3] == 0).all()
