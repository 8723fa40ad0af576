"""Write shards: the recordings of a manifest as FLAC or Opus in tars of the WebDataset convention.

    write_shards("manifest.parquet", "shards/", codec="opus", workers=8)

Each clip is two members, `00000123.opus` and `00000123.json` (labels, seconds, source, ...). Recordings longer than
`max_clip_s` are cut into equal pieces, `00000123-0000`, `00000123-0001`, ... Clips are distributed over the shards in a
random order, the same for the same manifest, so that every shard is a fair sample of the corpus and a window over
shards shuffles well.

One worker writes a shard under a temporary name, decodes every clip of it again and compares the length, computes the
checksum from the disk, renames the file and notes it in `.records/`. A job that was killed and is started again checks
the shards that are recorded and writes the others. At the end the index (`shard_index.py`) is written and the records
are removed. Clips that cannot be read are left out and listed in `skipped.csv`. The same recordings give the same bytes
as FLAC; Opus is in Ogg streams, each of which contains a random number.

No torch here.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shutil
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from pydantic import Field, model_validator

from ssamba.audio.decode import AudioBytes, Damaged, collect_remarks, decode, stream
from ssamba.audio.files import Remark, Skipped, read_remarks, write_remarks, write_skipped
from ssamba.audio.readers import Samples
from ssamba.config import Config, settings_differences
from ssamba.data.listing import list_recordings
from ssamba.data.manifest import Clip, Manifest, with_durations
from ssamba.data.shard_index import COLUMNS, SHARDS_FILE, Member, read_head, read_members, shard_files, write_index
from ssamba.errors import (
    AudioDecodeError,
    ConfigError,
    DataError,
    Interrupted,
    OtherSettingsError,
    SkippedFilesError,
    WorkerDiedError,
)
from ssamba.files import move_aside, output_folder, path_text, user_path, write_atomically
from ssamba.hashing import digest_of, file_checksum, hash_bytes
from ssamba.locks import LockToken, OutputLock, lock_output
from ssamba.progress import OnProgress, ProgressReporter, checked_progress, counted, format_duration
from ssamba.worker_pool import default_workers, map_in_processes

_RECORDS = ".records"
_OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)
_FLAC_RATIO = 0.55
"""Typical size of FLAC relative to 16 bits a sample."""
_TAR_BYTES = 2_048
"""Size of the tar headers and the JSON of a clip."""
_ENCODE_SAMPLES = 8_192
"""Samples to encode at once: libsndfile's Vorbis encoder overflows its stack on a minute."""


class ShardSettings(Config):
    """Everything that shards depend on besides the recordings; saved in `shards.json`."""

    codec: Literal["opus", "flac"] = "opus"
    """Opus is a tenth of the size of FLAC, which is exact to 16 bits."""
    sample_rate_hz: int = Field(16_000, gt=0)
    """Rate that recordings are resampled to; they become mono."""
    bitrate_kbps: float = Field(48.0, ge=8, le=256)
    """Bit rate of Opus."""
    shard_mb: float = Field(200.0, gt=0)
    """Approximate size of a shard, in 10^6 bytes."""
    max_clip_s: float = Field(30.0, gt=0)
    """Longer recordings are cut: Opus is decoded from the start of a clip, so a crop of a long one is slow."""
    shuffle: bool = True
    """Distribute clips over the shards in a random order instead of the manifest's."""
    damaged: Damaged = "skip"
    """What to do with files of which a part is missing: `skip` them, or `keep` what comes before it."""

    @model_validator(mode="after")
    def _check(self) -> ShardSettings:
        if self.codec == "opus" and self.sample_rate_hz not in _OPUS_RATES_HZ:
            rates = ", ".join(map(str, _OPUS_RATES_HZ))
            raise ValueError(f"Opus knows the rates {rates} Hz, not {self.sample_rate_hz}: use one of these, or flac")
        return self

    @property
    def bytes_per_s(self) -> float:
        """Approximate size of a second of audio."""
        if self.codec == "opus":
            return 1000 / 8 * (self.bitrate_kbps + 3)
        return 2 * self.sample_rate_hz * _FLAC_RATIO


