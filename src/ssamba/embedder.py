"""From a recording to its embedding: the object that most users meet.

    model = ssamba.load_model("checkpoint/")
    e = model.embed("dog.wav")          # e.clip (D,), e.frames (T', D), e.times_s (T',)

Recordings of any length run in constant memory: samples become features block by block, features become windows, and
windows of many recordings are encoded together in batches of similar length, so that padding is never worth mentioning.

Shapes: S samples, T frames, M mel bins, K columns (time steps of the patch grid, T' above), R rows, D channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from ssamba.audio.fbank import log_mel
from ssamba.audio.waveform import Source, as_list, blocks
from ssamba.checkpoint import Checkpoint, LoadReport, has_bundled, load_bundled, load_checkpoint
from ssamba.config import FrontEndConfig, ModelConfig
from ssamba.hashing import digest_of
from ssamba.model.create import build_encoder, encoder_config
from ssamba.model.encoder import PatchEncoder
from ssamba.model.heads import Classifier
from ssamba.model.windows import Window
from ssamba.recording import ClassifiedRecording, Embedding, EmbedOptions, LabeledRecording, Recording

__all__ = ["EmbedOptions", "Embedder", "Embedding", "load_model"]

Key = TypeVar("Key")

_BLOCK_S = 30.0
_TOKENS_PER_BATCH = {"cpu": 4096}
_TOKENS_PER_BATCH_ELSEWHERE = 32_768
_PADDING_ALLOWANCE = 1.1  # a batch may hold so many times its windows' own columns,
_UNPADDED_ALLOWANCE = 2.0  # or so many where the blocks leave padding out


class Embedder:
    """A model with its front end, ready to embed recordings.

    Attributes:
        encoder: the encoder (a `torch.nn.Module` from normalized features to tokens).
        classifier: the classifier, for checkpoints that have one, else None.
        front_end: how waveforms become features.
        report: what was loaded and what was left out; None when the model was made in place.
        name: path or name of the checkpoint.
        config: the model's configuration.
        device: where it runs.
    """

    def __init__(
        self,
        model: PatchEncoder | Checkpoint,
        front_end: FrontEndConfig | None = None,
        *,
        device: str | torch.device | None = None,
        name: str | None = None,
    ):
        """Wrap an encoder or a loaded checkpoint.

        Args:
            model: an encoder (from `create_encoder`) or what `load_checkpoint` returned.
            front_end: how waveforms become features; None is the checkpoint's, or the official one.
            device: where to run; None takes a CUDA device when there is one, else the CPU.
            name: what to call it in reports; None is the checkpoint's path.
        """
        self.classifier: Classifier | None = None
        self.report: LoadReport | None = None
        if isinstance(model, Checkpoint):
            self.encoder = model.model.encoder
            self.config = model.config
            self.report = model.report
            front_end = front_end or model.front_end
            name = name or model.report.source
            if isinstance(model.model, Classifier):
                self.classifier = model.model
        else:
            self.encoder = model
            self.config = ModelConfig(encoder=model.config)
        self.front_end = front_end or FrontEndConfig()
        self.name = name or "in memory"
        if self.front_end.num_mel_bins != self.encoder.config.num_mel_bins:
            raise ValueError(
                f"the front end makes {self.front_end.num_mel_bins} mel bins, but the encoder takes "
                f"{self.encoder.config.num_mel_bins}"
            )
        self.device = torch.device(device) if device is not None else _default_device()
        (self.classifier or self.encoder).to(self.device).eval()

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""
        return self.encoder.config.embed_dim

    @property
    def window_s(self) -> float:
        """Length of a window of long recordings: the pretraining length."""
        return self.encoder.config.num_frames * self.front_end.shift_samples / self.front_end.sample_rate_hz

    def check(self, options: EmbedOptions) -> None:
        """ValueError if this model cannot follow the options."""
        if options.layer is not None:
            self.encoder.layer_index(options.layer)

    def digest(self, options: EmbedOptions | None = None) -> str:
        """Sixteen hexadecimal digits of everything an embedding depends on: weights, configuration, options."""
        configurations = options or EmbedOptions(), self.front_end, self.encoder.config
        return digest_of(*(config.digest() for config in configurations), self.encoder.state_dict())

    @overload
    def embed(self, source: Source, sample_rate: int | None = None, **options: Any) -> Embedding: ...

    @overload
    def embed(self, source: Sequence[Source], sample_rate: int | None = None, **options: Any) -> list[Embedding]: ...

    def embed(
        self, source: Source | Sequence[Source], sample_rate: int | None = None, **options: Any
    ) -> Embedding | list[Embedding]:
        """Embed one recording, or a list of recordings in batches.

        Args:
            source: a file's path; or a mono waveform (S,), NumPy array or tensor, float in [-1, 1] or integer PCM; or
                a batch of waveforms (B, S); or a list of any of these, mixed.
            sample_rate: of the waveforms, in Hz; None means that they already have the model's rate. Files know theirs.
            options: fields of `EmbedOptions`: `context="windows"|"full"`, `layer=`, `padding="patch"|"official"`.

        Returns:
            An `Embedding`; a list of them, in order, for a list or a batch.

        Raises:
            AudioDecodeError: a file cannot be read; the message says why.
            ValueError: a waveform has a wrong shape, holds NaN, or is shorter than one frame (25 ms).
            ConfigError: an unknown option.
        """
        settings = EmbedOptions.parse(options, "embed")
        sources, single = as_list(source)
        results: list[Embedding | None] = [None] * len(sources)
        for index, result in self.embed_stream(enumerate(sources), sample_rate, settings):
            if isinstance(result, Exception):
                raise result
            results[index] = result
        done = cast("list[Embedding]", results)
        return done[0] if single else done

    def embed_stream(
        self,
        items: Iterable[tuple[Key, Source]],
        sample_rate: int | None = None,
        options: EmbedOptions | None = None,
    ) -> Iterator[tuple[Key, Embedding | Exception]]:
        """Embed recordings as they come, many at a time, and give each result when it is ready.

        A recording that cannot be read gives its exception (`ValueError` or `OSError`) in place of an embedding, and
        the others go on. Results may come in another order than `items`; each carries its key.
        """
        options = options or EmbedOptions()
        self.check(options)
        yield from self._stream(
            items, sample_rate, options, lambda key: Recording(key, self.encoder.config, self.front_end, options)
        )

    def _stream(
        self,
        items: Iterable[tuple[Key, Source]],
        sample_rate: int | None,
        options: EmbedOptions,
        new: Callable[[Key], Recording[Key]],
    ) -> Iterator[tuple[Key, Any]]:
        """Run windows of many recordings through the encoder together; `new` says what becomes of a recording's."""
        budget = _TOKENS_PER_BATCH.get(self.device.type, _TOKENS_PER_BATCH_ELSEWHERE)
        rows = self.encoder.config.rows
        batch: list[tuple[Recording[Key], Window]] = []
        tokens = 0
        waiting: list[Recording[Key]] = []
        for key, source in items:
            recording = new(key)
            error: Exception | None = None
            windows = self._windows(source, sample_rate, recording)
            while True:
                try:
                    window = next(windows, None)
                except (ValueError, OSError) as reason:
                    error = reason
                    break
                if window is None:
                    break
                batch.append((recording, window))
                tokens += window.columns * rows
                if tokens >= budget:
                    self._encode(batch, options)
                    batch, tokens = [], 0
            if error is not None:
                batch = [(owner, window) for owner, window in batch if owner is not recording]
                tokens = sum(window.columns for _, window in batch) * rows
                yield key, error
                continue
            waiting.append(recording)
            unfinished = {id(owner) for owner, _ in batch}
            ready = [done for done in waiting if id(done) not in unfinished]
            waiting = [other for other in waiting if id(other) in unfinished]
            yield from ((done.key, done.result_or_error()) for done in ready)
        self._encode(batch, options)
        yield from ((done.key, done.result_or_error()) for done in waiting)

    def logits(self, source: Source, sample_rate: int | None = None) -> Tensor:
        """The classifier's raw outputs for one recording, (classes,), averaged over windows by their length.

        Raises:
            ValueError: the checkpoint has no classifier; or as `embed`.
        """
        ((_, result),) = self.logits_stream([(None, source)], sample_rate, per_label=False)
        if isinstance(result, Exception):
            raise result
        return result

    def logits_stream(
        self, items: Iterable[tuple[Key, Source]], sample_rate: int | None = None, *, per_label: bool | None = None
    ) -> Iterator[tuple[Key, Tensor | Exception]]:
        """The classifier's raw outputs for recordings as they come, many at a time; as `embed_stream`.

        Args:
            items: keys and recordings.
            sample_rate: of waveforms, as in `embed`.
            per_label: (labels, classes), an answer for each stretch of the recording (`label_frames` of the classifier,
                a second where it has none), instead of one for the whole, (classes,); None is as it was trained.

        Raises:
            ValueError: the checkpoint has no classifier, or one that cannot answer for a part.
        """
        head = self.classifier
        if head is None:
            raise ValueError(
                f"{self.name} has no classifier: expected a fine-tuned checkpoint, got kind {self.config.kind!r}"
            )
        per_label = head.config.label_frames is not None if per_label is None else per_label
        if per_label and head.config.pooling != "mean":
            raise ValueError(
                f"{self.name} reads its prefix token, which stands for the whole clip: ask for whole clips"
            )
        options = EmbedOptions(padding=head.config.padding)
        kind = LabeledRecording if per_label else ClassifiedRecording
        yield from self._stream(items, sample_rate, options, lambda key: kind(key, head, self.front_end))

    def features(self, source: Source, sample_rate: int | None = None) -> Tensor:
        """The normalized log-mel features of one recording, (T, M), on the CPU; arguments and errors as `embed`."""
        recording = Recording(None, self.encoder.config, self.front_end, EmbedOptions())
        return torch.cat([block.cpu() for block in self._feature_blocks(source, sample_rate, recording)])

    def _windows(self, source: Source, sample_rate: int | None, recording: Recording[Any]) -> Iterator[Window]:
        for features in self._feature_blocks(source, sample_rate, recording):
            yield from recording.cutter.push(features)
        yield from recording.cutter.finish()

    def _feature_blocks(self, source: Source, sample_rate: int | None, recording: Recording[Any]) -> Iterator[Tensor]:
        """Features (T, M) of consecutive stretches of a recording; counts its samples."""
        config = self.front_end
        block_samples = round(_BLOCK_S * config.sample_rate_hz)
        pending = np.zeros(0, dtype=np.float32)
        for samples in blocks(source, sample_rate, config.sample_rate_hz):
            recording.num_samples += len(samples)
            pending = np.concatenate((pending, samples)) if len(pending) else samples
            # Always the same stretches, however the source is cut, so that results do not depend on its kind.
            while len(pending) >= block_samples + config.frame_samples:
                frames = config.num_frames(block_samples)
                yield self._log_mel(pending[:block_samples])
                pending = pending[frames * config.shift_samples :]
        if len(pending) >= config.frame_samples:
            yield self._log_mel(pending)
        if recording.num_samples < config.frame_samples:
            what = f"{source}: " if isinstance(source, str | Path) else ""
            raise ValueError(
                f"{what}the recording is {1000 * recording.num_samples / config.sample_rate_hz:.1f} ms long, shorter "
                f"than one frame of {config.frame_ms:g} ms: leave it out, or pad it"
            )

    def _log_mel(self, samples: np.ndarray[Any, Any]) -> Tensor:
        return log_mel(torch.from_numpy(np.ascontiguousarray(samples)).to(self.device), config=self.front_end)

    @torch.no_grad()
    def _encode(self, batch: list[tuple[Recording[Key], Window]], options: EmbedOptions) -> None:
        """Encode windows in groups of similar length, and hand their frame embeddings to their recordings."""
        config, prefix = self.encoder.config, self.encoder.num_prefix_tokens
        unpadded = self.encoder.leaves_padding_out(batch[0][1].features) if batch else False
        for group in _similar_lengths(batch, _UNPADDED_ALLOWANCE if unpadded else _PADDING_ALLOWANCE):
            longest = max(window.features.shape[0] for _, window in group)
            if len(group) == 1:  # it may be hours in one window: no copy of it
                features = group[0][1].features[None]
            else:
                features = torch.zeros(len(group), longest, config.num_mel_bins, device=self.device)
                for row, (_, window) in zip(features, group, strict=True):
                    row[: window.features.shape[0]] = window.features
            lengths = None
            if any(window.features.shape[0] < longest for _, window in group):
                lengths = torch.tensor([window.features.shape[0] for _, window in group])
            tokens = self.encoder(features, lengths, layer=options.layer)
            for own, (recording, window) in zip(tokens, group, strict=True):
                recording.add(window, own[: prefix + config.rows * window.columns])


