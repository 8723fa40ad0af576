"""The test that a backend takes before it is used: small cases, forward and backward, against the operators of `eager`.

`compare` runs them; the exact results are those of `eager` in float64 on the CPU. `problem` is for a backend that may
never have run on a device, or with a version of its driver or compiler: it runs the test once and remembers the result,
in this process and in the cache folder (`ssamba.files.cache_folder`), under the versions of everything involved.

Shapes: B clips, L tokens, D channels of a token, E channels inside a block, N states of a channel, W taps.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.errors import BackendUnavailableError, BackendWarning, ConfigError
from ssamba.files import cache_folder, write_text
from ssamba.hashing import digest_of_files, digest_of_json
from ssamba.ops import eager
from ssamba.ops.operators import Backend, ConvInputs, DirectionWeights, MixerInputs, ScanInputs

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""How far a result or gradient may be from the exact one, relative to the largest exact value."""
VARIABLE = "SSAMBA_SELF_CHECK"
"""Environment variable: 0 uses every backend without a test."""
_B, _D, _E, _N, _W, _RANK = 2, 24, 48, 16, 4, 3
_LONG, _SHORT = 70, 20  # steps: several chunks (on a GPU also several segments), and a part of one
_IN_DTYPE = ("u", "delta", "B", "C", "z", "x", "hidden", "in_weight", "out_weight")  # the others stay float32
_FRACTIONS = (1.0, 0.4)  # valid shares of the clips

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class _Case:
    name: str
    inputs: Tensors
    """Float64, on the CPU."""
    run: Callable[[Backend, Tensors], list[Tensor]]
    gradients: bool = True


@dataclass(frozen=True)
class Deviation:
    """How far one result or gradient of a backend is from the exact one."""

    what: str
    error: float
    """Relative to the largest exact value; infinite where a result is not finite."""
    allowed: float

    def __str__(self) -> str:
        return f"{self.what} is off by {self.error:.1e} of its largest value ({self.allowed:.0e} is allowed)"


@dataclass(frozen=True)
class Outcome:
    """What the test of a backend found."""

    worst: Deviation | None
    """The result that takes the largest share of what is allowed; None if the backend raised an error."""
    problem: str | None
    """What is wrong; None if every result agrees."""
    duration_s: float


def compare(backend: Backend, device: torch.device, dtype: torch.dtype) -> list[Deviation]:
    """Run a backend's operators on small inputs, and return how far each result and gradient is from the exact one.

    What the backend raises passes through.
    """
    found = []
    for case in _cases(backend):
        # Inputs that both can hold, so that only the operators differ.
        inputs = {name: x.to(_dtype_of(name, dtype)) for name, x in case.inputs.items()}
        exact = _results(case, _EAGER, {name: x.double() for name, x in inputs.items()})
        actual = _results(case, backend, {name: x.to(device) for name, x in inputs.items()})
        for name, expected in exact.items():
            error = (actual[name].double().cpu() - expected).abs().max() / expected.abs().max()
            # Not finite also if a result is all NaN, which no comparison finds.
            size = error.item() if torch.isfinite(error) else float("inf")
            found.append(Deviation(f"{name} of the {case.name}", size, TOLERANCES[dtype]))
    return found


def examine(backend: Backend, device: torch.device, dtype: torch.dtype) -> Outcome:
    """Run `compare` and judge its result; whatever the backend raises is a problem of the backend."""
    started, worst, problem = time.perf_counter(), None, None
    try:
        worst = max(compare(backend, device, dtype), key=lambda x: x.error / x.allowed)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of its compiler, its driver or its own code: it cannot be used
        problem = f"it failed with {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    else:
        problem = f"it gave wrong results: {worst}" if worst.error > worst.allowed else None
    return Outcome(worst, problem, time.perf_counter() - started)


