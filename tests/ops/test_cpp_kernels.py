"""The C++ kernels: every instruction set against the float64 reference, and the operators over them.

A covering subset of the shapes runs by default; SSAMBA_FULL=1 runs the whole product of lengths, channels, states,
directions and options. `python tests/ops/asan.py` runs this file under AddressSanitizer, with poisoned workspaces.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.tolerance import FLOOR, loss, poison

from ssamba.errors import BackendUnavailableError, ConfigError
from ssamba.ops import available_backends, causal_conv, selective_scan
from ssamba.ops.cpp import extension
from ssamba.ops.cpp.scan import saved_states_size
from ssamba.ops.dispatch import resolve

if extension.why_missing() is not None:
    if any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++", "cl")):
        pytest.fail(f"the C++ kernels are missing although there is a compiler: {extension.why_missing()}")
    pytest.skip("no C++ compiler, no C++ kernels", allow_module_level=True)

FULL = os.environ.get("SSAMBA_FULL") == "1"
CAPABILITIES = extension.kernels.capabilities()
LENGTHS, CHANNELS, STATES = (1, 2, 63, 64, 65, 513, 1025), (1, 7, 16, 17, 384), (1, 4, 16)
DIRECTIONS = ("forward", "reverse")
OPTIONS = [
    {"z": z, "D": D, "delta_bias": bias, "softplus": softplus}
    for z, D, bias, softplus in itertools.product((True, False), repeat=4)
]
COVERING = [
    (1, 1, 1), (1, 384, 16), (2, 7, 4), (2, 17, 16), (63, 1, 4), (63, 16, 16), (64, 7, 1), (64, 17, 4),
    (65, 16, 1), (65, 384, 4), (513, 7, 16), (513, 384, 16), (1025, 1, 16), (1025, 17, 1), (130, 33, 21),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread_and_the_default_capability():
    """Use one thread unless a test asks for more: on a busy machine, waiting threads take most of the time."""
    threads, status = torch.get_num_threads(), extension._status
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    extension._status = status


def random_inputs(length, channels, state, batch=2, options=OPTIONS[0], seed=0):
    """Return float64 inputs of `selective_scan`; without softplus the steps are positive."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    steps, bias = normal(batch, length, channels) - 1, normal(channels) * 0.5
    return {
        "u": normal(batch, length, channels),
        "delta": steps if options["softplus"] else steps.abs() * 0.3,
        "A": -torch.exp(normal(channels, state)),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(channels) if options["D"] else None,
        "z": normal(batch, length, channels) if options["z"] else None,
        "delta_bias": (bias if options["softplus"] else bias.abs() * 0.1) if options["delta_bias"] else None,
        "initial_state": normal(batch, channels, state),
    }


def in_dtype(inputs, dtype):
    """Convert inputs with a length to `dtype` and the others to float32 (float64), as in a model."""
    small = torch.float64 if dtype == torch.float64 else torch.float32
    names = ("u", "delta", "B", "C", "z")
    return {k: None if v is None else v.to(dtype if k in names else small) for k, v in inputs.items()}


def run(inputs, backend, **options):
    """Return output, last state, and every gradient under a fixed random weighting of both."""
    leaves = {k: None if v is None else v.detach().clone().requires_grad_() for k, v in inputs.items()}
    out, last = selective_scan(**leaves, return_last_state=True, backend=backend, **options)
    g = torch.Generator().manual_seed(1)
    weight, last_weight = (torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) for x in (out, last))
    ((out * weight).sum() + (last * last_weight).sum()).backward()
    grads = {f"grad_{k}": v.grad for k, v in leaves.items() if v is not None}
    return {"out": out.detach(), "last": last.detach(), **grads}


def run_conv(inputs, backend, **options):
    leaves = {k: None if v is None else v.detach().clone().requires_grad_() for k, v in inputs.items()}
    out = causal_conv(**leaves, backend=backend, **options)
    g = torch.Generator().manual_seed(1)
    (out * torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype)).sum().backward()
    return {"out": out.detach(), **{f"grad_{k}": v.grad for k, v in leaves.items() if v is not None}}