@dataclass
class ShardReport:
    """Result of `write_shards`."""

    output: Path
    """Folder of the shards."""
    total: int = 0
    """Shards to write."""
    shards: int = 0
    """Finished shards."""
    resumed: int = 0
    """Finished shards that an earlier call wrote."""
    clips: int = 0
    """Clips in the finished shards; each piece of a recording counts."""
    audio_s: float = 0.0
    """Seconds of audio in them."""
    size: int = 0
    """Size of the finished shards in bytes."""
    skipped: list[Skipped] = field(default_factory=list)
    """Recordings that were left out."""
    remarks: list[Remark] = field(default_factory=list)
    """Recordings that were used although their header is wrong or a part of them is missing."""
    moved_to: Path | None = None
    """Folder that other shards were moved to, because of `overwrite`."""
    elapsed_s: float = 0.0
    """Duration of the call."""
    finished: bool = True
    """False if `progress` stopped the call; the next one resumes it."""

    @property
    def skipped_file(self) -> Path:
        """The table of skipped recordings."""
        return self.output / "skipped.csv"

    @property
    def remarks_file(self) -> Path:
        """The table of remarks."""
        return self.output / "remarks.csv"

    def __str__(self) -> str:
        if not self.finished:
            return f"stopped at {self.shards} of {self.total} shards; repeat the call to resume: {self.output}"
        resumed = f" ({'all' if self.resumed == self.total else self.resumed} already written)" if self.resumed else ""
        moved = "" if self.moved_to is None else f"; what was there is in {self.moved_to}"
        return (
            f"{counted(self.total, 'shard')}{resumed}: {counted(self.clips, 'clip')}, {format_duration(self.audio_s)}, "
            f"{self.size / 1e6:.1f} MB, {len(self.skipped)} skipped, in {self.elapsed_s:.1f} s: {self.output}{moved}"
        )


@dataclass(frozen=True)
class _Job:
    """One shard to write."""

    folder: Path
    name: str
    clips: tuple[tuple[int, Clip], ...]
    """Clips with their numbers in the manifest."""
    settings: ShardSettings
    lock: LockToken
    """The lock of the folder."""
    unusable: Mapping[int, str] = field(default_factory=dict)
    """Numbers of clips that must not be read, with the reasons."""

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def record(self) -> Path:
        return self.folder / _RECORDS / f"{self.name}.json"


def write_shards(
    data: Any,
    output: str | Path,
    codec: Literal["opus", "flac"] = "opus",
    *,
    bitrate: float = 48.0,
    sample_rate: int = 16_000,
    shard_mb: float = 200.0,
    max_clip_s: float = 30.0,
    shuffle: bool = True,
    damaged: Damaged = "skip",
    encoding: str | None = None,
    overwrite: bool = False,
    take_over: bool = False,
    strict: bool = False,
    workers: int | None = None,
    progress: OnProgress | None = None,
) -> ShardReport:
    """Write recordings as shards, or resume an interrupted call with the same arguments.

    Args:
        data: a manifest, a folder of audio, audio files; or a list of these.
        output: folder of the shards.
        codec: `opus` (small), or `flac` (exact to 16 bits).
        bitrate: bit rate of Opus, in kbit/s.
        sample_rate: rate in Hz that recordings are resampled to.
        shard_mb: approximate size of a shard, in 10^6 bytes.
        max_clip_s: longer recordings are cut into equal pieces of at most this length.
        shuffle: distribute clips over the shards in a random order instead of that of the data.
        damaged: what to do with files of which a part is missing: `skip` them, or `keep` what comes before it.
        encoding: of manifests in CSV and JSON, such as `cp1252`; None is UTF-8.
        overwrite: write anew; shards in the folder are moved to a folder beside it.
        take_over: take the folder away from another process that is writing to it.
        strict: raise an error at the end if any recording was skipped.
        workers: processes, each writing one shard at a time; None means the number of cores minus one, at most 8.
        progress: called after each shard; returning False stops, and the next call resumes.

    Raises:
        ConfigError: the settings are invalid.
        OtherSettingsError: the folder holds shards of other recordings or settings; every difference is named.
        DataError: the folder holds tars of others, or no recording can be read.
        OutputInUseError: another process is writing to the folder.
        SkippedFilesError: `strict` is set and recordings were skipped; the shards are written.
        Interrupted: Ctrl-C; finished shards are kept.
    """
    started_s, folder = time.monotonic(), output_folder(output)
    checked_progress(progress)
    for source in data if isinstance(data, list | tuple) else [data]:
        if isinstance(source, str | Path) and os.path.realpath(user_path(source)) == os.path.realpath(folder):
            raise ConfigError(f"{folder} is the folder of the recordings: choose another output")
    options = ShardSettings.parse(
        {
            "codec": codec,
            "sample_rate_hz": sample_rate,
            "bitrate_kbps": bitrate,
            "shard_mb": shard_mb,
            "max_clip_s": max_clip_s,
            "shuffle": shuffle,
            "damaged": damaged,
        },
        "shards",
    )
    report = ShardReport(folder)
    try:
        with lock_output(folder, folder=True, take_over=take_over) as lock:
            with collect_remarks() as remarks:
                report.finished = _write(report, data, options, encoding, overwrite, workers, progress, lock)
            earlier = read_remarks(report.remarks_file) if report.resumed else ()
            report.remarks = list(write_remarks(report.remarks_file, [*earlier, *remarks, *report.remarks]))
    except KeyboardInterrupt:
        again = "the command without --overwrite" if overwrite and report.total else "the command"
        written = f"{report.shards} of {report.total} shards are written" if report.total else "no shard is written"
        raise Interrupted(f"{written}: repeat {again} to resume", report) from None
    report.elapsed_s = time.monotonic() - started_s
    if strict and report.skipped:
        raise SkippedFilesError(f"{len(report.skipped)} recordings were skipped, and strict was set", report)
    return report


