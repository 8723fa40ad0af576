"""Embed collections of recordings into one table: the function behind `ssamba embed`.

    report = ssamba.embed_files("recordings/", "embeddings.npz")
    table = read_embeddings("embeddings.npz")            # embedding (rows, D), path (files,), ...

Repeating the call resumes where it stopped: an interrupted job continues, a finished table gets the files that are new
or have changed. Files that cannot be read are left out and listed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from ssamba.audio.decode import Damaged, checked_damaged
from ssamba.audio.sources import OneChannel, Source, checked_channels
from ssamba.config import FrontEndConfig
from ssamba.devices import parse_device
from ssamba.embedder import Embedder, load_model
from ssamba.embedding import Context, EmbedOptions, Padding, Precision, Readout, checked_readout
from ssamba.errors import ConfigError
from ssamba.files import user_path
from ssamba.hashing import digest_of
from ssamba.library.engines import Engine, LocalEngine
from ssamba.library.jobs import FileJob, JobReport
from ssamba.library.parts import PartsStore
from ssamba.library.ray_engine import RayEngine
from ssamba.library.remote import Recording
from ssamba.library.storage import url_of
from ssamba.library.store import Store, check_output
from ssamba.library.tables import Array, parts_folder
from ssamba.library.url_locks import UrlLock, lock_url
from ssamba.locks import OutputLock, lock_output
from ssamba.model.readouts import PARTS_DEFINITION
from ssamba.progress import OnProgress, checked_progress
from ssamba.worker_pool import checked_workers

log = logging.getLogger(__name__)


class EmbedReport(JobReport):
    """Result of `embed_files`. As text, a summary."""

    verb: ClassVar[str] = "embedded"
    step: ClassVar[str] = "embedding"
    front_end_from: ClassVar[str] = "--front-end"


def embed_files(
    recordings: str | Path | Iterable[str | Path],
    output: str | Path,
    checkpoint: str | Path | Embedder | None = None,
    *,
    frames: bool = False,
    every_s: float | None = None,
    readout: Readout = "clip",
    context: Context = "windows",
    layer: int | None = None,
    padding: Padding = "patch",
    overlap: float = 0.5,
    channels: OneChannel = "mean",
    precision: Precision = "fp32",
    batch_tokens: int | None = None,
    damaged: Damaged = "skip",
    workers: int | None = None,
    device: str | None = None,
    front_end: FrontEndConfig | str | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    overwrite: bool = False,
    prune: bool = False,
    take_over: bool = False,
    strict: bool = False,
    progress: OnProgress | None = None,
) -> EmbedReport:
    """Embed recordings into one table, one row for each file, each time step (`frames`) or stretch (`every_s`).

    Embeddings are written within ten seconds to the folder `OUTPUT.partial`, and the table at the end, under a
    temporary name that is renamed. Repeating the call resumes after an interruption. If the table is complete, files
    that are new, or whose size or time has changed, are embedded, the latter in place of their old rows. Rows of files
    that are not named this time stay, as does the row of a file that cannot be read any more; a file that has changed
    and cannot be decoded loses its row. A file is the same whatever path or link names it; `path` keeps the first name,
    absolute or from the folder of the table (`ssamba.files.table_path`).

    A folder of Parquet files gets a further one every half minute, which is never written again unless files change;
    rows are in no order there, and `overwrite` removes the earlier ones first.

    Args:
        recordings: files, folders (searched recursively) and patterns, or one of them; also URLs of storage that
            fsspec reads (`s3://bucket/folder/`).
        output: .npz, .parquet or .csv (the latter two need the `store` extra); or a folder of Parquet files, a name
            that ends in a slash, or a URL (`s3://bucket/table`), for tables that are too large for one.
        checkpoint: as for `load_model`; or a loaded model.
        frames: rows are time steps, with a column `time_s`.
        every_s: rows are means over stretches of so many seconds, with a column `time_s` of their centers; whole frames
            (10 ms), and at least a time step.
        readout: the vector of a file: `clip`, (D,), or `parts`, (4 * D,), as in `Embedding`.
        context: `windows`, or the `full` recording at once, which gives other vectors (`EmbedOptions.context`).
        layer: hidden state to use instead of the final output (`EmbedOptions.layer`).
        padding: `patch`, or `official` to pad short recordings to the pretraining length with silence.
        overlap: fraction of each window shared with the next, from 0 to below 1.
        channels: `mean` averages the channels of a file, a number takes one of them (from 0).
        precision: `fp32`, `bf16`, or `auto`: `bf16` on CUDA alone (`EmbedOptions.precision`).
        batch_tokens: patch tokens that are encoded together; memory grows with it, results do not change.
        damaged: `skip` leaves out files of which a part is missing; `keep` uses what comes before it, and lists them in
            `OUTPUT.remarks.csv` with files that were read whole although their header is wrong.
        workers: processes that decode while the model runs; 0 decodes in this one. None means up to four, if there are
            more than a few files. With `ray`, the processes that embed, one for each core or GPU; None means all.
        device: where the model runs; None means a GPU if available.
        front_end: how waveforms become features, instead of the checkpoint's own, as for `load_model`: `48khz`, `x10`.
        engine: `local`: this process and its decoding processes; `ray`: the cores or GPUs of a Ray cluster, which all
            must see the recordings and have this version of ssamba. The table is the same. Needs the `ray` extra.
        address: with `ray`, of the cluster: `HOST:PORT`, or `auto` for the one that this machine belongs to. None means
            what `RAY_ADDRESS` says, else Ray is started on this machine for this call.
        overwrite: start anew; an existing table stays until the new one is complete.
        prune: remove the rows of files that are not named this time.
        take_over: take the output away from another process that is writing it.
        strict: raise at the end if files were skipped.
        progress: called after each file; returning False stops the job and keeps what is done.

    Returns:
        What was done.

    Raises:
        OtherSettingsError: the table, or an interrupted run, was made with other options, or another model (a
            ModelMismatchError); the message names each difference.
        StoreError: the output is not a table that this function wrote, or cannot be written, or no file could be
            embedded.
        OutputInUseError: another process is writing the output.
        SkippedFilesError: with `strict`, files were skipped; the table is written.
        ConfigError: an argument has a wrong type or an unknown value, options exclude each other, or the output has
            another suffix.
        DataError: a pattern matches nothing, or a folder holds no audio.
        CheckpointError: the checkpoint cannot be loaded.
        MissingExtraError: the format needs pyarrow, or the engine Ray.
        WorkerStartError, WorkerDiedError: the cluster has no worker that can start, or was lost; what is done is kept.
        Interrupted: a KeyboardInterrupt; what is done is kept.
    """
    values = {"context": context, "layer": layer, "padding": padding, "overlap": overlap, "precision": precision}
    options = EmbedOptions.parse(values, "embed")
    per_time = frames or every_s is not None
    _check_readout(readout, per_time)
    checked_channels(channels, separate=False)
    checked_damaged(damaged)
    checked_workers(workers)
    checked_progress(progress)
    folder = parts_folder(output)
    target = url_of(output) or user_path(output)
    if folder is None:
        check_output(Path(target))
    elif Path(target).suffix in (".npz", ".csv"):
        raise ConfigError(f"{target}: a URL, or a name with a slash, is a folder of Parquet files: omit the suffix")
    report = EmbedReport(output=target)
    job = FileJob(recordings, report)
    _check_engine(engine, address)
    if engine == "local":
        model = loaded_model(checkpoint, device, front_end)
    else:
        options = _resolved_for_ray(options, device)
        model = loaded_model(checkpoint, None if isinstance(checkpoint, Embedder) else "cpu", front_end)
        model = model if model.device.type == "cpu" else deepcopy(model).to("cpu")
    report.front_end = model.front_end.name
    model.check(options)
    if every_s is not None:
        model.span_frames(every_s)
    stream = EmbedStream(model, options, readout, frames, every_s, channels, batch_tokens, damaged)
    local = LocalEngine[EmbeddedRows](stream, model.front_end.sample_rate_hz, channels, damaged, workers)
    runner: Engine[EmbeddedRows] = local
    if engine == "ray":
        runner = RayEngine[EmbeddedRows](local, model, address, workers, device)
    settings = embed_settings(model, options, channels, readout, every_s)
    locked: AbstractContextManager[OutputLock | UrlLock]
    locked = lock_url(target, take_over) if isinstance(target, str) else lock_output(target, take_over=take_over)
    with locked as lock, job.kept():
        store: Store | PartsStore
        if folder is None:
            store = Store(target, settings, per_time, lock.verify)
        else:
            store = PartsStore(target, folder, settings, per_time, lock.verify)
        store.open(overwrite)
        job.compare(store.records)

        def add(path: Recording, result: EmbeddedRows) -> float:
            lock.check()
            store.add(job.record(path, result.duration_s, len(result.vectors)), result.vectors, result.times_s)
            return result.duration_s

        try:
            job.run(runner, add, progress)
        finally:
            try:
                store.flush()  # also if interrupted, so that nothing computed is lost
            finally:
                job.recount(store.records)
        if report.finished:
            report.rows = store.finish(list(job.files), job.dropped(prune))
    job.check_strict(strict)
    return report


class EmbeddedRows(NamedTuple):
    """Rows of a file."""

    vectors: Array
    """(rows, D) float32."""
    times_s: Array | None
    """(rows,), of time steps and stretches."""
    duration_s: float

    @property
    def nbytes(self) -> int:
        """Size of the vectors."""
        return self.vectors.nbytes


@dataclass(frozen=True)
class EmbedStream:
    """Embeds recordings as they come; picklable, so that other machines can do so."""

    model: Embedder
    options: EmbedOptions
    readout: Readout
    frames: bool
    every_s: float | None
    channels: OneChannel
    batch_tokens: int | None
    damaged: Damaged

    def __call__(self, items: Iterator[tuple[Path, Source]]) -> Iterator[tuple[Path, EmbeddedRows | Exception]]:
        """Yield files with their rows or errors, as `Embedder.embed_stream` does."""
        per_time = self.frames or self.every_s is not None
        found = self.model.embed_stream(
            items,
            self.model.front_end.sample_rate_hz,
            self.options,
            frames=per_time,
            every_s=self.every_s,
            channels=self.channels,
            batch_tokens=self.batch_tokens,
            damaged=self.damaged,
        )
        for path, one in found:
            if isinstance(one, Exception):
                yield path, one
            elif per_time:
                yield path, EmbeddedRows(one.frames.numpy(), one.times_s.numpy(), one.duration_s)
            else:
                vector = one.clip if self.readout == "clip" else one.parts
                yield path, EmbeddedRows(vector[None].numpy(), None, one.duration_s)


def loaded_model(
    checkpoint: str | Path | Embedder | None, device: str | None, front_end: FrontEndConfig | str | None = None
) -> Embedder:
    """Return a model that is given as a checkpoint or loaded.

    Raises:
        ConfigError: it is loaded, and a device or a front end is given, too; or there is no such front end.
        CheckpointError: the checkpoint cannot be loaded.
    """
    if isinstance(checkpoint, Embedder):
        for name, value in (("device", device), ("front_end", front_end)):
            if value is not None:
                raise ConfigError(
                    f"{name} applies only when a checkpoint is loaded, and this model is already loaded: omit it"
                )
        return checkpoint
    model = load_model(checkpoint, device=device, front_end=front_end)
    log.debug("model %s on %s, front end %s", model.identity, model.device, model.front_end.summary)
    return model


def _check_engine(engine: str, address: str | None) -> None:
    if engine not in ("local", "ray"):
        raise ConfigError(f"engine must be one of local, ray; got {engine!r}")
    if address is not None and engine != "ray":
        raise ConfigError("address is of a Ray cluster: add --engine ray (engine='ray'), or leave it out")


def _resolved_for_ray(options: EmbedOptions, device: str | None) -> EmbedOptions:
    """Return the options as they are on the device of Ray's workers, which this process does not know by itself."""
    if options.precision == "auto" and device is None:
        raise ConfigError("precision='auto' depends on the device of Ray's workers: name it (--device cuda), or fp32")
    return options if device is None else options.resolved(parse_device(device))


