"""Measure the selective scan, forward and backward, against alternatives: `python -m benchmarks.scan`.

Sides: `cpp` (the C++ kernels), `eager` (plain PyTorch), `pscan` (mambapy's parallel scan, if installed), and `loop`
(one step at a time in Python). Float32; softplus, skip and gate included; inputs are slices, as a block's projections
produce them. Then the C++ kernels alone over lengths, widths, threads and instruction sets, in nanoseconds per state
update (B L D N updates). The allocator retains freed memory for all sides, so that the scan is measured and not how
fast the system zeroes pages. No ratio is printed for a side whose results differ from the reference. Writes
benchmarks/results/scan.json and scan.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import inline, medians_s, relative_error, retain_freed_memory, save
from ssamba.ops import selective_scan
from ssamba.ops.cpp import extension
from ssamba.studies.harness import environment, table

STATE, RANK = 16, 12
COMPARED = ((512, 384), (2048, 384), (512, 1536))
SCALED = ((512, 384), (2048, 384), (8192, 384), (65536, 384), (512, 1536), (2048, 1536))
TOLERANCE = 1e-3  # relative to the largest value: float32 in another order of operations

Scan = Callable[..., Tensor]


def inputs(length: int, channels: int, batch: int = 1) -> list[Tensor]:
    """Return u, delta, A, B, C, D, z, delta_bias as a block computes them; delta is about 0.05."""
    g = torch.Generator().manual_seed(0)
    u, z = torch.randn(batch, length, 2 * channels, generator=g).chunk(2, dim=-1)
    projected = torch.randn(batch, length, RANK + 2 * STATE, generator=g)
    B, C = projected[..., RANK : RANK + STATE], projected[..., RANK + STATE :]
    delta = torch.randn(batch, length, channels, generator=g) - 3
    A = -torch.arange(1, STATE + 1).float().repeat(channels, 1)
    return [u, delta, A, B, C, torch.randn(channels, generator=g), z, torch.zeros(channels)]


def pscan_side() -> Scan | None:
    """Return mambapy's scan with the signature of `selective_scan`; None if it is not installed."""
    try:
        from mambapy.pscan import pscan
    except ImportError:
        return None

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        delta = F.softplus(delta + bias)
        decay = torch.exp(delta.unsqueeze(-1) * A)
        states = pscan(decay, (delta * u).unsqueeze(-1) * B.unsqueeze(2))
        y: Tensor = (states @ C.unsqueeze(-1)).squeeze(3) + D * u
        return y * F.silu(z)

    return scan


def backend(name: str) -> Scan:
    """Return `selective_scan` on one backend."""
    return lambda *args: selective_scan(*args, backend=name)


def compare(length: int, channels: int, budget_s: float) -> list[dict[str, Any]]:
    """Time all sides at one shape, forward and backward."""
    sides: dict[str, Scan] = {"cpp": backend("cpp"), "eager": backend("eager"), "loop": backend("reference")}
    pscan = pscan_side()
    if pscan is not None:
        sides["pscan"] = pscan
    arguments = inputs(length, channels)
    weight = torch.randn(1, length, channels, generator=torch.Generator().manual_seed(1))
    results, forwards, backwards = {}, {}, {}
    for name, scan in sides.items():
        leaves = [x.detach().requires_grad_() for x in arguments]
        out = scan(*leaves)
        results[name] = [out.detach(), *torch.autograd.grad(out, leaves, weight, retain_graph=True)]

        def forward(scan: Scan = scan) -> None:
            with torch.no_grad():
                scan(*arguments)

        def backward(out: Tensor = out, leaves: list[Tensor] = leaves) -> None:
            torch.autograd.grad(out, leaves, weight, retain_graph=True)

        forwards[name], backwards[name] = forward, backward
    rows = []
    for direction, runs in (("forward", forwards), ("backward", backwards)):
        for name, seconds in medians_s(runs, budget_s).items():
            error = relative_error(results[name], results["loop"])
            rows.append(
                {"pass": direction, "length": length, "channels": channels, "side": name, "s": seconds, "error": error}
            )
    return rows


def per_update_ns(length: int, channels: int, repeats: int, threads: list[int]) -> dict[int, tuple[float, float]]:
    """Return forward and backward time of the C++ kernels for each number of threads, timed in turns."""
    arguments = inputs(length, channels)
    leaves = [x.detach().requires_grad_() for x in arguments]
    out = selective_scan(*leaves, backend="cpp")
    weight = torch.randn_like(out)

    def forward() -> None:
        with torch.no_grad():
            selective_scan(*arguments, backend="cpp")

    def backward() -> None:
        torch.autograd.grad(out, leaves, weight, retain_graph=True)

    def with_threads(count: int, run: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            torch.set_num_threads(count)  # takes about a microsecond
            run()

        return call

    runs = {
        f"{name} {count}": with_threads(count, run)
        for count in threads
        for name, run in (("forward", forward), ("backward", backward))
    }
    medians = medians_s(runs, repeats=repeats)
    updates = length * channels * STATE / 1e9
    return {count: (medians[f"forward {count}"] / updates, medians[f"backward {count}"] / updates) for count in threads}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each comparison")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    memory = "kept by the process" if retain_freed_memory() else "the allocator's default"
    head = {**environment(), "memory": memory}
    threads = sorted({1, torch.get_num_threads()})

    compared: list[dict[str, Any]] = []
    for count in threads:
        torch.set_num_threads(count)
        for length, channels in COMPARED:
            compared += [{"threads": count, **row} for row in compare(length, channels, options.budget)]
    scaled: list[dict[str, Any]] = []
    for capability in extension.kernels.capabilities():
        extension.use_capability(capability)
        best = capability == extension.kernels.capabilities()[0]
        for length, channels in SCALED if best else SCALED[:1]:
            measured = per_update_ns(length, channels, options.repeats, threads if best else [1])
            for count, (forward, backward) in measured.items():
                scaled.append(
                    {"capability": capability, "threads": count, "length": length, "channels": channels,
                     "forward_ns": forward, "backward_ns": backward}
                )  # fmt: skip
    extension.use_capability(None)

    def shape_of(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["threads"], row["pass"], row["length"], row["channels"]

    cpp = {shape_of(row): row for row in compared if row["side"] == "cpp"}
    rows = []
    for row in compared:
        own = cpp[shape_of(row)]
        agrees = max(row["error"], own["error"]) <= TOLERANCE
        ratio = f"{row['s'] / own['s']:.1f}x" if agrees else f"results differ by {row['error']:.0e}"
        shape = f"{row['length']} x {row['channels']}"
        rows.append([str(row["threads"]), row["pass"], shape, row["side"], f"{row['s'] * 1000:.2f}", ratio])
    kernels = [
        [
            r["capability"],
            f"{r['threads']}",
            f"{r['length']} x {r['channels']}",
            f"{r['forward_ns']:.3f}",
            f"{r['backward_ns']:.3f}",
        ]
        for r in scaled
    ]
    text = "\n\n".join(
        [
            inline(head),
            f"Batch 1, {STATE} states, float32; the last column is the time relative to cpp.",
            table(["threads", "pass", "L x D", "side", "ms", "relative"], rows),
            "C++ kernels, nanoseconds per state update:",
            table(["instructions", "threads", "L x D", "forward", "backward"], kernels),
        ]
    )
    save("scan", {**head, "compared": compared, "scaled": scaled}, text)


if __name__ == "__main__":
    main()