def _write(
    report: ShardReport,
    data: Any,
    options: ShardSettings,
    encoding: str | None,
    overwrite: bool,
    workers: int | None,
    progress: OnProgress | None,
    lock: OutputLock,
) -> bool:
    """Write shards and their index, and fill in the report; return False if `progress` stopped that."""
    folder = report.output
    try:
        manifest, unread = list_recordings(data, workers, progress, options.damaged, encoding)
    except Interrupted:
        return False
    total, processes = len(manifest), default_workers() if workers is None else workers
    manifest, unknown = with_durations(manifest, processes, options.damaged)
    report.skipped = [*unread, *unknown]
    if not len(manifest):
        reason = report.skipped[0].reason if report.skipped else "It lists none"
        raise DataError(f"none of {max(total, len(report.skipped))} recordings can be read. {reason}")
    jobs = _make_jobs(manifest, folder, options, lock.token)
    identity = _identity(options, [clip for job in jobs for clip in job.clips])
    lock.verify()
    report.moved_to = _prepare_folder(folder, identity, overwrite)
    report.total = len(jobs)
    records: dict[str, dict[str, Any]] = {}
    reporter = ProgressReporter(progress, "writing", len(jobs), "shards")

    def finish(job: _Job, record: dict[str, Any]) -> bool:
        lock.check()
        records[job.name] = record
        report.shards += 1
        report.clips += len(record["members"])
        report.audio_s += sum(member[COLUMNS.index("seconds")] for member in record["members"])
        report.size += record["bytes"]
        report.skipped += [Skipped(path, reason) for path, reason in record["skipped"]]
        report.remarks += [Remark(*values) for values in record["remarks"]]
        size = f"{report.size / 1e6:.0f} MB"
        return reporter.update(report.shards, audio_s=report.audio_s, skipped=len(report.skipped), detail=size)

    if not _write_missing(jobs, processes, finish, report):
        return False
    report.skipped = sorted(set(report.skipped), key=lambda entry: (entry.path, entry.reason))
    lock.verify()
    write_skipped(report.skipped_file, report.skipped)
    if not report.clips:
        raise DataError(f"none of {total} recordings can be read. {report.skipped[0].reason}")
    written = [records[job.name] for job in jobs if records[job.name]["bytes"]]
    members = [_member(values) for record in written for values in record["members"]]
    shards = [{key: record[key] for key in ("name", "bytes", "sha256")} for record in written]
    write_index(folder, members, shards, report.skipped, **identity)
    shutil.rmtree(folder / _RECORDS)
    return True


