"""The encoder in other training loops: data loaders, forks, autocast, checkpointing, compilation, export, DDP."""

from __future__ import annotations

import copy
import gc
import importlib
import io
import os
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.utils.data import DataLoader, Dataset

from ssamba import create_encoder, load_encoder, save_checkpoint
from ssamba.audio.decode import decode
from ssamba.audio.fbank import log_mel

SMALL = {"embed_dim": 32, "depth": 4}
VARIANTS = {
    "official": {},
    "ssamba2": {"variant": "ssamba2"},
    "sequential": {"block_layout": "sequential"},
    "ssast": {"variant": "ssast", "num_heads": 2},
}
each_variant = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
ignore_fork_warning = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def small(**overrides):
    torch.manual_seed(0)
    return create_encoder("tiny", **{**SMALL, **overrides})


@pytest.fixture(scope="module")
def features(medley):
    """Features of four real clips (4, 64, 128)."""
    return log_mel(torch.from_numpy(medley[: 4 * 10_480].reshape(4, 10_480)))


def loss_of(tokens):
    """A loss whose gradients neither vanish (squares of normalized tokens have a constant sum) nor leave float16."""
    weights = torch.linspace(-1, 1, tokens[0].numel()).sin().view(tokens.shape[1:])
    return (tokens.float() * weights).square().sum() / 100


def gradients(encoder, *inputs, seed=1):
    """Gradients of one step; stochastic depth draws from `seed`."""
    encoder.zero_grad()
    torch.manual_seed(seed)
    loss_of(encoder(*inputs)).backward()
    return [p.grad.clone() for p in encoder.parameters()]


def relative_error(found, expected):
    """The norm of the difference of all gradients, relative to that of all gradients."""
    ours, theirs = (torch.cat([g.flatten().double() for g in each]) for each in (found, expected))
    return ((ours - theirs).norm() / theirs.norm()).item()


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


# Data loaders and forks


class ClipVectors(Dataset[torch.Tensor]):
    """Decodes recordings, computes features and embeds them, all in the worker."""

    def __init__(self, paths, encoder):
        self.paths, self.encoder = paths, encoder

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        wave = torch.from_numpy(decode(self.paths[index], sample_rate_hz=16_000))[:16_000]
        with torch.no_grad():
            return self.encoder(log_mel(wave[None]))[0].mean(0)


@ignore_fork_warning
@pytest.mark.parametrize("method", [pytest.param("fork", marks=needs_fork), "spawn"])
def test_data_loader_workers_run_the_encoder(method, clips, ssamba_pth):
    torch.set_num_threads(2)
    dataset = ClipVectors(clips[:4], load_encoder(ssamba_pth))
    expected = torch.stack([dataset[i] for i in range(4)])  # the parent uses OpenMP's threads before it forks
    loader = DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context=method, timeout=120)
    torch.testing.assert_close(torch.cat(list(loader)), expected, atol=1e-5, rtol=0)


def _train_in_child(connection, encoder, features, wide):
    (wide @ wide).sum()
    connection.send((torch.get_num_threads(), [g.numpy() for g in gradients(encoder, features)]))


def _train_in_thread_of_child(connection, encoder, features, wide):
    def train():
        torch.set_num_threads(2)
        _train_in_child(connection, encoder, features, wide)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()


@needs_fork
@ignore_fork_warning
@pytest.mark.parametrize(("work", "threads"), [(_train_in_child, 1), (_train_in_thread_of_child, 2)])
def test_a_forked_child_trains_after_its_parent_has_used_threads(work, threads, features):
    torch.set_num_threads(2)
    encoder, wide = small(), torch.ones(500, 500)
    expected = gradients(encoder, features)
    (wide @ wide).sum()
    context = torch.multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(theirs, encoder, features, wide))
    child.start()
    try:
        assert ours.poll(120), "the child hangs"
        child_threads, found = ours.recv()
        child.join(timeout=60)
        assert child.exitcode == 0
    finally:
        child.kill()
    assert child_threads == threads
    assert torch.get_num_threads() == 2
    assert relative_error(map(torch.from_numpy, found), expected) <= 1e-5


# Precision


@each_variant
def test_autocast_trains_in_bfloat16_and_keeps_float32_gradients(overrides, features):
    encoder = small(**overrides)
    expected = gradients(encoder, features)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(encoder, features)
    assert all(g.dtype == torch.float32 for g in found)
    assert relative_error(found, expected) <= 0.03


