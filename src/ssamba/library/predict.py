"""Predict labels of recordings, of seconds or windows of them, or events, with a classifier: behind `ssamba predict`.

    report = ssamba.predict_files("recordings/", "runs/birds", "labels.csv")
    for segment in report.segments:
        print(segment.path, segment.start_s, segment.labels)
    ssamba.predict_files("nights/", "runs/birds", "events.csv", events=True)

Repeating the call resumes where it stopped, as in `embed_files`; `OUTPUT.run.jsonl` says how the output was made.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ssamba.annotations import SUFFIXES, TABLES, Annotation, Style, write_as, write_label_files
from ssamba.audio.decode import Damaged, checked_damaged
from ssamba.audio.sources import OneChannel, Source, checked_channels
from ssamba.config import Config
from ssamba.embedder import Embedder
from ssamba.embedding import Merge, Per, Precision, Prediction, PredictOptions
from ssamba.errors import ConfigError
from ssamba.events import merge_windows
from ssamba.files import listed_path, output_folder, path_text, user_path, utf8_text
from ssamba.hashing import digest_of, digest_of_json
from ssamba.inference.clip_windows import Predictor, Windows
from ssamba.library.embed import loaded_model
from ssamba.library.engines import LocalEngine
from ssamba.library.jobs import FileJob, JobReport
from ssamba.library.journal import Entry, Journal
from ssamba.library.remote import Recording
from ssamba.library.tables import FileRecord
from ssamba.locks import lock_output
from ssamba.progress import OnProgress, checked_progress
from ssamba.worker_pool import checked_workers

log = logging.getLogger(__name__)

TABLE_NAME = "events.csv"
"""In a folder of selection tables or label tracks, the table of all of them, from which a job goes on."""
_DEFAULT_THRESHOLD = 0.5


class EventOptions(Config):
    """How the answers of windows become events."""

    threshold: float | None = Field(None, gt=0, le=1)
    """Probability from which on a label is heard; None: those of the checkpoint, or 0.5."""
    min_length_s: float = Field(0.0, ge=0)
    """Shorter events are left out."""
    gap_s: float = Field(0.0, ge=0)
    """Events of one label are joined if not more than this lies between them."""


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
    front_end: str | None = None
    """Front end of the model, such as `16khz` or `x10` (`FrontEndConfig.name`)."""


@dataclass(frozen=True)
class _Answer:
    """What was found in a recording."""

    of: list[Prediction] | Windows

    @property
    def duration_s(self) -> float:
        return float(self.of.ends_s[-1]) if isinstance(self.of, Windows) else self.of[-1].end_s


@dataclass(kw_only=True)
class PredictReport(JobReport):
    """Result of `predict_files`. As text, a summary."""

    verb: ClassVar[str] = "classified"
    step: ClassVar[str] = "predicting"
    front_end_from: ClassVar[str] = "--front-end of `ssamba finetune`, which the classifier keeps"

    segments: list[Segment] = field(default_factory=list)
    """The labels, in the order of the output."""
    events: list[Annotation] = field(default_factory=list)
    """The events, if they were asked for, in the order of the output."""


def predict_files(
    recordings: str | Path | Iterable[str | Path],
    checkpoint: str | Path | Embedder,
    output: str | Path | None = None,
    *,
    top: int = 3,
    per: Per | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    merge: Merge = "mean",
    events: bool = False,
    threshold: float | None = None,
    min_length_s: float = 0.0,
    gap_s: float = 0.0,
    style: Style | None = None,
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
        recordings: files, folders (searched recursively) and patterns, or one of them; also URLs, as in `embed_files`.
        checkpoint: a fine-tuned classifier: as for `load_model`, or a loaded model.
        output: a .csv or .parquet file (a row for each label or event) or a .json file (an object for each segment or
            event), with paths from its folder (`ssamba.files.table_path`); with `style` a folder; None writes nothing.
            It is on a disk, not at a URL.
        top: number of most probable labels to keep; 0 is all.
        per, window_s, hop_s, merge: as for `Embedder.predict`; the hop of events is a quarter of a window by default.
        events: merge the answers of windows to events, instead of `top` labels `per` clip, second or window. A label is
            heard from its threshold on; the background of the model makes no events.
        threshold: the same for all labels, from 0 to 1; None means those that were chosen on held-out clips and stored
            with the model, or 0.5 if there are none.
        min_length_s: shorter events are left out.
        gap_s: events of one label are joined if not more than this lies between them.
        style: `raven` or `audacity`: the output is a folder that gets a selection table or a label track for each
            recording, and `events.csv`, the table of all.
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
        What was done, with the labels or the events.

    Raises:
        OtherSettingsError: the output, or an interrupted run, was made with another model or other options.
        StoreError: the output was not written by this function, or no file could be classified.
        ConfigError: an argument has a wrong type or an unknown value, or the output another suffix, or is a URL.
        ValueError: the checkpoint has no classifier, or one that cannot answer so.
        SkippedFilesError, OutputInUseError, CheckpointError, Interrupted: as for `embed_files`.
    """
    if type(top) is not int or top < 0:
        raise ConfigError(f"top is the number of labels to keep, 0 for all; got {top!r}")
    checked_channels(channels, separate=False)
    checked_damaged(damaged)
    checked_workers(workers)
    checked_progress(progress)
    options = PredictOptions.parse(
        {"per": per, "window_s": window_s, "hop_s": hop_s, "merge": merge, "precision": precision}, "predict"
    )
    merging = {"threshold": threshold, "min_length_s": min_length_s, "gap_s": gap_s}
    event_options = EventOptions.parse(merging, "predict")
    if not events and (event_options != EventOptions() or style is not None):
        raise ConfigError(
            "threshold, min_length_s, gap_s and style (--format) are for events: add --events (events=True)"
        )
    if events and (per is not None or merge != "mean"):
        raise ConfigError("events come from windows: omit per and merge")
    target = None if output is None else _target(output, style)
    report = PredictReport(output=target)
    job = FileJob(recordings, report)
    model = loaded_model(checkpoint, device)
    predictor, options = model.predictor, options.resolved(model.device)
    report.front_end = model.front_end.name
    settings = _settings(model, top, options, channels, event_options if events else None)
    for line in _explained(predictor, options, event_options if events else None):
        log.debug("%s", line)
    journal: Journal | None = None
    records: dict[str, FileRecord] = {}

    def add(path: Recording, found: _Answer) -> float:
        record = job.record(path, found.duration_s, 0)
        name = record.path if target is None else listed_path(record.path, target)
        if isinstance(found.of, Windows):
            new = _events(name, found.of, predictor, event_options)
            report.events += new
            rows = [{**asdict(one), "path": record.path} for one in new]
        else:
            segments = [_segment(name, one, top, model.front_end.name) for one in found.of]
            report.segments += segments
            rows = [{**asdict(segment), "path": record.path} for segment in segments]
        record = replace(record, rows=len(rows))
        records[record.key] = record
        if journal is not None:
            journal.add(Entry(record, rows))
        return found.duration_s

    def stream(items: Iterator[tuple[Path, Source]]) -> Iterator[tuple[Path, _Answer | Exception]]:
        decoded = model.decoded(items, model.front_end.sample_rate_hz, channels, damaged)
        found: Iterator[tuple[Path, list[Prediction] | Windows | Exception]]
        if events:
            lengths = predictor.lengths(options, events=True)
            assert lengths is not None
            found = predictor.windows(decoded, lengths, options, batch_tokens)
        else:
            found = predictor.predictions(decoded, options, batch_tokens)
        return ((path, one if isinstance(one, Exception) else _Answer(one)) for path, one in found)

    def run() -> None:
        try:
            job.run(LocalEngine(stream, model.front_end.sample_rate_hz, channels, damaged, workers), add, progress)
        finally:
            job.recount(records if journal is None else journal.records)
        if note := predictor.note(options, [record.duration_s for record in records.values()], events=events):
            log.warning("%s", note)

    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        assert target is not None
        if not events and target.suffix == ".json":
            path.write_text(utf8_text(as_json([Segment(**row) for row in rows])), encoding="utf-8")
        else:
            found = [Annotation(**row) for row in rows] if events else label_rows([Segment(**row) for row in rows])
            write_as(target.suffix, path, found)

    if target is None:
        with job.kept():
            job.compare({})
            run()
            job.dropped(prune=False)
        order = {path_text(path): index for index, path in enumerate(job.todo)}
        report.segments.sort(key=lambda segment: order[segment.path])
        report.events.sort(key=lambda event: order[event.path])
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
                rows = [{**row, "path": listed_path(row["path"], target)} for row in rows]
                if events:
                    report.events = [Annotation(**row) for row in rows]
                else:
                    report.segments = [Segment(**row) for row in rows]
                if style is not None:
                    done = [listed_path(record.path, target) for record in journal.records.values()]
                    write_label_files(target.parent, report.events, style, done)
    report.rows = len(report.events) + len(report.segments) if report.finished else 0
    job.check_strict(strict)
    return report


