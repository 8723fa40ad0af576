"""A `datasets.Dataset` with an audio column as a corpus: its bytes or paths are decoded here, as any other file is.

`datasets` itself would decode with torchcodec, which is not needed. It is no dependency of ssamba: who has a dataset has
the package (`pip install datasets`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ssamba.audio.decode import AudioBytes, checked_rate, decode
from ssamba.audio.files import Skipped
from ssamba.data.columns import CategoryColumn, TextColumn
from ssamba.data.corpus import Corpus, CorpusClip, Samples
from ssamba.data.manifest import header_duration_s
from ssamba.errors import DataError, MissingExtraError

_LABEL_COLUMNS = ("labels", "label", "category", "class")


class HuggingFaceCorpus(Corpus):
    """Rows of a dataset; those whose audio cannot be read are left out and listed."""

    def __init__(
        self,
        dataset: Any,
        sample_rate_hz: int = 16_000,
        *,
        audio_column: str | None = None,
        label_column: str | None = None,
        group_column: str | None = None,
        split: str | None = None,
        name: str = "dataset",
    ) -> None:
        """Make a corpus of a dataset; the header of every recording is read once for its duration.

        Args:
            dataset: a map-style `datasets.Dataset`.
            sample_rate_hz: what recordings are resampled to.
            audio_column: which column is the audio; None takes the only one of the type `Audio`.
            label_column: labels (names, numbers of a `ClassLabel`, or lists of these); None takes `labels`, `label`,
                `category` or `class` where there is one.
            group_column: groups, if any.
            split: the name that its clips say they are of.
            name: for reports.

        Raises:
            DataError: no audio column, several, or nothing in it can be read; a streamed (iterable) dataset.
            MissingExtraError: the package `datasets` is missing.
        """
        datasets = require_datasets()
        if isinstance(dataset, datasets.IterableDataset):
            raise DataError(f"{name}: is streamed, and clips are read at random: load it with streaming=False")
        if not isinstance(dataset, datasets.Dataset):
            raise DataError(f"{name}: expected a datasets.Dataset, got {type(dataset).__name__}")
        features = dataset.features
        column = audio_column or _audio_column(features, datasets.Audio, name)
        if column not in features:
            raise DataError(f"{name}: no column {column!r} (there are: {', '.join(features)})")
        labels = label_column or next((c for c in _LABEL_COLUMNS if c in features), None)
        self.name, self.sample_rate_hz = name, checked_rate(sample_rate_hz)
        self._split = split
        wanted = [c for c in (column, labels, group_column) if c is not None]
        self._audio, self._column = (
            dataset.select_columns(wanted).cast_column(column, datasets.Audio(decode=False)),
            column,
        )
        rows, seconds, keys, skipped = [], [], [], []
        for i, row in enumerate(self._audio.select_columns([column])):
            cell = row[column]
            found = header_duration_s(self._source(i, cell))
            if isinstance(found, Exception):
                skipped.append(Skipped(str(self._source(i, cell)), str(found)))
                continue
            path = (cell or {}).get("path")
            rows.append(i)
            seconds.append(found)
            keys.append(f"{i:08d}/{Path(path).name}" if path else f"{i:08d}")
        if not rows:
            raise DataError(f"{name}: no clip can be read. {skipped[0].reason if skipped else 'It is empty'}")
        self.skipped = tuple(skipped)
        self.seconds = np.array(seconds, np.float64)
        self._rows, self._keys = np.array(rows, np.int64), TextColumn(keys)
        names = dataset[labels][:] if labels else [None] * len(dataset)
        groups = dataset[group_column][:] if group_column else [None] * len(dataset)
        self._labels = CategoryColumn(_names(names[i], features[labels] if labels else None) for i in rows)
        self._groups = CategoryColumn(None if groups[i] is None else str(groups[i]) for i in rows)
        self._audio = self._audio.select_columns([column])

    @classmethod
    def open(cls, source: Any, sample_rate_hz: int = 16_000, split: str | None = None) -> HuggingFaceCorpus:
        """A corpus of a dataset, of a split of a `DatasetDict` (`train` unless named), of a saved folder, or of
        `hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIGURATION`.

        Raises:
            DataError: as the class, and where there is no such split.
        """
        datasets = require_datasets()
        name = type(source).__name__
        if isinstance(source, str) and source.startswith("hf:"):
            name = source.removeprefix("hf:")
            place, _, configuration = name.partition(":")
            source = datasets.load_dataset(place, configuration or None, split=split or "train")
        elif isinstance(source, str | Path):
            name = Path(source).name
            source = datasets.load_from_disk(str(source))
        if isinstance(source, datasets.DatasetDict):
            split = "train" if split is None and "train" in source else split
            if split is None or split not in source:
                raise DataError(f"{name}: name one of its splits: {', '.join(source)} (got {split!r})")
            source = source[split]
        own = str(source.split) if getattr(source, "split", None) is not None else None
        if split is not None and own is not None and own != split:
            raise DataError(f"{name}: is the split {own!r}, not {split!r}: load that one")
        return cls(source, sample_rate_hz, split=split or own, name=name)

    def key(self, i: int) -> str:
        """The row's number in the dataset, and its file's name."""
        return self._keys[i]

    def clip(self, i: int) -> CorpusClip:
        """What is known of clip `i`."""
        return CorpusClip(self._keys[i], float(self.seconds[i]), self._labels[i], self._split, self._groups[i])

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """A part of clip `i`, as `Corpus.read` has it."""
        row = int(self._rows[i])
        source = self._source(row, self._audio[row][self._column])
        return decode(source, sample_rate_hz=self.sample_rate_hz, start_s=start_s, duration_s=seconds)

    def _source(self, row: int, cell: dict[str, Any] | None) -> AudioBytes | Path:
        name = f"{self.name}[{row}]"
        if not cell or (cell.get("bytes") is None and not cell.get("path")):
            return AudioBytes(name, b"")
        if cell.get("bytes") is not None:
            return AudioBytes(name, cell["bytes"])
        return Path(cell["path"])


def _audio_column(features: Any, audio: type, name: str) -> str:
    columns = [column for column, feature in features.items() if isinstance(feature, audio)]
    if len(columns) != 1:
        what = (
            f"several audio columns ({', '.join(columns)})"
            if columns
            else f"no audio column (of {', '.join(features)})"
        )
        raise DataError(f"{name}: has {what}: say which with HuggingFaceCorpus(dataset, audio_column=...)")
    return str(columns[0])


def _names(value: Any, feature: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    inner = getattr(feature, "feature", feature)
    values = value if isinstance(value, list) else [value]
    return tuple(inner.int2str(v) if isinstance(v, int) and hasattr(inner, "int2str") else str(v) for v in values)


def require_datasets() -> Any:
    """The `datasets` module, or a MissingExtraError."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("Hugging Face data sets need the package datasets: pip install datasets") from None
    return datasets
