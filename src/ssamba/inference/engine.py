"""Batched inference: runs windows of many recordings through an encoder together, in constant memory.

    samples -> log-mel features -> windows -> batches of similar length -> tokens -> accumulators -> results

Windows are cut in `windows.py`, and accumulators (`accumulators.py`) make results of their tokens. Features have the
dtype of the encoder's weights; what users get is float32 on the CPU.

Shapes: S samples, T frames, M mel bins, P prefix tokens, L patch tokens, R rows and K columns of the patch grid, D
channels, C classes; `layers`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ssamba.audio.fbank import log_mel
from ssamba.config import FrontEndConfig
from ssamba.cores import FreeCores, say_if_spinning
from ssamba.embedding import EmbedOptions
from ssamba.errors import ConfigError
from ssamba.inference.accumulators import Accumulator
from ssamba.inference.windows import Window, WindowCutter
from ssamba.model.encoder import PatchEncoder
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
FREE_CORES = FreeCores()


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


@contextmanager
def _on_free_cores() -> Iterator[None]:
    """Use no more of PyTorch's threads than there are free cores: they wait for the slowest of them."""
    threads = torch.get_num_threads()
    count = min(threads, FREE_CORES.count())
    if count < threads:
        say_if_spinning(threads)
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count < threads:
            torch.set_num_threads(threads)
        FREE_CORES.worked()


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
    follows_load: bool = True
    """Whether to use no more threads than there are free cores, on which the last bits of results depend."""

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
        with self._autocast(enabled=False), _on_free_cores():
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

    def _encode(
        self, batch: list[tuple[_Recording[Key, Result], Window]], options: EmbedOptions, all_layers: bool
    ) -> None:
        with _on_free_cores() if self.follows_load else nullcontext():
            self._encode_batch(batch, options, all_layers)

    @torch.no_grad()
    def _encode_batch(
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
