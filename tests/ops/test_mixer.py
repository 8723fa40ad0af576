"""The bidirectional mixer: the fused C++ operators against float64, in-place inference, and the encoder over them."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.tolerance import FLOOR, loss, poison
from torch.utils._python_dispatch import TorchDispatchMode

from ssamba.model import create_encoder
from ssamba.ops import DirectionWeights, bimamba_mixer
from ssamba.ops.cpp import extension, mixer, mixer_kernels
from ssamba.ops.mixer import can_mix_into, compose, mix_into
from ssamba.ops.operators import is_traced

HAS_CPP = extension.why_missing() is None
if not HAS_CPP and any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++", "cl")):
    pytest.fail(f"the C++ kernels are missing although there is a compiler: {extension.why_missing()}")
needs_cpp = pytest.mark.skipif(not HAS_CPP, reason="no C++ compiler, no C++ kernels")
CAPABILITIES = extension.kernels.capabilities() if HAS_CPP else []
WEIGHTS = [f"{direction}.{name}" for direction in ("forward", "reverse") for name in DirectionWeights._fields]
NAMES = ("hidden", "in_weight", "out_weight", *WEIGHTS)
# batch, length, channels, inner, states, rank
SHAPES = [
    (1, 1, 8, 16, 4, 2), (2, 2, 5, 7, 1, 1), (2, 63, 8, 16, 16, 3), (1, 64, 8, 17, 4, 2), (2, 65, 12, 48, 16, 12),
    (3, 130, 8, 33, 7, 5), (1, 513, 8, 40, 16, 9), (1, 1025, 6, 16, 16, 2),
    (1, 37, 6, 1100, 16, 5),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread_and_a_fresh_workspace(monkeypatch):
    threads, status = torch.get_num_threads(), extension._status
    torch.set_num_threads(1)
    monkeypatch.setattr(mixer_kernels.workspace, "buffers", {})
    monkeypatch.setattr(mixer_kernels.workspace, "segments", {})
    yield
    torch.set_num_threads(threads)
    extension._status = status


def random_tensors(batch, length, channels, inner, state, rank, taps=4, seed=0):
    """Return float64 hidden, in_weight, out_weight, then the weights of both directions."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def direction():
        return [
            normal(inner, taps) * 0.5, normal(inner) * 0.1, normal(rank + 2 * state, inner) / inner**0.5,
            normal(inner, rank) / rank**0.5, normal(inner) - 2, normal(inner, state).abs(), normal(inner),
        ]  # fmt: skip

    weights = [normal(2 * inner, channels) / channels**0.5, normal(channels, inner) / inner**0.5]
    return [normal(batch, length, channels), *weights, *direction(), *direction()]


def apply(tensors, function=bimamba_mixer, **options):
    hidden, in_weight, out_weight, *rest = tensors
    return function(hidden, in_weight, out_weight, DirectionWeights(*rest[:7]), DirectionWeights(*rest[7:]), **options)


def run(tensors, backend, **options):
    """Return the output without gradients, the one with, and every gradient under a fixed weighting."""
    with torch.no_grad():
        plain = apply(tensors, backend=backend, **options)
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = apply(leaves, backend=backend, **options)
    g = torch.Generator().manual_seed(1)
    grads = torch.autograd.grad(out, leaves, torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype))
    return {"plain": plain, "out": out.detach(), **{f"grad {name}": x for name, x in zip(NAMES, grads, strict=True)}}


def in_dtype(tensors, dtype):
    """Convert tokens and outer weights to `dtype` and the others to float32, as under autocast."""
    return [t.to(dtype if i < 3 else torch.float32) for i, t in enumerate(tensors)]


def check_every_capability(tensors, dtype, **options):
    low = in_dtype(tensors, dtype)
    exact = run([t.double() for t in low], "reference", **options)
    reference = run([t.to(dtype) for t in low], "reference", **options)
    for capability in CAPABILITIES:
        extension.use_capability(capability)
        mixer_kernels.workspace.__init__()
        with poison():
            ours = run(low, "cpp", **options)
        for name, expected in exact.items():
            assert ours[name].shape == expected.shape, name
            allowed = 2 * loss(reference[name], expected) + FLOOR[dtype]
            assert loss(ours[name], expected) <= allowed, (capability, name)


