"""Readouts equal a plain computation with loops in float64: alone, in batches, in windows, and exported."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssamba.audio.decode import decode
from ssamba.config import EncoderConfig, FrontEndConfig
from ssamba.embedder import Embedder
from ssamba.inference import WindowCutter
from ssamba.model.patches import fill_last_patch
from ssamba.model.readouts import SOUNDING_DB, parts, sounding_region, step_levels, third_weights

FRONT_END = FrontEndConfig()


def reference(features, tokens, config, valid_frames):
    """The mean and the three thirds, (4, D), of one clip: features (T, M), tokens (P + L, D)."""
    features, tokens = np.asarray(features, np.float64), np.asarray(tokens, np.float64)[config.num_prefix_tokens :]
    size, stride = config.patch_size[1], config.patch_stride[1]
    columns = (len(features) - size) // stride + 1
    steps, levels = [], []
    for k in range(columns):
        if config.patch_order == "time_major":
            steps.append(np.mean([tokens[k * config.rows + r] for r in range(config.rows)], axis=0))
        else:
            steps.append(np.mean([tokens[r * columns + k] for r in range(config.rows)], axis=0))
        own = features[k * stride : min(k * stride + size, valid_frames)]
        energy = np.exp(own * 2 * FRONT_END.std + FRONT_END.mean)
        levels.append(10 * np.log10(energy.mean()) if len(own) else -np.inf)
    mean = np.mean(steps, axis=0)
    sounding = [k for k in range(columns) if levels[k] >= max(levels) - SOUNDING_DB]
    region = steps[sounding[0] : sounding[-1] + 1]
    n = len(region)
    if n < 3:
        return np.stack([mean] * 4), n
    thirds = []
    for j in range(3):
        total, weight = 0.0, 0.0
        for i, step in enumerate(region):
            share = max(0.0, min(i + 1, (j + 1) * n / 3) - max(i, j * n / 3))
            total, weight = total + share * step, weight + share
        thirds.append(total / weight)
    return np.stack([mean, *thirds]), n


def encoded(encoder, wave):
    """Features with the last patch filled, tokens, and the number of frames that are the recording's."""
    features = Embedder(encoder, device="cpu").features(wave)
    filled = fill_last_patch(features, encoder.config, FRONT_END.silent_feature)
    with torch.no_grad():
        return filled, encoder(filled[None])[0], len(features)


@pytest.fixture(scope="module")
def waves(clips):
    """Real sounds of several lengths; one has silence around it, one is below a frame of four, one in digital zeros."""
    bird, other = decode(clips[0]), decode(clips[6])
    zeros = np.zeros(9000, np.float32)
    return [bird[:16_000], other[:5000], np.concatenate((zeros, 0.3 * other[:7000], zeros)), bird[:600], 0 * zeros]