def check_every_capability(run_one, inputs, dtype, **options):
    """Compare each instruction set with float64; the tolerance is what the reference loses in `dtype`."""
    low = in_dtype(inputs, dtype)
    exact = run_one({k: None if v is None else v.double() for k, v in low.items()}, "reference", **options)
    plain = run_one(low, "reference", **options)
    for capability in CAPABILITIES:
        extension.use_capability(capability)
        with poison():
            ours = run_one(low, "cpp", **options)
        assert ours.keys() == exact.keys()
        for name in exact:
            assert ours[name].dtype == plain[name].dtype, name
            assert ours[name].shape == plain[name].shape, name
            terms = exact["grad_delta"] if name == "grad_delta_bias" else None
            allowed = 2 * loss(plain[name], exact[name], terms) + FLOOR[dtype]
            assert loss(ours[name], exact[name], terms) <= allowed, (capability, name)


SHAPES = list(itertools.product(LENGTHS, CHANNELS, STATES)) if FULL else COVERING
SCANS = (
    list(itertools.product(SHAPES, DIRECTIONS, OPTIONS))
    if FULL
    else [
        (shape, direction, OPTIONS[(5 * i + 8 * j) % 16])
        for i, shape in enumerate(SHAPES)
        for j, direction in enumerate(DIRECTIONS)
    ]
)


@pytest.mark.parametrize(("shape", "direction", "options"), SCANS, ids=str)
def test_scan_and_every_gradient_agree_with_float64(shape, direction, options):
    inputs = random_inputs(*shape, batch=1 if shape[0] > 500 else 2, options=options)
    check_every_capability(run, inputs, torch.float32, direction=direction, delta_softplus=options["softplus"])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_of_the_scan_in_both_directions(options, direction):
    inputs = random_inputs(67, 19, 16, batch=1, options=options)
    check_every_capability(run, inputs, torch.float32, direction=direction, delta_softplus=options["softplus"])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", [(1, 17, 16), (65, 16, 4), (130, 40, 16)], ids=str)
def test_bfloat16_scan_loses_no_more_than_twice_the_reference(shape, direction):
    check_every_capability(run, random_inputs(*shape), torch.bfloat16, direction=direction)