@needs_cpp
@pytest.mark.parametrize("reversed_time", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fused_mixer_and_every_gradient_agree_with_float64(shape, reversed_time):
    check_every_capability(random_tensors(*shape), torch.float32, reversed_time=reversed_time)


@needs_cpp
@pytest.mark.parametrize("reversed_time", [False, True])
@pytest.mark.parametrize("lengths", [[70, 9, 0], [1, 70, 64]], ids=str)
def test_lengths_are_respected(lengths, reversed_time):
    tensors = random_tensors(3, 70, 8, 24, 16, 3)
    lengths = torch.tensor(lengths)
    check_every_capability(tensors, torch.float32, lengths=lengths, reversed_time=reversed_time)
    out = apply([t.float() for t in tensors], lengths=lengths, backend="cpp")
    for clip, length in enumerate(lengths.tolist()):
        assert not out[clip, length:].any()
        if length:
            alone = apply([t.float()[clip : clip + 1, :length] if t is tensors[0] else t.float() for t in tensors])
            torch.testing.assert_close(out[clip : clip + 1, :length], alone, rtol=1e-5, atol=1e-6)


@needs_cpp
@pytest.mark.parametrize("shape", [(1, 17, 8, 16, 16, 3), (2, 130, 8, 40, 16, 5)], ids=str)
def test_bfloat16_loses_no_more_than_twice_the_reference(shape):
    check_every_capability(random_tensors(*shape), torch.bfloat16)


@needs_cpp
@pytest.mark.parametrize("segment", [1, 7, 64, 100])
@pytest.mark.parametrize("reversed_time", [False, True])
def test_segments_change_nothing(segment, reversed_time, monkeypatch):
    tensors = [t.float() for t in random_tensors(3, 100, 8, 24, 16, 3)]
    for lengths in (None, torch.tensor([100, 37, 0])):
        whole = apply(tensors, lengths=lengths, reversed_time=reversed_time, backend="cpp")
        with monkeypatch.context() as patch:
            patch.setattr(mixer, "_SEGMENT_TOKENS", segment)
            patch.setattr(mixer_kernels, "MAX_SEGMENT_SHAPES", 2)
            parts = apply(tensors, lengths=lengths, reversed_time=reversed_time, backend="cpp")
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@needs_cpp
def test_buffers_above_the_limit_are_allocated_anew(monkeypatch):
    tensors = [t.float() for t in random_tensors(2, 40, 8, 24, 16, 3)]
    expected = apply(tensors, backend="cpp")
    monkeypatch.setattr(mixer_kernels, "MAX_WORKSPACE_ELEMENTS", 100)
    mixer_kernels.workspace.__init__()
    torch.testing.assert_close(apply(tensors, backend="cpp"), expected, rtol=0, atol=0)
    assert all(buffer.numel() <= 100 for buffer in mixer_kernels.workspace.buffers.values())


@needs_cpp
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3), length=st.integers(1, 90), channels=st.integers(1, 9), inner=st.integers(1, 40),
    state=st.integers(1, 18), rank=st.integers(1, 13), taps=st.integers(1, 5), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(batch, length, channels, inner, state, rank, taps, seed):
    tensors = random_tensors(batch, length, channels, inner, state, rank, taps, seed)
    exact, reference = run(tensors, "reference"), run([t.float() for t in tensors], "reference")
    # A gradient that cancels to nearly nothing is as exact as its terms: its error counts relative to no less than a
    # hundredth of the largest gradient. (The tests above measure how exact gradients are.)
    largest = max(value.abs().max() for name, value in exact.items() if name.startswith("grad"))

    def error(values, name):
        size = exact[name].abs().max().clamp(min=0.01 * largest if name.startswith("grad") else 1e-25)
        return ((values[name].double() - exact[name]).abs().max() / size).item()

    ours = run([t.float() for t in tensors], "cpp")
    for name in exact:
        floor = 2e-4 if name.startswith("grad") else 1e-5
        assert error(ours, name) <= 2 * error(reference, name) + floor, name


@needs_cpp
def test_padding_reaches_no_valid_output():
    tensors = [t.float() for t in random_tensors(2, 70, 8, 24, 16, 3)]
    lengths = torch.tensor([70, 20])
    expected = apply(tensors, lengths=lengths, backend="cpp")
    tensors[0][1, 20:] = torch.nan
    with torch.no_grad():
        torch.testing.assert_close(apply(tensors, lengths=lengths, backend="cpp"), expected, rtol=0, atol=0)


