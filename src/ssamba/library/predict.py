"""Predict labels of recordings, or of each second of them, with a fine-tuned classifier: behind `ssamba predict`.

    report = ssamba.predict_files("recordings/", "runs/birds", "labels.csv")
    for segment in report.segments:
        print(segment.path, segment.start_s, segment.labels)

Repeating the call resumes where it stopped, as in `embed_files`; `OUTPUT.run.jsonl` says how the output was made.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ssamba.audio.decode import Damaged, checked_damaged
from ssamba.audio.sources import OneChannel, checked_channels
from ssamba.embedder import Embedder
from ssamba.embedding import EmbedOptions, Precision, Prediction
from ssamba.errors import ConfigError
from ssamba.files import path_text, user_path, utf8_text
from ssamba.hashing import digest_of, digest_of_json
from ssamba.library.embed import loaded_model
from ssamba.library.jobs import FileJob, JobReport
from ssamba.library.journal import Entry, Journal
from ssamba.library.tables import FileRecord
from ssamba.locks import lock_output
from ssamba.progress import OnProgress, checked_progress
from ssamba.worker_pool import checked_workers

FORMATS = (".csv", ".json")
_COLUMNS = ("path", "start_s", "end_s", "label", "probability")


@dataclass(frozen=True)
class Segment:
    """Labels of a recording, or of a part of it."""

    path: str
    """The recording."""
    start_s: float
    """Start in the recording."""
    end_s: float
    """End in the recording."""
    labels: dict[str, float]
    """The most probable labels, the first one first, with their probabilities (of all classes their sum is 1 if a clip
    has one label; they are independent if it may have several)."""


@dataclass(kw_only=True)
class PredictReport(JobReport):
    """Result of `predict_files`. As text, a summary."""

    verb: ClassVar[str] = "classified"
    step: ClassVar[str] = "predicting"
    front_end_from: ClassVar[str] = "--front-end of `ssamba finetune`, which the classifier keeps"

    segments: list[Segment] = field(default_factory=list)
    """The labels, in the order of the output."""


def predict_files(
    recordings: str | Path | Iterable[str | Path],
    checkpoint: str | Path | Embedder,
    output: str | Path | None = None,
    *,
    top: int = 3,
    per_second: bool | None = None,
    channels: OneChannel = "mean",
    precision: Precision = "fp32",
    batch_tokens: int | None = None,
    damaged: Damaged = "skip",
    workers: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    prune: bool = False,
    take_over: bool = False,
    strict: bool = False,
    progress: OnProgress | None = None,
) -> PredictReport:
    """Predict labels of recordings.

    With an output, each result is written at once to `OUTPUT.partial`, and the output at the end. Repeating the call
    resumes after an interruption, and adds new and changed files to a finished output, as in `embed_files`.

    Args:
        recordings: files, folders (searched recursively) and patterns, or one of them.
        checkpoint: a fine-tuned classifier: as for `load_model`, or a loaded model.
        output: a .csv file (a row for each label) or a .json file (an object for each segment); None writes nothing.
        top: number of most probable labels to keep; 0 is all.
        per_second: predict each second instead of the whole recording; None means as the model was trained. A model
            trained on whole clips applies its head to the frames of each second.
        channels: as for `embed_files`, like the arguments below.
        precision: `fp32`, `bf16`, or `auto`: `bf16` on CUDA alone.
        batch_tokens: patch tokens that are encoded together.
        damaged: whether to use files of which a part is missing.
        workers: decoding processes.
        device: where the model runs.
        overwrite: start anew.
        prune: remove the rows of files that are not named this time.
        take_over: take the output away from another process that is writing it.
        strict: raise at the end if files were skipped.
        progress: called after each file; returning False stops the job and keeps what is done.

    Returns:
        What was done, with the labels.

    Raises:
        OtherSettingsError: the output, or an interrupted run, was made with another model or other options.
        StoreError: the output was not written by this function, or no file could be classified.
        ConfigError: an argument has a wrong type or an unknown value, or the output another suffix.
        ValueError: the checkpoint has no classifier, or one that cannot classify segments.
        SkippedFilesError, OutputInUseError, CheckpointError, Interrupted: as for `embed_files`.
    """
    if type(top) is not int or top < 0:
        raise ConfigError(f"top is the number of labels to keep, 0 for all; got {top!r}")
    checked_channels(channels, separate=False)
    checked_damaged(damaged)
    checked_workers(workers)
    checked_progress(progress)
    target = None if output is None else user_path(output)
    if target is not None and (target.suffix not in FORMATS or target.is_dir()):
        raise ConfigError(f"{target}: expected a file name that ends in {' or '.join(FORMATS)}")
    report = PredictReport(output=target)
    job = FileJob(recordings, report)
    model = loaded_model(checkpoint, device)
    precision = EmbedOptions.parse({"precision": precision}, "predict").resolved(model.device).precision
    settings = _settings(model, top, per_second, channels, precision)
    journal: Journal | None = None
    records: dict[str, FileRecord] = {}

    def add(path: Path, found: list[Prediction]) -> float:
        duration_s = found[-1].end_s
        record = job.record(path, duration_s, len(found))
        segments = [
            Segment(
                record.path,
                round(one.start_s, 6),
                round(one.end_s, 6),
                {label: round(probability, 4) for label, probability in one.best(top)},
            )
            for one in found
        ]
        report.segments += segments
        records[record.key] = record
        if journal is not None:
            journal.add(Entry(record, [asdict(segment) for segment in segments]))
        return duration_s

    def run() -> None:
        rate_hz = model.front_end.sample_rate_hz
        try:
            job.run(
                lambda items: model.predict_stream(
                    items,
                    rate_hz,
                    per_second=per_second,
                    channels=channels,
                    batch_tokens=batch_tokens,
                    precision=precision,
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
            job.recount(records if journal is None else journal.records)

    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        as_text = as_csv if Path(output or "").suffix == ".csv" else as_json
        path.write_text(utf8_text(as_text([Segment(**row) for row in rows])), encoding="utf-8")

    if target is None:
        with job.kept():
            job.compare({})
            run()
            job.dropped(prune=False)
        order = {path_text(path): index for index, path in enumerate(job.todo)}
        report.segments.sort(key=lambda segment: order[segment.path])
    else:
        with (
            lock_output(target, take_over=take_over) as lock,
            job.kept(),
            closing(Journal(target, settings, lock.verify)) as journal,
        ):
            journal.open(overwrite)
            job.compare(journal.records)
            run()
            if report.finished:
                rows = journal.finish(list(job.files), job.dropped(prune), write)
                report.segments = [Segment(**row) for row in rows]
    report.rows = len(report.segments) if report.finished else 0
    job.check_strict(strict)
    return report


def _settings(
    model: Embedder, top: int, per_second: bool | None, channels: OneChannel, precision: Precision
) -> dict[str, Any]:
    """Return what the labels depend on, besides the recordings; raise a ValueError if there is no fit classifier."""
    model.predict_stream([], per_second=per_second)
    assert model.classifier is not None
    head = model.classifier.config
    identity = model.identity
    settings = {
        "weights_digest": identity.weights_digest,
        "classifier": digest_of(head.digest(), model.classifier.state_dict()),
        "encoder": model.encoder.config.digest(),
        "front_end": model.front_end.digest(),
        "top": top,
        "per_second": head.label_frames is not None if per_second is None else per_second,
        "channels": "mean" if channels is None else channels,
    }
    source = {} if identity.file_sha256 is None else {"file_sha256": identity.file_sha256}
    other = {} if precision == "fp32" else {"precision": precision}
    config_hash = digest_of_json({**settings, **other})
    shown = {"precision": precision, "model": identity.name, "front_end": model.front_end.summary}
    return {**settings, **shown, **source, "config_hash": config_hash}


def as_csv(segments: Sequence[Segment]) -> str:
    """Return rows of path, start_s, end_s, label, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in segments:
        for label, probability in one.labels.items():
            writer.writerow((one.path, _seconds(one.start_s), _seconds(one.end_s), label, f"{probability:.4f}"))
    return text.getvalue()


def _seconds(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def as_json(segments: Sequence[Segment]) -> str:
    """Return a list of objects with path, start_s, end_s and labels (name to probability, the most probable first)."""
    return json.dumps([asdict(one) for one in segments], indent=2, ensure_ascii=False) + "\n"
