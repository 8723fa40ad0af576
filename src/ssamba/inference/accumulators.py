"""Accumulators: from the tokens of a recording's windows, in order, to its result, in memory that does not grow.

Where windows overlap, their frame embeddings are averaged with triangular weights: a time step counts most in the
middle of a window. A time step that no later window changes goes at once into running sums, so an accumulator holds
about one window besides its result.

Shapes: P prefix tokens, L patch tokens, R rows and K columns of the patch grid, D channels, C classes; `layers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.embedding import Embedding, Prediction
from ssamba.inference.windows import Window
from ssamba.model.heads import Classifier, span_weights
from ssamba.model.patches import tokens_to_grid

Result = TypeVar("Result")


def _zeros(*shape: int) -> Tensor:
    """Return zeros as results are, whatever the caller's default dtype and device."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


class FrameMerger:
    """Averages the frame embeddings of overlapping windows, which arrive in order; holds what is not final yet."""

    def __init__(self) -> None:
        self._first = 0
        self._sums = _zeros(0, 0)
        self._weights = _zeros(0)

    def add(self, first_column: int, frames: Tensor) -> Tensor:
        """Add the frame embeddings (K, D) of a window that starts at `first_column`.

        Returns:
            The time steps before it that were not returned yet, (n, D): no later window changes them.
        """
        frames = frames.detach().cpu().float()
        done = first_column - self._first
        held = len(self._sums) - done
        assert done >= 0, "windows arrive in order"
        assert 0 <= held <= len(frames) or not len(self._sums), "windows leave no gap, and the last one ends last"
        final = self._final(done)
        ramp = torch.arange(1, frames.shape[0] + 1, dtype=torch.float32, device="cpu")
        weights = torch.minimum(ramp, ramp.flip(0))
        sums = weights[:, None] * frames
        if held > 0:
            sums[:held] += self._sums[done:]
            weights[:held] += self._weights[done:]
        self._first, self._sums, self._weights = first_column, sums, weights
        return final if len(final) else frames[:0]

    def finish(self) -> Tensor:
        """Return the remaining time steps, (n, D)."""
        return self._final(len(self._sums))

    def _final(self, count: int) -> Tensor:
        return self._sums[:count] / self._weights[:count, None]


class RunningMean:
    """Weighted mean of values of one shape that arrive one after the other; hours are summed in float64."""

    def __init__(self) -> None:
        self._sum = torch.zeros((), dtype=torch.float64, device="cpu")
        self._weight = 0

    def add(self, values: Tensor, weight: int) -> None:
        """Add the values of a window, of any shape."""
        self._sum = self._sum + weight * values.detach().cpu().double()
        self._weight += weight

    def add_rows(self, rows: Tensor) -> None:
        """Add each of some rows (n, D) of float32, which may be none, with weight one."""
        if len(rows):
            self._sum = self._sum + rows.sum(0, dtype=torch.float64)
            self._weight += len(rows)

    def mean(self) -> Tensor:
        """Return the mean, float32."""
        return (self._sum / self._weight).float()