@needs_cpp
def test_threads_and_repetition_change_nothing():
    tensors = [t.float() for t in random_tensors(2, 300, 16, 96, 16, 3)]
    expected = run(tensors, "cpp")
    for threads in (1, 2, 3):  # PyTorch's products add up in another order on another number of threads
        torch.set_num_threads(threads)
        once, again = run(tensors, "cpp"), run(tensors, "cpp")
        for name, value in once.items():
            assert torch.equal(value, again[name]), name
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)


@needs_cpp
def test_slices_and_frozen_weights():
    tensors = [t.float() for t in random_tensors(2, 40, 8, 24, 16, 3)]
    wide = torch.randn(2, 40, 16)
    sliced = [wide[..., ::2], *tensors[1:]]
    torch.testing.assert_close(apply(sliced, backend="cpp"), apply([wide[..., ::2].contiguous(), *tensors[1:]]))
    sliced[0].requires_grad_()
    (grad,) = torch.autograd.grad(apply(sliced, backend="cpp").sum(), sliced[0])
    (expected,) = torch.autograd.grad(apply(sliced, compose).sum(), sliced[0])
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


@needs_cpp
@pytest.mark.parametrize("segment", [8, 2048])
def test_buffers_from_inference_mode_can_be_used_outside_of_it(segment, monkeypatch):
    monkeypatch.setattr(mixer, "_SEGMENT_TOKENS", segment)
    tensors = [t.float() for t in random_tensors(2, 40, 8, 24, 16, 3)]
    with torch.inference_mode():
        expected = apply(tensors, lengths=torch.tensor([40, 20])).clone()
    assert torch.equal(apply(tensors, lengths=torch.tensor([40, 20])), expected)
    run(tensors, "cpp")
    with torch.inference_mode():
        assert torch.equal(apply(tensors, lengths=torch.tensor([40, 20])), expected)


def test_autocast_decides_the_dtype():
    tensors = [t.float() for t in random_tensors(2, 40, 8, 24, 16, 3)]
    expected = apply(tensors)
    leaves = [t.clone().requires_grad_() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        out = apply(leaves)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in leaves)
    assert loss(out.detach(), expected.double()) < 0.03


@needs_cpp
def test_weights_in_bfloat16_get_their_gradients():
    tensors = [t.bfloat16() for t in random_tensors(2, 40, 8, 24, 16, 3)]
    with poison():
        ours, wide = run(tensors, "cpp"), run(in_dtype(tensors, torch.bfloat16), "cpp")
    for name, value in ours.items():
        assert value.dtype == torch.bfloat16, name
        assert torch.equal(value, wide[name].bfloat16()), name


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_gradcheck(backend):
    tensors = [t.requires_grad_() for t in random_tensors(2, 9, 3, 4, 2, 2)]
    lengths = torch.tensor([9, 5])
    assert torch.autograd.gradcheck(
        lambda *inputs: apply(inputs, lengths=lengths, backend=backend), tensors, fast_mode=True
    )


@needs_cpp
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_empty_batches_and_empty_sequences(batch, length):
    tensors = [t.float() for t in random_tensors(batch, length, 8, 24, 16, 3)]
    results = run(tensors, "cpp")
    assert results["plain"].shape == (batch, length, 8)
    assert not any(results[f"grad {name}"].any() for name in NAMES)


@needs_cpp
def test_operators_pass_opcheck():
    tensors = [t.float().requires_grad_() for t in random_tensors(2, 20, 4, 6, 3, 2)]
    lengths, ops = torch.tensor([20, 7]), torch.ops.ssamba
    detached = [t.detach() for t in tensors]
    torch.library.opcheck(ops.bimamba_cpp.default, (*detached, lengths, False))
    torch.library.opcheck(ops.bimamba_cpp_keeping.default, (*tensors, lengths, True))
    out, *kept = ops.bimamba_cpp_keeping(*detached, None, False)
    torch.library.opcheck(ops.bimamba_cpp_backward.default, (out, *detached, *kept, None, False))


@needs_cpp
def test_registered_operators_are_called_only_where_they_are_visible():
    tensors = [t.float() for t in random_tensors(2, 20, 4, 6, 3, 2)]
    names = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            names.add(str(operator))
            return operator(*args, **(kwargs or {}))

    plain = run(tensors, "cpp")
    with Watch():
        watched = run(tensors, "cpp")
        with torch.no_grad():
            assert not can_mix_into(tensors[0])
    assert {f"ssamba.bimamba_cpp{end}.default" for end in ("", "_keeping", "_backward")} <= names
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing_is_noticed():
    seen = []

    def traced(x):
        seen.append(is_traced())
        return x + 1

    torch.jit.trace(traced, torch.zeros(1), check_trace=False)
    assert seen == [True]
    assert not is_traced()


