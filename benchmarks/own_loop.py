"""Measure the encoder in a training loop of one's own on a CPU: `python -m benchmarks.own_loop`.

Sections (`--sections` selects): `compile` (torch.compile against eager, with the seconds of the first call) and
`checkpointing` (a training step with and without gradient checkpointing: time in turns, and peak memory, each in a
process of its own). Float32, clips of 10.24 s, medians. Writes benchmarks/results/own_loop.json and .md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.timing import inline, medians_s, save
from ssamba.model import PatchEncoder, create_encoder
from ssamba.studies.harness import Run, environment, in_child, once_s, resident_peak, table

Row = dict[str, Any]
SIZES: tuple[tuple[Any, Any, int], ...] = (("tiny", "official", 8), ("tiny", "ssamba2", 8), ("base", "ssamba2", 2))
"""Size, variant, clips."""
FRAMES = 1024
PEAK = (
    "import json, sys; from benchmarks.own_loop import peak_bytes; "
    "print(json.dumps(peak_bytes(*sys.argv[1:3], int(sys.argv[3]), bool(int(sys.argv[4])))))"
)


def encoder_and_input(size: Any, variant: Any, clips: int) -> tuple[PatchEncoder, torch.Tensor]:
    """Return an encoder in training mode and random features (B, T, M)."""
    torch.manual_seed(0)
    return create_encoder(size, variant).train(), torch.randn(clips, FRAMES, 128)


def step(encoder: Any, features: torch.Tensor, checkpointing: bool = False) -> Run:
    """Return a call that runs forward and backward."""

    def run() -> None:
        if isinstance(encoder, PatchEncoder):
            encoder.gradient_checkpointing = checkpointing
        encoder(features).square().mean().backward()

    return run


def compilation(budget_s: float) -> Iterator[Row]:
    """Compare torch.compile with eager, forward alone and a training step."""
    for size, variant, clips in SIZES[:2]:
        for training, batch in ((False, 1), (False, clips), (True, clips)):
            torch.compiler.reset()
            encoder, features = encoder_and_input(size, variant, batch)
            compiled = torch.compile(encoder, fullgraph=True)
            with nullcontext() if training else torch.no_grad():
                call = step if training else forward
                sides = {"eager": call(encoder, features), "compiled": call(compiled, features)}
                first_s = once_s(sides["compiled"])
                times = medians_s(sides, budget_s)
            yield {
                "section": "compile",
                "what": f"{size}, {variant}, {batch} x 10.24 s, {'training step' if training else 'forward'}",
                "eager_ms": times["eager"] * 1e3,
                "compiled_ms": times["compiled"] * 1e3,
                "ratio": times["compiled"] / times["eager"],
                "first_call_s": first_s,
            }


def forward(encoder: Any, features: torch.Tensor) -> Run:
    """Return a call that runs forward."""
    return lambda: encoder(features)


def peak_bytes(size: str, variant: str, clips: int, checkpointing: bool) -> int | None:
    """Return the peak resident bytes that a training step adds to this process."""
    encoder, features = encoder_and_input(size, variant, clips)
    step(encoder, features[:, :64])()  # gradients, and what only the first call allocates
    return resident_peak(step(encoder, features, checkpointing))


def checkpointing(budget_s: float) -> Iterator[Row]:
    """Compare a training step with gradient checkpointing with one without."""
    for size, variant, clips in SIZES:
        encoder, features = encoder_and_input(size, variant, clips)
        times = medians_s({"plain": step(encoder, features), "checkpointing": step(encoder, features, True)}, budget_s)
        plain, less = (in_child(PEAK, [size, variant, str(clips), str(on)]) for on in (0, 1))
        yield {
            "section": "checkpointing",
            "what": f"{size}, {variant}, {clips} x 10.24 s",
            "plain_ms": times["plain"] * 1e3,
            "checkpointing_ms": times["checkpointing"] * 1e3,
            "time_ratio": times["checkpointing"] / times["plain"],
            "plain_bytes": plain,
            "checkpointing_bytes": less,
            "memory_ratio": less / plain if plain else None,
        }


SECTIONS = {"compile": compilation, "checkpointing": checkpointing}


def report(rows: list[Row], env: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    parts = ["# The encoder in a loop of one's own", inline(env)]
    compiled = [row for row in rows if row["section"] == "compile"]
    if compiled:
        cells = [
            [
                r["what"],
                f"{r['eager_ms']:.0f}",
                f"{r['compiled_ms']:.0f}",
                f"{r['ratio']:.2f}",
                f"{r['first_call_s']:.0f}",
            ]
            for r in compiled
        ]
        parts.append(table(["torch.compile", "eager, ms", "compiled, ms", "ratio", "first call, s"], cells))
    kept = [row for row in rows if row["section"] == "checkpointing"]
    if kept:
        cells = [
            [r["what"], f"{r['plain_ms']:.0f}", f"{r['checkpointing_ms']:.0f}", f"{r['time_ratio']:.2f}",
             *([f"{r['plain_bytes'] / 1e6:.0f}", f"{r['checkpointing_bytes'] / 1e6:.0f}", f"{r['memory_ratio']:.2f}"]
               if r["memory_ratio"] else ["", "", ""])]
            for r in kept
        ]  # fmt: skip
        head = ["training step", "plain, ms", "checkpointing, ms", "ratio", "plain, MB", "checkpointing, MB", "ratio"]
        parts.append(table(head, cells))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated")
    parser.add_argument("--budget-s", type=float, default=15.0, help="seconds for each comparison")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for name in options.sections.split(","):
        for row in SECTIONS[name](options.budget_s):
            print(json.dumps(row), flush=True)
            rows.append(row)
    env = environment()
    save("own_loop", {"environment": env, "rows": rows}, report(rows, env))


if __name__ == "__main__":
    main()