def _similar_lengths(
    batch: list[tuple[Recording[Key], Window]], allowance: float
) -> Iterator[list[tuple[Recording[Key], Window]]]:
    """Groups of windows, longest first, whose padding stays within the allowance."""
    group: list[tuple[Recording[Key], Window]] = []
    own = 0
    for item in sorted(batch, key=lambda entry: -entry[1].columns):
        columns = item[1].columns
        if group and (len(group) + 1) * group[0][1].columns > allowance * (own + columns):
            yield group
            group, own = [], 0
        group.append(item)
        own += columns
    if group:
        yield group


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_SEED = 0


def load_model(
    source: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    patch_stride: int | tuple[int, int] | None = None,
    front_end: FrontEndConfig | None = None,
) -> Embedder:
    """Load a model that embeds recordings.

    Args:
        source: a checkpoint folder, an official SSAMBA or SSAST `.pth` file (pretrained or fine-tuned), or a hub name
            (`hf:OWNER/NAME`, `hf:OWNER/NAME@REVISION`). None is the model that ships with the package (where an
            installation lacks it, a tiny model with random weights from a fixed seed, with a warning).
        device: where to run; None takes a CUDA device when there is one, else the CPU.
        patch_stride: cut patches with this stride instead of the checkpoint's, e.g. 10.
        front_end: how waveforms become features, instead of the checkpoint's own.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or does not fit; the message says why.

    Example:
        >>> model = load_model("checkpoint/")
        >>> model.embed("dog.wav").clip.shape
        torch.Size([192])
    """
    if source is None and has_bundled():
        return Embedder(load_bundled(patch_stride), front_end, device=device, name="ssamba2-tiny")
    if source is None:
        warnings.warn(
            "this installation of ssamba came without its weights: this model is randomly initialized (tiny, seed "
            f"{_SEED}). Give the path of a checkpoint for embeddings that mean something.",
            stacklevel=2,
        )
        return random_model(device=device, patch_stride=patch_stride, front_end=front_end)
    return Embedder(load_checkpoint(source, patch_stride), front_end, device=device)


def random_model(
    *,
    device: str | torch.device | None = None,
    patch_stride: int | tuple[int, int] | None = None,
    front_end: FrontEndConfig | None = None,
) -> Embedder:
    """The structure of the model that ships (else the tiny one) with random weights from a fixed seed, to see what
    training is worth; arguments as `load_model`."""
    if has_bundled():
        shipped = load_bundled(patch_stride)
        config, front_end = shipped.config.encoder, front_end or shipped.front_end
    else:
        config = encoder_config("tiny")
        if patch_stride is not None:
            config = config.with_patch_stride(patch_stride)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        encoder = build_encoder(config)
    return Embedder(encoder, front_end, device=device, name="random tiny")
