"""Batched inference: runs windows of many recordings through an encoder together, in constant memory.

    samples -> log-mel features -> windows -> batches of similar length -> tokens -> accumulators -> results

Windows have the pretraining length and overlap, by half unless asked otherwise; the last one ends where the recording
ends. Positions are counted in columns (patches along time), so all windows lie on one grid of time steps. Where windows
overlap, their frame embeddings are averaged with triangular weights: a time step counts most in the middle of a window.

Features have the dtype of the encoder's weights; what users get is float32 on the CPU.

Shapes: S samples, T frames, M mel bins, P prefix tokens, L patch tokens, R rows and K columns of the patch grid, D
channels, C classes; `layers`.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio.fbank import log_mel
from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.embedding import Embedding, EmbedOptions, Prediction
from ssamba.errors import ConfigError
from ssamba.model.encoder import PatchEncoder
from ssamba.model.heads import Classifier, span_weights
from ssamba.model.patches import fill_last_patch, tokens_to_grid
from ssamba.model.readouts import step_levels, third_weights

Array = np.ndarray[Any, Any]
Key = TypeVar("Key")
Owner = TypeVar("Owner")
Result = TypeVar("Result")

CPU_TOKENS_PER_BATCH = 4096
_MAX_PADDING = 1.1
"""Largest number of columns of a padded batch, as a multiple of its windows' own columns."""
_MAX_PADDING_IF_SKIPPED = 2.0
"""The same for encoders whose blocks skip padding."""


@dataclass(frozen=True)
class Window:
    """A stretch of a recording's features."""

    features: Tensor
    """(T, M), normalized, whole patches."""
    first_column: int
    """Start on the recording's grid of time steps."""
    columns: int
    """Length on that grid."""
    valid_frames: int
    """Frames that belong to the recording; silence that was filled in follows."""


class WindowCutter:
    """Cuts a recording's frames, pushed block by block, into windows.

    Memory: at most about one and a half windows of features, unless `whole` asks for one window of everything.
    """

    def __init__(
        self,
        config: BaseEncoderConfig,
        silent: float,
        *,
        whole: bool = False,
        pad_to_window: bool = False,
        overlap: float = 0.5,
    ):
        """Start a recording.

        Args:
            config: the encoder's configuration.
            silent: value of a silent feature.
            whole: return the recording as one window.
            pad_to_window: pad a recording shorter than a window to a whole one.
            overlap: share of a window that the next one covers again, in [0, 1).
        """
        self.config, self.silent, self.whole, self.pad_to_window = config, silent, whole, pad_to_window
        self.window = config.columns(config.num_frames)
        self.hop = max(1, math.floor(self.window * (1 - overlap) + 1e-9))
        self.num_frames = 0
        self._parts: list[Tensor] = []
        self._dropped = 0  # frames before the buffer's start
        self._buffered = 0
        self._next = 0  # column at which the next regular window starts

    def push(self, features: Tensor) -> list[Window]:
        """Append frames (T, M) and return the windows that they complete."""
        self._parts.append(features)
        self._buffered += features.shape[0]
        self.num_frames += features.shape[0]
        return [] if self.whole else self._regular(self.config.columns(self.num_frames))

    def finish(self) -> list[Window]:
        """Fill the last partial patch with silence and return the remaining windows."""
        buffer = fill_last_patch(self._buffer(), self.config, self.silent)
        self._parts, self._buffered = [buffer], buffer.shape[0]
        columns = self.num_columns
        if self.whole or columns <= self.window:
            return [] if self._next else [self._only(columns)]
        windows = self._regular(columns)
        if self._next - self.hop + self.window < columns:
            windows.append(self._cut(columns - self.window, self.window))
        return windows

    @property
    def num_columns(self) -> int:
        """Columns that cover the frames so far."""
        return self.config.columns_covering(self.num_frames)

    def _only(self, columns: int) -> Window:
        if self.pad_to_window and columns < self.window:
            missing = self.config.frames_spanned(self.window) - self._buffered
            self._parts = [F.pad(self._buffer(), (0, 0, 0, missing), value=self.silent)]
            columns = self.window
        return self._cut(0, columns)

    def _regular(self, columns: int) -> list[Window]:
        windows = []
        while self._next + self.window <= columns:
            windows.append(self._cut(self._next, self.window))
            self._next += self.hop
        # The window that ends with the recording may start anywhere after the last regular one.
        surplus = (self._next - self.hop) * self.config.patch_stride[1] - self._dropped
        if surplus > 0:
            # Clone, so that the remaining frames do not keep the memory of all earlier ones alive.
            self._parts = [self._buffer()[surplus:].clone()]
            self._dropped += surplus
            self._buffered -= surplus
        return windows

    def _buffer(self) -> Tensor:
        if len(self._parts) != 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    def _cut(self, first_column: int, columns: int) -> Window:
        start = first_column * self.config.patch_stride[1] - self._dropped
        span = self.config.frames_spanned(columns)
        valid_frames = min(span, self.num_frames - first_column * self.config.patch_stride[1])
        return Window(self._buffer()[start : start + span], first_column, columns, valid_frames)


