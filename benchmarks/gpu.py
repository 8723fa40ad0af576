"""Measure the Triton kernels on an NVIDIA GPU: `python -m benchmarks.gpu`.

First every kernel is compared with the float64 reference on the same GPU; if results differ, no ratio is printed. Then
the scan, the convolution, and encoders at batch 1 with and without a CUDA graph are timed, with peak memory.
`--parts sweep` tries other block sizes of the scan. A part that fails is reported and the others go on. Encoders at
other batch sizes and their training steps are measured by `ssamba bench efficiency --device cuda`. Writes
benchmarks/results/gpu.json and gpu.md.

Shapes: B batch, L tokens, D channels, N states. A state update is one of the B L D N steps of the recurrence.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import relative_error, save
from ssamba.ops import causal_conv, selective_scan
from ssamba.ops.triton import launch
from ssamba.studies.harness import Run, allocated_peak, environment, table

PARTS = ("check", "scan", "conv", "encoders", "sweep")
STATE, TAPS, RANK = 16, 4, 48
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # relative to the largest value
SCANS = (  # B, L, D, dtype
    (64, 513, 1536, torch.bfloat16),
    (16, 513, 1536, torch.bfloat16),
    (1, 513, 1536, torch.bfloat16),
    (64, 513, 384, torch.bfloat16),
    (1, 513, 384, torch.bfloat16),
    (64, 513, 1536, torch.float32),
    (1, 22_001, 384, torch.bfloat16),
    (1, 22_001, 1536, torch.bfloat16),
    (1, 180_001, 384, torch.bfloat16),
)
CONVS = ((64, 513, 1536, torch.bfloat16), (1, 513, 384, torch.bfloat16), (1, 180_001, 384, torch.bfloat16))
ENCODERS = (("tiny", 512), ("base", 512), ("tiny", 22_000), ("base", 22_000))  # size, patches

Tensors = dict[str, Any]  # of tensors; `Any` since they become keyword arguments


class Clock:
    """Time calls on the device within a time budget for the whole run."""

    def __init__(self, device: torch.device, budget_s: float, each_s: float):
        self.device, self.each_s = device, each_s
        self.end = time.perf_counter() + budget_s

    def left_s(self) -> float:
        return self.end - time.perf_counter()

    def once_s(self, run: Run, calls: int) -> float:
        """Return the seconds per call of `calls` calls in a row."""
        if self.device.type == "cpu":
            started = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - started) / calls
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(calls):
            run()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3 / calls

    def medians_s(self, sides: Mapping[str, Run]) -> dict[str, float]:
        """Return the median seconds of a call of each side, warm, timed in turns."""
        calls = {}
        for name, run in sides.items():
            for _ in range(2):
                run()
            calls[name] = max(1, min(20, int(0.005 / max(self.once_s(run, 1), 1e-6))))
        times: dict[str, list[float]] = {name: [] for name in sides}
        started = time.perf_counter()
        for done in range(30):
            if done >= 3 and time.perf_counter() - started > self.each_s * len(sides):
                break
            for name, run in sides.items():
                times[name].append(self.once_s(run, calls[name]))
        return {name: statistics.median(values) for name, values in times.items()}

    def peak_mb(self, run: Run) -> float | None:
        """Return the peak memory that one call allocates beyond what was allocated before; None on a CPU."""
        return None if self.device.type == "cpu" else allocated_peak(run, self.device) / 2**20


class Report:
    """Collect the rows of every part as Markdown and JSON."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.texts: list[str] = []

    def add(self, part: str, title: str, columns: list[str], rows: list[dict[str, Any]]) -> None:
        self.data[part] = rows
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        self.texts.append(f"## {title}\n\n{table(columns, cells)}")
        print(self.texts[-1] + "\n", flush=True)

    def fail(self, where: str, error: BaseException) -> None:
        self.data.setdefault("failures", []).append(
            {"where": where, "error": f"{type(error).__name__}: {error}"[:2000]}
        )
        self.texts.append(f"FAILED, {where}: {type(error).__name__}: {str(error)[:300]}")
        print(self.texts[-1], flush=True)
        if not isinstance(error, torch.OutOfMemoryError):
            traceback.print_exception(error)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def scan_inputs(B: int, L: int, D: int, dtype: torch.dtype, device: torch.device, N: int = STATE) -> Tensors:
    """Return inputs as a block computes them: u, z and B, C are slices of two projections; delta is about 0.05."""
    torch.manual_seed(0)
    u, z = torch.randn(B, L, 2 * D, device=device, dtype=dtype).chunk(2, dim=-1)
    _, b, c = torch.randn(B, L, RANK + 2 * N, device=device, dtype=dtype).tensor_split((RANK, RANK + N), dim=-1)
    return {
        "u": u,
        "delta": torch.randn(B, L, D, device=device, dtype=dtype) - 3,
        "A": -torch.arange(1, N + 1, device=device).float().repeat(D, 1),
        "B": b,
        "C": c,
        "D": torch.randn(D, device=device),
        "z": z,
        "delta_bias": torch.randn(D, device=device) * 0.1,
    }


