import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssamba.model import encoder_config
from ssamba.model.masking import draw_mask, mask_count

TINY = encoder_config("tiny", "ssamba2", patch_size=(16, 16), patch_stride=(16, 16))
OFFICIAL = encoder_config("tiny")


@given(
    columns=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    ratio=st.sampled_from([0.0, 0.3, 250 / 512, 300 / 512, 400 / 512, 0.99]),
    style=st.sampled_from(["clustered", "official", "frames"]),
    seed=st.integers(0, 2**62),
)
@settings(deadline=None, max_examples=60)
def test_exact_number_of_valid_patches_is_masked_in_any_batch(columns, ratio, style, seed):
    counts = torch.tensor(columns)
    seeds = torch.arange(len(columns)) + seed
    mask = draw_mask(seeds, OFFICIAL, counts, 40, ratio=ratio, style=style)
    wanted = (
        mask_count(counts * 8, ratio)
        if style != "frames"
        else 8 * (counts * ratio).round().long().clamp(max=counts - 1)
    )
    assert mask.shape == (len(columns), 320)
    assert mask.sum(1).tolist() == wanted.tolist()
    for i, count in enumerate(columns):
        assert not mask[i, 8 * count :].any()
        alone = draw_mask(seeds[i : i + 1], OFFICIAL, counts[i : i + 1], count, ratio=ratio, style=style)
        assert torch.equal(alone[0], mask[i, : 8 * count])


def test_mask_count_of_the_paper():
    mask = draw_mask(torch.arange(4), OFFICIAL, torch.full((4,), 64), 64, ratio=400 / 512)
    assert mask.sum(1).tolist() == [400] * 4


@pytest.mark.parametrize("config", [TINY, OFFICIAL])
def test_every_patch_is_equally_likely_by_default(config):
    clips, columns = 6000, 24
    mask = draw_mask(torch.arange(clips) * 7919 + 3, config, torch.full((clips,), columns), columns, ratio=0.5)
    share = mask.float().mean(0)
    # Four standard deviations of the largest of 192 shares, were clips independent.
    assert (share - 0.5).abs().max() < 4.5 * (0.25 / clips) ** 0.5


def test_official_masks_have_the_quirks_of_the_original():
    clips = 3000
    mask = draw_mask(torch.arange(clips), OFFICIAL, torch.full((clips,), 32), 32, ratio=0.5, style="official")
    share = mask.float().mean(0).view(8, 32)
    assert share[0, 0] == 0
    assert share[7].mean() < share[5].mean()  # what is too many is dropped from the highest frequencies
    assert share[0].mean() < share[3].mean()  # squares start below and grow upwards


def test_masks_are_clustered():
    mask = draw_mask(torch.arange(500), TINY, torch.full((500,), 64), 64, ratio=0.5).view(500, 64, 8)
    both = (mask[:, 1:] & mask[:, :-1]).float().mean()
    assert both > 0.35  # independent patches would agree at 0.25


def test_invalid_mask_arguments_raise():
    with pytest.raises(ValueError, match="mask ratio"):
        draw_mask(torch.arange(1), TINY, torch.tensor([4]), 4, ratio=1.0)
    with pytest.raises(ValueError, match="frequency-major"):
        draw_mask(torch.arange(1), TINY, torch.tensor([4]), 4, ratio=0.5, style="official")
