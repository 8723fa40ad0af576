"""Bulk embedding: from a collection of recordings to one table, resumable, whatever the files are like."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssamba.audio.files import Skipped, path_text, write_skipped
from ssamba.embedder import Embedder, EmbedOptions, Source
from ssamba.library.decoding import decode_files
from ssamba.library.store import Store
from ssamba.library.tables import FileRecord

_FLUSH_FILES = 256
_FLUSH_S = 10.0


@dataclass
class Progress:
    """How far a job is; the same object is updated and handed to `on_progress` after each file."""

    total: int
    """Files asked for."""
    resumed: int = 0
    """Of these, embedded by an earlier run."""
    embedded: int = 0
    """Embedded by this run."""
    skipped: list[Skipped] = field(default_factory=list)
    """Left out by this run."""
    audio_s: float = 0.0
    """Audio embedded by this run."""
    rows: int = 0
    """Rows of the finished output."""
    started_s: float = field(default_factory=time.monotonic)
    """When the first file began, on the monotonic clock."""

    @property
    def seconds(self) -> float:
        """Time spent."""
        return time.monotonic() - self.started_s

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio for each second spent."""
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

    Files that cannot be read are left out and listed in `OUTPUT.skipped.csv`. What is embedded is on disk within ten
    seconds, in `OUTPUT.partial`; an interrupted job goes on from there with `resume`, and gives the same table.

    Args:
        files: recordings, as from `find_audio`.
        output: .npz, .parquet or .csv (the latter two with the `store` extra).
        embedder: the model.
        options: how to embed.
        frames: rows are time steps.
        workers: processes that decode while the model runs; 0 decodes in this one. (They are spawned: a script that
            asks for them needs the usual `if __name__ == "__main__":`.)
        resume: keep what an interrupted run, or a finished output, already holds.
        overwrite: replace what is there.
        on_progress: called after each file.

    Raises:
        StoreError: the output exists and neither `resume` nor `overwrite` was asked for, or it has other settings.
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
        # What was decoded in a worker is an array to the embedder, which cannot name the file.
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
        store.flush()  # also when interrupted: nothing already computed is lost
    progress.skipped.sort(key=lambda entry: entry.path)
    write_skipped(skipped_file(output), progress.skipped)
    progress.rows = store.finish([path_text(path) for path in files])
    return progress


def run_settings(embedder: Embedder, options: EmbedOptions) -> dict[str, str | float]:
    """What a table of embeddings depends on, besides the recordings."""
    return {
        "model": embedder.name,
        "window_s": embedder.window_s,
        "config_hash": embedder.digest(options),
        "options": options.model_dump_json(),
    }


def skipped_file(output: str | Path) -> Path:
    """Where the files that were left out are listed."""
    return Path(f"{output}.skipped.csv")


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