def _write_missing(
    jobs: Sequence[_Job], workers: int, finish: Callable[[_Job, dict[str, Any]], bool], report: ShardReport
) -> bool:
    """Check the shards that exist and write the others; return False if `finish` stopped that."""
    remaining = []
    for job, record in map_in_processes(_read_finished, jobs, workers if len(jobs) > 1 else 0):
        if not isinstance(record, dict):
            remaining.append(job)
            continue
        report.resumed += 1
        if not finish(job, record):
            return False
    for job, record in map_in_processes(_write_shard, remaining, min(workers, len(remaining)), ahead=2):
        if not finish(job, _write_without_killers(job) if isinstance(record, WorkerDiedError) else record):
            return False
    return True


def _member(values: Sequence[Any]) -> Member:
    fields = dict(zip(COLUMNS, values, strict=True))
    return Member(**{**fields, "labels": tuple(fields["labels"])})


def _identity(settings: ShardSettings, clips: Sequence[tuple[int, Clip]]) -> dict[str, Any]:
    """Return what shards depend on, as it is saved: a digest of everything, the settings, and the recordings."""
    texts = [
        repr((number, os.fspath(clip.path), *dataclasses.astuple(clip)[1:])).encode("utf-8", "replace")
        for number, clip in clips
    ]
    return {
        "job": digest_of(settings.digest(), *texts),
        "settings": settings.model_dump(),
        "recordings": {"clips": len(clips), "digest": digest_of(*texts)},
    }


def _make_jobs(manifest: Manifest, folder: Path, settings: ShardSettings, lock: LockToken) -> list[_Job]:
    """Distribute the clips over shards of similar size."""
    numbers = list(range(len(manifest)))
    if settings.shuffle:
        keys = [hash_bytes(os.fsencode(clip.path) + repr(clip.start_s).encode(), 64) for clip in manifest]
        numbers.sort(key=lambda i: (keys[i], i))
    sizes = [(manifest[i].duration_s or 0.0) * settings.bytes_per_s + _TAR_BYTES for i in numbers]
    count = max(1, math.ceil(sum(sizes) / (settings.shard_mb * 1e6)))
    before = np.concatenate([[0.0], np.cumsum(sizes)[:-1]])
    shard_of = np.minimum(count - 1, np.floor(before / sum(sizes) * count)).astype(int)
    jobs = []
    for shard in range(count):
        clips = tuple((numbers[at], manifest[numbers[at]]) for at in np.flatnonzero(shard_of == shard).tolist())
        if clips:
            jobs.append(_Job(folder, f"shard-{shard:06d}.tar", clips, settings, lock))
    return jobs


