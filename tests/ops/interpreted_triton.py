"""The Triton kernels against the float64 reference.

`test_triton.py` runs this file in a process of its own: on a GPU if there is one, else in Triton's interpreter, which
must be chosen before triton is imported. Sizes are small, since the interpreter takes milliseconds per operation.
Shapes: B clips, L tokens, E channels, N states of a channel, W taps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.ops import available_backends, causal_conv, selective_scan
from ssamba.ops.triton import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Tensors = dict[str, Any]  # of tensors; `Any` since they become keyword arguments

# A result may be off by twice what the reference loses in the inputs' dtype, plus this share of the largest value.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill uninitialized tensors with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["whole", "segments"])
def segments(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Process L as a whole, or in segments of one chunk each."""
    whole = request.param == "whole"
    monkeypatch.setattr(launch, "_WARPS_PER_PROCESSOR", 0 if whole else 1000)
    plan = launch.plan_forward(2, 65, 5, 4)
    assert plan.segments == (1 if whole else 3)
    return str(request.param)


def scan_inputs(
    L: int, N: int, E: int = 5, batch: int = 1, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensors:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "u": normal(batch, L, E).to(dtype),
        "delta": (2 * normal(batch, L, E)).to(dtype),
        "A": -4 * torch.rand(E, N, generator=generator),
        "B": normal(batch, L, N).to(dtype),
        "C": normal(batch, L, N).to(dtype),
        "D": normal(E),
        "z": normal(batch, L, E).to(dtype),
        "delta_bias": normal(E),
        "initial_state": normal(batch, E, N),
    }
    return {name: x.to(DEVICE) for name, x in inputs.items()}


def scan_and_gradients(inputs: Tensors, backend: str, dtype: torch.dtype | None = None, **options: Any) -> Tensors:
    """Return output, last state, and every input's gradient, given fixed random gradients of the first two."""
    leaves = {name: x.to(dtype or x.dtype).detach().requires_grad_() for name, x in inputs.items()}
    out, last = selective_scan(**leaves, **options, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    grad_out = torch.randn(out.shape, generator=generator).to(inputs["u"].dtype).to(out)
    lengths = options.get("lengths")
    if lengths is not None:
        grad_out = poison(grad_out, lengths)
    grad_last = torch.randn(last.shape, generator=generator).to(last)
    grads = torch.autograd.grad((out, last), list(leaves.values()), (grad_out, grad_last))
    return {"out": out.detach(), "last state": last.detach(), **dict(zip(leaves, grads, strict=True))}


def poison(x: Tensor, lengths: Tensor) -> Tensor:
    """Return x (B, L, ...) with NaN in its padding."""
    valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(valid[..., None], x, float("nan"))


def assert_as_good_as_reference(inputs: Tensors, **options: Any) -> Tensors:
    actual = scan_and_gradients(inputs, "triton", **options)
    plain = scan_and_gradients(inputs, "reference", **options)
    exact = scan_and_gradients(inputs, "reference", torch.float64, **options)
    assert_close(actual, plain, exact, inputs["u"].dtype)
    for name, x in inputs.items():
        assert actual[name].dtype == x.dtype
    return actual


def assert_close(actual: Tensors, plain: Tensors, exact: Tensors, dtype: torch.dtype) -> None:
    for name, expected in exact.items():
        assert actual[name].shape == expected.shape
        assert actual[name].isfinite().all(), name
        error = (actual[name].double() - expected).abs().max()
        allowed = 2 * (plain[name].double() - expected).abs().max() + FLOOR[dtype] * expected.abs().max()
        assert error <= allowed, f"{name}: off by {error:.2e}, {allowed:.2e} allowed"


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("L", "N", "E"), [(1, 16, 5), (2, 1, 17), (8, 3, 40)])
def test_short_sequences_match_the_reference(L: int, N: int, E: int, direction: str) -> None:
    assert_as_good_as_reference(scan_inputs(L, N, E), direction=direction)


@pytest.mark.parametrize(("L", "direction"), [(63, "reverse"), (65, "forward"), (65, "reverse")])
def test_sequences_of_several_chunks_match_the_reference(L: int, direction: str, segments: str) -> None:
    assert_as_good_as_reference(scan_inputs(L, 2), direction=direction)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_padding_never_reaches_valid_results(direction: str, segments: str) -> None:
    lengths = torch.tensor([65, 0, 34], device=DEVICE)
    inputs = scan_inputs(65, 1, 3, batch=3)
    for name in ("u", "delta", "B", "C", "z"):
        inputs[name] = poison(inputs[name], lengths)
    results = assert_as_good_as_reference(inputs, direction=direction, lengths=lengths)
    for name in ("out", "u", "delta", "B", "C", "z"):
        for clip, length in zip(results[name], lengths.tolist(), strict=True):
            assert (clip[length:] == 0).all()


