"""A corpus: clips that can be listed and read at random, wherever they are kept.

    corpus = open_corpus("recordings/")                 # a folder of audio: headers are scanned
    corpus = open_corpus("manifest.parquet", split="train")
    corpus = open_corpus("shards/")                     # tars of `ssamba shard`, or anyone's WebDataset tars
    corpus = open_corpus("hf:ashraq/esc50")             # (or hf:OWNER/NAME:CONFIGURATION) Hugging Face, or a `datasets.Dataset` itself
    corpus = CachedCorpus(corpus)                       # decoded once, kept in memory (`cache.py`)

A corpus is picklable and small: worker processes get their own. Shapes: waveforms are (samples,), float32.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ssamba.audio.decode import AudioBytes, checked_rate, decode
from ssamba.audio.files import Skipped
from ssamba.data.columns import TextColumn
from ssamba.data.manifest import Manifest, read_manifest, scan_folder, with_durations
from ssamba.data.shard_index import ShardIndex, open_index, shard_files
from ssamba.errors import AudioDecodeError, DataError
from ssamba.hashing import digest_of, hash_bytes

Samples: TypeAlias = "npt.NDArray[np.float32]"
_MANIFESTS = (".csv", ".jsonl", ".parquet", ".json")
_OPEN_TARS = 128


@dataclass(frozen=True, slots=True)
class CorpusClip:
    """What a corpus knows of a clip without decoding it."""

    key: str
    """Its name, unique in the corpus."""
    seconds: float
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None


class Corpus(ABC):
    """Clips by number. Implementations set `name`, `sample_rate_hz`, `seconds`, and may set the others."""

    name: str
    """For people and reports."""
    sample_rate_hz: int
    """Rate of what `read` gives."""
    seconds: npt.NDArray[np.float64]
    """Durations (clips,), as headers state them."""
    shards: npt.NDArray[np.int64] | None = None
    """Which file each clip lies in (clips,), where reading them in turn is quicker; None where it makes no difference."""
    skipped: tuple[Skipped, ...] = ()
    """What was left out when the corpus was opened, and why."""
    in_memory: bool = False
    """Whether reading costs next to nothing."""

    def __len__(self) -> int:
        return len(self.seconds)

    @abstractmethod
    def clip(self, i: int) -> CorpusClip:
        """What is known of clip `i`."""

    @abstractmethod
    def key(self, i: int) -> str:
        """The name of clip `i`."""

    @abstractmethod
    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """Samples [round(start_s * rate) : round((start_s + seconds) * rate)] of clip `i`, mono; None: to its end.

        Fewer come where the clip ends earlier.

        Raises:
            AudioDecodeError: the clip is missing, damaged, or ends before `start_s`.
        """

    @property
    def hours(self) -> float:
        """Sum of the durations."""
        return float(self.seconds.sum()) / 3600

    @cached_property
    def key_hashes(self) -> npt.NDArray[np.uint64]:
        """64 bits of each clip's key (clips,), from which random draws are made."""
        hashes = (hash_bytes(os.fsencode(self.key(i))) for i in range(len(self)))
        return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when the set of clips, or the length of one, does."""
        milliseconds = np.round(self.seconds * 1000).astype("<i8")
        order = np.lexsort((milliseconds, self.key_hashes))
        return digest_of(str(self.sample_rate_hz), self.key_hashes[order].astype("<u8"), milliseconds[order])


class ManifestCorpus(Corpus):
    """Local files, as a manifest lists them. Durations that it lacks come from the files' headers."""

    def __init__(
        self, manifest: Manifest, sample_rate_hz: int = 16_000, name: str = "manifest", workers: int = 0
    ) -> None:
        """Make a corpus of the clips of `manifest`, by `workers` processes where headers must be read.

        Raises:
            DataError: none of them can be read.
        """
        self.name, self.sample_rate_hz = name, checked_rate(sample_rate_hz)
        self.manifest, skipped = with_durations(manifest, workers)
        self.skipped = tuple(skipped)
        if not len(self.manifest):
            reason = skipped[0].reason if skipped else "it lists none"
            raise DataError(f"{name}: no clip can be read. {reason}")
        source = manifest.source
        root = None if source is None else source if source.is_dir() else source.parent
        self._keys = TextColumn(_unique(_clip_key(clip.path, clip.start_s, root) for clip in self.manifest))
        self.seconds = np.array([clip.duration_s for clip in self.manifest], np.float64)

    def key(self, i: int) -> str:
        """The path below the manifest, with the start of a part."""
        return self._keys[i]

    def clip(self, i: int) -> CorpusClip:
        """What is known of clip `i`."""
        clip = self.manifest[i]
        return CorpusClip(self._keys[i], float(self.seconds[i]), clip.labels, clip.split, clip.group)

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """A part of clip `i`, as `Corpus.read` has it."""
        clip = self.manifest[i]
        left_s = float(self.seconds[i]) - start_s
        if left_s <= 0:
            raise _past_the_end(self._keys[i], start_s, float(self.seconds[i]))
        # Counted in samples of the clip, so that a part of it equals the slice whatever its own start rounds to.
        rate_hz = self.sample_rate_hz
        first = round(clip.start_s * rate_hz) + round(start_s * rate_hz)
        count = round((start_s + min(left_s, seconds or left_s)) * rate_hz) - round(start_s * rate_hz)
        return decode(clip.path, sample_rate_hz=rate_hz, start_s=first / rate_hz, duration_s=max(1, count) / rate_hz)


def _clip_key(path: Path, start_s: float, root: Path | None) -> str:
    """Names a clip by its path below the manifest, so that a moved corpus has the same keys."""
    name = path.relative_to(root) if root is not None and path.is_relative_to(root) else path
    return name.as_posix() + (f"@{start_s!r}" if start_s else "")