def test_a_gradient_scaler_scales_steps_and_skips_overflow(features):
    encoder = small(depth=2)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step():
        before = [p.detach().clone() for p in encoder.parameters()]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            tokens = encoder(features)
        assert tokens.dtype == torch.float32  # the final norm's, under autocast
        scaler.scale(loss_of(tokens)).backward()
        scaler.unscale_(optimizer)
        found = [p.grad.clone() for p in encoder.parameters()]
        scaler.step(optimizer)
        scaler.update()
        return found, any(not torch.equal(p, old) for p, old in zip(encoder.parameters(), before, strict=True))

    expected = gradients(encoder, features)
    found, moved = step()
    assert moved
    assert scaler.get_scale() == 2.0**10
    assert relative_error(found, expected) <= 0.005
    scaler.update(2.0**60)
    _, moved = step()
    assert not moved
    assert scaler.get_scale() == 2.0**59


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 0.005)], ids=str
)
@each_variant
def test_an_encoder_of_another_dtype_trains(overrides, dtype, tolerance, features):
    encoder = small(**overrides, depth=2)
    expected = gradients(encoder, features)
    encoder.to(dtype)
    found = gradients(encoder, features.to(dtype))
    assert all(g.dtype == dtype for g in found)
    assert relative_error(found, expected) <= tolerance


def test_features_of_another_dtype_than_the_weights_are_refused_with_the_remedy(features):
    encoder = small(depth=2)
    with pytest.raises(ValueError, match=r"weights, torch.float32, got torch.float64: convert .*features.to"):
        encoder(features.double())
    with pytest.raises(ValueError, match=r"weights, torch.bfloat16, got torch.float32"):
        encoder.bfloat16()(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(features).shape == (4, 33, 32)


# Gradient checkpointing


@each_variant
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_checkpointing_gives_the_same_bits(overrides, drop_path, autocast, features):
    encoder = small(**overrides, drop_path=drop_path).train()
    lengths = torch.tensor([64, 64, 48, 20])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for inputs in ((features,), (features, lengths)):
            encoder.gradient_checkpointing = False
            expected = gradients(encoder, *inputs)
            encoder.gradient_checkpointing = True
            assert_equal(gradients(encoder, *inputs), expected)
            if drop_path:
                others = gradients(encoder, *inputs, seed=2)
                assert not all(map(torch.equal, others, expected))


@each_variant
def test_checkpointing_leaves_hidden_states_layers_and_inference_alone(overrides, features):
    encoder = small(**overrides)
    assert encoder.gradient_checkpointing is False

    def results():
        found = []
        for layer in (None, 0, 1, -1):
            encoder.zero_grad()
            tokens = encoder(features, layer=layer)
            loss_of(tokens).backward()
            found += [tokens.detach(), *[p.grad.clone() for p in encoder.parameters() if p.grad is not None]]
        states = encoder.hidden_states(encoder.embed_patches(features))
        encoder.zero_grad()
        loss_of(sum(states)).backward()
        with torch.no_grad():
            return [*found, *states, *[p.grad.clone() for p in encoder.parameters()], encoder(features)]

    expected = results()
    encoder.gradient_checkpointing = True
    assert_equal(results(), expected)
    assert "gradient_checkpointing" not in encoder.state_dict()
    assert copy.deepcopy(encoder).gradient_checkpointing
    assert pickle.loads(pickle.dumps(encoder)).gradient_checkpointing


def bytes_kept(encoder, features):
    """Bytes that a forward pass keeps for backward, weights aside."""
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(features)
    return sum(size for size, _ in kept.values())


@each_variant
def test_checkpointing_keeps_the_inputs_of_layers_alone(overrides, features):
    encoder = small(**overrides, depth=8)
    plain = bytes_kept(encoder, features)
    encoder.gradient_checkpointing = True
    assert bytes_kept(encoder, features) < plain / 4


# Compilation and export


@pytest.mark.parametrize(
    ("overrides", "checkpointing", "autocast"),
    [({}, False, False), ({}, True, True), (VARIANTS["ssast"], True, False)],
    ids=["official", "official-checkpointing-autocast", "ssast-checkpointing"],
)
def test_compiles_training_in_one_graph(overrides, checkpointing, autocast, features):
    encoder = small(**overrides, depth=2)
    encoder.gradient_checkpointing = checkpointing
    lengths = torch.tensor([64, 64, 48, 20])
    torch.compiler.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = gradients(encoder, features, lengths)
        found = gradients(compiled, features, lengths)
    assert relative_error(found, expected) <= (0.02 if autocast else 1e-5)


@pytest.mark.parametrize(
    ("overrides", "padded"),
    [({}, False), ({}, True), (VARIANTS["ssamba2"], True), (VARIANTS["ssast"], False)],
    ids=["official", "official-padded", "ssamba2-padded", "ssast"],
)
def test_exports_with_dynamic_batch_and_time(overrides, padded, features):
    encoder = small(**overrides, depth=2).eval()
    batch, frames = torch.export.Dim("batch", min=1, max=1024), torch.export.Dim("frames", min=32, max=100_000)
    inputs = (features, torch.tensor([64, 40, 32, 64])) if padded else (features,)
    shapes = ({0: batch, 1: frames}, {0: batch}) if padded else ({0: batch, 1: frames},)
    with torch.no_grad():
        file = io.BytesIO()
        torch.export.save(torch.export.export(encoder, inputs, dynamic_shapes=shapes), file)
        file.seek(0)
        exported = torch.export.load(file).module()
        for count, length in ((4, 64), (1, 32), (3, 250)):
            other = (torch.randn(count, length, 128), torch.randint(32, length + 1, (count,)))[: len(inputs)]
            torch.testing.assert_close(exported(*other), encoder(*other), atol=1e-5, rtol=0)


# State dicts and replaced parts


class LowRank(nn.Module):
    """LoRA as a parametrization of a weight."""

    def __init__(self, weight):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, weight.shape[1])), nn.Parameter(torch.zeros(weight.shape[0], 2))

    def forward(self, weight):
        return weight + self.b @ self.a


