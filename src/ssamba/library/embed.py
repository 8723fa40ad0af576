"""Embed collections of recordings into one table: the function behind `ssamba embed`.

    report = ssamba.embed_files("recordings/", "embeddings.npz")
    table = read_embeddings("embeddings.npz")            # embedding (rows, D), path (files,), ...

The same call goes on with what is there: an interrupted job continues, a finished table gets the files that are new or
have changed. Files that cannot be read are left out and listed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssamba.audio.decode import decode_files
from ssamba.audio.files import FoundAudio, Skipped, find_audio, write_skipped
from ssamba.embedder import Embedder, Source, load_model
from ssamba.embedding import EmbedOptions
from ssamba.errors import ConfigError, Interrupted, SkippedFilesError
from ssamba.files import RealPaths, path_text
from ssamba.library.store import Store, check_output
from ssamba.library.tables import FileRecord, StoreError
from ssamba.locks import lock_output
from ssamba.progress import OnProgress, ProgressReporter
from ssamba.worker_pool import default_workers

log = logging.getLogger(__name__)

_FLUSH_FILES = 256
_FLUSH_S = 10.0
_FEW_FILES = 8
"""A worker process takes longer to start than this many files take to decode."""


@dataclass
class EmbedReport:
    """What a call of `embed_files` did. As text, a summary in one or two lines."""

    output: Path
    """The table."""
    embedded: int = 0
    """Files that were embedded, new and changed ones."""
    changed: int = 0
    """Those of them that took the place of an earlier version in the table."""
    unchanged: int = 0
    """Files that were in the table already."""
    kept: int = 0
    """Files in the table that were not named this time."""
    pruned: int = 0
    """Files that `prune` removed from the table."""
    skipped: list[Skipped] = field(default_factory=list)
    """Files that could not be embedded, with the reasons, as in `skipped_file`."""
    rows: int = 0
    """Rows of the table; 0 if it is not complete."""
    audio_s: float = 0.0
    """Audio that was embedded."""
    seconds: float = 0.0
    """Time that the call took."""
    finished: bool = True
    """False if `progress` stopped the job: what is done is kept in `OUTPUT.partial`, and the same call goes on."""

    @property
    def skipped_file(self) -> Path:
        """The list of skipped files, if there are any."""
        return skipped_file(self.output)

    def __str__(self) -> str:
        if not self.finished:
            return f"stopped: {self.embedded} files embedded and kept; the same command goes on"
        there = f", {self.unchanged} already there" if self.unchanged else ""
        if self.embedded:
            changed = f" ({self.changed} of them changed)" if self.changed else ""
            speed = self.audio_s / max(self.seconds, 1e-9)
            done = f"{self.embedded} files embedded{changed}{there}, {len(self.skipped)} skipped: "
            done += f"{self.audio_s:.1f} s of audio in {self.seconds:.1f} s ({speed:.0f}x real time), "
        else:
            skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
            nothing = "nothing to embed" if self.pruned else "nothing to do"
            done = f"{nothing}: {self.unchanged} files already there{skipped}, "
        lines = [f"{done}{self.rows} rows in {self.output}"]
        if self.pruned:
            lines.append(f"{self.pruned} files that were not named this time were removed")
        if self.kept:
            lines.append(f"{self.kept} files that were not named this time are kept (--prune removes them)")
        return "\n".join(lines)


def embed_files(
    recordings: str | Path | Iterable[str | Path],
    output: str | Path,
    checkpoint: str | Path | Embedder | None = None,
    *,
    frames: bool = False,
    context: Literal["windows", "full"] = "windows",
    layer: int | None = None,
    padding: Literal["patch", "official"] = "patch",
    workers: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    prune: bool = False,
    take_over: bool = False,
    strict: bool = False,
    progress: OnProgress | None = None,
) -> EmbedReport:
    """Embed recordings into one table, one row for each file or, with `frames`, for each time step.

    Embeddings are written within ten seconds to the folder `OUTPUT.partial`, and the table at the end, under a
    temporary name that is renamed. The same call goes on after an interruption. If the table is complete, files that
    are new, or whose size or time has changed, are embedded, the latter in place of their old rows. Rows of files that
    are not named this time stay, as does the row of a file that cannot be read any more; a file that has changed and
    cannot be decoded loses its row. A file is the same whatever path or link names it; `path` keeps the first name.

    Args:
        recordings: files, folders (searched recursively) and patterns, or one of them.
        output: .npz, .parquet or .csv (the latter two need the `store` extra).
        checkpoint: as for `load_model`; or a loaded model.
        frames: rows are time steps, with a column `time_s`.
        context: as in `EmbedOptions`, like the next two. Not to be mixed: `full` gives other vectors.
        layer: hidden state to use.
        padding: how short recordings are padded.
        workers: processes that decode while the model runs; 0 decodes in this one. None means up to four, if there are
            more than a few files.
        device: where the model runs; None means a GPU if available.
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
        StoreError: the output is not a table or cannot be written, or no file could be embedded.
        OutputInUseError: another process is writing the output.
        SkippedFilesError: with `strict`, files were skipped; the table is written.
        ConfigError: an option has an unknown value.
        DataError: a pattern matches nothing, or a folder holds no audio.
        CheckpointError: the checkpoint cannot be loaded.
        MissingExtraError: the format needs pyarrow.
        Interrupted: a KeyboardInterrupt; what is done is kept.
    """
    started_s = time.monotonic()
    report = EmbedReport(Path(output))
    options = EmbedOptions.parse({"context": context, "layer": layer, "padding": padding}, "embed")
    check_output(report.output)
    found = find_audio([recordings] if isinstance(recordings, str | Path) else recordings)
    files = _by_key(found)
    report.skipped = list(found.skipped)
    if isinstance(checkpoint, Embedder) and device is not None:
        raise ConfigError("embed: device is for a checkpoint to load, and this model is loaded: leave it out")
    model = checkpoint if isinstance(checkpoint, Embedder) else load_model(checkpoint, device=device)
    model.check(options)
    with lock_output(report.output, take_over=take_over) as lock:
        store = Store(report.output, embed_settings(model, options), frames, lock.verify)
        store.open(overwrite)
        try:
            job = _Job(store, files, model, options, frames, report)
            job.run(workers, progress)
            if report.finished:
                job.finish(prune)
        except KeyboardInterrupt:
            kept = f"{report.embedded} files are embedded and kept, repeat the command to go on"
            raise Interrupted(kept, report) from None
        except OSError as error:
            raise StoreError(f"{error}. What is embedded is kept: repair the cause, and repeat the command") from error
    report.seconds = time.monotonic() - started_s
    if strict and report.skipped:
        raise SkippedFilesError(f"{len(report.skipped)} files were skipped", report)
    return report


def embed_settings(model: Embedder, options: EmbedOptions) -> dict[str, Any]:
    """Return the settings that a table of embeddings depends on, besides the recordings."""
    return {
        "model": model.name,
        "weights_digest": model.identity.weights_digest,
        "encoder": model.encoder.config.digest(),
        "front_end": model.front_end.digest(),
        "window_s": model.window_s,
        "config_hash": model.digest(options),
        "options": options.model_dump(),
    }


def skipped_file(output: str | Path) -> Path:
    """Return the path of the list of files that were left out."""
    return Path(f"{output}.skipped.csv")


def _by_key(files: FoundAudio) -> dict[str, Path]:
    """Return each file by its key: its real path, as text."""
    if files.other_names:
        first, other = files.other_names[0]
        log.info("%d other names of the same files are left out, as %s (%s)", len(files.other_names), other, first)
    real_path = RealPaths()
    return {path_text(real_path(path)): path for path in files}


class _Job:
    """The files that one call embeds, and their way into the store."""

    def __init__(
        self,
        store: Store,
        files: dict[str, Path],
        model: Embedder,
        options: EmbedOptions,
        frames: bool,
        report: EmbedReport,
    ) -> None:
        self.store, self.files, self.model, self.options, self.frames = store, files, model, options, frames
        self.report = report
        self.before = store.records
        self.stats = {key: _stat(path) for key, path in files.items()}
        self.todo = {path: key for key, path in files.items() if not self._is_there(key)}
        report.unchanged = len(files) - len(self.todo)
        report.kept = len(self.before.keys() - files.keys())
        self.num_skipped = 0
        self.undecodable: set[str] = set()
        self.shown = ProgressReporter(None, "embedding")

    def _is_there(self, key: str) -> bool:
        record = self.before.get(key)
        return record is not None and record.is_unchanged(*self.stats[key])

    def run(self, workers: int | None, progress: OnProgress | None) -> None:
        """Embed the files; also if interrupted, everything that was computed is on disk afterwards."""
        report, store = self.report, self.store
        if workers is None:
            workers = default_workers(4) if len(self.todo) > _FEW_FILES else 0
        self.shown = ProgressReporter(progress, "embedding", len(self.todo))
        flushed_s = time.monotonic()
        results = self.model.embed_stream(self._sources(workers), self.model.front_end.sample_rate_hz, self.options)
        try:
            for path, result in results:
                key = self.todo[path]
                if isinstance(result, Exception):
                    self._skip(path, key, result)
                else:
                    earlier = self.before.get(key)
                    name = earlier.path if earlier else path_text(path)
                    embedding = result.frames if self.frames else result.clip[None]
                    record = FileRecord(name, *self.stats[key], result.duration_s, len(embedding), key)
                    times_s = result.times_s if self.frames else result.times_s[:1]
                    store.add(record, embedding.numpy(), times_s.numpy())
                    report.embedded += 1
                    report.changed += earlier is not None
                    report.audio_s += result.duration_s
                    if store.num_pending >= _FLUSH_FILES or time.monotonic() - flushed_s > _FLUSH_S:
                        store.flush()
                        flushed_s = time.monotonic()
                self._show()
            report.finished = report.finished or self.num_done == len(self.todo)
        finally:
            store.flush()

    def _sources(self, workers: int) -> Iterator[tuple[Path, Source]]:
        for path, decoded in decode_files(list(self.todo), self.model.front_end.sample_rate_hz, workers):
            if isinstance(decoded, Exception):
                self._skip(path, self.todo[path], decoded)
                self._show()
            else:
                yield path, decoded
            if not self.report.finished:  # what was read before is still embedded
                return

    @property
    def num_done(self) -> int:
        return self.report.embedded + self.num_skipped

    def _show(self) -> None:
        report = self.report
        if not self.shown.update(self.num_done, audio_s=report.audio_s, skipped=self.num_skipped):
            report.finished = False

    def _skip(self, path: Path, key: str, error: Exception) -> None:
        self.num_skipped += 1
        self.report.skipped.append(Skipped.because(path, error))
        if isinstance(error, ValueError) and self.stats[key] != _ABSENT:
            self.undecodable.add(key)

    def finish(self, prune: bool) -> None:
        """Write the table and the list of skipped files."""
        report = self.report
        report.skipped.sort(key=lambda entry: entry.path)
        write_skipped(report.skipped_file, report.skipped)
        dropped = self.undecodable & self.before.keys()
        if prune:
            others = self.before.keys() - self.files.keys()
            report.pruned, report.kept = len(others), 0
            dropped |= others
        if not report.embedded and not self.before.keys() - dropped:
            first = f" ({report.skipped[0].reason})" if report.skipped else ""
            raise StoreError(f"no file could be embedded{first}: all reasons are in {report.skipped_file}")
        report.rows = self.store.finish(list(self.files), dropped)


_ABSENT = 0, 0


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return _ABSENT
    return stat.st_size, stat.st_mtime_ns