@settings(max_examples=200 if FULL else 12, deadline=None)
@given(
    length=st.integers(1, 100),
    channels=st.integers(1, 70),
    state=st.integers(1, 40),
    batch=st.integers(1, 2),
    reverse=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(length, channels, state, batch, reverse, seed):
    # A wrong index or a missed element shows as an error of order one. Results here may be single numbers, which can
    # cancel to nearly nothing, so that an error relative to the largest value means little. The tests above hold the
    # table's tolerance; here errors are relative to the inputs' size, which is one.
    low = in_dtype(random_inputs(length, channels, state, batch, seed=seed), torch.float32)
    exact = run({k: v.double() for k, v in low.items()}, "reference", direction=DIRECTIONS[reverse])
    for capability in CAPABILITIES:
        extension.use_capability(capability)
        with poison():
            ours = run(low, "cpp", direction=DIRECTIONS[reverse])
        for name in exact:
            scale = exact[name].abs().max().clamp(min=1)
            assert ((ours[name] - exact[name]).abs() / scale).max() <= 2e-5, (capability, name)


@pytest.mark.parametrize("steps", [1e-8, 1e-3, 50.0])
def test_extreme_steps(steps):
    inputs = random_inputs(129, 17, 16)
    inputs["delta"] = torch.full_like(inputs["delta"], steps)
    inputs["delta_bias"] = None
    check_every_capability(run, inputs, torch.float32, delta_softplus=False)


@pytest.mark.parametrize("raw", [-18.42, -100.0, 50.0, 1e4])
def test_extreme_steps_before_softplus(raw):
    inputs = random_inputs(65, 17, 16)
    inputs["delta"] = torch.full_like(inputs["delta"], raw)
    inputs["delta_bias"] = None
    check_every_capability(run, inputs, torch.float32)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_overflows_on_the_way_to_a_finite_result_is_no_nan(capability):
    extension.use_capability(capability)
    inputs = in_dtype(random_inputs(70, 17, 16), torch.float32)
    inputs["A"][:, 0], inputs["A"][:, 1], inputs["A"][:, 2] = -1e30, -torch.inf, -1e6
    inputs["delta"][:, 3], inputs["delta"][:, 4] = -torch.inf, 1e6
    inputs["z"][:, 5], inputs["z"][:, 6] = -torch.inf, -200.0
    ours = run(inputs, "cpp")
    limit = {k: v.double() for k, v in inputs.items()}
    limit["A"] = limit["A"].clamp(min=-1e30)  # the reference has -inf * 0 where a step is 0
    exact = run(limit, "reference")
    for name, value in ours.items():
        assert torch.isfinite(value).all(), name
    exact["out"][:, 5] = 0  # silu(-inf): its limit, where the reference has -inf * 0
    assert loss(ours["out"], exact["out"]) < 2e-6
    assert loss(ours["last"], exact["last"]) < 2e-6


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_nan_in_the_input_stays_visible(capability):
    extension.use_capability(capability)
    inputs = in_dtype(random_inputs(10, 17, 16), torch.float32)
    for name in ("u", "delta", "z", "B", "C"):
        broken = {**inputs, name: inputs[name].clone()}
        broken[name][0, 4, 0] = float("nan")
        assert selective_scan(**broken, backend="cpp")[0, 4, 0].isnan(), name


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_padding_reaches_no_valid_output_and_no_gradient(capability, direction):
    extension.use_capability(capability)
    lengths = torch.tensor([130, 0, 33, 64, 1])
    inputs = in_dtype(random_inputs(130, 33, 16, batch=5), torch.float32)
    timed = ("u", "delta", "B", "C", "z")
    for name in timed:
        for clip, length in enumerate(lengths):
            inputs[name][clip, length:] = float("nan")
    with poison():
        together = run(inputs, "cpp", direction=direction, lengths=lengths)
    exact = run({k: v.double() for k, v in inputs.items()}, "reference", direction=direction, lengths=lengths)
    for name, value in together.items():
        assert loss(value, exact[name]) < 3e-6, name
    for clip, length in enumerate(lengths):
        assert (together["out"][clip, length:] == 0).all()
        for name in timed:
            assert (together[f"grad_{name}"][clip, length:] == 0).all(), name
    assert torch.equal(together["last"][1], inputs["initial_state"][1])
    alone = {k: v[2:3, :33] if k in timed else v for k, v in inputs.items()}
    alone["initial_state"] = alone["initial_state"][2:3]
    out = selective_scan(**alone, direction=direction, backend="cpp")
    assert torch.equal(together["out"][2:3, :33], out)


def test_lengths_beyond_the_arrays_are_not_followed():
    """A compiled graph cannot check them, so the kernels must not read or write outside."""
    inputs = in_dtype(random_inputs(20, 17, 16), torch.float32)
    args = [inputs[k] for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    lengths = torch.tensor([10**6, -5])
    out, _, _ = torch.ops.ssamba.selective_scan_cpp(*args, True, False, lengths, None, False)
    expected = selective_scan(*args, lengths=torch.tensor([20, 0]), backend="cpp")
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_slices_of_projections_give_the_same_as_copies(dtype, direction):
    inputs = in_dtype(random_inputs(66, 24, 16, batch=3), dtype)
    u, z = torch.cat([inputs["u"], inputs["z"]], -1).chunk(2, -1)
    _, delta, B, C = torch.cat([inputs["u"][..., :5], inputs["delta"], inputs["B"], inputs["C"]], -1).split(
        [5, 24, 16, 16], -1
    )
    slices = {**inputs, "u": u, "z": z, "delta": delta, "B": B, "C": C}
    weight = torch.randn(3, 66, 24).to(dtype)
    results = []
    for case in (inputs, slices, {**inputs, "u": inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)}):
        leaves = {k: v.detach().requires_grad_() for k, v in case.items()}
        assert case is inputs or leaves["u"].stride() != inputs["u"].stride()
        out = selective_scan(**leaves, direction=direction, backend="cpp")
        (out * weight).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves.values())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_results_do_not_depend_on_the_number_of_threads_and_repeat_exactly(capability):
    extension.use_capability(capability)
    inputs = in_dtype(random_inputs(200, 100, 16, batch=3), torch.float32)
    conv = {"x": inputs["u"], "weight": torch.randn(100, 4), "bias": torch.randn(100)}
    lengths = torch.tensor([200, 3, 120])
    results = []
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)
        results.append(
            {**run(inputs, "cpp", lengths=lengths), **{f"conv_{k}": v for k, v in run_conv(conv, "cpp").items()}}
        )
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


