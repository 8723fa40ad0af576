"""Cut recordings into windows, and merge what is computed for them, in memory that does not grow.

Two kinds of windows. Those of pretraining: long recordings are cut into windows of the model's length, which overlap,
the last one ending with the recording; where they overlap, time steps are averaged with triangular weights. And those
of a classifier, as long as its training clips: each is answered alone.

The rules are those of `ssamba`, which gives the same numbers.

Shapes: S samples, K time steps (columns), D channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ssamba_onnx.results import Array

SILENT_PEAK = 2.0**-16
"""Up to this peak, half a step of 16 bits, samples are digital silence."""


@dataclass(frozen=True)
class Geometry:
    """Lengths of frames, patches and windows of a model."""

    rate_hz: int
    frame_samples: int
    shift_samples: int
    patch_frames: int
    stride_frames: int
    window_frames: int

    @classmethod
    def of(cls, front_end: dict[str, Any], encoder: dict[str, Any]) -> Geometry:
        """Return the geometry that a file's metadata describe."""
        lengths = front_end["sample_rate_hz"], front_end["frame_samples"], front_end["shift_samples"]
        return cls(*lengths, encoder["patch_size"][1], encoder["patch_stride"][1], encoder["num_frames"])

    @property
    def window_columns(self) -> int:
        """Time steps of a window."""
        return self.columns(self.window_frames)

    def num_frames(self, samples: int) -> int:
        """Return the whole frames in `samples` samples."""
        return 0 if samples < self.frame_samples else 1 + (samples - self.frame_samples) // self.shift_samples

    def columns(self, frames: int) -> int:
        """Return the whole time steps of `frames` frames."""
        return 0 if frames < self.patch_frames else (frames - self.patch_frames) // self.stride_frames + 1

    def columns_covering(self, frames: int) -> int:
        """Return the time steps that cover `frames` frames, the last one perhaps only partly filled."""
        return max(0, -(-(frames - self.patch_frames) // self.stride_frames)) + 1

    def frames_spanned(self, columns: int) -> int:
        """Return the frames that `columns` time steps cover."""
        return (columns - 1) * self.stride_frames + self.patch_frames

    def centers_s(self, columns: int, duration_s: float) -> Array:
        """Return the center of each time step's stretch of audio, cut at the recording's end, (K,)."""
        span_s = ((self.patch_frames - 1) * self.shift_samples + self.frame_samples) / self.rate_hz
        start_s = np.arange(columns) * (self.stride_frames * self.shift_samples / self.rate_hz)
        centers: Array = ((start_s + np.minimum(start_s + span_s, duration_s)) / 2).astype(np.float32)
        return centers


class Window(NamedTuple):
    """A stretch of a recording."""

    samples: Array
    """(S,), to the end of the recording if that comes first."""
    first_column: int
    """Start on the recording's grid of time steps."""
    valid_frames: int
    """Frames that belong to the recording."""


def cut_windows(blocks: Iterable[Array], geometry: Geometry, overlap: float, *, whole: bool) -> Iterator[Window]:
    """Yield the windows of a recording, given as consecutive samples; `whole` makes one of everything."""
    size, stride = geometry.window_columns, geometry.stride_frames * geometry.shift_samples
    span = (geometry.frames_spanned(size) - 1) * geometry.shift_samples + geometry.frame_samples
    hop = max(1, math.floor(size * (1 - overlap) + 1e-9))
    parts: list[Array] = []
    buffer: Array = np.zeros(0, np.float32)
    dropped = following = total = 0

    def window(column: int, length: int | None = span) -> Window:
        start = column * stride - dropped
        samples = buffer[start : None if length is None else start + length]
        return Window(samples, column, geometry.num_frames(len(samples)))

    for block in blocks:
        total += len(block)
        if whole:
            parts.append(block)
            continue
        buffer = np.concatenate((buffer, block)) if len(buffer) else block
        while following + size <= geometry.columns(geometry.num_frames(total)):
            yield window(following)
            following += hop
        # The window that ends with the recording may start anywhere after the last regular one.
        surplus = (following - hop) * stride - dropped
        if surplus > 0:
            buffer, dropped = buffer[surplus:].copy(), dropped + surplus
    if whole and parts:
        buffer = np.concatenate(parts)
    columns = geometry.columns_covering(geometry.num_frames(total))
    if whole or columns <= size:
        if not following:
            yield window(0, None)
        return
    while following + size <= columns:
        yield window(following)
        following += hop
    if following - hop + size < columns:
        yield window(columns - size)


class FrameMerger:
    """Averages the time steps of overlapping windows, which arrive in order; holds what is not final yet."""

    def __init__(self) -> None:
        self._first = 0
        self._sums: Array = np.zeros((0, 0), np.float32)
        self._weights: Array = np.zeros(0, np.float32)

    def add(self, first_column: int, frames: Array) -> Array:
        """Add the time steps (K, D) of a window; return those before it, which no later window changes, (n, D)."""
        done = first_column - self._first
        held = len(self._sums) - done
        final = self._final(done)
        ramp = np.arange(1, len(frames) + 1, dtype=np.float32)
        weights = np.minimum(ramp, ramp[::-1])
        sums = weights[:, None] * frames
        if held > 0:
            sums[:held] += self._sums[done:]
            weights[:held] += self._weights[done:]
        self._first, self._sums, self._weights = first_column, sums, weights
        return final if len(final) else frames[:0]

    def finish(self) -> Array:
        """Return the remaining time steps, (n, D)."""
        return self._final(len(self._sums))

    def _final(self, count: int) -> Array:
        return self._sums[:count] / self._weights[:count, None]


class SpanMeans:
    """Means over spans of `span_frames` frames of time steps that arrive in order, weighted by common frames."""

    def __init__(self, geometry: Geometry, span_frames: int):
        self.geometry, self.span_frames = geometry, span_frames
        self._steps: Array | None = None
        self._first = self._done = 0

    def add(self, steps: Array) -> Array:
        """Add time steps (n, D); return the spans that no later step changes, (spans, D)."""
        self._steps = steps if self._steps is None else np.concatenate((self._steps, steps))
        return self._means(max(0, self._first + len(self._steps) - 1) * self.geometry.stride_frames // self.span_frames)

    def finish(self) -> Array:
        """Return the remaining spans; the last one may be shorter than the others."""
        assert self._steps is not None
        return self._means(-(-self.geometry.frames_spanned(self._first + len(self._steps)) // self.span_frames))

    def _means(self, stop: int) -> Array:
        assert self._steps is not None
        if stop <= self._done:
            return self._steps[:0]
        size, stride = self.geometry.patch_frames, self.geometry.stride_frames
        start = (self._first + np.arange(len(self._steps))) * stride
        first = np.arange(self._done, stop)[:, None] * self.span_frames
        shared = np.maximum(np.minimum(start + size, first + self.span_frames) - np.maximum(start, first), 0)
        weights = (shared / shared.sum(1, keepdims=True)).astype(np.float32)
        means: Array = weights @ self._steps
        self._done = stop
        needed = (stop * self.span_frames - size) // stride
        surplus = min(max(0, needed - self._first), len(self._steps))
        self._steps, self._first = self._steps[surplus:].copy(), self._first + surplus
        return means


class Lengths(NamedTuple):
    """How recordings are cut for a classifier, in seconds."""

    window_s: float
    hop_s: float
    """Distance of the starts; the last window ends with the recording."""
    whole_s: float
    """Recordings up to this length are one window."""
    shortest_s: float
    """Digital silence at the edges of a window is left out down to this length."""


class Piece(NamedTuple):
    """A window of a classifier."""

    start: int
    """First sample."""
    stop: int
    samples: Array
    """The samples to encode, without digital silence at the edges."""
    is_silent: bool
    """Whether the time that it answers for is digital silence."""


def cut_pieces(blocks: Iterable[Array], lengths: Lengths, rate_hz: int) -> Iterator[Piece]:
    """Yield the windows of a recording, given as consecutive samples (S,)."""
    window, hop, whole, shortest = (max(1, round(length_s * rate_hz)) for length_s in lengths)
    margin = (window - hop) // 2  # on both sides of what a window answers for
    for start, samples, is_last in _cut(blocks, window, hop, max(whole, window)):
        inner = samples[margin if start else 0 : len(samples) if is_last else len(samples) - margin]
        is_silent = bool(np.abs(inner).max(initial=0) <= SILENT_PEAK)
        is_whole = not start and is_last
        yield Piece(
            start, start + len(samples), samples if is_whole else _without_silence(samples, shortest), is_silent
        )


def _cut(blocks: Iterable[Array], window: int, hop: int, whole: int) -> Iterator[tuple[int, Array, bool]]:
    """Yield first sample, samples (window,) and whether it is the last; up to `whole` samples are one window."""
    buffer: Array = np.zeros(0, np.float32)
    dropped = following = 0
    last: tuple[int, Array] | None = None
    for block in blocks:
        buffer = np.concatenate((buffer, block)) if len(buffer) else block
        if last is None and len(buffer) <= whole:
            continue
        while following + window <= dropped + len(buffer):
            if last is not None:
                yield *last, False
            last = following, buffer[following - dropped : following - dropped + window]
            following += hop
        if last is not None:
            buffer, dropped = buffer[last[0] - dropped :], last[0]
    if last is None:
        yield 0, buffer, True
        return
    total = dropped + len(buffer)
    is_last = last[0] + window == total
    yield *last, is_last
    if not is_last:
        yield total - window, buffer[len(buffer) - window :], True


def _without_silence(samples: Array, shortest: int) -> Array:
    """Return a window without digital silence at its edges, but at least its `shortest` samples around the sound."""
    loud = np.flatnonzero(np.abs(samples) > SILENT_PEAK)
    if not len(loud):
        return samples
    first, stop = int(loud[0]), int(loud[-1]) + 1
    missing = max(0, min(shortest, len(samples)) - (stop - first))
    first = min(max(0, first - missing // 2), len(samples) - (stop - first) - missing)
    return samples[first : max(stop, first + shortest)]


def window_edges(starts_s: Array, ends_s: Array) -> Array:
    """Return what each of K windows answers for, the time nearer to its center than to any other's, (K + 1,)."""
    centers = (starts_s + ends_s) / 2
    return np.concatenate((starts_s[:1], (centers[1:] + centers[:-1]) / 2, ends_s[-1:]))
