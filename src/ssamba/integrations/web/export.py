"""Write a model as a static page: index.html, a style sheet, scripts, and a folder of data that scripts hand over.

Browsers do not let a page that was opened from a disk read files, but let it load scripts. So everything is a script
that calls `ssambaData(name, value)`, with bytes in base64, and the page works from a disk as it does from a server.

    data/page.js        names, front end, labels, and the sounds with their place in the space of similarity
    data/runtime.js     onnxruntime-web
    data/model.js       waveform.onnx
    data/sound_K.js     sound K as FLAC

Shapes: N sounds, D channels, K dimensions of the space of similarity, T frames, M mel bins.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from ssamba import __version__
from ssamba.audio.decode import decode, probe
from ssamba.audio.fbank import hertz_ticks, log_mel
from ssamba.audio.files import find_audio
from ssamba.checkpoint.files import write_json
from ssamba.config import FrontEndConfig
from ssamba.embedder import Embedder
from ssamba.embedding import Padding, PredictOptions
from ssamba.errors import ConfigError
from ssamba.files import json_text, output_folder, write_bytes
from ssamba.integrations.onnx.check import Difference, check_files
from ssamba.integrations.onnx.export import REPORT_FILE, Exporter, check_folder, remove_files
from ssamba.integrations.onnx.graph import Dtype
from ssamba.integrations.web.runtime import NAME, Runtime, read_runtime
from ssamba.similarity import fit_similarity

Array = np.ndarray[Any, Any]

SOUNDS = Path(__file__).parent / "sounds"
"""Fourteen CC0 recordings, those of the demo."""
MAX_SOUNDS = 1000
_PAGE = Path(__file__).parent / "page"
_THUMBNAIL = (48, 120)
"""Rows and at most columns of the picture of a sound."""
_MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated \
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the \
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit \
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the \
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE \
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR \
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR \
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True)
class WebReport:
    """What was written, and how far its model's results are from PyTorch's."""

    folder: Path
    size_bytes: int
    sounds: int
    differences: list[Difference]

    def __str__(self) -> str:
        size = f"{self.size_bytes / 1e6:.1f} MB, {self.sounds} sounds"
        page = f"{self.folder / 'index.html'}  {size}. Open it in a browser, or put the folder on any web server"
        return "\n".join([page, *map(str, self.differences)])


def export_web(
    model: str | Path | Embedder | None,
    output: str | Path,
    *,
    sounds: str | Path | Iterable[str | Path] = (),
    runtime: str | Path | None = None,
    dtype: Dtype = "float32",
    padding: Padding | None = None,
    front_end: FrontEndConfig | str | None = None,
    check: str | Path | Iterable[str | Path] = (),
    overwrite: bool = False,
) -> WebReport:
    """Write a static page that runs a model in the browser, after comparing its graph with PyTorch on recordings.

    Args:
        model: a model, or what `ssamba.load_model` takes.
        output: the folder to write.
        sounds: files, folders and patterns of the recordings that the page compares with and plays, 2 to 1,000; of
            longer ones the first window. None means the demo's fourteen.
        runtime: the unpacked npm package onnxruntime-web; None fetches the pinned version by `npm pack`, once.
        dtype: how weights are stored; as for `export_onnx`.
        padding: as for `export_onnx`.
        front_end: as for `ssamba.load_model`.
        check: more recordings to compare on.
        overwrite: replace the page of another model, or with other settings.

    Raises:
        ConfigError: an argument is wrong.
        CheckpointError: the model cannot be loaded.
        AudioDecodeError: a recording cannot be read.
        MissingExtraError: npm is needed and not installed.
        SsambaError: npm cannot fetch the runtime.
        OtherSettingsError: the folder holds the export of another model or with other settings.
        ExportError: a result differs from PyTorch's by more than allowed. Nothing is written.
    """
    folder = output_folder(output)
    found = list(find_audio(sounds or SOUNDS))
    if not 2 <= len(found) <= MAX_SOUNDS:
        raise ConfigError(f"a page compares with 2 to {MAX_SOUNDS:,} sounds; got {len(found):,}")
    recordings = list(find_audio(check)) if check else []
    used = read_runtime(runtime)
    exporter = Exporter.of(model, dtype, (), padding, front_end)
    embedder = exporter.embedder
    common = {"kind": "web page", **exporter.metadata()}
    replaced = check_folder(folder, common, overwrite)

    content = exporter.encoder_file("waveform")
    differences = check_files(embedder, {"waveform.onnx": content}, recordings, exporter.padding, dtype)
    page, audio = _page(embedder, exporter.padding, found, common, used.version)
    files = {path.name: path.read_bytes() for path in sorted(_PAGE.iterdir())}
    index = files.pop("index.html")
    files |= {
        "licenses.txt": _licenses(common, used, found).encode(),
        "data/runtime.js": _script("runtime", {name: _base64(one) for name, one in used.files.items()}),
        "data/model.js": _script("model", _base64(content)),
        **{f"data/sound_{k}.js": _script(f"sound_{k}", _base64(one)) for k, one in enumerate(audio)},
        "data/page.js": _script("page", page),
        "index.html": index,
    }
    for name, one in files.items():
        write_bytes(folder / name, one)
    for path in (folder / "data").glob("sound_*.js"):
        if f"data/{path.name}" not in files:  # of an earlier page
            path.unlink()
    remove_files(folder, replaced, files)
    report = {"files": list(files), **common, "differences": [one.as_json() for one in differences]}
    write_json(folder / REPORT_FILE, report)
    return WebReport(folder, sum(map(len, files.values())), len(found), differences)


def window_lengths(embedder: Embedder) -> tuple[float, float]:
    """Return the window in seconds, and up to which length a recording is taken whole: those of `predict`."""
    lengths = None if embedder.classifier is None else embedder.predictor.lengths(PredictOptions())
    return (lengths.window_s, lengths.whole_s) if lengths else (embedder.window_s, embedder.window_s)


def _page(
    embedder: Embedder, padding: Padding, paths: list[Path], common: dict[str, Any], runtime: str
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the values of data/page.js, and the sounds as FLAC."""
    front_end, (window_s, whole_s) = embedder.front_end, window_lengths(embedder)
    sounds, audio, vectors = [], [], []
    for path in paths:
        info = probe(path)
        duration_s = None if info.duration_s is None or info.duration_s <= whole_s else window_s
        with io.BytesIO() as file:
            # Browsers and the model get the same samples: those of 16 bits, one channel.
            heard = decode(path, sample_rate_hz=info.sample_rate_hz, duration_s=duration_s)
            soundfile.write(file, heard.clip(-1, 1), info.sample_rate_hz, format="FLAC", subtype="PCM_16")
            audio.append(file.getvalue())
        wave = decode(path, sample_rate_hz=front_end.sample_rate_hz, duration_s=duration_s)
        if len(wave) < front_end.frame_samples:
            raise ConfigError(f"{path}: expected at least one frame ({front_end.frame_ms:g} ms) of sound")
        vectors.append(embedder.embed(wave, padding=padding).clip.numpy())
        features = log_mel(torch.from_numpy(wave), config=front_end).numpy()
        sounds.append({"name": path.stem, "seconds": round(len(wave) / front_end.sample_rate_hz, 3)})
        sounds[-1]["picture"] = thumbnail(features)
    space = fit_similarity(np.stack(vectors))
    rotation = np.diag(space.scale) if space.rotation is None else space.scale[:, None] * space.rotation
    places, hertz = hertz_ticks(front_end)
    page = {
        **{key: common[key] for key in ("model", "weights_digest", "license", "labels", "sample_rate_hz", "dim")},
        "ssamba_version": __version__,
        "runtime": f"{NAME} {runtime}",
        "window_s": window_s,
        "whole_s": whole_s,
        "frame_samples": front_end.frame_samples,
        "shift_samples": front_end.shift_samples,
        "mel_bins": front_end.num_mel_bins,
        "time_expansion": front_end.time_expansion,
        "ticks": list(zip(places, hertz, strict=True)),
        "several": embedder.classifier is not None and embedder.classifier.config.activation == "sigmoid",
        "sounds": sounds,
        # What `nearest_neighbors` does: subtract, multiply, scale to unit length, and take dot products.
        "space": {
            "mean": _floats(space.mean),
            "rotation": _floats(rotation),
            "rows": _floats(space(np.stack(vectors))),
        },
    }
    return page, audio


