"""Corpora: clips that can be listed and read in any order, whatever they are stored in.

    corpus = open_corpus("recordings/")                 # a folder of audio, whose headers are read
    corpus = open_corpus("manifest.parquet", split="train")
    corpus = open_corpus("shards/")                     # tars of `ssamba shard`, or any WebDataset tars
    corpus = open_corpus("hf:ashraq/esc50")             # hf:OWNER/NAME[:CONFIGURATION], or a `datasets.Dataset`
    corpus = Subset(corpus, np.arange(100))
    corpus = CachedCorpus(corpus)                       # decoded once and held in memory (`cache.py`)

A corpus can be pickled and is small: each worker process gets its own. Shapes: waveforms are (samples,), float32.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from ssamba.audio.decode import AudioBytes, Damaged, checked_rate, collect_remarks, decode, duration_or_error
from ssamba.audio.files import Skipped, refuse_url
from ssamba.data.folders import LabelsFrom
from ssamba.data.manifest import (
    MANIFEST_SUFFIXES,
    CategoryColumn,
    Manifest,
    TextColumn,
    read_manifest,
    scan_folder,
    with_durations,
)
from ssamba.data.shard_index import ShardIndex, open_index, shard_files
from ssamba.errors import AudioDecodeError, ConfigError, DataError, MissingExtraError
from ssamba.files import folder_name, path_from_text, path_text, user_path
from ssamba.hashing import digest_of, hash_bytes, hash_names

Samples: TypeAlias = "npt.NDArray[np.float32]"
_MAX_OPEN_TARS = 128
_LABEL_COLUMNS = ("labels", "label", "category", "class")
_MAX_COMPARED_FILES = 100_000
_COMPARED_BYTES = 1 << 16
_SILENCE_BLOCK_S = 30.0


@dataclass(frozen=True, slots=True)
class CorpusClip:
    """Metadata of a clip, known without decoding it."""

    key: str
    """Name, unique in the corpus."""
    seconds: float
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None


class Corpus(ABC):
    """Clips by index. Subclasses set `name`, `sample_rate_hz` and `seconds`, and may set the other attributes."""

    name: str
    """Name for messages and reports."""
    sample_rate_hz: int
    """Sample rate of what `read` returns."""
    seconds: npt.NDArray[np.float64]
    """Durations (clips,), as headers state them."""
    shards: npt.NDArray[np.int64] | None = None
    """Number of the file that holds each clip (clips,), if reading file by file is faster; None if it is not."""
    skipped: tuple[Skipped, ...] = ()
    """Clips that were left out when the corpus was opened, with reasons."""
    in_memory: bool = False
    """True if clips are already decoded, so that reading is nearly free."""

    def __len__(self) -> int:
        return len(self.seconds)

    @abstractmethod
    def clip(self, i: int) -> CorpusClip:
        """Return the metadata of clip `i`."""

    @abstractmethod
    def key(self, i: int) -> str:
        """Return the key of clip `i`."""

    def file(self, i: int) -> str:
        """Return the path of the audio file of clip `i`, resolved; its key if it has no file of its own."""
        return self.key(i)

    @abstractmethod
    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """Return samples [round(start_s * rate) : round((start_s + seconds) * rate)] of clip `i`, mono.

        `seconds=None` reads to the end. Fewer samples are returned if the clip ends earlier.

        Raises:
            AudioDecodeError: the clip is missing, damaged, or ends before `start_s`.
        """

    @property
    def hours(self) -> float:
        """Sum of the durations."""
        return float(self.seconds.sum()) / 3600

    @cached_property
    def key_hashes(self) -> npt.NDArray[np.uint64]:
        """A 64-bit hash of each clip's key (clips,), from which random numbers are made."""
        return hash_names(map(self.key, range(len(self))))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when the set of clips, or the length of one, does."""
        milliseconds = np.round(self.seconds * 1000).astype("<i8")
        order = np.lexsort((milliseconds, self.key_hashes))
        return digest_of(str(self.sample_rate_hz), self.key_hashes[order].astype("<u8"), milliseconds[order])


def read_or_error(corpus: Corpus, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples | Exception:
    """Return a part of clip `i` (see `Corpus.read`), or the error that reading it raises.

    Remarks about its file, which came when the corpus was opened, are not repeated.
    """
    try:
        with collect_remarks():
            return corpus.read(i, start_s, seconds)
    except (ValueError, OSError) as error:
        return error
    except Exception as error:  # a damaged file can provoke any error, which must not cost the other clips
        return AudioDecodeError(f"{corpus.key(i)}: cannot be decoded ({type(error).__name__}: {error})")


def is_all_silent(corpus: Corpus) -> bool:
    """Return whether every clip that can be read holds nothing but one value; the first that does not settles it."""
    num_read = 0
    for i in range(len(corpus)):
        seconds = float(corpus.seconds[i])
        for start_s in np.arange(0.0, seconds, _SILENCE_BLOCK_S):
            samples = read_or_error(corpus, i, float(start_s), min(_SILENCE_BLOCK_S, seconds - float(start_s)))
            if isinstance(samples, Exception):
                break
            if len(samples) and samples.min() != samples.max():
                return False
            num_read += 1
    return num_read > 0


def past_the_end(key: str, start_s: float, seconds: float) -> AudioDecodeError:
    """Return the error for a start beyond the end of a clip."""
    return AudioDecodeError(
        f"{key}: start_s={start_s:g} lies past the end of the clip, which lasts {seconds:.3f} s. "
        "Choose an earlier start"
    )


class Subset(Corpus):
    """Some clips of another corpus, such as a split."""

    def __init__(self, corpus: Corpus, chosen: npt.NDArray[np.int64]):
        """Select the clips of `corpus` with the indices `chosen` (clips,)."""
        self.corpus, self.chosen = corpus, chosen
        self.name, self.sample_rate_hz, self.in_memory = corpus.name, corpus.sample_rate_hz, corpus.in_memory
        self.seconds = corpus.seconds[chosen]
        self.shards = None if corpus.shards is None else corpus.shards[chosen]
        self.skipped = corpus.skipped

    def key(self, i: int) -> str:
        """Return the key of clip `i`, the same as in the other corpus."""
        return self.corpus.key(int(self.chosen[i]))

    def file(self, i: int) -> str:
        """Return the audio file of clip `i`."""
        return self.corpus.file(int(self.chosen[i]))

    def clip(self, i: int) -> CorpusClip:
        """Return the metadata of clip `i`."""
        return self.corpus.clip(int(self.chosen[i]))

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """Read a part of clip `i`; see `Corpus.read`."""
        return self.corpus.read(int(self.chosen[i]), start_s, seconds)


class ManifestCorpus(Corpus):
    """Local files listed by a manifest. Missing durations are measured (`ssamba.audio.decode.measure`)."""

    def __init__(
        self,
        manifest: Manifest,
        sample_rate_hz: int = 16_000,
        name: str = "manifest",
        workers: int = 0,
        damaged: Damaged = "skip",
    ) -> None:
        """Open the clips of a manifest.

        Args:
            manifest: the clips.
            sample_rate_hz: rate that recordings are resampled to.
            name: for reports.
            workers: processes that measure recordings whose duration is missing.
            damaged: what to do with files of which a part is missing: `skip` them, or `keep` what comes before it.

        Raises:
            DataError: no clip can be read.
        """
        self.name, self.sample_rate_hz, self.damaged = name, checked_rate(sample_rate_hz), damaged
        self.manifest, skipped = with_durations(manifest, workers, damaged)
        self.skipped = tuple(skipped)
        if not len(self.manifest):
            reason = skipped[0].reason if skipped else "The manifest lists none"
            raise DataError(f"{name}: no clip can be read. {reason}")
        source = manifest.source
        root = None if source is None else source if source.is_dir() else source.parent
        self._keys = TextColumn(unique_names(_clip_key(clip.path, clip.start_s, root) for clip in self.manifest))
        self.seconds = np.array([clip.duration_s for clip in self.manifest], np.float64)

    def key(self, i: int) -> str:
        """Return the path below the manifest's folder, followed by `@start_s` for a part of a recording."""
        return self._keys[i]

    def file(self, i: int) -> str:
        """Return the path of the recording."""
        return os.path.realpath(self.manifest[i].path)

    def clip(self, i: int) -> CorpusClip:
        """Return the metadata of clip `i`."""
        clip = self.manifest[i]
        return CorpusClip(self._keys[i], float(self.seconds[i]), clip.labels, clip.split, clip.group)

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """Read a part of clip `i`; see `Corpus.read`."""
        clip = self.manifest[i]
        left_s = float(self.seconds[i]) - start_s
        if left_s <= 0:
            raise past_the_end(self._keys[i], start_s, float(self.seconds[i]))
        # Counted in samples of the clip, so that a part equals the slice however the clip's own start is rounded.
        rate_hz = self.sample_rate_hz
        first = round(clip.start_s * rate_hz) + round(start_s * rate_hz)
        count = round((start_s + min(left_s, seconds or left_s)) * rate_hz) - round(start_s * rate_hz)
        start_s, seconds = first / rate_hz, max(1, count) / rate_hz
        return decode(clip.path, sample_rate_hz=rate_hz, start_s=start_s, duration_s=seconds, damaged=self.damaged)


