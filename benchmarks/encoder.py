"""Measure the encoder on a CPU against other implementations of its parts: `python -m benchmarks.encoder`.

Sections (`--sections` selects): `training` (forward and backward at 512 patches against the own forward pass), `scans`
(the same encoder with its scan replaced by mambapy's pscan and by loops over steps in Python), `blocks` (the same
encoder made of mamba.py's own blocks), `floor` (against its matrix products alone plus the scan at 0.20 ns per update),
`ragged` (16 clips of 0.3 to 10 s against equal clips with the same total). Float32, same threads, warm, sides in turns,
medians. Time and memory against SSAST are measured by `ssamba bench efficiency`. Writes
benchmarks/results/encoder*.json and .md.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.scan import pscan_side
from benchmarks.timing import inline, medians_s, relative_error, retain_freed_memory, save
from ssamba.embedder import Embedder
from ssamba.model import SSAMBAEncoder, create_encoder, encoder
from ssamba.ops import DirectionWeights
from ssamba.ops.matmul import library, linear
from ssamba.ops.mixer import compose
from ssamba.studies.harness import environment, table

Row = dict[str, Any]
Variant = Literal["parallel scan", "loop over steps", "step"]


def model_and_input(size: Any, patches: int) -> tuple[SSAMBAEncoder, Tensor]:
    """Return an encoder in evaluation mode and random features (1, T, 128) of `patches` patches, a multiple of 8."""
    torch.manual_seed(0)
    features = torch.randn(1, patches * 2, 128)
    model = create_encoder(size).eval()
    assert isinstance(model, SSAMBAEncoder)
    return model, features


def row(section: str, what: str, times_s: dict[str, float], side: str, other: str) -> Row:
    """Return a row that compares the time of `ssamba` with that of another side, called `other`."""
    return {
        "section": section,
        "what": what,
        "ssamba_ms": times_s["ssamba"] * 1e3,
        "other": other,
        "other_ms": times_s[side] * 1e3,
        "ratio": times_s["ssamba"] / times_s[side],
    }


def training(budget_s: float) -> Iterator[Row]:
    """Compare forward and backward of tiny at 512 patches with its own forward pass."""
    model, features = model_and_input("tiny", 512)
    model.train()
    inference_model, _ = model_and_input("tiny", 512)

    def forward() -> None:
        with torch.no_grad():
            inference_model(features)

    sides: dict[str, Callable[[], object]] = {
        "ssamba": lambda: model(features).square().mean().backward(),
        "saving": lambda: model(features),
        "forward": forward,
    }
    times = medians_s(sides, budget_s)
    for side, other in (("saving", "own forward, saving for backward"), ("forward", "own forward alone")):
        yield row("training", "tiny, 512 patches, forward and backward", times, side, other)


@contextmanager
def replaced_mixer(mixer: Callable[..., Tensor]) -> Iterator[None]:
    """Make the encoder use another mixer."""
    with patch.object(encoder, "bimamba_mixer", mixer), patch.object(encoder, "can_mix_into", lambda stream: False):
        yield


@contextmanager
def replaced_scan(scan: Callable[..., Tensor]) -> Iterator[None]:
    """Make the encoder use another scan; the rest of the mixer is composed of separate operators."""

    def adapted(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor, **options: Any) -> Tensor:
        inputs = [u, delta, A, B, C, *rest]
        if options["direction"] == "reverse":
            inputs = [x.flip(1) if x.ndim == 3 else x for x in inputs]
            return scan(*inputs).flip(1)
        return scan(*inputs)

    with replaced_mixer(partial(compose, scan=adapted)):
        yield


def loop_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """Scan one step at a time in Python, all channels at once."""
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
    """Scan as the reference in Mamba's repository does, which the official code falls back to.

    It is channel-first and computes every decay and drive (B, D, L, N) in advance.
    """
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


def mambapy_mixer(variant: Variant) -> Callable[..., Tensor] | None:
    """Return `bimamba_mixer` made of the blocks of mamba.py (`mambapy` on PyPI); None if it is not installed.

    Its convolution, projections and scan are used. Its blocks know one direction, so two of them share the projections
    into and out of the mixer, as in SSAMBA, and the second receives the flipped sequence.

    Args:
        variant: its parallel scan; its loop over the steps of the scan; or each token through the whole block, by
        `step`.
    """
    try:
        from mambapy.mamba import MambaBlock, MambaConfig
    except ImportError:
        return None
    blocks: dict[int, tuple[Any, DirectionWeights]] = {}

    def block_of(weights: DirectionWeights, in_weight: Tensor, out_weight: Tensor) -> Any:
        if id(weights.A_log) not in blocks:
            inner, state = weights.A_log.shape
            config = MambaConfig(
                d_model=inner // 2,
                n_layers=1,
                dt_rank=weights.dt_weight.shape[1],
                d_state=state,
                d_conv=weights.conv_weight.shape[1],
                pscan=variant == "parallel scan",
            )
            block = MambaBlock(config)
            for module, name, value in (
                (block.conv1d, "weight", weights.conv_weight[:, None]),
                (block.conv1d, "bias", weights.conv_bias),
                (block.x_proj, "weight", weights.x_weight),
                (block.dt_proj, "weight", weights.dt_weight),
                (block.dt_proj, "bias", weights.dt_bias),
                (block, "A_log", weights.A_log),
                (block, "D", weights.D),
                (block.in_proj, "weight", in_weight),
                (block.out_proj, "weight", out_weight),
            ):
                setattr(module, name, nn.Parameter(value.detach()))
            blocks[id(weights.A_log)] = block, weights  # holds the weights, so that no other tensor gets this id
        return blocks[id(weights.A_log)][0]

    def by_step(block: Any, hidden: Tensor) -> Tensor:
        cache: Any = None, hidden.new_zeros(len(hidden), block.config.d_inner, block.config.d_conv - 1)
        outputs = []
        for token in hidden.unbind(1):
            output, cache = block.step(token, cache)
            outputs.append(output)
        return torch.stack(outputs, dim=1)

    def one_direction(x: Tensor, block: Any, flipped: bool) -> Tensor:
        x = x.flip(1) if flipped else x
        y: Tensor
        if variant == "step":
            y = by_step(block, x)
        else:
            y = block.ssm(F.silu(block.conv1d(x.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2)), None)
        return y.flip(1) if flipped else y

    def mixer(
        hidden: Tensor,
        in_weight: Tensor,
        out_weight: Tensor,
        forward: DirectionWeights,
        reverse: DirectionWeights,
        *,
        lengths: Tensor | None = None,
        reversed_time: bool = False,
    ) -> Tensor:
        if lengths is not None:
            raise ValueError("mamba.py's blocks do not support lengths")
        first, second = (block_of(weights, in_weight, out_weight) for weights in (forward, reverse))
        if variant == "step":  # here the block includes projections and gate
            return (
                one_direction(hidden, first, reversed_time) + one_direction(hidden, second, not reversed_time)
            ) * 0.5
        x, z = torch.chunk(F.linear(hidden, in_weight), 2, dim=-1)
        y = one_direction(x, first, reversed_time) + one_direction(x, second, not reversed_time)
        return F.linear(y * F.silu(z), out_weight * 0.5)

    return mixer


def compare_with(
    section: str, name: str, patches: int, replaced: Callable[[], AbstractContextManager[None]], budget_s: float
) -> Row:
    """Compare tiny with itself inside the context `replaced()`; exit if the results differ."""
    model, features = model_and_input("tiny", patches)

    def other() -> Tensor:
        with replaced():
            found: Tensor = model(features)
        return found

    error = relative_error([other()], [model(features)])
    if error > 1e-3:
        raise SystemExit(f"{name} differs from ssamba by {error:.1e}: no ratio")
    times = medians_s({"ssamba": lambda: model(features), "other": other}, budget_s, repeats=5)
    return row(section, f"tiny, {patches} patches", times, "other", name)


@torch.no_grad()
def scans(budget_s: float) -> Iterator[Row]:
    """Compare with the same encoder over other implementations of the scan."""
    others: list[tuple[str, Callable[..., Tensor], int]] = [
        ("loop over steps in Python", loop_scan, 512),
        ("Mamba's reference scan", mamba_reference_scan, 512),
        ("Mamba's reference scan", mamba_reference_scan, 2048),
    ]
    pscan = pscan_side()
    if pscan is not None:
        others = [("mambapy's pscan", pscan, 512), ("mambapy's pscan", pscan, 2048), *others]
    for name, scan, patches in others:
        yield compare_with("scans", name, patches, partial(replaced_scan, scan), budget_s)


@torch.no_grad()
def blocks(budget_s: float) -> Iterator[Row]:
    """Compare with the same encoder made of mamba.py's own blocks."""
    names: tuple[tuple[Variant, str], ...] = (
        ("parallel scan", "mamba.py's blocks"),
        ("loop over steps", "mamba.py's blocks, their scan a loop over steps"),
        ("step", "mamba.py's blocks, step by step"),
    )
    for variant, name in names:
        mixer = mambapy_mixer(variant)
        if mixer is None:
            return
        for patches in (512, 2048):
            yield compare_with("blocks", name, patches, partial(replaced_mixer, mixer), budget_s)


