"""Cutting a recording of any length into windows, and merging the windows' frame embeddings again.

Windows have the pretraining length, overlap by half, and the last one ends where the recording ends. Everything is
counted in columns (patches along time), so that all windows lie on one grid of time steps. Where windows overlap,
their frame embeddings are averaged with triangular weights, so that a time step counts most where it stands in the
middle of its window.

Shapes: T frames, M mel bins, K columns, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.config import BaseEncoderConfig
from ssamba.model.patches import fill_last_patch


@dataclass(frozen=True)
class Window:
    """A stretch of a recording's features."""

    features: Tensor
    """(T, M), normalized, whole patches."""
    first_column: int
    """Where it starts on the recording's grid."""
    columns: int
    """Its length on that grid."""


class WindowCutter:
    """Takes a recording's frames as they come and gives windows as soon as they are complete.

    Memory: at most about one and a half windows of features, unless `whole` asks for one window of everything.
    """

    def __init__(self, config: BaseEncoderConfig, silent: float, *, whole: bool = False, fill_window: bool = False):
        """Args: the encoder's configuration, the value of a silent feature, and two choices.

        `whole` gives the recording as one window; `fill_window` fills a recording shorter than a window up to it.
        """
        self.config, self.silent, self.whole, self.fill_window = config, silent, whole, fill_window
        self.window = config.columns(config.num_frames)
        self.hop = max(1, self.window // 2)
        self.num_frames = 0
        self._parts: list[Tensor] = []
        self._dropped = 0  # frames before the buffer's start
        self._buffered = 0
        self._next = 0  # column at which the next regular window starts

    def push(self, features: Tensor) -> list[Window]:
        """More frames (T, M); returns the windows that they complete."""
        self._parts.append(features)
        self._buffered += features.shape[0]
        self.num_frames += features.shape[0]
        return [] if self.whole else self._regular(self.config.columns(self.num_frames))

    def finish(self) -> list[Window]:
        """No more frames: the last partial patch is filled with silence, and the remaining windows are returned."""
        buffer = fill_last_patch(self._buffer(), self.config, self.silent)
        self._parts, self._buffered = [buffer], buffer.shape[0]
        columns = self.num_columns
        if self.whole or columns <= self.window:
            return [] if self._next else [self._only(columns)]
        windows = self._regular(columns)
        if self._next - self.hop + self.window < columns:
            windows.append(self._cut(columns - self.window, self.window))
        return windows

    def _only(self, columns: int) -> Window:
        if self.fill_window and columns < self.window:
            missing = self.config.frames_spanned(self.window) - self._buffered
            self._parts = [F.pad(self._buffer(), (0, 0, 0, missing), value=self.silent)]
            columns = self.window
        return self._cut(0, columns)

    @property
    def num_columns(self) -> int:
        """Columns that cover the frames so far."""
        return self.config.columns_covering(self.num_frames)

    def _regular(self, columns: int) -> list[Window]:
        windows = []
        while self._next + self.window <= columns:
            windows.append(self._cut(self._next, self.window))
            self._next += self.hop
        # The window that ends with the recording may start anywhere after the last regular one.
        self._forget((self._next - self.hop) * self.config.patch_stride[1])
        return windows

    def _buffer(self) -> Tensor:
        if len(self._parts) != 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    def _cut(self, first_column: int, columns: int) -> Window:
        start = first_column * self.config.patch_stride[1] - self._dropped
        return Window(self._buffer()[start : start + self.config.frames_spanned(columns)], first_column, columns)

    def _forget(self, frame: int) -> None:
        surplus = frame - self._dropped
        if surplus > 0:
            # A copy, so that the windows' own memory does not keep the whole past alive.
            self._parts = [self._buffer()[surplus:].clone()]
            self._dropped += surplus
            self._buffered -= surplus


class FrameMerger:
    """Averages the frame embeddings of overlapping windows, in any order of arrival."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._weights = torch.zeros(0)
        self._end = 0

    def add(self, first_column: int, frames: Tensor) -> None:
        """The frame embeddings (K, D) of a window that starts at `first_column`."""
        frames = frames.detach().cpu().float()
        last = first_column + frames.shape[0]
        self._end = max(self._end, last)
        self._reserve(last, frames.shape[1])
        assert self._sums is not None
        ramp = torch.arange(1, frames.shape[0] + 1, dtype=torch.float32)
        weights = torch.minimum(ramp, ramp.flip(0))
        self._sums[first_column:last] += weights[:, None] * frames
        self._weights[first_column:last] += weights

    def merged(self, columns: int | None = None) -> Tensor:
        """The first `columns` time steps, or all that any window covered: (columns, D)."""
        assert self._sums is not None
        columns = self._end if columns is None else columns
        return self._sums[:columns] / self._weights[:columns, None]

    def _reserve(self, columns: int, channels: int) -> None:
        if self._sums is None:
            self._sums = torch.zeros(0, channels)
        capacity = self._sums.shape[0]
        if columns > capacity:
            more = max(columns, 2 * capacity) - capacity
            self._sums = torch.cat((self._sums, torch.zeros(more, channels)))
            self._weights = torch.cat((self._weights, torch.zeros(more)))
