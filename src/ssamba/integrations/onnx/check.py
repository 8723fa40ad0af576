"""Compare exported files with PyTorch, on recordings that come with ssamba and on the user's.

| what | compared with | allowed, float32 |
|---|---|---|
| features in, and the head: every output | PyTorch | 1e-5 |
| waveform in: `clip`, logits | PyTorch | 1e-4 |
| waveform in: log-mel features | float64 | 5e-4, or what PyTorch's float32 differs by |
| a batch of clips | each clip alone | 1e-5; waveform in 1e-4 |

Differences are the largest of any value, divided by the largest value where that is above 1. Files of float16 and int8
are compared by the cosine of `clip`, which must reach .999 and .99; what their logits differ by is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch

from ssamba.audio.decode import decode
from ssamba.audio.fbank import log_mel
from ssamba.embedder import Embedder
from ssamba.embedding import Padding
from ssamba.errors import SsambaError
from ssamba.integrations.onnx.graph import Array
from ssamba.model.patches import fill_last_patch
from ssamba.model.readouts import parts, time_steps

CLIPS = Path(__file__).parent / "clips"
FEATURES_IN, WAVEFORM_IN, LOG_MEL = 1e-5, 1e-4, 5e-4
COSINES = {"float16": 0.999, "int8": 0.99}
_BATCH = 5
"""Recordings of a ragged batch."""


class ExportError(SsambaError, ValueError):
    """An exported model gives other results than PyTorch; the message says which, and by how much."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of an output from what it is compared with, over all recordings."""

    file: str
    output: str
    largest: float
    allowed: float
    recording: str
    """Where the difference is largest."""
    kind: Literal["difference", "1 - cosine"] = "difference"

    def __str__(self) -> str:
        text = f"{self.file} {self.output}: {self.kind} {self.largest:.1e}"
        return text + (f" (allowed {self.allowed:g})" if np.isfinite(self.allowed) else "")

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {key: value for key, value in asdict(self).items() if value != float("inf")}


def session(content: bytes) -> onnxruntime.InferenceSession:
    """Return a session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class _Largest:
    """Collects differences, and keeps the largest of each file and output."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str], Difference] = {}

    def add(self, file: str, output: str, value: float, allowed: float, recording: str, kind: Any) -> None:
        before = self.found.get((file, output, kind))
        # Of a front end the allowed difference depends on the recording. NaN counts as largest.
        if before is None or not value - min(allowed, 1) <= before.largest - min(before.allowed, 1):
            self.found[file, output, kind] = Difference(file, output, value, allowed, recording, kind)


def check_files(
    embedder: Embedder, files: Mapping[str, bytes], recordings: Sequence[Path], padding: Padding, dtype: str
) -> list[Difference]:
    """Compare files with PyTorch on ssamba's recordings and `recordings`, at most a window of each.

    Returns:
        The largest difference of each output.

    Raises:
        ExportError: a difference is larger than allowed.
        AudioDecodeError: a recording cannot be read.
    """
    rate_hz = embedder.front_end.sample_rate_hz
    own = sorted(CLIPS.glob("*.flac"))
    waves = {
        str(path) if path not in own else path.name: decode(
            path, sample_rate_hz=rate_hz, duration_s=embedder.window_s if path not in own else None
        )
        for path in [*own, *recordings]
    }
    largest = _Largest()
    for name in ("features.onnx", "waveform.onnx"):
        if name in files:
            _compare(name, session(files[name]), embedder, waves, padding, dtype, largest)
    if "head.onnx" in files:
        _compare_head(session(files["head.onnx"]), embedder, dtype, largest)
    found = list(largest.found.values())
    for one in found:
        if not one.largest <= one.allowed:
            raise ExportError(
                f"{one.file}: output {one.output} differs from PyTorch by {one.largest:.2g} on {one.recording}, where "
                f"{one.allowed:.2g} is allowed ({one.kind}); nothing was written. Please report it with the "
                "configuration of the model"
            )
    return found


