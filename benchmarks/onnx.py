"""Measure exported models beside PyTorch with our C++ kernels, on one core, in turns: `python -m benchmarks.onnx`.

Three tables. Speed: the official structure (tiny) over 512 and 2,048 patches, features in, and a 10.24 s clip of the
model that ships, waveform to embedding; clips in parallel threads. Where the time goes: operators of the ONNX graph at
512 patches. Storage: size, time to load, and loss against PyTorch on the demo's recordings for each dtype, and for
onnxruntime's dynamic quantization. Writes benchmarks/results/onnx.json and onnx.md. Needs `pip install
./packages/ssamba-onnx`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import torch

import ssamba
from benchmarks.timing import DEMO_AUDIO, demo_samples, medians_s, save
from ssamba.audio.decode import decode
from ssamba.audio.fbank import log_mel
from ssamba.integrations.onnx import Dtype, export_onnx
from ssamba.integrations.onnx.check import difference, expected, session
from ssamba.integrations.onnx.export import Exporter
from ssamba.studies.harness import environment, table
from ssamba_onnx import OnnxEmbedder

CLIPS = 8


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=6.0, help="time of a comparison")
    budget_s = parser.parse_args().budget_s
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    results: dict[str, Any] = {**environment(), "onnxruntime": onnxruntime.__version__, "cores": cores}
    with tempfile.TemporaryDirectory() as name:
        results["speed"] = [*encoder_rows(budget_s), *clip_rows(Path(name), budget_s, cores)]
    results["operators"] = operator_rows()
    results["storage"] = storage_rows()
    parts = []
    for key in ("speed", "operators", "storage"):
        rows = results[key]
        parts.append(table(list(rows[0]), [[_text(value) for value in row.values()] for row in rows]))
    save("onnx", results, "\n\n".join(parts))


def official() -> ssamba.Embedder:
    """Return the official tiny structure with random weights; its speed is that of any."""
    torch.manual_seed(0)
    return ssamba.Embedder(ssamba.create_encoder("tiny"), device="cpu")


def encoder_rows(budget_s: float) -> list[dict[str, Any]]:
    """Compare encoders, features in."""
    model = official()
    run = session(Exporter(model, "float32", [], None).encoder_file("features"))
    rows = []
    for frames in (1024, 4096):
        features = log_mel(torch.from_numpy(np.resize(demo_samples(), 240 + 160 * frames)))[None]
        inputs = {"features": features.numpy(), "lengths": np.array([frames])}

        def ours(features: torch.Tensor = features) -> Any:
            with torch.inference_mode():
                return model.encoder(features)[:, 1:].mean(1)

        def theirs(inputs: dict[str, Any] = inputs) -> Any:
            return run.run(["clip"], inputs)[0]

        rows.append(_row(f"official tiny, {frames // 2:,} patches", ours, theirs, budget_s, ours().numpy()))
    return rows


def clip_rows(folder: Path, budget_s: float, cores: int) -> list[dict[str, Any]]:
    """Compare waveform to embedding: a clip, and several in threads."""
    model = ssamba.load_model(device="cpu")
    model.follows_load = False
    export_onnx(model, folder, inputs="waveform")
    wave = np.resize(demo_samples(), round(10.24 * 16_000))
    clips = [np.roll(wave, 7919 * i) for i in range(CLIPS)]
    exact = model.embed(wave).clip.numpy()
    one = OnnxEmbedder(folder, threads=1)
    rows = [
        _row("ssamba2-tiny, waveform of 10.24 s", lambda: model.embed(wave), lambda: one.embed(wave), budget_s, exact)
    ]
    for threads in dict.fromkeys((1, cores)):
        several = OnnxEmbedder(folder, threads=threads)
        torch.set_num_threads(threads)
        what = f"the same, {CLIPS} clips, {threads} thread{'s' if threads > 1 else ''}"
        rows.append(_row(what, lambda: model.embed(clips), partial(several.embed, clips), budget_s, exact))
        torch.set_num_threads(1)
    return rows


def _row(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], budget_s: float, exact: Any) -> dict[str, Any]:
    """Return a comparison, of sides that agree."""
    found = theirs()
    if not isinstance(found, np.ndarray):
        found = (found[0] if isinstance(found, list) else found).clip
    assert difference(found, exact) < 1e-4
    medians = medians_s({"ssamba": ours, "onnx": theirs}, budget_s)
    return {
        "what": what,
        "PyTorch with C++ kernels, ms": 1000 * medians["ssamba"],
        "ONNX, ms": 1000 * medians["onnx"],
        "ratio": medians["onnx"] / medians["ssamba"],
    }


def operator_rows() -> list[dict[str, Any]]:
    """Return the operators that take most of the time at 512 patches, by onnxruntime's profiler."""
    content = Exporter(official(), "float32", [], None).encoder_file("features")
    features = np.random.default_rng(0).standard_normal((1, 1024, 128)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        run = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for _ in range(5):
            run.run(["clip"], {"features": features, "lengths": np.array([1024])})
        events = json.loads(Path(run.end_profiling()).read_text("utf-8"))
    totals: dict[str, float] = {}
    inside = ("Mul", "Exp", "MatMul", "Add")
    for event in events:
        name = event.get("args", {}).get("op_name")
        # Operators of the Scan's body count with it.
        if event.get("cat") == "Node" and name and event["name"].endswith("_kernel_time"):
            is_body = name in inside and not event["name"].startswith(name)
            totals[name] = totals.get(name, 0.0) + (0.0 if is_body else event["dur"])
    whole = sum(totals.values())
    best = sorted(totals.items(), key=lambda item: -item[1])[:6]
    return [{"operator": name, "share of the time": duration / whole} for name, duration in best]


def storage_rows() -> list[dict[str, Any]]:
    """Return size, time to load and loss of each dtype, features in, on the demo's recordings."""
    model = ssamba.load_model(device="cpu")
    contents = {dtype: Exporter(model, dtype, [], None).encoder_file("features") for dtype in get_args(Dtype)}
    contents["dynamic quantization"] = dynamic(contents["float32"])
    features = [log_mel(torch.from_numpy(decode(path))) for path in sorted(DEMO_AUDIO.glob("*.flac"))]
    wanted = [expected(model, one, "patch", [])["clip"] for one in features]
    rows = []
    for name, content in contents.items():
        started = time.perf_counter()
        run = session(content)
        load_s = time.perf_counter() - started
        found = [
            run.run(["clip"], {"features": f.numpy()[None], "lengths": np.array([len(f)])})[0][0] for f in features
        ]
        cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(found, wanted, strict=True)]
        batch = np.zeros((len(features), max(map(len, features)), 128), np.float32)
        for row, one in zip(batch, features, strict=True):
            row[: len(one)] = one.numpy()
        together = run.run(["clip"], {"features": batch, "lengths": np.array([len(f) for f in features])})[0]
        rows.append(
            {
                "stored as": name,
                "MB": len(content) / 1e6,
                "load, s": load_s,
                "largest difference": max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True)),
                "1 - cosine": 1 - min(cosines),
                "difference in a batch": float(np.abs(together - np.stack(found)).max()),
            }
        )
    return rows


def dynamic(content: bytes) -> bytes:
    """Return a file with its matrix products by weights quantized when it runs."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "dynamic.onnx"
        model = onnx.load_from_string(content)
        quantize_dynamic(model, target, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
        return target.read_bytes()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


if __name__ == "__main__":
    main()