STRUCTURES = {
    "official": {},
    "overlapping": {"patch_stride": (16, 10)},
    "columns": {"patch_size": (128, 4), "patch_stride": (128, 4), "patch_order": "time_major"},
    "time_major": {"patch_order": "time_major"},
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_batched_is_single_is_the_reference(make_encoder, waves, structure):
    encoder = make_encoder(**STRUCTURES[structure])
    config = encoder.config
    single = [encoded(encoder, wave) for wave in waves]
    lengths = torch.tensor([len(features) for features, _, _ in single])
    batch = torch.nn.utils.rnn.pad_sequence([features for features, _, _ in single], batch_first=True)
    with torch.no_grad():
        tokens = encoder(batch, lengths)
    together = parts(batch, tokens, config, FRONT_END, lengths, torch.tensor([valid for _, _, valid in single]))
    regions = []
    for k, (features, own, valid) in enumerate(single):
        expected, steps = reference(features, own, config, valid)
        alone = parts(features[None], own[None], config, FRONT_END, valid_frames=torch.tensor([valid]))
        np.testing.assert_allclose(alone[0].reshape(4, -1), expected, atol=1e-5)
        np.testing.assert_allclose(together[k].reshape(4, -1), expected, atol=1e-5)
        regions.append(steps)
    assert min(regions) < 3 < max(regions)
    # The silence around the third is left out, and digital silence sounds throughout.
    assert regions[2] <= 7000 / 160 / config.patch_stride[1] + 2
    assert regions[4] == config.columns(int(lengths[4]))


@pytest.mark.parametrize("padding", ["patch", "official"])
@pytest.mark.parametrize("context", ["windows", "full"])
def test_the_embedders_parts_are_the_mean_over_windows(make_encoder, clips, medley, context, padding):
    encoder = make_encoder(num_frames=64)
    model, config = Embedder(encoder, device="cpu"), encoder.config
    waves = [medley[:40_000], decode(clips[6])[:5000], medley[60_000:75_321]]
    together = model.embed(waves, context=context, padding=padding)
    for wave, found in zip(waves, together, strict=True):
        features = model.features(wave)
        pad, whole = padding == "official", context == "full"
        cutter = WindowCutter(config, FRONT_END.silent_feature, whole=whole, pad_to_window=pad)
        thirds, weights = [], []
        for window in [*cutter.push(features), *cutter.finish()]:
            valid = min(len(window.features), len(features) - window.first_column * 16)
            with torch.no_grad():
                tokens = encoder(window.features[None])[0]
            thirds.append(reference(window.features, tokens, config, valid)[0][1:])
            weights.append(valid)
        expected = np.concatenate((found.clip[None], np.average(thirds, axis=0, weights=weights)))
        np.testing.assert_allclose(found.parts.reshape(4, -1), expected, atol=1e-5)
        alone = model.embed(wave, context=context, padding=padding, batch_tokens=1)
        np.testing.assert_allclose(found.parts, alone.parts, atol=1e-5)


@pytest.mark.parametrize("count", range(1, 14))
def test_thirds_are_equal_and_cover_the_region(count):
    levels = torch.full((1, 20), -20.0)
    levels[0, 4 : 4 + count] = 1.0
    (weights,) = third_weights(levels)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    if count < 3:
        torch.testing.assert_close(weights, torch.full((3, 20), 1 / 20))
        return
    assert not weights[:, :4].any()
    assert not weights[:, 4 + count :].any()
    region = weights[:, 4 : 4 + count]
    torch.testing.assert_close(region.sum(0), torch.full((count,), 3 / count))  # each step counts once
    torch.testing.assert_close(region.flip(0, 1), region)
    if count % 3 == 0:
        torch.testing.assert_close(region, torch.eye(3).repeat_interleave(count // 3, 1) * 3 / count)


def test_the_region_reaches_from_the_first_to_the_last_loud_step():
    config = EncoderConfig(num_mel_bins=16, num_frames=64, patch_size=(16, 4), patch_stride=(16, 4))
    decibels = torch.tensor([-80.0, SOUNDING_DB * -1 + 0.1, -80.0, 0.0, -10.0, -SOUNDING_DB - 0.1, -80.0])
    energies = (decibels / 10 * np.log(10)).repeat_interleave(4)[:, None].expand(-1, 16)
    features = ((energies - FRONT_END.mean) / (2 * FRONT_END.std))[None]
    levels = step_levels(features, config, FRONT_END)
    torch.testing.assert_close(levels[0] * 10 / np.log(10), decibels, atol=1e-4, rtol=0)
    assert [int(value) for value in sounding_region(levels)] == [1, 4]
    levels = step_levels(features, config, FRONT_END, torch.tensor([14]))
    assert levels[0, 3].isfinite()
    assert (levels[0, 4:] == -np.inf).all()
    assert [int(value) for value in sounding_region(levels)] == [1, 3]


def test_an_exported_readout_gives_the_same(make_encoder, waves):
    encoder = make_encoder()

    class Parts(torch.nn.Module):
        def forward(self, features, tokens, lengths, valid_frames):
            return parts(features, tokens, encoder.config, FRONT_END, lengths, valid_frames)

    def batch_of(some):
        single = [encoded(encoder, wave) for wave in some]
        lengths = torch.tensor([len(features) for features, _, _ in single])
        features = torch.nn.utils.rnn.pad_sequence([features for features, _, _ in single], batch_first=True)
        with torch.no_grad():
            return features, encoder(features, lengths), lengths, torch.tensor([valid for _, _, valid in single])

    batch, columns = torch.export.Dim("batch", max=64), torch.export.Dim("columns", min=2, max=4096)
    shapes = ({0: batch, 1: 16 * columns}, {0: batch, 1: 8 * columns + 1}, {0: batch}, {0: batch})
    program = torch.export.export(Parts(), batch_of(waves), dynamic_shapes=shapes).module()
    for some in (waves, waves[1:4], waves[:1]):
        own = batch_of(some)
        torch.testing.assert_close(program(*own), Parts()(*own), atol=1e-6, rtol=0)