def _compare(
    file: str,
    run: onnxruntime.InferenceSession,
    embedder: Embedder,
    waves: Mapping[str, Array],
    padding: Padding,
    dtype: str,
    largest: _Largest,
) -> None:
    """Compare one file on every recording, alone and in batches."""
    names = [one.name for one in run.get_outputs()]
    batch: list[tuple[str, Array, dict[str, Array]]] = []
    is_waveform = file == "waveform.onnx"
    for number, (recording, wave) in enumerate(waves.items(), 1):
        wave = wave if len(wave) >= embedder.front_end.frame_samples else np.pad(wave, (0, 4000))
        features = log_mel(torch.from_numpy(wave), config=embedder.front_end)
        inputs = wave if is_waveform else features.numpy()
        outputs = _run(run, [inputs], names)
        for name, wanted in expected(embedder, features, padding, names).items():
            got = outputs[name][0]
            if dtype == "float32":
                allowed = WAVEFORM_IN if is_waveform and name != "columns" else FEATURES_IN
                if is_waveform and name not in ("clip", "logits", "probabilities", "columns"):
                    allowed = float("inf")  # single frames follow the rounding of quiet bins
                largest.add(file, name, difference(got, wanted), allowed, recording, "difference")
            elif name in ("clip", "logits", "probabilities"):
                largest.add(file, name, difference(got, wanted), float("inf"), recording, "difference")
            if dtype != "float32" and name == "clip":
                cosine = float(got @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted))
                largest.add(file, "clip", 1 - cosine, 1 - COSINES[dtype], recording, "1 - cosine")
        if is_waveform:
            exact = log_mel(torch.from_numpy(wave).double(), config=embedder.front_end).numpy()
            allowed = max(LOG_MEL, float(np.abs(features.numpy() - exact).max()))
            got = outputs["features"][0]
            largest.add(file, "features", float(np.abs(got - exact).max()), allowed, recording, "difference")
        batch.append((recording, inputs, {name: outputs[name][0] for name in ("clip", "parts")}))
        if len(batch) == _BATCH or number == len(waves):
            together = _run(run, [inputs for _, inputs, _ in batch], ("clip", "parts"))
            for row, (one, _, alone) in enumerate(batch):
                for name, wanted in alone.items():
                    value = difference(together[name][row], wanted)
                    allowed = WAVEFORM_IN if is_waveform else FEATURES_IN
                    largest.add(file, f"{name}, in a batch", value, allowed, one, "difference")
            batch = []


@torch.no_grad()
def _compare_head(run: onnxruntime.InferenceSession, embedder: Embedder, dtype: str, largest: _Largest) -> None:
    """Compare the head alone, on random vectors."""
    assert embedder.classifier is not None
    vectors = np.random.default_rng(0).standard_normal((64, embedder.dim), np.float32)
    wanted = embedder.classifier.classify(torch.from_numpy(vectors)).numpy()
    value = difference(run.run(["logits"], {"vectors": vectors})[0], wanted)
    allowed = FEATURES_IN if dtype == "float32" else float("inf")
    largest.add("head.onnx", "logits", value, allowed, "random vectors", "difference")


def difference(got: Array, wanted: Array) -> float:
    """Return the largest difference, relative to the largest value where that is above 1."""
    if got.shape != wanted.shape:
        return float("inf")
    return float(np.abs(got - wanted).max(initial=0) / max(1.0, np.abs(wanted).max(initial=0)))


def _run(run: onnxruntime.InferenceSession, clips: Sequence[Array], names: Sequence[str]) -> dict[str, Array]:
    """Run a batch of clips, padded with NaN, which must not matter."""
    batch = np.full((len(clips), max(map(len, clips)), *clips[0].shape[1:]), np.nan, np.float32)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    lengths = np.array([len(clip) for clip in clips])
    first = run.get_inputs()[0].name
    return dict(zip(names, run.run(list(names), {first: batch, "lengths": lengths}), strict=True))


@torch.no_grad()
def expected(embedder: Embedder, features: torch.Tensor, padding: Padding, names: Sequence[str]) -> dict[str, Array]:
    """Return what PyTorch makes of a clip's features (T, M), for outputs of the graph."""
    encoder, front_end, config = embedder.encoder, embedder.front_end, embedder.encoder.config
    valid = torch.tensor([len(features)])
    filled = fill_last_patch(features, config, front_end.silent_feature)
    if padding == "official" and config.columns(len(filled)) < config.columns(config.num_frames):
        missing = config.frames_spanned(config.columns(config.num_frames)) - len(filled)
        filled = torch.nn.functional.pad(filled, (0, 0, 0, missing), value=front_end.silent_feature)
    states = encoder.hidden_states(encoder.embed_patches(filled[None]))
    tokens = states[-1]
    readout = parts(filled[None], tokens, config, front_end, valid_frames=valid)[0]
    found = {
        "clip": readout[: embedder.dim],
        "parts": readout,
        "frames": time_steps(tokens, config)[0],
        "columns": torch.tensor(config.columns(len(filled))),
        "tokens": tokens[0],
        **{name: states[int(name.removeprefix("hidden_"))][0] for name in names if name.startswith("hidden_")},
    }
    if (classifier := embedder.classifier) is not None:
        if classifier.config.label_frames is None:
            logits = classifier.classify(classifier.pool(tokens))[0]
        else:
            logits = classifier.classify(classifier.pool_spans(tokens, len(filled)))[0]
        found |= {"logits": logits, "probabilities": classifier.probabilities(logits)}
    return {name: value.numpy() for name, value in found.items()}