class GrowingRows:
    """Rows that arrive piece by piece, in one array that grows in place: they are in memory once."""

    def __init__(self) -> None:
        self._array: np.ndarray[Any, np.dtype[np.float32]] | None = None
        self._count = 0

    def append(self, rows: Tensor) -> None:
        """Append (n, D), float32."""
        if self._array is None:
            self._array = np.empty((0, rows.shape[1]), np.float32)
        count = self._count + len(rows)
        if count > len(self._array):
            self._array.resize((max(count, len(self._array) * 9 // 8), rows.shape[1]), refcheck=False)
        self._array[self._count : count] = rows.numpy()
        self._count = count

    def tensor(self) -> Tensor:
        """Return all rows (N, D); nothing can be appended afterwards."""
        array, self._array = self._array, None
        assert array is not None
        array.resize((self._count, array.shape[1]), refcheck=False)
        return torch.from_numpy(array)


class SpanMeans:
    """Means over spans of `span_frames` frames, of time steps that arrive in order; weights as in `span_weights`."""

    def __init__(self, config: BaseEncoderConfig, span_frames: int):
        self.config, self.span_frames = config, span_frames
        self._steps: Tensor | None = None
        self._first = 0  # column of the first step that is held
        self._done = 0

    def add(self, steps: Tensor) -> Tensor:
        """Add time steps (n, D); return the spans that no later step changes, (spans, D)."""
        self._steps = steps if self._steps is None else torch.cat((self._steps, steps))
        stride = self.config.patch_stride[1]
        # One step more than overlaps a span, as the nearest step of a span without one may come after it.
        return self._means(max(0, self._first + len(self._steps) - 1) * stride // self.span_frames)

    def finish(self) -> Tensor:
        """Return the remaining spans; the last one may be shorter than the others."""
        assert self._steps is not None
        frames = self.config.frames_spanned(self._first + len(self._steps))
        return self._means(-(-frames // self.span_frames))

    def _means(self, stop: int) -> Tensor:
        """Return the spans from the first one that was not returned to `stop`, and forget steps that are not needed."""
        assert self._steps is not None
        if stop <= self._done:
            return self._steps[:0]
        columns = range(self._first, self._first + len(self._steps))
        weights = span_weights(columns, self.config, self.span_frames, range(self._done, stop))
        means = weights.to(self._steps) @ self._steps
        self._done = stop
        # The next span's steps, and the last one before them.
        needed = (stop * self.span_frames - self.config.patch_size[1]) // self.config.patch_stride[1]
        surplus = min(max(0, needed - self._first), len(self._steps))
        self._steps, self._first = self._steps[surplus:].clone(), self._first + surplus
        return means


class Accumulator(ABC, Generic[Result]):
    """Collects the tokens of one recording's windows, which arrive in order."""

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


def time_steps(window: Window, tokens: Tensor, config: BaseEncoderConfig) -> Tensor:
    """Return the frame embeddings of a window, (P + L, D) -> (K, D): means over rows, float32 on the CPU."""
    grid = tokens_to_grid(tokens[config.num_prefix_tokens :], config.rows, window.columns, config)
    # Half precision would round once more for each row.
    return grid.mean(0, dtype=torch.promote_types(grid.dtype, torch.float32)).detach().cpu().float()


class EmbeddingAccumulator(Accumulator[Embedding]):
    """A recording's `Embedding`."""

    def __init__(
        self,
        config: BaseEncoderConfig,
        front_end: FrontEndConfig,
        *,
        frames: bool = True,
        span_frames: int | None = None,
    ):
        """Start a recording.

        Args:
            config: the encoder's configuration.
            front_end: how features are made.
            frames: keep the time steps; else `clip` and `parts` are all that the embedding has.
            span_frames: keep means over spans of so many frames in their place.
        """
        self.config, self.front_end = config, front_end
        self.merger, self.clip, self.thirds = FrameMerger(), RunningMean(), RunningMean()
        self.rows = GrowingRows() if frames else None
        self.spans = None if span_frames is None else SpanMeans(config, span_frames)

    def add(self, window: Window, tokens: Tensor, thirds: Tensor) -> None:
        """Average the patch tokens of (P + L, D) over rows, and these time steps over the recording and thirds."""
        steps = time_steps(window, tokens, self.config)
        self.thirds.add(thirds @ steps, window.valid_frames)
        self._add(self.merger.add(window.first_column, steps))

    def _add(self, steps: Tensor) -> None:
        self.clip.add_rows(steps)
        if self.rows is not None:
            self.rows.append(steps if self.spans is None else self.spans.add(steps))

    def result(self, num_columns: int, num_samples: int) -> Embedding:
        """Return the embedding; `clip` is the mean over all time steps, also those of `padding="official"`.

        The thirds in `parts` are those of each window, averaged by the frames that belong to the recording.
        """
        self._add(self.merger.finish())
        clip = self.clip.mean()
        if not torch.isfinite(clip).all():  # nor is the mean if one of the frames is not
            raise ValueError(
                "the embedding is not finite: the samples are far outside [-1, 1], the model's weights are damaged, or "
                "they are float16, which overflowed: use bfloat16"
            )
        duration_s = num_samples / self.front_end.sample_rate_hz
        parts = torch.cat((clip, self.thirds.mean().flatten()))
        if self.rows is None:
            return Embedding.without_frames(clip, parts, duration_s)
        if self.spans is None:
            frames = self.rows.tensor()[:num_columns]
            return Embedding(
                clip, parts, frames, centers_s(num_columns, duration_s, self.config, self.front_end), duration_s
            )
        self.rows.append(self.spans.finish())
        span_samples = self.spans.span_frames * self.front_end.shift_samples
        frames = self.rows.tensor()[: max(1, -(-num_samples // span_samples))]
        span_s = span_samples / self.front_end.sample_rate_hz
        start_s = torch.arange(len(frames), dtype=torch.float64, device="cpu") * span_s
        times_s = (start_s + (start_s + span_s).clamp(max=duration_s)) / 2
        return Embedding(clip, parts, frames, times_s.float(), duration_s)


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
        self.merger, self.spans = FrameMerger(), SpanMeans(self.config, self.label_frames)
        self.logits: list[Tensor] = []
        self.parts: list[tuple[int, Tensor]] = []  # with `token_segments`: first segment and logits of each window

    def add(self, window: Window, tokens: Tensor, thirds: Tensor) -> None:
        """Pool the tokens (P + L, D); with `token_segments` classify them, too, as the official training did."""
        if self.classifier.config.token_segments is None:
            steps = time_steps(window, tokens, self.config)
            self._classify(self.spans.add(self.merger.add(window.first_column, steps)))
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
        self._classify(self.spans.add(self.merger.finish()))
        self._classify(self.spans.finish())
        return _finite(torch.cat(self.logits)[:segments])

    @torch.no_grad()
    def _classify(self, vectors: Tensor) -> None:
        """Classify the mean vectors (segments, D) of some segments, which may be none."""
        if not len(vectors):
            return
        logits = self.classifier.classify(vectors.to(self.classifier.linear.weight))
        self.logits.append(logits.float().cpu())


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
        probabilities = self.classifier.probabilities(logits)
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