def thumbnail(features: Array) -> dict[str, Any]:
    """Return a small picture of features (T, M): its size, and bytes from 0, quiet, to 255, loud, as base64."""
    rows, columns = _THUMBNAIL[0], min(_THUMBNAIL[1], len(features))
    edges = [
        np.linspace(0, size, count + 1).astype(int)[:-1]
        for size, count in ((len(features), columns), (features.shape[1], rows))
    ]
    pooled = np.maximum.reduceat(np.maximum.reduceat(features, edges[0], axis=0), np.unique(edges[1]), axis=1)
    low, high = np.quantile(features, (0.1, 0.998))
    levels = ((pooled - low) / max(high - low, 1e-6)).clip(0, 1) * 255
    return {"width": pooled.shape[0], "height": pooled.shape[1], "levels": _base64(levels.astype(np.uint8).tobytes())}


def _licenses(common: dict[str, Any], runtime: Runtime, sounds: list[Path]) -> str:
    own = {path.parent for path in sounds} == {SOUNDS}
    source = (SOUNDS / "SOURCES.md").read_text("utf-8") if own else "Sounds: chosen by whoever made this page.\n"
    return (
        f"Model {common['model']}: {common['license']}. Weights: {common['origin']}\n\n"
        f"Page: ssamba {__version__}. Copyright (c) the ssamba authors. MIT License, below.\n\n"
        f"{NAME} {runtime.version}. Copyright (c) Microsoft Corporation. MIT License, below.\n\n{_MIT}\n{source}"
    )


def _script(name: str, value: Any) -> bytes:
    return f'ssambaData("{name}", {json_text(value)});\n'.encode()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _floats(values: Array) -> str:
    return _base64(np.ascontiguousarray(values, "<f4").tobytes())
