"""Averages of weights, against torch's own functions and plain sums."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssamba.training.averaging import Averages, ema_decay_at, evaluation_mode


def random_steps(model: nn.Module, steps: int):
    """Change the weights at random, and yield the number of the step."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        yield step


def test_the_exponential_average_is_torchs_once_its_decay_is_reached():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    averages = Averages(model, ema_decay=0.1, average_epochs=None)  # reached at the first update
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.1), use_buffers=True)
    theirs.update_parameters(model)  # its first call only copies
    for _ in random_steps(model, 20):
        model[1](torch.randn(5, 4))
        averages.after_step(model)
        theirs.update_parameters(model)
    ours = averages.state_dict()["ema"]
    assert ours["updates"] == 20
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours["tensors"][name], value)
    assert ours["tensors"]["1.num_batches_tracked"] == model[1].num_batches_tracked


def test_the_exponential_average_is_its_formula_while_its_decay_grows():
    model = nn.Linear(3, 4)
    averages = Averages(model, ema_decay=0.7, average_epochs=None)
    expected = model.weight.detach().double()
    for step in random_steps(model, 30):
        averages.after_step(model)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(averages.released(model).weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_initial_weights_are_forgotten_quickly():
    assert [ema_decay_at(0.999, n) for n in (0, 1, 90, 10**6)] == [0.1, 2 / 11, 0.91, 0.999]


def test_the_mean_over_epochs_is_plain():
    model = nn.Linear(2, 2)
    averages, kept = Averages(model, None, (2, 4)), []
    assert averages.released(model) is model
    for epoch in random_steps(model, 6):
        averages.after_epoch(model, epoch + 1)
        if 2 <= epoch + 1 <= 4:
            kept.append(model.weight.detach().clone())
    assert averages.mean is not None
    assert averages.released(model) is averages.mean.module
    torch.testing.assert_close(averages.mean.module.weight, nn.Parameter(torch.stack(kept).mean(0)))


def test_averages_resume_from_their_state():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    whole = Averages(model, 0.9, (1, 9))
    for step in random_steps(model, 8):
        whole.after_step(model)
        whole.after_epoch(model, step + 1)
        if step == 3:
            resumed = Averages(model, 0.9, (1, 9))
            resumed.load_state_dict(whole.state_dict())
        elif step > 3:
            resumed.after_step(model)
            resumed.after_epoch(model, step + 1)
    for name in ("ema", "mean"):
        one, other = whole.state_dict()[name], resumed.state_dict()[name]
        assert one["updates"] == other["updates"] == 8
        assert all(torch.equal(value, other["tensors"][key]) for key, value in one["tensors"].items())


def test_evaluation_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model.train()
    model[1].eval()
    averages = Averages(model, 0.9, None)
    own = model[0].weight.detach().clone()
    with torch.no_grad():
        averages.released(model)[0].weight.zero_()
    with evaluation_mode(averages.released(model)) as average:
        assert not average.training
        assert not torch.is_grad_enabled()
        assert not average[0].weight.any()
    with evaluation_mode(model):
        assert not model.training
    assert torch.is_grad_enabled()
    assert model.training
    assert not model[1].training
    assert torch.equal(model[0].weight, own)