def test_parametrized_weights_train_and_replaced_layers_are_refused(features):
    encoder = small(depth=2).requires_grad_(False)
    expected = encoder(features)
    layer = encoder.blocks[0].mixer.in_proj
    nn.utils.parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))
    assert torch.equal(encoder(features), expected)
    loss_of(encoder(features)).backward()
    low_rank = layer.parametrizations.weight[0]
    assert low_rank.b.grad.any()
    with torch.no_grad():
        low_rank.b.add_(1)
        assert not torch.allclose(encoder(features), expected, atol=1e-3)
    encoder.blocks[1].mixer.out_proj = nn.Sequential(encoder.blocks[1].mixer.out_proj)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, pytest.raises(TypeError, match="replaced by Sequential, which would not be called"):
            encoder(features)


def test_state_dicts_load_strictly_into_a_new_encoder(features, tmp_path):
    encoder, other = small().eval(), create_encoder("tiny", **SMALL).eval()
    other.load_state_dict(encoder.state_dict(), strict=True)
    with torch.no_grad():
        expected = encoder(features)
        assert torch.equal(other(features), expected)
        torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
        other = create_encoder("tiny", **SMALL).eval()
        other.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True), strict=True)
        assert torch.equal(other(features), expected)
        save_checkpoint(tmp_path / "folder", encoder)
        assert torch.equal(load_encoder(tmp_path / "folder")(features), expected)


def test_compiling_in_place_keeps_the_names_and_wrapping_prefixes_them():
    encoder = small(depth=2)
    names = list(encoder.state_dict())
    compiled = torch.compile(encoder, backend="eager")
    state = compiled.state_dict()
    assert list(state) == [f"_orig_mod.{name}" for name in names]
    consume_prefix_in_state_dict_if_present(state, "_orig_mod.")
    small(depth=2).load_state_dict(state, strict=True)
    encoder.compile(backend="eager")
    assert list(encoder.state_dict()) == names


# Distributed data parallel


class EncoderAndHead(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.embed_dim, 3)

    def forward(self, features):
        return self.head(self.encoder(features).mean(1))


def classifier(**overrides):
    torch.manual_seed(0)
    return EncoderAndHead(create_encoder("tiny", **{**SMALL, **overrides})).train()


SETTINGS = [(0.0, False, False), (0.0, False, True), (0.5, True, False), (0.5, True, True)]
"""Stochastic depth, autocast, checkpointing."""


def _rank(rank, store, features, folder):
    torch.set_num_threads(1)
    # As in ssamba.training.distributed: modules imported while a group exists keep it alive.
    importlib.import_module("torch._dynamo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2)
    results = {}
    for setting in SETTINGS:
        drop_path, autocast, checkpointing = setting
        model = classifier(drop_path=drop_path)
        model.encoder.gradient_checkpointing = checkpointing
        wrapped = nn.parallel.DistributedDataParallel(model)
        torch.manual_seed(rank)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = wrapped(features[2 * rank : 2 * rank + 2])
        nn.functional.cross_entropy(logits.float(), torch.tensor([0, 2])).backward()
        results[setting] = [p.grad.clone() for p in model.parameters()]
    if rank == 0:
        torch.save((results, wrapped.state_dict()), folder / "results.pt")
    # In this order: DistributedDataParallel frees a group with the GIL held, which its threads may be waiting for.
    del wrapped, model
    gc.collect()
    torch.distributed.destroy_process_group()


def test_two_processes_average_gradients_with_checkpointing_autocast_and_stochastic_depth(features, tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), features, tmp_path), nprocs=2)
    results, state = torch.load(tmp_path / "results.pt", weights_only=True)
    model = classifier()
    nn.functional.cross_entropy(model(features), torch.tensor([0, 2, 0, 2])).backward()
    assert relative_error(results[0.0, False, False], [p.grad for p in model.parameters()]) <= 1e-5
    assert_equal(results[0.0, False, True], results[0.0, False, False])
    assert_equal(results[0.5, True, True], results[0.5, True, False])
    assert list(state) == [f"module.{name}" for name in model.state_dict()]
    consume_prefix_in_state_dict_if_present(state, "module.")
    classifier().load_state_dict(state, strict=True)