def _check_readout(readout: Readout, frames: bool) -> None:
    checked_readout(readout)
    if frames and readout != "clip":
        raise ConfigError(
            f"frames and every_s give each time step or stretch a row, and the readout {readout!r} is one vector of a "
            "file: leave one out"
        )


def embed_settings(
    model: Embedder,
    options: EmbedOptions,
    channels: OneChannel = "mean",
    readout: Readout = "clip",
    every_s: float | None = None,
) -> dict[str, Any]:
    """Return the settings that a table of embeddings depends on, besides the recordings."""
    options, channels = options.resolved(model.device), "mean" if channels is None else channels
    # What is at its default leaves the digest of earlier versions as it is.
    added = [f"channel {channels}"] if channels != "mean" else []
    added += [PARTS_DEFINITION] if readout == "parts" else []
    every = {} if every_s is None else {"every_s": every_s}
    added += [f"means of {every_s:g} s"] if every_s is not None else []
    digest, identity = model.digest(options), model.identity
    return {
        "model": identity.name,
        "weights_digest": identity.weights_digest,
        **({} if identity.file_sha256 is None else {"file_sha256": identity.file_sha256}),
        "encoder": model.encoder.config.digest(),
        "front_end": model.front_end.summary,
        "window_s": model.window_s,
        "config_hash": digest_of(digest, *added) if added else digest,
        "options": {**options.model_dump(), "channels": channels, "readout": readout, **every},
    }
