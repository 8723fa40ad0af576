"""Embed collections of recordings into one table: the function behind `ssamba embed`.

    report = ssamba.embed_files("recordings/", "embeddings.npz")
    table = read_embeddings("embeddings.npz")            # embedding (rows, D), path (files,), ...

Repeating the call resumes where it stopped: an interrupted job continues, a finished table gets the files that are new
or have changed. Files that cannot be read are left out and listed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, get_args

from ssamba.audio.decode import Damaged, checked_damaged
from ssamba.audio.sources import OneChannel, checked_channels
from ssamba.config import FrontEndConfig
from ssamba.embedder import Embedder, load_model
from ssamba.embedding import Context, Embedding, EmbedOptions, Padding, Precision, Readout
from ssamba.errors import ConfigError
from ssamba.files import user_path
from ssamba.hashing import digest_of
from ssamba.library.jobs import FileJob, JobReport
from ssamba.library.store import Store, check_output
from ssamba.locks import lock_output
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

    Args:
        recordings: files, folders (searched recursively) and patterns, or one of them.
        output: .npz, .parquet or .csv (the latter two need the `store` extra).
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
            more than a few files.
        device: where the model runs; None means a GPU if available.
        front_end: how waveforms become features, instead of the checkpoint's own, as for `load_model`: `48khz`, `x10`.
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
        MissingExtraError: the format needs pyarrow.
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
    target = user_path(output)
    report = EmbedReport(output=target)
    check_output(target)
    job = FileJob(recordings, report)
    model = loaded_model(checkpoint, device, front_end)
    report.front_end = model.front_end.name
    model.check(options)
    if every_s is not None:
        model.span_frames(every_s)
    with lock_output(target, take_over=take_over) as lock, job.kept():
        store = Store(target, embed_settings(model, options, channels, readout, every_s), per_time, lock.verify)
        store.open(overwrite)
        job.compare(store.records)

        def add(path: Path, result: Embedding) -> float:
            lock.check()
            rows = result.frames if per_time else (result.clip if readout == "clip" else result.parts)[None]
            times_s = result.times_s.numpy() if per_time else None
            store.add(job.record(path, result.duration_s, len(rows)), rows.numpy(), times_s)
            return result.duration_s

        rate_hz = model.front_end.sample_rate_hz
        try:
            job.run(
                lambda items: model.embed_stream(
                    items,
                    rate_hz,
                    options,
                    frames=per_time,
                    every_s=every_s,
                    channels=channels,
                    batch_tokens=batch_tokens,
                    damaged=damaged,
                ),
                add,
                sample_rate_hz=rate_hz,
                channels=channels,
                damaged=damaged,
                workers=workers,
                progress=progress,
            )
        finally:
            try:
                store.flush()  # also if interrupted, so that nothing computed is lost
            finally:
                job.recount(store.records)
        if report.finished:
            report.rows = store.finish(list(job.files), job.dropped(prune))
    job.check_strict(strict)
    return report


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


def _check_readout(readout: str, frames: bool) -> None:
    if readout not in get_args(Readout):
        raise ConfigError(f"readout must be one of {', '.join(get_args(Readout))}; got {readout!r}")
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