def with_gradients(function: Callable[..., Any], inputs: Tensors, dtype: torch.dtype | None) -> list[Tensor]:
    """Return the results and the gradient of every input, for fixed random gradients of the results."""
    leaves = {name: x.detach().to(dtype or x.dtype).requires_grad_() for name, x in inputs.items()}
    out = function(**leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator).to(o) for o in outs]
    return [o.detach() for o in outs] + list(torch.autograd.grad(outs, list(leaves.values()), weights))


def check(report: Report, clock: Clock, backend: str, tiny: bool) -> bool:
    """Compare with the float64 reference; for long inputs with `eager` in float64, which is tested itself."""
    cases: list[tuple[int, int, int, int, torch.dtype, str, bool]] = [
        (2, 65, 17, 4, torch.float32, "forward", True),
        (2, 513, 384, 16, torch.float32, "reverse", False),
        (2, 513, 384, 16, torch.bfloat16, "forward", False),
        (2, 130, 384, 16, torch.bfloat16, "reverse", True),
        (1, 2, 7, 1, torch.float32, "reverse", False),
        (130, 63, 768, 16, torch.float32, "forward", False),
        (130, 63, 768, 16, torch.bfloat16, "reverse", False),
        (1, 22_001, 384, 16, torch.float32, "reverse", False),
    ]
    rows, agreed = [], True
    for B, L, D, N, dtype, direction, padded in cases[:1] if tiny else cases:
        oracle = "reference" if B * L < 2000 else "eager"
        row: dict[str, Any] = {"B": B, "L": L, "D": D, "N": N, "dtype": _dtype_name(dtype), "direction": direction}
        lengths = torch.tensor([L, L // 3], device=clock.device) if padded else None
        row |= {"lengths": padded, "oracle": oracle}
        try:
            inputs = scan_inputs(B, L, D, dtype, clock.device, N)
            inputs["initial_state"] = torch.randn(B, D, N, device=clock.device)

            def scan(backend: str, direction: Any = direction, lengths: Tensor | None = lengths) -> Callable[..., Any]:
                options = {"direction": direction, "lengths": lengths, "return_last_state": True, "backend": backend}
                return partial(selective_scan, **options)

            exact = with_gradients(scan(oracle), inputs, torch.float64)
            ours = with_gradients(scan(backend), inputs, None)
            again = with_gradients(scan(backend), inputs, None)
            row["scan error"] = relative_error([x.double() for x in ours], exact)
            row["same bits twice"] = all(torch.equal(x, y) for x, y in zip(ours, again, strict=True))

            x = {"x": inputs["u"], "weight": torch.randn(D, TAPS, device=clock.device), "bias": inputs["D"]}

            def conv(backend: str, direction: Any = direction, lengths: Tensor | None = lengths) -> Callable[..., Any]:
                return partial(causal_conv, direction=direction, lengths=lengths, backend=backend)

            exact = with_gradients(conv("eager"), x, torch.float64)
            row["conv error"] = relative_error([t.double() for t in with_gradients(conv(backend), x, None)], exact)
            worst = max(row["scan error"], row["conv error"])
            row["agrees"] = worst <= TOLERANCES[dtype] and row["same bits twice"]  # false for NaN
        except Exception as error:
            report.fail(f"check of {row}", error)
            row["agrees"] = False
        agreed = agreed and row["agrees"]
        rows.append(row)
        _free()
    columns = ["B", "L", "D", "N", "dtype", "direction", "lengths", "oracle", "scan error", "conv error"]
    report.add("check", "Against float64", [*columns, "same bits twice", "agrees"], rows)
    return agreed


def training_run(function: Callable[..., Tensor], inputs: Tensors) -> Run:
    """Return a call of forward and backward with the gradients of all inputs."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    weight = torch.randn_like(function(**leaves).detach())
    return lambda: torch.autograd.grad(function(**leaves), list(leaves.values()), weight)


def mamba_scan(inputs: Tensors) -> tuple[Callable[..., Tensor], Tensors] | None:
    """Return the CUDA scan of mamba_ssm and the inputs in its layout (B, D, L); None if it is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    moved = {name: x.transpose(1, 2).contiguous() if x.ndim == 3 else x for name, x in inputs.items()}

    def scan(**x: Tensor) -> Tensor:
        out: Tensor = selective_scan_fn(**x, delta_softplus=True)
        return out

    return scan, moved


def measure_scan(report: Report, clock: Clock, backend: str, shapes: tuple[Any, ...], agreed: bool) -> None:
    """Time one direction of the scan."""
    rows = []
    for B, L, D, dtype in shapes:
        row: dict[str, Any] = {"B": B, "L": L, "D": D, "dtype": _dtype_name(dtype)}
        try:
            inputs = scan_inputs(B, L, D, dtype, clock.device)
            scan = partial(selective_scan, backend=backend)
            forward: dict[str, Run] = {"ours": _without_gradients(scan, inputs)}
            row["forward MB"] = clock.peak_mb(forward["ours"])
            both = {"ours": training_run(scan, inputs)}
            row["both MB"] = clock.peak_mb(both["ours"])
            theirs = mamba_scan(inputs)
            if theirs is not None:
                forward["mamba_ssm"] = _without_gradients(*theirs)
                both["mamba_ssm"] = training_run(*theirs)
            for kind, sides in (("forward", forward), ("both", both)):
                medians = clock.medians_s(sides)
                row |= {
                    f"{kind} ms": medians["ours"] * 1e3,
                    f"{kind} ps/update": medians["ours"] * 1e12 / (B * L * D * STATE),
                }
                if "mamba_ssm" in medians:
                    row[f"mamba_ssm {kind} ms"] = medians["mamba_ssm"] * 1e3
                    row[f"{kind} ratio"] = medians["ours"] / medians["mamba_ssm"] if agreed else None
        except Exception as error:
            report.fail(f"scan of {row}", error)
        rows.append(row)
        _free()
    columns = [
        "B",
        "L",
        "D",
        "dtype",
        "forward ms",
        "forward ps/update",
        "both ms",
        "both ps/update",
        "forward MB",
        "both MB",
    ]
    theirs_columns = ["mamba_ssm forward ms", "forward ratio", "mamba_ssm both ms", "both ratio"]
    if any("mamba_ssm forward ms" in row for row in rows):
        columns += theirs_columns
    report.add("scan", "Selective scan, one direction (both: forward and backward)", columns, rows)


def _without_gradients(function: Callable[..., Tensor], inputs: Tensors) -> Run:
    """Return a call of forward alone."""

    def run() -> None:
        with torch.no_grad():
            function(**inputs)

    return run


def measure_conv(report: Report, clock: Clock, backend: str, shapes: tuple[Any, ...]) -> None:
    """Time the causal convolution with SiLU, and torch's grouped convolution on the same rows."""
    rows = []
    for B, L, D, dtype in shapes:
        row: dict[str, Any] = {"B": B, "L": L, "D": D, "dtype": _dtype_name(dtype)}
        try:
            x, _ = torch.randn(B, L, 2 * D, device=clock.device, dtype=dtype).chunk(2, dim=-1)
            inputs = {
                "x": x,
                "weight": torch.randn(D, TAPS, device=clock.device),
                "bias": torch.randn(D, device=clock.device),
            }
            ours = partial(causal_conv, backend=backend)

            def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                rows = F.pad(x.transpose(1, 2), (TAPS - 1, 0))
                y = F.conv1d(rows, weight[:, None].to(x.dtype), bias.to(x.dtype), groups=x.shape[-1])
                return F.silu(y).transpose(1, 2)

            forward = clock.medians_s(
                {"ours": _without_gradients(ours, inputs), "torch": _without_gradients(plain, inputs)}
            )
            both = clock.medians_s({"ours": training_run(ours, inputs)})
            size = B * L * D * x.element_size()
            row |= {"forward ms": forward["ours"] * 1e3, "torch forward ms": forward["torch"] * 1e3}
            row |= {"forward GB/s": 2 * size / forward["ours"] / 1e9, "both ms": both["ours"] * 1e3}
            row["both GB/s"] = 5 * size / both["ours"] / 1e9
        except Exception as error:
            report.fail(f"convolution of {row}", error)
        rows.append(row)
        _free()
    columns = ["B", "L", "D", "dtype", "forward ms", "forward GB/s", "torch forward ms", "both ms", "both GB/s"]
    report.add("conv", "Causal convolution with SiLU (GB/s: inputs and outputs once)", columns, rows)


def graphed(run: Run) -> Run:
    """Return a call that replays the work from a CUDA graph, without the time of launches on the CPU."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def encoder_inference(model: nn.Module, features: Tensor) -> Run:
    """Return an inference call in bfloat16, parameters included."""
    model = model.to(torch.bfloat16).eval()
    features = features.to(torch.bfloat16)

    def run() -> None:
        with torch.no_grad():
            model(features)

    return run


def _build(name: str, size: Any, patches: int, depth: int | None) -> nn.Module:
    # Imported here, so that the kernels can also be measured where einops and pydantic are missing.
    from ssamba.model import create_encoder

    if name == "ssamba":
        return create_encoder(size) if depth is None else create_encoder(size, depth=depth)
    return create_encoder(size, "ssast", num_frames=patches // 8 * 16)


def measure_encoders(report: Report, clock: Clock, shapes: tuple[Any, ...], agreed: bool, depth: int | None) -> None:
    """Time inference of SSAMBA and SSAST (fused attention) at batch 1, with and without a CUDA graph."""
    rows = []
    for size, patches in shapes:
        features = torch.randn(1, patches // 8 * 16, 128, device=clock.device)
        for mode in ("inference", "inference, CUDA graph"):
            row: dict[str, Any] = {"size": size, "patches": patches, "mode": mode}
            if mode.endswith("graph") and clock.device.type == "cpu":
                continue
            if clock.left_s() < 5:
                report.fail(f"encoder {row}", TimeoutError("skipped: the time budget is used up"))
                continue
            sides: dict[str, Run] = {}
            for name in ("ssamba", "ssast"):
                try:
                    run = encoder_inference(_build(name, size, patches, depth).to(clock.device), features)
                    run()
                    row[f"{name} MB"] = clock.peak_mb(run)
                    sides[name] = graphed(run) if mode.endswith("graph") else run
                except Exception as error:
                    report.fail(f"{name}, {row}", error)
                    _free()
            try:
                medians = clock.medians_s(sides)
                row |= {f"{name} ms": value * 1e3 for name, value in medians.items()}
                if agreed and len(medians) == 2:
                    row["time ratio"] = medians["ssamba"] / medians["ssast"]
                    ours, theirs = row.get("ssamba MB"), row.get("ssast MB")
                    row["memory ratio"] = ours / theirs if ours and theirs else None
            except Exception as error:
                report.fail(f"encoder {row}", error)
            rows.append(row)
            sides.clear()
            _free()
    columns = [
        "size",
        "patches",
        "mode",
        "ssamba ms",
        "ssast ms",
        "time ratio",
        "ssamba MB",
        "ssast MB",
        "memory ratio",
    ]
    report.add("encoders", "Encoders in bfloat16, batch 1 (MB: peak of a call beyond the parameters)", columns, rows)


@contextmanager
def planned(name: str, **changes: Any) -> Iterator[None]:
    """Replace block sizes in the plans of `launch.plan_forward` or `plan_backward`."""
    original = getattr(launch, name)
    block_e = changes.get("block_e")

    def plan(batch: int, length: int, channels: int, processors: int) -> launch.ScanPlan:
        usual: launch.ScanPlan = original(batch, length, channels, processors)
        if block_e is not None:
            # Segments depend on the number of programs, hence on the width.
            usual = original(batch, length, channels * usual.block_e // block_e, processors)
        return replace(usual, **changes)

    setattr(launch, name, plan)
    try:
        yield
    finally:
        setattr(launch, name, original)


def sweep(report: Report, clock: Clock, shapes: tuple[Any, ...]) -> None:
    """Time other block sizes and register limits of the scan, to choose the defaults."""
    forwards = [(32, 8, 128), (32, 8, 96), (32, 8, 168), (32, 4, 128), (32, 16, 168), (64, 4, 168), (64, 8, 255)]
    backwards = [(64, 4, 168), (64, 4, 255), (64, 8, 255), (64, 8, 168), (128, 4, 255), (32, 8, 168), (32, 4, 128)]
    rows = []
    for B, L, D, dtype in shapes:
        inputs = scan_inputs(B, L, D, dtype, clock.device)
        for name, options in (("plan_forward", forwards), ("plan_backward", backwards)):
            for block_e, tile, registers in options:
                row: dict[str, Any] = {"B": B, "L": L, "D": D, "dtype": _dtype_name(dtype), "pass": name}
                row |= {"block_e": block_e, "tile": tile, "registers": registers}
                try:
                    with planned(name, block_e=block_e, tile=tile, registers=registers):
                        if name == "plan_forward":
                            run = _without_gradients(selective_scan, inputs)
                        else:
                            run = training_run(selective_scan, inputs)
                        row["ms"] = clock.medians_s({"": run})[""] * 1e3
                except Exception as error:
                    report.fail(f"sweep of {row}", error)
                rows.append(row)
        _free()
    columns = ["B", "L", "D", "dtype", "pass", "block_e", "tile", "registers", "ms"]
    report.add("sweep", "Block sizes (plan_backward: forward and backward together)", columns, rows)


def gpu_environment(device: torch.device) -> dict[str, Any]:
    """Return the environment, with the number of multiprocessors and Triton's version on a GPU."""
    facts = environment(device)
    if device.type == "cuda":
        import triton

        count = torch.cuda.get_device_properties(device).multi_processor_count
        facts |= {"multiprocessors": count, "triton": triton.__version__}
    return facts


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:-1]), help="default: all but sweep")
    parser.add_argument("--budget-s", type=float, default=280, help="skip the remaining encoders after this time")
    parser.add_argument("--each-s", type=float, default=0.4, help="approximate time for which each side is repeated")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU by `eager`, to test this script")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device here (--tiny tests the script without one)")
    device, backend = (torch.device("cpu"), "eager") if args.tiny else (torch.device("cuda", 0), "triton")
    clock, report = Clock(device, args.budget_s, args.each_s), Report()
    report.data["environment"] = gpu_environment(device)
    print(report.data["environment"], flush=True)
    shapes: tuple[tuple[Any, ...], ...] = SCANS, CONVS, ENCODERS
    if args.tiny:
        shapes = ((1, 9, 16, torch.float32),), ((1, 9, 16, torch.float32),), (("tiny", 16),)
    agreed = True
    parts: dict[str, Callable[[], object]] = {
        "scan": lambda: measure_scan(report, clock, backend, shapes[0], agreed),
        "conv": lambda: measure_conv(report, clock, backend, shapes[1]),
        "encoders": lambda: measure_encoders(report, clock, shapes[2], agreed, 2 if args.tiny else None),
        "sweep": lambda: sweep(report, clock, (shapes[0][0], shapes[0][-1])),
    }
    if "check" in args.parts:
        agreed = check(report, clock, backend, args.tiny)
    for name, part in parts.items():
        if name in args.parts:
            try:
                part()
            except Exception as error:
                report.fail(name, error)
    report.data["agreed"] = agreed
    head = "\n".join(f"- {name}: {value}" for name, value in report.data["environment"].items())
    warning = "" if agreed else "\n\n**Results differ from the float64 reference: no ratios.**"
    text = "\n\n".join(["# Kernels on a GPU", head + warning, *report.texts])
    if args.tiny:
        print(text)
    else:
        save("gpu", report.data, text)


if __name__ == "__main__":
    main()