class FrameMerger:
    """Averages the frame embeddings of overlapping windows, which may arrive in any order."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._weights = _zeros(0)
        self._end = 0

    def add(self, first_column: int, frames: Tensor) -> None:
        """Add the frame embeddings (K, D) of a window that starts at `first_column`."""
        frames = frames.detach().cpu().float()
        last = first_column + frames.shape[0]
        self._end = max(self._end, last)
        sums = self._reserve(last, frames.shape[1])
        ramp = torch.arange(1, frames.shape[0] + 1, dtype=torch.float32, device="cpu")
        weights = torch.minimum(ramp, ramp.flip(0))
        sums[first_column:last] += weights[:, None] * frames
        self._weights[first_column:last] += weights

    def merged(self, columns: int | None = None) -> Tensor:
        """Return the first `columns` time steps, or all that any window covered, (columns, D)."""
        assert self._sums is not None
        columns = self._end if columns is None else columns
        return self._sums[:columns] / self._weights[:columns, None]

    def _reserve(self, columns: int, channels: int) -> Tensor:
        if self._sums is None:
            self._sums = _zeros(0, channels)
        capacity = self._sums.shape[0]
        if columns > capacity:
            more = max(columns, 2 * capacity) - capacity
            self._sums = torch.cat((self._sums, _zeros(more, channels)))
            self._weights = torch.cat((self._weights, _zeros(more)))
        return self._sums


class WindowMean:
    """Averages one result of each window, which may arrive in any order."""

    def __init__(self) -> None:
        self._sum = _zeros()
        self._weight = 0

    def add(self, values: Tensor, weight: int) -> None:
        """Add the values of a window, of any shape."""
        self._sum = self._sum + weight * values.detach().cpu().float()
        self._weight += weight

    def mean(self) -> Tensor:
        """Return the weighted mean over windows."""
        return self._sum / self._weight


def _zeros(*shape: int) -> Tensor:
    """Return zeros as results are, whatever the caller's default dtype and device."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


class Accumulator(ABC, Generic[Result]):
    """Collects the tokens of one recording's windows, which may arrive in any order."""

    @abstractmethod
    def add(self, window: Window, tokens: Tensor, thirds: Tensor) -> None:
        """Take one window.

        Args:
            window: the window.
            tokens: its tokens (P + L, D), or (layers, P + L, D) if all layers were asked for.
            thirds: weights of its time steps in the thirds of the sounding region, (3, K), float32 on the CPU.
        """

    @abstractmethod
    def result(self, num_columns: int, num_samples: int) -> Result:
        """Return the result of a recording of `num_columns` time steps and `num_samples` samples.

        Raises:
            ValueError: the result is not finite.
        """


