"""The Triton backend without a GPU: its numerics in the interpreter, and its kernels compiled for two chips."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.errors import BackendUnavailableError
from ssamba.ops import available_backends, selective_scan
from ssamba.ops.operators import ConvInputs, ScanInputs
from ssamba.ops.triton import launch, operators

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install 'ssamba[gpu]'"
)
INTERPRETED = Path(__file__).with_name("interpreted_triton.py")

# The largest stack frame a kernel may have, in bytes: a few registers spilled outside the innermost loop.
STACK_LIMIT = 96

# Shuffles of a warp in each scan kernel: R + 5 for the backward's sums over channels, R = 4 steps, and no others.
SHUFFLES = {"scan_forward": 0, "scan_local": 0, "combine": 0, "scan_backward": 9}


@needs_triton
def test_kernels_match_the_float64_reference() -> None:
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)],
        env=environment, capture_output=True, text=True, timeout=600, cwd=INTERPRETED.parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


class Launches:
    """Replaces a module of kernels: `module.kernel[grid](...)` records the call instead of running it."""

    def __init__(self, module: ModuleType, calls: dict[str, tuple[Any, list[Any], dict[str, Any]]]):
        self.module, self.calls = module, calls

    def __getattr__(self, name: str) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.calls[name] = getattr(self.module, name), list(args), kwargs

        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                assert grid[0] > 0
                return launch

        return Kernel()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, list[Any], dict[str, Any]]]:
    """Record launches by the kernel's name, with block sizes for a chip with 132 multiprocessors."""
    calls: dict[str, tuple[Any, list[Any], dict[str, Any]]] = {}
    for name in ("_scan_kernels", "_conv_kernels"):
        module = getattr(launch, name)()
        monkeypatch.setattr(launch, name, lambda module=module: Launches(module, calls))
    monkeypatch.setattr(launch, "processors", lambda device: 132)
    return calls


def compiled(kernel: Any, args: list[Any], options: dict[str, Any], capability: int) -> tuple[int, int]:
    """Compile one launch as the runtime would; return the bytes of stack for spilled registers, and the shuffles."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    values = args + [options[name] for name in kernel.arg_names[len(args) :]]
    for parameter, value in zip(kernel.params, values, strict=True):
        specialized = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialized and isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
            signature[parameter.name] = f"*{name[value.dtype]}"
            divisible = value.data_ptr() % 16 == 0
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            divisible = specialized and value % 16 == 0
        if divisible:
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
    launch_options = {name: options[name] for name in ("num_warps", "maxnreg") if name in options}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    result = compile(source, target=GPUTarget("cuda", capability, 32), options=launch_options)
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", usage)
    assert found is not None, usage
    return int(found[1]), result.asm["ptx"].count("shfl.sync")


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("channels", [384, 768, 1536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spilling(
    capability: int, dtype: torch.dtype, channels: int, launches: dict[str, tuple[Any, list[Any], dict[str, Any]]]
) -> None:
    length, state = 70, 16
    u, delta, z = (torch.zeros(1, length, channels, dtype=dtype) for _ in range(3))
    B, C = (torch.zeros(1, length, state, dtype=dtype) for _ in range(2))
    A, vector = torch.zeros(channels, state), torch.zeros(channels)
    scan = launch.ScanLaunch(ScanInputs(u, delta, A, B, C, vector, z, vector, True, channels == 768, None))
    _, last, chunk_states = scan.forward(u, None, True)
    scan.backward(u, last, chunk_states, u, delta, z)
    conv = ConvInputs(u, torch.zeros(channels, 4), vector, True, False, None)
    launch.convolve(conv)
    launch.convolve_backward(u, conv, u)
    assert {"scan_forward", "scan_local", "combine", "scan_backward", "conv_forward", "conv_backward"} == set(launches)
    for name, (kernel, args, options) in launches.items():
        stack, shuffles = compiled(kernel, args, options, capability)
        assert stack <= STACK_LIMIT, f"{name} spills: {stack} bytes of stack"
        if name in SHUFFLES:
            assert shuffles == SHUFFLES[name], f"{name} does not have the layout it is written for: {shuffles} shuffles"


def test_block_sizes_fill_the_chip_and_cover_the_sequence() -> None:
    for batch, length, channels in ((64, 513, 1536), (1, 513, 384), (1, 180_000, 384), (3, 1, 1), (1, 33, 5000)):
        for plan in (
            launch.plan_forward(batch, length, channels, 132),
            launch.plan_backward(batch, length, channels, 132),
        ):
            assert plan.segments * plan.segment_steps >= length > (plan.segments - 1) * plan.segment_steps
            assert plan.segment_steps % launch.CHUNK == 0 == launch.CHUNK % plan.tile
    assert launch.plan_forward(64, 513, 1536, 132).segments == 1
    assert launch.plan_forward(1, 22_001, 384, 132).segments > 50


def test_reasons_for_not_running_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.zeros(1, 1, 1)
    with pytest.raises(BackendUnavailableError, match="triton"):
        selective_scan(x, x, x[0], x, x, backend="triton")
    monkeypatch.setattr(operators, "_PRESENT", True)
    assert "not on cpu" in str(operators.why_not(torch.device("cpu"), torch.float32))
    assert "float64" in str(operators.why_not(torch.device("cuda"), torch.float64))
    monkeypatch.setattr(operators, "_PRESENT", False)
    assert "ssamba[gpu]" in str(operators.why_not(torch.device("cuda"), torch.float32))
    assert not next(s for s in available_backends("cpu") if s.name == "triton").available


def test_importing_the_operators_does_not_import_triton() -> None:
    code = "import sys, ssamba.ops; assert 'ssamba.ops.triton.tiles' not in sys.modules and 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