@torch.no_grad()
def floor(budget_s: float) -> Iterator[Row]:
    """Compare with the encoder's matrix products alone, plus the scan at 0.20 ns per update and thread."""
    for size, patches in (("tiny", 512), ("tiny", 2048), ("base", 512)):
        model, features = model_and_input(size, patches)
        config, tokens = model.config, patches + 1
        inner, projected = config.inner_dim, config.dt_rank + 2 * config.state_size
        width = config.embed_dim
        shapes = [(width, 2 * inner), *[(inner, projected), (config.dt_rank, inner)] * 2, (inner, width)]
        operands = [(torch.randn(tokens, m), torch.randn(n, m)) for m, n in shapes] * config.depth

        def products(operands: list[tuple[Tensor, Tensor]] = operands) -> None:
            for a, b in operands:
                linear(a, b)

        times = medians_s({"ssamba": lambda m=model, f=features: m(f), "floor": products}, budget_s)  # type: ignore[misc]
        updates = tokens * inner * config.state_size * 2 * config.depth
        times["floor"] += updates * 0.20e-9 / torch.get_num_threads()
        yield row("floor", f"{size}, {patches} patches", times, "floor", "matrix products and scan alone")


@torch.no_grad()
def ragged(budget_s: float) -> Iterator[Row]:
    """Compare 16 clips of 0.3 to 10 s in one list with 16 equal clips with as many tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Embedder(create_encoder("tiny"), device="cpu")
    rng = np.random.default_rng(0)
    columns = np.linspace(2, 62, 16).round().astype(int)
    samples = [int((c * 16 - 1) * 160 + 400) for c in columns]
    equal = [int((round(columns.mean()) * 16 - 1) * 160 + 400)] * 16
    lists = {
        name: [rng.normal(size=n).astype(np.float32) * 0.1 for n in lengths]
        for name, lengths in (("ssamba", samples), ("equal", equal))
    }
    times = medians_s({name: lambda clips=clips: model.embed(clips) for name, clips in lists.items()}, budget_s)  # type: ignore[misc]
    what = f"embed, 16 clips of 0.3 to 10 s ({columns.sum() * 8} tokens)"
    yield row("ragged", what, times, "equal", f"16 equal clips ({round(columns.mean()) * 16 * 8} tokens)")


SECTIONS: dict[str, Callable[[float], Iterator[Row]]] = {
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
    parser.add_argument("--budget-s", type=float, default=12.0, help="approximate time for each comparison")
    parser.add_argument("--keep-memory", action="store_true", help="make the allocator retain freed memory")
    arguments = parser.parse_args()
    if arguments.keep_memory and not retain_freed_memory():
        parser.error("--keep-memory needs glibc's allocator")
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for name in arguments.sections:
        for found in SECTIONS[name](arguments.budget_s):
            rows.append(found)
            print(json.dumps(found), flush=True)
    cells = [
        [r["section"], r["what"], f"{r['ssamba_ms']:,.1f}", r["other"], f"{r['other_ms']:,.1f}", f"{r['ratio']:.3f}"]
        for r in rows
    ]
    where = {**environment(), "products": library(), **({"memory": "kept"} if arguments.keep_memory else {})}
    text = table(["section", "input", "ssamba, ms", "against", "ms", "ratio"], cells)
    name = "encoder" if arguments.sections == list(SECTIONS) else "encoder_" + "_".join(arguments.sections)
    name += "_kept" if arguments.keep_memory else ""
    save(name, {"where": where, "rows": rows}, f"{inline(where)}\n\n{text}")


if __name__ == "__main__":
    main()
