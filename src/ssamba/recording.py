"""A recording on its way through a model: how it is cut into windows, and what its windows' tokens become.

What they become is an `Embedding` (`Recording`), one answer of a classifier (`ClassifiedRecording`), or an answer for
each second (`LabeledRecording`). The embedder runs the windows of many recordings together.

Shapes: S samples, T frames, M mel bins, P prefix tokens, L patch tokens, K columns (time steps of the patch grid, T'
elsewhere), D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from ssamba.config import BaseEncoderConfig, Config, FrontEndConfig
from ssamba.model.heads import Classifier, span_weights
from ssamba.model.patches import tokens_to_grid
from ssamba.model.windows import FrameMerger, Window, WindowCutter

Key = TypeVar("Key")


class EmbedOptions(Config):
    """How recordings are embedded; the defaults suit most uses."""

    context: Literal["windows", "full"] = "windows"
    """`windows`: the pretraining length, half overlapping, constant memory; `full`: the whole recording at once, with
    interpolated positions, memory linear in its length."""
    layer: int | None = None
    """Hidden state to use instead of the final output: 0 enters the first block, k leaves block pair k; negative
    numbers count from the last (-1 is the last hidden state, still without the final norm)."""
    padding: Literal["patch", "official"] = "patch"
    """`patch`: only the last partial patch is filled; `official`: recordings shorter than the pretraining length are
    filled up to it with silence and `clip` averages everything, as the released weights saw it."""


@dataclass(frozen=True)
class Embedding:
    """A recording's embedding. All tensors are float32 on the CPU."""

    clip: Tensor
    """One vector for the recording, (D,)."""
    frames: Tensor
    """One vector for each time step, (K, D)."""
    times_s: Tensor
    """Center of each time step (K,), in seconds from the start of the recording."""
    duration_s: float
    """Length of the recording."""


class Recording(Generic[Key]):
    """One recording on its way: what it was cut into, and what came back."""

    def __init__(self, key: Key, config: BaseEncoderConfig, front_end: FrontEndConfig, options: EmbedOptions):
        self.key = key
        self.num_samples = 0
        self.config, self.front_end = config, front_end
        self.fill_window = options.padding == "official"
        self.cutter = WindowCutter(
            self.config,
            self.front_end.silent_feature,
            whole=options.context == "full",
            fill_window=self.fill_window,
        )
        self.merger = FrameMerger()

    def add(self, window: Window, tokens: Tensor) -> None:
        """The encoder's tokens (P + L, D) for one of its windows."""
        patches = tokens[self.config.num_prefix_tokens :]
        grid = tokens_to_grid(patches, self.config.rows, window.columns, self.config)
        self.merger.add(window.first_column, grid.mean(0))

    def result_or_error(self) -> Any:
        """The embedding, once every window is back; an error where it is not finite."""
        columns = self.cutter.num_columns
        duration_s = self.num_samples / self.front_end.sample_rate_hz
        frames = self.merger.merged(columns)
        clip = (self.merger.merged() if self.fill_window else frames).mean(0)
        if not (torch.isfinite(frames).all() and torch.isfinite(clip).all()):
            return ValueError(
                "the embedding is not finite: the samples are far outside [-1, 1], or the model's weights are damaged"
            )
        return Embedding(clip, frames, centres_s(columns, duration_s, self.config, self.front_end), duration_s)


class ClassifiedRecording(Recording[Key]):
    """One recording on its way to one answer: the mean of its windows' logits, by their length."""

    def __init__(self, key: Key, head: Classifier, front_end: FrontEndConfig):
        super().__init__(key, head.encoder.config, front_end, EmbedOptions(padding=head.config.padding))
        self.head = head
        self.total, self.columns = torch.zeros(head.config.num_classes), 0

    def add(self, window: Window, tokens: Tensor) -> None:
        """Take the tokens (P + L, D) of one of its windows."""
        self.total += window.columns * self.head.classify(self.head.pool(tokens[None]))[0].float().cpu()
        self.columns += window.columns

    def result_or_error(self) -> Tensor | ValueError:
        """Logits (classes,), or an error where they are not finite."""
        return _finite(self.total / self.columns)


class LabeledRecording(ClassifiedRecording[Key]):
    """One recording on its way to an answer for each of its stretches, a second or what the classifier learned."""

    def __init__(self, key: Key, head: Classifier, front_end: FrontEndConfig):
        super().__init__(key, head, front_end)
        self.label_frames = head.config.label_frames or front_end.frames_per_second
        self.parts: list[tuple[int, Tensor]] = []  # of the original's way: first label, and logits

    def add(self, window: Window, tokens: Tensor) -> None:
        """Take the tokens (P + L, D) of one of its windows."""
        if self.head.config.token_segments is None:
            Recording.add(self, window, tokens)
            return
        logits = self.head.classify(self.head.pool_spans(tokens[None], window.features.shape[0]))[0]
        first_frame = window.first_column * self.config.patch_stride[1]
        self.parts.append((round(first_frame / self.label_frames), logits.float().cpu()))

    def result_or_error(self) -> Tensor | ValueError:
        """Logits (labels, classes), or an error where they are not finite."""
        labels = max(1, -(-self.num_samples // (self.label_frames * self.front_end.shift_samples)))
        if self.parts:
            total, count = torch.zeros(labels, self.head.config.num_classes), torch.zeros(labels, 1)
            for first, logits in self.parts:
                own = logits[: max(0, labels - first)]
                total[first : first + len(own)] += own
                count[first : first + len(own)] += 1
            return _finite(total[: int((count > 0).sum())] / count[: int((count > 0).sum())])
        frames = self.merger.merged()
        weights = span_weights(len(frames), self.config, self.label_frames)[:labels]
        with torch.no_grad():
            return _finite(self.head.classify((weights @ frames).to(self.head.linear.weight.device)).float().cpu())


def _finite(logits: Tensor) -> Tensor | ValueError:
    if torch.isfinite(logits).all():
        return logits
    return ValueError("the logits are not finite: samples are far outside [-1, 1], or the model's weights are damaged")


def centres_s(columns: int, duration_s: float, config: BaseEncoderConfig, front_end: FrontEndConfig) -> Tensor:
    """Center of each column's stretch of audio, cut at the recording's end."""
    shift_s = front_end.shift_samples / front_end.sample_rate_hz
    span_s = (config.patch_size[1] - 1) * shift_s + front_end.frame_samples / front_end.sample_rate_hz
    start_s = torch.arange(columns, dtype=torch.float64) * (config.patch_stride[1] * shift_s)
    return ((start_s + (start_s + span_s).clamp(max=duration_s)) / 2).float()
