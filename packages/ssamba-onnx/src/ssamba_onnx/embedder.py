"""The embedder: from recordings to embeddings, or to the labels of a classifier, in parallel threads.

    samples -> windows -> onnxruntime, one thread for each window -> merged results, in order

Recordings of any length run in constant memory. What is computed is what `ssamba.Embedder` computes.

Shapes: B recordings, S samples, K time steps, D channels, C classes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np

from ssamba_onnx.audio import Channels, Source, is_source, read
from ssamba_onnx.model import ExportedModel
from ssamba_onnx.predictor import Answers, Merge, Peaks, Per
from ssamba_onnx.results import Array, Embedding, Prediction
from ssamba_onnx.windows import FrameMerger, Geometry, Piece, SpanMeans, Window, cut_pieces, cut_windows

Key = TypeVar("Key")
Result = TypeVar("Result")
Answer = TypeVar("Answer")


class _Collector(ABC, Generic[Result]):
    """Collects what is computed for the windows of one recording, which arrive in order."""

    outputs: tuple[str, ...]

    @abstractmethod
    def add(self, window: Window, values: list[Array]) -> None:
        """Take the outputs of a window."""

    @abstractmethod
    def result(self, num_samples: int) -> Result:
        """Return the result of a recording of `num_samples` samples."""


class _Embedding(_Collector[Embedding]):
    """A recording's embedding."""

    outputs = ("frames", "parts")

    def __init__(self, geometry: Geometry, dim: int, frames: bool):
        self.geometry, self.dim, self.keep = geometry, dim, frames
        self.merger, self.rows = FrameMerger(), list[Array]()
        self.total: Array = np.zeros(dim, np.float64)
        self.thirds: Array = np.zeros(3 * dim, np.float64)
        self.count = self.weight = self.frames = 0

    def add(self, window: Window, values: list[Array]) -> None:
        steps, parts = values
        self.thirds += window.valid_frames * parts[self.dim :].astype(np.float64)
        self.weight += window.valid_frames
        first_frame = window.first_column * self.geometry.stride_frames
        self.frames = max(self.frames, first_frame + window.valid_frames)
        self._add(self.merger.add(window.first_column, steps))

    def _add(self, steps: Array) -> None:
        if len(steps):
            self.total += steps.sum(0, dtype=np.float64)
            self.count += len(steps)
            if self.keep:
                self.rows.append(steps)

    def result(self, num_samples: int) -> Embedding:
        self._add(self.merger.finish())
        clip = (self.total / self.count).astype(np.float32)
        if not np.isfinite(clip).all():
            raise ValueError("the embedding is not finite: the samples are far outside [-1, 1]")
        parts = np.concatenate((clip, (self.thirds / self.weight).astype(np.float32)))
        duration_s = num_samples / self.geometry.rate_hz
        if not self.keep:
            return Embedding(clip, parts, None, None, duration_s)
        frames = np.concatenate(self.rows)[: self.geometry.columns_covering(self.frames)]
        return Embedding(clip, parts, frames, self.geometry.centers_s(len(frames), duration_s), duration_s)


class _Logits(_Collector[Array]):
    """Logits of a recording (C,): the mean over its windows, weighted by their length."""

    def __init__(self, model: ExportedModel, by_vector: bool):
        self.model, self.by_vector = model, by_vector
        self.outputs = ("clip" if by_vector else "logits", "columns")
        self.total: Array = np.zeros((), np.float32)
        self.columns = 0

    def add(self, window: Window, values: list[Array]) -> None:
        logits, columns = values
        if self.by_vector:  # a model of seconds, asked about the whole
            logits = self.model.classify(logits[None])[0]
        self.total = self.total + int(columns) * logits
        self.columns += int(columns)

    def result(self, num_samples: int) -> Array:
        return _finite(self.total / np.float32(self.columns))


