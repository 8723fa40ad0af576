"""The selective scan and the convolution: golden numbers, float64 reference, gradients, lengths, PyTorch's checks."""

from __future__ import annotations

import pytest
import torch

from ssamba.errors import BackendUnavailableError
from ssamba.ops import available_backends, causal_conv, selective_scan

CASES = ("full", "no_gate", "no_softplus", "length_one", "long")
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def channel_last(x):
    return x.transpose(1, 2).contiguous() if x is not None and x.ndim == 3 else x


def random_inputs(batch=2, length=65, channels=7, state=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    A = -torch.rand(channels, state, generator=g, dtype=torch.float64) * 4 - 0.1
    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels),
        "A": A.to(torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels),
    }


def run(inputs, backend, weights=None, **options):
    """Return output, last state, and each input's gradient under a fixed random weighting of the results."""
    leaves = {k: None if v is None else v.clone().requires_grad_() for k, v in inputs.items()}
    out, last = selective_scan(**leaves, return_last_state=True, backend=backend, **options)
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype)
    last_weight = torch.randn(last.shape, generator=g, dtype=torch.float64).to(last.dtype)
    ((out * weight).sum() + (last * last_weight).sum()).backward()
    grads = {k: v.grad for k, v in leaves.items() if v is not None}
    return {"out": out.detach(), "last": last.detach(), **{f"grad_{k}": v for k, v in grads.items()}}


def largest_difference(a, b):
    scale = b.double().abs().max().clamp(min=1.0)
    return ((a.double() - b.double()).abs().max() / scale).item() if a.numel() else 0.0


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_matches_the_golden_scan_with_every_gradient(golden, case, backend):
    arrays = {
        k.removeprefix(f"{case}."): v
        for k, v in golden("selective_scan_reference.safetensors").items()
        if k.startswith(f"{case}.")
    }
    inputs = {k: channel_last(arrays[k]).clone().requires_grad_() if k in arrays else None for k in INPUTS}
    out, last = selective_scan(**inputs, delta_softplus=case != "no_softplus", return_last_state=True, backend=backend)
    out.backward(channel_last(arrays["grad_out"]))
    torch.testing.assert_close(out, channel_last(arrays["out"]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, arrays["last_state"], atol=1e-5, rtol=1e-5)
    for name, leaf in inputs.items():
        if leaf is not None:
            torch.testing.assert_close(leaf.grad, channel_last(arrays[f"grad_{name}"]), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 65, 129])
def test_eager_agrees_with_the_float64_reference(length, direction):
    inputs = random_inputs(length=length)
    exact, ours = run(inputs, "reference", direction=direction), run(inputs, "eager", direction=direction)
    for name in exact:
        assert largest_difference(ours[name], exact[name]) < 1e-12, name


@pytest.mark.parametrize("absent", ["D", "z", "delta_bias"])
@pytest.mark.parametrize("softplus", [True, False])
def test_optional_inputs_may_be_absent(absent, softplus):
    inputs = {**random_inputs(), absent: None}
    if not softplus:
        inputs["delta"] = inputs["delta"].abs() * 0.1
        if inputs["delta_bias"] is not None:
            inputs["delta_bias"] = inputs["delta_bias"].abs() * 0.1
    exact, ours = (run(inputs, backend, delta_softplus=softplus) for backend in ("reference", "eager"))
    for name in exact:
        assert largest_difference(ours[name], exact[name]) < 1e-12, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 63, 65, 1025])
