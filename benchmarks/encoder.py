"""The whole encoder on a CPU against SSAST, the transformer: `python -m benchmarks.encoder`.

Sections (`--sections` chooses): `inference` (time of one clip over lengths, tiny and base), `memory` (peak extra
resident memory of one pass, each in a process of its own), `training` (forward and backward at 512 patches), `scans` (the
same encoder with its scan replaced by mambapy's pscan and by a loop over steps in Python), `blocks` (the same encoder
made of mamba.py's own blocks), `floor` (against its matrix products alone plus the scan at 0.20 ns per update), `ragged`
(16 clips of 0.3 to 10 s against equal clips of the same total).
Float32, same threads, warm, sides taking turns, medians. Writes benchmarks/results/encoder*.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.mambapy_blocks import How, blocks_mixer
from benchmarks.scan import pscan_side
from benchmarks.timing import disagreement, keep_memory, medians_s, save
from ssamba.embedder import Embedder
from ssamba.model import SSAMBAEncoder, create_encoder, encoder
from ssamba.ops.matmul import library, linear
from ssamba.ops.mixer import compose
from ssamba.studies.harness import environment, table

Row = dict[str, Any]
INFERENCE = (("tiny", 512), ("tiny", 2048), ("tiny", 8192), ("tiny", 22_000), ("base", 512), ("base", 2048))
MEMORY = (2048, 8192, 22_000)
MBYTE = 2**20

_PEAK = """
import sys, torch
from benchmarks.encoder import model_and_input
from ssamba.studies.harness import resident_peak

torch.set_num_threads(int(sys.argv[3]))
with torch.no_grad():
    model, features = model_and_input(sys.argv[1], "tiny", int(sys.argv[2]))
    model_small, small = model_and_input(sys.argv[1], "tiny", 64)
    model_small(small)
    print(resident_peak(lambda: model(features)))