def _target(output: str | Path, style: Style | None) -> Path:
    """Return the file that a job writes: with a style, the table in the folder that was named.

    Raises:
        ConfigError: the output has another suffix, is a folder, or with a style is none.
    """
    if style is None:
        path = user_path(output)
        if path.suffix not in TABLES or path.is_dir():
            raise ConfigError(f"{path}: expected a file name that ends in {', '.join(TABLES[:-1])} or {TABLES[-1]}")
        return path
    if style not in SUFFIXES:
        raise ConfigError(f"style must be 'raven' or 'audacity', got {style!r}")
    folder = output_folder(output)
    if folder.suffix in TABLES:
        raise ConfigError(f"{folder}: {style} has a file for each recording: expected the name of a folder")
    return folder / TABLE_NAME


def _segment(path: str, one: Prediction, top: int, front_end: str) -> Segment:
    labels = {label: round(probability, 4) for label, probability in one.best(top)}
    return Segment(path, round(one.start_s, 6), round(one.end_s, 6), labels, front_end)


def _events(path: str, windows: Windows, predictor: Predictor, options: EventOptions) -> list[Annotation]:
    """Return the events in a recording. In digital silence there are none, whatever the threshold."""
    config = predictor.config
    found = merge_windows(
        np.where(windows.is_silent[:, None], 0.0, predictor.probabilities(windows)),
        windows.starts_s,
        windows.ends_s,
        predictor.labels,
        _thresholds(predictor, options),
        min_length_s=options.min_length_s,
        gap_s=options.gap_s,
        background=config.background,
    )
    front_end = predictor.engine.front_end.name
    return [
        Annotation(
            path, round(one.start_s, 6), round(one.end_s, 6), one.label, round(one.probability, 4), front_end=front_end
        )
        for one in found
    ]


