"""Windows of a chosen length, each encoded alone as a clip is: long recordings answered as the training clips were.

    samples -> windows (every hop) -> inference.py, as if each were a recording -> one row for each window
            -> the answers for windows, seconds or the recording

A classifier of short clips is asked about a night by windows of the clips' length: in the much longer windows of
pretraining, silence around a sound changes the answer, and digital silence at the edges of a window is left out down to
the length of the shortest clips. A window answers for the time around its center
(`events.window_edges`), the hop; where that is digital silence, the answer is that nothing is heard.

Shapes: S samples, K windows, C classes, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ssamba.config import ClassifierConfig
from ssamba.embedding import EmbedOptions, Merge, Per, Prediction, PredictOptions, Readout, checked_readout
from ssamba.errors import ConfigError
from ssamba.events import Event, merge_windows, window_edges
from ssamba.inference import (
    Accumulator,
    EmbeddingAccumulator,
    InferenceEngine,
    LogitsAccumulator,
    PredictionAccumulator,
    SegmentLogitsAccumulator,
)
from ssamba.model.heads import Classifier
from ssamba.progress import counted

Array = np.ndarray[Any, Any]
Key = TypeVar("Key")
Result = TypeVar("Result")

SILENT_PEAK = 2.0**-16
"""Up to this peak, half a step of 16 bits, samples are digital silence."""
LENGTH_TOLERANCE = 1.5
"""Lengths up to this factor beyond the quantiles of the training clips' are within them."""


@dataclass(frozen=True)
class WindowLengths:
    """How recordings are cut."""

    window_s: float
    hop_s: float
    """Distance of the starts; the last window ends with the recording."""
    whole_s: float
    """Recordings up to this length are one window; at least `window_s`."""
    shortest_s: float
    """Digital silence at the edges of a window is left out down to this length, that of short training clips: what is
    read of a short sound between pauses is then the sound alone. `window_s` leaves everything in."""

    @classmethod
    def parse(
        cls, window_s: float, hop_s: float | None = None, whole_s: float = 0.0, shortest_s: float | None = None
    ) -> WindowLengths:
        """Return the lengths with a hop of half a window unless one is given.

        Raises:
            ConfigError: a length is not positive, or the hop is above the window.
        """
        hop_s = window_s / 2 if hop_s is None else hop_s
        if not (0 < window_s < math.inf and hop_s > 0):
            raise ConfigError(f"window and hop are seconds above 0, got {window_s} and {hop_s}")
        if hop_s > window_s:
            raise ConfigError(f"a hop of {hop_s:g} s leaves gaps between windows of {window_s:g} s: use at most that")
        return cls(window_s, hop_s, max(window_s, whole_s), window_s if shortest_s is None else shortest_s)


@dataclass(frozen=True, eq=False)
class Windows:
    """What was computed for each window of a recording."""

    starts_s: Array
    """(K,)."""
    ends_s: Array
    """(K,); of the last one the length of the recording."""
    values: Array
    """Logits (K, C) or vectors (K, D), float32."""
    is_silent: Array
    """Whether the time that a window answers for is digital silence, (K,) bool."""
    second_is_silent: Array
    """The same for each second of the recording, (seconds,) bool."""

    @property
    def edges_s(self) -> Array:
        """Window k answers for the time from edge k to edge k + 1, (K + 1,)."""
        return window_edges(self.starts_s, self.ends_s)

    def probe_events(self, probe: Any, threshold: float = 0.5, **options: Any) -> list[Event]:
        """Return the events that a probe hears in windows of vectors; in digital silence there are none.

        Args:
            probe: a classifier of scikit-learn with `predict_proba` and `classes_`, fitted to vectors of clips.
            threshold: a label is heard from this probability on.
            **options: `min_length_s`, `gap_s` and `background` of `ssamba.events.merge_windows`.
        """
        table = np.where(self.is_silent[:, None], 0.0, probe.predict_proba(self.values))
        labels = [str(label) for label in probe.classes_]
        return merge_windows(table, self.starts_s, self.ends_s, labels, threshold, **options)