@pytest.mark.parametrize("shape", [(4, 7, 3), (3, 6, 3), (3, 7, 5)], ids=["taps", "states", "rank"])
def test_directions_of_different_shapes_are_refused(shape):
    taps, state, rank = shape
    tensors, others = random_tensors(1, 9, 4, 6, 7, 3, taps=3), random_tensors(1, 9, 4, 6, state, rank, taps=taps)
    with pytest.raises(ValueError, match=r"reverse\..* must have shape forward\."):
        apply([t.float() for t in (*tensors[:10], *others[10:])])


@needs_cpp
def test_a_second_derivative_is_refused():
    tensors = [t.float().requires_grad_() for t in random_tensors(2, 20, 4, 6, 3, 2)]
    (grad,) = torch.autograd.grad(apply(tensors, backend="cpp").square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@needs_cpp
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("inner", [6, 16])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_everything_that_the_saving_forward_pass_returns_is_defined(inner, ragged, capability):
    extension.use_capability(capability)
    tensors = [t.float() for t in random_tensors(2, 130, 4, inner, 3, 2)]
    lengths = torch.tensor([130, 7]) if ragged else None
    found = []
    for filler in (1e30, -1e30):
        poison = [torch.full((n,), filler) for n in (192, 384, 1536, 3072) for _ in range(8)]
        del poison  # the allocator hands this memory out again
        found.append([t.clone() for t in torch.ops.ssamba.bimamba_cpp_keeping(*tensors, lengths, False)])
    for once, again in zip(*found, strict=True):
        assert torch.equal(once, again)


def test_the_encoder_compiles_and_exports_in_one_graph_with_dynamic_batch_and_length():
    encoder = create_encoder("tiny", "ssamba2", embed_dim=32, depth=2, num_frames=64).eval()
    features, lengths = torch.randn(2, 64, 128), torch.tensor([64, 40])
    with torch.no_grad():
        compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager", dynamic=True)
        torch.testing.assert_close(compiled(features, lengths), encoder(features, lengths))
    trained = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    trained(features, lengths).sum().backward()
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "mixer" in name)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        exported = torch.export.export(encoder, (features, lengths), dynamic_shapes=(dynamic, {0: dynamic[0]}))
        longer = torch.randn(3, 96, 128), torch.tensor([96, 4, 70])
        torch.testing.assert_close(exported.module()(*longer), encoder(*longer))


@pytest.mark.parametrize(("index", "name"), [(1, "in_weight"), (2, "out_weight|in_weight"), (5, "x_weight"), (16, "D")])
def test_a_wrong_shape_is_named(index, name):
    tensors = random_tensors(2, 5, 3, 4, 2, 2)
    tensors[index] = torch.zeros(*[n + 1 for n in tensors[index].shape], dtype=torch.float64)
    with pytest.raises(ValueError, match=f"({name}) must have shape"):
        apply(tensors)


def mixed_into(tensors, norm, accumulate, **options):
    """Return `mix_into` written to a tensor of ones, and to the stream itself."""
    hidden, in_weight, out_weight, *rest = tensors
    directions = DirectionWeights(*rest[:7]), DirectionWeights(*rest[7:])
    with torch.no_grad():
        assert can_mix_into(hidden)
        apart, itself = torch.full_like(hidden, 1.0), hidden.clone()
        mix_into(apart, hidden, norm, in_weight, out_weight, *directions, accumulate=accumulate, **options)
        mix_into(itself, itself, norm, in_weight, out_weight, *directions, accumulate=accumulate, **options)
    return apart, itself