"""


def model_and_input(side: str, size: str, patches: int) -> tuple[nn.Module, Tensor]:
    """A model ("ssamba", "sdpa" or "unfused") and features of so many patches (a multiple of 8)."""
    torch.manual_seed(0)
    features = torch.randn(1, patches * 2, 128)
    if side == "ssamba":
        return create_encoder(size).eval(), features  # type: ignore[arg-type]
    attention = "fused" if side == "sdpa" else "unfused"
    return create_encoder(size, "ssast", num_frames=2 * patches, attention=attention).eval(), features  # type: ignore[arg-type]


@torch.no_grad()
def inference(budget_s: float) -> Iterator[Row]:
    """Time of one clip."""
    for size, patches in INFERENCE:
        sides: dict[str, Callable[[], object]] = {}
        for side in ("ssamba", "sdpa"):
            model, features = model_and_input(side, size, patches)
            sides[side] = lambda model=model, features=features: model(features)  # type: ignore[misc]
        times = medians_s(sides, budget_s)
        yield {
            "section": "inference",
            "what": f"{size}, {patches} patches ({patches * 0.02:.1f} s)",
            "ssamba_ms": times["ssamba"] * 1e3,
            "other": "transformer, SDPA",
            "other_ms": times["sdpa"] * 1e3,
            "ratio": times["ssamba"] / times["sdpa"],
        }


def memory(budget_s: float) -> Iterator[Row]:
    """Peak extra resident memory of one pass (Linux)."""
    for patches in MEMORY:
        peaks: dict[str, float | None] = {}
        for side in ("ssamba", "sdpa", "unfused"):
            command = [sys.executable, "-c", _PEAK, side, str(patches), str(torch.get_num_threads())]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            peaks[side] = float(done.stdout) / MBYTE if done.returncode == 0 else None
        for side in ("sdpa", "unfused"):
            ours, other = peaks["ssamba"], peaks[side]
            yield {
                "section": "memory",
                "what": f"tiny, {patches} patches, peak extra MB",
                "ssamba_ms": ours,
                "other": f"transformer, {'SDPA' if side == 'sdpa' else 'unfused attention'}",
                "other_ms": other,
                "ratio": None if ours is None or other is None else ours / other,
            }


def training(budget_s: float) -> Iterator[Row]:
    """Forward and backward of tiny at 512 patches."""
    sides: dict[str, Callable[[], object]] = {}
    for side in ("ssamba", "sdpa"):
        model, features = model_and_input(side, "tiny", 512)
        model.train()
        sides[side] = lambda model=model, features=features: model(features).square().mean().backward()  # type: ignore[misc]
    model, features = model_and_input("ssamba", "tiny", 512)
    model.train()
    sides["within"] = lambda model=model, features=features: model(features)  # type: ignore[misc]
    resting, _ = model_and_input("ssamba", "tiny", 512)

    def forward() -> None:
        with torch.no_grad():
            resting(features)

    sides["forward"] = forward
    times = medians_s(sides, budget_s)
    others = {
        "sdpa": "transformer's step, SDPA",
        "within": "own forward, keeping what the way back needs",
        "forward": "own forward alone",
    }
    for other, name in others.items():
        yield {
            "section": "training",
            "what": "tiny, 512 patches, forward and backward",
            "ssamba_ms": times["ssamba"] * 1e3,
            "other": name,
            "other_ms": times[other] * 1e3,
            "ratio": times["ssamba"] / times[other],
        }


@contextmanager
def replaced_mixer(other: Callable[..., Tensor]) -> Iterator[None]:
    """Let the encoder use another mixer."""
    with patch.object(encoder, "bimamba_mixer", other), patch.object(encoder, "can_mix_into", lambda stream: False):
        yield


@contextmanager
def replaced_scan(scan: Callable[..., Tensor]) -> Iterator[None]:
    """Let the encoder use another implementation of the scan, everything else as it is composed without a fused mixer."""

    def adapted(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor, **options: Any) -> Tensor:
        inputs = [u, delta, A, B, C, *rest]
        if options["direction"] == "reverse":
            inputs = [x.flip(1) if x.ndim == 3 else x for x in inputs]
            return scan(*inputs).flip(1)
        return scan(*inputs)

    with replaced_mixer(partial(compose, scan=adapted)):
        yield


def loop_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """One step at a time in Python, every channel at once."""
    delta = F.softplus(delta + bias)
    h = torch.zeros(u.shape[0], *A.shape)
    steps = []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        steps.append((h * C[:, t, None, :]).sum(-1))
    return (torch.stack(steps, dim=1) + D * u) * F.silu(z)


def mamba_reference_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """The steps of the reference in Mamba's repository, which the official code falls back on: channel-first, with every
    decay and drive (B, D, L, N) made beforehand."""
    u, delta, z = (x.transpose(1, 2) for x in (u, delta, z))
    B, C = B.transpose(1, 2), C.transpose(1, 2)
    delta = F.softplus(delta + bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h = torch.zeros(u.shape[0], *A.shape)
    steps = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + drive[:, :, t]
        steps.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return ((torch.stack(steps, dim=2) + D[:, None] * u) * F.silu(z)).transpose(1, 2)


def over_another(
    section: str, name: str, patches: int, replaced: Callable[[], AbstractContextManager[None]], budget_s: float
) -> Row:
    """Tiny at so many patches, as it is and while `replaced()` holds."""
    model, features = model_and_input("ssamba", "tiny", patches)

    def other() -> Tensor:
        with replaced():
            found: Tensor = model(features)
        return found

    error = disagreement([other()], [model(features)])
    if error > 1e-3:
        raise SystemExit(f"{name} disagrees with ours by {error:.1e}: no ratio")
    times = medians_s({"ssamba": lambda: model(features), "other": other}, budget_s, repeats=5)
    return {
        "section": section,
        "what": f"tiny, {patches} patches",
        "ssamba_ms": times["ssamba"] * 1e3,
        "other": name,
        "other_ms": times["other"] * 1e3,
        "ratio": times["ssamba"] / times["other"],
    }


@torch.no_grad()
def scans(budget_s: float) -> Iterator[Row]:
    """The same encoder over other people's scans."""
    others: list[tuple[str, Callable[..., Tensor], int]] = [
        ("loop over steps in Python", loop_scan, 512),
        ("Mamba's reference scan", mamba_reference_scan, 512),
        ("Mamba's reference scan", mamba_reference_scan, 2048),
    ]
    pscan = pscan_side()
    if pscan is not None:
        others = [("mambapy's pscan", pscan, 512), ("mambapy's pscan", pscan, 2048), *others]
    for name, scan, patches in others:
        yield over_another("scans", name, patches, partial(replaced_scan, scan), budget_s)


@torch.no_grad()
def blocks(budget_s: float) -> Iterator[Row]:
    """The same encoder made of mamba.py's own blocks, with its parallel scan, with its loop over the scan's steps, and token by token."""
    names: tuple[tuple[How, str], ...] = (
        ("parallel scan", "mamba.py's blocks"),
        ("loop over steps", "mamba.py's blocks, their scan a loop over steps"),
        ("step", "mamba.py's blocks, step by step"),
    )
    for how, name in names:
        theirs = blocks_mixer(how)
        if theirs is None:
            return
        for patches in (512, 2048):
            yield over_another("blocks", name, patches, partial(replaced_mixer, theirs), budget_s)


