"""Measure how much embeddings depend on their options: `python -m benchmarks.vectors [-c MODEL]`, on the CPU.

Two tables. Context: the demo's recordings, one after the other (repeated beyond 28 s), embedded in windows and in full
context; cosine of the two clip vectors, and of the two vectors of each time step, also after subtracting each side's
mean, which all time steps have in common. Precision: every recording of the demo in the precisions that embed, against
an encoder in float64; largest distance of a clip vector, as a share of its length. Writes
benchmarks/results/vectors.json and vectors.md.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import cosine_similarity

import ssamba
from benchmarks.timing import DEMO_AUDIO, demo_samples, save
from ssamba.studies.harness import environment, table

SECONDS = (5.0, 10.0, 15.0, 28.0, 60.0, 600.0)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--checkpoint", help="a model; by default the weights that ship")
    model = ssamba.load_model(parser.parse_args().checkpoint, device="cpu")
    results: dict[str, Any] = {**environment(), "model": model.name, "digest": model.digest()}
    results["context"] = [context_row(model, seconds) for seconds in SECONDS]
    results["precision"] = precision_rows(model)
    parts = []
    for name in ("context", "precision"):
        rows = results[name]
        parts.append(table(list(rows[0]), [[_text(value) for value in row.values()] for row in rows]))
    save("vectors", results, f"{model!r}\n\n" + "\n\n".join(parts))


def context_row(model: ssamba.Embedder, seconds: float) -> dict[str, float]:
    """Compare windows with full context on `seconds` of audio."""
    rate_hz = model.front_end.sample_rate_hz
    samples = np.resize(demo_samples(), round(seconds * rate_hz))
    windows, full = model.embed(samples, 16_000), model.embed(samples, 16_000, context="full")
    steps = cosine_similarity(windows.frames, full.frames)
    centered = cosine_similarity(windows.frames - windows.frames.mean(0), full.frames - full.frames.mean(0))
    return {
        "seconds": seconds,
        "cosine of clip vectors": _cosine(windows.clip, full.clip),
        "of time steps, median": float(steps.median()),
        "5th percentile": float(steps.quantile(0.05)),
        "centered, median": float(centered.median()),
        "centered, 5th percentile": float(centered.quantile(0.05)),
    }


def precision_rows(model: ssamba.Embedder) -> list[dict[str, str | float]]:
    """Compare every precision with float64."""
    recordings = sorted(DEMO_AUDIO.glob("*.flac"))

    def converted(kind: str) -> ssamba.Embedder:
        other = copy.deepcopy(model)
        getattr(other.encoder, kind)()
        return other

    sides: dict[str, Callable[[], list[ssamba.Embedding]]] = {
        "fp32": lambda: model.embed(recordings),
        'precision="bf16"': lambda: model.embed(recordings, precision="bf16"),
        "encoder.bfloat16()": lambda: converted("bfloat16").embed(recordings),
        "encoder.half()": lambda: converted("half").embed(recordings),
    }
    exact = [embedding.clip for embedding in converted("double").embed(recordings)]
    rows: list[dict[str, str | float]] = []
    for name, run in sides.items():
        found = [embedding.clip for embedding in run()]
        distances = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        cosines = [_cosine(a, b) for a, b in zip(found, exact, strict=True)]
        rows.append({"precision": name, "largest distance": max(distances), "smallest cosine": min(cosines)})
    return rows


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(cosine_similarity(a.double(), b.double(), dim=0))


def _text(value: str | float) -> str:
    if isinstance(value, str) or value >= 5:
        return f"{value}"
    return f"{value:.2g}" if value < 0.1 else f"{value:.4f}"


if __name__ == "__main__":
    main()
