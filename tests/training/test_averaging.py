"""Averages of weights, against torch's own."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssamba.training.averaging import AveragedWeights, Averages, ema_keep, evaluating


def walk(model: nn.Module, steps: int):
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        yield step


def test_the_exponential_average_is_torchs_once_warm():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours = AveragedWeights(model)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(model)  # its first call only copies
    for _ in walk(model, 20):
        model[1](torch.randn(5, 4))
        ours.update(model, keep=0.9)
        theirs.update_parameters(model)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours.tensors[name], value)
    assert ours.tensors["1.num_batches_tracked"] == model[1].num_batches_tracked


def test_the_start_is_forgotten_quickly():
    assert [ema_keep(0.999, n) for n in (0, 1, 90, 10**6)] == [0.1, 2 / 11, 0.91, 0.999]


def test_the_mean_over_epochs_is_plain():
    model = nn.Linear(2, 2)
    averages, kept = Averages(model, None, (2, 4)), []
    for epoch in walk(model, 6):
        averages.after_epoch(model, epoch + 1)
        if 2 <= epoch + 1 <= 4:
            kept.append(model.weight.detach().clone())
    assert averages.released() is averages.mean
    assert averages.mean is not None
    torch.testing.assert_close(averages.mean.tensors["weight"], torch.stack(kept).mean(0))


def test_evaluation_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model.train()
    model[1].eval()
    average = AveragedWeights(model)
    own = model[0].weight.detach().clone()
    with torch.no_grad():
        average.tensors["0.weight"].zero_()
    with evaluating(model, average):
        assert not model.training
        assert not torch.is_grad_enabled()
        assert not model[0].weight.any()
    assert model.training
    assert not model[1].training
    assert torch.equal(model[0].weight, own)