@torch.no_grad()
def floor(budget_s: float) -> Iterator[Row]:
    """The encoder against its own matrix products alone, plus the scan at 0.20 ns per update and thread."""
    for size, patches in (("tiny", 512), ("tiny", 2048), ("base", 512)):
        model, features = model_and_input("ssamba", size, patches)
        assert isinstance(model, SSAMBAEncoder)
        config, tokens = model.config, patches + 1
        inner, projected = config.inner_dim, config.rank + 2 * config.state_size
        width = config.embed_dim
        shapes = [(width, 2 * inner), *[(inner, projected), (config.rank, inner)] * 2, (inner, width)]
        operands = [(torch.randn(tokens, m), torch.randn(n, m)) for m, n in shapes] * config.depth

        def products(operands: list[tuple[Tensor, Tensor]] = operands) -> None:
            for a, b in operands:
                linear(a, b)

        times = medians_s({"ssamba": lambda m=model, f=features: m(f), "products": products}, budget_s)  # type: ignore[misc]
        updates = tokens * inner * config.state_size * 2 * config.depth
        bound = times["products"] + updates * 0.20e-9 / torch.get_num_threads()
        yield {
            "section": "floor",
            "what": f"{size}, {patches} patches",
            "ssamba_ms": times["ssamba"] * 1e3,
            "other": "matrix products and scan alone",
            "other_ms": bound * 1e3,
            "ratio": times["ssamba"] / bound,
        }


@torch.no_grad()
def ragged(budget_s: float) -> Iterator[Row]:
    """Sixteen clips of 0.3 to 10 s in one list, against sixteen equal clips with as many tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Embedder(create_encoder("tiny"), device="cpu")
    rng = np.random.default_rng(0)
    columns = np.linspace(2, 62, 16).round().astype(int)
    samples = [int((c * 16 - 1) * 160 + 400) for c in columns]
    equal = [int((round(columns.mean()) * 16 - 1) * 160 + 400)] * 16
    lists = {
        name: [rng.normal(size=n).astype(np.float32) * 0.1 for n in lengths]
        for name, lengths in (("ragged", samples), ("equal", equal))
    }
    times = medians_s({name: lambda clips=clips: model.embed(clips) for name, clips in lists.items()}, budget_s)  # type: ignore[misc]
    yield {
        "section": "ragged",
        "what": f"embed, 16 clips of 0.3 to 10 s ({columns.sum() * 8} tokens)",
        "ssamba_ms": times["ragged"] * 1e3,
        "other": f"16 equal clips ({round(columns.mean()) * 16 * 8} tokens)",
        "other_ms": times["equal"] * 1e3,
        "ratio": times["ragged"] / times["equal"],
    }


SECTIONS: dict[str, Callable[[float], Iterator[Row]]] = {
    "inference": inference,
    "memory": memory,
    "training": training,
    "scans": scans,
    "blocks": blocks,
    "floor": floor,
    "ragged": ragged,
}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget-s", type=float, default=12.0, help="seconds for each comparison, about")
    parser.add_argument("--keep-memory", action="store_true", help="freed memory stays in the process, for all sides")
    arguments = parser.parse_args()
    if arguments.keep_memory and not keep_memory():
        parser.error("--keep-memory needs glibc's allocator")
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for name in arguments.sections:
        for row in SECTIONS[name](arguments.budget_s):
            rows.append(row)
            print(json.dumps(row), flush=True)

    def figure(value: float | None, digits: int = 1) -> str:
        return "out of memory" if value is None else f"{value:,.{digits}f}"

    cells = [
        [r["section"], r["what"], figure(r["ssamba_ms"]), r["other"], figure(r["other_ms"]), figure(r["ratio"], 3)]
        for r in rows
    ]
    where = {**environment(), "products": library(), **({"memory": "kept"} if arguments.keep_memory else {})}
    text = table(["section", "what", "ssamba (ms, MB)", "against", "it (ms, MB)", "ratio"], cells)
    heading = ", ".join(f"{key} {value}" for key, value in where.items())
    name = "encoder" if arguments.sections == list(SECTIONS) else "encoder_" + "_".join(arguments.sections)
    name += "_kept" if arguments.keep_memory else ""
    save(name, {"where": where, "rows": rows}, f"{heading}\n\n{text}")


if __name__ == "__main__":
    main()