class _Piece(NamedTuple):
    """A window of a recording, as a key of the inference engine."""

    owner: _Owner[Any]
    start: int
    """First sample."""
    stop: int
    is_silent: bool
    is_last: bool


@dataclass
class _Owner(Generic[Key]):
    """A recording whose windows are under way."""

    key: Key
    rate_hz: int
    peaks: list[float] = field(default_factory=list)
    """Highest sample of each second."""
    rows: list[Array] = field(default_factory=list)
    pieces: list[_Piece] = field(default_factory=list)
    failed: bool = False
    num_samples: int = 0

    def counted(self, blocks: Iterable[Array]) -> Iterator[Array]:
        """Yield blocks of samples (S,) and note the peak of each second."""
        for block in blocks:
            place = 0
            while place < len(block):
                second, inside = divmod(self.num_samples, self.rate_hz)
                part = block[place : place + self.rate_hz - inside]
                self.peaks += [0.0] * (second + 1 - len(self.peaks))
                self.peaks[second] = max(self.peaks[second], float(np.abs(part).max()))
                place += len(part)
                self.num_samples += len(part)
            yield block

    def windows(self) -> Windows:
        starts, stops = (np.array([piece[i] for piece in self.pieces]) / self.rate_hz for i in (1, 2))
        silent = np.array([piece.is_silent for piece in self.pieces])
        return Windows(starts, stops, np.stack(self.rows), silent, np.array(self.peaks) <= SILENT_PEAK)


def cut(blocks: Iterable[Array], window: int, hop: int, whole: int) -> Iterator[tuple[int, Array, bool]]:
    """Yield the windows of a recording: first sample, samples (window,), and whether it is the last one.

    Args:
        blocks: consecutive samples (S,).
        window: length in samples.
        hop: distance of the starts in samples; the last window ends with the recording.
        whole: up to this length a recording is one window.
    """
    buffer: Array = np.zeros(0, np.float32)
    dropped = following = 0
    last: tuple[int, Array] | None = None
    for block in blocks:
        buffer = np.concatenate((buffer, block)) if len(buffer) else block
        if last is None and len(buffer) <= max(whole, window):
            continue
        while following + window <= dropped + len(buffer):
            if last is not None:
                yield *last, False
            last = following, buffer[following - dropped : following - dropped + window]
            following += hop
        if last is not None:  # what follows may be less than a hop, and the last window starts before it
            buffer, dropped = buffer[last[0] - dropped :], last[0]
    if last is None:
        yield 0, buffer, True
        return
    num_samples = dropped + len(buffer)
    is_last = last[0] + window == num_samples
    yield *last, is_last
    if not is_last:
        yield num_samples - window, buffer[len(buffer) - window :], True