@needs_cpp
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("segment", [8, 30, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixing_in_place_equals_the_operator(dtype, segment, ragged, accumulate, monkeypatch):
    tensors = in_dtype(random_tensors(3, 70, 8, 24, 16, 3), dtype)
    norm = (torch.rand(8).to(dtype), torch.rand(8).to(dtype), 1e-5)
    options = {"lengths": torch.tensor([70, 9, 0]) if ragged else None, "reversed_time": ragged}
    normed = torch.nn.functional.layer_norm(tensors[0], (8,), *norm)
    expected = apply([normed, *tensors[1:]], backend="cpp", **options)
    monkeypatch.setattr(mixer, "_SEGMENT_TOKENS", segment)
    with poison():
        apart, itself = mixed_into(tensors, norm, accumulate, **options)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(apart, expected + 1 if accumulate else expected, **tolerance)
    torch.testing.assert_close(itself, tensors[0] + expected if accumulate else expected, **tolerance)


@needs_cpp
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("counts", [[70, 9, 0, 33], [1], [3, 64, 1, 65]], ids=str)
@pytest.mark.parametrize("segment", [8, 30, 100, 2048])
def test_packed_clips_equal_clips_alone(segment, counts, accumulate, monkeypatch):
    monkeypatch.setattr(mixer, "_SEGMENT_TOKENS", segment)
    tensors = [t.float() for t in random_tensors(1, sum(counts), 8, 40, 16, 3)]
    norm, lengths = (torch.rand(8), torch.rand(8), 1e-5), torch.tensor(counts)
    normed = torch.nn.functional.layer_norm(tensors[0], (8,), *norm)
    each = [
        apply([x, *tensors[1:]], backend="reference", reversed_time=True)
        for x in normed.split(counts, dim=1)
        if x.numel()
    ]
    expected = torch.cat(each, dim=1)[0]
    flat = [tensors[0][0], *tensors[1:]]
    for capability in CAPABILITIES:
        extension.use_capability(capability)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with poison():
                apart, itself = mixed_into(flat, norm, accumulate, lengths=lengths, reversed_time=True)
            torch.testing.assert_close(apart, expected + 1 if accumulate else expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(itself, flat[0] + expected if accumulate else expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="must add up to the"):
        mixed_into(flat, norm, accumulate, lengths=lengths + 1)


@needs_cpp
@pytest.mark.parametrize("layout", [{}, {"variant": "ssamba2"}, {"pair_residual": "mean"}], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_encoder_in_place_gives_what_it_gives_with_gradients(layout, autocast):
    torch.manual_seed(0)
    encoder = create_encoder("tiny", **{"variant": "official", **layout}, embed_dim=32, depth=4, num_frames=64).eval()
    features, lengths = torch.randn(3, 64, 128), torch.tensor([64, 40, 17])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for arguments in ({}, {"lengths": lengths}, {"layer": 1}):
            expected = encoder(features, **arguments).detach()
            with torch.no_grad():
                found = encoder(features, **arguments)
            assert found.dtype == expected.dtype
            exact = {"rtol": 1e-5, "atol": 1e-5} if not autocast else {"rtol": 0.1, "atol": 0.1}
            torch.testing.assert_close(found, expected, **exact)


@needs_cpp
def test_hooks_are_called_and_other_norms_used():
    encoder = create_encoder("tiny", "ssamba2", embed_dim=32, depth=2, num_frames=64).eval()
    features, called = torch.randn(1, 64, 128), []
    with torch.no_grad():
        plain = encoder(features)
        handle = encoder.blocks[1].mixer.register_forward_hook(lambda module, inputs, output: called.append(output))
        assert not encoder.skips_padding(features)
        torch.testing.assert_close(encoder(features), plain, rtol=1e-5, atol=1e-5)
        assert len(called) == 1
        handle.remove()
        assert encoder.skips_padding(features)
        encoder.blocks[0].norm = torch.nn.RMSNorm(32)
        assert not encoder.skips_padding(features)
        assert not torch.allclose(encoder(features), plain, atol=1e-3)


@needs_cpp
def test_in_place_inference_leaves_its_inputs_unchanged():
    encoder = create_encoder("tiny", "ssamba2", embed_dim=32, depth=2, num_frames=64).eval()
    tokens, features = torch.randn(2, 40, 32), torch.randn(1, 64, 128)
    before = tokens.clone()
    with torch.inference_mode():
        encoder.encode_tokens(tokens)
        assert torch.equal(tokens, before)
        patches = encoder.embed_patches(features)
        once, states = encoder.encode(patches), encoder.hidden_states(patches)
        assert torch.equal(encoder.encode(patches), once)
        torch.testing.assert_close(states[-1], once, rtol=1e-5, atol=1e-5)
    assert not can_mix_into(tokens)  # gradients might be wanted
    with torch.no_grad():
        assert not can_mix_into(tokens.double())
        compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(features), encoder(features))
        each = torch.func.vmap(lambda x: encoder(x[None])[0])(features.expand(2, -1, -1))
        torch.testing.assert_close(each[0], once[0], rtol=1e-4, atol=1e-4)