def problem(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what is wrong with a backend on a device, as far as a test of small cases shows; None if nothing is.

    The first question runs the test, unless the cache folder has its result; if the backend fails it, one
    `BackendWarning` says so. While a CUDA graph is captured nothing is run, and what was not tested counts as a
    problem. With SSAMBA_SELF_CHECK=0 in the environment nothing is run, and nothing is a problem.

    Raises:
        ConfigError: the environment variable holds neither 0 nor 1.
        BackendUnavailableError: the backend failed and left the device unusable for this process.
    """
    key = backend.name, device, dtype
    if key in _known:
        return _known[key]
    if _is_off():
        return None
    with _lock:
        if key not in _known:
            stored = _read(_stored_result(key))
            if stored is not None:
                _known[key] = stored["problem"]
            elif device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return _warned(key, "it was not tested before a CUDA graph was captured (run the model once before)")
            else:
                # A new thread has no autocast, no inference mode, no tracing and no stream of the caller's.
                with ThreadPoolExecutor(1) as pool:
                    remember(backend, device, dtype, pool.submit(examine, backend, device, dtype).result())
            reason = _known[key]
            if reason is not None:
                _warned(key, reason)
    return _known[key]


def remember(backend: Backend, device: torch.device, dtype: torch.dtype, outcome: Outcome) -> None:
    """Make an outcome the result that `problem` returns, in this process and in later ones.

    A backend that raised an error is tested again by the next process, since a missing compiler or a full disk may be
    the cause, unless the device is unusable afterwards.

    Raises:
        BackendUnavailableError: the device is unusable for this process.
    """
    key = backend.name, device, dtype
    usable = outcome.worst is not None or device_works(device)
    if outcome.worst is not None or not usable:
        _write(_stored_result(key), {**_facts(*key), "problem": outcome.problem})
    _known[key] = outcome.problem
    if not usable:
        raise BackendUnavailableError(
            f"backend {backend.name!r}, tested on {device}: {outcome.problem}. This process cannot use the device any "
            "more. The next one uses another backend: start again"
        )


def device_works(device: torch.device) -> bool:
    """Return False if a failed kernel left the device unusable for this process."""
    try:
        return bool(torch.ones(1, device=device).add_(1).item() == 2)
    except RuntimeError:
        return False


def _warned(key: tuple[str, torch.device, torch.dtype], reason: str) -> str:
    """Warn that a backend is not used, and return the reason."""
    name, device, dtype = key
    warnings.warn(
        f"Backend {name!r} is not used on {device} for {str(dtype).removeprefix('torch.')}, a slower one is: {reason}. "
        "`ssamba info --check` tests it again; please report what that prints as an issue of ssamba. "
        f"{VARIABLE}=0 uses the backend untested.",
        BackendWarning,
        stacklevel=2,
    )
    return reason


def _is_off() -> bool:
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise ConfigError(f"{VARIABLE} must be 0 (use backends without a test) or 1, got {value!r}")
    return value == "0"


def _facts(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Return everything that the result of a test depends on."""
    return {"backend": name, "dtype": str(dtype), **_device_facts(device), **_versions()}


def _device_facts(device: torch.device) -> dict[str, str]:
    if device.type != "cuda":
        return {"device": device.type}
    properties = torch.cuda.get_device_properties(device)
    driver = Path("/proc/driver/nvidia/version")  # CUDA's own number of the driver is the same for many drivers
    return {
        "device": f"{properties.name} ({properties.major}.{properties.minor})",
        "driver": driver.read_text(encoding="utf-8").partition("\n")[0] if driver.exists() else "",
        "cuda driver": str(getattr(torch._C, "_cuda_getDriverVersion", int)()),
    }


@cache
def _versions() -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    for package in ("triton", "ssamba"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    # Between two versions of ssamba its kernels may have changed.
    return found | {"sources": digest_of_files(*sorted(Path(__file__).parent.rglob("*.py")))}


def _stored_result(key: tuple[str, torch.device, torch.dtype]) -> Path:
    facts = _facts(*key)
    return cache_folder() / "backends" / f"{facts['backend']}-{digest_of_json(facts)}.json"


def _read(path: Path) -> dict[str, Any] | None:
    """Return a stored result; None if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "problem" in content else None


def _write(path: Path, result: dict[str, str | None]) -> None:
    with contextlib.suppress(OSError):  # a home that cannot be written: each process runs the test
        write_text(path, json.dumps(result, indent=1) + "\n")


_known: dict[tuple[str, torch.device, torch.dtype], str | None] = {}
"""Results of this process."""
_lock = threading.Lock()


def _new_lock() -> None:
    """Replace the lock in a forked child: the thread that may hold it does not exist there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return dtype if name in _IN_DTYPE else torch.float32


def _results(case: _Case, backend: Backend, inputs: Tensors) -> Tensors:
    """Return the case's outputs, and the gradient of every input for fixed random gradients of the outputs."""
    if not case.gradients:
        with torch.no_grad():
            return {f"output {i}": x for i, x in enumerate(case.run(backend, inputs))}
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    outs = case.run(backend, leaves)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator, device="cpu").to(out) for out in outs]
    gradients = torch.autograd.grad(outs, list(leaves.values()), weights)
    found = {f"output {i}": out.detach() for i, out in enumerate(outs)}
    return found | {f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}


def _cases(backend: Backend) -> Iterator[_Case]:
    """Yield the cases of the operators that the backend has; together they call every kernel."""
    for reverse, length in ((False, _LONG), (True, _SHORT)):
        name = f"{'reverse' if reverse else 'forward'} {{}} over {length} steps"
        yield _Case(name.format("scan"), _scan_inputs(length), _scan(reverse, padded=not reverse))
        yield _Case(name.format("convolution"), _conv_inputs(length), _conv(reverse, padded=not reverse))
    if backend.bimamba_mixer is not None:
        for padded in (False, True):
            yield _Case(f"mixer {'with' if padded else 'without'} lengths", _mixer_inputs(), _mixer(padded, padded))
    if backend.mix_into is not None:
        yield _Case("mixer in place", _mixer_inputs(), _mixer_in_place, gradients=False)


def _lengths(padded: bool, like: Tensor) -> Tensor | None:
    """Return the valid steps of each clip of `like` (B, L, ...), or None without padding."""
    return torch.tensor([int(like.shape[1] * x) for x in _FRACTIONS], device=like.device) if padded else None


