"""Sound units and running standardization: independence of the batch, saved states, k-means."""

import torch

from ssamba.training.pretraining.targets import RunningScale, SoundUnits, _k_means


def batch(seed=0, clips=4, frames=40):
    features = torch.randn(clips, frames, 64, generator=torch.Generator().manual_seed(seed)).cumsum(1)
    return features, torch.tensor([frames, 12, 5, 30][:clips])


def fitted(count=6, seed=3):
    units = SoundUnits(count, column_frames=4, log_scale=0.5)
    units.fit([batch(1), batch(2)], seed)
    return units


def test_units_do_not_depend_on_the_batch_or_on_padding():
    units, (features, lengths) = fitted(), batch()
    step = torch.arange(40)
    features[step.expand(4, -1) >= lengths[:, None]] = torch.nan
    together = units.units(features, lengths)
    assert together.shape == (4, 10)
    for i, length in enumerate(lengths.tolist()):
        alone = units.units(features[i : i + 1, :length], lengths[i : i + 1])
        assert torch.equal(alone[0], together[i, : -(-length // 4)])


def test_moments_do_not_depend_on_loudness_and_color():
    units, (features, lengths) = fitted(), batch()
    moments = units.moments(features * 0.1, lengths)  # all of it within 40 dB
    tilt = torch.linspace(0, 1, 64)
    changed = units.moments(features * 0.1 - 3 + tilt, lengths)
    columns = torch.arange(10) < (-(-lengths // 4))[:, None]
    torch.testing.assert_close(changed[columns], moments[columns], atol=1e-4, rtol=1e-4)


def test_fitting_is_repeatable_and_a_saved_state_gives_the_same_units():
    first, second, other = fitted(), fitted(), SoundUnits(6, column_frames=4, log_scale=0.5)
    assert torch.equal(first.centers, second.centers)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.units(*batch()), other.units(*batch()))


def test_projected_moments_are_white():
    units = SoundUnits(4, column_frames=4, log_scale=0.5)
    moments = [batch(seed, clips=1, frames=400) for seed in range(40)]
    moments = [(features, torch.tensor([400])) for features, _ in moments]
    units.fit(moments, 0)
    projected = torch.cat([units.moments(*one)[0] for one in moments]) - units.mean
    covariance = torch.cov((projected @ units.projection).T)
    torch.testing.assert_close(covariance, torch.eye(48), atol=0.02, rtol=0)


def test_k_means_finds_clusters():
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    points = (middles[:, None] + 0.1 * torch.randn(3, 50, 2, generator=generator)).flatten(0, 1)
    centers = _k_means(points, 3, torch.Generator().manual_seed(1))
    assert len(torch.cdist(middles, centers).argmin(1).unique()) in (2, 3)  # Lloyd's rounds may end in a local minimum
    many = _k_means(points, 20, torch.Generator().manual_seed(1))
    assert torch.cdist(points, many).amin(1).max() < 0.5


def test_there_may_be_more_clusters_than_moments():
    units = SoundUnits(500, column_frames=4, log_scale=0.5)
    units.fit([batch()], 0)
    assert units.centers.isfinite().all()


def test_a_running_scale_standardizes_and_only_training_moves_it():
    scale, generator = RunningScale(3), torch.Generator().manual_seed(0)
    for _ in range(50):
        scale.standardize(5 + 2 * torch.randn(64, 3, generator=generator), training=True)
    before = scale.mean.clone()
    scaled = scale.standardize(5 + 2 * torch.randn(5000, 3, generator=generator), training=False)
    assert torch.equal(before, scale.mean)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=0.1, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.ones(3), atol=0.1, rtol=0)
    other = RunningScale(3)
    other.load_state_dict(scale.state_dict())
    assert torch.equal(other.mean, scale.mean)
    assert other.seen == 50