def _unique(keys: Iterable[str]) -> Iterable[str]:
    counts: dict[str, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
        yield key if counts[key] == 1 else f"{key}#{counts[key]}"


def _past_the_end(key: str, start_s: float, seconds: float) -> AudioDecodeError:
    return AudioDecodeError(
        f"{key}: start_s={start_s:g} lies past the end of the clip, which lasts {seconds:.3f} s. Choose an earlier start"
    )


class ShardCorpus(Corpus):
    """Clips in tars, each read at its offset, without looking for it."""

    def __init__(
        self, index: ShardIndex, sample_rate_hz: int = 16_000, split: str | None = None, name: str | None = None
    ) -> None:
        """Make a corpus of the clips of an index, or of one split of them.

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
                raise DataError(f"{index.folder}: no clip is of split {split!r} (there are: {known})")
        self._rows = rows
        self.seconds = index.seconds[rows]
        self.shards = index.shards.codes[rows].astype(np.int64)
        self._tars = _OpenTars()

    def key(self, i: int) -> str:
        """The name of the members."""
        return self.index.keys[int(self._rows[i])]

    def clip(self, i: int) -> CorpusClip:
        """What is known of clip `i`."""
        row, index = int(self._rows[i]), self.index
        return CorpusClip(
            index.keys[row], float(self.seconds[i]), index.labels[row], index.splits[row], index.groups[row]
        )

    def read(self, i: int, start_s: float = 0.0, seconds: float | None = None) -> Samples:
        """A part of clip `i`, as `Corpus.read` has it."""
        row, index = int(self._rows[i]), self.index
        shard = index.shards[row]
        name = f"{index.folder / shard}/{index.keys[row]}{index.suffixes[row]}"
        try:
            data = self._tars.read(index.folder / shard, int(index.offsets[row]), int(index.sizes[row]))
        except OSError as error:
            raise AudioDecodeError(f"{name}: cannot be read ({error.strerror or error}). Check disk and path") from None
        return decode(AudioBytes(name, data), sample_rate_hz=self.sample_rate_hz, start_s=start_s, duration_s=seconds)


class _OpenTars:
    """The last tars that were read, kept open; each process opens its own."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """So many bytes from `offset` on; OSError where the file is gone."""
        if not hasattr(os, "pread"):  # Windows
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        if path not in self._files:
            while len(self._files) >= _OPEN_TARS:
                self._files.pop(next(iter(self._files))).close()
            self._files[path] = path.open("rb", buffering=0)
        # Reads at an offset of its own: processes that were forked share the file's position.
        return os.pread(self._files[path].fileno(), size, offset)

    def __del__(self) -> None:
        for file in self._files.values():
            file.close()

    def __reduce__(self) -> tuple[type[_OpenTars], tuple[()]]:
        return _OpenTars, ()


def open_corpus(
    source: Any,
    sample_rate_hz: int = 16_000,
    split: str | None = None,
    *,
    workers: int = 0,
    labels: Literal["folder"] | None = None,
) -> Corpus:
    """A corpus from whatever holds one.

    Args:
        source: a folder of audio, or of tars; a tar; a manifest (`.csv`, `.jsonl`, `.parquet`, the original's `.json`);
            a `datasets.Dataset` with an audio column, a folder of its `save_to_disk`, or `hf:OWNER/NAME`; a `Manifest`;
            a corpus (handed back).
        sample_rate_hz: what recordings are resampled to.
        split: only the clips of this split.
        workers: processes that read headers, where that must be done; 0 reads in this one.
        labels: `folder` takes the folders of a folder of audio as labels.

    Raises:
        DataError: it is nothing of the kind, or there is nothing in it.
        MissingExtraError: `datasets` or pyarrow is needed and missing.
    """
    if isinstance(source, Corpus):
        if source.sample_rate_hz != sample_rate_hz or split is not None:
            raise DataError(
                f"{source.name}: is open already, at {source.sample_rate_hz} Hz and with its splits; "
                f"open it anew for {sample_rate_hz} Hz or split {split!r}"
            )
        return source
    if isinstance(source, Manifest):
        name = source.source.stem if source.source else "manifest"
        return ManifestCorpus(source.in_split(split), sample_rate_hz, name, workers)
    if not isinstance(source, str | Path) or str(source).startswith("hf:"):
        from ssamba.data.huggingface import HuggingFaceCorpus

        return HuggingFaceCorpus.open(source, sample_rate_hz, split)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Expected a folder of audio or of tars, or a manifest")
    if path.is_file() and path.suffix in _MANIFESTS:
        return ManifestCorpus(read_manifest(path).in_split(split), sample_rate_hz, path.stem, workers)
    if path.suffix == ".tar" or (path.is_dir() and shard_files(path)):
        return ShardCorpus(open_index(path, workers), sample_rate_hz, split, path.stem)
    if not path.is_dir():
        raise DataError(f"{path}: is neither a manifest ({', '.join(_MANIFESTS)}) nor a tar, nor a folder of audio")
    one = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    if one or (path / "dataset_dict.json").is_file():
        from ssamba.data.huggingface import HuggingFaceCorpus

        return HuggingFaceCorpus.open(path, sample_rate_hz, split)
    if split is not None:
        raise DataError(f"{path}: a folder of audio has no splits: list it in a manifest with a split column")
    try:
        clips, skipped = scan_folder(path, workers, labels=labels)
    except ValueError as error:
        raise DataError(str(error)) from None
    if not clips:
        raise DataError(f"{path}: no recording in it can be read. {skipped[0].reason}")
    corpus = ManifestCorpus(Manifest(clips, path), sample_rate_hz, path.resolve().name)
    corpus.skipped = (*skipped, *corpus.skipped)
    return corpus
