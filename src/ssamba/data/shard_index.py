"""The index of a folder of shards: where in which tar each clip is, so that a member is read directly at its offset.

Shards follow the WebDataset convention: uncompressed tars in which the members of one clip are adjacent and share their
name up to the first dot: `000123.opus`, `000123.json`. Any folder of such tars works. Their headers are scanned once,
and the index is saved beside them if the folder is writable:

- `index.parquet` (without pyarrow `index.csv`): key, shard, suffix, offset, size, seconds, labels, split, group;
- `shards.json`: the tars with their sizes in bytes, which show whether the index still fits them.

Offsets and sizes are in bytes. No torch here.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.audio.decode import AudioBytes, duration_or_error
from ssamba.audio.files import AUDIO_SUFFIXES, Skipped
from ssamba.data.manifest import CategoryColumn, TextColumn
from ssamba.errors import DataError, WorkerDiedError
from ssamba.files import json_text, path_text, utf8_text, write_atomically
from ssamba.worker_pool import map_in_processes

FORMAT = "ssamba shards"
SHARDS_FILE = "shards.json"
COLUMNS = ("key", "shard", "suffix", "offset", "size", "seconds", "labels", "split", "group")


@dataclass(frozen=True, slots=True)
class Member:
    """Index entry of one clip."""

    key: str
    shard: str
    """Name of the tar, as `ssamba.files.path_text` writes it."""
    suffix: str
    """Suffix of the audio member: `.opus`."""
    offset: int
    """Offset of the audio's first byte in the tar."""
    size: int
    seconds: float
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None


class ShardIndex:
    """The clips of a folder of shards as columns, in the order of the tars and of their members."""

    def __init__(self, folder: Path, members: Sequence[Member], skipped: Sequence[Skipped] = ()):
        keys = [member.key for member in members]
        if max(Counter(keys).values(), default=0) > 1:  # each tar counts from zero
            keys = [f"{Path(member.shard).stem}/{member.key}" for member in members]
        self.folder = folder
        self.skipped = tuple(skipped)
        """Members that cannot be used, with reasons."""
        self.keys = TextColumn(keys)
        self.shards = CategoryColumn(member.shard for member in members)
        self.suffixes = CategoryColumn(member.suffix for member in members)
        self.offsets = np.array([member.offset for member in members], np.int64)
        self.sizes = np.array([member.size for member in members], np.int64)
        self.seconds = np.array([member.seconds for member in members], np.float64)
        self.labels = CategoryColumn(member.labels for member in members)
        self.splits = CategoryColumn(member.split for member in members)
        self.groups = CategoryColumn(member.group for member in members)

    def __len__(self) -> int:
        return len(self.keys)


def shard_files(folder: Path) -> list[Path]:
    """Return the tars of a folder, sorted; a tar itself counts as a folder that holds only it."""
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def open_index(source: Path, workers: int = 0) -> ShardIndex:
    """Return the index of a folder of tars (or of one tar): the saved one if it fits, else a new one from the tars.

    Args:
        source: the folder, or one tar.
        workers: processes that scan tars; 0 scans in this process.

    Raises:
        DataError: there is no tar, or no audio in the tars.
    """
    files = shard_files(source)
    if not files:
        raise DataError(f"{source}: no tar in this folder. `ssamba shard DATA -o {source}` writes shards to it")
    folder = files[0].parent
    whole_folder = source.is_dir()
    if whole_folder and (saved := _read_index(folder, files)) is not None:
        return saved
    members, skipped = _scan(files, workers)
    if not members:
        reasons = "; ".join(entry.reason for entry in skipped[:3])
        raise DataError(f"{source}: holds no clip that can be read. {reasons or 'Expected members such as 0001.opus'}")
    if whole_folder and folder.stat().st_mode & 0o222:  # root could write to a read-only folder, but must not
        with suppress(OSError):  # not writable: the tars are scanned again next time
            write_index(folder, members, [{"name": n, "bytes": size} for n, size in _sizes(files).items()], skipped)
    return ShardIndex(folder, members, skipped)


def write_index(
    folder: Path,
    members: Sequence[Member],
    shards: Sequence[Mapping[str, Any]],
    skipped: Sequence[Skipped] = (),
    **more: Any,
) -> None:
    """Write the index of `shards` (each with `name` and `bytes`) beside them; never replace a file of others."""
    before = read_head(folder)
    name = before["index"] if before else next(n for n in _index_names() if not (folder / n).exists())
    write = _write_parquet if name.endswith(".parquet") else _write_csv
    head = {
        "format": FORMAT,
        "format_version": 1,
        "index": name,
        **more,
        "clips": len(members),
        "hours": round(sum(member.seconds for member in members) / 3600, 4),
        "shards": list(shards),
        "skipped": [[entry.path, entry.reason] for entry in skipped],
    }
    write_atomically(folder / name, lambda target: write(target, members))
    text = json_text(head, indent=1) + "\n"
    write_atomically(folder / SHARDS_FILE, lambda target: target.write_text(text, encoding="utf-8"))


