"""Embed a collection of recordings into one table; resumable, and damaged files are left out and listed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssamba.audio.decode import decode_files
from ssamba.audio.files import Skipped, path_text, write_skipped
from ssamba.embedder import Embedder, EmbedOptions, Source
from ssamba.library.tables import FileRecord, Store

_FLUSH_FILES = 256
_FLUSH_S = 10.0


@dataclass
class Progress:
    """Progress of a job; one object, updated and passed to `on_progress` after each file."""

    total: int
    """Number of files."""
    resumed: int = 0
    """Files that an earlier run embedded."""
    embedded: int = 0
    """Files that this run embedded."""
    skipped: list[Skipped] = field(default_factory=list)
    """Files that this run left out."""
    audio_s: float = 0.0
    """Audio that this run embedded."""
    rows: int = 0
    """Rows of the finished output."""
    started_s: float = field(default_factory=time.monotonic)
    """Start of the job on the monotonic clock."""

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started_s

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio per second."""
        return self.audio_s / max(self.seconds, 1e-9)


def embed_collection(
    files: Sequence[Path],
    output: str | Path,
    embedder: Embedder,
    options: EmbedOptions | None = None,
    *,
    frames: bool = False,
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Embed files into one table, one row for each file or, with `frames`, for each time step.

    Files that cannot be read are left out and listed in `OUTPUT.skipped.csv`. Embeddings are written within ten seconds
    to `OUTPUT.partial`; with `resume`, an interrupted job continues from there and produces the same table.

    Args:
        files: recordings, as from `find_audio`.
        output: .npz, .parquet or .csv (the latter two need the `store` extra).
        embedder: the model.
        options: how to embed.
        frames: rows are time steps.
        workers: processes that decode while the model runs; 0 decodes in this one. They are spawned, so a script that
            uses them needs `if __name__ == "__main__":`.
        resume: keep the files of an interrupted run or of a finished output.
        overwrite: replace an existing output.
        on_progress: called after each file.

    Raises:
        StoreError: the output exists and neither `resume` nor `overwrite` was asked for, or it has other settings.
        ModelMismatchError: the output was made with another model.
        MissingExtraError: the format needs pyarrow.
        ValueError: the model cannot follow the options.
    """
    options = options or EmbedOptions()
    embedder.check(options)
    store = Store(output, run_settings(embedder, options), frames)
    store.open(resume, overwrite)
    progress = Progress(len(files))
    stats = {path: _stat(path) for path in files}
    todo = [path for path in files if not store.done(path_text(path), *stats[path])]
    progress.resumed = len(files) - len(todo)
    rate_hz = embedder.front_end.sample_rate_hz

    def sources() -> Iterator[tuple[Path, Source]]:
        for path, decoded in decode_files(todo, rate_hz, workers):
            if isinstance(decoded, Exception):
                skip(path, decoded)
            else:
                yield path, decoded

    def skip(path: Path, error: Exception) -> None:
        name, reason = path_text(path), str(error)
        # The embedder knows a file that a worker decoded as an array, so its messages do not name it.
        progress.skipped.append(Skipped(name, reason if reason.startswith(name) else f"{name}: {reason}"))
        report()

    def report() -> None:
        if on_progress is not None:
            on_progress(progress)

    flushed_s = time.monotonic()
    try:
        for path, result in embedder.embed_stream(sources(), rate_hz, options):
            if isinstance(result, Exception):
                skip(path, result)
                continue
            embedding = result.frames if frames else result.clip[None]
            record = FileRecord(path_text(path), *stats[path], result.duration_s, len(embedding))
            store.add(record, embedding.numpy(), result.times_s.numpy() if frames else result.times_s[:1].numpy())
            progress.embedded += 1
            progress.audio_s += result.duration_s
            if store.num_pending >= _FLUSH_FILES or time.monotonic() - flushed_s > _FLUSH_S:
                store.flush()
                flushed_s = time.monotonic()
            report()
    finally:
        store.flush()  # also if interrupted, so that nothing computed is lost
    progress.skipped.sort(key=lambda entry: entry.path)
    write_skipped(skipped_file(output), progress.skipped)
    progress.rows = store.finish([path_text(path) for path in files])
    return progress


def run_settings(embedder: Embedder, options: EmbedOptions) -> dict[str, str | float]:
    """Return the settings that a table of embeddings depends on, besides the recordings."""
    return {
        "model": embedder.name,
        "weights_digest": embedder.identity.weights_digest,
        "window_s": embedder.window_s,
        "config_hash": embedder.digest(options),
        "options": options.model_dump_json(),
    }


def skipped_file(output: str | Path) -> Path:
    """Return the path of the list of files that were left out."""
    return Path(f"{output}.skipped.csv")


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
