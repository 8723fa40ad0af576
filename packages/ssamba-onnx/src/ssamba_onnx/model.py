"""An exported model: its onnxruntime session and what its metadata say.

Shapes: S samples, K time steps, D channels, C classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ssamba_onnx.results import Array
from ssamba_onnx.windows import Geometry

FORMAT = 1
WAVEFORM_FILE, HEAD_FILE = "waveform.onnx", "head.onnx"


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # More threads hardly help the scan; several recordings at once use the cores.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class ExportedModel:
    """A `waveform.onnx` of `ssamba export`, and the `head.onnx` beside it if there is one. Threads may share it."""

    def __init__(self, path: str | os.PathLike[str]):
        """Load a file, or the `waveform.onnx` of a folder.

        Raises:
            ValueError: there is no such file, or it is none of `ssamba export`.
        """
        given = Path(path).expanduser()
        file = given / WAVEFORM_FILE if given.is_dir() else given
        if not file.is_file():
            raise ValueError(f"{file}: no such file. `ssamba export MODEL -o {given}` writes it")
        try:
            self._session = _session(file)
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise ValueError(f"{file} is damaged or no ONNX file: {error}") from None
        raw = self._session.get_modelmeta().custom_metadata_map
        if raw.get("input") != "waveform" or raw.get("format") != str(FORMAT):
            got = f"input {raw['input']!r}, format {raw.get('format')}" if "input" in raw else "no metadata of ssamba"
            raise ValueError(
                f"{file}: expected a waveform.onnx of `ssamba export` (format {FORMAT}), got {got}. Export the model "
                "again, with --input waveform, or install the ssamba-onnx that fits"
            )
        self.metadata: dict[str, Any] = {key: _plain(value) for key, value in raw.items()}
        self.file = file
        self.geometry = Geometry.of(self.metadata["front_end"], self.metadata["encoder"])

    @property
    def classifier(self) -> dict[str, Any] | None:
        """Configuration of the classifier, None if the model has none."""
        config: dict[str, Any] | None = self.metadata["classifier"]
        return config

    def run(self, samples: Array, outputs: Sequence[str]) -> list[Array]:
        """Return outputs of one clip (S,)."""
        inputs = {"waveform": samples[None], "lengths": np.array([len(samples)], np.int64)}
        return [np.asarray(one)[0] for one in self._session.run(list(outputs), inputs)]

    def classify(self, vectors: Array) -> Array:
        """Return the logits (n, C) of vectors (n, D)."""
        return np.asarray(self._head.run(["logits"], {"vectors": vectors.astype(np.float32)})[0])

    @cached_property
    def _head(self) -> onnxruntime.InferenceSession:
        file = self.file.with_name(HEAD_FILE)
        if not file.is_file():
            raise ValueError(
                f"{file}: no such file. Answers for seconds need it: copy it from the folder of the export"
            )
        return _session(file)


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