class EmbeddingAccumulator(Accumulator[Embedding]):
    """A recording's `Embedding`."""

    def __init__(self, config: BaseEncoderConfig, front_end: FrontEndConfig):
        self.config, self.front_end = config, front_end
        self.merger, self.thirds = FrameMerger(), WindowMean()

    def add(self, window: Window, tokens: Tensor, thirds: Tensor) -> None:
        """Average the patch tokens of (P + L, D) over rows, and these time steps over thirds."""
        patches = tokens[self.config.num_prefix_tokens :]
        grid = tokens_to_grid(patches, self.config.rows, window.columns, self.config)
        # Half precision would round once more for each row.
        frames = grid.mean(0, dtype=torch.promote_types(grid.dtype, torch.float32)).cpu().float()
        self.merger.add(window.first_column, frames)
        self.thirds.add(thirds @ frames, window.valid_frames)

    def result(self, num_columns: int, num_samples: int) -> Embedding:
        """Return the embedding; `clip` is the mean over all time steps, also those of `padding="official"`.

        The thirds in `parts` are those of each window, averaged by the frames that belong to the recording.
        """
        frames, clip = self.merger.merged(num_columns), self.merger.merged().mean(0)
        if not (torch.isfinite(frames).all() and torch.isfinite(clip).all()):
            raise ValueError(
                "the embedding is not finite: the samples are far outside [-1, 1], the model's weights are damaged, or "
                "they are float16, which overflowed: use bfloat16"
            )
        duration_s = num_samples / self.front_end.sample_rate_hz
        times_s = centers_s(num_columns, duration_s, self.config, self.front_end)
        parts = torch.cat((clip, self.thirds.mean().flatten()))
        return Embedding(clip, parts, frames, times_s, duration_s)


class LogitsAccumulator(Accumulator[Tensor]):
    """Class logits of a recording: the mean over its windows, weighted by their length."""

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self.total, self.columns = _zeros(classifier.config.num_classes), 0

    def add(self, window: Window, tokens: Tensor, thirds: Tensor) -> None:
        """Classify the pooled tokens (P + L, D)."""
        tokens = tokens.to(self.classifier.linear.weight.dtype)  # the encoder's may have been converted alone
        logits = self.classifier.classify(self.classifier.pool(tokens[None]))[0]
        self.total += window.columns * logits.float().cpu()
        self.columns += window.columns

    def result(self, num_columns: int, num_samples: int) -> Tensor:
        """Return logits (classes,)."""
        return _finite(self.total / self.columns)