@pytest.mark.parametrize("absent", ["D", "z", "delta_bias", "initial_state", "all"])
def test_optional_inputs_may_be_absent(absent: str) -> None:
    inputs = scan_inputs(6, 2)
    optional = ("D", "z", "delta_bias", "initial_state")
    for name in optional if absent == "all" else (absent,):
        del inputs[name]
    assert_as_good_as_reference(inputs)


def test_delta_may_come_without_softplus() -> None:
    inputs = scan_inputs(6, 2)
    inputs["delta"] = inputs["delta"].abs()
    inputs["delta_bias"] = inputs["delta_bias"].abs()
    assert_as_good_as_reference(inputs, delta_softplus=False)


@pytest.mark.parametrize("softplus", [True, False])
def test_extreme_step_sizes_stay_exact(softplus: bool) -> None:
    inputs = scan_inputs(6, 2)
    del inputs["delta_bias"]
    delta = torch.logspace(-8, torch.tensor(50.0).log10().item(), inputs["delta"].numel(), device=DEVICE)
    inputs["delta"] = (delta.expm1().log() if softplus else delta).reshape(inputs["delta"].shape).float()
    assert inputs["delta"].isfinite().all()
    assert_as_good_as_reference(inputs, delta_softplus=softplus)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_match_the_reference(dtype: torch.dtype) -> None:
    assert_as_good_as_reference(scan_inputs(9, 2, dtype=dtype))


def test_inputs_of_several_dtypes_mix() -> None:
    inputs = scan_inputs(5, 2, dtype=torch.bfloat16)
    inputs["z"], inputs["B"] = inputs["z"].float(), inputs["B"].half()
    inputs["A"] = inputs["A"].double()
    assert_as_good_as_reference(inputs)


def test_strided_inputs_give_the_same_bits_as_contiguous_ones() -> None:
    inputs = scan_inputs(9, 2, batch=2)
    packed = torch.cat([inputs["u"], inputs["z"]], dim=-1)
    projected = torch.cat([inputs["delta"], inputs["B"], inputs["C"]], dim=-1).transpose(0, 1).contiguous()
    u, z = packed.chunk(2, dim=-1)
    delta, B, C = projected.transpose(0, 1).split((5, 2, 2), dim=-1)
    strided = inputs | {"u": u, "z": z, "delta": delta, "B": B, "C": C, "A": inputs["A"].t().contiguous().t()}
    expected, actual = scan_and_gradients(inputs, "triton"), scan_and_gradients(strided, "triton")
    for name, x in expected.items():
        assert torch.equal(x, actual[name]), name


def test_gradients_need_no_saved_states() -> None:
    inputs = scan_inputs(6, 2)
    leaves = [inputs[name].requires_grad_() for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    start = inputs["initial_state"].requires_grad_()
    operator = torch.ops.ssamba.selective_scan_triton
    grads = []
    for save in (True, False):
        out, _, chunk_states = operator(*leaves, True, False, None, start, save)
        assert chunk_states.shape[1] == int(save)
        grads.append(torch.autograd.grad(out.sum(), [*leaves, start]))
    for saved, recomputed in zip(*grads, strict=True):
        assert torch.equal(saved, recomputed)


def test_states_are_saved_only_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    saves = []
    original = launch.ScanLaunch.forward

    def spy(self: Any, out: Tensor, initial_state: Tensor | None, save: bool) -> Any:
        saves.append(save)
        return original(self, out, initial_state, save)

    monkeypatch.setattr(launch.ScanLaunch, "forward", spy)
    inputs = scan_inputs(2, 1)
    selective_scan(**inputs, backend="triton")
    inputs["A"].requires_grad_()
    selective_scan(**inputs, backend="triton")
    with torch.no_grad():
        selective_scan(**inputs, backend="triton")
    assert saves == [False, True, False]


@pytest.mark.parametrize(("batch", "L"), [(0, 3), (2, 0)])
def test_empty_inputs_pass_through(batch: int, L: int) -> None:
    inputs = scan_inputs(L, 2, batch=batch)
    results = scan_and_gradients(inputs, "triton")
    assert results["out"].shape == (batch, L, 5)
    assert torch.equal(results["last state"], inputs["initial_state"])
    assert (results["A"] == 0).all()
    x = torch.zeros(batch, L, 5, device=DEVICE)
    assert causal_conv(x, torch.zeros(5, 4, device=DEVICE), backend="triton").shape == x.shape


def conv_and_gradients(inputs: Tensors, backend: str, dtype: torch.dtype | None = None, **options: Any) -> Tensors:
    leaves = {name: x.to(dtype or x.dtype).detach().requires_grad_() for name, x in inputs.items()}
    out = causal_conv(**leaves, **options, backend=backend)
    generator = torch.Generator().manual_seed(1)
    grad_out = torch.randn(out.shape, generator=generator).to(inputs["x"].dtype).to(out)
    if options.get("lengths") is not None:
        grad_out = poison(grad_out, options["lengths"])
    return {
        "out": out.detach(),
        **dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad_out), strict=True)),
    }