def without_silence(samples: Array, shortest: int) -> Array:
    """Return a window without digital silence at its edges, but at least its `shortest` samples around the sound."""
    loud = np.flatnonzero(np.abs(samples) > SILENT_PEAK)
    if not len(loud):
        return samples
    first, stop = int(loud[0]), int(loud[-1]) + 1
    missing = max(0, min(shortest, len(samples)) - (stop - first))
    first = min(max(0, first - missing // 2), len(samples) - (stop - first) - missing)
    return samples[first : max(stop, first + shortest)]


class Piece(NamedTuple):
    """A window of a recording."""

    start: int
    """First sample."""
    stop: int
    samples: Array
    """The samples to encode, without digital silence at the edges."""
    is_silent: bool
    """Whether the time that it answers for is digital silence."""
    is_last: bool


def pieces_of(blocks: Iterable[Array], lengths: WindowLengths, rate_hz: int) -> Iterator[Piece]:
    """Yield the windows of a recording, given as consecutive samples (S,)."""
    seconds = lengths.window_s, lengths.hop_s, lengths.whole_s, lengths.shortest_s
    window, hop, whole, shortest = (max(1, round(length_s * rate_hz)) for length_s in seconds)
    margin = (window - hop) // 2  # on both sides of what a window answers for
    for start, samples, is_last in cut(blocks, window, hop, whole):
        inner = samples[margin if start else 0 : len(samples) if is_last else len(samples) - margin]
        is_silent = bool(np.abs(inner).max(initial=0) <= SILENT_PEAK)
        stop, is_whole = start + len(samples), not start and is_last
        yield Piece(start, stop, samples if is_whole else without_silence(samples, shortest), is_silent, is_last)


def run_windows(
    engine: InferenceEngine,
    items: Iterable[tuple[Key, Iterable[Array]]],
    lengths: WindowLengths,
    options: EmbedOptions,
    new_accumulator: Callable[[], Accumulator[Result]],
    as_row: Callable[[Result], Tensor],
    batch_tokens: int | None = None,
) -> Iterator[tuple[Key, Windows | Exception]]:
    """Encode the windows of recordings, those of many recordings together, and yield each recording's when it is ready.

    Args:
        engine: the encoder.
        items: keys, and recordings as blocks of samples, as for `InferenceEngine.run`.
        lengths: how to cut.
        options: how to encode a window.
        new_accumulator: makes the accumulator of a window.
        as_row: turns its result into the row of the window.
        batch_tokens: as for `InferenceEngine.run`.

    Returns:
        The keys in order, except that errors come at once, each with its windows or its error.
    """
    rate_hz = engine.front_end.sample_rate_hz

    def pieces() -> Iterator[tuple[_Piece, Iterable[Array]]]:
        for key, blocks in items:
            owner = _Owner(key, rate_hz)
            try:
                for one in pieces_of(owner.counted(blocks), lengths, rate_hz):
                    yield _Piece(owner, one.start, one.stop, one.is_silent, one.is_last), (one.samples,)
            except (ValueError, OSError) as error:
                yield _Piece(owner, 0, 0, False, True), _raising(error)

    for piece, result in engine.run(pieces(), options, new_accumulator, batch_tokens=batch_tokens):
        owner = piece.owner
        if owner.failed:
            continue
        if isinstance(result, Exception):
            owner.failed = True
            yield owner.key, result
            continue
        owner.rows.append(as_row(result).float().cpu().numpy())
        owner.pieces.append(piece)
        if piece.is_last:
            yield owner.key, owner.windows()


def _raising(error: Exception) -> Iterator[Array]:
    """Return blocks of a recording that cannot be read."""

    def read(_: None) -> Array:
        raise error

    return map(read, (None,))


def window_vectors(
    engine: InferenceEngine, blocks: Iterable[Array], lengths: WindowLengths, readout: Readout
) -> Windows:
    """Return the vector of each window of a recording; raise the error of a recording that cannot be read."""
    is_clip = checked_readout(readout) == "clip"
    ((_, found),) = run_windows(
        engine,
        [(None, blocks)],
        lengths,
        EmbedOptions(),
        lambda: EmbeddingAccumulator(engine.encoder.config, engine.front_end),
        lambda embedding: embedding.clip if is_clip else embedding.parts,
    )
    if isinstance(found, Exception):
        raise found
    return found


@dataclass(frozen=True)
class Predictor:
    """A classifier with its encoder, and the lengths that it was trained on."""

    engine: InferenceEngine
    classifier: Classifier
    name: str
    """Of the model, for messages."""
    window_s: float
    """Longest window of the encoder."""

    @property
    def config(self) -> ClassifierConfig:
        """Configuration of the classifier."""
        return self.classifier.config

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes (C): numbers if the checkpoint has none."""
        return self.config.labels or tuple(map(str, range(self.config.num_classes)))

    def lengths(self, options: PredictOptions, *, events: bool = False) -> WindowLengths | None:
        """Return how recordings are cut; None: in the windows of pretraining, whose answers are averaged.

        That is so for models trained on seconds, and for those that do not know the lengths of their training clips.

        Args:
            options: what was asked for.
            events: cut in any case, every quarter of a window unless a hop is given: a sound that lies between two
                windows is missed more often than one in the middle of a window.

        Raises:
            ConfigError: the model was trained on seconds and is asked for windows, or the hop is above the window.
        """
        asked = options.window_s or options.hop_s or options.merge == "max" or options.per == "window" or events
        if self.config.label_frames is not None:
            if asked:
                raise ConfigError(
                    f"{self.name} was trained on the seconds of recordings, and answers for each second: omit window, "
                    "hop, max, per window and events (per second and per clip are there)"
                )
            return None
        trained = self.config.clip_lengths_s
        if not asked and trained is None:
            if options.per == "second" and self.config.pooling != "mean":
                raise ConfigError(
                    f"{self.name} reads its prefix token, which stands for the whole clip: ask for whole clips, or "
                    "give a window"
                )
            return None
        window_s = options.window_s or min(trained[1] if trained else self.window_s, self.window_s)
        is_clip = options.per in (None, "clip") and options.window_s is None and not events
        whole_s = trained[2] * LENGTH_TOLERANCE if trained and is_clip else 0.0
        hop_s = window_s / 4 if events and options.hop_s is None else options.hop_s
        return WindowLengths.parse(window_s, hop_s, whole_s, trained[0] if trained else None)

    def windows(
        self,
        items: Iterable[tuple[Key, Iterable[Array]]],
        lengths: WindowLengths,
        options: PredictOptions,
        batch_tokens: int | None = None,
    ) -> Iterator[tuple[Key, Windows | Exception]]:
        """Yield the logits of each window of recordings; arguments as `run_windows`."""
        return run_windows(
            self.engine,
            items,
            lengths,
            EmbedOptions(padding=self.config.padding, precision=options.precision),
            lambda: LogitsAccumulator(self.classifier),
            lambda logits: logits,
            batch_tokens,
        )

    def logits(
        self, items: Iterable[tuple[Key, Iterable[Array]]], per_label: bool | None = None
    ) -> Iterator[tuple[Key, Tensor | Exception]]:
        """Yield the logits of recordings read in windows of pretraining, in order except that errors come at once.

        Args:
            items: keys and recordings.
            per_label: (segments, classes), logits of each segment (`label_frames` of the classifier, a second if it has
                none), instead of (classes,) of the whole; None means as it was trained.

        Raises:
            ValueError: the classifier cannot classify segments.
        """
        by_segment = self.config.label_frames is not None if per_label is None else per_label
        if by_segment and self.config.pooling != "mean":
            raise ValueError(f"{self.name} reads its prefix token, which stands for the whole clip: omit per_label")

        def new_accumulator() -> Accumulator[Tensor]:
            if by_segment:
                return SegmentLogitsAccumulator(self.classifier, self.engine.front_end)
            return LogitsAccumulator(self.classifier)

        return self.engine.run(items, EmbedOptions(padding=self.config.padding), new_accumulator)

    def predictions(
        self,
        items: Iterable[tuple[Key, Iterable[Array]]],
        options: PredictOptions,
        batch_tokens: int | None = None,
    ) -> Iterator[tuple[Key, list[Prediction] | Exception]]:
        """Yield the predictions for recordings, in order except that errors come at once."""
        lengths = self.lengths(options)
        if lengths is None:
            by_segment = self.config.label_frames is not None if options.per is None else options.per == "second"
            return self.engine.run(
                items,
                EmbedOptions(padding=self.config.padding, precision=options.precision),
                lambda: PredictionAccumulator(self.classifier, self.engine.front_end, by_segment=by_segment),
                batch_tokens=batch_tokens,
            )
        return (
            (key, found if isinstance(found, Exception) else self.merged(found, options.per or "clip", options.merge))
            for key, found in self.windows(items, lengths, options, batch_tokens)
        )

    def probabilities(self, windows: Windows) -> Array:
        """Return the probability of each class in each window (K, C); of silence that of "nothing"."""
        rows = self.classifier.probabilities(torch.from_numpy(windows.values)).numpy()
        return np.where(windows.is_silent[:, None], self.nothing, rows).astype(np.float32)

    @property
    def nothing(self) -> Array:
        """Probabilities where nothing is heard (C,): the background, none of the labels, or all of them alike."""
        config = self.config
        row = np.full(config.num_classes, 1 / config.num_classes if config.activation == "softmax" else 0.0, np.float32)
        if config.background is not None:
            row = np.array([label == config.background for label in self.labels], np.float32)
        return row

    def merged(self, windows: Windows, per: Per, merge: Merge) -> list[Prediction]:
        """Return the predictions for windows, seconds or the recording.

        A second is answered by the windows that answer for a part of it (by half of it, or with half of their time, for
        the maximum), the recording by all that are not silent; the mean counts each by the time it answers for.
        """
        rows, edges_s = self.probabilities(windows), windows.edges_s
        duration_s = float(windows.ends_s[-1])
        if per == "window":
            times = zip(windows.starts_s.tolist(), windows.ends_s.tolist(), strict=True)
            return [self._prediction(start_s, end_s, row) for (start_s, end_s), row in zip(times, rows, strict=True)]
        if per == "clip":
            heard = ~windows.is_silent if not windows.is_silent.all() else np.ones(len(rows), bool)
            row = rows[heard].max(0) if merge == "max" else np.average(rows[heard], 0, np.diff(edges_s)[heard])
            return [self._prediction(0.0, duration_s, row)]
        found = []
        for second, is_silent in enumerate(windows.second_is_silent):
            end_s = min(second + 1.0, duration_s)
            first = max(0, int(np.searchsorted(edges_s, second, "right")) - 1)
            last = max(first + 1, int(np.searchsorted(edges_s, end_s, "left")))
            own, bounds_s = rows[first:last], edges_s[first : last + 1]
            common_s = np.minimum(bounds_s[1:], end_s) - np.maximum(bounds_s[:-1], second)
            if is_silent:
                row = self.nothing
            elif merge == "max":
                most = common_s >= 0.5 * np.minimum(np.diff(bounds_s), end_s - second) - 1e-9
                row = own[most].max(0) if most.any() else own[common_s.argmax()]
            else:
                row = np.average(own, 0, np.maximum(common_s, 1e-9))
            found.append(self._prediction(float(second), end_s, row))
        return found

    def _prediction(self, start_s: float, end_s: float, row: Array) -> Prediction:
        return Prediction(start_s, end_s, self.labels, torch.from_numpy(np.ascontiguousarray(row, np.float32)))

    def note(self, options: PredictOptions, durations_s: Sequence[float], *, events: bool = False) -> str | None:
        """Return what to say about lengths that the classifier was not trained on; None if there is nothing.

        Args:
            options: what was asked for.
            durations_s: lengths of the recordings that were answered.
            events: they were answered by events.
        """
        trained, lengths = self.config.clip_lengths_s, self.lengths(options, events=events)
        if trained is None or lengths is None:
            return None
        low_s, high_s = trained[0] / LENGTH_TOLERANCE, trained[2] * LENGTH_TOLERANCE
        clips = f"clips of {_seconds(trained[0])} to {_seconds(trained[2])} s"
        if not low_s <= lengths.window_s <= high_s:
            return (
                f"windows of {_seconds(lengths.window_s)} s, but {self.name} was trained on {clips}: probabilities may "
                f"be wrong. Without a window they are {_seconds(trained[1])} s long"
            )
        short = sum(duration_s < low_s for duration_s in durations_s)
        if short:
            return (
                f"{_of(short, durations_s)} shorter than what {self.name} was trained on, {clips}: the labels are less "
                "certain"
            )
        long = sum(duration_s > high_s for duration_s in durations_s)
        if long and options.per in (None, "clip") and not events:
            kind = "maximum" if options.merge == "max" else "mean"
            return (
                f"{_of(long, durations_s)} longer than what {self.name} was trained on, {clips}: answered by the "
                f"{kind} of windows of {_seconds(lengths.window_s)} s. Answers per second, and events, say where"
            )
        return None


def _of(count: int, all_of_them: Sequence[float]) -> str:
    verb = "is" if count == 1 else "are"
    return f"{count} of {counted(len(all_of_them), 'recording')} {verb}"


def _seconds(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{math.floor(value)}"