CONVOLUTIONS = [
    (length, channels, taps)
    for length, channels in ((1, 1), (2, 17), (3, 16), (64, 7), (65, 33), (200, 40))
    for taps in (1, 3, 4, 6)
]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("length", "channels", "taps"), CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_and_every_gradient_agree_with_float64(length, channels, taps, dtype, direction):
    g = torch.Generator().manual_seed(length)
    inputs = {
        "x": torch.randn(2, length, channels, generator=g, dtype=torch.float64),
        "weight": torch.randn(channels, taps, generator=g, dtype=torch.float64),
        "bias": None if taps == 3 else torch.randn(channels, generator=g, dtype=torch.float64),
    }
    inputs["x"] = inputs["x"].to(dtype).double()

    def run_low(case, backend, **options):
        x_dtype = torch.float64 if case["weight"].dtype == torch.float64 else dtype
        return run_conv({**case, "x": case["x"].to(x_dtype)}, backend, **options)

    check_every_capability(run_low, inputs, dtype, direction=direction, silu=taps != 6)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_convolution_ignores_padding_and_takes_slices(capability, direction):
    extension.use_capability(capability)
    lengths = torch.tensor([70, 0, 3, 65])
    wide = torch.randn(4, 70, 2 * 33)
    for clip, length in enumerate(lengths):
        wide[clip, length:] = float("nan")
    case = {"x": wide.chunk(2, -1)[0], "weight": torch.randn(33, 4), "bias": torch.randn(33)}
    with poison():
        ours = run_conv(case, "cpp", direction=direction, lengths=lengths)
    exact = run_conv({k: v.double() for k, v in case.items()}, "reference", direction=direction, lengths=lengths)
    for name in exact:
        assert loss(ours[name], exact[name]) < 2e-6, name
    for clip, length in enumerate(lengths):
        assert (ours["out"][clip, length:] == 0).all()
        assert (ours["grad_x"][clip, length:] == 0).all()


def test_empty_batches_and_empty_sequences():
    for batch, length in ((0, 5), (2, 0)):
        inputs = in_dtype(random_inputs(length, 17, 16, batch=batch), torch.float32)
        result = run(inputs, "cpp")
        assert result["out"].shape == (batch, length, 17)
        assert (result["grad_A"] == 0).all()
        assert (result["grad_D"] == 0).all()
        assert torch.equal(result["last"], inputs["initial_state"])
        conv = run_conv({"x": inputs["u"], "weight": torch.randn(17, 4), "bias": torch.randn(17)}, "cpp")
        assert (conv["grad_weight"] == 0).all()
        assert (conv["grad_bias"] == 0).all()