class SegmentLogitsAccumulator(Accumulator[Tensor]):
    """Class logits of each segment of `label_frames` frames (one second if the classifier has none)."""

    def __init__(self, classifier: Classifier, front_end: FrontEndConfig):
        self.classifier, self.config, self.front_end = classifier, classifier.encoder.config, front_end
        self.label_frames = classifier.config.label_frames or front_end.frames_per_second
        self.frames = EmbeddingAccumulator(self.config, front_end)
        self.parts: list[tuple[int, Tensor]] = []  # with `token_segments`: first segment and logits of each window

    def add(self, window: Window, tokens: Tensor, thirds: Tensor) -> None:
        """Pool the tokens (P + L, D); with `token_segments` classify them, too, as the official training did."""
        if self.classifier.config.token_segments is None:
            self.frames.add(window, tokens, thirds)
            return
        tokens = tokens.to(self.classifier.linear.weight.dtype)
        pooled = self.classifier.pool_spans(tokens[None], window.features.shape[0])
        first_frame = window.first_column * self.config.patch_stride[1]
        self.parts.append((round(first_frame / self.label_frames), self.classifier.classify(pooled)[0].float().cpu()))

    def result(self, num_columns: int, num_samples: int) -> Tensor:
        """Return logits (segments, classes)."""
        segments = max(1, -(-num_samples // (self.label_frames * self.front_end.shift_samples)))
        if self.parts:
            total, count = _zeros(segments, self.classifier.config.num_classes), _zeros(segments, 1)
            for first, logits in self.parts:
                own = logits[: max(0, segments - first)]
                total[first : first + len(own)] += own
                count[first : first + len(own)] += 1
            covered = int((count > 0).sum())
            return _finite(total[:covered] / count[:covered])
        frames = self.frames.merger.merged()
        weights = span_weights(len(frames), self.config, self.label_frames)[:segments]
        with torch.no_grad():
            pooled = (weights @ frames).to(self.classifier.linear.weight)
            return _finite(self.classifier.classify(pooled).float().cpu())


class PredictionAccumulator(Accumulator[list[Prediction]]):
    """Class probabilities of a recording as a whole, or of each of its segments."""

    def __init__(self, classifier: Classifier, front_end: FrontEndConfig, *, by_segment: bool):
        self.classifier, self.by_segment = classifier, by_segment
        self.sample_rate_hz = front_end.sample_rate_hz
        label_frames = classifier.config.label_frames or front_end.frames_per_second
        self.segment_s = label_frames / front_end.frames_per_second
        self.logits: Accumulator[Tensor] = LogitsAccumulator(classifier)
        if by_segment:
            self.logits = SegmentLogitsAccumulator(classifier, front_end)

    def add(self, window: Window, tokens: Tensor, thirds: Tensor) -> None:
        """Classify the tokens (P + L, D)."""
        self.logits.add(window, tokens, thirds)

    def result(self, num_columns: int, num_samples: int) -> list[Prediction]:
        """Return a prediction for each segment, the last one ends with the recording; or one for the recording."""
        config, duration_s = self.classifier.config, num_samples / self.sample_rate_hz
        logits = self.logits.result(num_columns, num_samples).reshape(-1, config.num_classes)
        probabilities = logits.softmax(-1) if config.activation == "softmax" else logits.sigmoid()
        names = config.labels or tuple(map(str, range(config.num_classes)))
        if not self.by_segment:
            return [Prediction(0.0, duration_s, names, probabilities[0])]
        starts_s = [k * self.segment_s for k in range(len(probabilities))]
        return [
            Prediction(start_s, min(start_s + self.segment_s, duration_s), names, row)
            for start_s, row in zip(starts_s, probabilities, strict=True)
        ]


def _finite(logits: Tensor) -> Tensor:
    if torch.isfinite(logits).all():
        return logits
    raise ValueError("the logits are not finite: samples are far outside [-1, 1], or the model's weights are damaged")


def centers_s(columns: int, duration_s: float, config: BaseEncoderConfig, front_end: FrontEndConfig) -> Tensor:
    """Return the center of each column's stretch of audio, cut at the recording's end, (K,)."""
    shift_s = front_end.shift_samples / front_end.sample_rate_hz
    span_s = (config.patch_size[1] - 1) * shift_s + front_end.frame_samples / front_end.sample_rate_hz
    start_s = torch.arange(columns, dtype=torch.float64) * (config.patch_stride[1] * shift_s)
    return ((start_s + (start_s + span_s).clamp(max=duration_s)) / 2).float()


class _Recording(Generic[Key, Result]):
    """State of a recording while its windows are encoded."""

    def __init__(self, key: Key, cutter: WindowCutter, accumulator: Accumulator[Result]):
        self.key, self.cutter, self.accumulator = key, cutter, accumulator
        self.num_samples = 0
        self.num_pending = 0  # windows in the current batch
        self.error: Exception | None = None

    def counted(self, blocks: Iterable[Array]) -> Iterator[Array]:
        """Yield blocks of samples (S,) and count them."""
        for block in blocks:
            self.num_samples += len(block)
            yield block

    def result(self) -> Result | ValueError:
        try:
            return self.accumulator.result(self.cutter.num_columns, self.num_samples)
        except ValueError as error:
            return error


@dataclass(frozen=True)
class InferenceEngine:
    """An encoder with its front end: turns samples into features, windows, batches and results, where the encoder is.

    It has no state between calls, so that threads may share it.
    """

    encoder: PatchEncoder
    """In evaluation mode."""
    front_end: FrontEndConfig
    block_s: float = 30.0
    """Length of audio whose features are computed at once."""
    gpu_tokens_per_batch: int = 32_768
    """Tokens at which a batch is complete on devices other than the CPU."""

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        return self.encoder.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the encoder's weights, and of features."""
        return self.encoder.cls_token.dtype

    def run(
        self,
        items: Iterable[tuple[Key, Iterable[Array]]],
        options: EmbedOptions,
        new_accumulator: Callable[[], Accumulator[Result]],
        *,
        all_layers: bool = False,
        batch_tokens: int | None = None,
    ) -> Iterator[tuple[Key, Result | Exception]]:
        """Encode recordings, many at a time, and yield each result when it is ready.

        Args:
            items: keys, and recordings as blocks of mono samples (S,), float32, at the front end's rate; a recording
                must have at least one frame.
            options: how to encode.
            new_accumulator: makes the accumulator of a recording.
            all_layers: give accumulators every hidden state and the final output, stacked, instead of one of them.
            batch_tokens: patch tokens at which a batch is complete; None means 4096 on the CPU, `gpu_tokens_per_batch`
                elsewhere.

        Returns:
            The keys, in the order of `items` except that errors come at once, each with its result, or with the
            `ValueError` or `OSError` that reading its blocks or making its result raised; the other recordings are not
            affected. What was read when `items` ends is encoded.

        Raises:
            ConfigError: `batch_tokens` is below 1.
            ValueError: `precision="bf16"` with weights of float16 or float64.
        """
        budget = CPU_TOKENS_PER_BATCH if self.device.type == "cpu" else self.gpu_tokens_per_batch
        if batch_tokens is not None:
            if not (isinstance(batch_tokens, int) and batch_tokens >= 1):
                raise ConfigError(
                    f"batch_tokens must be a whole number of patch tokens, at least 1; got {batch_tokens!r}"
                )
            budget = batch_tokens
        options = options.resolved(self.device)
        if options.precision == "bf16" and self.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"precision='bf16' requires a float32 encoder, but this one was converted to "
                f"{str(self.dtype).removeprefix('torch.')}: omit precision"
            )
        config = self.encoder.config
        batch: list[tuple[_Recording[Key, Result], Window]] = []
        tokens = 0
        waiting: list[_Recording[Key, Result]] = []  # read to the end, with windows in the batch
        for key, blocks in items:
            cutter = WindowCutter(
                config,
                self.front_end.silent_feature,
                whole=options.context == "full",
                pad_to_window=options.padding == "official",
                overlap=options.overlap,
            )
            recording = _Recording(key, cutter, new_accumulator())
            for window in self._windows(recording, blocks):
                batch.append((recording, window))
                recording.num_pending += 1
                tokens += window.columns * config.rows
                if tokens >= budget:
                    self._encode(batch, options, all_layers)
                    batch, tokens = [], 0
            if recording.error is not None:
                batch = [(owner, window) for owner, window in batch if owner is not recording]
                tokens = sum(window.columns for _, window in batch) * config.rows
                yield key, recording.error
                continue
            waiting.append(recording)
            ready = [one for one in waiting if not one.num_pending]
            waiting = [one for one in waiting if one.num_pending]
            yield from ((one.key, one.result()) for one in ready)
        self._encode(batch, options, all_layers)
        yield from ((one.key, one.result()) for one in waiting)

    def features(self, blocks: Iterable[Array]) -> Iterator[Tensor]:
        """Yield the normalized log-mel features (T, M) of consecutive stretches of a recording.

        The stretches are the same however the samples are cut into blocks, so results do not depend on it.
        """
        config = self.front_end
        block_samples = round(min(self.block_s * config.sample_rate_hz, sys.maxsize))
        pending: Array = np.zeros(0, dtype=np.float32)
        shortest = 0  # the first stretch is never left out: a recording below one frame is an error
        for samples in blocks:
            pending = np.concatenate((pending, samples)) if len(pending) else samples
            while len(pending) >= block_samples + config.frame_samples:
                yield self._log_mel(pending[:block_samples])
                pending = pending[config.num_frames(block_samples) * config.shift_samples :]
                shortest = config.frame_samples
        if len(pending) >= shortest:
            yield self._log_mel(pending)

    def _log_mel(self, samples: Array) -> Tensor:
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        waveform = torch.from_numpy(np.ascontiguousarray(samples)).to(self.device, exact)
        with self._autocast(enabled=False):
            return log_mel(waveform, config=self.front_end).to(self.dtype)

    def _autocast(self, *, enabled: bool) -> torch.autocast:
        """Return a context with or without autocast to bfloat16, whatever the caller's is."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _windows(self, recording: _Recording[Key, Result], blocks: Iterable[Array]) -> Iterator[Window]:
        try:
            for features in self.features(recording.counted(blocks)):
                yield from recording.cutter.push(features)
            yield from recording.cutter.finish()
        except (ValueError, OSError) as error:
            recording.error = error

    @torch.no_grad()
    def _encode(
        self, batch: list[tuple[_Recording[Key, Result], Window]], options: EmbedOptions, all_layers: bool
    ) -> None:
        """Encode windows in groups of similar length and hand their tokens to their recordings' accumulators."""
        if not batch:
            return
        config, is_bf16 = self.encoder.config, options.precision == "bf16"
        with self._autocast(enabled=is_bf16):
            skips = self.encoder.skips_padding(batch[0][1].features) and not all_layers
        for group in group_by_length(batch, _MAX_PADDING_IF_SKIPPED if skips else _MAX_PADDING):
            windows, rows = _distinct([window for _, window in group])
            features = _padded(windows)
            with self._autocast(enabled=is_bf16):
                encoded = self._tokens(features, windows, options.layer, all_layers)
            with self._autocast(enabled=False):
                thirds = self._thirds(features, windows)
                for row, (recording, window) in zip(rows, group, strict=True):
                    valid = config.num_prefix_tokens + config.rows * window.columns
                    recording.accumulator.add(window, encoded[row][..., :valid, :], thirds[row][:, : window.columns])
                    recording.num_pending -= 1

    def _tokens(self, features: Tensor, windows: Sequence[Window], layer: int | None, all_layers: bool) -> Tensor:
        """Encode windows: (B, P + L, D), or (B, layers, P + L, D); tokens after a window's own are padding."""
        encoder = self.encoder
        frames = [window.features.shape[0] for window in windows]
        lengths = torch.tensor(frames) if min(frames) < max(frames) else None
        if all_layers:
            return torch.stack(encoder.hidden_states(encoder.embed_patches(features, lengths)), dim=1)
        tokens: Tensor = encoder(features, lengths, layer=layer)
        return tokens

    def _thirds(self, features: Tensor, windows: Sequence[Window]) -> Tensor:
        """Return the weights of the time steps in the thirds of each window's sounding region, (B, 3, K)."""
        columns, valid_frames = torch.tensor([(one.columns, one.valid_frames) for one in windows], device="cpu").T
        levels = step_levels(features, self.encoder.config, self.front_end, valid_frames)
        return third_weights(levels.cpu().float(), columns)


def _distinct(windows: Sequence[Window]) -> tuple[list[Window], list[int]]:
    """Return the windows to encode, and for each window its index among them: equal digital silence is encoded once."""
    distinct, rows, silent = list[Window](), list[int](), dict[tuple[int, int], int]()
    for window in windows:
        row = len(distinct)
        if (window.features == window.features[0, 0]).all():
            row = silent.setdefault((len(window.features), window.valid_frames), row)
        if row == len(distinct):
            distinct.append(window)
        rows.append(row)
    return distinct, rows


def _padded(windows: Sequence[Window]) -> Tensor:
    """Return the features of windows as a batch, (B, T, M), zeros after the shorter ones."""
    if len(windows) == 1:  # no copy: it may be hours in one window
        return windows[0].features[None]
    longest = max(window.features.shape[0] for window in windows)
    features = windows[0].features.new_zeros(len(windows), longest, windows[0].features.shape[1])
    for row, window in zip(features, windows, strict=True):
        row[: window.features.shape[0]] = window.features
    return features


def group_by_length(batch: Sequence[tuple[Owner, Window]], max_padding: float) -> Iterator[list[tuple[Owner, Window]]]:
    """Yield groups of windows, longest first, whose padded size is at most `max_padding` times their own."""
    group: list[tuple[Owner, Window]] = []
    own = 0
    for item in sorted(batch, key=lambda entry: -entry[1].columns):
        columns = item[1].columns
        if group and (len(group) + 1) * group[0][1].columns > max_padding * (own + columns):
            yield group
            group, own = [], 0
        group.append(item)
        own += columns
    if group:
        yield group