def _scan(reverse: bool, padded: bool) -> Callable[[Backend, Tensors], list[Tensor]]:
    def run(backend: Backend, x: Tensors) -> list[Tensor]:
        options: dict[str, Any] = {"delta_softplus": True, "reverse": reverse, "lengths": _lengths(padded, x["u"])}
        return list(backend.selective_scan(ScanInputs(**{**x, **options})))

    return run


def _conv(reverse: bool, padded: bool) -> Callable[[Backend, Tensors], list[Tensor]]:
    def run(backend: Backend, x: Tensors) -> list[Tensor]:
        lengths = _lengths(padded, x["x"])
        return [backend.causal_conv(ConvInputs(x["x"], x["weight"], x["bias"], True, reverse, lengths))]

    return run


def _mixer(padded: bool, reversed_time: bool) -> Callable[[Backend, Tensors], list[Tensor]]:
    def run(backend: Backend, x: Tensors) -> list[Tensor]:
        assert backend.bimamba_mixer is not None
        return [backend.bimamba_mixer(_mixer_record(x, x["hidden"], _lengths(padded, x["hidden"]), reversed_time))]

    return run


def _mixer_in_place(backend: Backend, x: Tensors) -> list[Tensor]:
    """Return stream + mixer(layer norm(stream))."""
    assert backend.mix_into is not None
    out, width = x["hidden"].clone(), x["hidden"].new_ones(_D)
    backend.mix_into(out, (width, 0.1 * width, 1e-5), _mixer_record(x, out, None, False), True)
    return [out]


def _mixer_record(x: Tensors, hidden: Tensor, lengths: Tensor | None, reversed_time: bool) -> MixerInputs:
    forward, reverse = (
        DirectionWeights(*(x[f"{direction} {name}"] for name in DirectionWeights._fields))
        for direction in ("forward", "reverse")
    )
    return MixerInputs(hidden, x["in_weight"], x["out_weight"], forward, reverse, lengths, reversed_time)


def _draw(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Return normally distributed float64 tensors, the same ones at every call."""
    generator = torch.Generator().manual_seed(0)
    kind: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    return {name: torch.randn(shape, generator=generator, **kind) for name, shape in shapes.items()}


def _scan_inputs(L: int) -> Tensors:
    timed = {"u": (_B, L, _E), "delta": (_B, L, _E), "A": (_E, _N), "B": (_B, L, _N), "C": (_B, L, _N)}
    x = _draw({**timed, "D": (_E,), "z": (_B, L, _E), "delta_bias": (_E,), "initial_state": (_B, _E, _N)})
    return x | {"A": -torch.exp(x["A"]), "delta": x["delta"] - 1}


def _conv_inputs(L: int) -> Tensors:
    return _draw({"x": (_B, L, _E), "weight": (_E, _W), "bias": (_E,)})


def _mixer_inputs() -> Tensors:
    shapes = {"hidden": (_B, _LONG, _D), "in_weight": (2 * _E, _D), "out_weight": (_D, _E)}
    for direction in ("forward", "reverse"):
        each = ((_E, _W), (_E,), (_RANK + 2 * _N, _E), (_E, _RANK), (_E,), (_E, _N), (_E,))
        shapes |= {f"{direction} {name}": shape for name, shape in zip(DirectionWeights._fields, each, strict=True)}
    scale = {"in_weight": _D**-0.5, "out_weight": _E**-0.5, "x_weight": _E**-0.5, "dt_weight": _RANK**-0.5}
    return {name: x * scale.get(name.split(" ")[-1], 0.5) for name, x in _draw(shapes).items()}


def _eager_mixer(inputs: MixerInputs) -> Tensor:
    """Return the bidirectional mixer, by the equations in `ssamba.ops.mixer`."""
    hidden, in_weight, out_weight, forward, reverse, lengths, reversed_time = inputs
    x, z = F.linear(hidden, in_weight).chunk(2, dim=-1)
    y = torch.zeros_like(x)
    for weights, backward in ((forward, reversed_time), (reverse, not reversed_time)):
        u = eager.causal_conv(ConvInputs(x, weights.conv_weight, weights.conv_bias, True, backward, lengths))
        low, B, C = F.linear(u, weights.x_weight).split_with_sizes((_RANK, _N, _N), dim=-1)
        delta, A = F.linear(low, weights.dt_weight), -torch.exp(weights.A_log)
        scan = ScanInputs(u, delta, A, B, C, weights.D, z, weights.dt_bias, True, backward, lengths)
        y = y + eager.selective_scan(scan)[0]
    return F.linear(y / 2, out_weight)


def _eager_mix_into(out: Tensor, norm: tuple[Tensor, Tensor, float], inputs: MixerInputs, accumulate: bool) -> None:
    assert accumulate
    weight, bias, eps = norm
    out += _eager_mixer(inputs._replace(hidden=F.layer_norm(inputs.hidden, (_D,), weight, bias, eps)))


_EAGER = Backend(
    "eager", lambda device, dtype: None, eager.selective_scan, eager.causal_conv, _eager_mixer, _eager_mix_into
)
"""The operators that exact results come from."""