def test_autocast_mixes_dtypes():
    inputs = in_dtype(random_inputs(40, 17, 16), torch.float32)
    weight = torch.randn(17, 17, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        u = inputs["u"] @ weight
        assert u.dtype == torch.bfloat16
        mixed = {**inputs, "u": u, "z": inputs["z"].bfloat16(), "delta": inputs["delta"].bfloat16()}
        out = selective_scan(**mixed, backend="cpp")
        conv = causal_conv(u, torch.randn(17, 4), backend="cpp")
    assert out.dtype == conv.dtype == torch.bfloat16
    out.float().sum().backward()
    assert torch.isfinite(weight.grad).all()
    exact = selective_scan(**{k: v.detach().double() for k, v in mixed.items()}, backend="reference")
    assert loss(out.detach(), exact) < 5e-3


def test_operators_pass_opcheck():
    inputs = in_dtype(random_inputs(40, 7, 4), torch.float32)
    tensors = [inputs[k].requires_grad_() for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    lengths = torch.tensor([40, 13])
    ops = torch.ops.ssamba
    torch.library.opcheck(ops.selective_scan_cpp.default, (*tensors, True, False, lengths, None, True))
    initial = inputs["initial_state"].requires_grad_()
    positive = tensors[1].detach().abs().requires_grad_()
    absent = (tensors[0], positive, *tensors[2:5], None, None, None)
    torch.library.opcheck(ops.selective_scan_cpp.default, (*absent, False, True, None, initial, True))
    out, last, borders = ops.selective_scan_cpp(*(t.detach() for t in tensors), True, False, lengths, None, True)
    backward = (out, last, borders, *(t.detach() for t in tensors), True, False, lengths)
    torch.library.opcheck(ops.selective_scan_cpp_backward.default, backward)
    weight, bias = torch.randn(7, 4, requires_grad=True), torch.randn(7, requires_grad=True)
    torch.library.opcheck(ops.causal_conv_cpp.default, (tensors[0], weight, bias, True, False, lengths))
    plain = (out, tensors[0].detach(), weight.detach(), None, True, True, None)
    torch.library.opcheck(ops.causal_conv_cpp_backward.default, plain)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        inputs = in_dtype(random_inputs(8, 7, 4), torch.float32)
        for name in ("A", "D", "delta_bias"):
            self.register_buffer(name, inputs[name])
        self.taps = torch.nn.Parameter(torch.ones(7, 4))

    def forward(self, x, B, lengths):
        u = causal_conv(x, self.taps, lengths=lengths, backend="cpp")
        return selective_scan(
            u, x, self.A, B, B, self.D, x, self.delta_bias, direction="reverse", lengths=lengths, backend="cpp"
        )


def test_compiles_and_exports_in_one_graph_with_dynamic_length():
    block = Block()
    x, B, lengths = torch.randn(2, 33, 7), torch.randn(2, 33, 4), torch.tensor([33, 20])
    expected = block(x, B, lengths)
    expected.sum().backward()
    gradient, block.taps.grad = block.taps.grad, None
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    out = compiled(x, B, lengths)
    out.sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(block.taps.grad, gradient)
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = {"x": {1: length}, "B": {1: length}, "lengths": {}}
    exported = torch.export.export(block, (x, B, lengths), dynamic_shapes=shapes)
    longer = torch.randn(2, 50, 7), torch.randn(2, 50, 4), torch.tensor([50, 11])
    torch.testing.assert_close(exported.module()(*longer), block(*longer))


def _scan_in_child(queue, inputs):
    torch.manual_seed(0)
    queue.put(selective_scan(**inputs, backend="cpp").tolist())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_of_a_parent_that_used_threads_does_not_hang():
    torch.set_num_threads(2)
    inputs = in_dtype(random_inputs(70, 64, 16), torch.float32)
    expected = selective_scan(**inputs, backend="cpp")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_scan_in_child, args=(queue, inputs))
    child.start()
    try:
        assert queue.get(timeout=300) == expected.tolist()
        child.join(timeout=300)
        assert child.exitcode == 0
    finally:
        child.kill()


def test_the_backend_takes_float32_and_bfloat16_and_leaves_the_rest_to_others():
    device = torch.device("cpu")
    assert resolve("auto", device, torch.float32).name == "cpp"
    assert resolve("auto", device, torch.bfloat16).name == "cpp"
    assert resolve("auto", device, torch.float64).name == "eager"
    assert resolve("auto", device, torch.float16).name == "eager"
    with pytest.raises(BackendUnavailableError, match="takes float32 and bfloat16, not float64"):
        selective_scan(**random_inputs(3, 2, 2), backend="cpp")
    with pytest.raises(BackendUnavailableError, match="CPUs only"):
        resolve("cpp", torch.device("meta"), torch.float32)


@pytest.mark.parametrize("name", ["sse9", "AVX2"])
def test_an_unknown_capability_is_refused(name):
    with pytest.raises(ConfigError, match=f"SSAMBA_CPU_CAPABILITY must be one of generic, avx2, avx512, got '{name}'"):
        extension.use_capability(name)
    with pytest.raises(ConfigError, match="SSAMBA_CPU_CAPABILITY"):
        selective_scan(**in_dtype(random_inputs(3, 2, 2), torch.float32))


def test_a_capability_that_the_machine_lacks_is_refused(monkeypatch):
    class Old:
        @staticmethod
        def capabilities():
            return ["generic"]

    monkeypatch.setattr(extension, "kernels", Old)
    message = "SSAMBA_CPU_CAPABILITY=avx512 cannot run here; this machine and build have generic"
    with pytest.raises(ConfigError, match=message):
        extension.use_capability("avx512")


def test_a_broken_extension_is_a_reason_and_not_a_crash(monkeypatch):
    reason = "its C++ extension cannot be loaded: file too short"
    monkeypatch.setattr(extension, "_status", extension._status._replace(missing=reason))
    statuses = {status.name: status for status in available_backends()}
    assert not statuses["cpp"].available
    assert "file too short" in statuses["cpp"].reason
    assert statuses["eager"].chosen
    inputs = in_dtype(random_inputs(3, 2, 2), torch.float32)
    selective_scan(**inputs)
    with pytest.raises(BackendUnavailableError, match="file too short"):
        selective_scan(**inputs, backend="cpp")


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_ssamba_imports_without_its_extension_and_with_a_broken_one(tmp_path, content):
    package = Path(extension.__file__).parents[2]
    shutil.copytree(package, tmp_path / "ssamba", ignore=shutil.ignore_patterns("_cpu*", "csrc", "__pycache__"))
    if content is not None:
        (tmp_path / "ssamba" / "ops" / "cpp" / f"_cpu{EXTENSION_SUFFIXES[0]}").write_bytes(content)
    code = (
        "import sys;"
        "sys.meta_path[:] = [f for f in sys.meta_path if f.__class__.__name__ != 'ScikitBuildRedirectingFinder'];"
        f"sys.path.insert(0, {str(tmp_path)!r}); from ssamba.ops import available_backends;"
        "print([s for s in available_backends() if s.name == 'cpp'][0]);"
        "import logging; logging.basicConfig(); from ssamba.ops.dispatch import warn_without_kernels;"
        "warn_without_kernels(); warn_without_kernels()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "available=False" in done.stdout
    reason = "cannot be loaded" if content else "was not built"
    assert reason in done.stdout
    assert (done.stderr.count("several times slower"), done.stderr.count(reason)) == (1, 1)


def test_the_compiled_code_is_small():
    if os.environ.get("SSAMBA_SANITIZED"):
        pytest.skip("a sanitizer's code is not what ships")
    path = extension.kernels.__file__
    assert path is not None
    assert Path(path).stat().st_size < 1_000_000


def test_saved_states_have_the_size_that_the_kernels_write():
    kernels = extension.kernels
    size = saved_states_size(2, 3 * kernels.CHUNK + 1, kernels.BLOCK + 1, 5)
    assert size == 2 * 4 * (2 * kernels.BLOCK) * 5
