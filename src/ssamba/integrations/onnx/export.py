"""Write a model as ONNX files that were compared with PyTorch.

    waveform.onnx    waveform (B, S), lengths (B,) in samples -> clip, parts, frames, ..., logits
    features.onnx    features (B, T, M), lengths (B,) in frames -> the same
    head.onnx        vectors (N, D) -> logits and probabilities, of a classifier that reads the mean
    export.json      what the files' metadata say, and the measured differences

Shapes: B clips, S samples, T frames, M mel bins, K time steps, P prefix tokens, L patch tokens, D channels, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import onnx
import torch

from ssamba import __version__
from ssamba.audio.files import find_audio
from ssamba.checkpoint import available_models
from ssamba.checkpoint.files import read_json, write_json
from ssamba.config import FrontEndConfig
from ssamba.config.base import settings_differences
from ssamba.embedder import Embedder, load_model
from ssamba.embedding import Padding
from ssamba.errors import ConfigError, OtherSettingsError
from ssamba.files import output_folder, write_bytes
from ssamba.integrations.onnx.check import Difference, check_files
from ssamba.integrations.onnx.graph import Dtype, Graph
from ssamba.integrations.onnx.stages import add_classifier, add_encoder, add_front_end, add_head, add_readouts

Inputs: TypeAlias = Literal["both", "waveform", "features"]

REPORT_FILE = "export.json"
HEAD_FILE = "head.onnx"
_FILES = ("waveform.onnx", "features.onnx", HEAD_FILE)
FORMAT = 1
"""Version of the files' inputs, outputs and metadata."""
_SETTINGS = ("kind", "model", "weights_digest", "dtype", "padding", "layers", "front_end")
_DYNAMIC = "batch"


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written."""

    path: Path
    size_bytes: int


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far its results are from PyTorch's."""

    folder: Path
    files: list[ExportedFile]
    differences: list[Difference]

    def __str__(self) -> str:
        rows = [f"{one.path}  {one.size_bytes / 1e6:.1f} MB" for one in self.files]
        return "\n".join([*rows, *map(str, self.differences)])


def export_onnx(
    model: str | Path | Embedder | None,
    output: str | Path,
    *,
    inputs: Inputs = "both",
    dtype: Dtype = "float32",
    layers: Sequence[int] = (),
    padding: Padding | None = None,
    front_end: FrontEndConfig | str | None = None,
    check: str | Path | Iterable[str | Path] = (),
    overwrite: bool = False,
) -> ExportReport:
    """Write a model as ONNX files, after comparing them with PyTorch on recordings.

    Args:
        model: a model, or what `ssamba.load_model` takes.
        output: the folder to write.
        inputs: `waveform` writes `waveform.onnx`, with the front end in the graph; `features` writes `features.onnx`.
        dtype: how weights are stored: `float32`, `float16` (half the size), or `int8` (a quarter; a scale for each
            output of a matrix). All compute in float32, equally fast.
        layers: hidden states to return besides, as outputs `hidden_K`: 0 is the input of the first block, k leaves
            block pair k, negative numbers count from the last.
        padding: `patch`, or `official` to fill shorter clips to the pretraining length with silence; None means as the
            classifier was trained, or `patch`.
        front_end: as for `ssamba.load_model`.
        check: files, folders and patterns of recordings to compare on, besides three that come with ssamba.
        overwrite: replace the export of another model, or with other settings.

    Raises:
        ConfigError: an argument is wrong.
        CheckpointError: the model cannot be loaded.
        OtherSettingsError: the folder holds an export of another model or with other settings.
        ExportError: a result differs from PyTorch's by more than `ssamba.integrations.onnx.check` allows. Nothing is
            written.
    """
    folder = output_folder(output)
    _check_choice("inputs", inputs, Inputs)
    recordings = list(find_audio(check)) if check else []
    exporter = Exporter.of(model, dtype, layers, padding, front_end)
    embedder = exporter.embedder
    common = {"kind": "ONNX files", **exporter.metadata()}
    replaced = check_folder(folder, common, overwrite)

    kinds = ["waveform", "features"] if inputs == "both" else [inputs]
    files = {f"{kind}.onnx": exporter.encoder_file(kind) for kind in kinds}
    if embedder.classifier is not None and embedder.classifier.config.pooling == "mean":
        files[HEAD_FILE] = exporter.head_file()
    differences = check_files(embedder, files, recordings, exporter.padding, dtype)

    written = []
    for name, content in files.items():
        write_bytes(folder / name, content)
        written.append(ExportedFile(folder / name, len(content)))
    remove_files(folder, replaced, files)
    report = {
        "files": [name for name in _FILES if (folder / name).exists()],
        **common,
        "differences": [one.as_json() for one in differences],
    }
    write_json(folder / REPORT_FILE, report)
    return ExportReport(folder, written, differences)


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}")


def check_folder(folder: Path, settings: dict[str, Any], overwrite: bool) -> list[str]:
    """Return the files of an export of another model, or with other settings, that is to be replaced.

    Raises:
        OtherSettingsError: it holds one, and `overwrite` was not given.
    """
    path = folder / REPORT_FILE
    if not path.exists():
        return []
    report = read_json(path)
    before = {key: value for key, value in report.items() if key in _SETTINGS}
    now = {key: value for key, value in settings.items() if key in _SETTINGS}
    different = settings_differences(before, now)
    if different and not overwrite:
        raise OtherSettingsError(
            f"{folder} holds another export: {'; '.join(different)}. Choose another folder, or --overwrite"
        )
    return list(report.get("files", ())) if different else []