class _SegmentLogits(_Collector[Array]):
    """Logits of each segment of `label_frames` frames, (segments, C)."""

    def __init__(self, model: ExportedModel, label_frames: int, by_tokens: bool):
        self.model, self.label_frames, self.by_tokens = model, label_frames, by_tokens
        self.outputs = ("logits",) if by_tokens else ("frames",)
        self.merger, self.spans = FrameMerger(), SpanMeans(model.geometry, label_frames)
        self.found: list[Array] = []
        self.parts: list[tuple[int, Array]] = []

    def add(self, window: Window, values: list[Array]) -> None:
        if self.by_tokens:
            first_frame = window.first_column * self.model.geometry.stride_frames
            self.parts.append((round(first_frame / self.label_frames), values[0]))
        else:
            self._classify(self.spans.add(self.merger.add(window.first_column, values[0])))

    def result(self, num_samples: int) -> Array:
        segments = max(1, -(-num_samples // (self.label_frames * self.model.geometry.shift_samples)))
        if self.parts:
            total = np.zeros((segments, self.parts[0][1].shape[1]), np.float32)
            count = np.zeros((segments, 1), np.float32)
            for first, logits in self.parts:
                own = logits[: max(0, segments - first)]
                total[first : first + len(own)] += own
                count[first : first + len(own)] += 1
            covered = int((count > 0).sum())
            return _finite(total[:covered] / count[:covered])
        self._classify(self.spans.add(self.merger.finish()))
        self._classify(self.spans.finish())
        return _finite(np.concatenate(self.found)[:segments])

    def _classify(self, vectors: Array) -> None:
        if len(vectors):
            self.found.append(self.model.classify(vectors))


def _finite(logits: Array) -> Array:
    if np.isfinite(logits).all():
        return logits
    raise ValueError("the logits are not finite: the samples are far outside [-1, 1]")


class OnnxEmbedder:
    """An exported model, ready to embed recordings. Threads may share it; pickled, it is the path of its file.

    Attributes:
        metadata: what the file says about the model: `model`, `license`, `labels`, `front_end`, ...
        labels: names of the classes; None if the model has no classifier.
        dim: length D of an embedding.
        sample_rate_hz: the model's rate.
        window_s: length of the windows that long recordings are cut into.
        threads: windows that are computed at once.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None):
        """Load a model.

        Args:
            path: the folder that `ssamba export` wrote, or its `waveform.onnx`.
            threads: windows to compute at once, one core each; None means one for each core of this process.

        Raises:
            ValueError: there is no such file, it is another kind of file, or `threads` is below 1.
        """
        if threads is not None and not (isinstance(threads, int) and threads >= 1):
            raise ValueError(f"threads is a whole number from 1 on, got {threads!r}")
        self.threads = threads or _cores()
        self._model = ExportedModel(path)
        self.metadata = self._model.metadata
        self.name: str = self.metadata["model"]
        self.dim: int = self.metadata["dim"]
        self.sample_rate_hz: int = self.metadata["sample_rate_hz"]
        self.window_s: float = self.metadata["window_s"]
        labels = self.metadata["labels"]
        self.labels: tuple[str, ...] | None = None if labels is None else tuple(labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(OnnxEmbedder, self._model.file.absolute(), threads=self.threads), ()

    def __repr__(self) -> str:
        classes = "" if self.labels is None else f", {len(self.labels)} classes"
        return f"OnnxEmbedder({self.name!r}, {self.metadata['dtype']}, dim {self.dim}{classes}, {self.threads} threads)"

    def embed(
        self,
        source: Source | Iterable[Source],
        sample_rate: int | None = None,
        *,
        frames: bool = True,
        context: Literal["windows", "full"] = "windows",
        overlap: float = 0.5,
        channels: Channels = None,
        batch: bool = False,
    ) -> Any:
        """Embed one recording, or a list of recordings in parallel.

        Args:
            source: a path, the bytes of an audio file, a binary file object, or a waveform (S,) (float in [-1, 1], or
                integer PCM; several channels need `channels`); or an iterable of these.
            sample_rate: rate of the waveforms in Hz; None means the model's. Files carry their own.
            frames: keep `frames` and `times_s`; without them, memory does not grow with the recording.
            context: `windows` of the pretraining length, or the `full` recording at once: other vectors beyond it.
            overlap: share of a window that the next one covers again, from 0 to below 1.
            channels: `mean` averages the channels (files: the default), a number takes one of them (from 0).
            batch: each row of an array (B, S) is a recording.

        Returns:
            An `Embedding`, or a list of them.

        Raises:
            ValueError: a recording cannot be read or is shorter than one frame, or an argument is wrong. In a list it
                ends the call; `embed_stream` goes on.
        """
        options: dict[str, Any] = {"frames": frames, "context": context, "overlap": overlap, "channels": channels}
        return self._collected(source, batch, lambda items: self.embed_stream(items, sample_rate, **options))

    def embed_stream(
        self,
        items: Iterable[tuple[Key, Source]],
        sample_rate: int | None = None,
        *,
        frames: bool = True,
        context: Literal["windows", "full"] = "windows",
        overlap: float = 0.5,
        channels: Channels = None,
    ) -> Iterator[tuple[Key, Embedding | Exception]]:
        """Embed recordings as they come: yield the keys in order, each with its embedding or its error."""
        if context not in ("windows", "full"):
            raise ValueError(f"context is 'windows' or 'full', got {context!r}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is from 0 to below 1, got {overlap!r}")
        geometry = self._model.geometry
        found = self._run(
            ((key, self._read(source, sample_rate, channels)) for key, source in items),
            lambda: _Embedding(geometry, self.dim, frames),
            overlap,
            whole=context == "full",
        )
        return _mapped(found, lambda embedding, _: embedding)

    def predict(
        self,
        source: Source | Iterable[Source],
        sample_rate: int | None = None,
        *,
        per: Per = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        merge: Merge = "mean",
        channels: Channels = None,
        batch: bool = False,
    ) -> Any:
        """Predict the labels of one recording, or of a list of recordings in parallel.

        Args:
            source, sample_rate, channels, batch: as in `embed`.
            per: `clip` answers for the whole recording, `second` for each second, `window` for each window; None means
                as the model was trained.
            window_s: length of the windows; None means the training clips' median.
            hop_s: distance of their starts; None means half a window.
            merge: `mean` or `max`, of the windows of a second or of the recording.

        Returns:
            A list of `Prediction`, one for the recording, each second or window; for a list, a list of such lists.

        Raises:
            ValueError: the model has no classifier, or one that cannot answer so; or as `embed`.
        """
        options: dict[str, Any] = {
            "per": per,
            "window_s": window_s,
            "hop_s": hop_s,
            "merge": merge,
            "channels": channels,
        }
        return self._collected(source, batch, lambda items: self.predict_stream(items, sample_rate, **options))

    def predict_stream(
        self,
        items: Iterable[tuple[Key, Source]],
        sample_rate: int | None = None,
        *,
        per: Per = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        merge: Merge = "mean",
        channels: Channels = None,
    ) -> Iterator[tuple[Key, list[Prediction] | Exception]]:
        """Predict labels of recordings as they come; yields predictions as `embed_stream` yields embeddings."""
        config = self._model.classifier
        if config is None or self.labels is None:
            raise ValueError(f"{self.name} has no classifier: export a model of `ssamba finetune`")
        answers = Answers(config, self.labels, self.window_s, self.name)
        lengths = answers.lengths(per, window_s, hop_s, merge)
        recordings = ((key, self._read(source, sample_rate, channels)) for key, source in items)
        geometry = self._model.geometry
        if lengths is not None:
            return self._by_windows(recordings, answers, lengths, per or "clip", merge)
        by_segment = config["label_frames"] is not None if per is None else per == "second"
        if not by_segment:
            found = self._run(recordings, lambda: _Logits(self._model, config["label_frames"] is not None))
            return _mapped(found, lambda logits, duration_s: answers.of_segments(logits[None], duration_s, duration_s))
        per_second = round(geometry.rate_hz / geometry.shift_samples)
        label_frames = config["label_frames"] or per_second
        by_tokens = config["token_segments"] is not None
        segments = self._run(recordings, lambda: _SegmentLogits(self._model, label_frames, by_tokens))
        return _mapped(
            segments, lambda logits, duration_s: answers.of_segments(logits, label_frames / per_second, duration_s)
        )

    def _by_windows(
        self,
        recordings: Iterable[tuple[Key, Iterator[Array]]],
        answers: Answers,
        lengths: Any,
        per: str,
        merge: Merge,
    ) -> Iterator[tuple[Key, list[Prediction] | Exception]]:
        """Answer windows of the classifier's length, those of several recordings at once."""
        rate_hz = self._model.geometry.rate_hz

        def pieces() -> Iterator[tuple[tuple[Key, Piece | Peaks | Exception], Iterator[Array]]]:
            for key, blocks in recordings:
                peaks = Peaks(rate_hz)
                try:
                    for piece in cut_pieces(map(peaks.add, blocks), lengths, rate_hz):
                        yield (key, piece), iter([piece.samples])
                    yield (key, peaks), iter(())
                except (ValueError, OSError) as error:
                    yield (key, error), iter(())

        found: list[tuple[Piece, Array]] = []
        failed: Exception | None = None
        for (key, what), result in self._run(pieces(), lambda: _Logits(self._model, False)):
            if isinstance(what, Piece):
                if isinstance(result, Exception):
                    failed = failed or result
                else:
                    found.append((what, result[0]))
                continue
            failed = what if isinstance(what, Exception) else failed
            if failed is None:
                assert isinstance(what, Peaks)
                starts, stops = (np.array([getattr(piece, name) for piece, _ in found]) for name in ("start", "stop"))
                silent = np.array([piece.is_silent for piece, _ in found])
                logits = np.stack([one for _, one in found])
                yield (
                    key,
                    answers.of_windows(starts / rate_hz, stops / rate_hz, logits, silent, what, per, merge),
                )
            else:
                yield key, failed
            found, failed = [], None

    def _run(
        self,
        items: Iterable[tuple[Key, Iterator[Array]]],
        new: Callable[[], _Collector[Result]],
        overlap: float = 0.5,
        *,
        whole: bool = False,
    ) -> Iterator[tuple[Key, tuple[Result, float] | Exception]]:
        """Compute the windows of recordings in threads, and yield results with lengths in seconds, in order."""
        geometry, model = self._model.geometry, self._model
        queue: deque[tuple[Any, Window | None, Future[list[Array]] | None]] = deque()
        pool = ThreadPoolExecutor(self.threads)

        def drain(limit: int) -> Iterator[tuple[Key, Any]]:
            while len(queue) > limit:
                recording, window, future = queue.popleft()
                if window is not None and future is not None:
                    values = future.result()
                    recording.collector.add(window, values)
                else:
                    yield recording.key, recording.finished()

        try:
            for key, blocks in items:
                recording = _Recording(key, new(), geometry)
                try:
                    for window in cut_windows(recording.counted(blocks), geometry, overlap, whole=whole):
                        if recording.num_samples < geometry.frame_samples:
                            break  # an error, or the end of a recording that was cut before
                        queue.append(
                            (recording, window, pool.submit(model.run, window.samples, recording.collector.outputs))
                        )
                        yield from drain(2 * self.threads)
                except (ValueError, OSError) as error:
                    recording.error = error
                queue.append((recording, None, None))
            yield from drain(0)
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, source: Source, sample_rate: int | None, channels: Channels) -> Iterator[Array]:
        return read(source, sample_rate, self.sample_rate_hz, channels)

    def _collected(
        self,
        source: Source | Iterable[Source],
        batch: bool,
        stream: Callable[[Iterable[tuple[int, Source]]], Iterator[tuple[int, Any]]],
    ) -> Any:
        """Return the result of a recording, or a list of those of several; raise the first error."""
        if batch and not (isinstance(source, np.ndarray) and source.ndim >= 2):
            raise ValueError("batch=True is for an array (recordings, samples)")
        is_single = is_source(source) and not batch
        if not is_single and (isinstance(source, Mapping) or not isinstance(source, Iterable)):
            raise ValueError(f"expected a recording or a list of recordings, got {type(source).__name__}")
        sources = [cast(Source, source)] if is_single else cast("Iterable[Source]", source)
        found = []
        for number, result in stream(enumerate(sources)):
            if isinstance(result, Exception):
                if is_single or not isinstance(result, ValueError):
                    raise result
                raise type(result)(f"recording {number} (from 0): {result}")
            found.append(result)
        return found[0] if is_single else found


class _Recording(Generic[Result]):
    """State of a recording while its windows are computed."""

    def __init__(self, key: Any, collector: _Collector[Result], geometry: Geometry):
        self.key, self.collector, self.geometry = key, collector, geometry
        self.num_samples = 0
        self.error: Exception | None = None

    def counted(self, blocks: Iterable[Array]) -> Iterator[Array]:
        for block in blocks:
            self.num_samples += len(block)
            yield block

    def finished(self) -> tuple[Result, float] | Exception:
        if self.error is not None:
            return self.error
        rate_hz, least = self.geometry.rate_hz, self.geometry.frame_samples
        if self.num_samples < least:
            return ValueError(
                f"the recording is {1000 * self.num_samples / rate_hz:.1f} ms long, shorter than one frame of "
                f"{1000 * least / rate_hz:g} ms: omit it, or pad it with silence"
            )
        try:
            return self.collector.result(self.num_samples), self.num_samples / rate_hz
        except ValueError as error:
            return error


def _mapped(
    found: Iterator[tuple[Key, tuple[Result, float] | Exception]], answer: Callable[[Result, float], Answer]
) -> Iterator[tuple[Key, Answer | Exception]]:
    for key, result in found:
        yield key, result if isinstance(result, Exception) else answer(*result)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