def test_low_precision_loses_no_more_than_twice_what_the_reference_operations_lose(dtype, length):
    inputs = random_inputs(length=length, channels=5, dtype=dtype)
    exact = run({k: v.double() for k, v in inputs.items()}, "reference")
    plain, ours = run(inputs, "reference"), run(inputs, "eager")
    floor = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    for name in exact:
        allowed = 2 * largest_difference(plain[name], exact[name]) + floor
        assert largest_difference(ours[name], exact[name]) <= allowed, name
    assert ours["out"].dtype == dtype
    assert ours["last"].dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_padding_reaches_no_valid_output_and_no_gradient(direction, backend):
    lengths = torch.tensor([40, 0, 33, 1])
    inputs = random_inputs(batch=4, length=40)
    for name in ("u", "delta", "B", "C", "z"):
        for row, length in enumerate(lengths):
            inputs[name][row, length:] = float("nan")
    batched = run(inputs, backend, direction=direction, lengths=lengths)
    shared = {name: torch.zeros_like(batched[f"grad_{name}"]) for name in ("A", "D", "delta_bias")}
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(batched["out"].shape, generator=g, dtype=torch.float64)
    last_weight = torch.randn(batched["last"].shape, generator=g, dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        assert (batched["out"][row, length:] == 0).all()
        for name in ("u", "delta", "B", "C", "z"):
            assert (batched[f"grad_{name}"][row, length:] == 0).all(), name
        if length == 0:
            assert (batched["last"][row] == 0).all()
            continue
        alone = {k: v[row : row + 1, :length].clone() if v.ndim == 3 else v.clone() for k, v in inputs.items()}
        leaves = {k: v.requires_grad_() for k, v in alone.items()}
        out, last = selective_scan(**leaves, direction=direction, return_last_state=True, backend=backend)
        ((out * weight[row : row + 1, :length]).sum() + (last * last_weight[row : row + 1]).sum()).backward()
        assert largest_difference(batched["out"][row : row + 1, :length], out.detach()) < 1e-12
        assert largest_difference(batched["last"][row : row + 1], last.detach()) < 1e-12
        for name in ("u", "delta", "B", "C", "z"):
            assert largest_difference(batched[f"grad_{name}"][row : row + 1, :length], leaves[name].grad) < 1e-12
        for name in shared:
            shared[name] += leaves[name].grad
    for name, total in shared.items():
        assert largest_difference(batched[f"grad_{name}"], total) < 1e-12, name


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_sequence_may_be_scanned_in_two_parts(direction):
    inputs = random_inputs(length=70)
    whole, last = selective_scan(**inputs, direction=direction, return_last_state=True)
    first, second = slice(0, 41), slice(41, 70)
    if direction == "reverse":
        first, second = second, first

    def part(steps):
        return {k: v[:, steps] if v.ndim == 3 else v for k, v in inputs.items()}

    out1, state = selective_scan(**part(first), direction=direction, return_last_state=True)
    out2, state = selective_scan(**part(second), direction=direction, return_last_state=True, initial_state=state)
    torch.testing.assert_close(whole[:, first], out1)
    torch.testing.assert_close(whole[:, second], out2)
    torch.testing.assert_close(last, state)


def test_reverse_is_forward_on_the_flipped_sequence():
    inputs = random_inputs()
    flipped = {k: v.flip(1) if v.ndim == 3 else v for k, v in inputs.items()}
    torch.testing.assert_close(
        selective_scan(**inputs, direction="reverse"), selective_scan(**flipped, direction="forward").flip(1)
    )


@pytest.mark.parametrize("delta", [1e-8, 50.0])
def test_extreme_steps_stay_finite(delta):
    inputs = random_inputs(dtype=torch.float32)
    inputs["delta"] = torch.full_like(inputs["delta"], delta)
    inputs["delta_bias"] = None
    for name, value in run(inputs, "eager", delta_softplus=False).items():
        assert torch.isfinite(value).all(), name


def test_gradcheck():
    inputs = {k: v.requires_grad_() for k, v in random_inputs(batch=1, length=5, channels=2, state=2).items()}
    initial = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    for backend in ("eager", "reference"):
        for direction in ("forward", "reverse"):

            def function(*tensors, backend=backend, direction=direction):
                *rest, state = tensors
                return selective_scan(
                    *rest, initial_state=state, direction=direction, return_last_state=True, backend=backend
                )

            assert torch.autograd.gradcheck(function, (*inputs.values(), initial))


def test_opcheck():
    inputs = {k: v.requires_grad_() for k, v in random_inputs(length=40, dtype=torch.float32).items()}
    arguments = (*inputs.values(), True, False, torch.tensor([40, 13]), None)
    torch.library.opcheck(torch.ops.ssamba.selective_scan_eager.default, arguments)


def test_memory_grows_linearly_and_never_holds_a_state_for_each_step():
    batch, channels, state = 1, 64, 16
    for length in (512, 2048):
        inputs = {
            k: v.requires_grad_() for k, v in random_inputs(batch, length, channels, state, torch.float32).items()
        }
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            selective_scan(**inputs)
        assert max(saved) <= length * max(channels, channels * state // 16)


def test_compiles_without_graph_breaks():
    inputs = random_inputs(length=40, dtype=torch.float32)
    compiled = torch.compile(lambda **kw: selective_scan(**kw), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), selective_scan(**inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": torch.zeros(2, 64, 7)}, "delta must have shape"),
        ({"A": torch.zeros(7)}, "A must be"),
        ({"B": torch.zeros(2, 65, 5)}, "B must have shape"),
        ({"D": torch.zeros(8)}, "D must have shape"),
        ({"C": torch.zeros(2, 65, 4, dtype=torch.int64)}, "floating point"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "lengths must hold 2 integers"),
        ({"lengths": torch.tensor([1, 66])}, "between 0 and 65"),
        ({"direction": "backward"}, "'forward' or 'reverse'"),
        ({"backend": "cuda"}, "unknown backend"),
        ({"initial_state": torch.zeros(2, 4, 7)}, "initial_state must have shape"),
    ],
)
def test_wrong_arguments_say_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**random_inputs(dtype=torch.float32), **change})