def _index_names() -> list[str]:
    """Return file names for an index, the best first; the last one no other program uses."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return ["index.csv", "index.ssamba.csv"]
    return ["index.parquet", "index.ssamba.parquet"]


def _sizes(files: Sequence[Path]) -> dict[str, int]:
    return {path_text(file.name): file.stat().st_size for file in files}


def read_head(folder: Path) -> dict[str, Any] | None:
    """Return the content of `shards.json`, or None if there is none of ssamba's."""
    try:
        head = json.loads((folder / SHARDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return head if isinstance(head, dict) and head.get("format") == FORMAT else None


def read_members(folder: Path, head: Mapping[str, Any]) -> list[Member] | None:
    """Return the clips of a saved index, or None if it cannot be read here or is damaged."""
    path = folder / head["index"]
    try:
        records = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
        members = [Member(*record) for record in records]
    except (ImportError, OSError, ValueError, KeyError, TypeError):
        return None
    return members if len(members) == head["clips"] else None


def _read_index(folder: Path, files: Sequence[Path]) -> ShardIndex | None:
    """Return the index that is saved beside the tars, or None if there is none or it does not fit them."""
    head = read_head(folder)
    if head is None or {s["name"]: s["bytes"] for s in head["shards"]} != _sizes(files):
        return None
    members = read_members(folder, head)
    if members is None:
        return None
    return ShardIndex(folder, members, [Skipped(path, reason) for path, reason in head["skipped"]])


def _write_parquet(target: Path, members: Sequence[Member]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text, whole, names = pa.string(), pa.int64(), pa.list_(pa.string())
    types = (text, text, text, whole, whole, pa.float64(), names, text, text)
    arrays = [
        pa.array([getattr(member, name) for member in members], kind) for name, kind in zip(COLUMNS, types, strict=True)
    ]
    with target.open("wb") as file:  # pyarrow takes no path that is not UTF-8, or has a colon
        parquet.write_table(pa.table(arrays, names=list(COLUMNS)), file)


def _read_parquet(path: Path) -> Iterable[tuple[Any, ...]]:
    from pyarrow import parquet

    with path.open("rb") as file:
        table = parquet.read_table(file)
    columns = [table[name].to_pylist() for name in COLUMNS]
    columns[6] = [tuple(labels) for labels in columns[6]]
    return zip(*columns, strict=True)


def _write_csv(target: Path, members: Sequence[Member]) -> None:
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for m in members:
            labels = json.dumps(m.labels)
            writer.writerow([m.key, m.shard, m.suffix, m.offset, m.size, repr(m.seconds), labels, m.split, m.group])


def _read_csv(path: Path) -> Iterable[tuple[Any, ...]]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key, shard, suffix, offset, size, seconds, labels, split, group = (row[name] for name in COLUMNS)
            names = tuple(json.loads(labels))
            yield (
                key,
                shard,
                suffix,
                int(offset),
                int(size),
                float(seconds),
                names,
                split or None,
                group or None,
            )


def _scan(files: Sequence[Path], workers: int) -> tuple[list[Member], list[Skipped]]:
    members: list[Member] = []
    skipped: list[Skipped] = []
    for path, result in map_in_processes(scan_tar, files, min(workers, len(files)), ahead=1):
        if isinstance(result, WorkerDiedError):
            skipped.append(Skipped(str(path), f"{path}: a member of this tar cannot be read: {result}"))
        else:
            members += result[0]
            skipped += result[1]
    return members, skipped


def scan_tar(path: Path) -> tuple[list[Member], list[Skipped]]:
    """Return the clips of one tar, from its headers and those of its audio, and the members that cannot be used."""
    parts: dict[str, dict[str, tuple[int, int]]] = {}  # (offset, size) by suffix, by key
    skipped: list[Skipped] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isfile():
                    folder, _, name = info.name.rpartition("/")
                    stem, dot, suffix = name.partition(".")
                    if stem:
                        key = path_text(f"{folder}/{stem}" if folder else stem)
                        parts.setdefault(key, {})[(dot + suffix).lower()] = (info.offset_data, info.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = f"{path}: the tar is damaged or cut off ({error}); the members before that are used"
        skipped.append(Skipped(str(path), reason))
    members: list[Member] = []
    if not parts:
        return members, skipped
    with path.open("rb") as file:

        def read(part: tuple[int, int]) -> bytes:
            file.seek(part[0])
            return file.read(part[1])

        for key, found in parts.items():
            audio = next((suffix for suffix in found if f".{suffix.rpartition('.')[2]}" in AUDIO_SUFFIXES), None)
            if audio is None:
                name = f"{path}/{key}"
                skipped.append(Skipped(name, f"{name}: no audio among its members ({', '.join(found)})"))
                continue
            name = f"{path}/{key}{audio}"
            seconds = duration_or_error(AudioBytes(name, read(found[audio])))
            if isinstance(seconds, Exception):
                skipped.append(Skipped(name, str(seconds)))
                continue
            try:
                metadata = _parse_metadata(read(found[".json"])) if ".json" in found else {}
                labels = _labels(metadata)
                if not labels and ".cls" in found:
                    labels = (read(found[".cls"]).decode("utf-8").strip(),)
            except ValueError as error:
                skipped.append(Skipped(name, f"{name}: its labels cannot be read ({error}): write them as UTF-8"))
                continue
            split, group = (
                None if metadata.get(name) is None else utf8_text(str(metadata[name])) for name in ("split", "group")
            )
            members.append(Member(key, path_text(path.name), audio, *found[audio], seconds, labels, split, group))
    return members, skipped


def _parse_metadata(data: bytes) -> dict[str, Any]:
    metadata = json.loads(data)
    return metadata if isinstance(metadata, dict) else {}


def _labels(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    labels = metadata.get("labels", metadata.get("label"))
    if labels is None:
        return ()
    return tuple(utf8_text(str(label)) for label in (labels if isinstance(labels, list) else [labels]))