def _prepare_folder(folder: Path, identity: dict[str, Any], overwrite: bool) -> Path | None:
    """Prepare the folder for a job, or refuse to mix its shards with others.

    Returns:
        The folder that other shards were moved to, if any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = folder / _RECORDS
    marker = records / "job.json"
    head = read_head(folder)
    begun = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else head
    known = {entry["name"] for entry in (head or {}).get("shards", ())}
    known |= {path.name.removesuffix(".json") for path in records.glob("*.tar.json")}
    moved_to = None
    if overwrite or begun is None or begun.get("job") != identity["job"]:
        unknown = [path.name for path in shard_files(folder) if path.name not in known]
        if unknown:
            raise DataError(f"{folder}: {unknown[0]} was not written by ssamba: choose another folder, or remove it")
        if begun is not None and not overwrite:
            differences = settings_differences(begun.get("settings", {}), identity["settings"])
            differences += _other_recordings(begun.get("recordings"), identity["recordings"])
            raise OtherSettingsError(
                f"{folder} holds other shards: {'; '.join(differences)}. Use the same data and settings to resume, "
                "--overwrite to start anew, or another folder"
            )
        index = [] if head is None else [head["index"]]
        moved_to = move_aside(folder, [*sorted(known), *index, "skipped.csv", "remarks.csv", SHARDS_FILE, _RECORDS])
        head = None
    if not marker.is_file():
        records.mkdir(exist_ok=True)
        if head is not None:
            _restore_records(folder, head)
        write_atomically(marker, lambda target: target.write_text(json.dumps(identity), encoding="utf-8"))
    for leftover in folder.glob(".shard-*.tmp"):
        leftover.unlink(missing_ok=True)
    return moved_to


def _other_recordings(before: dict[str, Any] | None, now: dict[str, Any]) -> list[str]:
    if before is None or before == now:
        return []
    if before["clips"] != now["clips"]:
        return [f"the recordings were {before['clips']} clips, are {now['clips']}"]
    return [f"{now['clips']} recordings, as before, but other paths, times or labels"]


def _restore_records(folder: Path, head: dict[str, Any]) -> None:
    """Write the records of a finished job again, from its index, so that its shards can be checked one by one."""
    members = read_members(folder, head)
    if members is None:
        return
    of_shard: dict[str, list[Member]] = {}
    for member in members:
        of_shard.setdefault(member.shard, []).append(member)
    for number, shard in enumerate(head["shards"]):
        skipped = head["skipped"] if number == 0 else []
        values = [dataclasses.astuple(member) for member in of_shard.get(shard["name"], [])]
        _write_record(
            folder / _RECORDS / f"{shard['name']}.json", {**shard, "members": values, "skipped": skipped, "remarks": []}
        )


def _read_finished(job: _Job) -> dict[str, Any] | None:
    """Return the record of a shard that an earlier run wrote, or None if there is none or the shard has changed."""
    try:
        record: dict[str, Any] = json.loads(job.record.read_text(encoding="utf-8"))
        if record["bytes"] == 0:
            return record
        if job.path.stat().st_size == record["bytes"] and file_checksum(job.path) == record["sha256"]:
            return record
    except (OSError, ValueError, KeyError):
        pass
    return None


def _write_shard(job: _Job) -> dict[str, Any]:
    """Write one shard and its record, in a worker."""
    members: list[Member] = []
    skipped: list[tuple[str, str]] = []
    temporary = job.folder / f".{job.name}.{os.getpid()}.tmp"
    try:
        with collect_remarks() as remarks, temporary.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            for number, clip in job.clips:
                try:
                    if number in job.unusable:
                        raise AudioDecodeError(f"{clip.path}: {job.unusable[number]}")
                    parts = list(_encoded_pieces(clip, job.settings))
                except (ValueError, OSError) as error:
                    skipped.append((path_text(clip.path), str(error)))
                except Exception as error:  # a damaged file can provoke any error, which must not cost the other files
                    reason = f"{clip.path}: cannot be decoded ({type(error).__name__}: {error}). Leave it out"
                    skipped.append((path_text(clip.path), reason))
                else:
                    members += _add_clip(tar, job, number, clip, parts)
            tar.close()
            file.flush()
            os.fsync(file.fileno())
        unique = [dataclasses.astuple(found) for found in dict.fromkeys(remarks)]
        record = {"name": job.name, "bytes": 0, "sha256": "", "members": [], "skipped": skipped, "remarks": unique}
        if members:
            size, checksum = temporary.stat().st_size, file_checksum(temporary)
            values = [dataclasses.astuple(member) for member in members]
            record = {**record, "bytes": size, "sha256": checksum, "members": values}
            job.lock.verify()
            temporary.replace(job.path)
        job.lock.verify()
        _write_record(job.record, record)
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _add_clip(
    tar: tarfile.TarFile, job: _Job, number: int, clip: Clip, parts: Sequence[tuple[bytes, float]]
) -> Iterator[Member]:
    """Write the encoded pieces of a clip, each with its duration in seconds, and yield their index entries."""
    suffix = f".{job.settings.codec}"
    # Pieces of one recording must stay together when splits are made.
    group = clip.group or (f"recording {number}" if len(parts) > 1 else None)
    start_s = clip.start_s
    for piece, (data, seconds) in enumerate(parts):
        key = f"{number:08d}" if len(parts) == 1 else f"{number:08d}-{piece:04d}"
        offset = add_member(tar, key + suffix, data)
        metadata = {
            "labels": list(clip.labels),
            "split": clip.split,
            "group": group,
            "seconds": seconds,
            "source": path_text(clip.path),
            "start_s": start_s,
            "sample_rate_hz": job.settings.sample_rate_hz,
        }
        add_member(tar, key + ".json", json.dumps(metadata).encode())
        start_s += seconds
        yield Member(key, job.name, suffix, offset, len(data), seconds, clip.labels, clip.split, group)


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member, the same on every machine, and return the offset of its first byte."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _write_without_killers(job: _Job) -> dict[str, Any]:
    """Write a shard on which workers died, without the clips that end a process."""
    unusable = {
        number: str(result)
        for (number, _), result in map_in_processes(_decode_clip, job.clips, 1)
        if isinstance(result, WorkerDiedError)
    }
    if not unusable:
        raise DataError(
            f"{job.path}: the workers that wrote it died, and no recording is the reason: if memory is short, use "
            "fewer workers; then run the command again to resume here"
        )
    return _write_shard(dataclasses.replace(job, unusable=unusable))


def _decode_clip(numbered: tuple[int, Clip]) -> None:
    with suppress(Exception):  # only what ends the process matters here
        deque(_pieces(numbered[1], 16_000, 30.0, "keep"), maxlen=0)


def _write_record(path: Path, record: dict[str, Any]) -> None:
    write_atomically(path, lambda target: target.write_text(json.dumps(record), encoding="utf-8"))


def _encoded_pieces(clip: Clip, settings: ShardSettings) -> Iterator[tuple[bytes, float]]:
    """Yield the pieces of a clip as whole files of the codec, each with its duration in seconds.

    Raises:
        AudioDecodeError: the recording cannot be read, or its length changes when it is encoded and decoded.
    """
    rate_hz = settings.sample_rate_hz
    for samples in _pieces(clip, rate_hz, settings.max_clip_s, settings.damaged):
        data = encode(samples, settings)
        decoded = decode(AudioBytes(f"{clip.path} as {settings.codec}", data), sample_rate_hz=rate_hz)
        if len(decoded) != len(samples):
            raise AudioDecodeError(
                f"{clip.path}: {len(samples)} samples came back as {len(decoded)} from {settings.codec}. Leave it out, "
                "or write flac"
            )
        yield data, len(samples) / rate_hz


def _pieces(clip: Clip, rate_hz: int, max_clip_s: float, damaged: Damaged) -> Iterator[Samples]:
    """Yield the clip's samples in equal pieces of at most `max_clip_s` seconds."""
    total = max(1, round((clip.duration_s or 0.0) * rate_hz))
    count = math.ceil(total / (max_clip_s * rate_hz))
    if count == 1:
        yield _decode(clip, rate_hz, clip.start_s, total / rate_hz, damaged)
        return
    size = math.ceil(total / count)
    if clip.start_s == 0:
        yield from islice(stream(clip.path, sample_rate_hz=rate_hz, block_s=size / rate_hz, damaged=damaged), count)
        return
    first = round(clip.start_s * rate_hz)
    for at in range(0, total, size):
        length = min(size, total - at)
        yield _decode(clip, rate_hz, (first + at) / rate_hz, length / rate_hz, damaged)


def _decode(clip: Clip, rate_hz: int, start_s: float, duration_s: float, damaged: Damaged) -> Samples:
    return decode(clip.path, sample_rate_hz=rate_hz, start_s=start_s, duration_s=duration_s, damaged=damaged)


def encode(samples: Samples, settings: ShardSettings) -> bytes:
    """Return samples (samples,) at the rate of the settings as a whole file of their codec."""
    options: dict[str, Any] = {"format": "FLAC", "subtype": "PCM_16"}
    if settings.codec == "opus":
        # libsndfile's compression level 0 is 256 kbit/s, level 1 is 6 kbit/s.
        options = {"format": "OGG", "subtype": "OPUS", "compression_level": 1 - (settings.bitrate_kbps - 6) / 250}
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", settings.sample_rate_hz, 1, **options) as file:
        for first in range(0, len(samples), _ENCODE_SAMPLES):
            file.write(samples[first : first + _ENCODE_SAMPLES])
    return target.getvalue()