def conv_inputs(L: int, E: int, W: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (batch, L, E), "weight": (E, W), "bias": (E,)}
    inputs = {name: torch.randn(shape, generator=generator).to(DEVICE) for name, shape in shapes.items()}
    return inputs | {"x": inputs["x"].to(dtype)}


def assert_conv_as_good_as_reference(inputs: Tensors, **options: Any) -> Tensors:
    actual = conv_and_gradients(inputs, "triton", **options)
    plain = conv_and_gradients(inputs, "reference", **options)
    exact = conv_and_gradients(inputs, "reference", torch.float64, **options)
    assert_close(actual, plain, exact, inputs["x"].dtype)
    return actual


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(
    ("L", "E", "W", "dtype"),
    [(1, 3, 4, torch.float32), (2, 70, 3, torch.bfloat16), (65, 5, 4, torch.float32), (18, 5, 1, torch.float16)],
)
def test_convolution_matches_the_reference(L: int, E: int, W: int, dtype: torch.dtype, direction: str) -> None:
    assert_conv_as_good_as_reference(conv_inputs(L, E, W, dtype=dtype), direction=direction)


def test_convolution_gradients_sum_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "processors", lambda device: 1)
    assert_conv_as_good_as_reference(conv_inputs(70, 100, 4, batch=3))


def test_convolution_works_without_silu_and_bias() -> None:
    inputs = conv_inputs(9, 5, 4)
    assert_conv_as_good_as_reference(inputs, silu=False)
    del inputs["bias"]
    assert_conv_as_good_as_reference(inputs)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_padding_never_reaches_the_convolution(direction: str) -> None:
    lengths = torch.tensor([40, 0, 3], device=DEVICE)
    inputs = conv_inputs(40, 5, 4, batch=3)
    inputs["x"] = poison(inputs["x"], lengths)
    results = assert_conv_as_good_as_reference(inputs, direction=direction, lengths=lengths)
    for name, (i, length) in itertools.product(("out", "x"), enumerate(lengths.tolist())):
        assert (results[name][i, length:] == 0).all()


def test_operators_pass_torchs_own_checks() -> None:
    inputs = scan_inputs(2, 1, E=2)
    leaves = tuple(inputs[name].requires_grad_() for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"))
    scan = torch.ops.ssamba.selective_scan_triton.default
    torch.library.opcheck(scan, (*leaves, True, False, None, inputs["initial_state"].requires_grad_(), True))
    conv = tuple(x.requires_grad_() for x in conv_inputs(2, 2, 2, batch=1).values())
    torch.library.opcheck(torch.ops.ssamba.causal_conv_triton.default, (*conv, True, False, None))


def test_a_compiled_graph_holds_both_operators() -> None:
    def block(x: Tensor, weight: Tensor, A: Tensor, lengths: Tensor) -> Tensor:
        x = causal_conv(x, weight, lengths=lengths, backend="triton")
        return selective_scan(x, x, A, x[..., :1], x[..., 1:2], lengths=lengths, backend="triton")

    inputs = scan_inputs(2, 1, E=2, batch=2)
    arguments = inputs["u"], torch.ones(2, 2, device=DEVICE).requires_grad_(), inputs["A"]
    lengths = torch.tensor([2, 1], device=DEVICE)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    expected, actual = (
        torch.autograd.grad(run(*arguments, lengths).sum(), arguments[1])[0] for run in (block, compiled)
    )
    assert torch.equal(expected, actual)


def test_it_is_automatic_on_gpus_only() -> None:
    status = next(s for s in available_backends(DEVICE) if s.name == "triton")
    assert status.available
    assert status.chosen == (DEVICE == "cuda")