def _explained(predictor: Predictor, options: PredictOptions, events: EventOptions | None) -> list[str]:
    """Return how recordings are cut, and from which probabilities on labels are heard."""
    lengths = predictor.lengths(options, events=events is not None)
    if lengths is None:
        return [f"windows of pretraining, {predictor.window_s:g} s"]
    lines = [f"windows of {lengths.window_s:.4g} s every {lengths.hop_s:.4g} s"]
    if events is not None:
        thresholds = np.broadcast_to(_thresholds(predictor, events), len(predictor.labels))
        heard = zip(predictor.labels, thresholds, strict=True)
        lines.append("thresholds: " + ", ".join(f"{label} {threshold:.3g}" for label, threshold in heard))
    return lines


def _thresholds(predictor: Predictor, events: EventOptions) -> float | tuple[float, ...]:
    return events.threshold or predictor.config.thresholds or _DEFAULT_THRESHOLD


def _settings(
    model: Embedder, top: int, options: PredictOptions, channels: OneChannel, events: EventOptions | None
) -> dict[str, Any]:
    """Return what the labels depend on, besides the recordings; raise a ValueError if there is no fit classifier."""
    head = model.predictor.classifier
    lengths = model.predictor.lengths(options, events=events is not None)
    identity = model.identity
    per = ("clip" if head.config.label_frames is None else "second") if options.per is None else options.per
    settings = {
        "weights_digest": identity.weights_digest,
        "classifier": digest_of(head.config.digest(), head.state_dict()),
        "encoder": model.encoder.config.digest(),
        "front_end": model.front_end.digest(),
        "channels": "mean" if channels is None else channels,
        **({"top": top, "per": per, "merge": options.merge} if events is None else events.model_dump()),
        **({} if lengths is None else asdict(lengths)),
    }
    source = {} if identity.file_sha256 is None else {"file_sha256": identity.file_sha256}
    other = {} if options.precision == "fp32" else {"precision": options.precision}
    config_hash = digest_of_json({**settings, **other})
    shown = {"precision": options.precision, "model": identity.name, "front_end": model.front_end.summary}
    return {**settings, **shown, **source, "config_hash": config_hash}


def label_rows(segments: Sequence[Segment]) -> list[Annotation]:
    """Return each label of segments as a row."""
    return [
        Annotation(one.path, one.start_s, one.end_s, label, probability, front_end=one.front_end)
        for one in segments
        for label, probability in one.labels.items()
    ]


def as_json(segments: Sequence[Segment]) -> str:
    """Return a list of objects with path, start_s, end_s, labels (by name, the highest first) and front_end."""
    return json.dumps([asdict(one) for one in segments], indent=2, ensure_ascii=False) + "\n"
