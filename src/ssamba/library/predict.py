"""Predict labels of recordings, or of each second of them, with a fine-tuned classifier.

    model = ssamba.load_model("runs/birds")
    for path, found in predict_stream(model, ["dawn.flac"]):
        print(path, found[0].best(3))

Shapes: C classes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.audio.decode import probe
from ssamba.embedder import Embedder
from ssamba.files import write_atomically

FORMATS = (".csv", ".json")
_COLUMNS = ("path", "start_s", "end_s", "label", "probability")


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of a recording, or of a segment of it."""

    path: str
    """The recording."""
    start_s: float
    """Start of the segment."""
    end_s: float | None
    """End of the segment; None means the recording's end."""
    labels: tuple[str, ...]
    """Names of the classes, C of them."""
    probabilities: np.ndarray[Any, np.dtype[np.float32]]
    """Probability of each class, (C,): their sum is 1 if a clip has one label; independent if it may have several."""

    def best(self, count: int = 1) -> list[tuple[str, float]]:
        """Return the `count` most probable labels with their probabilities; 0 returns all."""
        order = np.argsort(-self.probabilities, kind="stable")[: count or None]
        return [(self.labels[i], float(self.probabilities[i])) for i in order]


def predict_stream(
    model: Embedder, paths: Iterable[str | Path], *, per_second: bool | None = None
) -> Iterator[tuple[Path, list[Prediction] | Exception]]:
    """Classify recordings as they come, many at a time.

    Args:
        model: a fine-tuned classifier.
        paths: audio files.
        per_second: predict each second instead of the whole recording; None means as the model was trained. A model
            trained on whole clips applies its head to the frames of each second.

    Returns:
        The files, not always in the order of `paths`, each with its predictions (one, or one for each second), or with
        the error (`ValueError` or `OSError`) that it raised; the other files are not affected.

    Raises:
        ValueError: the checkpoint has no classifier, or one that cannot classify segments.
    """
    items = ((Path(path), path) for path in paths)
    for path, result in model.logits_stream(items, per_label=per_second):
        if isinstance(result, Exception):
            yield path, result
            continue
        assert model.classifier is not None
        config = model.classifier.config
        logits = result[None] if result.ndim == 1 else result
        probabilities = (logits.softmax(-1) if config.activation == "softmax" else logits.sigmoid()).numpy()
        names = config.labels or tuple(map(str, range(config.num_classes)))
        length_s = (config.label_frames or model.front_end.frames_per_second) / model.front_end.frames_per_second
        segments = [(0.0, None)] if result.ndim == 1 else _segments(path, len(logits), length_s)
        yield (
            path,
            [
                Prediction(str(path), start_s, end_s, names, row)
                for (start_s, end_s), row in zip(segments, probabilities, strict=True)
            ],
        )


def _segments(path: Path, count: int, length_s: float) -> list[tuple[float, float | None]]:
    """Return start and end of `count` segments; the last one ends with the recording if its header holds the length."""
    whole_s = probe(path).duration_s
    ends_s = [(k + 1) * length_s for k in range(count)]
    if whole_s is not None and whole_s > (count - 1) * length_s:
        ends_s[-1] = min(ends_s[-1], whole_s)
    return [(k * length_s, end_s) for k, end_s in enumerate(ends_s)]


def as_csv(predictions: Sequence[Prediction], count: int = 1) -> str:
    """Return rows of path, start_s, end_s, label, probability for the `count` most probable labels (0: all)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for found in predictions:
        for label, probability in found.best(count):
            end = "" if found.end_s is None else f"{found.end_s:g}"
            writer.writerow((found.path, f"{found.start_s:g}", end, label, f"{probability:.4f}"))
    return text.getvalue()


def as_json(predictions: Sequence[Prediction], count: int = 0) -> str:
    """Return a list of objects with path, start_s, end_s and labels (name to probability, the most probable first)."""
    rows = [
        {
            "path": found.path,
            "start_s": found.start_s,
            "end_s": found.end_s,
            "labels": {label: round(probability, 4) for label, probability in found.best(count)},
        }
        for found in predictions
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def write_predictions(predictions: Sequence[Prediction], path: str | Path, count: int = 0) -> None:
    """Write a `.csv` or `.json` file atomically.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(FORMATS)}")
    text = as_csv(predictions, count) if path.suffix == ".csv" else as_json(predictions, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