def remove_files(folder: Path, replaced: Iterable[str], written: Collection[str]) -> None:
    """Remove the files of the export that was replaced, other than those written again, and folders left empty."""
    for name in set(replaced).difference(written):
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
            if path.parent != folder and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()


class Exporter:
    """Builds the files of a model."""

    def __init__(self, embedder: Embedder, dtype: Dtype, layers: Sequence[int], padding: Padding | None):
        """Choose what is exported; arguments as `export_onnx`."""
        self.embedder, self.dtype = embedder, dtype
        classifier, encoder = embedder.classifier, embedder.encoder
        self.padding: Padding = padding or (classifier.config.padding if classifier else "patch")
        self.layers = sorted({encoder.layer_index(layer) for layer in layers})

    @classmethod
    def of(
        cls,
        model: str | Path | Embedder | None,
        dtype: Dtype,
        layers: Sequence[int],
        padding: Padding | None,
        front_end: FrontEndConfig | str | None,
    ) -> Exporter:
        """Check the arguments and load the model; they and the errors are those of `export_onnx`."""
        _check_choice("dtype", dtype, Dtype)
        if padding not in (None, "patch", "official"):
            raise ConfigError(f"padding must be 'patch' or 'official'; got {padding!r}")
        if not isinstance(model, Embedder):
            model = load_model(model, device="cpu", front_end=front_end)
        elif front_end is not None:
            raise ConfigError("front_end is for a model that is loaded here: omit it, or give the model's name")
        return cls(model, dtype, layers, padding)

    def encoder_file(self, kind: str) -> bytes:
        """Return the file of the encoder, with its classifier if it has one, for input `kind`."""
        embedder, encoder, front_end = self.embedder, self.embedder.encoder, self.embedder.front_end
        dim, bins = embedder.dim, front_end.num_mel_bins
        g = Graph(self.dtype)
        if kind == "waveform":
            given = g.input("waveform", "float32", [_DYNAMIC, "samples"])
            features, frames = add_front_end(g, given, g.input("lengths", "int64", [_DYNAMIC]), front_end)
        else:
            given = g.input("features", "float32", [_DYNAMIC, "input_frames", bins])
            frames = g.input("lengths", "int64", [_DYNAMIC])
            features = g("Transpose", given, perm=[0, 2, 1])
        with torch.no_grad():
            least = encoder.config.num_frames if self.padding == "official" else 0
            encoded = add_encoder(g, encoder, features, frames, least, front_end)
            clip, parts = add_readouts(g, encoded, dim)
            g.output("clip", clip, "float32", [_DYNAMIC, dim])
            g.output("parts", parts, "float32", [_DYNAMIC, 4 * dim])
            g.output("frames", encoded.frames, "float32", [_DYNAMIC, "steps", dim])
            g.output("columns", encoded.columns, "int64", [_DYNAMIC])
            if embedder.classifier is not None:
                count = embedder.classifier.config.num_classes
                labels = [] if embedder.classifier.config.label_frames is None else ["labels"]
                both = add_classifier(g, embedder.classifier, encoded, clip)
                for name, value in zip(("logits", "probabilities"), both, strict=True):
                    g.output(name, value, "float32", [_DYNAMIC, *labels, count])
        for layer in self.layers:
            g.output(f"hidden_{layer}", encoded.states[layer], "float32", [_DYNAMIC, "tokens", dim])
        g.output("tokens", encoded.states[-1], "float32", [_DYNAMIC, "tokens", dim])
        if kind == "waveform":
            by_time = g("Transpose", features, perm=[0, 2, 1])
            g.output("features", by_time, "float32", [_DYNAMIC, "input_frames", bins])
        return self._finished(g, kind)

    def head_file(self) -> bytes:
        """Return the file of the classifier's head alone."""
        classifier, g = self.embedder.classifier, Graph(self.dtype)
        assert classifier is not None
        both = add_head(g, classifier, g.input("vectors", "float32", ["vectors", self.embedder.dim]))
        for name, value in zip(("logits", "probabilities"), both, strict=True):
            g.output(name, value, "float32", ["vectors", classifier.config.num_classes])
        return self._finished(g, "vectors")

    def metadata(self) -> dict[str, Any]:
        """Return what every file of the model says about itself."""
        embedder, config = self.embedder, self.embedder.config
        identity, encoder, front_end = embedder.identity, embedder.encoder.config, embedder.front_end
        known = {model.name: model.license for model in available_models()}
        license = known.get(identity.name, "not stated")
        if identity.name not in known and config.base is not None:
            license += f"; trained from {config.base.name}, license {known.get(config.base.name, 'not stated')}"
        head = embedder.classifier.config if embedder.classifier else None
        return {
            "format": FORMAT,
            "ssamba_version": __version__,
            "model": identity.name,
            "weights_digest": identity.weights_digest,
            "license": license,
            "origin": config.origin or "not stated",
            "dtype": self.dtype,
            "padding": self.padding,
            "layers": self.layers,
            "sample_rate_hz": front_end.sample_rate_hz,
            "dim": embedder.dim,
            "window_s": embedder.window_s,
            "front_end": {
                **front_end.model_dump(mode="json"),
                "frame_samples": front_end.frame_samples,
                "shift_samples": front_end.shift_samples,
            },
            "encoder": {"family": encoder.family, **encoder.model_dump(mode="json")},
            "labels": None if head is None else head.labels or tuple(map(str, range(head.num_classes))),
            "classifier": None if head is None else head.model_dump(mode="json", exclude={"labels"}),
        }

    def _finished(self, g: Graph, kind: str) -> bytes:
        model = g.model(f"ssamba_{kind}")
        values = {**self.metadata(), "input": kind}
        onnx.helper.set_model_props(
            model,
            {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()},
        )
        content: bytes = model.SerializeToString()
        return content