def _clip_key(path: Path, start_s: float, root: Path | None) -> str:
    # Relative to the manifest, so that a corpus that was moved has the same keys.
    name = path.relative_to(root) if root is not None and path.is_relative_to(root) else path
    return path_text(name.as_posix()) + (f"@{start_s!r}" if start_s else "")


def unique_names(keys: Iterable[str]) -> Iterable[str]:
    """Yield names; repeated ones get a number: `a`, `b`, `a#2`."""
    counts: dict[str, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
        yield key if counts[key] == 1 else f"{key}#{counts[key]}"


class ShardCorpus(Corpus):
    """Clips in tars, each read directly at its offset."""

    def __init__(
        self, index: ShardIndex, sample_rate_hz: int = 16_000, split: str | None = None, name: str | None = None
    ) -> None:
        """Open the clips of an index, or one split of them.

        Raises:
            DataError: there is no such split.
        """
        self.name, self.sample_rate_hz = name or index.folder.name, checked_rate(sample_rate_hz)
        self.index, self.skipped = index, index.skipped
        rows = np.arange(len(index))
        if split is not None:
            rows = np.flatnonzero(index.splits.is_value(split))
            if not len(rows):
                known = ", ".join(s for s in index.splits.values if s) or "none"
                raise DataError(f"{index.folder}: no clip is in split {split!r} (there are: {known})")
        self._rows = rows
        self.seconds = index.seconds[rows]
        self.shards = index.shards.codes[rows].astype(np.int64)
        self._tars = _OpenTars()

    def key(self, i: int) -> str:
        """Return the name that the members of clip `i` share."""
        return self.index.keys[int(self._rows[i])]

    def clip(self, i: int) -> CorpusClip:
        """Return the metadata of clip `i`."""
        row, index = int(self._rows[i]), self.index
        return CorpusClip(
            index.keys[row], float(self.seconds[i]), index.labels[row], index.splits[row], index.groups[row]
        )

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """Read a part of clip `i`; see `Corpus.read`."""
        row, index = int(self._rows[i]), self.index
        tar = index.folder / path_from_text(index.shards[row])
        name = f"{tar}/{index.keys[row]}{index.suffixes[row]}"
        try:
            data = self._tars.read(tar, int(index.offsets[row]), int(index.sizes[row]))
        except OSError as error:
            raise AudioDecodeError(f"{name}: cannot be read ({error.strerror or error}). Check disk and path") from None
        return decode(AudioBytes(name, data), sample_rate_hz=self.sample_rate_hz, start_s=start_s, duration_s=seconds)


class _OpenTars:
    """File handles of the most recently opened tars; each process opens its own."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on; raise OSError if the file cannot be read."""
        if not hasattr(os, "pread"):  # Windows
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        if path not in self._files:
            while len(self._files) >= _MAX_OPEN_TARS:
                self._files.pop(next(iter(self._files))).close()
            self._files[path] = path.open("rb", buffering=0)
        # pread takes an offset, whereas forked processes share the position of an open file.
        return os.pread(self._files[path].fileno(), size, offset)

    def __del__(self) -> None:
        for file in self._files.values():
            file.close()

    def __reduce__(self) -> tuple[type[_OpenTars], tuple[()]]:
        return _OpenTars, ()


class HuggingFaceCorpus(Corpus):
    """Rows of a `datasets.Dataset` with an audio column. Rows whose audio cannot be read are left out and listed.

    The bytes or paths of the column are decoded here like any other file (`datasets` itself would need torchcodec).
    The package `datasets` is not a dependency of ssamba: install it to use such a corpus.
    """

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
        """Open a dataset; the header of every recording is read once for its duration.

        Args:
            dataset: a map-style `datasets.Dataset`.
            sample_rate_hz: rate that recordings are resampled to.
            audio_column: the column of audio; None takes the only one of the type `Audio`.
            label_column: labels (names, numbers of a `ClassLabel`, or lists of these); None takes `labels`, `label`,
                `category` or `class` if there is one.
            group_column: groups, if any.
            split: name of the split, for the metadata of the clips.
            name: for reports.

        Raises:
            DataError: there is no audio column, or several; no recording can be read; the dataset is streamed.
            MissingExtraError: the package `datasets` is not installed.
        """
        datasets = _require_datasets()
        if isinstance(dataset, datasets.IterableDataset):
            raise DataError(f"{name}: is streamed, but clips need random access: load it with streaming=False")
        if not isinstance(dataset, datasets.Dataset):
            expected = "a folder, a manifest, hf:OWNER/NAME, a corpus or a datasets.Dataset"
            raise DataError(f"expected {expected}, got {type(dataset).__name__}")
        features = dataset.features
        column = audio_column or _audio_column(features, datasets.Audio, name)
        if column not in features:
            raise DataError(f"{name}: no column {column!r} (there are: {', '.join(features)})")
        labels = label_column or next((c for c in _LABEL_COLUMNS if c in features), None)
        self.name, self.sample_rate_hz = name, checked_rate(sample_rate_hz)
        self._split, self._column = split, column
        self._audio = dataset.select_columns([column]).cast_column(column, datasets.Audio(decode=False))
        rows, seconds, keys, skipped = [], [], [], []
        for i, row in enumerate(self._audio):
            cell = row[column]
            duration_s = duration_or_error(self._source(i, cell))
            if isinstance(duration_s, Exception):
                skipped.append(Skipped(str(self._source(i, cell)), str(duration_s)))
                continue
            path = (cell or {}).get("path")
            rows.append(i)
            seconds.append(duration_s)
            keys.append(f"{i:08d}/{Path(path).name}" if path else f"{i:08d}")
        if not rows:
            raise DataError(f"{name}: no clip can be read. {skipped[0].reason if skipped else 'It is empty'}")
        self.skipped = tuple(skipped)
        self.seconds = np.array(seconds, np.float64)
        self._rows, self._keys = np.array(rows, np.int64), TextColumn(keys)
        names = dataset[labels][:] if labels else [None] * len(dataset)
        groups = dataset[group_column][:] if group_column else [None] * len(dataset)
        self._labels = CategoryColumn(_label_names(names[i], features[labels] if labels else None) for i in rows)
        self._groups = CategoryColumn(None if groups[i] is None else str(groups[i]) for i in rows)

    @classmethod
    def open(cls, source: Any, sample_rate_hz: int = 16_000, split: str | None = None) -> HuggingFaceCorpus:
        """Open a dataset, a split (default `train`) of a `DatasetDict`, a folder of `save_to_disk`, or a hub name.

        Names are `hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIGURATION`.

        Raises:
            DataError: as for the class, or there is no such split.
        """
        datasets = _require_datasets()
        name = type(source).__name__
        if isinstance(source, str) and source.startswith("hf:"):
            name = source.removeprefix("hf:")
            repository, _, configuration = name.partition(":")
            source = datasets.load_dataset(repository, configuration or None, split=split or "train")
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
        """Return the row number in the dataset and the file's name."""
        return self._keys[i]

    def clip(self, i: int) -> CorpusClip:
        """Return the metadata of clip `i`."""
        return CorpusClip(self._keys[i], float(self.seconds[i]), self._labels[i], self._split, self._groups[i])

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """Read a part of clip `i`; see `Corpus.read`."""
        row = int(self._rows[i])
        source = self._source(row, self._audio[row][self._column])
        return decode(source, sample_rate_hz=self.sample_rate_hz, start_s=start_s, duration_s=seconds)

    def _source(self, row: int, cell: dict[str, Any] | None) -> AudioBytes | Path:
        cell = cell or {}
        if cell.get("bytes") is None and cell.get("path"):
            return Path(cell["path"])
        return AudioBytes(f"{self.name}[{row}]", cell.get("bytes") or b"")


def _audio_column(features: Any, audio: type, name: str) -> str:
    columns = [column for column, feature in features.items() if isinstance(feature, audio)]
    if len(columns) == 1:
        return str(columns[0])
    several = f"several audio columns ({', '.join(columns)})"
    found = several if columns else f"no audio column (of {', '.join(features)})"
    raise DataError(f"{name}: has {found}: name it with HuggingFaceCorpus(dataset, audio_column=...)")


def _label_names(value: Any, feature: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    inner = getattr(feature, "feature", feature)
    values = value if isinstance(value, list) else [value]
    return tuple(inner.int2str(v) if isinstance(v, int) and hasattr(inner, "int2str") else str(v) for v in values)


def _require_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError('data sets of the hub need datasets: pip install "ssamba[datasets]"') from None
    return datasets


def open_corpus(
    source: Any,
    sample_rate_hz: int = 16_000,
    split: str | None = None,
    *,
    workers: int = 0,
    labels: LabelsFrom | None = None,
    damaged: Damaged = "skip",
    encoding: str | None = None,
) -> Corpus:
    """Open a corpus from any source.

    Remarks about files that are used although their header is wrong or a part of them is missing come as warnings, or
    are collected (`ssamba.audio.decode.collect_remarks`).

    Args:
        source: a folder of audio or of tars; a tar; a manifest (`.csv`, `.jsonl`, `.parquet`, the original's `.json`);
            a `datasets.Dataset` with an audio column, a folder of its `save_to_disk`, or `hf:OWNER/NAME`; a `Manifest`;
            a corpus (returned unchanged).
        sample_rate_hz: rate that recordings are resampled to.
        split: only the clips of this split.
        workers: processes that read headers where that is necessary; 0 reads in this process.
        labels: `folder`, or the number of a level of folders, takes their names as labels, for a folder of audio.
        damaged: what to do with files of which a part is missing: `skip` them, or `keep` what comes before it (files
            of folders and manifests; members of shards and data sets are skipped).
        encoding: of manifests in CSV and JSON, such as `cp1252`; None is UTF-8.

    Raises:
        ConfigError, DataError: the source is none of these, holds no clip, or labels are not clear (`read_places`).
        MissingExtraError: `datasets` or pyarrow is needed and not installed.
    """
    if isinstance(source, Corpus):
        if source.sample_rate_hz != sample_rate_hz or split is not None:
            raise DataError(
                f"{source.name}: is already open at {source.sample_rate_hz} Hz with all its splits; "
                f"open it again for {sample_rate_hz} Hz or split {split!r}"
            )
        return source
    if isinstance(source, Manifest):
        name = source.source.stem if source.source else "manifest"
        return ManifestCorpus(source.in_split(split), sample_rate_hz, name, workers, damaged)
    if not isinstance(source, str | Path) or str(source).startswith("hf:"):
        return HuggingFaceCorpus.open(source, sample_rate_hz, split)
    path = user_path(source)
    if not path.exists():
        refuse_url(path)
        raise DataError(f"{path}: no such file or folder. Expected a folder of audio or of tars, or a manifest")
    if path.is_file() and path.suffix in MANIFEST_SUFFIXES:
        manifest = read_manifest(path, encoding=encoding).in_split(split)
        return ManifestCorpus(manifest, sample_rate_hz, path.stem, workers, damaged)
    if path.suffix == ".tar" or (path.is_dir() and shard_files(path)):
        return ShardCorpus(open_index(path, workers), sample_rate_hz, split, path.stem)
    if not path.is_dir():
        raise DataError(
            f"{path}: is neither a folder of audio, nor a manifest ({', '.join(MANIFEST_SUFFIXES)}), nor a tar. List "
            "single files in a manifest: ssamba manifest FILES -o MANIFEST"
        )
    saved_dataset = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    if saved_dataset or (path / "dataset_dict.json").is_file():
        return HuggingFaceCorpus.open(path, sample_rate_hz, split)
    if split is not None:
        raise DataError(f"{path}: a folder of audio has no splits: list it in a manifest with a split column")
    try:
        clips, skipped = scan_folder(path, workers, labels=labels, damaged=damaged)
    except ValueError as error:
        raise (error if isinstance(error, ConfigError) else DataError(str(error))) from None
    if not clips:
        raise DataError(f"{path}: no recording in it can be read. {skipped[0].reason}")
    corpus = ManifestCorpus(Manifest(clips, path), sample_rate_hz, folder_name(path), damaged=damaged)
    corpus.skipped = (*skipped, *corpus.skipped)
    return corpus


def find_copies(corpus: Corpus, files: Sequence[str]) -> tuple[str | None, ...]:
    """Find clips that are the same recording under several names, which must not be on both sides of a split.

    In memory, decoded samples are compared. Otherwise files are compared by size and, if sizes agree, by their first
    and last 64 KiB; copies are not looked for among more than 100,000 files. Clips of silence, or of any constant
    value, are never copies.

    Args:
        corpus: the clips (N).
        files: file that holds each clip's audio (N), a path if it is a file of its own.

    Returns:
        For each clip a name that it shares with its copies, or None if it has none.
    """
    if corpus.in_memory:
        names = [_samples_digest(corpus, i) for i in range(len(corpus))]
    else:
        by_file = _file_digests([Path(file) for file in dict.fromkeys(files)])
        names = [by_file.get(file) for file in files]
    owners: dict[str | None, set[str]] = {}
    for name, file in zip(names, files, strict=True):
        owners.setdefault(name, set()).add(file)
    return tuple(name if name is not None and len(owners[name]) > 1 else None for name in names)


def _samples_digest(corpus: Corpus, i: int) -> str | None:
    samples = corpus.read(i)
    if not len(samples) or samples.min() == samples.max():
        return None
    return hash_bytes(samples.tobytes()).hex()


def _file_digests(paths: Sequence[Path]) -> dict[str, str]:
    """Return a digest of size, first and last bytes for each file whose size another file has, too."""
    if len(paths) > _MAX_COMPARED_FILES:
        return {}
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    shared = Counter(sizes.values())
    digests: dict[str, str] = {}
    for path, size in sizes.items():
        if shared[size] > 1:
            with path.open("rb") as file:
                data = str(size).encode() + file.read(_COMPARED_BYTES)
                if size > _COMPARED_BYTES:
                    file.seek(max(_COMPARED_BYTES, size - _COMPARED_BYTES))
                    data += file.read(_COMPARED_BYTES)
            digests[str(path)] = hash_bytes(data).hex()
    return digests
