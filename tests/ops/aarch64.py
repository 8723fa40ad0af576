"""Run the scan as compiled for aarch64 against float64, without such a machine: `python tests/ops/aarch64.py`.

Needs Debian's g++-aarch64-linux-gnu and qemu-user (CXX and QEMU name others). The kernels are compiled as CMake does
for a machine without AVX, where four lanes become NEON's, linked with aarch64.cpp and run by QEMU's user emulation.
With --count, prints the instructions of a forward and a backward pass for each state update.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssamba.ops.operators import ScanInputs
from ssamba.ops.reference import selective_scan

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent.parent / "src" / "ssamba" / "ops" / "cpp" / "csrc"
CXX = shlex.split(os.environ.get("CXX", "aarch64-linux-gnu-g++"))
QEMU = shlex.split(os.environ.get("QEMU", "qemu-aarch64"))
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-static"]
NAMES = ("u", "delta", "z", "B", "C", "A", "D", "bias")
CASES = ((150, 32, 16, False), (150, 32, 16, True), (65, 20, 16, False), (33, 7, 5, True))
TOLERANCE = 2e-5
"""Largest error relative to the largest value of a result."""


def build(folder: Path) -> Path:
    """Compile the driver and the kernels, and return the program."""
    program = folder / "scan"
    files = [str(HERE / "aarch64.cpp"), str(SOURCES / "kernels.cpp")]
    subprocess.run([*CXX, *FLAGS, f"-I{SOURCES}", *files, "-o", str(program)], check=True)
    return program


def draw(length: int, channels: int, states: int) -> dict[str, torch.Tensor]:
    """Draw the inputs of a scan of one clip, float32, as Mamba's initialization makes them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    values = {
        "u": normal(length, channels), "delta": normal(length, channels), "z": normal(length, channels),
        "B": normal(length, states), "C": normal(length, states),
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1), "D": normal(channels),
        "bias": normal(channels) - 3, "grad": normal(length, channels),
    }  # fmt: skip
    return values


def exact(values: dict[str, torch.Tensor], reverse: bool) -> list[NDArray[np.float64]]:
    """Return output, last state and gradients by the reference in float64."""
    own = {name: values[name].double().requires_grad_() for name in NAMES}
    clip = {name: own[name][None] for name in ("u", "delta", "z", "B", "C")}
    inputs = ScanInputs(
        clip["u"], clip["delta"], own["A"], clip["B"], clip["C"], own["D"], clip["z"], own["bias"],
        delta_softplus=True, reverse=reverse, lengths=None,
    )  # fmt: skip
    out, last = selective_scan(inputs)
    (out[0] * values["grad"]).sum().backward()
    gradients = [own[name].grad for name in ("u", "delta", "z", "B", "C", "A", "D", "bias")]
    return [out[0].detach().numpy(), last[0].detach().numpy(), *(g.numpy() for g in gradients if g is not None)]


def write(path: Path, values: dict[str, torch.Tensor], sizes: tuple[int, int, int, bool]) -> None:
    """Write sizes and arrays as the driver reads them."""
    with path.open("wb") as file:
        file.write(np.array(sizes, np.int64).tobytes())
        for name in (*NAMES, "grad"):
            file.write(values[name].numpy().tobytes())


def instructions(program: Path, given: Path, found: Path, *, forward: bool) -> int:
    """Return the number of instructions of a run."""
    environment = {**os.environ, "FORWARD": "1"} if forward else dict(os.environ)
    command = [*QEMU, "-singlestep", "-d", "nochain,exec", "-D", "/dev/stdout", str(program), str(given), str(found)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        return sum(1 for _ in process.stdout)


def main() -> int:
    """Build, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", action="store_true", help="count instructions, which takes a minute")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program, given, found = build(folder), folder / "given", folder / "found"
        for case in CASES:
            values = draw(*case[:3])
            write(given, values, case)
            subprocess.run([*QEMU, str(program), str(given), str(found)], check=True)
            flat, worst = np.fromfile(found, np.float32), 0.0
            for result in exact(values, case[3]):
                own, flat = flat[: result.size].reshape(result.shape), flat[result.size :]
                worst = max(worst, float(np.abs(own - result).max() / np.abs(result).max()))
            print(f"L, E, N, reverse {case}: off by at most {worst:.1e} ({TOLERANCE:g} is allowed)")
            if flat.size or not worst <= TOLERANCE:
                return 1
        if count:
            runs = []
            for length in (64, 192):
                case = (length, 32, 16, False)
                write(given, draw(*case[:3]), case)
                runs.append([instructions(program, given, found, forward=only) for only in (True, False)])
            updates = 128 * 32 * 16  # steps of the longer run beyond those of the shorter one
            forward, both = (int(after) - int(before) for before, after in zip(*runs, strict=True))
            backward = both - forward
            print(f"instructions a state update: forward {forward / updates:.2f}, backward {backward / updates:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
