"""Facts about models, recordings, tables of embeddings and this installation: what `ssamba info` prints."""

from __future__ import annotations

import json
import platform
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ssamba import __version__
from ssamba.audio.decode import collect_remarks, probe, stream
from ssamba.checkpoint import load_checkpoint
from ssamba.checkpoint.files import CONFIG_FILE
from ssamba.checkpoint.names import MODEL_FOLDER, ROUNDS_FOLDER, STATES_FOLDER, is_model_name
from ssamba.config import ClassifierConfig
from ssamba.cores import thread_settings
from ssamba.files import user_path
from ssamba.library.tables import parts_folder, read_embeddings
from ssamba.ops import available_backends, check_backends
from ssamba.ops.matmul import library
from ssamba.progress import counted, format_duration

Facts = list[tuple[str, str]]

_EXTRAS = {
    "codecs": "av",
    "store": "pyarrow",
    "ray": "ray",
    "hub": "huggingface_hub",
    "hf": "transformers",
    "onnx": "onnxruntime",
    "figures": "matplotlib",
    "train": "tensorboard",
    "eval": "sklearn",
    "datasets": "datasets",
    "wandb": "wandb",
}
_TABLES = (".npz", ".parquet", ".csv")
_LABELS_SHOWN = 40
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".json")


def is_model(text: str) -> bool:
    """Return whether a string that may be a model or recordings stands for a model.

    Models are known names, files of weights, folders of checkpoints and runs, and names that are no path.
    """
    path = user_path(text)
    if is_model_name(text) or path.suffix in _WEIGHTS:
        return True
    if path.is_dir():
        return any((path / inner).exists() for inner in (CONFIG_FILE, MODEL_FOLDER, ROUNDS_FOLDER, STATES_FOLDER))
    return not (path.suffix or path.exists() or any(sign in text for sign in "*?[/\\"))


def is_table(text: str) -> bool:
    """Return whether a string names what may be a table of embeddings: a file, by its ending, or a folder of parts."""
    if user_path(text).suffix in _TABLES:
        return True
    folder = parts_folder(text)
    return folder is not None and bool(folder.parts())


def table_facts(path: str | Path) -> Facts:
    """Return what a table of embeddings holds and how it was made.

    Raises:
        StoreError: the file is missing or was not written by `ssamba embed`.
    """
    table = read_embeddings(path)
    files, (rows, dim) = len(table["path"]), table["embedding"].shape
    shape = f"{counted(rows, 'time step')} of {counted(files, 'file')}" if "time_s" in table else counted(rows, "file")
    facts = [("rows", shape), ("dimension", str(dim)), ("audio", format_duration(float(table["duration_s"].sum())))]
    facts += [(name.replace("_", " "), str(table[name])) for name in ("model", "weights_digest") if name in table]
    settings = json.loads(str(table["settings"])) if "settings" in table else {}
    facts += [("front end", settings["front_end"])] if "front_end" in settings else []
    options = settings.get("options", {})
    return facts + [(name, "default" if value is None else str(value)) for name, value in options.items()]


