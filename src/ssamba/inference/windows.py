"""Windows of a recording's frames: cut from blocks of features as they come, in constant memory.

Windows have the pretraining length and overlap, by half unless asked otherwise; the last one ends where the recording
ends. Positions are counted in columns (patches along time), so all windows lie on one grid of time steps.

Shapes: B clips, S samples, T frames, M mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssamba.audio.fbank import log_mel
from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.model.patches import fill_last_patch


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


class ClipBatch(NamedTuple):
    """Clips as one padded batch of features, each clip whole."""

    features: Tensor
    """(B, T, M), normalized; zeros after a clip's own."""
    lengths: Tensor
    """Frames of each clip with the silence that fills its last patch, (B,)."""
    valid_frames: Tensor
    """Frames that belong to the recording, (B,)."""


def clip_batch(waves: Sequence[Tensor], config: BaseEncoderConfig, front_end: FrontEndConfig) -> ClipBatch:
    """Return waveforms, each (S,) at the front end's rate, as the batch that `context="full"` encodes, on their device.

    Unlike `InferenceEngine` it leaves gradients to the caller, for interfaces that train the encoder.
    """
    clips = [log_mel(wave, config=front_end) for wave in waves]
    filled = [fill_last_patch(clip, config, front_end.silent_feature) for clip in clips]
    counts = [torch.tensor([len(clip) for clip in some], device=filled[0].device) for some in (filled, clips)]
    return ClipBatch(pad_sequence(filled, batch_first=True), *counts)