def test_available_backends_name_one_choice_and_every_reason():
    statuses = available_backends("cpu")
    assert sum(status.chosen for status in statuses) == 1
    assert {"eager", "reference"} <= {status.name for status in statuses}
    assert all(status.reason for status in statuses)


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    from ssamba.ops import dispatch

    broken = dispatch.Backend("broken", lambda device, dtype: "its library is missing", None, None)
    monkeypatch.setattr(dispatch, "_BACKENDS", (broken, *dispatch._BACKENDS))
    with pytest.raises(BackendUnavailableError, match="its library is missing"):
        selective_scan(**random_inputs(), backend="broken")
    selective_scan(**random_inputs())  # auto skips it


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 3, 65])
@pytest.mark.parametrize("taps", [1, 4])
def test_causal_conv_agrees_with_pytorch(length, taps, direction, backend):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((2, length, 6), (6, taps), (6,)))
    flipped = x.flip(1) if direction == "reverse" else x
    expected = torch.nn.functional.conv1d(flipped.transpose(1, 2), weight[:, None], bias, padding=taps - 1, groups=6)
    expected = torch.nn.functional.silu(expected[..., :length].transpose(1, 2))
    expected = expected.flip(1) if direction == "reverse" else expected
    torch.testing.assert_close(causal_conv(x, weight, bias, direction=direction, backend=backend), expected)


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_causal_conv_ignores_padding(direction, backend):
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    x[1, 5:] = float("nan")
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = causal_conv(x, weight, direction=direction, lengths=torch.tensor([9, 5]), backend=backend)
    alone = causal_conv(x[1:, :5], weight, direction=direction, backend=backend)
    torch.testing.assert_close(y[1:, :5], alone)
    assert (y[1, 5:] == 0).all()
    y.sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_causal_conv_gradcheck():
    x, weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 3), (3, 4), (3,)))
    for direction in ("forward", "reverse"):
        assert torch.autograd.gradcheck(
            lambda *t, d=direction: causal_conv(*t, direction=d, lengths=torch.tensor([5, 2])), (x, weight, bias)
        )