def installation_facts() -> Facts:
    """Return versions, kernels and extras of this installation."""
    facts = [
        ("ssamba", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("cores", thread_settings()),
        ("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"),
    ]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for status in available_backends(device):
            mark = "used" if status.chosen else "available" if status.available else "not available"
            facts.append((f"scan on {device}", f"{status.name}: {mark} ({status.reason})"))
    facts.append(("float32 matmul on cpu", {"mkl": "PyTorch's own", "onednn": "oneDNN"}[library()]))
    for extra, module in _EXTRAS.items():
        found = find_spec(module)  # without an origin it is a folder of that name that happens to lie here
        there = found is not None and found.origin is not None
        facts.append((f"extra {extra}", "installed" if there else f'not installed: pip install "ssamba[{extra}]"'))
    return facts


def check_facts() -> tuple[Facts, bool]:
    """Return how far every backend on this machine is from exact results, and whether all are within tolerance."""
    facts, sound = [], True
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for check in check_backends(device):
            outcome, dtype = check.outcome, str(check.dtype).removeprefix("torch.")
            verdict = f"FAILED: {outcome.problem}"
            if outcome.worst is not None and outcome.problem is None:
                verdict = f"agrees, off by at most {outcome.worst.error:.1e} ({outcome.worst.allowed:.0e} is allowed)"
            facts.append((f"{check.name} on {device}, {dtype}", f"{verdict}, {1e3 * outcome.duration_s:.0f} ms"))
            sound = sound and outcome.problem is None
    return facts, sound


def model_facts(checkpoint: str | Path | None) -> Facts:
    """Return what a checkpoint holds; arguments and errors as `load_checkpoint`."""
    loaded = load_checkpoint(checkpoint)
    encoder = loaded.config.encoder
    facts = [
        ("model", loaded.report.name),
        ("weights", f"digest {loaded.identity.weights_digest}"),
        *([] if loaded.report.file_sha256 is None else [("file", f"SHA-256 {loaded.report.file_sha256}")]),
        ("kind", loaded.config.kind),
        ("parameters", f"{loaded.report.num_parameters / 1e6:.2f} M"),
        ("encoder", encoder.summary),
        ("patches", f"{encoder.patch_size} with stride {encoder.patch_stride}, {encoder.patch_order}"),
        ("pretraining input", f"{encoder.num_mel_bins} mel bins x {encoder.num_frames} frames"),
        ("front end", loaded.front_end.summary),
    ]
    if loaded.config.classifier is not None:
        classifier = loaded.config.classifier
        facts.append(("classifier", f"{classifier.num_classes} classes, {classifier.pooling} pooling"))
        facts += _label_facts(classifier)
    if loaded.config.base is not None:
        facts.append(("trained from", str(loaded.config.base)))
    if loaded.config.origin is not None:
        facts.append(("origin", loaded.config.origin))
    facts += [("ignored", line) for line in loaded.report.ignored_by_reason()]
    return [*facts, *(("note", note) for note in loaded.report.notes)]


def _label_facts(classifier: ClassifierConfig) -> Facts:
    """Return the labels of a classifier, and what its fine-tuning measured."""
    names = classifier.labels or tuple(map(str, range(classifier.num_classes)))
    thresholds = [f"{one:.2f}" for one in classifier.thresholds or ()]
    shown = [" ".join(pair) for pair in zip(names, thresholds, strict=True)] if thresholds else list(names)
    more = f", and {len(shown) - _LABELS_SHOWN} more" if len(shown) > _LABELS_SHOWN else ""
    what = f"labels, thresholds for a precision of {classifier.wanted_precision:g}" if thresholds else "labels"
    facts = [(what, f"{', '.join(shown[:_LABELS_SHOWN])}{more}")]
    if classifier.background is not None:
        facts.append(("none of the others", classifier.background))
    if classifier.temperature is not None:
        facts.append(("temperature", f"{classifier.temperature:.3g}"))
    if classifier.clip_lengths_s is not None:
        low_s, median_s, high_s = classifier.clip_lengths_s
        facts.append(("training clips", f"{low_s:.3g} to {high_s:.3g} s long (5 to 95 %), median {median_s:.3g} s"))
    return facts


def recording_facts(path: str | Path) -> Facts:
    """Return what an audio file holds, decoded to its end.

    Raises:
        AudioDecodeError: it cannot be read.
    """
    header = probe(path)
    stated_s = header.duration_s if header.claimed_s is None else header.claimed_s
    facts = [
        ("format", f"{header.container} {header.codec}, read by {header.reader}"),
        ("rate", f"{header.sample_rate_hz} Hz, {header.channels} channel{'s' if header.channels != 1 else ''}"),
        ("stated length", "unknown" if stated_s is None else f"{stated_s:.3f} s"),
    ]
    peak, energy, count = 0.0, 0.0, 0
    with collect_remarks() as remarks:
        for block in stream(path, sample_rate_hz=header.sample_rate_hz, damaged="keep"):
            peak = max(peak, float(np.abs(block).max(initial=0)))
            energy += float(np.square(block, dtype=np.float64).sum())
            count += len(block)
    facts.append(("decoded length", f"{count / header.sample_rate_hz:.3f} s, mono"))
    if peak == 0:
        facts.append(("level", "silent"))
    else:
        rms = (energy / count) ** 0.5
        facts.append(("level", f"peak {20 * np.log10(peak):.1f} dBFS, RMS {20 * np.log10(rms):.1f} dBFS"))
    facts.append(("verdict", remarks[0].verdict if remarks else header.verdict))
    return [*facts, *(("problem", entry.reason) for entry in remarks)]
